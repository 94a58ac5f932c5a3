"""Stream patches from the image through an encoder, and record what identifies the embedding."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from img2gene._checks import Arguments
from img2gene._cluster import n_threads, run_parts
from img2gene._errors import Img2GeneError, listing
from img2gene._files.patch_cache import PatchCache, patch_key
from img2gene._study.patches import Reading, RegionWindows, region_windows, stream_patches
from img2gene._study.study import Study
from img2gene.encoders.restain import stain_views
from img2gene.settings import settings, tqdm_bar

if TYPE_CHECKING:
    from distributed import Client

    from img2gene._study.windows import Windows
    from img2gene.encoders import Encoder, EncoderSpec, TokenEncoder

# Spots that a worker embeds at a time, at most: what its death can lose. Fewer would decode shared chunks more often.
_PART_SPOTS = 512
_PARTS_PER_THREAD = 8
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
    spec: EncoderSpec, patches: dict[str, Any], orientations: int, tokens: int | None, augment: str | None = None
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
        **({} if augment is None else {"augment": augment}),
        **({"resolution_um": patches["resolution_um"]} if patches.get("resolution_um") else {}),
        **_normalisation(patches),
    }


def _normalisation(patches: dict[str, Any]) -> dict[str, str]:
    """Record how the images of the patches were normalised; nothing if they were not."""
    methods = {region.get("normalized", "not") for region in patches.get("regions", {}).values()}
    return {"normalized": " and ".join(sorted(methods))} if methods - {"not"} else {}


def stream_embedding(
    study: Study,
    model: Encoder,
    identity: dict[str, Any],
    batch_size: int,
    num_workers: int,
    rows: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Embed the patches of a study.

    Returns features, float32 (n_obs, width), and tokens, float16 (n_obs, m, token_width), or None if the identity has
    no tokens. Both are NaN outside ``rows``.
    """
    reading = Reading(identity["input_px"])
    batches = local_batches(study, Embedder(model, identity), batch_size, num_workers, rows, reading)
    return collected(batches, study.n_obs, identity)


