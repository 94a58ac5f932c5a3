"""Stream the pixels of every patch through an image encoder."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema, encoders
from img2gene._checks import Arguments, shown
from img2gene._cluster import check_client
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene._study.embedding import (
    Embedder,
    EmbeddingPlan,
    checked_orientations,
    collected,
    embedding_identity,
    input_side,
    runtime,
)
from img2gene._study.entrance import open_table
from img2gene._study.origins import embedded_patches
from img2gene._study.restaining import stain_changes
from img2gene._study.study import Study
from img2gene.encoders.base import checked_amp
from img2gene.encoders.registry import resolved
from img2gene.pp._stored_embedding import StoredEmbedding
from img2gene.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData

    from img2gene.encoders import EncoderSpec

logger = logging.getLogger(__name__)

_MIN_GRID = 3
# Each worker is a thread, and systems refuse to start tens of thousands.
_MAX_WORKERS = 1024


@fill_parameters
def embed_patches(
    sdata: SpatialData,
    encoder: str | EncoderSpec | Callable[..., Any] = "default",
    *,
    tokens: int | None = None,
    orientations: int = 2,
    restained: int = 0,
    augment: str | None = None,
    table_key: str = "table",
    batch_size: int | None = None,
    num_workers: int | None = None,
    device: str | None = None,
    amp: bool | str | None = None,
    backend: str = "auto",
    out: str | Path | None = None,
    client: Any = None,
    on_error: str = "nan",
    inplace: bool = True,
) -> dict[str, dict[str, Any]] | None:
    """Embed the image patch of every spot.

    The function reads each chunk of the image once, and decodes the next chunks while the encoder runs. The result does
    not depend on batch size, chunking or number of workers.

    Parameters
    ----------
    sdata
        Study on which :func:`img2gene.pp.extract_patches` (or :func:`img2gene.pp.tile_slide`) was run.
    encoder
        Registered encoder, see :func:`img2gene.encoders.list`; ``"default"`` is the offline ``"efficientnet-lite0"``. Or any
        timm model of the hub, ``"hf-hub:owner/name@<commit>"``; or a torch module of timm, which is named after its
        class. Other modules, and functions, go through :func:`img2gene.encoders.wrap` first.
    tokens
        Also keep this many tokens of the first field of view, for models that attend to positions within a patch.
        Tokens are the cells of a square grid over the patch: 9, 16, 25, … None keeps no tokens, and removes the tokens
        of an earlier call.
    orientations
        Average the features over this many orientations of each patch: 1, 2 (with the mirror image at the diagonal), 4
        (quarter turns) or 8 (all). Each orientation costs one forward pass. Averaging helps most if patients or stains
        differ.
    restained
        Also embed restained copies of about this many patches, the same number in each section, with more or less haematoxylin
        and eosin. Models learn from them which features the stain moves (``debias="stain"`` of :func:`img2gene.tl.fit`); 40
        are enough. Each takes three forward passes. Tables without genes, such as tiles, have none.
    augment
        ``"stain"`` averages the features over five copies of each patch: as it is, and with 1.2 times as much and as little
        haematoxylin, and eosin. Each takes a forward pass per orientation. Other sections need the same. None takes the
        patch as it is.
    table_key
        Table whose patches are embedded.
    batch_size
        Spots per forward pass; None takes ``img2gene.settings.batch_size``.
    num_workers
        Threads that decode pixels ahead; None takes ``img2gene.settings.num_workers``, 0 decodes in this thread.
    device, amp, backend
        As in :func:`img2gene.encoders.load`.
    out
        Zarr store to write the embedding to, so that it need not fit into memory. A call that was killed leaves
        ``<out>.unfinished``; the same call goes on from there.
    %(client)s
    on_error
        What to do about pixels that cannot be decoded, as in a file that was cut: ``"nan"`` embeds all other spots and
        names those that touch such pixels, ``"raise"`` raises.
    %(inplace_update)s

    Returns
    -------
    None, or the update. The call writes ``obsm["X_<encoder>"]`` (float32 (n_obs, n_fields · width), the fields of view
    one after the other), with ``tokens`` also ``obsm["X_<encoder>_tokens"]`` (float16 (n_obs, tokens, token_width), the
    cells row by row from the top left of the patch), and the encoder's identity in ``uns["img2gene"]["encoder"]``. How the
    features of some spots change when their patches are restained stands in ``obsm["X_<encoder>_restained"]`` (sparse float32
    (n_obs, 2 · n_fields · width), one orientation; rows of other spots are empty). It
    also notes in ``uns["img2gene"]["patches"]`` which patches were embedded, so that an embedding of other patches is
    refused later. Spots whose pixels cannot be read have NaN, and False in ``obs["patch_readable"]``, a column that is there
    only if there are such spots; training, prediction and scores leave them out.

    With ``out`` these arrays are dask arrays that stay in the store, which :func:`img2gene.io.open_table` opens later.

    Once ``img2gene.settings.cache_dir`` is set, embeddings are kept there by the pixels of each patch, the encoder's revision and
    the settings: patches that were embedded before are read, but not encoded again.

    A token averages the encoder's feature maps over its cell and over the orientations. Each orientation is turned back
    first, because the cells of a turned patch change places. ``color-texture`` describes each cell separately.

    Raises
    ------
    MissingKeyError
        The patches, the encoder or an image are missing.
    Img2GeneError
        An image or its transformation has changed since :func:`img2gene.pp.extract_patches`, an argument is invalid, an
        array of the same name is not an embedding of this encoder, the
        encoder's weights cannot be loaded, no pixels (or, with ``on_error="raise"``, not all) can be read, it gives no tokens,
        or ``tokens`` is not a square number. Or ``out`` holds something else, or cannot be written; finished parts are kept.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> sdata["table"].obsm["X_color-texture"].shape[1]
    50
    """
    check = Arguments()
    if not callable(encoder) and not isinstance(encoder, encoders.EncoderSpec):
        check.text("encoder", encoder)
    _check_number_of_tokens(check, tokens)
    orientations = checked_orientations(check, orientations)
    # `or` would not do for workers, because 0 is a choice: it decodes in this thread.
    workers = check.whole("num_workers", settings.num_workers if num_workers is None else num_workers, 0, _MAX_WORKERS)
    size = check.whole("batch_size", settings.batch_size if batch_size is None else batch_size, 1)
    if not isinstance(device, str) or device != "auto":
        check.device("device", device)
    checked_amp(check, amp)
    check.choice("backend", backend, ("auto", "torch", "onnx"))
    restained = check.whole("restained", restained, 0)
    check.choice("augment", augment, ("stain",), optional=True)
    target, client = check.path("out", out, optional=True), check_client(check, client)
    check.choice("on_error", on_error, ("nan", "raise"))
    check.flag("inplace", inplace)
    study = open_table(check, sdata, table_key)
    check.raise_all()
    spec = _spec(encoder)
    raise_problems(_foreign_arrays(study, spec.name) if inplace else [])
    patches = study.patches
    # Tokens are checked before weights are loaded, which can mean a download.
    if tokens is not None:
        _check_grid(spec, tokens, input_side(spec, patches))
    identity = embedding_identity(spec, patches, orientations, None if tokens is None else int(tokens), augment)
    plan = EmbeddingPlan(
        spec, {"device": device, "amp": amp, "backend": backend}, identity, size, workers, on_error == "nan"
    )
    embed = plan.embedder()
    features, cells = _embedded(study, plan, embed, target, client)
    changes = None
    if restained and study.table.n_vars:
        changes = stain_changes(study, embed.model, identity, size, workers, restained, settings.seed)
    update = _update(study, identity, features, cells, changes)
    update["obs"] = _readable_column(study, features)
    if not inplace:
        return update
    _schema.apply(study.table, update)
    return None


def _spec(encoder: Any) -> EncoderSpec:
    """Look up an encoder by its name, or make one of a module or function."""
    if isinstance(encoder, str):
        return resolved(encoders.get(encoder))
    if isinstance(encoder, encoders.EncoderSpec):
        encoders.register(encoder)
        return resolved(encoder)
    name = str(getattr(encoder, "__name__", type(encoder).__name__)).strip("<>").lower()
    try:
        return encoders.wrap(encoder, name)
    except Img2GeneError as error:
        raise Img2GeneError(
            f"{error}\nSuch a model is wrapped first: `img2gene.encoders.wrap(model, {name!r}, …)`, which takes its revision, mean, "
            "std and another name. Pass what it returns, or its name."
        ) from error


def _embedded(study: Study, plan: EmbeddingPlan, embed: Embedder, target: Path | None, client: Any) -> tuple[Any, Any]:
    """Features and tokens, as arrays, or as dask arrays of the store ``target``."""
    if target is None:
        return collected(plan.batches(study, embed, client), study.n_obs, plan.identity)
    name = plan.spec.name
    records = {"encoder": {name: plan.identity}, "patches": embedded_patches(study, name)}
    stored = StoredEmbedding(study, plan.identity, records, runtime(embed.model))
    table = stored.write(target, lambda rows: plan.batches(study, embed, client, rows))
    return table.obsm[_schema.embedding_key(name)], table.obsm.get(_schema.tokens_key(name))


def _readable_column(study: Study, features: Any) -> dict[str, Any]:
    """Mark and name the spots whose pixels could not be read; without any, remove the marks of an earlier call."""
    lost = np.asarray(np.isnan(features).any(axis=1))
    if not lost.any():
        return {_schema.PATCH_READABLE: None} if _schema.PATCH_READABLE in study.table.obs else {}
    if lost.all():
        raise Img2GeneError(
            f"The pixels of no spot of `{study.name}` can be read. Copy or export the image again; "
            'on_error="raise" says what is wrong.'
        )
    logger.warning(
        "the pixels of %d of %d spots cannot be read: %s. Their embedding is NaN, and obs['%s'] is False; pass "
        'on_error="raise" to see why',
        int(lost.sum()),
        study.n_obs,
        listing(study.table.obs_names[lost], 20),
        _schema.PATCH_READABLE,
    )
    return {_schema.PATCH_READABLE: ~lost}


def _foreign_arrays(study: Study, name: str) -> list[str]:
    """List arrays of the user that an encoder's embedding would replace, such as the principal components ``X_pca``."""
    if name in study.record("encoder", {}) or name in study.record(_schema.FORMER_ENCODERS, {}):
        return []
    keys = [
        key
        for key in (_schema.embedding_key(name), _schema.tokens_key(name), _schema.restained_key(name))
        if key in study.table.obsm
    ]
    return _schema.foreign_problems([f"obsm['{key}']" for key in keys], f"Rename or delete it in `{study.name}`")


