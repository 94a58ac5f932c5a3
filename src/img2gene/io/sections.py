"""Assemble one section as a SpatialData. No other module decides how image, spots and table are laid out."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._errors import listing, raise_problems
from img2gene._study.entrance import column_problems, number_problems, object_problems
from img2gene._study.expression import count_problems, layer_problems, name_problems, row_sums
from img2gene._study.sections import column_texts

if TYPE_CHECKING:
    import dask.array as da
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

# squidpy draws the whole thumbnail under the spots; more pixels would not show at the usual figure size.
THUMBNAIL_PX = 600
# Names of the columns of positions, as programs write them: y, center_y, array_row, pxl_row_in_fullres.
_ROWS, _COLUMNS = (re.compile(rf"(^|_){end}(_|$)", flags=re.IGNORECASE) for end in ("(y|row)", "(x|col)"))
_OWN = ("region", "spot_id", _schema.SECTION, _schema.PATIENT, _schema.LIBRARY_SIZE)
# Larger than the usual patch, so that reading a patch touches at most four chunks.
_CHUNK_PX = 1024


def build_section(
    image: np.ndarray | da.Array,
    xy: np.ndarray,
    table: AnnData,
    *,
    section: str,
    patient: str | None,
    mpp: float,
    spot_um: float,
) -> SpatialData:
    """Join an RGB image, spot centres and counts into a SpatialData with one section.

    All readers of this package call this function. Call it from a reader of your own for another platform.

    Parameters
    ----------
    image
        uint8 (height, width, 3), 0–255 RGB, in memory or as a dask array.
    xy
        (n_obs, 2) spot centres as (column, row) in pixels of ``image``.
    table
        Raw counts (n_obs, n_genes), one row per spot in the order of ``xy``. The table is changed in place and not
        copied. It gets ``obs["region"]``, ``obs["section"]``, ``obs["spot_id"]``, ``obsm["spatial"]``, and
        ``obs["patient"]`` unless ``patient`` is None. ``obs["library_size"]`` (counts per spot over the full
        transcriptome) is kept, or else computed from ``X``.
    section
        Name of the section. It also names the coordinate system and begins the names of the elements.
    patient
        Name of the donor, or None if it is not known.
    mpp
        Microns per pixel of ``image``.
    spot_um
        Spot diameter in µm.

    Returns
    -------
    SpatialData with ``images["<section>_image"]``, ``shapes["<section>_spots"]`` (circles, in pixels) and
    ``tables["table"]``, all in the coordinate system ``<section>``.

    Raises
    ------
    Img2GeneError
        The image is not uint8 RGB, the table is no AnnData with counts, ``xy`` does not hold one finite position per
        row, a size is not a positive number, the name of the section cannot be stored, or the table has columns of
        these names with other values. The message lists all problems, and the table stays as it was.

    Examples
    --------
    >>> import anndata as ad
    >>> import numpy as np
    >>> import img2gene as ig
    >>> image = np.full((200, 200, 3), 230, dtype=np.uint8)
    >>> counts = ad.AnnData(np.ones((2, 3), dtype=np.float32))
    >>> spots = np.array([[60.0, 100.0], [140.0, 100.0]])
    >>> sdata = ig.io.build_section(image, spots, counts, section="S1", patient="P1", mpp=1.0, spot_um=55.0)
    >>> list(sdata.shapes)
    ['S1_spots']
    """
    patient, mpp, spot_um = _check(image, xy, table, section, patient, mpp, spot_um)
    region = f"{section}_spots"
    columns = _columns(table.n_obs, region, section, patient)
    raise_problems(_column_problems(table, columns))
    with _schema.all_or_nothing(table):
        for name, values in columns.items():
            table.obs[name] = values
        return assemble_section(image, xy, table, section=section, mpp=mpp, spot_um=spot_um)


def assemble_section(
    image: np.ndarray | da.Array,
    xy: np.ndarray,
    table: AnnData,
    *,
    section: str,
    mpp: float,
    spot_um: float,
    region_key: str = "region",
    instance_key: str = "spot_id",
) -> SpatialData:
    """Join checked parts of a section; ``obs`` of the table already names region and instance of each spot."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity

    image_key, region = f"{section}_image", f"{section}_spots"
    positions = np.asarray(xy, dtype=float)
    radius = spot_um / mpp / 2
    circles = ShapesModel.parse(
        positions,
        geometry=0,
        radius=np.full(len(positions), radius),
        index=table.obs[instance_key].to_numpy(),
        transformations={section: Identity()},
    )
    picture = Image2DModel.parse(
        image.transpose(2, 0, 1),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={section: Identity()},
        # The chunks of a lazy image are those of its file.
        chunks=(3, _CHUNK_PX, _CHUNK_PX) if isinstance(image, np.ndarray) else None,
    )
    record: dict[str, Any] = {"mpp": mpp, "spot_um": spot_um, "image": image_key, "region": region}
    if _schema.LIBRARY_SIZE not in table.obs and not count_problems(table.X, "X"):
        table.obs[_schema.LIBRARY_SIZE] = row_sums(table.X)
        record["counted_genes"] = table.n_vars
    table.obsm["spatial"] = positions
    _schema.write_json(table, "sections", {section: record})
    table.uns["spatial"] = {section: squidpy_library(image, 2 * radius)}
    # spatialdata refuses a table that was parsed before.
    table.uns.pop("spatialdata_attrs", None)
    _make_storable(table, {region_key, instance_key, *_OWN})
    parsed = TableModel.parse(table, region=region, region_key=region_key, instance_key=instance_key)
    return SpatialData(images={image_key: picture}, shapes={region: circles}, tables={"table": parsed})


