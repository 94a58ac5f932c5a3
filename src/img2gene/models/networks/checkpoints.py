"""A folder in which a fit keeps what it has finished, so that it can go on after an interruption."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from img2gene._errors import Img2GeneError, listing

logger = logging.getLogger(__name__)
# No part of a fit is called like that.
RECORD = "identity.json"


def fingerprint(**arrays: np.ndarray | None) -> dict[str, str]:
    """A digest of each array's shape and values.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.networks.checkpoints import fingerprint
    >>> fingerprint(labels=np.zeros(3)) == fingerprint(labels=np.zeros(4))
    False
    """
    found = {}
    for name, values in arrays.items():
        digest = hashlib.sha256()
        if values is not None:
            plain = values.astype("U") if values.dtype.kind in "OT" else values
            digest.update(f"{plain.dtype}{plain.shape}".encode())
            digest.update(np.ascontiguousarray(plain).view(np.uint8))
        found[name] = digest.hexdigest()[:16]
    return found


def read_record(folder: Path, argument: str) -> dict[str, Any] | None:
    """What the run in a folder recorded of itself, None where nothing is; a record that cannot be read is refused."""
    if folder.exists() and not folder.is_dir():
        raise Img2GeneError(f"{argument}={str(folder)!r} is a file; name a folder.")
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_bytes())
    except (OSError, ValueError):
        stored = None
    if not isinstance(stored, dict):
        raise Img2GeneError(
            f"{str(path)!r} cannot be read, so nobody knows what the parts beside it belong to. Remove the folder, or name "
            f"another one as `{argument}`."
        )
    return stored


@dataclass(frozen=True)
class Progress:
    """Finished parts of a fit, kept in ``folder``; without one nothing is kept.

    Examples
    --------
    >>> from img2gene.models.networks.checkpoints import Progress
    >>> Progress(None).load("fold0") is None
    True
    """

    folder: Path | None

    @classmethod
    def open(
        cls, folder: str | Path | None, facts: dict[str, Any], *, what: str = "fit", argument: str = "checkpoint_dir"
    ) -> Progress:
        """Open a folder for a run described by ``facts`` (JSON); one that holds another run is refused.

        ``what`` kind of run it is, and the ``argument`` that names the folder, are for messages.
        """
        if folder is None:
            return cls(None)
        path = Path(folder)
        stored = read_record(path, argument)
        if stored is not None:
            differ = [name for name in sorted({*stored, *facts}) if stored.get(name) != facts.get(name)]
            if differ:
                raise Img2GeneError(
                    f"{argument}={str(path)!r} holds a {what} with other {listing(differ)}; results of two are never mixed. "
                    "Name another folder, or remove this one."
                )
            return cls(path)
        # What an interruption of the first write leaves behind is no reason to refuse.
        if path.is_dir() and any(found.name != f"{RECORD}.partial" for found in path.iterdir()):
            raise Img2GeneError(f"{argument}={str(path)!r} is not empty and holds no {what}; name another folder.")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Img2GeneError(f"{argument}={str(path)!r} cannot be made ({error}); name another folder.") from error
        _replace(path / RECORD, json.dumps(facts, indent=1).encode())
        return cls(path)

    def part(self, name: str) -> Path | None:
        """Folder of one part of the fit."""
        return None if self.folder is None else self.folder / name

    def load(self, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Facts and arrays of a finished part, or None; one that cannot be read counts as missing."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if self.folder is None or not (self.folder / f"{name}.json").is_file():
            return None
        try:
            facts = json.loads((self.folder / f"{name}.json").read_bytes())
            return facts, load_file(self.folder / f"{name}.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            logger.warning("%s in %s cannot be read (%s) and is computed again", name, self.folder, error)
            return None

    def save(self, name: str, facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Keep a finished part; the facts are written last, so that they stand for a complete one."""
        from safetensors.numpy import save

        if self.folder is not None:
            _replace(self.folder / f"{name}.safetensors", save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
            _replace(self.folder / f"{name}.json", json.dumps(facts).encode())


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
