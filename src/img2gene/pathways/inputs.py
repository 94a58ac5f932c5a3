"""Convert and check the matrices, names and gene sets that pathway functions take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene.metrics._inputs import real_array


def finite_matrix(values: Any, name: str) -> Any:
    """Convert to a finite matrix (n_spots, n_genes): CSR without stored zeros, or a dense array."""
    values = _in_memory(values)
    matrix = _by_rows(values, name) if sp.issparse(values) else real_array(values, name)
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise Img2GeneError(f"{name}: expected a matrix (n_spots, n_genes), got shape {matrix.shape}.")
    # Truth values can be neither subtracted nor ranked, and half precision overflows at 65,504.
    plain = {np.dtype(bool): np.uint8, np.dtype(np.float16): np.float32}.get(matrix.dtype)
    matrix = matrix if plain is None else matrix.astype(plain)
    faulty = int((~np.isfinite(matrix.data if sp.issparse(matrix) else matrix)).sum())
    if faulty:
        raise Img2GeneError(f"{name}: {faulty} values are NaN or infinite; leave these spots or genes out.")
    return matrix


def _in_memory(values: Any) -> Any:
    """Read matrices that anndata or dask hold on disk."""
    for method in ("to_memory", "compute"):
        if not isinstance(values, type) and callable(getattr(values, method, None)):
            return getattr(values, method)()
    return values


def _by_rows(matrix: Any, name: str) -> sp.csr_matrix:
    if matrix.dtype.kind not in "biuf":
        raise Img2GeneError(f"{name}: expected real numbers, got {matrix.dtype} values.")
    if matrix.ndim != 2:
        raise Img2GeneError(f"{name}: expected a matrix (n_spots, n_genes), got shape {matrix.shape}.")
    rows = sp.csr_matrix(matrix)
    if not rows.has_canonical_format or not rows.data.all():
        # csr_matrix may share its arrays with the input, which must not change.
        rows = rows.copy()
        rows.sum_duplicates()
        rows.eliminate_zeros()
    return rows


def set_columns(sets: Any, n_genes: int) -> list[np.ndarray]:
    """Convert the columns of each set to sorted int64 without repetitions."""
    if not isinstance(sets, Mapping):
        raise Img2GeneError(
            f"sets={shown(sets)}: expected a dict with the columns of each set, see `img2gene.pathways.match_gene_sets`."
        )
    columns = {_title(name): _column_numbers(members) for name, members in sets.items()}
    wrong = [name for name, members in columns.items() if members is None]
    known = {name: members for name, members in columns.items() if members is not None}
    empty = [name for name, members in known.items() if not len(members)]
    outside = [name for name, part in known.items() if len(part) and (part[0] < 0 or part[-1] >= n_genes)]
    problems = ["There are no gene sets to score."] * (not columns)
    problems += (
        [
            f"Gene sets {listing(wrong)} are not lists of columns (whole numbers); `img2gene.pathways.match_gene_sets` "
            "finds the columns of genes."
        ]
        if wrong
        else []
    )
    problems += [f"Gene sets {listing(empty)} have no genes."] if empty else []
    problems += [f"Gene sets {listing(outside)} name columns outside 0 to {n_genes - 1}."] if outside else []
    raise_problems(problems)
    return list(known.values())


def _column_numbers(members: Any) -> np.ndarray | None:
    if not isinstance(members, Iterable) or isinstance(members, str | bytes | Mapping):
        return None
    try:
        array = members if isinstance(members, np.ndarray) else np.asarray(list(members))
    except (TypeError, ValueError, OverflowError):
        return None
    if array.ndim == 1 and not array.size:
        return np.array([], dtype=np.int64)
    # Truth values would count as the columns 0 and 1.
    return np.unique(array).astype(np.int64) if array.ndim == 1 and array.dtype.kind in "iu" else None


def checked_sets(sets: Any) -> dict[str, list[str]]:
    """Convert to lists of gene names without repetitions; raise one error for everything that is no such list."""
    if not isinstance(sets, Mapping):
        raise Img2GeneError(
            f"gene_sets={shown(sets)}: expected a dict with the genes of each set, see "
            "`img2gene.pathways.read_gene_sets`."
        )
    lists = {name: gene_names(genes) for name, genes in sets.items()}
    wrong = [_title(name) for name, genes in lists.items() if genes is None]
    problems = [f"Gene sets {listing(wrong)} are not lists of gene names."] if wrong else []
    problems += ["The collection has no gene sets."] if not lists else []
    titles = [_title(name) for name in lists]
    if len(set(titles)) < len(titles) or "" in titles:
        problems.append(f"Gene sets need different names that are not empty, got {listing(titles, 20)}.")
    raise_problems(problems)
    return {
        title: list(dict.fromkeys(gene for gene in genes or () if gene))
        for title, genes in zip(titles, lists.values(), strict=True)
    }


def gene_names(genes: Any) -> list[str] | None:
    """Return names as a list; None for anything else."""
    if isinstance(genes, str | bytes) or not isinstance(genes, Iterable):
        return None
    try:
        names = list(genes)
    except TypeError:
        # Arrays without dimensions claim to be iterable.
        return None
    return [str(name) for name in names] if all(isinstance(name, str) for name in names) else None


def checked_names(check: Arguments, name: str, values: Any) -> list[str]:
    """Convert to a list of names; an empty list, with a message, for anything else."""
    names = gene_names(values)
    if names is None:
        check.messages.append(f"{name}={shown(values)}: expected a list of names.")
    return names or []


def row_numbers(reference: Any, n_spots: int) -> np.ndarray:
    """Convert rows, or a mask of rows, to row numbers."""
    expected = f"expected rows from 0 to {n_spots - 1}, or a mask of {n_spots} rows"
    if isinstance(reference, slice):
        try:
            return np.arange(n_spots)[reference]
        except (TypeError, ValueError, IndexError) as error:
            raise Img2GeneError(f"reference={shown(reference)}: {expected}.") from error
    rows = np.asarray(reference) if isinstance(reference, str) else real_array(reference, "reference")
    if rows.dtype.kind == "b" and rows.shape == (n_spots,):
        return np.flatnonzero(rows)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise Img2GeneError(f"reference={shown(reference)}: {expected}.")
    if rows.size and (rows.min() < 0 or rows.max() >= n_spots):
        raise Img2GeneError(f"reference has rows from {rows.min()} to {rows.max()}: {expected}.")
    return rows.astype(np.int64)


def _title(name: Any) -> str:
    """Show the name of a set; ``shown`` also shows objects without a representation."""
    return name if isinstance(name, str) else shown(name)
