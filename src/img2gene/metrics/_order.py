"""Canonical orders of spots and genes, so that seeded draws do not depend on the order of the input."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from img2gene.metrics.spatial import position_ranks


def order_by_position(positions: np.ndarray, *values: np.ndarray) -> np.ndarray:
    """Rows by position; coincident spots by the sum of their ``values`` (n_spots, n_genes)."""
    points = np.asarray(positions, dtype=np.float64)
    order = np.argsort(position_ranks(points))
    if not (np.diff(points[order], axis=0) == 0).all(axis=1).any():
        return order
    place = np.unique(points, axis=0, return_inverse=True)[1].ravel()
    # Sorted, as the sum of the same values in another order of genes may round differently.
    sums = [np.sort(np.asarray(part, dtype=np.float64), axis=1).sum(axis=1) for part in values]
    return np.lexsort((*sums, place))


def order_by_counts(
    counts: sp.csr_matrix, groups: np.ndarray, library: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows by group and then by content, and columns by content, of counts without stored zeros.

    Only rows and columns with the same content keep their order. Content is compared by hashes whose sums wrap around:
    unlike sums of floats, they are the same in every order.
    """
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    values = _hashes(counts.data.astype(np.float64).view(np.uint64))
    row_keys = _sums(rows, values, counts.shape[0]) ^ _hashes(groups.astype(np.uint64))
    if library is not None:
        row_keys ^= _hashes(library.astype(np.float64).view(np.uint64) + np.uint64(1))
    column_keys = _sums(counts.indices, _hashes(values ^ row_keys[rows]), counts.shape[1])
    # Spots with the same counts in different genes differ in the keys of these genes, and genes in the keys of spots.
    row_keys ^= _sums(rows, _hashes(values ^ column_keys[counts.indices]), counts.shape[0])
    column_keys = _sums(counts.indices, _hashes(values ^ row_keys[rows]), counts.shape[1])
    return np.lexsort((row_keys, groups)), np.argsort(column_keys, kind="stable")


def _sums(index: np.ndarray, hashes: np.ndarray, n: int) -> np.ndarray:
    """Sums of the hashes with each index, modulo 2⁶⁴."""
    sums = np.zeros(n, dtype=np.uint64)
    np.add.at(sums, index, hashes)
    return sums


def _hashes(values: np.ndarray) -> np.ndarray:
    """Mix 64 bits as SplitMix64 does: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
