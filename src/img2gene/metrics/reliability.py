"""Estimate how well each gene could be predicted at best: the noise ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError, raise_problems
from img2gene.metrics._blocks import standardise
from img2gene.metrics._inputs import checked_draws, real_array, section_numbers, summed, vector
from img2gene.metrics._order import order_by_counts

METHODS = ("genes", "thinning")
SCALE = 1e4
MIN_GENES = 8

_N_ANCHORS = 500
_N_FOLDS = 4
_MAX_RANK = 16
_SPOTS_PER_RANK = 8
_BLOCK = 1000
_MAX_SPLITS = 1000
# Sums of larger counts would not be exact.
_MAX_COUNT = 2**40


def noise_ceiling(
    counts: np.ndarray | sp.spmatrix,
    library: np.ndarray | None = None,
    sections: np.ndarray | Sequence[str] | None = None,
    *,
    genes: np.ndarray | Sequence[int] | None = None,
    labels: np.ndarray | None = None,
    method: str = "genes",
    n_splits: int = 3,
    seed: int = 0,
) -> np.ndarray:
    r"""Estimate the PCC within a section that a perfect model would reach, for each gene.

    The expression :math:`y = \log(1 + 10^4 x / L)` of counts *x* and library size *L* is signal plus noise. If the
    signal has the share *R* of the variance, no prediction correlates better than :math:`\sqrt R`.

    ``method="genes"`` takes for signal what a gene shares with others. A gene is compared with two summaries
    :math:`u_1, u_2` of the same spots, each from one half of the other genes. Neither summary shares noise with the
    gene or with the other summary. With canonical variates :math:`u_{1j}, u_{2j}` of correlation :math:`\rho_j`,

    .. math:: R = \frac{\sum_{i \ne k} y_i H_{ik} y_k}{\sum_i (1 - H_{ii}) \, y_i^2},
              \qquad H = \sum_j \frac{u_{1j} u_{2j}^\top}{\rho_j}

    which corrects for the noise of the summaries (dividing by :math:`\rho_j`) and for chance (leaving out i = k). Every
    kind of noise that is specific to a gene counts: sampling, overdispersion, lost counts. So does variation in the
    tissue that a gene shares with no other.

    ``method="thinning"`` takes for noise what the sampling of molecules adds. Counts are divided at random, each half
    is normalised, and the correlation *r* of the halves is brought to full depth: :math:`R = 2r / (1 + r)`.
    Overdispersion and lost counts are the same in both halves, so this is an upper bound.

    Parameters
    ----------
    counts
        Raw counts (n_spots, n_genes) of all genes.
    library
        (n_spots,) counts of the whole transcriptome; by default the row sums.
    sections
        (n_spots,) names; correlations are within sections, and averaged over them. By default all spots are one
        section.
    genes
        Columns to estimate the ceiling of; by default all.
    labels
        (n_spots, len(genes)) expression on another scale than log-normalised, for ``method="genes"``.
    method
        ``"genes"`` or ``"thinning"``.
    n_splits
        How often genes or counts are divided at random; results are averaged. The divisions do not depend on the order
        of spots and genes.
    seed
        Seed of the divisions.

    Returns
    -------
    float64 (len(genes),) from 0 to 1. NaN where expression is constant in every section, and for all genes where
    ``method="genes"`` has fewer than 8 genes to compare. Spots without counts are left out.

    Raises
    ------
    Img2GeneError
        Unknown method, shapes that differ, or ``labels`` with ``method="thinning"``.

    References
    ----------
    Angrist, Imbens & Krueger, "Jackknife instrumental variables estimation", Journal of Applied Econometrics 1999;
    Spearman, "Correlation calculated from faulty data", British Journal of Psychology 1910; Neufeld et al., "Inference
    after latent variable estimation for single-cell RNA sequencing data", Biostatistics 2024 (count splitting).

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import noise_ceiling
    >>> rng = np.random.default_rng(0)
    >>> rate = np.full((200, 60), 20.0)
    >>> rate[100:, :10] = 60
    >>> ceiling = noise_ceiling(rng.poisson(rate))
    >>> bool(ceiling[:10].min() > 0.8)
    True
    """
    n_splits, seed = checked_draws("n_splits", n_splits, _MAX_SPLITS, seed)
    raise_problems(method_problems(method))
    matrix = _count_matrix(counts, method)
    size = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    size = size if library is None else _library(library, len(size))
    columns, groups = _columns(genes, matrix.shape[1]), section_numbers(sections, len(size))
    _check_labels(labels, (len(size), len(columns)), method)
    kept = np.flatnonzero(size > 0)
    matrix = matrix[kept]
    matrix.eliminate_zeros()
    # Draws follow the order of spots and genes, which therefore must be the same whatever the order of the input.
    rows, places = order_by_counts(matrix, groups[kept], None if library is None else size[kept])
    matrix, kept, columns = matrix[rows][:, places].sorted_indices(), kept[rows], np.argsort(places)[columns]
    size, groups = size[kept], groups[kept]
    rng = np.random.default_rng(seed)
    if method == "thinning":
        return _thinning(matrix, size, groups, columns, n_splits, rng)
    values = normalise(matrix[:, columns], size) if labels is None else np.asarray(labels, dtype=np.float64)[kept]
    return _shared(matrix, size, groups, columns, values, n_splits, rng)


def spearman_brown(r: np.ndarray | float, factor: float = 2.0) -> np.ndarray:
    """Compute the reliability of a longer measurement from the reliability r of a shorter one: k r / (1 + (k − 1) r).

    Parameters
    ----------
    r
        Reliability, such as the correlation of two halves.
    factor
        How many times longer, k; 2 leads from half to whole.

    Returns
    -------
    float64 of the shape of ``r``.

    Examples
    --------
    >>> from img2gene.metrics import spearman_brown
    >>> spearman_brown(0.6).round(2)
    np.float64(0.75)
    """
    check = Arguments()
    factor = check.number("factor", factor, above=0)
    check.raise_all()
    r = real_array(r, "r").astype(np.float64)
    # The denominator of a negative correlation can be 0.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return factor * r / (1 + (factor - 1) * r)


def normalise(counts: sp.csr_matrix, library: np.ndarray) -> np.ndarray:
    """Compute log1p(1e4 counts / library), float64 (n_spots, n_genes); a spot without counts has zeros."""
    scale = np.divide(SCALE, library, out=np.zeros(len(library)), where=library > 0)
    return np.log1p(sp.diags(scale).dot(counts).toarray())


def split_counts(
    counts: sp.csr_matrix, library: np.ndarray, rng: np.random.Generator
) -> list[tuple[sp.csr_matrix, np.ndarray]]:
    """Divide the molecules into two halves with their library sizes; every molecule goes to one of them at random."""
    first = counts.astype(np.int64)
    first.data = rng.binomial(first.data, 0.5)
    # Molecules of genes that are not in the table count in the library size: they are divided, too.
    elsewhere = np.maximum(np.rint(library - np.asarray(counts.sum(axis=1)).ravel()), 0).astype(np.int64)
    size = np.asarray(first.sum(axis=1)).ravel() + rng.binomial(elsewhere, 0.5)
    return [(first, size), (counts - first, library - size)]


def method_problems(method: str) -> list[str]:
    """List what is wrong with the name of a method."""
    if isinstance(method, str) and method in METHODS:
        return []
    return [f"method={shown(method)}: estimate noise ceilings with {' or '.join(map(repr, METHODS))}."]


def _count_matrix(counts: Any, method: str) -> sp.csr_matrix:
    """Convert to raw counts, CSR (n_spots, n_genes)."""
    values = counts if sp.issparse(counts) else real_array(counts, "counts")
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise Img2GeneError(f"counts: expected (n_spots, n_genes) counts, got {values.dtype} of shape {values.shape}.")
    # scipy has no sparse matrices of half precision or truth values.
    matrix = summed(sp.csr_matrix(values.astype(np.float32) if values.dtype in (np.float16, np.bool_) else values))
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        raise Img2GeneError("counts: expected counts of at least 0, got negative, NaN or infinite values.")
    if (matrix.data > _MAX_COUNT).any():
        raise Img2GeneError(f"counts: {matrix.data.max():g} is no number of molecules.")
    if method == "thinning" and (matrix.data % 1 != 0).any():
        raise Img2GeneError("counts: only whole numbers can be thinned; pass raw counts, or method='genes'.")
    return matrix


def _library(library: Any, n_spots: int) -> np.ndarray:
    """Convert to library sizes, float64 (n_spots,)."""
    size = vector(library, "library")
    if len(size) != n_spots:
        raise Img2GeneError(f"Counts of {n_spots} spots and library sizes of {len(size)} differ.")
    if not np.isfinite(size).all() or (size < 0).any():
        raise Img2GeneError("library: expected sizes of at least 0, got negative, NaN or infinite values.")
    return size


def _columns(genes: Any, n_genes: int) -> np.ndarray:
    """Convert to numbers of columns; a mask marks them."""
    if genes is None:
        return np.arange(n_genes)
    chosen = real_array(genes, "genes")
    if chosen.shape == (n_genes,) and chosen.dtype == bool:
        return np.flatnonzero(chosen)
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise Img2GeneError(f"genes: expected numbers of columns, got {chosen.dtype} of shape {chosen.shape}.")
    if chosen.size and not (-n_genes <= chosen.min() and chosen.max() < n_genes):
        raise Img2GeneError(f"genes: columns are 0 to {n_genes - 1}, got {chosen.min()} to {chosen.max()}.")
    return chosen.astype(np.intp)


def _check_labels(labels: Any, shape: tuple[int, int], method: str) -> None:
    if labels is None:
        return
    if method == "thinning":
        raise Img2GeneError("Only counts can be thinned: for `labels` on another scale pass method='genes'.")
    values = real_array(labels, "labels")
    if values.shape != shape:
        raise Img2GeneError(f"`labels` of shape {values.shape} are not one per spot and gene {shape}.")


def _thinning(
    counts: sp.csr_matrix,
    library: np.ndarray,
    groups: np.ndarray,
    columns: np.ndarray,
    n_splits: int,
    rng: np.random.Generator,
) -> np.ndarray:
    from img2gene.metrics.regression import pearson

    n_sections = groups.max(initial=-1) + 1
    r = np.zeros((n_sections, len(columns)))
    for _ in range(n_splits):
        halves = split_counts(counts, library, rng)
        for start in range(0, len(columns), _BLOCK):
            block = slice(start, start + _BLOCK)
            one, two = (normalise(half.tocsc()[:, columns[block]].tocsr(), size) for half, size in halves)
            for group in range(n_sections):
                r[group, block] += pearson(one[groups == group], two[groups == group]) / n_splits
    return _mean(np.sqrt(spearman_brown(np.maximum(r, 0))))


def _shared(
    counts: sp.csr_matrix,
    library: np.ndarray,
    groups: np.ndarray,
    columns: np.ndarray,
    labels: np.ndarray,
    n_splits: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Square root of the share of variance that genes have in common with others, averaged over divisions of these."""
    labels, n_sections = _standardise(labels, groups)
    anchors, profiles = _profiles(counts, library, groups)
    if len(anchors) < MIN_GENES or not len(labels):
        return np.full(len(columns), np.nan)
    share = np.zeros(len(columns))
    for _ in range(n_splits):
        # No gene may be part of its own summaries: each fold is explained by genes of the others.
        fold = rng.permutation(counts.shape[1]) % _N_FOLDS
        for number in range(_N_FOLDS):
            members = np.flatnonzero(fold[columns] == number)
            others = rng.permutation(np.flatnonzero(fold[anchors] != number))
            variates = _variates(profiles[:, others[::2]], profiles[:, others[1::2]], len(labels) - groups.max() - 1)
            share[members] += _explained(labels[:, members], *variates) / n_splits
    # A section where a gene is constant holds zeros: the mean is over the others.
    share = np.divide(share * (groups.max() + 1), n_sections, out=np.full(len(share), np.nan), where=n_sections > 0)
    return np.sqrt(np.clip(share, 0, 1))