def _make_storable(table: AnnData, own: set[str]) -> None:
    """Rename columns and keys that spatialdata cannot store, such as ``cell type``; a warning lists them.

    Of names that differ in case only, those in ``own`` stay.
    """
    from spatialdata import sanitize_name, sanitize_table

    slots = ("obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns")
    before = {slot: list(getattr(table, slot).keys()) for slot in slots}
    if all(
        len({str(name).lower() for name in names}) == len(names)
        and all(sanitize_name(name, slot in ("obs", "var")) == name for name in names)
        for slot, names in before.items()
    ):
        return
    table.obs = table.obs[sorted(before["obs"], key=lambda name: name not in own)]
    ranked = list(table.obs)
    sanitize_table(table)
    stored = dict(zip(ranked, table.obs, strict=True))
    table.obs = table.obs[[stored[name] for name in before["obs"]]]
    renamed = [
        f"{slot}[{old!r}] to {new!r}"
        for slot, names in before.items()
        for old, new in zip(names, getattr(table, slot).keys(), strict=True)
        if old != new
    ]
    if renamed:
        logger.warning("renamed %s: these names cannot be stored", listing(renamed))


def _check(
    image: Any, xy: Any, table: Any, section: Any, patient: Any, mpp: Any, spot_um: Any
) -> tuple[str | None, float, float]:
    """Check all arguments; return the name of the donor and the sizes, converted."""
    check = Arguments()
    with check.collect():
        _schema.check_name(section, "section")
    check.messages += [*image_problems(image), *_spot_problems(xy, table)]
    patient = check.label("patient", patient, optional=True)
    mpp = check.number("mpp", mpp, above=0)
    spot_um = check.number("spot_um", spot_um, above=0)
    if not check.messages and not 0 < spot_um / mpp < np.inf:
        check.messages.append(f"spot_um={spot_um!r} and mpp={mpp!r} give a spot of {spot_um / mpp:g} pixels.")
    check.raise_all()
    return patient, mpp, spot_um


