"""Work on matrices of many genes in blocks of genes: with bounded memory, and several blocks at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.metrics._inputs import real_array

# Per block and thread: small enough for the caches, wide enough to read most of a cache line from each row.
_BLOCK_VALUES = 2**18
_MAX_THREADS = 8
# Relative to the largest value, below which a spread is rounding error of a constant
_CONSTANT = 1e-6

_Result = TypeVar("_Result")


def columns(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Bring arrays of equal shape to (n_spots, n_genes); their types stay."""
    names = ("Expression", "predictions") if len(arrays) == 2 else ("Values",) * len(arrays)
    matrices = [real_array(values, name) for name, values in zip(names, arrays, strict=True)]
    if len({values.shape for values in matrices}) > 1:
        shapes = " and ".join(f"{name} {values.shape}" for name, values in zip(names, matrices, strict=True))
        raise Img2GeneError(f"{shapes} differ in shape.")
    if matrices[0].ndim not in (1, 2):
        raise Img2GeneError(f"Expected (n_spots, n_genes) arrays, got {matrices[0].ndim} dimensions.")
    return tuple(values if values.ndim == 2 else values[:, None] for values in matrices)


def each_block(function: Callable[[slice], _Result], n_genes: int, values_per_gene: int) -> list[_Result]:
    """Call ``function`` for blocks of genes and return the results in order."""
    size = max(1, _BLOCK_VALUES // max(1, values_per_gene))
    blocks = [slice(start, min(start + size, n_genes)) for start in range(0, max(n_genes, 1), size)]
    threads = min(len(blocks), _cores(), _MAX_THREADS)
    if threads == 1:
        return [function(block) for block in blocks]
    # Threads run side by side, as numpy and scipy release the lock of the interpreter.
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, blocks))


def per_gene(
    function: Callable[..., np.ndarray], *arrays: np.ndarray, values_per_gene: int | None = None
) -> np.ndarray:
    """Call ``function`` on blocks of (n_spots, n_genes) arrays, as float64 (n_genes, n_spots), and join its results.

    The values of a gene are contiguous, so that sums over spots round alike whatever else is in the block. The blocks
    are copies, which ``function`` may overwrite.
    """
    n_spots, n_genes = arrays[0].shape

    def run(block: slice) -> np.ndarray:
        # Infinite values make a gene NaN or infinite, as NaN does, which is no reason for a warning.
        with np.errstate(invalid="ignore", over="ignore"):
            return function(*(np.array(values[:, block].T, dtype=np.float64, order="C") for values in arrays))

    return np.concatenate(each_block(run, n_genes, values_per_gene or n_spots), axis=-1)


def is_constant(sum_of_squares: np.ndarray, peak: np.ndarray, n: int) -> np.ndarray:
    """Whether a spread around the mean is no more than rounding error of the largest absolute value; True for NaN."""
    return ~(np.sqrt(sum_of_squares) > _CONSTANT * peak * np.sqrt(n))


def spread(values: np.ndarray) -> np.ndarray:
    """Sum of squares of each row around its mean, NaN for constant rows."""
    if not values.shape[1]:
        return np.full(len(values), np.nan)
    centred = values - values.mean(axis=1, keepdims=True)
    squares = np.einsum("gn,gn->g", centred, centred)
    return np.where(is_constant(squares, np.abs(values).max(axis=1), values.shape[1]), np.nan, squares)


def standardise(values: np.ndarray) -> np.ndarray:
    """Columns of (n_spots, n_genes) values centred and scaled to unit length; constant ones become NaN."""
    if not len(values):
        return np.full((0, values.shape[1]), np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        centred = values - values.mean(axis=0)
        squares = np.square(centred).sum(axis=0)
    varies = ~is_constant(squares, np.abs(values).max(axis=0), len(values))
    return np.divide(centred, np.sqrt(squares), out=np.full_like(centred, np.nan), where=varies)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
