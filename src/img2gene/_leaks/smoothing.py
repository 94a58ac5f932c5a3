"""Detect from the noise whether counts or labels of a section were averaged over neighbouring spots."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from img2gene.metrics.spatial import morans_i, neighbor_graph
from img2gene.models.data import TARGET_SUM

MIN_SPOTS, MIN_GENES = 30, 5
# With fewer genes, components take up most of the noise, and shares of a total depend on each other.
MIN_NOISE_GENES = 30
# Noise is measured best in genes with many counts.
_N_GENES = 200
# Number of tissue programmes to remove; more components would also remove noise that smoothing spread over neighbours.
_COMPONENTS = 6
_RINGS = (4, 8, 12)
_WIDE_RINGS = (4, 8, 24)


def noise_ratio(counts: np.ndarray, library: np.ndarray, positions: np.ndarray) -> float:
    r"""Measure how much counts of neighbouring spots differ, relative to Poisson counts of one rate.

    Given their sum n, two Poisson counts of one rate are binomial, so with library sizes L

    .. math:: E \frac{(x_i L_j - x_j L_i)^2}{L_i L_j} = n

    Different rates, overdispersion and dropout increase the left side. Only averaging over neighbours decreases it.

    Parameters
    ----------
    counts
        (n_spots, n_genes) of one section, no spot empty.
    library
        (n_spots,) counts per spot over the full transcriptome.
    positions
        (n_spots, 2).

    Returns
    -------
    Left side over right side, each summed over neighbours: median over the 200 genes with the highest mean. NaN with
    fewer than 30 spots, or fewer than 5 genes with a mean of 0.5: averages of rare counts are rounded to ones among
    zeros, as counts are.
    """
    genes = leading_genes(counts, 0.5)
    if len(library) < MIN_SPOTS or len(genes) < MIN_GENES:
        return float("nan")
    values, size = counts[:, genes].astype(np.float64), library[:, None].astype(np.float64)
    one, other = neighbor_graph(positions).nonzero()
    share = np.sqrt(size[other] / size[one])
    squares = np.square(values[one] * share - values[other] / share).sum(axis=0)
    return float(np.median(squares / (values[one] + values[other]).sum(axis=0).clip(1e-12)))


def noise_autocorrelation(values: np.ndarray, positions: np.ndarray) -> float:
    """Compute Moran's I of each gene after removing the leading components of a section, at most 6.

    Genes vary together over the tissue, so the components contain the biology. The rest is noise of single genes, which
    is similar in neighbouring spots only if values were averaged over them.

    Parameters
    ----------
    values
        (n_spots, n_genes) on any scale.
    positions
        (n_spots, 2).

    Returns
    -------
    Median over genes, for the nearest 4, 8 or 12 spots, whichever is highest; NaN with fewer than 30 spots or genes
    that vary.
    """
    values = values[:, values.std(axis=0) > 0]
    n_spots, n_genes = values.shape
    if n_spots < MIN_SPOTS or n_genes < MIN_NOISE_GENES:
        return float("nan")
    scaled = (values - values.mean(axis=0)) / values.std(axis=0)
    n_components = max(1, min(_COMPONENTS, n_genes // 10, n_spots // 10))
    # The Gram matrix of the genes is small however many spots there are.
    loadings = np.linalg.eigh(scaled.T @ scaled)[1][:, -n_components:]
    noise = scaled - (scaled @ loadings) @ loadings.T
    return float(max(np.nanmedian(morans_i(noise, neighbor_graph(positions, k))) for k in _RINGS))


def explained_by_neighbors(labels: np.ndarray, counts: np.ndarray, library: np.ndarray, positions: np.ndarray) -> float:
    r"""Measure how much of a label the neighbours' counts explain beyond the spot's own count.

    For a label computed from the spot's own count and library size, on whatever scale, neighbours explain nothing more.
    For a label averaged over space, they explain most. The label of each gene is regressed on functions of the own
    count and library size, and then also on means over the 4, 8 and 24 nearest spots. The adjusted partial R² is

    .. math:: 1 - \frac{RSS_2 / (n - p_2)}{RSS_1 / (n - p_1)}

    and 0 where the own count leaves less than 1/10,000 of the variance unexplained.

    Parameters
    ----------
    labels
        (n_spots, n_genes) of one section, on any scale.
    counts
        (n_spots, n_genes) from which the labels were computed; no spot empty.
    library
        (n_spots,) counts per spot over the full transcriptome.
    positions
        (n_spots, 2).

    Returns
    -------
    Median over genes; NaN with fewer than 30 spots or 5 genes that vary.
    """
    varies = np.flatnonzero(labels.std(axis=0) > 0)
    if len(library) < MIN_SPOTS or len(varies) < MIN_GENES:
        return float("nan")
    graphs = [neighbor_graph(positions, k) for k in _WIDE_RINGS]
    size = library.astype(np.float64)
    return float(np.median([_partial_r2(labels[:, g], counts[:, g], size, graphs) for g in varies]))


def _partial_r2(label: np.ndarray, raw: np.ndarray, size: np.ndarray, graphs: list[sp.csr_matrix]) -> float:
    """Compute the adjusted partial R² of one gene."""
    log_rate, log_size = np.log1p(TARGET_SUM * raw / size), np.log(size)
    own_terms = [
        np.ones_like(size),
        log_rate,
        log_rate**2,
        np.sqrt(raw),
        raw,
        log_size,
        log_size**2,
        log_rate * log_size,
    ]
    neighbor_terms = [graph @ values for graph in graphs for values in (log_rate, raw)]
    centred = label - label.mean()
    own_rss, own_rank = _residual(np.column_stack(own_terms), centred)
    if own_rss <= 1e-4 * (centred @ centred):
        return 0.0
    full_rss, full_rank = _residual(np.column_stack([*own_terms, *neighbor_terms]), centred)
    return 1 - (full_rss / max(len(label) - full_rank, 1)) / (own_rss / max(len(label) - own_rank, 1))


def _residual(design: np.ndarray, target: np.ndarray) -> tuple[float, int]:
    """Fit by least squares; return the residual sum of squares and the rank of the design."""
    # Terms differ by orders of magnitude, and without scaling the small ones would fall below `rcond`.
    scaled = design / np.abs(design).max(axis=0).clip(1e-300)
    solution, _, rank, _ = np.linalg.lstsq(scaled, target, rcond=1e-8)
    return float(np.square(target - scaled @ solution).sum()), int(rank)


def label_genes(values: Any) -> np.ndarray:
    """Choose genes of labels on any scale: the highest means, or the most variable genes if few means are above 0."""
    leading = leading_genes(values)
    if len(leading) >= MIN_NOISE_GENES:
        return leading
    spread = np.asarray(values.toarray() if sp.issparse(values) else values).std(axis=0)
    order = np.argsort(-spread, kind="stable")[:_N_GENES]
    return order[spread[order] > 0]


def leading_genes(counts: Any, min_mean: float = 0.0) -> np.ndarray:
    """Choose the genes with the highest mean count above ``min_mean``, at most 200, highest first."""
    mean = np.asarray(counts.mean(axis=0)).ravel()
    order = np.argsort(-mean, kind="stable")[:_N_GENES]
    return order[mean[order] > min_mean]
