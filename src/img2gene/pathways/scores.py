"""Score gene sets in every spot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError
from img2gene.pathways.inputs import checked_names, finite_matrix, row_numbers, set_columns
from img2gene.settings import settings, tqdm_bar

Matrix = Any
Sets = Mapping[str, Sequence[int] | np.ndarray]

_BATCH_VALUES = 2**22
_SSGSEA_SPOTS = 128


def aucell(
    counts: Matrix,
    sets: Sets,
    *,
    genes: Sequence[str] | np.ndarray | None = None,
    n_up: int | None = None,
    batch_size: int | None = None,
) -> np.ndarray:
    r"""Compute the area under the recovery curve of each set among the top genes of each spot (AUCell).

    With the genes of a spot ranked by falling count, rank :math:`r_g` from 1, and :math:`k` genes in the set,

    .. math:: \mathrm{AUC} = \frac{\sum_{g \in S,\, r_g \le n_\mathrm{up}} (n_\mathrm{up} - r_g)}
                                  {\sum_{i=1}^{\min(k,\, n_\mathrm{up} - 1)} (n_\mathrm{up} - i)}

    Only ranks count, so a score depends on its spot alone, and neither on the library size nor on any increasing
    transformation of the counts. Ties are broken by one fixed random order of the genes, undetected genes included.
    With ``genes`` this order is drawn for the sorted names, so that a score does not depend on the order of the
    columns. Without it the order is drawn for the columns as they are. The result equals decoupler's ``aucell`` (2.2,
    ``empty=False``; and with its default wherever every gene is detected somewhere) where there are no ties, or where
    the columns are sorted by name.

    Parameters
    ----------
    counts
        (n_spots, n_genes) sparse or dense, finite: counts, or anything that orders genes within a spot.
    sets
        Columns of each set.
    genes
        (n_genes,) names of the columns, which break ties.
    n_up
        How many top genes count, from 2; by default 5 % of all genes, rounded up.
    batch_size
        Spots at a time; the result does not depend on it.

    Returns
    -------
    float32 (n_spots, n_sets), 0–1. Spots without a single count have no ranking: their scores are NaN.

    Raises
    ------
    Img2GeneError
        ``n_up`` out of range, no sets, columns that ``counts`` does not have, or ``genes`` that are not one name per
        column.

    References
    ----------
    Aibar et al., "SCENIC: single-cell regulatory network inference and clustering", Nature Methods 2017. Ties as in
    Badia-i-Mompel et al., "decoupleR", Bioinformatics Advances 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.pathways import aucell
    >>> aucell(np.array([[9, 5, 4, 1], [1, 2, 3, 4]]), {"first": [0, 1]}, n_up=3)
    array([[1.],
           [0.]], dtype=float32)
    """
    check, by_rows, columns = _checked(counts, "counts", sets)
    n_spots, n_genes = by_rows.shape
    top = _n_up(check, n_up, n_genes)
    batch_size = check.whole("batch_size", batch_size, 1, optional=True)
    with check.collect():
        by_name = _by_name(genes, n_genes)
    check.raise_all()
    # decoupler draws this order for columns as they are. Sorting by name first keeps its scores of sorted tables.
    order = by_name[np.random.default_rng(0).choice(n_genes, n_genes, replace=False)]
    priority = np.empty(n_genes, dtype=np.int32)
    priority[order] = np.arange(n_genes - 1, -1, -1, dtype=np.int32)
    indicator = sp.csr_matrix(_members([priority[members] for members in columns], n_genes))
    highest = np.array([np.arange(top - 1, max(top - 1 - len(members), 0), -1).sum() for members in columns])
    scores = np.full((n_spots, len(columns)), np.nan, dtype=np.float32)
    batches = _rank_batches(by_rows, top, batch_size or max(1, _BATCH_VALUES // n_genes))
    for rows, dense in tqdm_bar(batches, desc="Scoring pathways", disable=not settings.progress or len(batches) < 64):
        part = _dense(by_rows[rows]) if dense else by_rows[rows]
        scores[rows] = (_top_weights(_sort_keys(part, priority), top, n_genes) @ indicator).toarray() / highest
    return scores


def _rank_batches(by_rows: Matrix, top: int, size: int) -> list[tuple[np.ndarray, bool]]:
    """Divide rows into batches, flagged where undetected genes have to be ranked too; empty rows are left out."""
    detected = n_detected(by_rows)
    filled = np.flatnonzero(detected)
    dense = not sp.issparse(by_rows) or by_rows.data.min(initial=0) < 0
    rich = np.zeros(len(filled), dtype=bool) if dense else detected[filled] >= top
    # Rows of about equal length are padded together with little waste.
    parts = [(filled[rich][np.argsort(detected[filled[rich]], kind="stable")], False), (filled[~rich], True)]
    return [(rows[part], flag) for rows, flag in parts for part in _batches(len(rows), size)]


def _sort_keys(part: Matrix, priority: np.ndarray) -> np.ndarray:
    """Encode each value of a row as an integer that sorts by value, then by priority, which its lowest bits hold.

    (n, n_genes) of a dense array, (n, most values in a row) of a sparse one of positive values, filled with 0.
    """
    bits = int(priority.max()).bit_length()
    values = part.data if sp.issparse(part) else part
    codes = _codes(values, 31 - bits)
    if not sp.issparse(part):
        return (codes << bits) | priority
    lengths = np.diff(part.indptr)
    keys = np.zeros((len(lengths), lengths.max()), dtype=codes.dtype)
    keys[np.arange(keys.shape[1]) < lengths[:, None]] = (codes << bits) | priority[part.indices]
    return keys


def _codes(values: np.ndarray, bits: int) -> np.ndarray:
    """Map values to integers of the same order: counts to themselves, other values to their dense ranks."""
    low, high = values.min(initial=0), values.max(initial=0)
    if low >= 0 and high < 2**31:
        codes = values.astype(np.int32)
        if np.array_equal(codes, values):
            return codes if high < 2**bits else codes.astype(np.int64)
    return np.unique(values, return_inverse=True)[1].reshape(values.shape).astype(np.int64) + 1


def _top_weights(keys: np.ndarray, top: int, n_genes: int) -> sp.csr_matrix:
    """Compute ``top`` − rank of the ``top`` highest keys of each row, (n, n_genes) in the order of priority."""
    highest = np.partition(keys, keys.shape[1] - top, axis=1)[:, keys.shape[1] - top :]
    highest.sort(axis=1)
    places = (highest & (2 ** (n_genes - 1).bit_length() - 1)).astype(np.int32)
    weights = np.tile(np.arange(top, dtype=np.float64), len(keys))
    starts = np.arange(len(keys) + 1) * top
    return sp.csr_matrix((weights, places.ravel(), starts), shape=(len(keys), n_genes))


def ssgsea(counts: Matrix, sets: Sets, *, genes: Sequence[str] | np.ndarray | None = None) -> np.ndarray:
    """Compute the single-sample gene set enrichment of each spot with gseapy.

    The enrichment score of Barbie et al. with ranks as weights, to the power .25. The score is not normalised, as
    normalisation divides by the range over all spots: a spot's score would depend on the other spots. gseapy takes
    genes with equal counts in the order of its table: with ``genes`` in the order of their names, without it as the
    columns are.

    Parameters
    ----------
    counts
        (n_spots, n_genes) sparse or dense.
    sets
        Columns of each set.
    genes
        (n_genes,) names of the columns, which break ties.

    Returns
    -------
    float32 (n_spots, n_sets). Spots without a single count: NaN.

    Raises
    ------
    Img2GeneError
        No sets, columns that ``counts`` does not have, or ``genes`` that are not one name per column.

    References
    ----------
    Barbie et al., Nature 2009; Fang, Liu & Peltz, "GSEApy", Bioinformatics 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.pathways import ssgsea
    >>> scores = ssgsea(np.array([[9, 5, 4, 1], [1, 2, 3, 4]]), {"first": [0, 1]})
    >>> bool(scores[0, 0] > scores[1, 0])
    True
    """
    check, by_rows, columns = _checked(counts, "counts", sets)
    n_spots, n_genes = by_rows.shape
    with check.collect():
        order = _by_name(genes, n_genes)
    check.raise_all()
    places = np.argsort(order)
    named = {
        f"S{number}": [f"G{place}" for place in np.sort(places[members])] for number, members in enumerate(columns)
    }
    scores = np.full((n_spots, len(columns)), np.nan, dtype=np.float32)
    rows = np.flatnonzero(n_detected(by_rows))
    batches = [rows[part] for part in _batches(len(rows), _SSGSEA_SPOTS)]
    for part in tqdm_bar(batches, desc="Scoring pathways", disable=not settings.progress or len(batches) < 3):
        scores[part] = _ssgsea_batch(_dense(by_rows[part])[:, order], named)
    return scores


def _ssgsea_batch(values: np.ndarray, named: dict[str, list[str]]) -> np.ndarray:
    import gseapy
    import pandas as pd

    # Codes instead of names: gseapy changes the case of genes and reads digits as Entrez ids.
    frame = pd.DataFrame(values.T, index=[f"G{column}" for column in range(values.shape[1])])
    frame.columns = [f"spot{place}" for place in range(len(values))]
    results = gseapy.ssgsea(
        frame, named, outdir=None, min_size=1, max_size=values.shape[1], threads=1, no_plot=True, verbose=False
    ).res2d
    table = results.pivot(index="Name", columns="Term", values="ES")
    return table.reindex(index=frame.columns, columns=list(named)).to_numpy(dtype=np.float32)


def zscore(labels: Matrix, sets: Sets, *, reference: np.ndarray | None = None) -> np.ndarray:
    """Average the z-scores of the genes of each set.

    Parameters
    ----------
    labels
        (n_spots, n_genes) sparse or dense: log-normalised expression.
    sets
        Columns of each set.
    reference
        Rows, or a mask of rows, whose mean and SD each gene is measured against; by default all. For a fair test pass
        the training spots.

    Returns
    -------
    float32 (n_spots, n_sets). Genes that do not vary in the reference are left out. Sets without other genes
    are NaN, and so are spots without any expression.

    Raises
    ------
    Img2GeneError
        No sets, or columns that ``labels`` does not have.

    References
    ----------
    Lee et al., "Inferring pathway activity toward precise disease classification", PLoS Computational Biology 2008,
    with the mean instead of the sum over √k.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.pathways import zscore
    >>> zscore(np.array([[1.0, 4.0], [3.0, 2.0]]), {"one": [0], "both": [0, 1]})
    array([[-1.,  0.],
           [ 1.,  0.]], dtype=float32)
    """
    check, by_rows, columns = _checked(labels, "labels", sets)
    n_spots, n_genes = by_rows.shape
    with check.collect():
        rows = np.arange(n_spots) if reference is None else row_numbers(reference, n_spots)
    check.raise_all()
    known = n_detected(by_rows) > 0
    if reference is not None and not known[rows].any():
        raise Img2GeneError("No spot of `reference` has expression, so there is nothing to measure genes against.")
    mean, deviation = _moments(by_rows[rows[known[rows]]])
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    weights = _members(columns, n_genes) * scale[:, None]
    n_varying = (weights > 0).sum(axis=0)
    weights = np.divide(weights, n_varying, out=np.full_like(weights, np.nan), where=n_varying > 0)
    scores = (by_rows @ weights - mean @ weights).astype(np.float32)
    scores[~known] = np.nan
    return scores


def _moments(values: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and SD of each gene, float64; the SD of genes that do not vary is exactly 0."""
    n = max(values.shape[0], 1)
    mean = np.asarray(values.sum(axis=0, dtype=np.float64)).ravel() / n
    # Squares of small integers would overflow.
    values = values.astype(np.float64) if values.dtype.kind in "iu" else values
    squares = values.multiply(values) if sp.issparse(values) else np.square(values, dtype=np.float64)
    power = np.asarray(squares.sum(axis=0, dtype=np.float64)).ravel() / n
    variance = power - np.square(mean)
    # Rounding leaves about 1e-7 of the power in float32 labels that are all the same.
    return mean, np.sqrt(np.where(variance > 1e-6 * power, variance, 0))


