"""Keep processes apart that share a folder: locks, and temporary files that name their process."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
import time
import uuid
import weakref
from contextlib import suppress
from pathlib import Path

from img2gene._errors import Img2GeneError

LOCK = ".lock"
_TEMPORARY = ".partial"
_NAMED = re.compile(r"\.(?P<host>[0-9a-f]{6})-(?P<process>\d+)-[0-9a-f]{8}\.partial")
# File systems limit names to 255 bytes.
_LONGEST_NAME = 60
_DAY = 24 * 3600.0
_GUARD = threading.RLock()
# Descriptor of the lock file, and number of locks, of each folder that this process has locked.
_HELD: dict[Path, list[int]] = {}


def temporary_path(path: Path) -> Path:
    """Name a temporary file next to ``path`` after this computer and process; no two calls return the same."""
    # A unique name: two processes that write the same file must not write into each other's.
    name = f"{path.name[:_LONGEST_NAME]}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{_TEMPORARY}"
    return path.parent / name


def is_temporary(path: Path) -> bool:
    """Check whether a file is one that :func:`temporary_path` named."""
    return path.name.endswith(_TEMPORARY)


def remove_stale(folder: Path, name: str | None = None) -> None:
    """Remove temporary files that killed processes left in a folder and below it, or those of one file only."""
    paths = folder.rglob(f"*{_TEMPORARY}") if name is None else folder.iterdir()
    # Another process may remove a file or a folder at the same time.
    with suppress(OSError):
        for path in paths:
            if is_temporary(path) and (name is None or path.name.startswith(f"{name[:_LONGEST_NAME]}.")):
                with suppress(OSError):
                    if is_stale(path):
                        path.unlink()


def is_stale(path: Path) -> bool:
    """Check whether the process that named a temporary file or folder is gone."""
    match = _NAMED.search(path.name)
    if match is not None and match["host"] == _host() and os.name == "posix":
        return not _is_alive(int(match["process"]))
    # Processes of other computers cannot be asked.
    return time.time() - path.stat().st_mtime > _DAY


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


class FolderLock:
    """Refuses a folder to other processes until the lock is closed or deleted, or its process ends.

    One process may lock a folder several times.

    Parameters
    ----------
    folder
        An existing folder.
    argument
        Argument that names the folder in messages.

    Raises
    ------
    Img2GeneError
        Another process has locked the folder, or it cannot be written to.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from img2gene._files.locks import FolderLock
    >>> folder = Path(tempfile.mkdtemp())
    >>> with FolderLock(folder, "folder"):
    ...     print([path.name for path in folder.iterdir()])
    ['.lock']
    >>> list(folder.iterdir())
    []
    """

    def __init__(self, folder: Path, argument: str) -> None:
        self.folder = folder.resolve()
        with _GUARD:
            if self.folder in _HELD:
                _HELD[self.folder][1] += 1
            else:
                _HELD[self.folder] = [_acquire(self.folder / LOCK, argument), 1]
        self._finalizer = weakref.finalize(self, _release, self.folder, os.getpid())

    def close(self) -> None:
        """Let other processes use the folder."""
        self._finalizer()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _acquire(path: Path, argument: str) -> int:
    """Open and lock a file; return its descriptor."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise Img2GeneError(
                f"{argument}={str(path.parent)!r} cannot be written to ({error.strerror}); name another folder."
            ) from error
        if not _is_free(descriptor):
            owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise Img2GeneError(
                f"{argument}={str(path.parent)!r} is in use by {owner}; two runs never write to one folder. Wait until "
                "it has finished, or name another folder."
            )
        if _is_current(descriptor, path):
            # The name of the owner is for messages only, so a full disk does not matter.
            with suppress(OSError):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor
        os.close(descriptor)


def _is_current(descriptor: int, path: Path) -> bool:
    """Check that the previous owner did not remove the file after it was opened here."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _is_free(descriptor: int) -> bool:
    """Lock an open file; False if another process has locked it."""
    try:
        import fcntl
    except ImportError:
        # Windows has no such locks; files are whole there, too, but two runs may do the same work.
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        # Some network file systems have no locks.
        return True
    return True


def _release(folder: Path, process: int) -> None:
    # A forked child inherits the finalizer, but not the right to unlock the folder of its parent.
    if process != os.getpid():
        return
    with _GUARD:
        held = _HELD[folder]
        held[1] -= 1
        if held[1]:
            return
        del _HELD[folder]
        # Removed while locked: whoever opened it before notices that it is gone.
        with suppress(OSError):
            os.unlink(folder / LOCK)
        os.close(held[0])
