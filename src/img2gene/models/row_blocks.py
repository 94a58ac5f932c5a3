"""Predict blocks of spots: what the spots of a section share is found first, then any block can be predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np

# Labels of a block, float32 (n, n_genes), and their SD over members, or None.
Block = tuple[np.ndarray, np.ndarray | None]
Rows = Callable[[slice], Block]
BLOCK_ROWS = 2048


@runtime_checkable
class PredictsBlocks(Protocol):
    """A predictor that predicts blocks of spots, so that no array of all predictions is needed.

    Examples
    --------
    >>> import img2gene as ig
    >>> from img2gene.models.row_blocks import PredictsBlocks
    >>> isinstance(ig.models.create("ridge"), PredictsBlocks)
    True
    """

    def prepare(
        self, features: np.ndarray, sections: np.ndarray, *, with_spread: bool = False, **extra: np.ndarray | None
    ) -> Rows:
        """Find what the spots of each section share; return a function that predicts a slice of the rows.

        ``features`` may be a :class:`RowSource`. With ``with_spread`` an ensemble also returns the SD over its members.
        """
        ...


def blocks(n_rows: int, step: int | None = None) -> Iterator[slice]:
    """Divide rows into slices.

    Examples
    --------
    >>> from img2gene.models.row_blocks import blocks
    >>> list(blocks(5, 3))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    step = BLOCK_ROWS if step is None else step
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def joined(predict: Rows, n_rows: int, n_genes: int) -> np.ndarray:
    """Predict all rows, float32 (n_rows, n_genes), block by block."""
    out = np.empty((n_rows, n_genes), dtype=np.float32)
    for rows in blocks(n_rows):
        out[rows] = predict(rows)[0]
    return out


def joined_spread(predict: Rows, n_rows: int, n_genes: int) -> Block:
    """Predict all rows with their SD over members, float32 (n_rows, n_genes) each; None if there is one member."""
    out = np.empty((n_rows, n_genes), dtype=np.float32)
    spread: np.ndarray | None = np.empty_like(out)
    for rows in blocks(n_rows):
        out[rows], sd = predict(rows)
        if sd is None or spread is None:
            spread = None
        else:
            spread[rows] = sd
    return out, spread
