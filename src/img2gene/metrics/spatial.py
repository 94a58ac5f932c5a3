"""Spatial statistics of expression on a section's neighbour graph."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from img2gene._checks import Arguments
from img2gene.metrics._blocks import columns, per_gene
from img2gene.metrics._inputs import place_array, weight_matrix
from img2gene.metrics.regression import pearson

# Distances on a lattice in float microns differ by about 1e-14 of their size where they ought to be equal.
_TIE = 1e-9
# A lattice has at most 12 spots at the same distance up to 8 pitches, so that a second look is rare.
_EXTRA = 12
_BLOCK_NEIGHBORS = 2**22


def nearest_spots(positions: np.ndarray, k: int) -> np.ndarray:
    """Find the k nearest other spots of each spot.

    Spots at the same distance are taken by row coordinate, then by column coordinate. The neighbours of a spot
    therefore do not depend on the order of the spots. Only coincident spots are taken by their index, as they have the
    same position.

    Parameters
    ----------
    positions
        (n_spots, 2: row, column).
    k
        Neighbours per spot; at most n_spots − 1 are returned.

    Returns
    -------
    int (n_spots, k), nearest first. A spot is never its own neighbour.
    """
    from scipy.spatial import cKDTree

    points = np.asarray(positions, dtype=np.float64)
    n = len(points)
    k = max(0, min(k, n - 1))
    neighbors = np.empty((n, k), dtype=np.intp)
    if not k:
        return neighbors
    tree, priority = cKDTree(points), position_ranks(points)
    pending, width = np.arange(n), min(n, k + 1 + _EXTRA)
    # A spot whose last candidate is as near as its k-th may have further ties: it looks at twice as many.
    while len(pending):
        size = max(1, _BLOCK_NEIGHBORS // width)
        cut = []
        for start in range(0, len(pending), size):
            rows = pending[start : start + size]
            distance, candidates = tree.query(points[rows], k=width)
            neighbors[rows], is_cut = _first_neighbors(priority[rows], distance, priority[candidates], k)
            cut.append(rows[is_cut & (width < n)])
        pending, width = np.concatenate(cut), min(n, 2 * width)
    return np.argsort(priority)[neighbors]


def position_ranks(points: np.ndarray) -> np.ndarray:
    """Rank spots 0 … n − 1 by row coordinate, then by column. Coordinates that differ by rounding count as equal."""
    tolerance = _TIE * np.ptp(points, axis=0).max(initial=0) if len(points) else 0
    lines = [tie_groups(coordinate, tolerance) for coordinate in points.T]
    ranks = np.empty(len(points), dtype=np.intp)
    # np.lexsort sorts by its last key first: the lines of a lattice, then the exact coordinates.
    ranks[np.lexsort([*points.T[::-1], *lines[::-1]])] = np.arange(len(points))
    return ranks


def tie_groups(values: np.ndarray, tolerance: float) -> np.ndarray:
    """Numbers 0, 1, … of values in rising order, the same for neighbours no farther apart than ``tolerance``."""
    order = np.argsort(values, kind="stable")
    groups = np.empty(len(values), dtype=np.intp)
    groups[order] = np.cumsum(np.diff(values[order], prepend=values[order[:1]]) > tolerance)
    return groups


def _first_neighbors(
    rows: np.ndarray, distance: np.ndarray, candidates: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Take the first k candidates of each row by distance, then by number. Flag rows where further spots may tie.

    ``distance`` rises along each row; ``candidates`` holds the numbers of the spots, the number of the spot itself
    (``rows``) included.
    """
    itself = candidates == rows[:, None]
    # Of many coincident spots one may not find itself: then the last candidate makes room.
    itself[~itself.any(axis=1), -1] = True
    shape = (len(rows), distance.shape[1] - 1)
    farthest, distance, candidates = (
        distance[:, -1],
        distance[~itself].reshape(shape),
        candidates[~itself].reshape(shape),
    )
    limit = distance[:, k - 1] * (1 + _TIE)
    ties = np.cumsum(np.diff(distance, axis=1, prepend=distance[:, :1]) > _TIE * distance, axis=1)
    order = np.lexsort((candidates, np.where(distance > limit[:, None], shape[1], ties)))
    return np.take_along_axis(candidates, order[:, :k], axis=1), farthest <= limit


def neighbor_graph(positions: np.ndarray, k: int = 6) -> sp.csr_matrix:
    """Connect each spot with its k nearest spots, by weights that add up to 1.

    Spots at the same distance are taken by row coordinate, then by column coordinate, so that the graph does not depend
    on the order of the spots. Spots at the same position are the exception: they are taken by their row in the array.

    Parameters
    ----------
    positions
        (n_spots, 2: row, column).
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
    check = Arguments()
    k = check.whole("k", k, 0)
    check.raise_all()
    neighbors = nearest_spots(place_array(positions), k)
    n, k = neighbors.shape
    if k < 1:
        return sp.csr_matrix((n, n))
    rows = np.repeat(np.arange(n), k)
    return sp.csr_matrix((np.full(n * k, 1 / k), (rows, neighbors.ravel())), shape=(n, n))


def morans_i(values: np.ndarray, graph: sp.spmatrix) -> np.ndarray:
    """Compute Moran's I of each gene.

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
    (matrix,) = columns(values)
    weights = weight_matrix(graph, len(matrix))
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

    return per_gene(run, matrix)


def moran_difference(truth: np.ndarray, predicted: np.ndarray, graph: sp.spmatrix) -> np.ndarray:
    """Subtract Moran's I of measured expression from Moran's I of predictions, float64 (n_genes,)."""
    one, two = columns(truth, predicted)
    return morans_i(two, graph) - morans_i(one, graph)


def moran_agreement(truth: np.ndarray, predicted: np.ndarray, graph: sp.spmatrix) -> tuple[float, float]:
    """Compare the spatial structure of predictions and measured expression: in the same genes, and as much of it?

    With Moran's I of measured and Î of predicted expression (:func:`img2gene.metrics.morans_i`), the scores are the
    Pearson correlation of I and Î over genes, from −1 to 1, and the mean of Î − I, 0 at best. Predictions from images
    are smooth and counts are noisy: the difference is above 0 even for a model that predicts the true expression.
    Compare models by the correlation.

    Parameters
    ----------
    truth, predicted
        (n_spots, n_genes) of one section.
    graph
        Weights (n_spots, n_spots), for example from :func:`img2gene.metrics.neighbor_graph`.

    Returns
    -------
    Correlation and mean difference over the genes whose I is defined for both. Both are NaN without such a gene; the
    correlation also with fewer than two, or where all have the same I.

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
    measured, modelled = morans_i(one, graph), morans_i(two, graph)
    known = np.isfinite(measured) & np.isfinite(modelled)
    if not known.any():
        return np.nan, np.nan
    return float(pearson(measured[known], modelled[known])[0]), float((modelled - measured)[known].mean())
