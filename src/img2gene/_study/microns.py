"""Find microns per pixel of each section, and check that spots and image are on the same scale."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, Problems, listing
from img2gene._study.geometry import (
    Geometry,
    equivalent_diameter,
    isotropic_scale,
    locate_region,
    recorded,
    region_matrix,
)
from img2gene._study.images import scale0
from img2gene._study.study import Study

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

VISIUM_PITCH_UM = 100.0
_HD_BIN = re.compile(r"square_(\d+)um")
_MAX_EXTENT_UM = 25_000.0
_CORNER = 0.4
# Fits on real Visium sections deviate by less than 1 %; a square grid has a ratio of 1 instead of √3.
_LATTICE_TOLERANCE = 0.05
# Scanners and lattices agree within 2 % on real sections.
_AGREEMENT = 0.03
# Space Ranger's `spot_diameter_fullres` is 64.8–69.8 µm on real sections, although the printed spots have 55 µm.
_DIAMETER_ERROR = (0.75, 0.95)


def resolve_mpp(
    study: Study,
    geometries: list[Geometry],
    *,
    mpp: float | Mapping[str, float] | None,
    spot_um: float | None,
) -> dict[str, float]:
    """Find microns per image pixel of each region; all problems are raised together.

    Sources, in this order: ``mpp``; the hexagonal Visium lattice, where it contradicts a spot diameter; ``spot_um``
    over the measured spot diameter; what the section's reader recorded; the lattice; the bin size in a Visium HD
    region's name; microns that are known for the same image from another region or table.
    """
    resolution, problems = {}, Problems()
    for geometry in geometries:
        with problems.collect():
            resolution[geometry.region] = _region_mpp(study, geometry, mpp, spot_um)
            size = scale0(study.sdata.images[geometry.image_key]).shape[1:]
            _check_alignment(study, geometry, resolution[geometry.region], size)
    problems.raise_all()
    return resolution


def _region_mpp(
    study: Study, geometry: Geometry, mpp: float | Mapping[str, float] | None, spot_um: float | None
) -> float:
    """Find microns per pixel of one region, from the arguments or else from the study."""
    if isinstance(mpp, Mapping):
        if geometry.region not in mpp:
            raise MissingKeyError(
                f"`mpp` has no entry for region `{geometry.region}` (entries: {listing(mpp)}). Give every region one."
            )
        mpp = mpp[geometry.region]
    if mpp is not None:
        return float(mpp)
    if spot_um is not None and not geometry.spot_px > 0:
        raise Img2GeneError(f"`{geometry.region}` has no spot diameter; pass `mpp=` instead of `spot_um=`.")
    record = recorded(study.table, geometry.region)
    exact = _exact_mpp(study.table, geometry)
    if spot_um is not None:
        return _agreed(geometry, spot_um / geometry.spot_px, f"spot_um={spot_um:g}", exact)
    if "mpp" in record:
        # Readers record microns per unit of the region, which need not be a pixel of this image.
        return _agreed(geometry, float(record["mpp"]) * geometry.units_per_px, "the reader's record", exact)
    derived = exact.mpp if exact is not None else image_mpp(study.sdata, geometry.image_key, besides=geometry.region)
    if derived is None:
        raise Img2GeneError(
            f"Microns per pixel of `{geometry.image_key}` (region `{geometry.region}`) are not known. Pass `mpp=` "
            "(microns per pixel of the full-resolution image) or `spot_um=` (diameter of the spots)."
        )
    return derived


class _Exact(NamedTuple):
    """Microns per pixel that follow from the design of an array."""

    mpp: float
    source: str
    has_lattice: bool


def _exact_mpp(table: AnnData, geometry: Geometry) -> _Exact | None:
    """Derive microns per pixel from the Visium lattice or from the name of Visium HD squares."""
    if {"array_row", "array_col"} <= set(table.obs):
        grid = table.obs[["array_row", "array_col"]].iloc[geometry.rows].apply(pd.to_numeric, errors="coerce")
        pitch = hexagonal_pitch(grid.to_numpy(dtype=float), geometry.centers)
        if pitch is not None:
            return _Exact(VISIUM_PITCH_UM / pitch, "the Visium lattice (100 µm from spot to spot)", True)
    bin_um = _HD_BIN.search(geometry.region)
    if bin_um and geometry.spot_px > 0:
        return _Exact(float(bin_um.group(1)) / geometry.spot_px, f"the name `{geometry.region}`", False)
    return None


def _agreed(geometry: Geometry, stated: float, source: str, exact: _Exact | None) -> float:
    """Choose between stated microns per pixel and those of the array's design."""
    if exact is None or abs(stated / exact.mpp - 1) <= _AGREEMENT:
        return stated
    text = (
        f"Microns per pixel of `{geometry.image_key}` (region `{geometry.region}`) are {stated:.4g} by {source}, but "
        f"{exact.mpp:.4g} by {exact.source}."
    )
    if not exact.has_lattice or not _DIAMETER_ERROR[0] < stated / exact.mpp < _DIAMETER_ERROR[1]:
        raise Img2GeneError(f"{text} Pass the right value as `mpp=`.")
    logger.warning(
        "%s The lattice is used: Space Ranger's spot diameter corresponds to about 65 µm. Pass `mpp=` to choose.", text
    )
    return exact.mpp


