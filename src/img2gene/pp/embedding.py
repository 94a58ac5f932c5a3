"""Stream the pixels of every patch through an image encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema, encoders
from img2gene._errors import Img2GeneError
from img2gene._patches import specification, stream_patches
from img2gene.settings import settings

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from img2gene.encoders import Encoder, EncoderSpec

_ORIENTATIONS = (1, 2, 4, 8)


def embed_patches(
    sdata: SpatialData,
    encoder: str = "default",
    *,
    orientations: int = 2,
    table_key: str = "table",
    batch_size: int | None = None,
    num_workers: int | None = None,
    device: str | None = None,
    amp: bool | str | None = None,
    backend: str = "auto",
    inplace: bool = True,
) -> dict[str, dict[str, Any]] | None:
    """Embed the image patch of every spot.

    Pixels are read in the order of the image's chunks, each chunk once, and go straight into the encoder while the next
    ones are decoded. The result does not depend on batch size, chunking or number of workers.

    Parameters
    ----------
    sdata
        Study on which :func:`img2gene.pp.extract_patches` (or :func:`img2gene.pp.tile_slide`) was run.
    encoder
        Registered encoder, see :func:`img2gene.encoders.list`; ``"default"`` is the offline ``"efficientnet-lite0"``.
    orientations
        Average the features over this many orientations of each patch: 1, 2 (and mirrored at the diagonal), 4 (quarter turns)
        or 8 (all). Costs as many forward passes; averaging helps most where patients or stains differ.
    table_key
        Table whose patches are embedded.
    batch_size
        Spots per forward pass; None takes ``img2gene.settings.batch_size``.
    num_workers
        Threads that decode pixels ahead; None takes ``img2gene.settings.num_workers``, 0 decodes in this thread.
    device, amp, backend
        As in :func:`img2gene.encoders.load`.
    inplace
        If False, nothing is written and the update is returned.

    Returns
    -------
    None, or the update. Written are ``obsm["X_<encoder>"]`` (float32 (n_obs, n_fields · width), the fields of view one
    after the other) and the encoder's identity in ``uns["img2gene"]["encoder"]``.

    Raises
    ------
    MissingKeyError
        No patches, no such encoder, or their image is gone.
    Img2GeneError
        The encoder's input size differs from the patches', or its weights cannot be loaded.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> sdata["table"].obsm["X_color-texture"].shape[1]
    50
    """
    spec = encoders.get(encoder)
    table = _schema.get_table(sdata, table_key)
    patches = specification(table, table_key)
    size = batch_size or settings.batch_size
    workers = settings.num_workers if num_workers is None else num_workers
    if size < 1 or workers < 0 or orientations not in _ORIENTATIONS:
        raise Img2GeneError(
            f"batch_size={size}, num_workers={workers}, orientations={orientations}: expected at least 1, at least 0, "
            f"and one of {', '.join(map(str, _ORIENTATIONS))}."
        )
    model = encoders.load(encoder, device=device, amp=amp, backend=backend)
    features = np.full((table.n_obs, len(patches["patch_um"]) * spec.width), np.nan, dtype=np.float32)
    side = patches["patch_px"] if spec.any_size else spec.input_px
    for rows, windows in _progress(stream_patches(sdata, table_key, size, workers), table.n_obs, spec.name):
        features[rows] = _encode(model, windows.fields, side, orientations)
    identity = _identity(spec, patches, side, orientations)
    known = _schema.read_json(table, "encoder", default={})
    update: dict[str, dict[str, Any]] = {
        "obsm": {_schema.embedding_key(spec.name): features},
        "uns": {"encoder": {**known, spec.name: identity}},
    }
    if not inplace:
        return update
    _schema.apply(table, update)
    return None


def _encode(model: Encoder, fields: list[np.ndarray], side: int, orientations: int) -> np.ndarray:
    return np.concatenate([_average(model, pixels, side, orientations) for pixels in fields], axis=1)


def _average(model: Encoder, pixels: np.ndarray, side: int, orientations: int) -> np.ndarray:
    """Features averaged over some of the eight symmetries of the square."""
    mirrored = np.rot90(pixels.swapaxes(1, 2), 2, axes=(1, 2))
    views = {1: [pixels], 2: [pixels, mirrored]}.get(orientations)
    if views is None:
        bases = [pixels, mirrored] if orientations == 8 else [pixels]
        views = [np.rot90(base, turns, axes=(1, 2)) for base in bases for turns in range(4)]
    return np.mean([model(view, side) for view in views], axis=0)


def _progress(batches: Any, total: int, name: str) -> Any:
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=f"embed ({name})", unit="spot", disable=not settings.progress) as bar:
        for rows, windows in batches:
            yield rows, windows
            bar.update(len(rows))


def _identity(spec: EncoderSpec, patches: dict[str, Any], side: int, orientations: int) -> dict[str, Any]:
    """What a model trained on these features has to find again: which encoder, on which fields, at which size."""
    return {
        "name": spec.name,
        "revision": spec.revision,
        "source": spec.source,
        "licence": spec.licence,
        "width": spec.width * len(patches["patch_um"]),
        "patch_um": patches["patch_um"],
        "input_px": side,
        "orientations": orientations,
    }
