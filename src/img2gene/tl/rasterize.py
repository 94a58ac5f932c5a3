"""Draw predictions of spots, bins or tiles as an image over the slide."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, listing, no_such
from img2gene._study.geometry import Geometry, choose_image, locate_region, transformations
from img2gene._study.lattices import nearest_distance
from img2gene._study.predictions import predicted_values
from img2gene._study.study import Study
from img2gene.tl._arguments import check_flags

if TYPE_CHECKING:
    from spatialdata import SpatialData
    from xarray import DataArray

logger = logging.getLogger(__name__)

_MOST_PIXELS = 100_000_000


def rasterize_prediction(
    sdata: SpatialData,
    genes: str | list[str],
    *,
    section: str | None = None,
    key: str = "img2gene",
    um_per_px: float | None = None,
    outside: float | None = 0.0,
    table_key: str = "table",
    key_added: str | None = None,
    inplace: bool = True,
) -> DataArray | None:
    """Draw predicted expression as an image, one channel per gene, that lies on the slide.

    spatialdata-plot and napari-spatialdata show it like any other image, in the coordinate systems of the H&E image and in
    microns.

    Parameters
    ----------
    sdata
        Study with predictions from :func:`img2gene.tl.predict`.
    genes
        One or several genes that the model predicts.
    section
        Section to draw; needed if the table has several.
    key
        Name of the prediction: a layer of the table, or a separate table.
    um_per_px
        Side of a pixel in µm; by default the median distance between neighbouring spots, so that each tile of
        :func:`img2gene.pp.tile_slide` is one pixel.
    outside
        Value of pixels without a prediction. spatialdata-plot draws no image with NaN, so it is 0 by default; None keeps NaN.
    table_key
        Table that was predicted; for tiles, the table of the tiles.
    key_added
        Name of the image; by default ``<section>_<key>``. An image that this function wrote is replaced.
    inplace
        If False, the image is returned and not written.

    Returns
    -------
    None, or the image: float32 (genes, y, x), with the genes as names of its channels. A pixel has the value of the spot that
    is nearest to its centre, and ``outside`` where none is nearer than three quarters of the distance between neighbouring spots (or
    of the side of a pixel, if that is larger). Its coordinate systems are those of the section's image, and ``<section>_um`` in microns. It is written to ``images[key_added]``.

    Raises
    ------
    Img2GeneError
        No such prediction, gene or section; several sections, or a section on several images, without a choice; microns per
        pixel are unknown; more than 100 million pixels; or an element of yours has the name.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "ridge", train_on=["P1"], allow_single_section=True)
    >>> ig.tl.predict(sdata)
    >>> gene = ig.get.model(sdata).genes[0]
    >>> ig.tl.rasterize_prediction(sdata, gene, section="P2_S1", um_per_px=50)
    >>> sdata["P2_S1_img2gene"].dims
    ('c', 'y', 'x')
    """
    check = Arguments()
    names, section = check.names("genes", genes), check.label("section", section, optional=True)
    check.text("key", key)
    um_per_px = check.number("um_per_px", um_per_px, above=0, optional=True)
    outside = check.number("outside", outside, optional=True)
    key_added = check.text("key_added", key_added, optional=True)
    check_flags(check, inplace=inplace)
    check.raise_all()
    study = Study.of(sdata, table_key)
    name, geometry, mpp = _place(study, section)
    target = f"{name}_{key}" if key_added is None else key_added
    if inplace:
        _check_target(study, target)
    values = predicted_values(study, names, key)[geometry.rows]
    image = _image(study, name, geometry, mpp, values, names, um_per_px)
    if outside is not None:
        image = image.fillna(outside).assign_attrs(image.attrs)
    if not inplace:
        return image
    with _schema.all_or_nothing(study.stored_table, sdata):
        # spatialdata warns of an element that is replaced without being removed.
        sdata.images.pop(target, None)
        sdata.images[target] = image
        # Stores keep no attributes of images, so the table says which ones may be replaced.
        records = study.record(_schema.RASTERS, {}) | {target: image.attrs[_schema.RASTER]}
        _schema.write_json(study.stored_table, _schema.RASTERS, records)
    logger.info("wrote images[%r]", target)
    return None


def _place(study: Study, section: str | None) -> tuple[str, Geometry, float]:
    """Find the section, where its spots lie in their image, and microns per pixel of that image."""
    available = study.section_names()
    if section is None and len(available) > 1:
        raise Img2GeneError(f"The table has several sections ({listing(available)}); say which with `section=`.")
    name = available[0] if section is None else section
    if name not in available:
        raise Img2GeneError(no_such("section", [name], available))
    rows = study.section_rows(name)
    regions = [region for region, members in study.regions.items() if np.isin(members, rows).any()]
    if len(regions) > 1:
        raise Img2GeneError(
            f"Section `{name}` lies in several regions ({listing(regions)}), each with a picture of its own."
        )
    entry = study.patches["regions"][regions[0]]
    images = entry["image"] if entry["image"] in study.sdata.images else choose_image(study, regions[0])
    if not entry.get("mpp"):
        raise Img2GeneError(
            f"Microns per pixel of `{regions[0]}` are not recorded: run `img2gene.pp.extract_patches` with `mpp=`."
        )
    return name, locate_region(study, regions[0], rows, images), float(entry["mpp"])


def _check_target(study: Study, target: str) -> None:
    """Refuse a name that cannot be stored, or that an element of the user has."""
    _schema.check_name(target, "key_added")
    sdata, written = study.sdata, target in study.record(_schema.RASTERS, {})
    elements = [*sdata.images, *sdata.labels, *sdata.points, *sdata.shapes, *sdata.tables]
    # spatialdata does not tell capitals apart.
    same = [name for name in elements if name.casefold() == target.casefold()]
    if same and not (written and same == [target] and target in sdata.images):
        raise Img2GeneError(
            f"`{same[0]}` is the name of an element that `rasterize_prediction` did not write; choose another `key_added`."
        )


def _image(
    study: Study,
    section: str,
    geometry: Geometry,
    mpp: float,
    values: np.ndarray,
    genes: list[str],
    um_per_px: float | None,
) -> DataArray:
    """Draw the values of spots (n, n_genes) on a grid that covers them."""
    from scipy.spatial import cKDTree
    from spatialdata.models import Image2DModel

    centers = geometry.centers * mpp
    pitch = _pitch(centers, geometry.spot_px * mpp)
    side = pitch if um_per_px is None else um_per_px
    origin = centers.min(axis=0) - pitch / 2
    size = np.maximum(np.ceil((np.ptp(centers, axis=0) + pitch) / side - 1e-6), 1).astype(np.int64)
    if float(size.prod()) * len(genes) > _MOST_PIXELS:
        raise Img2GeneError(
            f"um_per_px={side:.3g}: {size[0]} × {size[1]} pixels for {len(genes)} genes are more than {_MOST_PIXELS:,}; choose larger "
            "pixels or fewer genes."
        )
    grid = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in size), indexing="ij"), axis=-1) * side + origin
    # Half the diagonal of a square reaches its corners; a little more closes gaps between rounded places.
    distance, nearest = cKDTree(centers).query(grid.reshape(-1, 2), distance_upper_bound=0.75 * max(pitch, side))
    padded = np.vstack([values, np.full(values.shape[1], np.nan)])
    pixels = np.where(np.isfinite(distance)[:, None], padded[nearest], np.nan).T.reshape(len(genes), *size)
    systems = _systems(study, section, geometry, mpp, side, origin)
    image = Image2DModel.parse(pixels.astype(np.float32), dims=("c", "y", "x"), c_coords=genes, transformations=systems)
    image.attrs[_schema.RASTER] = {
        "um_per_px": float(side),
        "origin_um": origin.tolist(),
        "section": section,
        "image": geometry.image_key,
        "mpp": mpp,
    }
    return image


def _pitch(centers: np.ndarray, diameter: float) -> float:
    """Median distance in µm of neighbouring spots, which is the diameter of a single spot."""
    distance = nearest_distance(centers)
    if distance is not None:
        return distance
    return float(diameter) if diameter > 0 else 1.0


def _systems(
    study: Study, section: str, geometry: Geometry, mpp: float, side: float, origin: np.ndarray
) -> dict[str, Any]:
    """Transformations from the pixels of the picture to each coordinate system of the section's image."""
    from spatialdata.transformations import Scale, Sequence, Translation

    axes = ("y", "x")
    to_um = Sequence([Scale([side, side], axes), Translation(origin, axes)])
    to_image = Sequence([to_um, Scale([1 / mpp, 1 / mpp], axes)])
    systems: dict[str, Any] = {
        name: Sequence([to_image, transformation])
        for name, transformation in transformations(study.sdata, geometry.image_key).items()
    }
    return {_schema.micron_system(section): to_um, **systems}
