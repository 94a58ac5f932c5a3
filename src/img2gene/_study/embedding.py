"""Stream patches from the image through an encoder, and record what identifies the embedding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, listing
from img2gene._study.patches import Reading, stream_patches
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


def checked_orientations(check: Arguments, orientations: Any) -> Any:
    """Check the number of orientations that features are averaged over."""
    number = check.whole("orientations", orientations, 1, max(VIEWS))
    if isinstance(number, int) and not isinstance(number, bool) and number not in VIEWS and 1 <= number <= max(VIEWS):
        check.messages.append(f"orientations={number}: choose {listing(VIEWS)}.")
    return number


def input_side(spec: EncoderSpec, patches: dict[str, Any]) -> int:
    """Return the side in pixels that patches are resized to before they enter the encoder."""
    return patches["patch_px"] if spec.any_size else spec.input_px


def embedding_identity(
    spec: EncoderSpec, patches: dict[str, Any], orientations: int, tokens: int | None
) -> dict[str, Any]:
    """Record the encoder and its settings; a trained model accepts only embeddings with the same identity."""
    # Older records have no entries for tokens, so embeddings without tokens have none either.
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
        **({"resolution_um": patches["resolution_um"]} if patches.get("resolution_um") else {}),
    }


def stream_embedding(
    study: Study,
    model: Encoder,
    identity: dict[str, Any],
    batch_size: int,
    num_workers: int,
    rows: np.ndarray | None = None,
    *,
    skip_unreadable: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Embed the patches of a study.

    Returns features, float32 (n_obs, width), and tokens, float16 (n_obs, m, token_width), or None if the identity has
    no tokens. Both are NaN outside ``rows``, and with ``skip_unreadable`` where pixels cannot be read.
    """
    n_obs = study.n_obs
    n_tokens = identity.get("tokens")
    grid = None if n_tokens is None else math.isqrt(n_tokens)
    features = np.full((n_obs, identity["width"]), np.nan, dtype=np.float32)
    tokens = None if grid is None else np.full((n_obs, grid**2, identity["token_width"]), np.nan, dtype=np.float16)
    batches = stream_patches(study, batch_size, num_workers, rows, Reading(identity["input_px"], skip_unreadable))
    for index, windows in progress(batches, n_obs if rows is None else len(rows), f"embed ({identity['name']})"):
        if windows.unreadable.all():
            continue
        features[index], batch_tokens = encode(
            model, windows.fields, identity["input_px"], identity["orientations"], grid
        )
        features[index[windows.unreadable]] = np.nan
        if tokens is not None:
            tokens[index] = _half_precision(batch_tokens, identity["name"])
            tokens[index[windows.unreadable]] = np.nan
    return features, tokens


def _half_precision(tokens: Any, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = np.asarray(tokens).astype(np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(tokens).max())
        raise Img2GeneError(
            f"Encoder `{name}` returns tokens up to {largest:.3g}, but they are stored in half precision, which holds "
            "65504 at most. Scale them in the encoder, or leave `tokens` out."
        )
    return half


def progress(batches: Any, total: int, label: str) -> Any:
    """Yield batches of rows and their windows, and advance a progress bar."""
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=label, unit="spot", disable=not settings.progress) as bar:
        for rows, windows in batches:
            yield rows, windows
            bar.update(len(rows))


def encode(
    model: Encoder, fields: list[np.ndarray], side: int, orientations: int, grid: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Encode all fields of view; return their features, concatenated, and the tokens of the first field."""
    first, tokens = _average(model, fields[0], side, orientations, grid)
    others = [_average(model, pixels, side, orientations, None)[0] for pixels in fields[1:]]
    return np.concatenate([first, *others], axis=1), tokens


def _average(
    model: Encoder, pixels: np.ndarray, side: int, orientations: int, grid: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Average features and tokens over the orientations of each patch."""
    views = VIEWS[orientations]
    features: Any = 0
    tokens: Any = 0
    for mirrored, turns in views:
        view = np.rot90(_mirror(pixels) if mirrored else pixels, turns, axes=(1, 2))
        if grid is None:
            features = features + model(view, side)
            continue
        view_features, view_tokens = cast("TokenEncoder", model).tokens(view, side, grid)
        # A token belongs to a place in the patch, so its grid is turned back before averaging.
        upright = np.rot90(view_tokens.reshape(len(view_tokens), grid, grid, -1), -turns, axes=(1, 2))
        features, tokens = features + view_features, tokens + (_mirror(upright) if mirrored else upright)
    return features / len(views), None if grid is None else tokens.reshape(len(tokens), grid**2, -1) / len(views)


def _mirror(pixels: np.ndarray) -> np.ndarray:
    """Mirror patches at the diagonal from the bottom left to the top right; mirroring twice restores them."""
    return np.rot90(pixels.swapaxes(1, 2), 2, axes=(1, 2))