def hexagonal_pitch(grid: np.ndarray, centers: np.ndarray) -> float | None:
    """Measure the distance of neighbouring spots of a hexagonal Visium array; None for any other array.

    The lattice is exact. Space Ranger's ``spot_diameter_fullres`` corresponds to about 65 µm although the printed spots
    have 55 µm, so microns per pixel derived from it and 55 µm would be 15 % too small.

    Parameters
    ----------
    grid
        float (n, 2): ``array_row`` and ``array_col`` of the spots.
    centers
        float (n, 2): row and column of the spot centres in pixels.
    """
    # Only the hexagonal array leaves every second (row, column) empty, but thinned square bins can do so, too.
    if len(grid) < 3 or not np.isfinite(grid).all() or len(np.unique(grid.sum(axis=1) % 2)) > 1:
        return None
    design = np.column_stack([grid, np.ones(len(grid))])
    # Spots in one line do not determine both steps.
    if np.linalg.matrix_rank(design) < 3:
        return None
    fit = np.linalg.lstsq(design, centers, rcond=None)[0]
    per_row, per_column = np.linalg.norm(fit[:2], axis=1)
    # One array row is √3/2 of the pitch, one array column half of it.
    pitch = float((per_row / (np.sqrt(3) / 2) + per_column / 0.5) / 2)
    if not pitch > 0 or abs(per_row / per_column / np.sqrt(3) - 1) > _LATTICE_TOLERANCE:
        return None
    skew = abs(fit[0] @ fit[1]) / (per_row * per_column)
    error = np.sqrt(((design @ fit - centers) ** 2).sum(axis=1).mean()) / pitch
    return pitch if max(skew, error) <= _LATTICE_TOLERANCE else None


def image_mpp(sdata: SpatialData, image_key: str, *, besides: str | None = None) -> float | None:
    """Find microns per pixel of an image from any region or table of the study; None if nothing gives them.

    Sources that contradict each other are refused. The region ``besides`` is no source for itself: what an earlier call
    recorded may have been wrong.
    """
    sources = _recorded_for_image(sdata, image_key, besides) or _derived_for_image(sdata, image_key)
    if not sources:
        return None
    values = np.array(list(sources.values()))
    if values.max() / values.min() - 1 > _AGREEMENT:
        text = listing(f"{value:.4g} by {name}" for name, value in sources.items())
        raise Img2GeneError(f"Microns per pixel of `{image_key}` are contradictory: {text}. Pass `mpp=`.")
    return float(values[0])


def _recorded_for_image(sdata: SpatialData, image_key: str, besides: str | None) -> dict[str, float]:
    """Read what readers and `extract_patches` recorded for an image and its regions, except one."""
    sources = {}
    for key, table in sdata.tables.items():
        patches = _schema.read_json(table, "patches", default={}).get("regions", {})
        for region, entry in patches.items():
            value = _rescaled(sdata, region, entry) if entry["image"] == image_key and region != besides else None
            if value is not None:
                sources[f"the patches of `{region}` in sdata['{key}']"] = value
        for entry in _schema.read_json(table, "sections", default={}).values():
            if entry.get("image") == image_key and "mpp" in entry:
                region = entry.get("region")
                scale = _scale(sdata, region, image_key) if region in sdata else 1.0
                if scale is not None:
                    sources.setdefault(f"the reader of `{region}`", float(entry["mpp"]) / scale)
    return sources


def _rescaled(sdata: SpatialData, region: str, entry: dict[str, Any]) -> float | None:
    """Convert recorded microns per pixel to the image as it is now; None if it has changed in an unknown way."""
    size = list(scale0(sdata.images[entry["image"]]).shape[1:])
    if not entry.get("mpp"):
        return None
    if entry.get("size", size) == size:
        return float(entry["mpp"])
    scale = _scale(sdata, region, entry["image"]) if region in sdata else None
    before = np.abs(np.array(entry["matrix"])[:, :2]).max()
    return None if scale is None else float(entry["mpp"]) * before / scale


