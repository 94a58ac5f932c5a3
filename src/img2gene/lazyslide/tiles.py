"""Take the tiles of a slide from LazySlide, and give it the patches of a study as tiles."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, listing
from img2gene._study.entrance import open_table
from img2gene._study.study import Study
from img2gene.lazyslide.features import feature_identity
from img2gene.lazyslide.layout import SPOT, TILE_ID, TILE_SPEC, Tiles, feature_tables, read_features, read_layout

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

_IMAGE = "wsi"


@fill_parameters
def read_tiles(
    sdata: SpatialData,
    features: str | list[str] | None = None,
    *,
    tile_key: str = "tiles",
    section: str = "slide",
    patient: str | None = None,
    mpp: float | None = None,
    image_key: str = _IMAGE,
    key_added: str = "lazyslide",
    inplace: bool = True,
) -> AnnData | None:
    """Make a table of the tiles that LazySlide cut, with the features that it extracted.

    The table has no genes. A model that was trained on features of the same encoder predicts it:
    ``tl.predict(sdata, model, table_key="lazyslide")``.

    Parameters
    ----------
    sdata
        WSIData of LazySlide after ``lazyslide.pp.tile_tissues``, or the SpatialData of its store.
    features
        Feature tables, by name (``"uni2_tiles"``) or encoder (``"uni2"``); None takes all tables of these tiles, and an
        empty list none.
    tile_key
        Shapes of the tiles.
    section, patient
        What the tiles belong to. All tiles of a slide are one section, which models that centre by section compare
        each tile with.
    mpp
        Microns per pixel of the full resolution. None takes those that wsidata recorded.
    image_key
        Name under which the slide is attached (``attach_images=True`` of ``wsidata.open_wsi``); the image may be absent.
    key_added
        Name of the table.
    %(inplace_result)s

    Returns
    -------
    None, or the table (n_tiles, 0 genes): ``obsm["X_<encoder>"]``, float32 (n_tiles, width); ``obsm["patch_bbox"]`` and
    ``obsm["spatial"]`` in pixels of the full resolution; microns per pixel and the width of the tiles in µm in
    ``uns["img2gene"]``.

    Raises
    ------
    MissingKeyError
        The tiles, their specification or a feature table are missing.
    Img2GeneError
        A feature table holds other tiles, or NaN; tiles are not square; microns are not known, or the tiles and the slide
        contradict each other; or ``key_added`` is taken.

    Examples
    --------
    >>> import img2gene as ig
    >>> import lazyslide as zs, wsidata  # doctest: +SKIP
    >>> wsi = wsidata.open_wsi("slide.svs")  # doctest: +SKIP
    >>> zs.pp.tile_tissues(wsi, 224, mpp=0.5)  # doctest: +SKIP
    >>> zs.tl.feature_extraction(wsi, "uni2")  # doctest: +SKIP
    >>> ig.lazyslide.read_tiles(wsi, section="S7", patient="P7")  # doctest: +SKIP
    >>> wsi.tables["lazyslide"].obsm["X_uni2"].shape  # doctest: +SKIP
    (5120, 1536)
    """
    check = Arguments()
    names = None if features is None else check.names("features", features, empty=True)
    texts = {"tile_key": tile_key, "section": section, "image_key": image_key}
    for name, value in texts.items():
        check.text(name, value)
    patient, mpp = check.text("patient", patient, optional=True), check.number("mpp", mpp, above=0, optional=True)
    check.flag("inplace", inplace)
    with check.collect():
        _schema.check_name(key_added, "key_added")
    if not hasattr(sdata, "shapes"):
        check.messages.append(f"Expected a WSIData or SpatialData, got {type(sdata).__name__}.")
    check.raise_all()
    if inplace:
        _check_free(sdata, key_added, tile_key)
    tiles = read_layout(sdata, tile_key, mpp)
    table, encoders = _table(sdata, tiles, section, patient, image_key), {}
    for name in feature_tables(sdata, tile_key) if names is None else names:
        encoder, values = read_features(sdata, name, tile_key)
        encoders[encoder] = feature_identity(encoder, values, tiles.tile_um, tiles.side_px)
        table.obsm[_schema.embedding_key(encoder)] = values
    _schema.write_json(table, "encoder", encoders)
    if not inplace:
        return table
    sdata.tables[key_added] = table
    logger.info("wrote tables[%r]", key_added)
    return None


def _check_free(sdata: SpatialData, name: str, tile_key: str) -> None:
    """Refuse a name that another element has; a table of the same tiles is replaced."""
    taken = {*sdata.images, *sdata.labels, *sdata.points, *sdata.shapes}
    earlier = sdata.tables.get(name)
    is_ours = earlier is not None and _schema.read_json(earlier, "sections", default={}) and not earlier.n_vars
    if name in taken or (earlier is not None and not is_ours):
        raise Img2GeneError(
            f"key_added={name!r} is the name of another element, which would be lost. Choose another name for the table of "
            f"`{tile_key}`."
        )


def _table(sdata: SpatialData, tiles: Tiles, section: str, patient: str | None, image_key: str) -> AnnData:
    """Build the table of the tiles, which has no genes."""
    import anndata as ad
    from spatialdata.models import TableModel

    n = len(tiles.ids)
    obs = pd.DataFrame(
        {
            "region": pd.Categorical([tiles.key] * n),
            _schema.SECTION: pd.Categorical([section] * n),
            TILE_ID: tiles.ids,
            # spatialdata finds a tile by its index, which filtering may have parted from its number.
            "instance": sdata.shapes[tiles.key].index.to_numpy(),
        },
        index=[f"{section}_tile{number}" for number in tiles.ids],
    )
    if patient is not None:
        obs[_schema.PATIENT] = pd.Categorical([patient] * n)
    table = ad.AnnData(np.zeros((n, 0), dtype=np.float32), obs=obs)
    boxes = np.rint(tiles.boxes).astype(np.int64)
    table.obsm[_schema.PATCH_BBOX] = boxes
    table.obsm["spatial"] = (boxes[:, :2] + boxes[:, 2:])[:, ::-1] / 2
    side = int(boxes[0, 2] - boxes[0, 0])
    region = {"image": image_key, "mpp": tiles.mpp, "spot_width": float(side), "side_px": [side]}
    record = {"mpp": tiles.mpp, "spot_um": tiles.tile_um, "image": image_key, "region": tiles.key}
    _schema.write_json(table, "sections", {section: record})
    patches = {"patch_um": [tiles.tile_um], "patch_px": tiles.side_px, "regions": {tiles.key: region}}
    _schema.write_json(table, "patches", patches)
    return TableModel.parse(table, region=tiles.key, region_key="region", instance_key="instance")


@fill_parameters
def add_tiles(
    sdata: SpatialData,
    *,
    tile_px: int = 224,
    table_key: str = "table",
    key_added: str = "tiles",
    inplace: bool = True,
) -> dict[str, GeoDataFrame] | None:
    """Give the patches of spots to LazySlide as tiles, so that its encoders extract features of them.

    Then open each section (``wsi = wsidata.open_wsi(sdata, image_key="S1_image")``), extract features
    (``zs.tl.feature_extraction(wsi, "uni2", tile_key="S1_tiles")``), and take them over
    (``ig.lazyslide.add_features(sdata, "uni2", wsi=wsi)``).

    Parameters
    ----------
    sdata
        Study on which :func:`img2gene.pp.extract_patches` was run with one field of view.
    tile_px
        Side in pixels that tiles are resized to. For slides tiled with ``zs.pp.tile_tissues(wsi, 224, mpp=0.5)`` take the same
        224, and ``patch_um=112``.
    table_key
        Table of the spots.
    key_added
        The tiles of region ``S1`` are named ``S1_<key_added>``.
    %(inplace_result)s

    Returns
    -------
    None, or the shapes by name. Written are ``shapes["<region>_<key_added>"]``, squares in pixels of the full resolution, and
    their specification in ``attrs["tile_spec"]``.

    Raises
    ------
    MissingKeyError
        There are no patches.
    Img2GeneError
        There are several fields of view, patches reach beyond the image, the name is taken by other shapes, or feature
        tables belong to earlier tiles of this name that differ from these.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.lazyslide.add_tiles(sdata)
    >>> list(sdata.attrs["tile_spec"])
    ['P1_S1_spots_tiles', 'P2_S1_spots_tiles']
    """
    check = Arguments()
    tile_px = check.whole("tile_px", tile_px, 16, _schema.MAX_SIDE_PX)
    check.flag("inplace", inplace)
    with check.collect():
        _schema.check_name(key_added, "key_added")
    study = open_table(check, sdata, table_key)
    check.raise_all()
    _check_patches(study)
    shapes = {f"{region}_{key_added}": _squares(study, region) for region in study.regions}
    foreign = [name for name in shapes if name in sdata and SPOT not in getattr(sdata[name], "columns", [])]
    if foreign:
        raise Img2GeneError(
            f"{listing(foreign)} would be replaced, and img2gene did not write it. Choose another `key_added`."
        )
    if not inplace:
        return shapes
    specs = {name: _spec(study, region, tile_px) for name, region in zip(shapes, study.regions, strict=True)}
    shapes = {name: _numbered_as_before(sdata, name, frame, specs[name]) for name, frame in shapes.items()}
    with _schema.all_or_nothing(sdata):
        for name, frame in shapes.items():
            sdata.shapes[name] = frame
        sdata.attrs = {**sdata.attrs, TILE_SPEC: {**sdata.attrs.get(TILE_SPEC, {}), **specs}}
    logger.info("wrote shapes %s", listing(shapes))
    return None


def _numbered_as_before(sdata: SpatialData, name: str, squares: GeoDataFrame, spec: dict[str, Any]) -> GeoDataFrame:
    """Return earlier tiles where feature tables name them by their numbers; refuse other tiles, which these would not fit."""
    tables = feature_tables(sdata, name)
    if not tables or name not in sdata.shapes:
        return squares
    earlier = sdata.shapes[name]
    one, other = (frame.set_index(SPOT).bounds.sort_index() for frame in (earlier, squares))
    if one.index.equals(other.index) and np.allclose(one, other) and sdata.attrs.get(TILE_SPEC, {}).get(name) == spec:
        return earlier
    raise Img2GeneError(
        f"{listing(tables)} hold features of other tiles `{name}`: of other spots, places or sizes than these. Delete them "
        f"(`del sdata.tables[{tables[0]!r}]`), or choose another `key_added`."
    )


def _check_patches(study: Study) -> None:
    """Refuse several fields of view, and patches that reach beyond the image, which LazySlide would stretch."""
    if len(study.patches["patch_um"]) > 1:
        raise Img2GeneError(
            f"Patches have {len(study.patches['patch_um'])} fields of view ({listing(study.patches['patch_um'])} µm), a tile has "
            "one. Run `img2gene.pp.extract_patches` with one `patch_um`."
        )
    inside = study.table.obs.get(_schema.PATCH_INSIDE)
    beyond = np.zeros(study.n_obs, dtype=bool) if inside is None else inside.to_numpy(dtype=float) < 1
    if beyond.any():
        raise Img2GeneError(
            f"The patches of {int(beyond.sum())} of {study.n_obs} spots reach beyond the image "
            f"({listing(study.table.obs_names[beyond], 5)}), where LazySlide would stretch what is left of them. Leave them out: "
            f"`sdata.tables[{study.table_key!r}] = table[table.obs['{_schema.PATCH_INSIDE}'] == 1].copy()`."
        )


def _squares(study: Study, region: str) -> GeoDataFrame:
    """Build the tiles of a region, in pixels of its image."""
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel

    rows = study.regions[region]
    y0, x0, y1, x1 = np.asarray(study.table.obsm[_schema.PATCH_BBOX])[rows].T
    columns = {TILE_ID: np.arange(len(rows)), SPOT: study.table.obs_names[rows].to_numpy(dtype=object)}
    return ShapesModel.parse(gpd.GeoDataFrame(columns, geometry=shapely.box(x0, y0, x1, y1)))


def _spec(study: Study, region: str, tile_px: int) -> dict[str, Any]:
    """Specify tiles as LazySlide does."""
    entry = study.patches["regions"][region]
    side = int(entry["side_px"][0])
    # wsidata rounds down `tile_px · factor`, which must be the side.
    factor = float(np.nextafter(side / tile_px, np.inf))
    sizes = dict.fromkeys(("height", "width", "stride_height", "stride_width"), tile_px)
    mpp = entry.get("mpp")
    return {
        **sizes,
        "mpp": None if mpp is None else mpp * side / tile_px,
        "ops_level": 0,
        "ops_downsample": factor,
        "base_level": 0,
        "base_downsample": factor,
        "tissue_name": None,
    }
