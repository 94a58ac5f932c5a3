"""Find spots and sections that occur twice: identical values, matching spots, and the same donor."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.special import i0e

MIN_SPOTS = 20
# Identical count vectors are a finding only if the expected number of chance pairs in the study is below this.
MAX_CHANCE = 1e-6
_BLOCK = 4096
_QUERIES = 100
_DONOR_GENES, _MIN_DONOR_GENES, _COMPONENTS, _HALVINGS = 1000, 30, 10, 10
_COMPONENT_SPOTS = 200


def digests(matrix: Any) -> np.ndarray:
    """Hash the non-zero values of each row and their columns to 128 bits; bytes (n_rows,)."""
    hashes = []
    for start in range(0, matrix.shape[0], _BLOCK):
        block = sp.csr_matrix(matrix[start : start + _BLOCK])
        # Equal rows must have equal bytes, however a sparse matrix stores them.
        block.sum_duplicates()
        block.eliminate_zeros()
        # scipy chooses the type of indices by the size of the matrix.
        columns, values, ends = block.indices.astype(np.int32), block.data, block.indptr
        for one, other in zip(ends[:-1], ends[1:], strict=True):
            content = columns[one:other].tobytes() + values[one:other].tobytes()
            hashes.append(hashlib.blake2b(content, digest_size=16).digest())
    return np.array(hashes, dtype="V16")


def identical_rows(matrix: Any, parts: np.ndarray, usable: np.ndarray | None = None) -> sp.csr_matrix:
    """Count the different row vectors that each two parts of a matrix share.

    Parameters
    ----------
    matrix
        (n_rows, n_columns), sparse or dense.
    parts
        (n_rows,) whole numbers from 0: the part of each row.
    usable
        bool (n_rows,): rows that count; by default all that are identical to another one.

    Returns
    -------
    CSR (n_parts, n_parts), symmetric. Time grows linearly with the number of rows.
    """
    _, codes, times = np.unique(digests(matrix), return_inverse=True, return_counts=True)
    rows = np.flatnonzero((times > 1)[codes] & (True if usable is None else usable))
    shape = (len(times), int(parts.max(initial=-1)) + 1)
    occurs = sp.csr_matrix((np.ones(len(rows)), (codes[rows], parts[rows])), shape=shape)
    occurs.data[:] = 1
    return (occurs.T @ occurs).tocsr()


def beyond_chance(counts: Any) -> np.ndarray:
    r"""Mark rows of counts that no other row equals by chance; bool (n_rows,).

    Two Poisson counts of mean μ are equal with probability :math:`e^{-2\mu} I_0(2\mu)`. With each count as its mean,
    the product over genes times the number of pairs of rows is the expected number of chance pairs, which must be below
    1e-6. Genes without a count are treated as certainly equal, so the true number is even smaller.
    """
    n_rows = counts.shape[0]
    limit = np.log(MAX_CHANCE) - np.log(max(n_rows * (n_rows - 1) / 2, 1))
    chance = np.empty(n_rows)
    for start in range(0, n_rows, _BLOCK):
        block = sp.csr_matrix(counts[start : start + _BLOCK], dtype=np.float64)
        # `i0e` is exp(−x) · I0(x), which does not overflow for large counts.
        block.data = np.log(i0e(2 * block.data))
        chance[start : start + _BLOCK] = np.asarray(block.sum(axis=1)).ravel()
    return chance < limit


def matching_share(
    values: np.ndarray, sections: np.ndarray, units: np.ndarray, closer: float, rng: np.random.Generator
) -> np.ndarray:
    """Compute the share of spots in one section that have a double in another.

    A spot has a double if its nearest spot there is much closer than the second nearest. This holds for the same spot,
    but not for a similar one. Every section is centred first. A double of several spots counts once.

    Parameters
    ----------
    values
        float32 (n_spots, n_features); Euclidean distances are compared.
    sections
        (n_spots,) section of each spot, whole numbers from 0.
    units
        (n_sections,) patient (or group) of each section; only sections of different patients are compared.
    closer
        Largest ratio of the squared distances to nearest and second nearest spot.
    rng
        Draws the (at most 100) spots of each section that are looked up.

    Returns
    -------
    float64 (n_sections, n_sections), symmetric (the larger of both directions); NaN where not compared.
    """
    n_sections = len(units)
    share = np.full((n_sections, n_sections), np.nan)
    members = [np.flatnonzero(sections == s) for s in range(n_sections)]
    large = [s for s in range(n_sections) if len(members[s]) >= MIN_SPOTS]
    centred = {s: values[members[s]] - values[members[s]].mean(axis=0) for s in large}
    for one in large:
        queries = rng.choice(centred[one], min(_QUERIES, len(centred[one])), replace=False)
        for other in large:
            if units[one] != units[other]:
                doubles = _n_doubles(queries, centred[other], closer) / len(queries)
                share[one, other] = np.fmax(share[one, other], doubles)
                share[other, one] = share[one, other]
    return share


def _n_doubles(queries: np.ndarray, values: np.ndarray, closer: float) -> int:
    """Count the ``values`` that are the double of a query."""
    squares = np.square(queries).sum(axis=1)[:, None] + np.square(values).sum(axis=1) - 2 * (queries @ values.T)
    # Rounding can make a squared distance negative.
    first, second = np.partition(squares.clip(0), 1, axis=1)[:, :2].T
    return len(np.unique(squares.argmin(axis=1)[first < closer * second]))


def donor_distances(counts: Any, sections: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    r"""Compute squared differences between sections in log expression that neither tissue nor noise explains.

    With the log pseudobulk :math:`y_s` of each half of a section's spots, genes weighted by :math:`w_g \propto` (share
    of the transcripts)\ :sup:`1/4`, and P the projection that removes a common factor and the 10 leading components of
    the variation within sections (different mixes of the same tissues differ along these),

    .. math:: D_{ab} = \langle P w (y_a - y_b),\, P w (y'_a - y'_b) \rangle / \sum_g w_g^2

    where y and y' come from different halves. Their noise is independent, so it adds nothing on average. The result is
    the mean over 10 random halvings.

    Parameters
    ----------
    counts
        (n_spots, n_genes), sparse or dense, no spot empty.
    sections
        (n_spots,) whole numbers from 0.
    rng
        Draws the halves.

    Returns
    -------
    float64 (n_sections, n_sections); None with fewer than 30 genes that have 20 counts in each section.
    """
    n_sections = int(sections.max()) + 1
    members = sp.csr_matrix((np.ones(len(sections)), (sections, np.arange(len(sections)))))
    totals = np.asarray((members @ sp.csr_matrix(counts)).todense())
    share = totals / totals.sum(axis=1, keepdims=True)
    genes = np.argsort(-np.median(share, axis=0), kind="stable")[:_DONOR_GENES]
    genes = genes[(totals[:, genes] >= 20).all(axis=0)]
    if len(genes) < _MIN_DONOR_GENES:
        return None
    weight = share[:, genes].mean(axis=0) ** 0.25
    library = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    chosen = sp.csr_matrix(counts[:, genes], dtype=np.float64)
    removed = _tissue_directions(chosen, library, sections, weight, rng)
    distances = np.zeros((n_sections, n_sections))
    for _ in range(_HALVINGS):
        one, other = (_profiles(chosen, half, removed, weight) for half in _halves(sections, rng))
        cross = one @ other.T
        distances += np.diag(cross)[:, None] + np.diag(cross) - cross - cross.T
    return distances / (_HALVINGS * np.square(weight).sum())


def _halves(sections: np.ndarray, rng: np.random.Generator) -> list[sp.csr_matrix]:
    """Split the spots of each section into random halves, as matrices (n_sections, n_spots) that sum over spots."""
    # Spots alternate in a random order, so that both halves of a section are equally large.
    order = np.lexsort([rng.random(len(sections)), sections])
    starts = np.searchsorted(sections[order], np.arange(sections.max() + 1))
    second = np.empty(len(sections), dtype=bool)
    second[order] = (np.arange(len(sections)) - starts[sections[order]]) % 2 == 1
    shape = (len(starts), len(sections))
    rows = [np.flatnonzero(second == half) for half in (False, True)]
    return [sp.csr_matrix((np.ones(len(r)), (sections[r], r)), shape=shape) for r in rows]


def _profiles(counts: sp.csr_matrix, half: sp.csr_matrix, removed: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Compute weighted log pseudobulks (n_sections, n_genes) without the removed directions."""
    # Half a count keeps the logarithm of 0 finite.
    profiles = np.log(np.asarray((half @ counts).todense()) + 0.5) * weight
    return profiles - (profiles @ removed) @ removed.T


def _tissue_directions(
    counts: sp.csr_matrix, library: np.ndarray, sections: np.ndarray, weight: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Find orthonormal directions (n_genes, k): the weights, and leading components of variation within sections."""
    gram = np.zeros((len(weight), len(weight)))
    for section in range(int(sections.max()) + 1):
        rows = np.flatnonzero(sections == section)
        rows = rng.choice(rows, min(_COMPONENT_SPOTS, len(rows)), replace=False)
        share = counts[rows].toarray() / library[rows, None]
        deviation = (share / share.mean(axis=0).clip(1e-12) - 1) * weight
        gram += deviation.T @ deviation / len(rows)
    n_components = min(_COMPONENTS, len(weight) // 5)
    leading = np.linalg.eigh(gram)[1][:, -n_components:]
    return np.linalg.qr(np.column_stack([weight, leading]))[0]
