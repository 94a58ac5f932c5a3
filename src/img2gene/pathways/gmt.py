"""Read and write collections of gene sets in the GMT format."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from img2gene._errors import Img2GeneError, MissingKeyError, listing

# All of MSigDB is 40 MB.
_MOST_BYTES = 2**28
_PAGES = ("<!doctype", "<html", "<?xml", "<head")


def read_gmt(path: Path, collections: str) -> dict[str, list[str]]:
    """Read a GMT file, compressed if its name ends in ``.gz``; ``collections`` lists named ones for the error."""
    try:
        if path.is_dir():
            raise Img2GeneError(f"{str(path)!r} is a folder; name a GMT file in it.")
        if not path.is_file():
            raise MissingKeyError(f"No GMT file {str(path)!r}. Named collections are {collections}.")
        content = _content(path)
    except OSError as error:
        raise Img2GeneError(f"{str(path)!r} cannot be read: {error}.") from error
    return parse_gmt(_text(content, path), path)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
            # A compressed file can expand without limit.
            content = stream.read(_MOST_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Img2GeneError(
            f"{str(path)!r} cannot be read as a GMT file, text in UTF-8: it is no gzip file, or is damaged ({error})."
        ) from error
    if len(content) > _MOST_BYTES:
        raise Img2GeneError(f"{str(path)!r} holds more than {_MOST_BYTES // 2**20} MB, which no GMT file does.")
    return content


def _text(content: bytes, path: Path) -> str:
    refused = f"{str(path)!r} cannot be read as a GMT file, text in UTF-8"
    if content.startswith(b"\x1f\x8b"):
        raise Img2GeneError(f"{refused}: it is compressed; let its name end in `.gmt.gz`.")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Img2GeneError(f"{refused}: it is in UTF-16; save it as UTF-8.")
    try:
        # Some editors put a byte order mark before the first name.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Img2GeneError(f"{refused}: {error}.") from error
    if "\0" in text:
        raise Img2GeneError(f"{refused}: it holds null characters, as binary files do.")
    if text.lstrip()[:20].lower().startswith(_PAGES):
        raise Img2GeneError(f"{refused}: it is a web page, which is what a failed download leaves. Download it again.")
    return text


def parse_gmt(text: str, path: Path) -> dict[str, list[str]]:
    """Parse the lines of a GMT file: name, description and genes, separated by tabs."""
    # `splitlines` would also divide at characters that names may contain.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    rows = [[part.strip() for part in line.split("\t")] for line in lines if line.strip()]
    if not rows:
        raise Img2GeneError(f"{str(path)!r} is empty: it has no gene sets.")
    problems = _problems(rows)
    if problems:
        raise Img2GeneError(f"{str(path)!r} {'; it '.join(problems)}.")
    return {row[0]: [gene for gene in row[2:] if gene] for row in rows}


def _problems(rows: Sequence[list[str]]) -> list[str]:
    problems = []
    short = [row[0][:40] for row in rows if len(row) < 3]
    if short:
        problems.append(
            f"is no GMT file: expected name, description and genes separated by tabs; {len(short)} lines have fewer than "
            f"three parts ({listing(short, 3)})"
        )
    unnamed = sum(not row[0] for row in rows)
    if unnamed:
        problems.append(f"has {unnamed} gene sets without a name")
    twice = [name for name, n in Counter(row[0] for row in rows).items() if n > 1 and name]
    if twice and not short:
        problems.append(f"names gene sets more than once: {listing(twice)}. Rename or merge them")
    return problems


def write_gmt(sets: Mapping[str, Sequence[str]], description: str) -> bytes:
    """Return the content of a GMT file."""
    lines = ["\t".join([title, description, *genes]) for title, genes in sets.items()]
    return ("\n".join(lines) + "\n").encode()
