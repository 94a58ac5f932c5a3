"""Maps of genes: measured beside predicted, on the tissue or, without an image, at the places of the spots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import metrics
from img2gene._report.blocks import Figure, number
from img2gene._report.figures import canvas, raster
from img2gene._report.sources import ReportedStudy, Values, readable
from img2gene.pl._tissue import Canvas, canvases, color_limits, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _BLANK_PX, _PICTURE_PX = 5.2, 400, 500


@dataclass(frozen=True)
class Panel:
    """One section to be drawn, and its rows among those of the values."""

    canvas: Canvas
    rows: np.ndarray
    measured: bool = True


def panels(
    study: ReportedStudy | None, values: Values, sections: list[str], unlike: frozenset[str] = frozenset()
) -> list[Panel]:
    """Sections on their tissue where the study has them, else (and those ``unlike`` it) on white."""
    tissues: dict[str, Canvas] = {}
    if study is not None:
        known = [name for name in sections if name in study.roles and name not in unlike]
        found, _ = readable(canvases, study, known)
        tissues = {canvas.name: canvas for canvas in found or []}
    out = []
    for name in sections:
        rows = np.flatnonzero(values.sections == name)
        drawn = _matched(tissues[name], study, values, rows) if name in tissues else None
        blank = None if drawn is not None or values.xy is None else _blank(name, rows, values.xy[rows])
        if drawn is not None or blank is not None:
            out.append(Panel(drawn or blank, rows))  # type: ignore[arg-type]
    return out


def _matched(tissue: Canvas, study: Any, values: Values, rows: np.ndarray) -> Canvas | None:
    """The section with its spots in the order of the values; None if the study lacks one of them."""
    import pandas as pd

    place = pd.Index(study.table.obs_names[tissue.rows]).get_indexer(values.names[rows])
    if (place < 0).any():
        return None
    return _shrunk(Canvas(tissue.name, rows, tissue.picture, tissue.xy[place], tissue.diameter))


def _shrunk(tissue: Canvas) -> Canvas:
    """The section with a picture as small as it is shown: matplotlib takes seconds to scale each."""
    from PIL import Image

    height, width = tissue.picture.shape[:2]
    scale = min(1, _PICTURE_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = np.asarray(Image.fromarray(np.ascontiguousarray(tissue.picture)).resize(size, Image.Resampling.BOX))
    # Pixel centres are whole numbers, so that the corner lies at −0.5 in both pictures.
    xy = (tissue.xy + 0.5) * (np.array(size) / (width, height)) - 0.5
    return Canvas(tissue.name, tissue.rows, picture, xy, tissue.diameter * scale)


def _blank(name: str, rows: np.ndarray, xy: np.ndarray) -> Canvas:
    """A white picture with the spots of a section."""
    from scipy.spatial import cKDTree

    low, span = xy.min(axis=0), max(float(np.ptp(xy, axis=0).max()), 1e-9)
    places = (xy - low) / span * 0.94 * _BLANK_PX + 0.03 * _BLANK_PX
    pitch = cKDTree(places).query(places, k=2)[0][:, 1] if len(places) > 1 else np.array([20.0])
    height = int(places[:, 1].max() + 0.03 * _BLANK_PX) + 1
    white = np.full((height, _BLANK_PX, 3), 255, dtype=np.uint8)
    return Canvas(name, rows, white, places, float(np.median(pitch)) * 0.65)


def gene_maps(gene: str, shown: list[Panel], values: Values, marks: list[str], kind: str = "") -> Figure:
    """One figure for a gene: a row for each section, measured, predicted and, where it is known, the SD."""
    parts: list[str] = [name for name in ("measured", "predicted", "std") if name in values.layers]
    parts = [name for name in parts if name != "measured" or any(panel.measured for panel in shown)]
    side = _WIDTH / max(len(parts), 2)
    heights = [side * panel.canvas.picture.shape[0] / panel.canvas.picture.shape[1] + 0.3 for panel in shown]
    drawing = canvas((side + 0.3) * len(parts), sum(heights) + 0.35)
    drawing.suptitle(gene, fontsize=11, fontweight="bold")
    axes = drawing.subplots(len(shown), len(parts), squeeze=False, height_ratios=heights)
    for line, panel in zip(axes, shown, strict=True):
        _draw_line(line, parts, panel, gene, values)
    sections = ", ".join(panel.canvas.name for panel in shown)
    alt = f"{gene}: {', '.join('SD' if name == 'std' else name for name in parts)}; sections {sections}"
    return raster(drawing, alt, f"{gene}{kind}, {sections}", marks)


def _draw_line(line: np.ndarray, parts: list[str], panel: Panel, gene: str, values: Values) -> None:
    found = {name: values.read(name, [gene], panel.rows) for name in parts}
    drawn = {name: part[:, 0] for name, part in found.items() if part is not None}
    both = [part for name, part in drawn.items() if name != "std"]
    low, high = color_limits(np.concatenate(both))
    titles = {"measured": f"{panel.canvas.name}: measured", "predicted": "predicted", "std": "predicted SD"}
    if "measured" in drawn:
        titles["predicted"] += f", PCC {_correlation(drawn['measured'], drawn['predicted'])}"
    else:
        titles["predicted"] = f"{panel.canvas.name}: predicted"
    for ax, name in zip(line, parts, strict=True):
        limits = (low, high) if name != "std" else color_limits(drawn[name])
        _draw(ax, panel.canvas, drawn[name], limits, "Oranges" if name == "std" else "viridis", bar=name != "measured")
        ax.set_title(titles[name], fontsize=8.5)


def _draw(ax: Axes, tissue: Canvas, values: np.ndarray, limits: tuple[float, float], cmap: str, *, bar: bool) -> None:
    mappable = draw(ax, tissue, values, cmap=cmap, vmin=limits[0], vmax=limits[1], alpha=0.9, size=1.35)
    if bar:
        colors = ax.figure.colorbar(mappable, ax=ax, fraction=0.046, pad=0.02)
        colors.ax.tick_params(labelsize=7, length=2)
        colors.outline.set_visible(False)


def _correlation(truth: np.ndarray, predicted: np.ndarray) -> str:
    known = np.isfinite(truth) & np.isfinite(predicted)
    value = metrics.pearson(truth[known], predicted[known])[0] if known.sum() > 1 else np.nan
    return number(value, 2) if np.isfinite(value) else "undefined"
