"""Libraries of gene sets that gseapy downloads, kept as GMT files so that a second call needs no connection."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from img2gene._errors import Img2GeneError, MissingKeyError, listing
from img2gene._files import write_bytes
from img2gene.settings import settings

logger = logging.getLogger(__name__)

ALIASES = {
    "hallmark": "MSigDB_Hallmark_2020",
    "reactome": "Reactome_2022",
    "go_bp": "GO_Biological_Process_2023",
}


def read_library(name: str, organism: str, *, packaged: Iterable[str] = ()) -> dict[str, list[str]]:
    """Read a library of Enrichr by its name or alias, from the cache or downloaded into it."""
    library = ALIASES.get(name, name)
    path = Path(settings.cache_dir) / "gene_sets" / f"{library}.gmt"
    if path.is_file():
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        return {row[0]: row[2:] for row in rows}
    sets = _download(name, library, organism, packaged)
    _write_gmt(path, sets, f"Enrichr {library}")
    logger.info("downloaded %d gene sets of %s to %s", len(sets), library, path)
    return sets


def _download(name: str, library: str, organism: str, packaged: Iterable[str]) -> dict[str, list[str]]:
    import gseapy

    try:
        known = gseapy.get_library_name(organism=organism)
        # gseapy would leave out sets of more than 2,000 genes.
        sets = gseapy.get_library(library, organism=organism, max_size=10**6) if library in known else None
    except Exception as error:
        # gseapy raises bare exceptions for answers of the server, and lets errors of the connection through.
        raise Img2GeneError(
            f"gene_sets={name!r} is none of the collections of the package ({listing(packaged)}), and Enrichr's "
            f"library {library!r} could not be downloaded ({error}). Without a connection pass the path of a GMT file, "
            "for example one downloaded from https://www.gsea-msigdb.org."
        ) from error
    if sets is None:
        raise MissingKeyError(
            f"No gene sets named {name!r} (available: {listing([*packaged, *ALIASES])}; Enrichr: {listing(known, 20)}"
            "). Pass one of these, a GMT path, a dict or a data frame."
        )
    return sets


def _write_gmt(path: Path, sets: dict[str, list[str]], description: str) -> None:
    """Write the file in one step, so that an interrupted download leaves no incomplete library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join([title, description, *genes]) for title, genes in sets.items()]
    write_bytes(path, ("\n".join(lines) + "\n").encode())
