"""Embed sections, and keep the embeddings in a folder so that none is computed twice."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._files.folders import atomic_path, fingerprint, write_bytes

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from img2gene.benchmark.cohorts import Inventory
    from img2gene.benchmark.layouts import StoredSection

logger = logging.getLogger(__name__)

# Each patch is embedded as it is and mirrored, and both embeddings are averaged.
ORIENTATIONS = 2
# Rows of an image that are read at a time for its fingerprint, so that memory does not grow with the image.
_ROWS = 2048


@dataclass(frozen=True)
class Embeddings:
    """Stores the embeddings of one encoder.

    Attributes
    ----------
    folder
        Folder of the embeddings.
    encoder
        Registered name of the encoder.
    recent
        Embedded sections of the latest cohort, because several protocols use them.
    """

    folder: Path
    encoder: str
    recent: dict[tuple[str, str, tuple[float, ...] | None], SpatialData] = field(default_factory=dict)

    def read(self, inventory: Inventory, name: str, patch_um: tuple[float, ...] | None) -> SpatialData:
        """Read a section of a cohort with its embedding and without its image.

        ``patch_um`` are the fields of view, or None for the default ones. Stored patches have a field of view of their
        own, so ``patch_um`` has no effect on them.
        """
        cohort = inventory.cohort.name
        if any(other != cohort for other, *_ in self.recent):
            self.recent.clear()
        key = (cohort, name, patch_um)
        if key not in self.recent:
            self.recent[key] = self.add(inventory.read(name), patch_um)
        return self.recent[key]

    def add(self, section: StoredSection, patch_um: tuple[float, ...] | None) -> SpatialData:
        """Embed a section, or read its stored embedding, and return it without its image, which is no longer needed."""
        from spatialdata import SpatialData

        from img2gene import encoders, pp
        from img2gene._study.embedding import embedding_identity
        from img2gene.pp.patches import DEFAULT_FIELDS_UM

        sdata = section.sdata
        if section.crops is None:
            pp.extract_patches(sdata, patch_um=patch_um or DEFAULT_FIELDS_UM)
        table = sdata["table"]
        identity = embedding_identity(
            encoders.get(self.encoder), _schema.read_json(table, "patches"), ORIENTATIONS, None
        )
        path = self.folder / f"{table.obs[_region_key(table)].iloc[0]}-{self.encoder}-{_digest(section, identity)}.npy"
        features = _load(path, table.n_obs)
        if features is None:
            features = self._compute(section, identity)
            _save(path, features)
        update: dict[str, dict[str, Any]] = {
            "obsm": {_schema.embedding_key(self.encoder): features},
            "uns": {"encoder": {self.encoder: identity}},
        }
        _schema.apply(table, update)
        return SpatialData(shapes=dict(sdata.shapes), labels=dict(sdata.labels), tables={"table": table})

    def _compute(self, section: StoredSection, identity: dict[str, Any]) -> np.ndarray:
        from img2gene import encoders, pp
        from img2gene._study.embedding import encode
        from img2gene.settings import settings

        if section.crops is None:
            update = pp.embed_patches(section.sdata, self.encoder, orientations=ORIENTATIONS, inplace=False)
            return update["obsm"][_schema.embedding_key(self.encoder)]  # type: ignore[index]
        model = encoders.load(self.encoder)
        size = settings.batch_size
        batches = (section.crops[i : i + size] for i in range(0, len(section.crops), size))
        return np.concatenate([encode(model, [batch], identity["input_px"], ORIENTATIONS)[0] for batch in batches])


def _region_key(table: Any) -> str:
    return table.uns["spatialdata_attrs"]["region_key"]


def _digest(section: StoredSection, identity: dict[str, Any]) -> str:
    """Compute a fingerprint of everything that the embedding depends on: pixels, windows and encoder."""
    from img2gene._study.images import scale0

    table = section.sdata["table"]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(table.obsm[_schema.PATCH_BBOX]).view(np.uint8))
    if section.crops is not None:
        digest.update(np.ascontiguousarray(section.crops).view(np.uint8))
        return digest.hexdigest()[:16]
    for entry in _schema.read_json(table, "patches")["regions"].values():
        image = scale0(section.sdata, entry["image"])
        for start in range(0, image.shape[1], _ROWS):
            block = np.ascontiguousarray(image[:, start : start + _ROWS].values)
            # Bytes alone do not tell 2 × 3 pixels from 3 × 2.
            digest.update(f"{block.dtype}{block.shape}".encode())
            digest.update(block.view(np.uint8))
    return digest.hexdigest()[:16]


def _load(path: Path, n_spots: int) -> np.ndarray | None:
    """Load the stored embedding of a section; None if there is none, or if it is damaged, which is logged."""
    record = path.with_suffix(".json")
    if not path.is_file() or not record.is_file():
        return None
    try:
        features = np.load(path, allow_pickle=False)
        if json.loads(record.read_bytes()) != fingerprint(features=features):
            raise ValueError("its values are not those that were stored")
        if features.dtype != np.float32 or features.ndim != 2 or len(features) != n_spots:
            raise ValueError(f"{features.dtype} of shape {features.shape} for {n_spots} spots")
    except (OSError, ValueError, EOFError, RecursionError, TypeError) as error:
        logger.warning("The stored embedding %s cannot be used (%s) and is computed again", path, error)
        return None
    return features


def _save(path: Path, features: np.ndarray) -> None:
    """Store an embedding, then the fingerprint of its values, which completes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # numpy would append `.npy` to the temporary path, so it gets an open file.
    # A changed file must not pass for the one that an older fingerprint describes.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, features)
    write_bytes(path.with_suffix(".json"), json.dumps(fingerprint(features=features)).encode())