def _derived_for_image(sdata: SpatialData, image_key: str) -> dict[str, float]:
    """Derive microns per pixel from the squares and lattices that other regions on the image have."""
    sources = {}
    for region, shapes in sdata.shapes.items():
        bin_um, scale = _HD_BIN.search(region), _scale(sdata, region, image_key)
        if bin_um and scale is not None and len(shapes):
            width = 2 * np.median(shapes["radius"]) if "radius" in shapes else equivalent_diameter(shapes.geometry)
            sources[f"the name of `{region}`"] = float(bin_um.group(1)) / (float(width) * scale)
    for key in sdata.tables:
        study = Study.of(sdata, key)
        if not {"array_row", "array_col"} <= set(study.table.obs):
            continue
        for region, rows in study.regions.items():
            if region in sdata and _scale(sdata, region, image_key) is not None:
                exact = _exact_mpp(study.table, locate_region(study, region, rows, image_key))
                if exact is not None:
                    sources.setdefault(f"{exact.source} of `{region}`", exact.mpp)
    return sources


def _scale(sdata: SpatialData, region: str, image_key: str) -> float | None:
    """Return image pixels per unit of a region; None if the two are not aligned."""
    try:
        return isotropic_scale(region_matrix(sdata, region, image_key), region, image_key)
    except Img2GeneError:
        return None


def _check_alignment(study: Study, geometry: Geometry, mpp: float, size: tuple[int, ...]) -> None:
    """Refuse spots outside the image, and coordinates of a downscaled image laid on the full-resolution one."""
    height, width = size
    y, x = geometry.centers.T
    _check_inside(study, geometry, height, width)
    in_corner = y.max() < _CORNER * height and x.max() < _CORNER * width
    if in_corner and (_implausible_size(geometry, mpp, max(size)) or _overlapping(geometry)):
        raise Img2GeneError(
            f"The spots of `{geometry.region}` fill only the top left corner of image `{geometry.image_key}` "
            f"(rows to {y.max():.0f} of {height}, columns to {x.max():.0f} of {width}) and their size ({geometry.spot_px:.1f} px "
            f"across, {mpp:.3g} µm per pixel) does not fit it: they look like coordinates of a downscaled (hires) image "
            "on the full-resolution one. Multiply them by 1 / scale factor, or set the transformation."
        )


def _check_inside(study: Study, geometry: Geometry, height: int, width: int) -> None:
    """Refuse spots outside the image; spots on its edge, which a crop leaves, are named in a warning."""
    y, x = geometry.centers.T
    beyond = np.max([-y, -x, y - height, x - width], axis=0)
    # A centre on the last row or column of pixels still lies inside, one on the border itself does not.
    outside = (y < 0) | (x < 0) | (y >= height) | (x >= width)
    if not outside.any():
        return
    names = listing(study.table.obs_names[geometry.rows[outside]], 5)
    text = (
        f"{int(outside.sum())} of {len(y)} spots of `{geometry.region}` lie outside image `{geometry.image_key}` "
        f"({height} × {width} px; spots span rows {y.min():.0f} to {y.max():.0f}, columns {x.min():.0f} to {x.max():.0f}): "
        f"{names}."
    )
    # A crop keeps spots that touch it and rounds its edge to whole pixels. The diameter of labels is unknown.
    reach = geometry.spot_px / 2 + 1 if geometry.spot_px > 0 else 0
    if (beyond[outside] > reach).any():
        raise Img2GeneError(
            f"{text} Check the transformation between them, choose another image with `images=`, or leave these rows "
            f"out: `sdata['{study.table_key}'] = {study.name}[keep].copy()`."
        )
    logger.warning(
        "%s They touch its edge, and their patches are padded with white. Leave them out by `obs['%s']`, the fraction "
        "of each patch inside the image.",
        text,
        _schema.PATCH_INSIDE,
    )


def _implausible_size(geometry: Geometry, mpp: float, side: int) -> bool:
    """Check whether the image or its spots would have a size that no spatial array has."""
    if mpp * side > _MAX_EXTENT_UM:
        return True
    # Spot diameters lie between 2 µm (Visium HD) and 100 µm (legacy ST).
    return bool(geometry.spot_px * mpp < 1.5)


def _overlapping(geometry: Geometry) -> bool:
    """Check whether spots overlap, as they do when positions are downscaled and diameters are not."""
    from scipy.spatial import cKDTree

    if len(geometry.centers) < 2:
        return False
    nearest = cKDTree(geometry.centers).query(geometry.centers, k=2)[0][:, 1]
    return bool(np.median(nearest) < 0.7 * geometry.spot_px)
