"""Convert and check the arrays that metrics take; what cannot be used is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from img2gene._checks import Arguments, as_array, shown
from img2gene._errors import Img2GeneError

# Truth values, whole numbers and floats
_REAL = "biuf"


def refuse_sparse(*arrays: object) -> None:
    """Raise for sparse matrices: numpy would take each for one object."""
    if any(sp.issparse(values) for values in arrays):
        raise Img2GeneError(
            "Metrics take no sparse matrices. Pass `.toarray()`, of a part of the genes at a time if it is large."
        )


def real_array(values: Any, name: str) -> np.ndarray:
    """Convert to an array of real numbers of any shape, without copying an array.

    Masked values are refused, since numpy would use the numbers below the mask.
    """
    refuse_sparse(values)
    if np.ma.isMaskedArray(values) and np.ma.is_masked(values):
        raise Img2GeneError(f"{name}: {int(np.ma.count_masked(values))} values are masked; pass `.filled(np.nan)`.")
    array = as_array(name, values)
    # An empty list has no numbers that could be of the wrong kind.
    if array.dtype.kind not in _REAL and array.size:
        raise Img2GeneError(f"{name}: expected an array of real numbers, got {_kind(values, array)}.")
    return array if array.dtype.kind in _REAL else array.astype(np.float64)


def summed(matrix: Any) -> Any:
    """Return a sparse matrix that stores each value once; a matrix that splits values into entries is copied.

    Examples
    --------
    >>> import scipy.sparse as sp
    >>> from img2gene.metrics._inputs import summed
    >>> summed(sp.csr_matrix(([1.0, 2.0], [0, 0], [0, 2]), shape=(1, 1))).data
    array([3.])
    """
    # Only these formats can store a value as several entries.
    if matrix.format not in ("csr", "csc", "coo", "bsr") or matrix.has_canonical_format:
        return matrix
    # Sums of small integers would overflow.
    matrix = matrix.astype(np.float64) if matrix.dtype.kind in "iu" else matrix.copy()
    matrix.sum_duplicates()
    return matrix


def vector(values: Any, name: str) -> np.ndarray:
    """Convert to float64 (n,)."""
    array = real_array(values, name)
    if array.ndim != 1:
        raise Img2GeneError(f"{name}: expected one value for each unit (n,), got shape {array.shape}.")
    return array.astype(np.float64)


def place_array(positions: Any, n_spots: int | None = None) -> np.ndarray:
    """Convert to finite positions, float64 (n_spots, 2: row, column)."""
    places = real_array(positions, "positions").astype(np.float64)
    if places.ndim != 2 or places.shape[1] != 2 or not np.isfinite(places).all():
        infinite = "" if np.isfinite(places).all() else " with NaN or infinite values"
        raise Img2GeneError(f"Expected finite positions (n_spots, 2: row, column), got shape {places.shape}{infinite}.")
    if n_spots is not None and len(places) != n_spots:
        raise Img2GeneError(f"{len(places)} positions for {n_spots} spots: pass one per spot.")
    return places


def weight_matrix(graph: Any, n_spots: int) -> sp.csr_matrix:
    """Convert to finite weights between spots, CSR (n_spots, n_spots)."""
    hint = "Make one with `img2gene.metrics.neighbor_graph(positions)`."
    weights = graph if sp.issparse(graph) else real_array(graph, "graph")
    if weights.shape != (n_spots, n_spots):
        raise Img2GeneError(f"graph: expected weights {(n_spots, n_spots)}, got shape {weights.shape}. {hint}")
    if weights.dtype.kind not in _REAL:
        raise Img2GeneError(f"graph: expected real weights, got {weights.dtype} values. {hint}")
    matrix = summed(sp.csr_matrix(weights, dtype=np.float64))
    if not np.isfinite(matrix.data).all():
        raise Img2GeneError(f"graph: weights must be finite. {hint}")
    return matrix


def section_numbers(sections: np.ndarray | Sequence[str] | None, n_spots: int) -> np.ndarray:
    """Number the section of each spot, int (n_spots,); without names all spots are one section."""
    if sections is None:
        return np.zeros(n_spots, dtype=int)
    names = as_array("sections", sections)
    if names.shape != (n_spots,):
        raise Img2GeneError(f"sections: expected a name for each spot ({n_spots},), got shape {names.shape}.")
    if names.dtype.kind == "O":
        unnamed = [name for name in names if not isinstance(name, str)]
        if unnamed:
            raise Img2GeneError(f"sections: {len(unnamed)} spots have no name but {shown(unnamed[0])}.")
        names = names.astype(str)
    if names.dtype.kind not in "biuUST":
        raise Img2GeneError(f"sections: expected a name for each spot, got {names.dtype} values.")
    return np.unique(names, return_inverse=True)[1].ravel()


def checked_draws(name: str, n: Any, most: int, seed: Any) -> tuple[int, int]:
    """Convert the number of random draws, called ``name``, and their seed."""
    check = Arguments()
    n, seed = check.whole(name, n, 1, most), check.seed("seed", seed)
    check.raise_all()
    return n, seed


def _kind(values: Any, array: np.ndarray) -> str:
    """Describe what was passed instead of numbers."""
    return shown(values) if array.ndim == 0 else f"{array.dtype} values of shape {array.shape}"
