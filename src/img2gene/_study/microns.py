"""Find microns per pixel of each section, and check that spots and image are on the same scale."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from img2gene._errors import Img2GeneError, Problems
from img2gene._study.geometry import Geometry, recorded

if TYPE_CHECKING:
    from anndata import AnnData

VISIUM_PITCH_UM = 100.0
VISIUM_SPOT_UM = 55.0
_HD_BIN = re.compile(r"square_(\d+)um")
_MAX_EXTENT_UM = 25_000.0
_CORNER = 0.4


def resolve_mpp(
    table: AnnData,
    geometries: list[Geometry],
    sizes: Mapping[str, tuple[int, int]],
    *,
    mpp: float | Mapping[str, float] | None,
    spot_um: float | None,
) -> dict[str, float]:
    """Find microns per image pixel of each region; all problems are raised together.

    Sources, in this order: ``mpp``; ``spot_um`` over the measured spot diameter; what the section's reader recorded;
    the Visium lattice (100 µm from spot to spot); the bin size in a Visium HD region's name; 55 µm for circles of a
    Visium table without lattice coordinates. ``sizes`` holds height and width of each region's image in pixels.
    """
    resolution, problems = {}, Problems()
    for geometry in geometries:
        with problems.collect():
            resolution[geometry.region] = _region_mpp(table, geometry, mpp, spot_um)
            _check_alignment(geometry, resolution[geometry.region], sizes[geometry.region])
    problems.raise_all()
    return resolution


def _region_mpp(
    table: AnnData, geometry: Geometry, mpp: float | Mapping[str, float] | None, spot_um: float | None
) -> float:
    """Find microns per pixel of one region, from the arguments or else from the table."""
    if isinstance(mpp, Mapping):
        if geometry.region not in mpp:
            raise Img2GeneError(f"`mpp` has no entry for region `{geometry.region}`.")
        mpp = mpp[geometry.region]
    if mpp is not None:
        return _positive(mpp, "mpp")
    if spot_um is not None:
        if not geometry.spot_px > 0:
            raise Img2GeneError(f"`{geometry.region}` has no spot diameter; pass `mpp=` instead of `spot_um=`.")
        return _positive(spot_um, "spot_um") / geometry.spot_px
    derived = known_mpp(table, geometry)
    if derived is None:
        raise Img2GeneError(
            f"Microns per pixel of `{geometry.image_key}` (region `{geometry.region}`) are not known. Pass `mpp=` "
            "(microns per pixel of the full-resolution image) or `spot_um=` (diameter of the spots)."
        )
    return derived


def _positive(value: float, name: str) -> float:
    if not np.isfinite(value) or value <= 0:
        raise Img2GeneError(f"{name}={value!r}: expected a positive number of microns.")
    return float(value)


def known_mpp(table: AnnData, geometry: Geometry) -> float | None:
    """Derive microns per image pixel from the table and the region's name; None if neither suffices."""
    record = recorded(table, geometry.region)
    if "mpp" in record:
        # Readers record microns per unit of the region, which need not be a pixel of this image.
        return float(record["mpp"]) * geometry.units_per_px
    lattice = _visium_pitch_px(table, geometry)
    if lattice is not None:
        return VISIUM_PITCH_UM / lattice
    bin_um = _HD_BIN.search(geometry.region)
    if bin_um and geometry.spot_px > 0:
        return float(bin_um.group(1)) / geometry.spot_px
    if "in_tissue" in table.obs and geometry.spot_px > 0:
        return VISIUM_SPOT_UM / geometry.spot_px
    return None


def _visium_pitch_px(table: AnnData, geometry: Geometry) -> float | None:
    """Measure the distance of neighbouring spots of the hexagonal Visium array in image pixels; None for other arrays.

    The lattice is exact. Space Ranger's ``spot_diameter_fullres`` describes the detected spot, about 70 µm for the 55
    µm print, so microns per pixel derived from the diameter would be a fifth too small.
    """
    if not {"array_row", "array_col"} <= set(table.obs) or len(geometry.rows) < 3:
        return None
    grid = table.obs[["array_row", "array_col"]].to_numpy(dtype=float)[geometry.rows]
    # Only the hexagonal array leaves every second (row, column) empty; HD's square grid fills all of them.
    if not np.isfinite(grid).all() or len(np.unique((grid.sum(axis=1)) % 2)) > 1:
        return None
    design = np.column_stack([grid, np.ones(len(grid))])
    # Spots in one line do not determine both steps.
    if np.linalg.matrix_rank(design) < 3:
        return None
    steps = np.linalg.lstsq(design, geometry.centers, rcond=None)[0][:2]
    per_row, per_column = np.linalg.norm(steps, axis=1)
    # One array row is √3/2 of the pitch, one array column half of it.
    return float((per_row / (np.sqrt(3) / 2) + per_column / 0.5) / 2)


def _check_alignment(geometry: Geometry, mpp: float, size: tuple[int, int]) -> None:
    """Refuse spots outside the image, and coordinates of a downscaled image laid on the full-resolution one."""
    height, width = size
    y, x = geometry.centers.T
    outside = (y < 0) | (x < 0) | (y >= height) | (x >= width)
    if outside.any():
        raise Img2GeneError(
            f"{int(outside.sum())} of {len(y)} spots of `{geometry.region}` lie outside image `{geometry.image_key}` "
            f"({height} × {width} px; spots span rows {y.min():.0f} to {y.max():.0f}, columns {x.min():.0f} to {x.max():.0f}). "
            "Check the transformation between them, or choose another image with `images=`."
        )
    in_corner = y.max() < _CORNER * height and x.max() < _CORNER * width
    if in_corner and (_implausible_size(geometry, mpp, max(size)) or _overlapping(geometry)):
        raise Img2GeneError(
            f"The spots of `{geometry.region}` fill only the top left corner of image `{geometry.image_key}` "
            f"(rows to {y.max():.0f} of {height}, columns to {x.max():.0f} of {width}) and their size ({geometry.spot_px:.1f} px "
            f"across, {mpp:.3g} µm per pixel) does not fit it: they look like coordinates of a downscaled (hires) image "
            "on the full-resolution one. Multiply them by 1 / scale factor, or set the transformation."
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
