"""Read pixels of chosen patches, and the trained model of an object."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._checks import Arguments, shown
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, listing
from img2gene._study.patches import Reading, stream_patches
from img2gene._study.study import Study

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from img2gene.models import Model

logger = logging.getLogger(__name__)


@fill_parameters
def patches(
    sdata: SpatialData, index: int | slice | np.ndarray | list, *, field: int = 0, table_key: str = "table"
) -> np.ndarray:
    """Read the pixels of chosen spots' patches, in the resolution of the image.

    Parameters
    ----------
    %(sdata_patches)s
    index
        Rows of the table: positions, a slice, a boolean mask, or names from ``obs_names``. All chosen spots must lie in
        sections with the same patch size in pixels.
    field
        Which field of view, in the order of ``patch_um``.
    table_key
        Table that ``index`` refers to.

    Returns
    -------
    uint8 (n, side, side, 3) in the order of ``index``; pixels outside the image are white, and so are those that cannot be
    read, which a warning names.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata)
    >>> ig.get.patches(sdata, [0, 5]).shape[0]
    2
    """
    check = Arguments()
    field = check.whole("field", field, 0)
    check.text("table_key", table_key)
    check.raise_all()
    study = Study.of(sdata, table_key)
    spec = study.patches
    if field >= len(spec["patch_um"]):
        raise Img2GeneError(
            f"field={field}: fields of view are 0 to {len(spec['patch_um']) - 1} ({listing(spec['patch_um'])} µm)."
        )
    rows = chosen_rows(study, index)
    sides = {
        spec["regions"][name]["side_px"][field]
        for name, members in study.regions.items()
        if np.isin(members, rows).any()
    }
    # One array holds all patches.
    if len(sides) > 1:
        raise Img2GeneError(
            f"The chosen spots have patches of {listing(sorted(sides))} px; ask for one section at a time."
        )
    side = sides.pop() if sides else 0
    pixels = np.zeros((len(rows), side, side, 3), dtype=np.uint8)
    n_lost = 0
    for streamed, windows in stream_patches(study, 64, 0, np.unique(rows), Reading(skip_unreadable=True)):
        n_lost += int(windows.unreadable.sum())
        for row, window in zip(streamed, windows.fields[field], strict=True):
            # A spot that was chosen several times has several places.
            pixels[rows == row] = window
    if n_lost:
        logger.warning("%d patches have pixels that cannot be read, which are white", n_lost)
    return pixels


def chosen_rows(study: Study, index: Any) -> np.ndarray:
    """Convert positions, a slice, a mask or names to rows; refuse those that the table does not have."""
    names = study.table.obs_names
    chosen = _slice(index, len(names)) if isinstance(index, slice) else _listed(index)
    if chosen.dtype == bool:
        if len(chosen) != len(names):
            raise Img2GeneError(f"The mask has {len(chosen)} values for {len(names)} spots.")
        return np.flatnonzero(chosen)
    if chosen.dtype.kind in "UOT":
        return _named(study, chosen)
    outside = chosen[(chosen < -len(names)) | (chosen >= len(names))]
    if len(outside):
        raise Img2GeneError(f"Row {outside[0]} is out of range: the table has {len(names)} spots.")
    # Negative positions count from the end.
    return chosen.astype(np.int64) % max(len(names), 1)


def _slice(index: slice, n: int) -> np.ndarray:
    try:
        return np.arange(n)[index]
    except (TypeError, ValueError, IndexError) as error:
        raise Img2GeneError(f"index={shown(index)}: expected whole numbers in the slice.") from error


def _listed(index: Any) -> np.ndarray:
    """Convert one choice or several to truth values, whole numbers or names, (n,)."""
    expected = "expected positions, names, a mask or a slice of the rows of the table"
    # A set has no order, and a generator no length.
    if index is None or isinstance(index, set | frozenset | bytes | dict):
        raise Img2GeneError(f"index={shown(index)}: {expected}.")
    try:
        chosen = np.atleast_1d(np.asarray(index))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise Img2GeneError(f"index={shown(index)}: {expected}.") from error
    if not chosen.size and chosen.ndim == 1:
        return chosen.astype(np.int64)
    named = chosen.dtype.kind in "UT" or (chosen.dtype.kind == "O" and all(isinstance(name, str) for name in chosen))
    if chosen.ndim != 1 or not (named or chosen.dtype.kind in "biu") or np.ma.is_masked(index):
        raise Img2GeneError(f"index={shown(index)}: {expected}.")
    return chosen


def _named(study: Study, chosen: np.ndarray) -> np.ndarray:
    names = study.table.obs_names
    if not names.is_unique:
        raise Img2GeneError(
            f"`{study.name}.obs_names` are not unique, so names choose no spot. Call `obs_names_make_unique()`, or pass "
            "positions."
        )
    rows = names.get_indexer(chosen)
    if (rows < 0).any():
        raise Img2GeneError(f"No spots named {listing(chosen[rows < 0])} (available: {listing(names, 5)}).")
    return rows


@fill_parameters
def model(sdata: SpatialData, key: str = "img2gene", *, table_key: str = "table") -> Model:
    """Return the trained model that :func:`img2gene.tl.fit` stored in an object.

    Parameters
    ----------
    sdata
        Study that holds the model.
    key
        Name of the model: the ``key_added`` of :func:`img2gene.tl.fit`.
    %(table_key_trained)s

    Raises
    ------
    MissingKeyError
        No model is stored under this key; the message lists the stored ones.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "ridge")
    >>> ig.get.model(sdata).name
    'ridge'
    """
    from img2gene.io.model_store import read_model

    check = Arguments()
    check.text("key", key)
    check.text("table_key", table_key)
    check.raise_all()
    return read_model(_schema.get_table(sdata, table_key), key)
