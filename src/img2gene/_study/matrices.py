"""Read counts and layers of every format that AnnData holds as CSR or dense arrays in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from img2gene.metrics._inputs import summed

if TYPE_CHECKING:
    from anndata import AnnData

# float32 represents every whole number up to here.
_LARGEST_EXACT = 2**24


def in_memory(matrix: Any) -> Any:
    """Return a sparse matrix of scipy or a dense array; dask arrays are computed and files are read.

    A sparse matrix may store one value as several entries; these are summed in a copy.

    Examples
    --------
    >>> import dask.array as da
    >>> from img2gene._study.matrices import in_memory
    >>> in_memory(da.ones((1, 3)))
    array([[1., 1., 1.]])
    """
    if hasattr(matrix, "compute"):
        matrix = matrix.compute()
    if hasattr(matrix, "to_memory"):
        matrix = matrix.to_memory()
    if sp.issparse(matrix):
        return summed(matrix)
    if isinstance(matrix, np.ma.MaskedArray):
        return matrix
    # This also reads the data sets of h5py and zarr.
    return np.asarray(matrix)


def dense(matrix: Any) -> np.ndarray:
    """Return a new dense array of a sparse or dense matrix."""
    return matrix.toarray() if sp.issparse(matrix) else np.array(matrix)


def is_plain(matrix: Any) -> bool:
    """Check that a matrix is CSR with each value stored once, or a dense array, of float32 or float64."""
    known = (sp.isspmatrix_csr(matrix) and matrix.has_canonical_format) or type(matrix) is np.ndarray
    return known and matrix.dtype in (np.float32, np.float64)


def plain(matrix: Any) -> Any:
    """Convert numbers of any format to CSR or a dense array, with the values that CSR float32 would hold.

    Values that are no numbers keep their type, so that the checks of counts can name it.
    """
    if is_plain(matrix):
        return matrix
    values = in_memory(matrix)
    if isinstance(values, np.ma.MaskedArray) or values.dtype.kind not in "iuf":
        return values
    largest = values.max() if values.size and all(values.shape) else 0
    # Only counts above 16.7 million need more digits.
    dtype = np.float64 if values.dtype.itemsize > 2 and largest > _LARGEST_EXACT else np.float32
    return sp.csr_matrix(values, dtype=dtype) if sp.issparse(values) else np.asarray(values, dtype=dtype)


def with_plain_counts(table: AnnData) -> AnnData:
    """Return a table whose X is CSR or dense; the annotations are shared with the table."""
    import anndata as ad

    if table.X is None or is_plain(table.X):
        return table
    # anndata 0.13 lists X among the layers, under the name None.
    layers = {name: values for name, values in table.layers.items() if name is not None}
    return ad.AnnData(
        plain(table.X), obs=table.obs, var=table.var, obsm=dict(table.obsm), layers=layers, uns=dict(table.uns)
    )
