"""Checkpoints with a digest: one that is cut, changed, or of another run is not resumed from."""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from pathlib import Path

from img2gene._errors import Img2GeneError
from img2gene._files.folders import RECORD

logger = logging.getLogger(__name__)
LAST = "last.ckpt"
_DIGEST = "img2gene-digest"


def sign(path: Path, folder: Path, label: str) -> None:
    """Add a digest of its content and its run to a checkpoint, which is a zip archive."""
    digest = _digest(path, folder, label)
    with zipfile.ZipFile(path, "a") as archive:
        # PyTorch takes members of one folder only.
        archive.writestr(f"{archive.namelist()[0].split('/')[0]}/{_DIGEST}", digest)


def usable_checkpoint(folder: Path | None, label: str) -> Path | None:
    """Return the checkpoint of the run ``label`` in its folder; remove one that cannot be used, with a warning."""
    if folder is None or not (folder / LAST).exists():
        return None
    path = folder / LAST
    try:
        with zipfile.ZipFile(path) as archive:
            stored = archive.read(next((name for name in archive.namelist() if _is_digest(name)), _DIGEST)).decode()
        reason = "" if stored == _digest(path, folder, label) else "it differs from its digest"
    except (zipfile.BadZipFile, zlib.error, OSError, KeyError, ValueError, NotImplementedError, RuntimeError, EOFError):
        reason = "it is no whole checkpoint of this package"
    if not reason:
        return path
    logger.warning("%s cannot be used (%s): the training starts anew", path, reason)
    try:
        path.unlink()
    except OSError as error:
        raise Img2GeneError(f"{str(path)!r} is damaged and cannot be removed ({error.strerror}).") from error
    return None


def _digest(path: Path, folder: Path, label: str) -> str:
    """Compute a digest of the members of an archive, of the run, and of the record of the folder."""
    record = folder.parent / RECORD
    digest = hashlib.sha256(label.encode() + (record.read_bytes() if record.is_file() else b""))
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not _is_digest(name):
                content = archive.read(name)
                digest.update(f"{name} {len(content)}".encode())
                digest.update(content)
    return digest.hexdigest()


def _is_digest(name: str) -> bool:
    return name.endswith(f"/{_DIGEST}")
