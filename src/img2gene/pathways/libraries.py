"""Libraries of gene sets that gseapy downloads, kept as GMT files so that a second call needs no connection."""

from __future__ import annotations

import hashlib
import logging
import queue
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, MissingKeyError, listing, near
from img2gene._files.folders import write_bytes
from img2gene.pathways.gmt import parse_gmt, write_gmt
from img2gene.settings import settings

logger = logging.getLogger(__name__)
T = TypeVar("T")

ALIASES = {
    "hallmark": "MSigDB_Hallmark_2020",
    "reactome": "Reactome_2022",
    "go_bp": "GO_Biological_Process_2023",
}
# Without a connection gseapy tries again for half a minute.
_LISTING_SECONDS, _DOWNLOAD_SECONDS = 5.0, 120.0
# Names become file names. All libraries of Enrichr have such names.
_NAME = re.compile(r"[\w][\w+.() -]{0,99}")
_DIGEST = re.compile("[0-9a-f]{64}")


def read_library(name: str, organism: str, *, packaged: Iterable[str] = ()) -> dict[str, list[str]]:
    """Read a library of Enrichr by its name or alias, from the cache or downloaded into it."""
    library = ALIASES.get(name, name)
    if not _NAME.fullmatch(library):
        raise MissingKeyError(_unknown(name, packaged))
    check = Arguments()
    cache = check.path("settings.cache_dir", settings.cache_dir)
    check.raise_all()
    copy = CachedLibrary(cache / "gene_sets" / organism / f"{library}.gmt")
    content = copy.read()
    if content is None:
        sets = _download(name, library, organism, packaged)
        content = write_gmt(sets, f"Enrichr {library}")
        copy.write(content)
        logger.info("downloaded %d gene sets of %s to %s", len(sets), library, copy.path)
    return parse_gmt(content.decode(), copy.path)


@dataclass(frozen=True)
class CachedLibrary:
    """Name the local copy of a library, next to which the digest of its first download is recorded.

    Attributes
    ----------
    path
        GMT file. The file of the digest adds ``.sha256`` to its name, and is written as ``sha256sum`` writes it.
    """

    path: Path

    @property
    def record(self) -> Path:
        """Path of the recorded digest."""
        return self.path.with_name(f"{self.path.name}.sha256")

    def read(self) -> bytes | None:
        """Return the content; None, with a warning if there is a file, unless it has the recorded digest."""
        try:
            if not self.path.exists():
                return None
            content = self.path.read_bytes()
        except OSError as error:
            logger.warning("%s cannot be read (%s), so the library is downloaded again", self.path, error)
            return None
        if hashlib.sha256(content).hexdigest() == self.recorded():
            return content
        logger.warning(
            "%s does not have the digest recorded in %s, so the library is downloaded again", self.path, self.record
        )
        return None

    def recorded(self) -> str | None:
        """Return the recorded digest; None without a readable one."""
        try:
            digest = self.record.read_text(encoding="utf-8")[:64]
        except (OSError, ValueError):
            return None
        return digest if _DIGEST.fullmatch(digest) else None

    def write(self, content: bytes) -> None:
        """Keep a downloaded library; refuse one with another digest than the first download had."""
        digest, recorded = hashlib.sha256(content).hexdigest(), self.recorded()
        if recorded not in (None, digest):
            raise Img2GeneError(
                f"Enrichr returned other gene sets for {self.path.stem} than when it was first downloaded: SHA-256 "
                f"{digest}, recorded {recorded}. To accept them, remove {str(self.record)!r}."
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # The digest comes first: a library without one counts as damaged.
            write_bytes(self.record, f"{digest}  {self.path.name}\n".encode())
            write_bytes(self.path, content)
        except (OSError, Img2GeneError) as error:
            logger.warning("the downloaded gene sets could not be kept as %s: %s", self.path, error)


def _download(name: str, library: str, organism: str, packaged: Iterable[str]) -> dict[str, list[str]]:
    import gseapy

    try:
        known = _within(_LISTING_SECONDS, lambda: gseapy.get_library_name(organism=organism))
        if library not in known:
            raise MissingKeyError(_unknown(name, packaged, known))
        # gseapy would leave out sets of more than 2,000 genes.
        sets = _within(_DOWNLOAD_SECONDS, lambda: gseapy.get_library(library, organism=organism, max_size=10**6))
        return _checked_download(sets)
    except MissingKeyError:
        raise
    except Exception as error:
        # gseapy raises bare exceptions for answers of the server, and lets errors of the connection through.
        raise Img2GeneError(
            f"gene_sets={name!r} is none of the collections of the package ({listing(packaged)}), and Enrichr's "
            f"library {library!r} could not be downloaded ({error}). Names that need a connection once: "
            f"{listing(ALIASES)}, and the libraries of Enrichr; {near(name, [*packaged, *ALIASES])}. Without a connection "
            "pass the path of a GMT file, for example one downloaded from https://www.gsea-msigdb.org."
        ) from error


def _unknown(name: str, packaged: Iterable[str], known: Iterable[str] = ()) -> str:
    libraries = list(known)
    enrichr = f"; Enrichr: {listing(libraries, 20)}" if libraries else ""
    return (
        f"No gene sets named {name[:100]!r} (available: {listing([*packaged, *ALIASES])}{enrichr}). Pass one of these, a "
        "GMT path, a dict or a data frame."
    )


def _checked_download(sets: Any) -> dict[str, list[str]]:
    """Check that a download holds named gene sets that a GMT file can keep."""
    if not isinstance(sets, dict) or not sets:
        raise ValueError("Enrichr returned no gene sets")
    parts = [part for title, genes in sets.items() for part in (title, *genes)]
    if not all(isinstance(part, str) and part.strip() and not set(part) & set("\t\n\r\0") for part in parts):
        raise ValueError("Enrichr returned something other than gene sets")
    return sets


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a call returns; raise TimeoutError when it takes longer."""
    answers: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except Exception as error:  # noqa: BLE001
            answers.put((None, error))

    # gseapy has no time limit of its own. A daemon does not keep Python from ending.
    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
