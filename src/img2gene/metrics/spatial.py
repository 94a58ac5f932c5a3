"""Spatial statistics of expression on a section's neighbour graph."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp


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
        (n_spots, n_genes).
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
    values = np.asarray(values, dtype=np.float64)
    centred = values - values.mean(axis=0)
    power = np.square(centred).sum(axis=0)
    weight = graph.sum()
    spread = (centred * (graph @ centred)).sum(axis=0) * len(values)
    scale = power * weight
    constant = power <= 1e-12 * np.square(values).sum(axis=0)
    return np.divide(spread, scale, out=np.full_like(scale, np.nan), where=~constant & (scale > 0))