def collected(
    batches: Iterator[EmbeddedBatch], n_obs: int, identity: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Collect batches in arrays as :func:`stream_embedding` returns them."""
    features = np.full((n_obs, identity["width"]), np.nan, dtype=np.float32)
    tokens = None
    if identity.get("tokens"):
        tokens = np.full((n_obs, identity["tokens"], identity["token_width"]), np.nan, dtype=np.float16)
    for batch in batches:
        features[batch.rows] = batch.features
        if tokens is not None:
            tokens[batch.rows] = batch.tokens
    return features, tokens


@dataclass(frozen=True)
class EmbeddedBatch:
    """Rows of a study (n,), their features, float32 (n, width), and their tokens, float16 (n, m, token_width), or None."""

    rows: np.ndarray
    features: np.ndarray
    tokens: np.ndarray | None


@dataclass(frozen=True)
class Embedder:
    """An encoder with the settings of an embedding, and what was embedded with both before.

    Attributes
    ----------
    model
        The encoder.
    identity
        The settings, as in :func:`embedding_identity`.
    cache
        Embeddings of earlier calls; None keeps none.
    """

    model: Encoder
    identity: dict[str, Any]
    cache: PatchCache | None = None

    def __call__(self, fields: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Embed patches, uint8 (n, side, side, 3) for each field of view; those in the cache are not encoded again."""
        if self.cache is None:
            return self._encode(fields)
        keys = [patch_key([pixels[row] for pixels in fields]) for row in range(len(fields[0]))]
        known = self.cache.find(keys)
        # The same pixels can occur twice in a batch, as background does.
        new = list({key: row for row, key in enumerate(keys) if known[row] is None}.values())
        if new:
            encoded = self._encode([pixels[new] for pixels in fields])
            self.cache.add([keys[row] for row in new], encoded)
            computed = {keys[row]: {name: x[i] for name, x in encoded.items()} for i, row in enumerate(new)}
            known = [computed[key] if entry is None else entry for key, entry in zip(keys, known, strict=True)]
        names = self._names
        return {name: np.stack([entry[name] for entry in known if entry is not None]) for name in names}

    def readable(self, windows: Windows) -> dict[str, np.ndarray]:
        """Embed windows as a call does; those that cannot be read are NaN."""
        kept = ~windows.unreadable
        if kept.all():
            return self(windows.fields)
        shapes: dict[str, tuple[int, ...]] = {"features": (self.identity["width"],)}
        if self.identity.get("tokens"):
            shapes["tokens"] = (self.identity["tokens"], self.identity["token_width"])
        kinds = {"features": np.float32, "tokens": np.float16}
        out = {name: np.full((len(kept), *shape), np.nan, dtype=kinds[name]) for name, shape in shapes.items()}
        for name, values in self([field[kept] for field in windows.fields]).items() if kept.any() else ():
            out[name][kept] = values
        return out

    @property
    def _names(self) -> tuple[str, ...]:
        return ("features", "tokens") if self.identity.get("tokens") else ("features",)

    def _encode(self, fields: list[np.ndarray]) -> dict[str, np.ndarray]:
        grid = math.isqrt(self.identity["tokens"]) if self.identity.get("tokens") else None
        side, orientations = self.identity["input_px"], self.identity["orientations"]
        views = stain_views(fields, side) if self.identity.get("augment") else [fields]
        both = [encode(self.model, view, side, orientations, grid) for view in views]
        features, tokens = (None if part[0] is None else sum(part) / len(views) for part in zip(*both, strict=True))
        arrays = {"features": np.asarray(features, dtype=np.float32)}
        return arrays if grid is None else arrays | {"tokens": _half_precision(tokens, self.identity["name"])}

    def flush(self) -> None:
        """Write what the cache has not written yet."""
        if self.cache is not None:
            self.cache.flush()


def embedding_cache(model: Encoder, identity: dict[str, Any]) -> PatchCache | None:
    """Open the cache of an encoder and its settings; None unless the user has set a folder for it.

    Features also depend in their last digits on the library and the processor that compute them.
    """
    if not settings.caches_embeddings:
        return None
    facts = {name: value for name, value in identity.items() if name not in ("licence", "patch_um")}
    facts |= {"format": 1, **runtime(model)}
    return PatchCache(Path(settings.cache_dir) / "embeddings", identity["name"], facts)


def runtime(model: Encoder) -> dict[str, Any]:
    """Name what computes the features of an encoder, on which their last digits depend."""
    inner = getattr(model, "encoder", model)
    return {
        "runtime": type(inner).__name__,
        "device": str(getattr(inner, "device", "cpu")).split(":")[0],
        "bfloat16": bool(getattr(inner, "amp", False)),
    }


@dataclass(frozen=True)
class EmbeddingPlan:
    """What a process needs to embed patches: the encoder by its specification, and the settings.

    Attributes
    ----------
    spec
        The encoder.
    options
        ``device``, ``amp`` and ``backend``, as in :func:`img2gene.encoders.load`.
    identity
        The settings of the embedding.
    batch_size, num_workers
        Spots per forward pass, and threads that decode pixels.
    """

    spec: EncoderSpec
    options: dict[str, Any]
    identity: dict[str, Any]
    batch_size: int
    num_workers: int
    skip_unreadable: bool = False

    @property
    def reading(self) -> Reading:
        """How pixels are read for this encoder."""
        return Reading(self.identity["input_px"], self.skip_unreadable)

    def embedder(self) -> Embedder:
        """Load the encoder."""
        from img2gene.encoders.registry import load_spec

        model = load_spec(self.spec, **self.options)
        return Embedder(model, self.identity, embedding_cache(model, self.identity))

    def batches(
        self, study: Study, embed: Embedder, client: Client | None, rows: np.ndarray | None = None
    ) -> Iterator[EmbeddedBatch]:
        """Embed the patches of a study, or of ``rows``, with the workers of a client, or with ``embed`` in this process."""
        if client is None:
            yield from local_batches(study, embed, self.batch_size, self.num_workers, rows, self.reading)
            return
        regions = region_windows(study, rows, self.reading)
        total = sum(len(windows.rows) for windows in regions.values())
        size = min(max(total // (_PARTS_PER_THREAD * n_threads(client)), 1), _PART_SPOTS)
        parts = [(name, order) for name, windows in regions.items() for order in windows.parts(size)]
        with progress_bar(total, f"embed ({self.identity['name']})") as bar:
            for number, arrays in run_parts(client, _embed_part, (self, regions), parts):
                name, order = parts[number]
                yield EmbeddedBatch(regions[name].rows[order], arrays["features"], arrays.get("tokens"))
                bar.update(len(order))


def _embed_part(
    shared: tuple[EmbeddingPlan, dict[str, RegionWindows]], part: tuple[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Embed some patches of a region in a worker, in the order that they are asked for."""
    (plan, regions), (name, order) = shared, part
    windows = regions[name]
    with _worker_embedder(plan) as embed:
        place = np.empty(len(order), dtype=int)
        arrays: list[dict[str, np.ndarray]] = []
        first = 0
        for batch in windows.stream(plan.batch_size, plan.num_workers, order):
            arrays.append(embed.readable(batch))
            place[batch.index] = np.arange(first, first + len(batch.index))
            first += len(batch.index)
        embed.flush()
    return {key: np.concatenate([batch[key] for batch in arrays])[place] for key in arrays[0]}


# The encoder of this worker: weights are loaded once, and its threads take turns.
_IN_WORKER: dict[str, Embedder] = {}
_TURN = threading.Lock()


@contextmanager
def _worker_embedder(plan: EmbeddingPlan) -> Iterator[Embedder]:
    key = repr((plan.spec, plan.options, plan.identity, settings.cache_dir, settings.device))
    with _TURN:
        if key not in _IN_WORKER:
            # Another encoder would only take memory.
            _IN_WORKER.clear()
            _IN_WORKER[key] = plan.embedder()
        yield _IN_WORKER[key]


def local_batches(
    study: Study, embed: Embedder, batch_size: int, num_workers: int, rows: np.ndarray | None, reading: Reading
) -> Iterator[EmbeddedBatch]:
    """Embed the patches of a study, or of ``rows``, in this process."""
    batches = stream_patches(study, batch_size, num_workers, rows, reading)
    total = study.n_obs if rows is None else len(rows)
    try:
        for index, windows in progress(batches, total, f"embed ({embed.identity['name']})"):
            arrays = embed.readable(windows)
            yield EmbeddedBatch(index, arrays["features"], arrays.get("tokens"))
    finally:
        embed.flush()


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
    with progress_bar(total, label) as bar:
        for rows, windows in batches:
            yield rows, windows
            bar.update(len(rows))


def progress_bar(total: int, label: str) -> Any:
    """Make a progress bar of spots."""
    return tqdm_bar(total=total, desc=label, unit="spot", disable=not settings.progress)


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
