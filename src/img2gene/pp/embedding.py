"""Stream the pixels of every patch through an image encoder."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema, encoders
from img2gene._checks import Arguments, shown
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene._study.embedding import checked_orientations, embedding_identity, input_side, stream_embedding
from img2gene._study.entrance import open_table
from img2gene._study.origins import embedded_patches
from img2gene._study.study import Study
from img2gene.encoders.base import checked_amp
from img2gene.settings import settings

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from img2gene.encoders import EncoderSpec

logger = logging.getLogger(__name__)

_MIN_GRID = 3
# Each worker is a thread, and systems refuse to start tens of thousands.
_MAX_WORKERS = 1024


@fill_parameters
def embed_patches(
    sdata: SpatialData,
    encoder: str = "default",
    *,
    tokens: int | None = None,
    orientations: int = 2,
    table_key: str = "table",
    batch_size: int | None = None,
    num_workers: int | None = None,
    device: str | None = None,
    amp: bool | str | None = None,
    backend: str = "auto",
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
        Registered encoder, see :func:`img2gene.encoders.list`; ``"default"`` is the offline ``"efficientnet-lite0"``.
    tokens
        Also keep this many tokens of the first field of view, for models that attend to positions within a patch.
        Tokens are the cells of a square grid over the patch: 9, 16, 25, … None keeps no tokens, and removes the tokens
        of an earlier call.
    orientations
        Average the features over this many orientations of each patch: 1, 2 (with the mirror image at the diagonal), 4
        (quarter turns) or 8 (all). Each orientation costs one forward pass. Averaging helps most if patients or stains
        differ.
    table_key
        Table whose patches are embedded.
    batch_size
        Spots per forward pass; None takes ``img2gene.settings.batch_size``.
    num_workers
        Threads that decode pixels ahead; None takes ``img2gene.settings.num_workers``, 0 decodes in this thread.
    device, amp, backend
        As in :func:`img2gene.encoders.load`.
    on_error
        What to do about pixels that cannot be decoded, as in a file that was cut: ``"nan"`` embeds all other spots and
        names those that touch such pixels, ``"raise"`` raises.
    %(inplace_update)s

    Returns
    -------
    None, or the update. The call writes ``obsm["X_<encoder>"]`` (float32 (n_obs, n_fields · width), the fields of view
    one after the other), with ``tokens`` also ``obsm["X_<encoder>_tokens"]`` (float16 (n_obs, tokens, token_width), the
    cells row by row from the top left of the patch), and the encoder's identity in ``uns["img2gene"]["encoder"]``. It
    also notes in ``uns["img2gene"]["patches"]`` which patches were embedded, so that an embedding of other patches is
    refused later. Spots whose pixels cannot be read have NaN, and False in ``obs["patch_readable"]``, a column that is there
    only if there are such spots; training, prediction and scores leave them out.

    A token averages the encoder's feature maps over its cell and over the orientations. Each orientation is turned back
    first, because the cells of a turned patch change places. ``color-texture`` describes each cell separately.

    Raises
    ------
    MissingKeyError
        The patches, the encoder or an image are missing.
    Img2GeneError
        An image or its transformation has changed since :func:`img2gene.pp.extract_patches`, an argument is invalid, an
        array of the same name is not an embedding of this encoder, the
        encoder's weights cannot be loaded, no pixels (or, with ``on_error="raise"``, not all) can be read, it gives no tokens, or ``tokens`` is not a square number.

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
    check.choice("on_error", on_error, ("nan", "raise"))
    check.flag("inplace", inplace)
    study = open_table(check, sdata, table_key)
    check.raise_all()
    spec = encoders.get(encoder)
    raise_problems(_foreign_arrays(study, spec.name) if inplace else [])
    patches = study.patches
    # Tokens are checked before weights are loaded, which can mean a download.
    if tokens is not None:
        _check_grid(spec, tokens, input_side(spec, patches))
    model = encoders.load(encoder, device=device, amp=amp, backend=backend)
    identity = embedding_identity(spec, patches, orientations, None if tokens is None else int(tokens))
    features, cells = stream_embedding(study, model, identity, size, workers, skip_unreadable=on_error == "nan")
    update = _update(study, identity, features, cells)
    update["obs"] = _readable_column(study, features)
    if not inplace:
        return update
    _schema.apply(study.table, update)
    return None


def _readable_column(study: Study, features: np.ndarray) -> dict[str, Any]:
    """Mark and name the spots whose pixels could not be read; without any, remove the marks of an earlier call."""
    lost = np.isnan(features).any(axis=1)
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
    keys = [key for key in (_schema.embedding_key(name), _schema.tokens_key(name)) if key in study.table.obsm]
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
    study: Study, identity: dict[str, Any], features: np.ndarray, tokens: np.ndarray | None
) -> dict[str, dict[str, Any]]:
    """Build the update of the table; without new tokens, stored ones are removed."""
    name = identity["name"]
    obsm: dict[str, Any] = {_schema.embedding_key(name): features}
    # Tokens of an earlier call would not belong to the new features.
    if tokens is not None or _schema.tokens_key(name) in study.table.obsm:
        obsm[_schema.tokens_key(name)] = tokens
    encoder = {**study.record("encoder", {}), name: identity}
    return {"obsm": obsm, "uns": {"encoder": encoder, "patches": embedded_patches(study, name)}}
