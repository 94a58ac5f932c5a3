"""Files that are whole or absent: atomic writes, and folders from which an interrupted run resumes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from img2gene._errors import Img2GeneError, listing
from img2gene._files.locks import LOCK, FolderLock, is_temporary, remove_stale
from img2gene._files.locks import temporary_path as _temporary

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Describes the run that a folder belongs to; no part of a run has this name.
RECORD = "identity.json"
# Readers of JSON, parquet, npz and safetensors raise these on damaged files. Arrow raises ValueErrors or OSErrors.
_UNREADABLE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder that replaces ``path`` at the end, or is removed after an error.

    A file that cannot be written, because the disk is full for example, raises an :class:`Img2GeneError`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from img2gene._files.folders import atomic_path
    >>> target = Path(tempfile.mkdtemp()) / "numbers.txt"
    >>> with atomic_path(target) as temporary:
    ...     _ = temporary.write_text("1 2 3")
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('1 2 3', 1)
    """
    temporary = _temporary(path)
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb+") as file:
            # Without this a power cut can leave a renamed but empty file.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise Img2GeneError(
            f"{str(path)!r} cannot be written ({reason}); what was there before is unchanged."
        ) from error
    finally:
        with suppress(OSError):
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
    >>> from img2gene._files.folders import fingerprint
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
            # An array without axes has no view of bytes.
            digest.update(np.ascontiguousarray(plain).reshape(-1).view(np.uint8))
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
    except (OSError, ValueError, RecursionError):
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
    >>> from img2gene._files.folders import ResumableFolder
    >>> ResumableFolder(None).load("fold0") is None
    True
    """

    folder: Path | None
    lock: FolderLock | None = field(default=None, compare=False, repr=False)

    @classmethod
    def open(
        cls, folder: str | Path | None, facts: dict[str, Any], *, what: str = "fit", argument: str = "checkpoint_dir"
    ) -> ResumableFolder:
        """Open a folder for the run that ``facts`` (JSON) describe; the folder of another run is refused.

        Other processes are refused as long as the result exists, except for its copies in workers of this run.
        ``what`` names the kind of run in messages, ``argument`` the argument that takes the folder.
        """
        if folder is None:
            return cls(None)
        path = Path(folder)
        _check_record(path, facts, what, argument)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Img2GeneError(f"{argument}={str(path)!r} cannot be made ({error}); name another folder.") from error
        lock = FolderLock(path, argument)
        try:
            # Another process may have begun a run since the first check.
            if not _check_record(path, facts, what, argument):
                write_bytes(path / RECORD, json.dumps(facts, indent=1).encode())
            remove_stale(path)
        except BaseException:
            lock.close()
            raise
        return cls(path, lock)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lock to the process that opened the folder: its workers share the folder."""
        return {"folder": self.folder, "lock": None}

    def __enter__(self) -> ResumableFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        """Let other processes use the folder; a notebook that shows an error would otherwise keep it locked."""
        if self.lock is not None:
            self.lock.close()

    def part(self, name: str) -> Path | None:
        """Return the path of a folder in which a part keeps files of its own; None if nothing is kept."""
        return None if self.folder is None else self.folder / name

    def load(self, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Load facts and arrays of a finished part; None if it is absent or unreadable."""
        return self.read(name, lambda folder, facts: (facts, load_arrays(folder / f"{name}.safetensors")))

    def save(self, name: str, facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Keep facts and arrays of a finished part."""
        self.write(name, facts, lambda folder: _save_arrays(folder / f"{name}.safetensors", arrays))

    def read(self, name: str, reader: Callable[[Path, dict[str, Any]], T]) -> T | None:
        """Return ``reader(folder, facts)`` for a finished part; None if it is absent, changed or unreadable."""
        if self.folder is None or not (self.folder / f"{name}.json").is_file():
            return None
        try:
            return reader(self.folder, _verified_facts(self.folder, name))
        except _UNREADABLE as error:
            reason = f"entry {error} is missing" if isinstance(error, KeyError) else error
            logger.warning("%s in %s cannot be used (%s) and is computed again", name, self.folder, reason)
            return None

    def write(self, name: str, facts: dict[str, Any], writer: Callable[[Path], Iterable[Path] | None]) -> None:
        """Let ``writer(folder)`` write the files of a part and list them, then write its facts, which complete it.

        A digest of each file and of the facts is kept, by which :meth:`read` notices changes.
        """
        if self.folder is not None:
            paths = [Path(path) for path in writer(self.folder) or ()]
            digests = {path.relative_to(self.folder).as_posix(): _file_digest(path) for path in paths}
            stored: dict[str, Any] = {"facts": facts, "files": digests}
            stored["digest"] = _text_digest(name, stored)
            write_bytes(self.folder / f"{name}.json", json.dumps(stored).encode())


def _check_record(path: Path, facts: dict[str, Any], what: str, argument: str) -> bool:
    """Refuse the folder of another run, and one with other files; return whether it holds this run."""
    # An interrupted first write leaves a temporary file, which is no reason to refuse the folder.
    try:
        filled = path.is_dir() and any(file.name != LOCK and not is_temporary(file) for file in path.iterdir())
    except OSError as error:
        # Also a path that is too long for the file system.
        raise Img2GeneError(
            f"{argument}={str(path)!r} cannot be read: {error.strerror}. Name another folder."
        ) from None
    # Read after the listing: a run that another process begins meanwhile writes its record before other files.
    record = read_record(path, argument)
    if record is None:
        if filled:
            raise Img2GeneError(f"{argument}={str(path)!r} is not empty and holds no {what}; name another folder.")
        return False
    differ = [name for name in sorted({*record, *facts}) if record.get(name) != facts.get(name)]
    if differ:
        raise Img2GeneError(
            f"{argument}={str(path)!r} holds a {what} with other {listing(differ)}; results of two are never "
            "mixed. Name another folder, or remove this one."
        )
    return True


def _verified_facts(folder: Path, name: str) -> dict[str, Any]:
    """Read the facts of a part; raise if they or one of its files differ from what was written."""
    stored = json.loads((folder / f"{name}.json").read_bytes())
    if not isinstance(stored, dict) or stored.keys() != {"facts", "files", "digest"}:
        raise ValueError(f"{name}.json holds no facts with their digest")
    if stored.pop("digest") != _text_digest(name, stored):
        raise ValueError(f"{name}.json differs from its digest")
    changed = [file for file, digest in stored["files"].items() if _file_digest(folder / file) != digest]
    if changed:
        raise ValueError(f"{listing(changed)} differ from what was written")
    return stored["facts"]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text_digest(name: str, value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([name, value], sort_keys=True).encode()).hexdigest()


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file; raise a ValueError if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> list[Path]:
    import numpy as np
    from safetensors.numpy import save

    write_bytes(path, save({name: np.ascontiguousarray(values) for name, values in arrays.items()}))
    return [path]
