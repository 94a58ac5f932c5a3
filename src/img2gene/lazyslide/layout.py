"""Where LazySlide keeps the tiles of a slide, their size in pixels and microns, and their features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._checks import shown
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

TILE_SPEC, SLIDE = "tile_spec", "slide_properties"
TILE_ID, LIBRARY = "tile_id", "library_id"
# Column of the tiles of spots, which names the spot of each.
SPOT = "img2gene_spot"
_TILE = "Run `lazyslide.pp.tile_tissues`, or pass the name of the tiles as `tile_key=`."
# Tiles have whole pixels at full resolution, so their side differs from the stated one by less than a pixel.
ROUNDING_PX = 1.5


@dataclass(frozen=True)
class Tiles:
    """The tiles of a slide in LazySlide's layout.

    Attributes
    ----------
    key
        Name of the shapes.
    ids
        int (n_tiles,): number of each tile, by which feature tables name it.
    boxes
        float (n_tiles, 4: y0, x0, y1, x1) in pixels of the full resolution.
    side_px
        Side that tiles are read with, in pixels that the encoder's transform gets.
    tile_um
        Side in µm.
    mpp
        Microns per pixel of the full resolution.
    """

    key: str
    ids: np.ndarray
    boxes: np.ndarray
    side_px: int
    tile_um: float
    mpp: float


def tile_shapes(sdata: SpatialData, key: str) -> GeoDataFrame:
    """Return the shapes of the tiles."""
    if key not in sdata.shapes:
        raise MissingKeyError(missing(key, "sdata.shapes", sdata.shapes, _TILE))
    return sdata.shapes[key]


def tile_ids(sdata: SpatialData, key: str) -> np.ndarray:
    """Return the number of each tile, int (n_tiles,)."""
    shapes = tile_shapes(sdata, key)
    # LazySlide counts tiles without numbers from 0.
    ids = shapes[TILE_ID].to_numpy() if TILE_ID in shapes else np.arange(len(shapes))
    if len(np.unique(ids)) < len(ids):
        raise Img2GeneError(f"`sdata.shapes['{key}']['{TILE_ID}']` has the same number for several tiles: tile again.")
    return ids


def read_layout(sdata: SpatialData, key: str, mpp: float | None) -> Tiles:
    """Read tiles with their specification, and check that pixels and microns agree."""
    shapes, spec = tile_shapes(sdata, key), _specification(sdata, key)
    width, height, factor = (spec.get(name) for name in ("width", "height", "base_downsample"))
    wide, step = _positive(width), _positive(factor)
    if wide is None or step is None or width != height:
        raise Img2GeneError(
            f"`sdata.attrs['{TILE_SPEC}']['{key}']` gives tiles of {shown(width)} × {shown(height)} px at a factor of "
            f"{shown(factor)}: patches are squares. Tile again with one `tile_px`."
        )
    side, bounds = wide * step, shapes.bounds.to_numpy()
    sides = np.concatenate([bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1]])
    if not len(sides) or np.abs(sides - side).max() > ROUNDING_PX:
        raise Img2GeneError(
            f"`sdata.shapes['{key}']` are not the tiles that `sdata.attrs['{TILE_SPEC}']['{key}']` describes: squares of "
            f"{side:.4g} px. Tile again."
        )
    microns = _microns(sdata, key, spec, step, mpp)
    boxes = bounds[:, [1, 0, 3, 2]]
    return Tiles(key, tile_ids(sdata, key), boxes, int(wide), round(wide * step * microns, 4), microns)


def _specification(sdata: SpatialData, key: str) -> Mapping[str, Any]:
    known = sdata.attrs.get(TILE_SPEC)
    known = known if isinstance(known, Mapping) else {}
    if not isinstance(known.get(key), Mapping):
        raise MissingKeyError(missing(key, f"sdata.attrs['{TILE_SPEC}']", known, _TILE))
    return known[key]


def _microns(sdata: SpatialData, key: str, spec: Mapping[str, Any], factor: float, mpp: float | None) -> float:
    """Find microns per pixel of the full resolution: ``mpp``, else those of the tiles, which must agree with the slide's."""
    slide = sdata.attrs.get(SLIDE)
    of_slide = _positive(slide.get("mpp")) if isinstance(slide, Mapping) else None
    of_tiles = _positive(spec.get("mpp"))
    of_tiles = None if of_tiles is None else of_tiles / factor
    if mpp is not None:
        return mpp
    if of_slide is not None and of_tiles is not None and abs(of_slide / of_tiles - 1) > 0.01:
        raise Img2GeneError(
            f"The tiles `{key}` were cut at {of_tiles:.4g} µm per pixel of the slide, whose properties say {of_slide:.4g}. Pass "
            "the right one as `mpp=`, or tile again."
        )
    known = of_tiles if of_tiles is not None else of_slide
    if known is None:
        raise Img2GeneError(
            f"Microns per pixel of the slide with the tiles `{key}` are not known. Pass `mpp=`, microns per pixel of the full "
            "resolution, or call `wsi.set_mpp(…)` and tile again."
        )
    return known


