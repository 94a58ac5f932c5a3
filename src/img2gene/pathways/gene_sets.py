"""Read collections of gene sets: from a dict, a GMT file, a network, the package or a library."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, MissingKeyError, listing
from img2gene.pathways.gmt import read_gmt
from img2gene.pathways.inputs import checked_sets
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
          kept in ``img2gene.settings.cache_dir``, by organism. The SHA-256 digest of the first download is kept next
          to it: a damaged copy is downloaded again, and a later download with another digest is refused.
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
        No gene sets, a file that is no GMT file, a download that fails or is not the recorded one, or an unknown
        organism.

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
    import pandas as pd

    check = Arguments()
    organism = check.choice("organism", organism, ORGANISMS)
    if isinstance(source, os.PathLike) or (isinstance(source, str) and os.sep in source):
        source = check.path("source", source)
    elif not isinstance(source, Mapping | pd.DataFrame) and not (isinstance(source, str) and source):
        check.messages.append(
            f"Gene sets cannot be read from {type(source).__name__}: pass a dict, a GMT path, a data frame with `source` "
            f"and `target`, or a name ({listing([*PACKAGED, *ALIASES])})."
        )
    check.raise_all()
    if isinstance(source, Mapping):
        return checked_sets(source)
    if isinstance(source, pd.DataFrame):
        return checked_sets(_from_network(source))
    return _from_name(source, organism)


def _from_name(source: str | Path, organism: str) -> dict[str, list[str]]:
    name = str(source)
    if name in PACKAGED:
        return _packaged(name, organism)
    if isinstance(source, Path) or name.lower().endswith(_GMT):
        check = Arguments()
        path = check.path("source", source)
        check.raise_all()
        return checked_sets(read_gmt(path, f"{listing([*PACKAGED, *ALIASES])} and libraries of Enrichr"))
    return checked_sets(read_library(name, organism, packaged=PACKAGED))


def _packaged(name: str, organism: str) -> dict[str, list[str]]:
    text = files("img2gene.pathways").joinpath(f"{name}.json").read_text(encoding="utf-8")
    return {title: entry[organism].split() for title, entry in json.loads(text)["programmes"].items()}


def _from_network(network: pd.DataFrame) -> dict[str, list[str]]:
    absent = [name for name in ("source", "target") if name not in network.columns]
    if absent:
        raise MissingKeyError(
            f"A network of gene sets needs the columns source and target; {listing(absent)} not found (available: "
            f"{listing(network.columns)})."
        )
    if list(network.columns).count("source") + list(network.columns).count("target") > 2:
        raise Img2GeneError("A network of gene sets has one column source and one column target; rename the others.")
    known = network.dropna(subset=["source", "target"])
    if len(known) < len(network):
        logger.warning("left out %d rows of the network without a source or a target", len(network) - len(known))
    parts = known.groupby("source", sort=False, observed=True)["target"]
    return {str(name): [str(gene) for gene in targets] for name, targets in parts}
