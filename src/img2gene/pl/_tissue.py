"""Values of spots drawn over the tissue image."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._errors import Img2GeneError, MissingKeyError, no_such
from img2gene._study.geometry import Geometry, locate
from img2gene._study.lattices import nearest_distance
from img2gene._study.microns import resolve_mpp
from img2gene._study.pyramids import thumbnail
from img2gene._study.study import Study
from img2gene.pl._figures import scale_bar

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

_OVERVIEW_PX, _BLANK_PX = 1200, 400
_CELLS_PER_PITCH = 8
_RANGE = (1, 99)


@dataclass(frozen=True)
class Canvas:
    """The spots of a section in one image, ready to be drawn: a thumbnail, and the spots in its pixels.

    Attributes
    ----------
    name
        Name in titles: the section, with the region if the section lies in several.
    section
        Section.
    rows
        (n,) rows of the table.
    picture
        uint8 (height, width, 3).
    xy
        (n, 2) column and row of the spots in thumbnail pixels.
    diameter
        Spot diameter in thumbnail pixels.
    um_per_px
        Side of a thumbnail pixel in µm; None if it is unknown.
    """

    name: str
    section: str
    rows: np.ndarray
    picture: np.ndarray
    xy: np.ndarray
    diameter: float
    um_per_px: float | None = None


def canvases(study: Study, sections: list[str] | None) -> list[Canvas]:
    """Prepare the chosen sections of a study (default: all), cropped to their spots.

    Several sections can share a region and its image, such as the cores of a tissue microarray. A section with several
    regions has a canvas for each.
    """
    available = study.section_names()
    names = available if sections is None else sections
    absent = [name for name in names if name not in available]
    if absent or not names:
        raise MissingKeyError(no_such("section", absent, available))
    geometries = locate(study, _images(study))
    return [canvas for name in names for canvas in _section_canvases(study, name, geometries)]


def _section_canvases(study: Study, section: str, geometries: list[Geometry]) -> list[Canvas]:
    """Prepare the spots of a section in each of its regions."""
    parts = [(geometry, study.sections[geometry.rows] == section) for geometry in geometries]
    parts = [(geometry, chosen) for geometry, chosen in parts if chosen.any()]
    return [
        _canvas(
            study,
            section if len(parts) == 1 else f"{section} ({geometry.region})",
            section,
            replace(geometry, rows=geometry.rows[chosen], centers=geometry.centers[chosen]),
        )
        for geometry, chosen in parts
    ]


def blank_canvas(name: str, rows: np.ndarray, xy: np.ndarray) -> Canvas:
    """Prepare a section on white, for spots (n, 2) at x and y in µm without an image."""
    pitch = _nearest(xy)
    # Half a pitch around the outermost spots, so that their circles are not cut.
    low, extent = xy.min(axis=0) - 0.5 * pitch, np.ptp(xy, axis=0) + pitch
    scale = _BLANK_PX / extent.max()
    width, height = np.ceil(extent * scale).astype(int)
    white = np.full((height, width, 3), 255, dtype=np.uint8)
    return Canvas(name, name, rows, white, (xy - low) * scale - 0.5, 0.65 * pitch * scale, 1 / scale)


def matched_canvases(parts: list[Canvas], names: pd.Index, other_names: pd.Index, rows: np.ndarray) -> list[Canvas]:
    """Reorder the spots of a section, called ``names``, as in another table; nothing if one of its spots is absent.

    ``parts`` are the canvases of the section, and ``rows`` its rows in the other table.
    """
    matched = []
    for canvas in parts:
        order = names[canvas.rows].get_indexer(other_names[rows])
        here = order >= 0
        if here.any():
            matched.append(replace(canvas, rows=rows[here], xy=canvas.xy[order[here]]))
    return matched if sum(len(canvas.rows) for canvas in matched) == len(rows) else []


def shrunken_canvas(canvas: Canvas, side: int) -> Canvas:
    """Scale the picture of a section down to ``side`` pixels: matplotlib takes seconds to scale each."""
    from PIL import Image

    height, width = canvas.picture.shape[:2]
    scale = min(1, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = np.asarray(Image.fromarray(np.ascontiguousarray(canvas.picture)).resize(size, Image.Resampling.BOX))
    # Pixel centres are whole numbers, so the corner lies at -0.5 in both pictures.
    xy = (canvas.xy + 0.5) * (np.array(size) / (width, height)) - 0.5
    microns = None if canvas.um_per_px is None else canvas.um_per_px * width / size[0]
    return replace(canvas, picture=picture, xy=xy, diameter=canvas.diameter * scale, um_per_px=microns)


def _images(study: Study) -> dict[str, str] | None:
    """Images that the patches were taken from, if that was recorded."""
    if study.record("patches") is None:
        return None
    return {region: entry["image"] for region, entry in study.patches["regions"].items()}


def _canvas(study: Study, name: str, section: str, geometry: Geometry) -> Canvas:
    extent = np.ptp(geometry.centers, axis=0).max() + 4 * np.nan_to_num(geometry.spot_px, nan=1.0)
    picture, step = thumbnail(study.sdata, geometry.image_key, max(1, int(extent / _OVERVIEW_PX)))
    centers = geometry.centers / step
    margin = max(2 * np.nan_to_num(geometry.spot_px) / step, 10)
    low = np.clip(centers.min(axis=0) - margin, 0, None).astype(int)
    high = (centers.max(axis=0) + margin).astype(int)
    # Points have no diameter, so their circles take the distance to the next spot.
    spot = geometry.spot_px / step if geometry.spot_px > 0 else _nearest(centers)
    part = picture[low[0] : high[0], low[1] : high[1]]
    if not part.size:
        raise Img2GeneError(
            f"All spots of `{name}` lie outside the image `{geometry.image_key}`. Check the transformations of the image "
            f"and of the region `{geometry.region}`."
        )
    mpp = _microns(study, geometry)
    xy = (centers - low)[:, ::-1]
    return Canvas(name, section, geometry.rows, part, xy, spot, None if mpp is None else mpp * step)


def _microns(study: Study, geometry: Geometry) -> float | None:
    """Microns per image pixel, as the patches record them, or as they can be found; None if they are unknown."""
    recorded = {} if study.record("patches") is None else study.patches["regions"].get(geometry.region, {})
    if recorded.get("mpp"):
        return float(recorded["mpp"])
    # Pathways and localisations can be drawn without patches, and then without a scale bar, too.
    with suppress(Img2GeneError):
        return resolve_mpp(study, [geometry], mpp=None, spot_um=None)[geometry.region]
    return None


def _nearest(centers: np.ndarray) -> float:
    """Median distance of the spots to their nearest neighbour, in pixels."""
    return nearest_distance(centers) or 10.0


def draw(
    ax: Axes,
    canvas: Canvas,
    values: np.ndarray,
    *,
    cmap: str,
    vmin: float,
    vmax: float,
    alpha: float | np.ndarray,
    size: float,
) -> ScalarMappable:
    """Draw one value per spot over the tissue, with one opacity or one for each; spots without a value are left out."""
    from matplotlib.collections import EllipseCollection

    shown = np.isfinite(values)
    width = np.full(int(shown.sum()), canvas.diameter * size)
    # Markers of `scatter` are sized in points, so they would not keep to the scale of the image.
    spots = EllipseCollection(
        width,
        width,
        np.zeros_like(width),
        units="xy",
        offsets=canvas.xy[shown],
        offset_transform=ax.transData,
        linewidths=0,
    )
    spots.set_array(values[shown])
    spots.set_clim(vmin, vmax)
    spots.set_cmap(cmap)
    if not isinstance(alpha, np.ndarray):
        spots.set_alpha(alpha)
    elif shown.any():  # matplotlib takes no empty array of opacities
        spots.set_alpha(alpha[shown])
    # The picture sets the limits of the axes, which a collection does not.
    ax.imshow(canvas.picture)
    ax.add_collection(spots)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    scale_bar(ax, canvas.um_per_px)
    return spots


def color_limits(values: np.ndarray, percentiles: tuple[float, float] = _RANGE) -> tuple[float, float]:
    """Two percentiles of the finite values; the upper limit is larger even if all values are equal."""
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, percentiles) if len(known) else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1


def outline(ax: Axes, canvas: Canvas, inside: np.ndarray, style: dict[str, Any]) -> None:
    """Draw the boundary around some spots, along the cells that are nearer to them than to any other spot.

    ``style`` holds ``color``, ``linestyle`` and ``linewidth``.
    """
    from scipy.spatial import cKDTree

    if not inside.any():
        return
    pitch = _nearest(canvas.xy)
    step = pitch / _CELLS_PER_PITCH
    # The grid is wider than the spots, so that lines around spots at the edge are closed.
    low, high = canvas.xy.min(axis=0) - 2 * pitch, canvas.xy.max(axis=0) + 2 * pitch
    across, down = (np.arange(start, stop, step) for start, stop in zip(low, high, strict=True))
    grid = np.stack(np.meshgrid(across, down), axis=-1)
    # Just above 1 / √2, the distance to the corner of a cell on a square lattice, so that empty space stays empty.
    distance, nearest = cKDTree(canvas.xy).query(grid, distance_upper_bound=0.75 * pitch)
    # Where no spot is near, the tree answers the number of spots: the place of the appended False.
    mask = np.append(inside, False)[nearest] & np.isfinite(distance)
    lines = {f"{name}s": value for name, value in style.items()}
    ax.contour(across, down, mask.astype(float), levels=[0.5], **lines)