def _positive(value: Any) -> float | None:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < np.inf else None


def feature_tables(sdata: SpatialData, key: str) -> list[str]:
    """List the tables that hold features of the tiles ``key``."""
    return [name for name, table in sdata.tables.items() if name.endswith(f"_{key}") and _regions(table) == [key]]


def _regions(table: Any) -> list[str]:
    return sorted(table.obs[LIBRARY].astype(str).unique()) if LIBRARY in table.obs else []


def encoder_name(table: str, tile_key: str) -> str:
    """Name of the encoder whose features a table holds.

    Examples
    --------
    >>> from img2gene.lazyslide.layout import encoder_name
    >>> encoder_name("uni2_tiles", "tiles")
    'uni2'
    """
    return table.removesuffix(f"_{tile_key}")


def read_features(sdata: SpatialData, name: str, tile_key: str) -> tuple[str, np.ndarray]:
    """Read features in the order of the tiles.

    Returns the name of the encoder and float32 (n_tiles, width). A table of other tiles is refused, and so is one with NaN.
    """
    key = name if name in sdata.tables else f"{name}_{tile_key}"
    if key not in sdata.tables:
        hint = f"Run `lazyslide.tl.feature_extraction(wsi, {encoder_name(name, tile_key)!r}, tile_key={tile_key!r})`."
        raise MissingKeyError(missing(name, "sdata.tables", feature_tables(sdata, tile_key), hint))
    table, ids = sdata.tables[key], tile_ids(sdata, tile_key)
    if TILE_ID not in table.obs or not _regions(table):
        raise Img2GeneError(
            f"`sdata.tables['{key}']` is no feature table of LazySlide: `obs` has no `{TILE_ID}` and `{LIBRARY}` "
            f"(available: {listing(table.obs.columns)}). Feature tables of these tiles: "
            f"{listing(feature_tables(sdata, tile_key))}."
        )
    if _regions(table) != [tile_key]:
        others = listing(_regions(table))
        raise Img2GeneError(
            f"`sdata.tables['{key}']` holds features of other tiles: of {others}, not of `{tile_key}`. Pass "
            f"`tile_key={_regions(table)[0]!r}`, or extract features of `{tile_key}`."
        )
    rows = _same_tiles(key, table.obs[TILE_ID].to_numpy(), tile_key, ids)
    encoder = encoder_name(key, tile_key)
    _schema.check_name(_schema.embedding_key(encoder), "features")
    return encoder, _finite(key, table, rows, ids)


def _same_tiles(key: str, stored: np.ndarray, tile_key: str, ids: np.ndarray) -> np.ndarray:
    """Find the row of each tile in a feature table; refuse a table of more, fewer or other tiles."""
    rows = pd.Index(stored)
    if not rows.is_unique:
        raise Img2GeneError(
            f"`sdata.tables['{key}']` names a tile twice in `obs['{TILE_ID}']`: extract features again."
        )
    absent, more = np.setdiff1d(ids, stored), np.setdiff1d(stored, ids)
    if len(absent) or len(more):
        raise Img2GeneError(
            f"`sdata.tables['{key}']` holds features of other tiles: {len(stored)} rows for the {len(ids)} tiles of "
            f"`sdata.shapes['{tile_key}']`; without features: {listing(absent, 5)}; without tile: {listing(more, 5)}. The tiles "
            "were cut or filtered since: extract features again."
        )
    return rows.get_indexer(ids)


def _finite(key: str, table: Any, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    from img2gene._study.matrices import in_memory

    values = in_memory(table.X)
    values = np.asarray(values.toarray() if hasattr(values, "toarray") else values)[rows]
    if values.dtype.kind not in "iuf" or not values.shape[1]:
        raise Img2GeneError(f"`sdata.tables['{key}'].X` holds no numbers: extract features again.")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32, copy=False)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise Img2GeneError(
            f"`sdata.tables['{key}']` has NaN or infinite features for {int(bad.sum())} of {len(ids)} tiles: "
            f"{listing(ids[bad], 5)}. Extract them again, or leave these tiles out of `shapes` and table."
        )
    return values
