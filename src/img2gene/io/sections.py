"""Assemble one section as a SpatialData. No other module decides how image, spots and table are laid out."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from img2gene import _schema
from img2gene._errors import Problems

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

# squidpy draws the whole thumbnail under the spots; more pixels would not show at the usual figure size.
_THUMBNAIL_PX = 600
# Larger than the usual patch, so that reading a patch touches at most four chunks.
_CHUNK_PX = 1024


def build_section(
    image: np.ndarray,
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
        uint8 (height, width, 3), 0–255 RGB.
    xy
        (n_obs, 2) spot centres as (column, row) in pixels of ``image``.
    table
        Raw counts (n_obs, n_genes), one row per spot in the order of ``xy``. The table is changed in place and not
        copied. It gets ``obs["region"]``, ``obs["section"]``, ``obs["spot_id"]``, ``obs["library_size"]`` (counts per
        spot), ``obsm["spatial"]``, and ``obs["patient"]`` unless ``patient`` is None.
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
        row, a size is not a positive number, or the name of the section cannot be stored. The message lists all
        problems.

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
    _check(image, xy, table, section, mpp, spot_um)
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel
    from spatialdata.transformations import Identity

    image_key, region = f"{section}_image", f"{section}_spots"
    radius = spot_um / mpp / 2
    spot_ids = np.arange(len(xy))
    circles = ShapesModel.parse(
        np.asarray(xy, dtype=float),
        geometry=0,
        radius=np.full(len(xy), radius),
        index=spot_ids,
        transformations={section: Identity()},
    )
    picture = Image2DModel.parse(
        np.moveaxis(image, -1, 0),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={section: Identity()},
        chunks=(3, _CHUNK_PX, _CHUNK_PX),
    )
    _annotate(table, xy, region=region, section=section, patient=patient, spot_ids=spot_ids)
    _schema.write_json(
        table, "sections", {section: {"mpp": mpp, "spot_um": spot_um, "image": image_key, "region": region}}
    )
    table.uns["spatial"] = {section: squidpy_library(image, 2 * radius)}
    return SpatialData(
        images={image_key: picture}, shapes={region: circles}, tables={"table": _parse_table(table, region)}
    )


def _check(image: np.ndarray, xy: np.ndarray, table: AnnData, section: str, mpp: float, spot_um: float) -> None:
    problems = Problems()
    with problems.collect():
        _schema.check_name(section, "section")
    problems.messages += [*_image_problems(image), *_spot_problems(xy, table)]
    for name, value in (("mpp", mpp), ("spot_um", spot_um)):
        if not isinstance(value, Real) or not (np.isfinite(value) and value > 0):
            problems.messages.append(f"{name}={value!r}: expected a positive number of microns.")
    problems.raise_all()


def _image_problems(image: np.ndarray) -> list[str]:
    if not isinstance(image, np.ndarray):
        return [f"`image` is a {type(image).__name__}; expected an array uint8 (height, width, 3)."]
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return []
    return [
        f"`image` has type {image.dtype} and shape {image.shape}; expected uint8 (height, width, 3). Convert it with "
        "`PIL.Image.convert('RGB')`."
    ]


def _spot_problems(xy: np.ndarray, table: AnnData) -> list[str]:
    from anndata import AnnData

    if not isinstance(table, AnnData):
        return [f"`table` is a {type(table).__name__}; expected an AnnData with raw counts."]
    problems = [] if table.X is not None and table.n_obs else ["`table` has no counts; put raw counts into `table.X`."]
    try:
        places = np.asarray(xy, dtype=float)
    except (TypeError, ValueError):
        return [*problems, f"`xy` holds values that are not numbers; expected an array ({table.n_obs}, 2)."]
    if places.shape != (table.n_obs, 2):
        problems.append(f"`xy` has shape {places.shape}; expected ({table.n_obs}, 2), one row per row of `table`.")
    elif not np.isfinite(places).all():
        problems.append("`xy` holds NaN or infinite positions; leave out spots without a position.")
    return problems


def squidpy_library(image: np.ndarray, spot_px: float) -> dict:
    """Return the thumbnail and the scale factors of one section in the layout of ``uns["spatial"]``."""
    step = max(1, int(np.ceil(max(image.shape[:2]) / _THUMBNAIL_PX)))
    return {
        "images": {"hires": np.ascontiguousarray(image[::step, ::step])},
        "scalefactors": {"tissue_hires_scalef": 1 / step, "spot_diameter_fullres": float(spot_px)},
    }


def _annotate(
    table: AnnData, xy: np.ndarray, *, region: str, section: str, patient: str | None, spot_ids: np.ndarray
) -> None:
    import pandas as pd

    n = table.n_obs
    table.obs["region"] = pd.Categorical([region] * n)
    table.obs["section"] = pd.Categorical([section] * n)
    if patient is not None:
        table.obs["patient"] = pd.Categorical([patient] * n)
    table.obs["spot_id"] = spot_ids
    table.obs[_schema.LIBRARY_SIZE] = np.asarray(table.X.sum(axis=1), dtype=np.float64).ravel()
    table.obsm["spatial"] = np.asarray(xy, dtype=float)


def _parse_table(table: AnnData, region: str) -> AnnData:
    from spatialdata.models import TableModel

    return TableModel.parse(table, region=region, region_key="region", instance_key="spot_id")