def _standardise(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre values within sections and scale their squares to the same sum; count the sections where a gene varies."""
    result, varying = np.zeros(values.shape), np.zeros(values.shape[1])
    n_sections = groups.max(initial=-1) + 1
    for group in range(n_sections):
        rows = groups == group
        part = standardise(values[rows])
        varying += np.isfinite(part).all(axis=0)
        result[rows] = np.nan_to_num(part) * np.sqrt(len(values) / n_sections)
    return result, varying


def _profiles(counts: sp.csr_matrix, library: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The genes with the highest share of the counts, and these shares with mean 0 within sections and variance 1.

    Shares and not their logarithms: the expected share does not depend on depth, so genes do not correlate through
    depth.
    """
    share = sp.diags(1 / library).dot(counts).tocsc()
    anchors = np.argsort(-np.asarray(share.sum(axis=0)).ravel(), kind="stable")[:_N_ANCHORS]
    values = share[:, anchors].toarray()
    for group in range(groups.max(initial=-1) + 1):
        values[groups == group] -= values[groups == group].mean(axis=0)
    spread = np.sqrt(np.square(values).mean(axis=0)) if len(values) else np.zeros(len(anchors))
    varies = spread > 0
    return anchors[varies], values[:, varies] / spread[varies]


def _variates(one: np.ndarray, two: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Canonical variates of two sets of genes, unit length, and those correlations that chance does not reach."""
    rank = max(min(_MAX_RANK, n // _SPOTS_PER_RANK, one.shape[1], two.shape[1]), 1)
    first, second = (np.linalg.svd(values, full_matrices=False)[0][:, :rank] for values in (one, two))
    left, rho, right = np.linalg.svd(first.T @ second)
    # Largest correlation of independent noise (Wachter 1980) in `rank` dimensions on either side
    noise = 2 * np.sqrt(rank / n * (1 - rank / n))
    real = rho > noise
    return (first @ left)[:, real], (second @ right.T)[:, real], rho[real]


def _explained(labels: np.ndarray, one: np.ndarray, two: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """Share of the variance of each column of labels that the variates explain, without the terms i = k."""
    diagonal = (one * two / rho).sum(axis=1) @ np.square(labels)
    total = ((one.T @ labels) * (two.T @ labels) / rho[:, None]).sum(axis=0)
    return (total - diagonal) / (len(labels) - diagonal)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over rows that are not NaN; NaN where there are none."""
    known = np.isfinite(values)
    n = known.sum(axis=0)
    return np.divide(np.where(known, values, 0).sum(axis=0), n, out=np.full(values.shape[1], np.nan), where=n > 0)