def _check_number_of_tokens(check: Arguments, tokens: Any) -> None:
    """Check that ``tokens`` is the number of cells of a square grid, or None."""
    # `isqrt` refuses fractions and negative numbers with errors that do not name the argument.
    grid = math.isqrt(tokens) if isinstance(tokens, int | np.integer) and tokens > 0 else 0
    if tokens is not None and (grid < _MIN_GRID or grid**2 != tokens):
        check.messages.append(f"tokens={shown(tokens)}: expected the number of cells of a square grid, 9, 16, 25, …")


def _check_grid(spec: EncoderSpec, tokens: int, side: int) -> None:
    """Check that the encoder can give ``tokens`` for an input of ``side`` pixels."""
    grid = math.isqrt(tokens)
    if grid > side:
        raise Img2GeneError(f"tokens={tokens}: a grid of {grid} × {grid} cells is finer than the input of {side} px.")
    if not spec.token_width:
        known = encoders.list()
        raise Img2GeneError(
            f"Encoder `{spec.name}` gives no tokens (available: {listing(known.index[known['token_width'] > 0])}). "
            "Choose one that does, or leave out `tokens=`."
        )


def _update(
    study: Study, identity: dict[str, Any], features: Any, tokens: Any, changes: csr_matrix | None
) -> dict[str, dict[str, Any]]:
    """Build the update of the table; without new tokens or restained patches, stored ones are removed."""
    name = identity["name"]
    obsm: dict[str, Any] = {_schema.embedding_key(name): features}
    # What an earlier call stored would not belong to the new features.
    for key, values in ((_schema.tokens_key(name), tokens), (_schema.restained_key(name), changes)):
        if values is not None or key in study.table.obsm:
            obsm[key] = values
    encoder = {**study.record("encoder", {}), name: identity}
    return {"obsm": obsm, "uns": {"encoder": encoder, "patches": embedded_patches(study, name)}}