def n_detected(by_rows: Matrix) -> np.ndarray:
    """Count the values other than 0 in each row of a dense array, or of a CSR matrix without stored zeros."""
    return np.diff(by_rows.indptr) if sp.issparse(by_rows) else np.count_nonzero(by_rows, axis=1)


def _checked(values: Matrix, name: str, sets: Sets) -> tuple[Arguments, Matrix, list[np.ndarray]]:
    """Convert expression and sets; the problems of the sets wait for those of other arguments."""
    by_rows, check, columns = finite_matrix(values, name), Arguments(), []
    with check.collect():
        columns = set_columns(sets, by_rows.shape[1])
    return check, by_rows, columns


def _n_up(check: Arguments, n_up: int | None, n_genes: int) -> int:
    if n_genes < 2:
        check.messages.append(f"counts have {n_genes} gene: ranks need two or more.")
    if n_up is None:
        return min(max(int(np.ceil(0.05 * n_genes)), 2), n_genes)
    # Fractions are rounded up, as the default is.
    top = check.number("n_up", n_up, 2, n_genes)
    return n_genes if check.messages else int(np.ceil(top))


def _by_name(genes: Sequence[str] | np.ndarray | None, n_genes: int) -> np.ndarray:
    """Columns sorted by the names of their genes; as they are without names."""
    if genes is None:
        return np.arange(n_genes)
    check = Arguments()
    names = checked_names(check, "genes", genes)
    check.raise_all()
    if len(names) != n_genes:
        raise Img2GeneError(f"`genes` has {len(names)} names for {n_genes} columns: pass one name per column.")
    return np.argsort(np.asarray(names, dtype=str), kind="stable")


def _members(columns: list[np.ndarray], n_genes: int) -> np.ndarray:
    indicator = np.zeros((n_genes, len(columns)))
    for place, members in enumerate(columns):
        indicator[members, place] = 1
    return indicator


def _batches(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _dense(matrix: Matrix) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)
