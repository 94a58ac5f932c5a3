"""Find the files of a platform in a folder, and say what was looked for and what is there."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, listing


@dataclass(frozen=True)
class Folder:
    """A folder of a platform, whose files may have the name of the run in front: ``<run>_<file>``.

    Attributes
    ----------
    path
        The folder.
    platform
        What wrote the folder, for messages.
    """

    path: Path
    platform: str

    def find(self, *names: str) -> Path | None:
        """Return the first of these files or folders that exists; None without any."""
        for name in names:
            exact = self.path / name
            matches = [exact] if exact.exists() else self._with_prefix(name)
            if len(matches) > 1:
                raise Img2GeneError(
                    f"{self.path} has several files {exact.name} ({listing(path.name for path in matches)}). Put the files "
                    "of each section into a folder of its own."
                )
            if matches:
                return matches[0]
        return None

    def _with_prefix(self, name: str) -> list[Path]:
        place = self.path / name
        # Hidden files are copies that macOS writes beside each file.
        return sorted(path for path in place.parent.glob(f"*_{place.name}") if not path.name.startswith("."))

    def need(self, *names: str) -> Path:
        """Return the first of these files that exists; raise without any."""
        path = self.find(*names)
        if path is None:
            raise self.unknown(names)
        return path

    def unknown(self, names: Iterable[str], hint: str = "") -> Img2GeneError:
        """Say that a folder has another layout than the known ones."""
        names = list(names)
        contents = [f"{path.name}/" if path.is_dir() else path.name for path in sorted(self.path.glob("*"))]
        inside = [path.relative_to(self.path).as_posix() for path in sorted(self.path.glob("*/*"))]
        packed = [
            name for name in [*contents, *inside] if name.endswith(tuple(f"{Path(name).name}.gz" for name in names))
        ]
        hint = f"Unpack {listing(packed)} with gunzip." if packed else hint
        return Img2GeneError(
            f"{self.path} has no layout of {self.platform} that is known. Looked for {' or '.join(names)}, and found "
            f"{listing(contents, 20)}{f'; inside, {listing(inside, 20)}' if inside else ''}. {hint}".rstrip()
        )


# Folders below that of a run, which has the name of the section.
_BINS = re.compile(r"square_\d+um")
_RESULTS = ("outs", "binned_outputs", "segmented_outputs")


def storable_name(text: str) -> str:
    """Put ``_`` in place of characters that cannot be stored in the name of a section.

    Examples
    --------
    >>> from img2gene.io._folders import storable_name
    >>> storable_name("my run (2)")
    'my_run_2'
    """
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_")


def open_file(path: Path) -> IO[Any]:
    """Open a file, which may be gzipped, to read its bytes."""
    return cast("IO[Any]", gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def section_name(check: Arguments, section: object, path: Path | None) -> str:
    """Check the name of a section; by default take it from its folder."""
    if section is None and isinstance(path, Path):
        parts = [part for part in path.absolute().parts if part not in _RESULTS and not _BINS.fullmatch(part)]
        section = storable_name(parts[-1])
    with check.collect():
        _schema.check_name(section, "section")  # type: ignore[arg-type]
    return str(section)


def check_folder(check: Arguments, value: object) -> Path:
    """Check that an argument names a folder that exists."""
    path = check.path("path", value)
    if isinstance(path, Path) and path.is_file():
        check.messages.append(
            f"path={str(path)!r} is a file. Pass the folder it lies in, which holds the other files, too."
        )
    elif isinstance(path, Path) and not path.is_dir():
        check.messages.append(f"path={str(path)!r}: no such folder.")
    return path
