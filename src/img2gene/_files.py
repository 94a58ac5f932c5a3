"""Files that are whole or absent: atomic writes, and folders from which an interrupted run resumes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from img2gene._errors import Img2GeneError, listing

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Describes the run that a folder belongs to; no part of a run has this name.
RECORD = "identity.json"
_TEMPORARY = ".partial"
# Readers of JSON, parquet, npz and safetensors raise these on damaged files. Arrow raises ValueErrors or OSErrors.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder that replaces ``path`` at the end, or is removed after an error.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from img2gene._files import atomic_path
    >>> target = Path(tempfile.mkdtemp()) / "numbers.txt"
    >>> with atomic_path(target) as temporary:
    ...     _ = temporary.write_text("1 2 3")
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('1 2 3', 1)
    """
    # A unique name: two processes that write the same file must not write into each other's.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{_TEMPORARY}")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb+") as file:
            # Without this a power cut can leave a renamed but empty file.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file at once: readers see the old content or the new one, never a part."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def fingerprint(**arrays: np.ndarray | None) -> dict[str, str]:
    """Compute a digest of the shape and values of each array.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene._files import fingerprint
    >>> fingerprint(labels=np.zeros(3)) == fingerprint(labels=np.zeros(4))
    False
    """
    import numpy as np

    digests = {}
    for name, values in arrays.items():
        digest = hashlib.sha256()
        if values is not None:
            plain = values.astype("U") if values.dtype.kind in "OT" else values
            digest.update(f"{plain.dtype}{plain.shape}".encode())
            digest.update(np.ascontiguousarray(plain).view(np.uint8))
        digests[name] = digest.hexdigest()[:16]
    return digests


def read_record(folder: Path, argument: str) -> dict[str, Any] | None:
    """Read the record of the run that a folder belongs to; None without a record. Refuse an unreadable record."""
    if folder.exists() and not folder.is_dir():
        raise Img2GeneError(f"{argument}={str(folder)!r} is a file; name a folder.")
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict):
        raise Img2GeneError(
            f"{str(path)!r} cannot be read, so these files cannot be matched to a run. Remove the folder, or name "
            f"another one as `{argument}`."
        )
    return record


@dataclass(frozen=True)
class ResumableFolder:
    """A folder that keeps the finished parts of a run; without a folder nothing is kept.

    Examples
    --------
    >>> from img2gene._files import ResumableFolder
    >>> ResumableFolder(None).load("fold0") is None
    True
    """

    folder: Path | None

    @classmethod
    def open(
        cls, folder: str | Path | None, facts: dict[str, Any], *, what: str = "fit", argument: str = "checkpoint_dir"
    ) -> ResumableFolder:
        """Open a folder for the run that ``facts`` (JSON) describe; the folder of another run is refused.

        ``what`` names the kind of run in messages, ``argument`` the argument that takes the folder.
        """
        if folder is None:
            return cls(None)
        path = Path(folder)
        record = read_record(path, argument)
        if record is not None:
            differ = [name for name in sorted({*record, *facts}) if record.get(name) != facts.get(name)]
            if differ:
                raise Img2GeneError(
                    f"{argument}={str(path)!r} holds a {what} with other {listing(differ)}; results of two are never "
                    "mixed. Name another folder, or remove this one."
                )
            return cls(path)
        # An interrupted first write leaves a temporary file, which is no reason to refuse the folder.
        if path.is_dir() and any(file.suffix != _TEMPORARY for file in path.iterdir()):
            raise Img2GeneError(f"{argument}={str(path)!r} is not empty and holds no {what}; name another folder.")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Img2GeneError(f"{argument}={str(path)!r} cannot be made ({error}); name another folder.") from error
        write_bytes(path / RECORD, json.dumps(facts, indent=1).encode())
        return cls(path)

    def part(self, name: str) -> Path | None:
        """Return the path of a folder in which a part keeps files of its own; None if nothing is kept."""
        return None if self.folder is None else self.folder / name

    def load(self, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Load facts and arrays of a finished part; None if it is absent or unreadable."""
        return self.read(name, lambda folder, facts: (facts, _load_arrays(folder / f"{name}.safetensors")))

    def save(self, name: str, facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Keep facts and arrays of a finished part."""
        self.write(name, facts, lambda folder: _save_arrays(folder / f"{name}.safetensors", arrays))

    def read(self, name: str, reader: Callable[[Path, dict[str, Any]], T]) -> T | None:
        """Return ``reader(folder, facts)`` for a finished part; None if it is absent or unreadable."""
        if self.folder is None or not (self.folder / f"{name}.json").is_file():
            return None
        try:
            return reader(self.folder, json.loads((self.folder / f"{name}.json").read_bytes()))
        except _UNREADABLE as error:
            logger.warning("%s in %s cannot be used (%s) and is computed again", name, self.folder, error)
            return None

    def write(self, name: str, facts: dict[str, Any], writer: Callable[[Path], None]) -> None:
        """Let ``writer(folder)`` write the files of a part, then write its facts: they mark the part as complete."""
        if self.folder is not None:
            writer(self.folder)
            write_bytes(self.folder / f"{name}.json", json.dumps(facts).encode())


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import numpy as np
    from safetensors.numpy import save

    write_bytes(path, save({name: np.ascontiguousarray(values) for name, values in arrays.items()}))
