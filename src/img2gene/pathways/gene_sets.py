"""Read collections of gene sets: from a dict, a GMT file, a network, the package or a library."""

from __future__ import annotations

import gzip
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from img2gene._errors import Img2GeneError, MissingKeyError, listing, raise_problems
from img2gene.pathways.libraries import ALIASES, read_library

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

ORGANISMS = ("human", "mouse")
PACKAGED = ("tissue",)
_GMT = (".gmt", ".gmt.gz")


def read_gene_sets(
    source: Mapping[str, list[str]] | pd.DataFrame | str | Path, *, organism: str = "human"
) -> dict[str, list[str]]:
    """Read a collection of gene sets.

    Parameters
    ----------
    source
        - a dict of lists of genes;
        - the path of a GMT file, ``.gmt`` or ``.gmt.gz``;
        - a network as decoupler uses it: a data frame with the columns ``source`` (set) and ``target`` (gene);
        - ``"tissue"``: 32 tissue programmes and cell types in the package, human and mouse;
        - ``"hallmark"``, ``"reactome"``, ``"go_bp"``, or any library of Enrichr: downloaded once through gseapy and
          kept in ``img2gene.settings.cache_dir``.
    organism
        ``"human"`` or ``"mouse"``; decides which symbols a named collection has. Libraries of Enrichr have human
        symbols for both: :func:`img2gene.pathways.match_gene_sets` compares them regardless of case where it must.

    Returns
    -------
    Genes of each set, without repetitions, in the order of the source.

    Raises
    ------
    MissingKeyError
        No collection of that name, or no such file.
    Img2GeneError
        No gene sets, no connection for a download, or an unknown organism.

    References
    ----------
    The works that describe the programmes of ``"tissue"`` are named in the collection itself. Hallmarks: Liberzon et
    al., Cell Systems 2015. Enrichr: Kuleshov et al., Nucleic Acids Research 2016.

    Examples
    --------
    >>> from img2gene.pathways import read_gene_sets
    >>> read_gene_sets("tissue", organism="mouse")["antigen presentation, class II"][:3]
    ['H2-Aa', 'H2-Eb1', 'H2-Ab1']
    """
    if organism not in ORGANISMS:
        raise Img2GeneError(f"organism={organism!r}: choose {listing(ORGANISMS)}.")
    if isinstance(source, Mapping):
        return _checked(source)
    if hasattr(source, "columns"):
        return _checked(_from_network(source))
    if not isinstance(source, (str, Path)):
        raise Img2GeneError(
            f"Gene sets cannot be read from {type(source).__name__}: pass a dict, a GMT path, a data frame with `source` "
            f"and `target`, or a name ({listing([*PACKAGED, *ALIASES])})."
        )
    return _from_name(source, organism)


def _from_name(source: str | Path, organism: str) -> dict[str, list[str]]:
    name = str(source)
    if name in PACKAGED:
        return _packaged(name, organism)
    if name.endswith(_GMT) or isinstance(source, Path) or os.sep in name:
        return _checked(_read_gmt(Path(name)))
    return _checked(read_library(name, organism, packaged=PACKAGED))


def _packaged(name: str, organism: str) -> dict[str, list[str]]:
    text = files("img2gene.pathways").joinpath(f"{name}.json").read_text(encoding="utf-8")
    return {title: entry[organism].split() for title, entry in json.loads(text)["programmes"].items()}


def _read_gmt(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        raise MissingKeyError(
            f"No GMT file {str(path)!r}. Named collections are {listing([*PACKAGED, *ALIASES])} and libraries of Enrichr."
        )
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        # Some editors put a byte order mark before the first name.
        with opened(path, "rt", encoding="utf-8-sig") as file:
            rows = [line.rstrip("\n\r").split("\t") for line in file if line.strip()]
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise Img2GeneError(f"{str(path)!r} cannot be read as a GMT file, text in UTF-8: {error}.") from error
    short = [str(row[0]) for row in rows if len(row) < 3]
    if short:
        raise Img2GeneError(
            f"{str(path)!r} is no GMT file: expected name, description and genes separated by tabs; {len(short)} lines "
            f"have fewer than three parts ({listing(short, 3)})."
        )
    twice = [name for name, n in Counter(row[0] for row in rows).items() if n > 1]
    if twice:
        raise Img2GeneError(f"{str(path)!r} names gene sets more than once: {listing(twice)}. Rename or merge them.")
    return {row[0]: row[2:] for row in rows}


def _from_network(network: pd.DataFrame) -> dict[str, list[str]]:
    absent = [name for name in ("source", "target") if name not in network.columns]
    if absent:
        raise MissingKeyError(
            f"A network of gene sets needs the columns source and target; {listing(absent)} not found (available: "
            f"{listing(network.columns)})."
        )
    known = network.dropna(subset=["source", "target"])
    if len(known) < len(network):
        logger.warning("left out %d rows of the network without a source or a target", len(network) - len(known))
    parts = known.groupby("source", sort=False, observed=True)["target"]
    return {str(name): [str(gene) for gene in targets] for name, targets in parts}


def _checked(sets: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Drop repeated and empty genes; raise one error for everything that is not a list of names."""
    wrong = [name for name, genes in sets.items() if isinstance(genes, str) or not _are_names(genes)]
    problems = [f"Gene sets {listing(wrong)} are not lists of gene names."] if wrong else []
    problems += ["The collection has no gene sets."] if not sets else []
    raise_problems(problems)
    return {str(name): list(dict.fromkeys(gene for gene in genes if gene)) for name, genes in sets.items()}


def _are_names(genes: object) -> bool:
    try:
        return all(isinstance(gene, str) for gene in genes)  # type: ignore[attr-defined]
    except TypeError:
        return False
