"""Find each spot's patch in its image; its side in pixels follows from microns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, raise_problems
from img2gene._study.geometry import Geometry, locate
from img2gene._study.images import scale0, thumbnail
from img2gene._study.microns import resolve_mpp
from img2gene._study.patches import field_boxes
from img2gene._study.study import Study
from img2gene._study.tissue import box_fractions, tissue_mask

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

# These fields were the most accurate ones in benchmarks/encoder_comparison.py.
DEFAULT_FIELDS_UM = (100.0, 200.0, 400.0, 800.0)
_THUMBNAIL_PX = 600


@fill_parameters
def extract_patches(
    sdata: SpatialData,
    *,
    patch_um: float | Sequence[float] = DEFAULT_FIELDS_UM,
    patch_px: int = 224,
    mpp: float | Mapping[str, float] | None = None,
    spot_um: float | None = None,
    images: str | Mapping[str, str] | None = None,
    table_key: str = "table",
    inplace: bool = True,
) -> dict[str, dict[str, Any]] | None:
    """Find the image patch of every spot: one or several square fields of view around its centre.

    No pixel is stored: :func:`img2gene.pp.embed_patches` streams them, :func:`img2gene.get.patches` returns chosen
    ones.

    Parameters
    ----------
    sdata
        Study with images, regions (circles, polygons or labels) and a table that annotates them.
    patch_um
        Side of the field of view in µm; several numbers give several fields around one centre. The default fields were
        the most accurate on real sections (``benchmarks/encoder_comparison.py``).
    patch_px
        Side in pixels that every field is resized to before it enters the encoder.
    mpp
        Microns per pixel of the scale-0 image, for all regions or by region. By default it follows from the reader's
        record, the Visium lattice (100 µm from spot to spot), or the Visium HD bin size.
    spot_um
        Diameter of the spots in µm, from which microns per pixel follow if ``mpp`` is None.
    images
        Image element, for all regions or by region. By default the largest image in the region's coordinate system.
    table_key
        Table whose rows get a patch.
    %(inplace_update)s

    Returns
    -------
    None, or the update. The call writes ``obsm["patch_bbox"]`` (int64 (n_obs, 4): y0, x0, y1, x1 of the first field in
    pixels of the scale-0 image; windows may exceed it and are padded with white), ``obs["patch_tissue"]`` (tissue
    fraction of the first field, 0–1), ``obs["patch_inside"]`` (fraction inside the image) and the specification in
    ``uns["img2gene"]["patches"]``; ``uns["spatial"]`` gets a thumbnail for squidpy where it has none.

    Raises
    ------
    Img2GeneError
        All problems at once: no image or coordinate system in common, spots outside the image or on the scale of a
        downscaled one, unknown microns per pixel, a transformation that rotates or stretches.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=(112, 224))
    >>> sdata["table"].obsm["patch_bbox"].shape[1]
    4
    """
    fields = _check_fields(patch_um, patch_px)
    study = Study.of(sdata, table_key)
    table = study.table
    geometries = locate(study, images)
    sizes = {g.region: tuple(scale0(sdata.images[g.image_key]).shape[1:]) for g in geometries}
    resolution = resolve_mpp(table, geometries, sizes, mpp=mpp, spot_um=spot_um)
    update = _empty_update(table, fields, patch_px)
    libraries = {}
    for geometry in geometries:
        sides = _sides(fields, resolution[geometry.region], geometry)
        # Further fields share the centre, so the first window is enough to find them.
        boxes = field_boxes(geometry.centers, sides)[:, 0]
        picture, step = _overview(sdata, geometry.image_key, int(sides[0]))
        update["obsm"][_schema.PATCH_BBOX][geometry.rows] = boxes
        update["obs"][_schema.PATCH_TISSUE][geometry.rows] = box_fractions(tissue_mask(picture), boxes, step)
        update["obs"][_schema.PATCH_INSIDE][geometry.rows] = _inside(boxes, sizes[geometry.region])
        update["uns"]["patches"]["regions"][geometry.region] = {
            "image": geometry.image_key,
            "mpp": resolution[geometry.region],
            "side_px": [int(side) for side in sides],
        }
        libraries[geometry.region] = _library(picture, step, geometry)
    if not inplace:
        return update
    _schema.apply(table, update)
    _add_libraries(study, geometries, libraries)
    return None


def _check_fields(patch_um: float | Sequence[float], patch_px: int) -> list[float]:
    """Check the sides of the fields and of the encoder input; return the fields as a list."""
    fields = [float(value) for value in np.atleast_1d(np.asarray(patch_um, dtype=float))]
    problems = []
    if not fields or not all(np.isfinite(value) and value > 0 for value in fields):
        problems.append(f"patch_um={patch_um!r}: expected one or several positive numbers of microns.")
    if len(set(fields)) != len(fields):
        problems.append(f"patch_um={patch_um!r}: a field is named twice.")
    if isinstance(patch_px, bool) or int(patch_px) != patch_px or patch_px < 32:
        problems.append(f"patch_px={patch_px!r}: expected a whole number of at least 32 pixels.")
    raise_problems(problems)
    return fields


def _sides(fields: list[float], mpp: float, geometry: Geometry) -> np.ndarray:
    """Convert fields of view to whole pixels; refuse fields that are too small."""
    sides = np.rint(np.array(fields) / mpp).astype(np.int64)
    if sides.min() < 4:
        raise Img2GeneError(
            f"A field of {min(fields):g} µm is only {sides.min()} pixels of image `{geometry.image_key}` "
            f"({mpp:.3g} µm per pixel); use a larger `patch_um` or an image of higher resolution."
        )
    return sides


def _empty_update(table: AnnData, fields: list[float], patch_px: int) -> dict[str, dict[str, Any]]:
    """Prepare the update, to be filled region by region."""
    n = table.n_obs
    return {
        "obsm": {_schema.PATCH_BBOX: np.zeros((n, 4), dtype=np.int64)},
        "obs": {_schema.PATCH_TISSUE: np.zeros(n), _schema.PATCH_INSIDE: np.zeros(n)},
        "uns": {"patches": {"patch_um": fields, "patch_px": int(patch_px), "regions": {}}},
    }


def _inside(boxes: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Compute the share of each box that lies inside the image."""
    clipped = np.clip(boxes, 0, [size[0], size[1], size[0], size[1]])
    area = (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1])
    return area / ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _overview(sdata: SpatialData, image_key: str, side: int) -> tuple[np.ndarray, float]:
    """Read a thumbnail with at least eight points across a patch of ``side`` pixels."""
    return thumbnail(sdata, image_key, max(1, side // 8))


def _library(picture: np.ndarray, step: float, geometry: Geometry) -> dict[str, Any]:
    """Build a section's entry of ``uns["spatial"]``, as squidpy expects it."""
    every = max(1, max(picture.shape[:2]) // _THUMBNAIL_PX)
    return {
        "images": {"hires": np.ascontiguousarray(picture[::every, ::every])},
        "scalefactors": {
            # squidpy multiplies `obsm["spatial"]`, in units of the region, by this factor to get pixels of the picture.
            "tissue_hires_scalef": 1 / (step * every * geometry.units_per_px),
            "spot_diameter_fullres": geometry.spot_px * geometry.units_per_px,
        },
    }


def _add_libraries(study: Study, geometries: list[Geometry], libraries: dict[str, dict[str, Any]]) -> None:
    """Store a thumbnail per section for squidpy; keep existing images and an existing ``obsm["spatial"]``."""
    table, names = study.table, study.sections
    if "spatial" not in table.obsm:
        positions = np.zeros((table.n_obs, 2))
        for geometry in geometries:
            # Readers leave (x, y) in units of the region here.
            positions[geometry.rows] = geometry.centers[:, ::-1] * geometry.units_per_px
        table.obsm["spatial"] = positions
    # Entries are copied, so that another table with the same ones does not change.
    spatial = {key: dict(value) for key, value in table.uns.get("spatial", {}).items()}
    for geometry in geometries:
        entry = spatial.setdefault(str(names[geometry.rows[0]]), {})
        if "images" not in entry:
            entry.update(libraries[geometry.region])
    table.uns["spatial"] = spatial
