"""Lay square tiles over a slide without expression, as a new region and table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, missing, raise_problems
from img2gene._study.images import scale0, thumbnail
from img2gene._study.tissue import box_fractions, tissue_mask
from img2gene.pp.patches import DEFAULT_FIELDS_UM, extract_patches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

_MAX_TILES = 5_000_000


def tile_slide(
    sdata: SpatialData,
    image_key: str,
    *,
    tile_um: float = 112.0,
    stride_um: float | None = None,
    min_tissue: float = 0.3,
    mpp: float | None = None,
    patch_um: float | Sequence[float] = DEFAULT_FIELDS_UM,
    patch_px: int = 224,
    patient: str | None = None,
    key_added: str = "tiles",
    inplace: bool = True,
) -> AnnData | None:
    """Lay square tiles over the tissue of an image, ready to be embedded and predicted.

    Parameters
    ----------
    sdata
        Object with the image.
    image_key
        H&E image to tile.
    tile_um
        Side of a tile in µm.
    stride_um
        Distance of neighbouring tiles in µm; by default ``tile_um``, without gap or overlap.
    min_tissue
        Smallest tissue fraction of a tile that is kept, 0–1.
    mpp
        Microns per pixel of the scale-0 image. By default the value that a reader recorded for a region on this image.
    patch_um, patch_px
        Fields of view around each tile's centre, as in :func:`img2gene.pp.extract_patches`. Take the values that the
        model was trained with.
    patient
        Patient from whom the slide comes, if known.
    key_added
        Name of the table; the squares are stored as ``shapes["<key_added>_squares"]``.
    inplace
        If False, nothing is written and the table is returned, without patches.

    Returns
    -------
    None, or the table. The call writes ``shapes["<key_added>_squares"]``, aligned with the image, and
    ``tables[key_added]`` (no genes) with the patches of :func:`img2gene.pp.extract_patches`; continue with
    ``img2gene.pp.embed_patches(sdata, table_key=key_added)``.

    Raises
    ------
    Img2GeneError
        The image does not exist, microns per pixel are unknown, there is no tissue, or the name is taken or cannot be
        stored.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.tile_slide(sdata, "P1_S1_image", tile_um=200)
    >>> sdata["tiles"].n_vars
    0
    """
    mpp = _checked_mpp(sdata, image_key, key_added, tile_um, stride_um, min_tissue, mpp)
    size = scale0(sdata.images[image_key]).shape[1:]
    side, stride = tile_um / mpp, (stride_um or tile_um) / mpp
    corners = _grid(size, side, stride)
    picture, step = thumbnail(sdata, image_key, max(1, int(side // 8)))
    boxes = np.column_stack([corners, corners + side])
    tissue = box_fractions(tissue_mask(picture), boxes, step)
    kept = tissue >= min_tissue
    if not kept.any():
        raise Img2GeneError(
            f"No tile of `{image_key}` has a tissue fraction of {min_tissue:g} (largest: {tissue.max():.2f}); lower "
            "`min_tissue`, or check `mpp` and the image."
        )
    centers = corners[kept] + side / 2
    table = _table(centers, image_key, patient, mpp, tile_um, f"{key_added}_squares")
    if not inplace:
        return table
    sdata.shapes[f"{key_added}_squares"] = _squares(sdata, image_key, centers, side)
    sdata.tables[key_added] = table
    try:
        extract_patches(sdata, patch_um=patch_um, patch_px=patch_px, images=image_key, mpp=mpp, table_key=key_added)
    except Img2GeneError:
        # A failed call leaves the object as it was.
        del sdata.tables[key_added], sdata.shapes[f"{key_added}_squares"]
        raise
    return None


def _checked_mpp(
    sdata: SpatialData,
    image_key: str,
    key_added: str,
    tile_um: float,
    stride_um: float | None,
    min_tissue: float,
    mpp: float | None,
) -> float:
    """Check all arguments together, and return microns per pixel."""
    _schema.check_name(key_added, "key_added")
    if image_key not in sdata.images:
        raise MissingKeyError(missing(image_key, "sdata.images", sdata.images))
    problems = []
    for name, value in (("tile_um", tile_um), ("stride_um", stride_um), ("mpp", mpp)):
        if value is not None and not (np.isfinite(value) and value > 0):
            problems.append(f"{name}={value!r}: expected a positive number of microns.")
    if not 0 <= min_tissue <= 1:
        problems.append(f"min_tissue={min_tissue!r}: expected a fraction from 0 to 1.")
    # spatialdata wants a name once among elements of all kinds.
    taken = {*sdata.images, *sdata.labels, *sdata.points, *sdata.shapes, *sdata.tables}
    problems += [
        f"`{name}` exists in the object already; choose another `key_added` or delete it first."
        for name in (key_added, f"{key_added}_squares")
        if name in taken
    ]
    mpp = mpp if mpp is not None else _recorded_mpp(sdata, image_key)
    if mpp is None:
        problems.append(f"Microns per pixel of `{image_key}` are not known; pass `mpp=`.")
    # The number of tiles can be computed only from valid sizes.
    elif (
        not problems
        and np.prod(scale0(sdata.images[image_key]).shape[1:]) * (mpp / (stride_um or tile_um)) ** 2 > _MAX_TILES
    ):
        problems.append(f"More than {_MAX_TILES:,} tiles: `tile_um` or `stride_um` is too small for this image.")
    raise_problems(problems)
    return float(mpp)  # type: ignore[arg-type]


def _recorded_mpp(sdata: SpatialData, image_key: str) -> float | None:
    """Find microns per pixel that a reader or an earlier `extract_patches` recorded for the image, in any table."""
    for table in sdata.tables.values():
        for entry in _schema.read_json(table, "patches", default={}).get("regions", {}).values():
            if entry["image"] == image_key:
                return float(entry["mpp"])
        for entry in _schema.read_json(table, "sections", default={}).values():
            if entry.get("image") == image_key:
                return float(entry["mpp"])
    return None


def _grid(size: tuple[int, ...], side: float, stride: float) -> np.ndarray:
    """Return top left corners (n, 2: row, column) of a grid centred on the image, with all tiles inside."""
    axes = []
    for length in size:
        n = int(max(length - side, 0) // stride) + 1
        axes.append((length - ((n - 1) * stride + side)) / 2 + stride * np.arange(n))
    rows, columns = np.meshgrid(*axes, indexing="ij")
    return np.column_stack([rows.ravel(), columns.ravel()])


def _table(
    centers: np.ndarray, image_key: str, patient: str | None, mpp: float, tile_um: float, region: str
) -> AnnData:
    """Build the table of the tiles, which has no genes."""
    import anndata as ad
    from spatialdata.models import TableModel

    n = len(centers)
    # Readers of this package call the image of a section `<section>_image`.
    section = image_key.removesuffix("_image")
    obs = pd.DataFrame(
        {"region": pd.Categorical([region] * n), "section": pd.Categorical([section] * n), "tile_id": np.arange(n)},
        index=[f"{section}_tile{i}" for i in range(n)],
    )
    if patient is not None:
        obs["patient"] = pd.Categorical([patient] * n)
    # Nothing was measured here, so a prediction makes a table with the genes of its model.
    table = ad.AnnData(np.zeros((n, 0), dtype=np.float32), obs=obs)
    table.obsm["spatial"] = centers[:, ::-1].copy()
    _schema.write_json(
        table, "sections", {section: {"mpp": mpp, "spot_um": tile_um, "image": image_key, "region": region}}
    )
    return TableModel.parse(table, region=region, region_key="region", instance_key="tile_id")


def _squares(sdata: SpatialData, image_key: str, centers: np.ndarray, side: float) -> GeoDataFrame:
    """Build the squares, aligned with the image."""
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    y, x = (centers - side / 2).T
    frame = gpd.GeoDataFrame(geometry=shapely.box(x, y, x + side, y + side))
    # Squares are drawn in the image's own pixels, so they share all of its transformations.
    return ShapesModel.parse(frame, transformations=dict(get_transformation(sdata.images[image_key], get_all=True)))
