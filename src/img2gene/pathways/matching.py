"""Find the genes of a collection among those that were measured."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, listing
from img2gene.pathways.inputs import checked_names, checked_sets

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_VERSION = re.compile(r"^(ENS[A-Z]*\d+)\.\d+$")


def match_gene_sets(
    gene_sets: Mapping[str, Iterable[str]],
    genes: Iterable[str],
    ids: Iterable[str] | None = None,
    *,
    min_genes: int = 5,
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Find the columns that each gene set names.

    Names are compared with ``genes`` and with ``ids``; the whole collection uses whichever matches more of its genes.
    The version of an Ensembl id (``ENSG00000141736.14``) is not compared. Case is ignored, with a warning, where that
    matches at least twice as many genes. Not only where nothing matches: a few symbols of mice (``C2``, ``F3``) are
    written like human ones.

    Parameters
    ----------
    gene_sets
        Genes of each set, see :func:`img2gene.pathways.read_gene_sets`.
    genes
        (n_genes,) names of the columns, usually symbols.
    ids
        (n_genes,) other names of the same columns, usually Ensembl ids; missing ones match nothing.
    min_genes
        Sets with fewer measured genes are dropped; a warning names them.

    Returns
    -------
    Columns int64 (n_matched,) of each kept set, ascending; and a data frame with one row per set: ``pathway``,
    ``n_genes``, ``n_matched``, ``fraction``, ``genes`` (measured ones, joined by ``;``), ``kept``.

    Raises
    ------
    Img2GeneError
        No set has enough measured genes, or an argument cannot be used.

    Examples
    --------
    >>> from img2gene.pathways import match_gene_sets
    >>> sets, table = match_gene_sets({"luminal": ["ERBB2", "ESR1"]}, ["ESR1", "ACTB", "ERBB2"], min_genes=2)
    >>> sets["luminal"]
    array([0, 2])
    """
    gene_sets, symbols, other_names, min_genes = _checked(gene_sets, genes, ids, min_genes)
    spaces = [_places(symbols)] + ([] if other_names is None else [_places(other_names)])
    matches = _matched(gene_sets, spaces)
    kept = {name: columns for name, columns in matches.items() if len(columns) >= min_genes}
    if not kept:
        raise Img2GeneError(_no_overlap(gene_sets, spaces, matches, min_genes))
    dropped = [name for name in matches if name not in kept]
    if dropped:
        logger.warning(
            "dropped %d gene sets with under %d measured genes: %s", len(dropped), min_genes, listing(dropped)
        )
    return kept, _table(gene_sets, matches, symbols, min_genes)


def _checked(
    gene_sets: Any, genes: Any, ids: Any, min_genes: Any
) -> tuple[dict[str, list[str]], list[str], list[str] | None, int]:
    """Convert and check the arguments of :func:`match_gene_sets`; missing ids become empty names."""
    check = Arguments()
    with check.collect():
        gene_sets = checked_sets(gene_sets)
    symbols = checked_names(check, "genes", genes)
    other_names = None
    if ids is not None:
        known = ids if isinstance(ids, str) or not isinstance(ids, Iterable) else _filled(ids)
        other_names = checked_names(check, "ids", known)
        if len(other_names) != len(symbols) and not check.messages:
            check.messages.append(f"`ids` has {len(other_names)} names for {len(symbols)} genes: pass one per gene.")
    min_genes = check.whole("min_genes", min_genes, 1)
    check.raise_all()
    return gene_sets, symbols, other_names, min_genes


def _filled(ids: Iterable[Any]) -> Any:
    """Replace missing names by empty ones."""
    import pandas as pd

    try:
        return ["" if pd.api.types.is_scalar(name) and pd.isna(name) else name for name in ids]
    except TypeError:
        return ids


def _matched(gene_sets: Mapping[str, Iterable[str]], spaces: list[dict[str, int]]) -> dict[str, np.ndarray]:
    """Match exact names, or names regardless of case where that matches at least twice as many."""
    exact = max((_columns(gene_sets, space) for space in spaces), key=_n_matched)
    folded = max((_columns(gene_sets, _folded(space), fold=True) for space in spaces), key=_n_matched)
    counts = _n_matched(exact), _n_matched(folded)
    # Folding case may join different genes, so that it has to be worth it.
    if not counts[1] or counts[1] < 2 * counts[0]:
        return exact
    logger.warning(
        "gene sets were matched regardless of case: %d of their genes match exactly, %d in any case",
        *counts,
    )
    return folded


def _plain(name: str) -> str:
    match = _VERSION.match(name)
    return match.group(1) if match else name


def _places(names: Iterable[str]) -> dict[str, int]:
    """Map each name to its column; of names that occur twice, to the first."""
    places: dict[str, int] = {}
    for column, name in enumerate(names):
        if name:
            places.setdefault(_plain(name), column)
    return places


def _folded(space: dict[str, int]) -> dict[str, int]:
    folded: dict[str, int] = {}
    for name, column in space.items():
        folded.setdefault(name.casefold(), column)
    return folded


def _columns(
    gene_sets: Mapping[str, Iterable[str]], space: dict[str, int], *, fold: bool = False
) -> dict[str, np.ndarray]:
    matches = {}
    for name, genes in gene_sets.items():
        plain = (_plain(gene).casefold() if fold else _plain(gene) for gene in genes)
        matches[name] = np.array(sorted({space[gene] for gene in plain if gene in space}), dtype=np.int64)
    return matches


def _n_matched(matches: dict[str, np.ndarray]) -> int:
    return sum(map(len, matches.values()))


def _table(
    gene_sets: Mapping[str, Iterable[str]], matches: dict[str, np.ndarray], symbols: list[str], min_genes: int
) -> pd.DataFrame:
    import pandas as pd

    sizes = np.array([len(set(gene_sets[name])) for name in matches])
    matched = np.array([len(columns) for columns in matches.values()])
    return pd.DataFrame(
        {
            "pathway": list(matches),
            "n_genes": sizes,
            "n_matched": matched,
            "fraction": matched / np.maximum(sizes, 1),
            "genes": [";".join(symbols[column] for column in columns) for columns in matches.values()],
            "kept": matched >= min_genes,
        }
    )


def _no_overlap(
    gene_sets: Mapping[str, Iterable[str]], spaces: list[dict[str, int]], matches: dict[str, np.ndarray], min_genes: int
) -> str:
    most = max(map(len, matches.values()), default=0)
    theirs = listing(dict.fromkeys(gene for genes in gene_sets.values() for gene in genes), 5)
    ours = " and ".join(listing(space, 5) for space in spaces)
    return (
        f"No gene set has {min_genes} measured genes (the best has {most}). The sets name {theirs}; the table has {ours}"
        ". If these are different name spaces, pass the column of var with matching names as `gene_ids=`, or gene sets of "
        "the same organism (`organism=`); for a small panel lower `min_genes`."
    )
