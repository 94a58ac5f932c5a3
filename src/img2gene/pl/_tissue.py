"""Values of spots drawn over the tissue image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._errors import MissingKeyError, listing, missing
from img2gene._study.geometry import Geometry, locate
from img2gene._study.images import thumbnail
from img2gene._study.patches import specification
from img2gene._study.sections import section_labels

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from spatialdata import SpatialData

_OVERVIEW_PX = 1200
_CELLS_PER_PITCH = 8
_RANGE = (1, 99)


@dataclass(frozen=True)
class Canvas:
    """One section ready to be drawn: its thumbnail, and its spots in thumbnail pixels.

    Attributes
    ----------
    name
        Section.
    rows
        (n,) rows of the table.
    picture
        uint8 (height, width, 3).
    xy
        (n, 2) column and row of the spots in thumbnail pixels.
    diameter
        Spot diameter in thumbnail pixels.
    """

    name: str
    rows: np.ndarray
    picture: np.ndarray
    xy: np.ndarray
    diameter: float


def canvases(sdata: SpatialData, table_key: str, sections: list[str] | None) -> list[Canvas]:
    """Chosen sections of a study (default: all), cropped to their spots."""
    table = _schema.get_table(sdata, table_key)
    names = section_labels(table, table_key)
    known = list(dict.fromkeys(names.tolist()))
    asked = known if sections is None else sections
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise MissingKeyError(f"No section named {listing(unknown)} (available: {listing(known)}).")
    geometries = {
        str(names[geometry.rows[0]]): geometry for geometry in locate(sdata, table_key, _images(table, table_key))
    }
    return [_canvas(sdata, name, geometries[name]) for name in asked]


def _images(table: AnnData, table_key: str) -> dict[str, str] | None:
    """The images that patches were taken from, where that was recorded."""
    if _schema.read_json(table, "patches") is None:
        return None
    return {region: entry["image"] for region, entry in specification(table, table_key)["regions"].items()}


def _canvas(sdata: SpatialData, name: str, geometry: Geometry) -> Canvas:
    extent = np.ptp(geometry.centers, axis=0).max() + 4 * np.nan_to_num(geometry.spot_px, nan=1.0)
    picture, step = thumbnail(sdata, geometry.image_key, max(1, int(extent / _OVERVIEW_PX)))
    centers = geometry.centers / step
    margin = max(2 * np.nan_to_num(geometry.spot_px) / step, 10)
    low = np.clip(centers.min(axis=0) - margin, 0, None).astype(int)
    high = (centers.max(axis=0) + margin).astype(int)
    spot = geometry.spot_px / step if geometry.spot_px > 0 else _nearest(centers)
    return Canvas(name, geometry.rows, picture[low[0] : high[0], low[1] : high[1]], (centers - low)[:, ::-1], spot)


def _nearest(centers: np.ndarray) -> float:
    from scipy.spatial import cKDTree

    return (
        float(np.median(cKDTree(centers).query(centers, k=min(2, len(centers)))[0][..., -1]))
        if len(centers) > 1
        else 10.0
    )


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
    ax.imshow(canvas.picture)
    ax.add_collection(spots)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    return spots


def color_limits(values: np.ndarray) -> tuple[float, float]:
    """1st and 99th percentile of the values that are known, a span even where all are equal."""
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, _RANGE) if len(known) else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1


def outline(ax: Axes, canvas: Canvas, inside: np.ndarray, style: dict[str, Any]) -> None:
    """Draw the boundary of some spots: of the cells that are nearer to them than to any other spot.

    ``style`` holds ``color``, ``linestyle`` and ``linewidth``.
    """
    from scipy.spatial import cKDTree

    if not inside.any():
        return
    pitch = _nearest(canvas.xy)
    step = pitch / _CELLS_PER_PITCH
    low, high = canvas.xy.min(axis=0) - 2 * pitch, canvas.xy.max(axis=0) + 2 * pitch
    across, down = (np.arange(start, stop, step) for start, stop in zip(low, high, strict=True))
    grid = np.stack(np.meshgrid(across, down), axis=-1)
    # A spot reaches as far as the corners of its cell on a square lattice, pitch / √2, and no further into the empty.
    distance, nearest = cKDTree(canvas.xy).query(grid, distance_upper_bound=0.75 * pitch)
    mask = np.append(inside, False)[nearest] & np.isfinite(distance)
    lines = {f"{name}s": value for name, value in style.items()}
    ax.contour(across, down, mask.astype(float), levels=[0.5], **lines)


def gene_columns(table: AnnData, genes: str | list[str], where: str) -> list[int]:
    """Columns of genes, or an error that lists the available ones."""
    names = [genes] if isinstance(genes, str) else list(genes)
    absent = [name for name in names if name not in table.var_names]
    if absent or not names:
        raise MissingKeyError(missing(listing(absent), where, table.var_names))
    return [int(table.var_names.get_loc(name)) for name in names]
