"""Patches streamed from the image through an encoder, and what identifies the embedding that comes of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from img2gene._study.patches import stream_patches
from img2gene._study.study import Study
from img2gene.settings import settings

if TYPE_CHECKING:
    from img2gene.encoders import Encoder, EncoderSpec, TokenEncoder

_TURNS = [(False, turns) for turns in range(4)]
# For each number of orientations: whether a view is mirrored, then by how many quarters it is turned.
VIEWS = {
    1: [(False, 0)],
    2: [(False, 0), (True, 0)],
    4: _TURNS,
    8: [*_TURNS, *((True, turns) for _, turns in _TURNS)],
}


def input_side(spec: EncoderSpec, patches: dict[str, Any]) -> int:
    """Side in pixels that patches are resized to."""
    return patches["patch_px"] if spec.any_size else spec.input_px


def embedding_identity(
    spec: EncoderSpec, patches: dict[str, Any], orientations: int, tokens: int | None
) -> dict[str, Any]:
    """What a model trained on these features has to find again: which encoder, on which fields, at which size."""
    # Without tokens nothing is said of them, so that records from before there were any stay the same.
    grid = {} if tokens is None else {"tokens": int(tokens), "token_width": spec.token_width}
    return {
        "name": spec.name,
        "revision": spec.revision,
        "source": spec.source,
        "licence": spec.licence,
        "width": spec.width * len(patches["patch_um"]),
        "patch_um": patches["patch_um"],
        "input_px": input_side(spec, patches),
        "orientations": orientations,
        **grid,
    }


def stream_embedding(
    study: Study,
    model: Encoder,
    identity: dict[str, Any],
    batch_size: int,
    num_workers: int,
    rows: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Features float32 (n_obs, width) and, if the identity names any, tokens float16; NaN outside ``rows``."""
    n_obs = study.n_obs
    n_tokens = identity.get("tokens")
    grid = None if n_tokens is None else math.isqrt(n_tokens)
    features = np.full((n_obs, identity["width"]), np.nan, dtype=np.float32)
    kept = None if grid is None else np.full((n_obs, grid**2, identity["token_width"]), np.nan, dtype=np.float16)
    batches = stream_patches(study, batch_size, num_workers, rows)
    for index, windows in progress(batches, n_obs if rows is None else len(rows), f"embed ({identity['name']})"):
        features[index], found = encode(model, windows.fields, identity["input_px"], identity["orientations"], grid)
        if kept is not None:
            kept[index] = found
    return features, kept


def progress(batches: Any, total: int, label: str) -> Any:
    """Batches of rows and their windows, with a bar over the rows."""
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=label, unit="spot", disable=not settings.progress) as bar:
        for rows, windows in batches:
            yield rows, windows
            bar.update(len(rows))


def encode(
    model: Encoder, fields: list[np.ndarray], side: int, orientations: int, grid: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Features of all fields of view, one after the other, and tokens of the first."""
    first, tokens = _average(model, fields[0], side, orientations, grid)
    others = [_average(model, pixels, side, orientations, None)[0] for pixels in fields[1:]]
    return np.concatenate([first, *others], axis=1), tokens


def _average(
    model: Encoder, pixels: np.ndarray, side: int, orientations: int, grid: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Features and tokens averaged over some of the eight symmetries of the square."""
    views = VIEWS[orientations]
    features: Any = 0
    tokens: Any = 0
    for mirrored, turns in views:
        view = np.rot90(_mirror(pixels) if mirrored else pixels, turns, axes=(1, 2))
        if grid is None:
            features = features + model(view, side)
            continue
        found, seen = cast("TokenEncoder", model).tokens(view, side, grid)
        upright = np.rot90(seen.reshape(len(seen), grid, grid, -1), -turns, axes=(1, 2))
        features, tokens = features + found, tokens + (_mirror(upright) if mirrored else upright)
    return features / len(views), None if grid is None else tokens.reshape(len(tokens), grid**2, -1) / len(views)


def _mirror(pixels: np.ndarray) -> np.ndarray:
    """Mirrored at the diagonal from the bottom left to the top right; twice is not at all."""
    return np.rot90(pixels.swapaxes(1, 2), 2, axes=(1, 2))
