"""Spatial statistics of expression on a section's neighbour graph."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from img2gene.metrics._blocks import columns, per_gene
from img2gene.metrics.regression import pearson


def neighbor_graph(positions: np.ndarray, k: int = 6) -> sp.csr_matrix:
    """Row-normalised graph of the k nearest spots.

    Parameters
    ----------
    positions
        (n_spots, 2).
    k
        Neighbours per spot; at most n_spots − 1 are used.

    Returns
    -------
    CSR (n_spots, n_spots); rows sum to 1, or to 0 for a single spot.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import neighbor_graph
    >>> neighbor_graph(np.array([[0.0, 0], [1, 0], [5, 0]]), k=1).toarray()[2]
    array([0., 1., 0.])
    """
    from scipy.spatial import cKDTree

    n = len(positions)
    k = min(k, n - 1)
    if k < 1:
        return sp.csr_matrix((n, n))
    # Coincident spots may return each other instead of themselves first, so the own index is removed by name.
    found = cKDTree(positions).query(positions, k=k + 1)[1]
    own = found == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True
    columns = found[~own].reshape(n, k)
    rows = np.repeat(np.arange(n), k)
    return sp.csr_matrix((np.full(n * k, 1 / k), (rows, columns.ravel())), shape=(n, n))


def morans_i(values: np.ndarray, graph: sp.spmatrix) -> np.ndarray:
    """Moran's I of each gene.

    I = (n / Σ w) · Σ w_ij z_i z_j / Σ z_i², z = x − x̄; about −1/(n − 1) without spatial structure, towards 1 with it.

    Parameters
    ----------
    values
        (n_spots, n_genes), or (n_spots,) for one gene.
    graph
        Weights w (n_spots, n_spots), for example from :func:`neighbor_graph`.

    Returns
    -------
    float64 (n_genes,); NaN for constant genes and graphs without edges. Equal to :func:`squidpy.gr.spatial_autocorr`.

    References
    ----------
    Moran, "Notes on continuous stochastic phenomena", Biometrika 1950.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import morans_i, neighbor_graph
    >>> line = np.arange(6.0)[:, None]
    >>> bool(morans_i(line, neighbor_graph(np.hstack([line, line]), k=2))[0] > 0)
    True
    """
    (given,) = columns(values)
    weights = sp.csr_matrix(graph)
    total = weights.sum()

    def run(block: np.ndarray) -> np.ndarray:
        if not block.shape[1]:
            return np.full(len(block), np.nan)
        raw = np.einsum("gn,gn->g", block, block)
        block -= block.mean(axis=1, keepdims=True)
        power = np.einsum("gn,gn->g", block, block)
        lagged = np.ascontiguousarray((weights @ block.T).T)
        scale = power * total
        known = (power > 1e-12 * raw) & (scale > 0)
        products = np.einsum("gn,gn->g", block, lagged) * block.shape[1]
        return np.divide(products, scale, out=np.full_like(scale, np.nan), where=known)

    return per_gene(run, given)


def moran_agreement(truth: np.ndarray, predicted: np.ndarray, graph: sp.spmatrix) -> tuple[float, float]:
    """Do predictions have spatial structure in the same genes as the labels, and as much of it?

    With I and Î, Moran's I of labels and predictions (:func:`img2gene.metrics.morans_i`): the Pearson correlation of I and Î
    over genes, from −1 to 1, and the mean of Î − I, 0 at best. Predictions from images are smooth and counts are noisy, so that
    the difference is above 0 even for a model that predicts the true expression: the correlation is the score to compare.

    Parameters
    ----------
    truth, predicted
        (n_spots, n_genes) of one section.
    graph
        Weights (n_spots, n_spots), for example from :func:`img2gene.metrics.neighbor_graph`.

    Returns
    -------
    Correlation and mean difference over the genes whose I is defined for both. NaN where there is no such gene; the correlation
    also with fewer than two of them, or where all have the same I.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import moran_agreement, neighbor_graph
    >>> line = np.arange(6.0)
    >>> truth = np.column_stack([line, line % 2, line**2])
    >>> graph = neighbor_graph(np.column_stack([line, line]), k=2)
    >>> [round(score, 3) for score in moran_agreement(truth, 2 * truth + 1, graph)]
    [1.0, 0.0]
    """
    one, two = columns(truth, predicted)
    measured, found = morans_i(one, graph), morans_i(two, graph)
    known = np.isfinite(measured) & np.isfinite(found)
    if not known.any():
        return np.nan, np.nan
    return float(pearson(measured[known], found[known])[0]), float((found - measured)[known].mean())
