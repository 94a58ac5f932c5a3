"""Read an embedding from its store a block of rows at a time, so that it never has to fit into memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.models.data import LARGEST, RowSource, n_extreme, n_faulty


class StoredRows(RowSource):
    """Rows of a dask array, float32, checked when they are read.

    Parameters
    ----------
    array
        dask array (n_obs, width).
    name
        Name in messages.
    rows
        Numbers of the rows that are taken, ascending; None takes all.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from img2gene._study.stored_rows import StoredRows
    >>> StoredRows(da.ones((5, 2)), "obsm['X']").take(np.array([1, 3]))[0:2].shape
    (2, 2)
    """

    def __init__(self, array: Any, name: str, rows: np.ndarray | None = None) -> None:
        self.array, self.name, self.rows = array, name, rows
        self.shape = (array.shape[0] if rows is None else len(rows), *array.shape[1:])
        self.dtype = np.dtype(np.float32)

    def take(self, rows: np.ndarray) -> StoredRows:
        """Take some rows, by a mask or ascending numbers."""
        chosen = np.flatnonzero(rows) if rows.dtype == bool else rows
        return StoredRows(self.array, self.name, chosen if self.rows is None else self.rows[chosen])

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Read a slice of rows, or rows of ascending numbers."""
        if isinstance(rows, slice) and self.rows is None:
            values = self._read(rows)
        else:
            chosen = np.arange(len(self))[rows]
            values = self._chosen(chosen if self.rows is None else self.rows[chosen])
        bad, large = n_faulty(values), n_extreme(values)
        if bad or large:
            problem = (
                f"is NaN or infinite in {bad} rows" if bad else f"holds values beyond ±{LARGEST:.0e} in {large} rows"
            )
            raise Img2GeneError(f"`{self.name}` {problem}: run `img2gene.pp.embed_patches` again.")
        return values

    def _chosen(self, rows: np.ndarray) -> np.ndarray:
        if not len(rows):
            return np.empty((0, *self.shape[1:]), dtype=self.dtype)
        first, last = int(rows[0]), int(rows[-1]) + 1
        # A few gaps, as spots off the tissue leave them, are read with the rest; dask's own choice is slow.
        if last - first <= 2 * len(rows):
            return self._read(slice(first, last))[rows - first]
        return np.asarray(self.array[rows].compute(scheduler="synchronous"), dtype=np.float32)

    def _read(self, rows: slice) -> np.ndarray:
        return np.asarray(self.array[rows].compute(scheduler="synchronous"), dtype=np.float32)
