"""Keep embeddings of patches by the content of their pixels, so that no patch is encoded twice."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene._files.folders import RECORD, load_arrays, write_bytes
from img2gene._files.locks import remove_stale

logger = logging.getLogger(__name__)

# A file is what has to be read for a single patch, and what a kill can lose.
_FILE_BYTES = 2**24
_MOST_ROWS = 4096
_KEPT_FILES = 8
_KEY_BYTES = 16
_ENDING = ".safetensors"


def patch_key(fields: Sequence[np.ndarray]) -> bytes:
    """Compute the key of a patch: a digest of the pixels of all its fields of view, uint8 (side, side, 3) each.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene._files.patch_cache import patch_key
    >>> white = np.full((2, 2, 3), 255, dtype=np.uint8)
    >>> patch_key([white]) == patch_key([white, white])
    False
    """
    digest = hashlib.sha256()
    for pixels in fields:
        digest.update(f"{pixels.shape}".encode())
        digest.update(np.ascontiguousarray(pixels))
    return digest.digest()[:_KEY_BYTES]


class PatchCache:
    """Features, and tokens, of patches that one encoder with one setting has embedded.

    Files are only ever added, and are named after a digest of their content. So several processes can use a folder at the
    same time, and a file that changed on disk is noticed and never used.

    Parameters
    ----------
    folder
        Folder of all caches.
    name
        Readable name of the encoder.
    facts
        All that features depend on besides the pixels (JSON).

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from img2gene._files.patch_cache import PatchCache
    >>> folder = Path(tempfile.mkdtemp())
    >>> cache = PatchCache(folder, "tiny", {"revision": "1"})
    >>> cache.add([b"0123456789abcdef"], {"features": np.ones((1, 3), dtype="f4")})
    >>> cache.flush()
    >>> PatchCache(folder, "tiny", {"revision": "1"}).find([b"0123456789abcdef", b"x" * 16])
    [{'features': array([1., 1., 1.], dtype=float32)}, None]
    """

    def __init__(self, folder: Path, name: str, facts: dict[str, Any]) -> None:
        text = json.dumps(facts, sort_keys=True)
        self.folder = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self._facts = text
        self._waiting: list[tuple[bytes, dict[str, np.ndarray]]] = []
        self._places: dict[bytes, tuple[Path, int]] = {}
        self._is_writable = True
        self._load = lru_cache(maxsize=_KEPT_FILES)(_load)
        for path in sorted(self.folder.glob(f"*{_ENDING}")) if self.folder.is_dir() else ():
            self._places |= {key: (path, row) for row, key in enumerate(_keys(path))}

    def find(self, keys: Sequence[bytes]) -> list[dict[str, np.ndarray] | None]:
        """Return the arrays of each patch; None for those that are not kept."""
        waiting = dict(self._waiting)
        return [waiting[key] if key in waiting else self._read(key) for key in keys]

    def add(self, keys: Sequence[bytes], arrays: dict[str, np.ndarray]) -> None:
        """Keep arrays (n, …) of patches; they are written when they fill a file, or by :meth:`flush`."""
        for row, key in enumerate(keys):
            self._waiting.append((key, {name: values[row].copy() for name, values in arrays.items()}))
        n_bytes = sum(values[0].nbytes for values in arrays.values() if len(values))
        if len(self._waiting) >= min(max(_FILE_BYTES // max(n_bytes, 1), 1), _MOST_ROWS):
            self.flush()

    def flush(self) -> None:
        """Write what waits to be written."""
        if not self._waiting:
            return
        waiting, self._waiting = dict(self._waiting), []
        content = _content(waiting)
        path = self.folder / f"{hashlib.sha256(content).hexdigest()[:32]}{_ENDING}"
        if not self._is_writable:
            return
        try:
            self._prepare()
            write_bytes(path, content)
        except (Img2GeneError, OSError) as error:
            # The embedding itself is not lost, so a full disk must not end hours of work.
            self._is_writable = False
            logger.warning("embeddings are not kept in %s any more: %s", self.folder, error)
            return
        self._places |= {key: (path, row) for row, key in enumerate(waiting)}

    def _prepare(self) -> None:
        if not (self.folder / RECORD).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_stale(self.folder)
            write_bytes(self.folder / RECORD, self._facts.encode())

    def _read(self, key: bytes) -> dict[str, np.ndarray] | None:
        if key not in self._places:
            return None
        path, row = self._places[key]
        arrays = self._load(path)
        if arrays is None:
            # Its patches are embedded again.
            self._places = {other: place for other, place in self._places.items() if place[0] != path}
            return None
        return {name: values[row] for name, values in arrays.items()}


def _content(patches: dict[bytes, dict[str, np.ndarray]]) -> bytes:
    from safetensors.numpy import save

    names = next(iter(patches.values())).keys()
    arrays = {name: np.stack([values[name] for values in patches.values()]) for name in names}
    keys = np.frombuffer(b"".join(patches), dtype=np.uint8).reshape(-1, _KEY_BYTES)
    return save({"keys": keys.copy(), **{name: np.ascontiguousarray(values) for name, values in arrays.items()}})


def _keys(path: Path) -> list[bytes]:
    """Keys of the patches in a file; none if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return [row.tobytes() for row in file.get_tensor("keys")]
    except (SafetensorError, OSError, ValueError) as error:
        logger.warning("%s cannot be used (%s); its patches are embedded again", path, error)
        return []


def _load(path: Path) -> dict[str, np.ndarray] | None:
    """Arrays of a file but its keys; None if it has changed since it was written."""
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest()[:32] != path.name.removesuffix(_ENDING):
            raise ValueError("it differs from its digest")
        arrays = load_arrays(path)
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be used (%s); its patches are embedded again", path, error)
        return None
    del arrays["keys"]
    return arrays