def image_problems(image: Any) -> list[str]:
    """List why an array cannot be the image of a section."""
    import dask.array as da

    if not isinstance(image, np.ndarray | da.Array):
        return [f"`image` is a {type(image).__name__}; expected an array uint8 (height, width, 3)."]
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return []
    return [
        f"`image` has type {image.dtype} and shape {image.shape}; expected uint8 (height, width, 3). Convert it with "
        "`PIL.Image.convert('RGB')`."
    ]


def _spot_problems(xy: Any, table: Any) -> list[str]:
    from anndata import AnnData

    if not isinstance(table, AnnData):
        return [f"`table` is a {type(table).__name__}; expected an AnnData with raw counts."]
    problems = [] if table.X is not None and table.n_obs else ["`table` has no counts; put raw counts into `table.X`."]
    if table.isbacked:
        problems.append("`table` is backed by a file; pass `table.to_memory()`.")
    unreadable = column_problems(table, "table")
    if unreadable:
        return problems + unreadable
    problems += name_problems(table, "table") + object_problems(table.obs, "table.obs")
    problems += number_problems(table.X, "`table.X`")
    return problems + position_problems(xy, table.n_obs, "`xy`", "`table`")


def position_problems(xy: Any, n_obs: int, name: str, table: str) -> list[str]:
    """List why an array cannot hold one (x, y) per row of a table."""
    try:
        is_masked = isinstance(xy, np.ma.MaskedArray) and np.ma.is_masked(xy)
        places = np.asarray(xy, dtype=float) if np.isrealobj(xy) and not is_masked else None
    except (TypeError, ValueError, OverflowError):
        places = None
    if places is None:
        return [f"{name} holds values that are not numbers, or masks some; expected an array ({n_obs}, 2)."]
    if places.shape != (n_obs, 2):
        return [f"{name} has shape {places.shape}; expected ({n_obs}, 2), one row per row of {table}."]
    columns = [str(column) for column in getattr(xy, "columns", ())]
    if len(columns) == 2 and _ROWS.search(columns[0]) and _COLUMNS.search(columns[1]):
        return [f"{name} has the columns {columns[0]}, {columns[1]}; expected x (column), then y (row): exchange them."]
    bad = int((~np.isfinite(places)).any(axis=1).sum())
    return [f"{name} holds NaN or infinite positions in {bad} rows; leave out spots without a position."] * bool(bad)


def squidpy_library(image: np.ndarray | da.Array, spot_px: float) -> dict:
    """Return the thumbnail and the scale factors of one section in the layout of ``uns["spatial"]``."""
    step = max(1, int(np.ceil(max(image.shape[:2]) / THUMBNAIL_PX)))
    return {
        "images": {"hires": np.ascontiguousarray(np.asarray(image[::step, ::step]))},
        "scalefactors": {"tissue_hires_scalef": 1 / step, "spot_diameter_fullres": float(spot_px)},
    }


def _columns(n_obs: int, region: str, section: str, patient: str | None) -> dict[str, Any]:
    """Build the columns of ``obs`` that say where the spots of a section belong."""
    import pandas as pd

    texts = {"region": region, _schema.SECTION: section, _schema.PATIENT: patient}
    columns: dict[str, Any] = {name: pd.Categorical([text] * n_obs) for name, text in texts.items() if text is not None}
    return columns | {"spot_id": np.arange(n_obs)}


def _column_problems(table: AnnData, columns: dict[str, Any]) -> list[str]:
    """List columns of the user that a section would overwrite with other values."""
    clashes = [
        name
        for name, values in columns.items()
        if name in table.obs and column_texts(table.obs[name]).tolist() != [str(value) for value in values]
    ]
    problems = [
        f"`table.obs` already has {listing(clashes)} with other values, which would be overwritten. Rename or drop "
        f"these columns."
    ] * bool(clashes)
    return problems + size_problems(table, "table")


def size_problems(table: AnnData, name: str) -> list[str]:
    """List why the user's library sizes cannot be kept; empty without any, and if X holds no counts to compare with."""
    if _schema.LIBRARY_SIZE not in table.obs or count_problems(table.X, "X"):
        return []
    return layer_problems(table, None, name)
