"""Lay square tiles over a slide without expression, as a new region and table."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, MissingKeyError, missing
from img2gene._study.images import scale0
from img2gene._study.microns import image_mpp, warn_of_other_mpp
from img2gene._study.pyramids import thumbnail_and_lost
from img2gene._study.tissue import box_fractions, slide_tissue
from img2gene.pp._earlier_tiles import check_dependent_tables, remove_tiles, squares_name, taken_names
from img2gene.pp.patches import DEFAULT_FIELDS_UM, check_fields, check_resolution, extract_patches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

# A grid is cheap, but each kept tile needs 2 kB and 50 µs before it is embedded.
_MAX_GRID = 5_000_000
_MAX_TILES = 2_000_000


@fill_parameters
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
    resolution_um: float | None = None,
    patient: str | None = None,
    key_added: str = "slide_tiles",
    inplace: bool = True,
) -> AnnData | None:
    """Lay square tiles over the tissue of an image, ready to be embedded and predicted.

    The tissue is found by squidpy's detector (``squidpy.experimental.im.detect_tissue``, Otsu's threshold of
    brightness). Where it fails, or on a picture whose corners all hold tissue, Otsu's
    threshold of saturation takes its place, as in :func:`img2gene.pp.extract_patches`; a message names the detector.

    Pixels that cannot be read count as tissue, so that no tissue is lost without a word: tiles on them are kept, and
    :func:`img2gene.pp.embed_patches` gives them NaN and names them.

    Parameters
    ----------
    sdata
        Object with the image.
    image_key
        H&E image to tile.
    tile_um
        Side of a tile in µm.
    stride_um
        Distance of neighbouring tiles in µm; by default ``tile_um``, without gap or overlap. More than 2,000,000 tiles on
        tissue are refused.
    min_tissue
        Smallest tissue fraction of a tile that is kept, 0–1.
    mpp
        Microns per pixel of the scale-0 image. By default the value that is known from a region on this image, see
        :func:`img2gene.pp.extract_patches`.
    patch_um, patch_px
        Fields of view around each tile's centre, as in :func:`img2gene.pp.extract_patches`. Take the values that the
        model was trained with.
    %(resolution_um)s
    patient
        Patient from whom the slide comes, if known.
    key_added
        Name of the table; the squares are stored as ``shapes["<key_added>_squares"]``. LazySlide keeps tiles of its own as
        ``shapes["tiles"]``.
    inplace
        If False, nothing is written and the table is returned, without patches.

    Returns
    -------
    None, or the table. The call writes ``shapes["<key_added>_squares"]``, aligned with the image, and
    ``tables[key_added]`` (no genes) with the patches of :func:`img2gene.pp.extract_patches`; continue with
    ``img2gene.pp.embed_patches(sdata, table_key=key_added)``. Tiles of an earlier call with this ``key_added`` are replaced,
    with their embeddings.

    Raises
    ------
    Img2GeneError
        The image does not exist, none of its pixels can be read, microns per pixel are unknown, there is no tissue, there are
        too many tiles, or the name cannot be stored. Or an element of yours has the name, the earlier tiles have columns of yours, or
        another table, such as their predictions, belongs to them and would not fit the new tiles.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.tile_slide(sdata, "P1_S1_image", tile_um=200)
    >>> sdata["slide_tiles"].n_vars
    0
    """
    arguments = _checked(
        sdata,
        image_key,
        tile_um=tile_um,
        stride_um=stride_um,
        min_tissue=min_tissue,
        mpp=mpp,
        patch_um=patch_um,
        patch_px=patch_px,
        resolution_um=resolution_um,
        patient=patient,
        key_added=key_added,
        inplace=inplace,
    )
    centers = _tissue_centers(sdata, image_key, arguments)
    region = squares_name(key_added)
    table = _table(centers, image_key, arguments, region)
    if not inplace:
        return table
    squares = _squares(sdata, image_key, centers, arguments.side_px)
    check_dependent_tables(sdata, key_added, table, squares)
    with _schema.all_or_nothing(sdata):
        remove_tiles(sdata, key_added, image_key)
        sdata.shapes[region] = squares
        sdata.tables[key_added] = table
        extract_patches(
            sdata,
            patch_um=patch_um,
            patch_px=patch_px,
            images=image_key,
            mpp=arguments.mpp,
            resolution_um=resolution_um,
            table_key=key_added,
        )
    return None


@dataclass(frozen=True)
class _Tiling:
    """Sizes of the tiles, checked."""

    tile_um: float
    stride_um: float
    min_tissue: float
    mpp: float
    patient: str | None

    @property
    def side_px(self) -> float:
        """Side of a tile in pixels."""
        return self.tile_um / self.mpp

    @property
    def stride_px(self) -> float:
        """Distance of neighbouring tiles in pixels."""
        return self.stride_um / self.mpp


def _checked(sdata: SpatialData, image_key: Any, **arguments: Any) -> _Tiling:
    """Check all arguments together, and find microns per pixel."""
    check = Arguments()
    key_added, tile_um, stride_um = arguments["key_added"], arguments["tile_um"], arguments["stride_um"]
    check.text("image_key", image_key)
    tile_um = check.number("tile_um", tile_um, above=0)
    stride_um = tile_um if stride_um is None else check.number("stride_um", stride_um, above=0)
    min_tissue = check.number("min_tissue", arguments["min_tissue"], 0, 1)
    mpp = check.number("mpp", arguments["mpp"], above=0, optional=True)
    check_resolution(check, arguments["resolution_um"], check_fields(check, arguments["patch_um"]))
    check.whole("patch_px", arguments["patch_px"], 32)
    patient = check.text("patient", arguments["patient"], optional=True)
    check.flag("inplace", arguments["inplace"])
    with check.collect():
        _schema.check_name(key_added, "key_added")
    if not hasattr(sdata, "images"):
        check.messages.append(f"Expected a SpatialData with an image, got {type(sdata).__name__}.")
    elif isinstance(image_key, str) and image_key:
        with check.collect():
            if image_key not in sdata.images:
                raise MissingKeyError(missing(image_key, "sdata.images", sdata.images))
            check.messages += taken_names(sdata, key_added) if isinstance(key_added, str) else []
            if arguments["mpp"] is None:
                mpp = image_mpp(sdata, image_key)
            elif not check.messages:
                warn_of_other_mpp(sdata, image_key, mpp)
            if mpp is None:
                check.messages.append(f"Microns per pixel of `{image_key}` are not known; pass `mpp=`.")
    check.raise_all()
    tiling = _Tiling(tile_um, stride_um, min_tissue, mpp, patient)
    _check_number(scale0(sdata, image_key).shape[1:], tiling)
    return tiling


def _check_number(size: tuple[int, ...], tiling: _Tiling) -> None:
    """Refuse tiles of less than a pixel, tiles larger than the image, and too many of them."""
    height, width = size
    # Products do not fail for sizes near 0, as a quotient would.
    if height * width > _MAX_GRID * tiling.stride_px * tiling.stride_px:
        raise Img2GeneError(
            f"More than {_MAX_GRID:,} tiles: `tile_um` or `stride_um` is too small for this image, or `mpp` too large."
        )
    if min(tiling.side_px, tiling.stride_px) < 1 or tiling.side_px > 2 * max(size):
        raise Img2GeneError(
            f"tile_um={tiling.tile_um:g}, stride_um={tiling.stride_um:g}: tiles have {tiling.side_px:.4g} px every "
            f"{tiling.stride_px:.4g} px of the {height} × {width} px of the image ({tiling.mpp:.4g} µm per pixel). Choose "
            "sizes between one pixel and twice the image, or check `mpp`."
        )


def _tissue_centers(sdata: SpatialData, image_key: str, tiling: _Tiling) -> np.ndarray:
    """Return the centres (n, 2: row, column) of the tiles on tissue, and of those that may lie on tissue."""
    side = tiling.side_px
    corners = _grid(scale0(sdata, image_key).shape[1:], side, tiling.stride_px)
    boxes = np.column_stack([corners, corners + side])
    picture, step, lost = thumbnail_and_lost(sdata, image_key, max(1, int(side // 8)))
    if lost.all():
        raise Img2GeneError(f"No pixel of image `{image_key}` can be read. Copy or export the file again.")
    mask, detector = slide_tissue(picture)
    logger.info("tissue of `%s` was found by %s", image_key, detector)
    # Pixels that cannot be read may be tissue, so a tile on them is left out only if the others are too few for it.
    tissue = box_fractions(mask | lost, boxes, step)
    kept = tissue >= tiling.min_tissue
    if not kept.any():
        raise Img2GeneError(
            f"No tile of `{image_key}` has a tissue fraction of {tiling.min_tissue:g} (largest: {tissue.max():.2f}); lower "
            "`min_tissue`, or check `mpp` and the image."
        )
    _check_kept(int(kept.sum()), tiling)
    _warn_of_lost(image_key, kept, box_fractions(lost, boxes, step) > 0)
    return corners[kept] + side / 2


def _warn_of_lost(image_key: str, kept: np.ndarray, lost: np.ndarray) -> None:
    """Say how many of the tiles that are kept lie on pixels that cannot be read."""
    if (kept & lost).any():
        logger.warning(
            "%d of %d tiles of image `%s` lie on pixels that cannot be read. They are kept, as they may show tissue; "
            "`img2gene.pp.embed_patches` gives them NaN where their patches cannot be read either",
            int((kept & lost).sum()),
            int(kept.sum()),
            image_key,
        )


def _check_kept(n_tiles: int, tiling: _Tiling) -> None:
    """Refuse more tiles than memory and time allow, and suggest a stride."""
    if n_tiles > _MAX_TILES:
        stride = tiling.stride_um * np.sqrt(n_tiles / _MAX_TILES)
        raise Img2GeneError(
            f"{n_tiles:,} tiles lie on tissue, and at most {_MAX_TILES:,} can be stored. Pass `stride_um={1.05 * stride:.3g}` or "
            "more, raise `min_tissue`, or tile a part of the image."
        )


def _grid(size: tuple[int, ...], side: float, stride: float) -> np.ndarray:
    """Return top left corners (n, 2: row, column) of a grid centred on the image, with all tiles inside."""
    axes = []
    for length in size:
        n = int(max(length - side, 0) // stride) + 1
        axes.append((length - ((n - 1) * stride + side)) / 2 + stride * np.arange(n))
    rows, columns = np.meshgrid(*axes, indexing="ij")
    return np.column_stack([rows.ravel(), columns.ravel()])


def _table(centers: np.ndarray, image_key: str, tiling: _Tiling, region: str) -> AnnData:
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
    if tiling.patient is not None:
        obs["patient"] = pd.Categorical([tiling.patient] * n)
    # Nothing was measured here, so a prediction makes a table with the genes of its model.
    table = ad.AnnData(np.zeros((n, 0), dtype=np.float32), obs=obs)
    table.obsm["spatial"] = centers[:, ::-1].copy()
    record = {"mpp": tiling.mpp, "spot_um": tiling.tile_um, "image": image_key, "region": region}
    _schema.write_json(table, "sections", {section: record})
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
