"""Maps of single genes, on the tissue or, without an image, at the positions of the spots."""

from __future__ import annotations

from img2gene._report.blocks import Figure
from img2gene._report.figures import canvas, raster
from img2gene._report.sources import readable
from img2gene._report.subject import Subject
from img2gene.pl._predictions import Predictions
from img2gene.pl._tissue import Canvas, canvases, matched_canvases, shrunken_canvas
from img2gene.pl.prediction import draw_maps, map_columns, map_rows

_WIDTH, _PICTURE_PX = 5.2, 500


def section_canvases(subject: Subject, predictions: Predictions, sections: list[str]) -> list[Canvas]:
    """Prepare sections on the tissue if the study has their spots, else on white."""
    study, prepared = subject.study, []
    names = [] if study is None else [name for name in sections if name in study.roles and name not in subject.unlike]
    tissues = readable(canvases, study, names)[0] or [] if names else []
    for name in sections:
        matched = []
        if study is not None:
            parts = [tissue for tissue in tissues if tissue.section == name]
            spots = predictions.table.obs_names
            matched = matched_canvases(parts, study.table.obs_names, spots, predictions.rows(name))
        if matched:
            prepared += [shrunken_canvas(canvas, _PICTURE_PX) for canvas in matched]
        # Kept predictions hold the positions of their spots, so they need no picture.
        elif predictions.study is None:
            prepared += readable(predictions.canvases, [name])[0] or []
    return prepared


def gene_maps(gene: str, predictions: Predictions, shown: list[Canvas], marks: list[str], kind: str = "") -> Figure:
    """Draw one gene: a row for each section with the measured expression, the prediction and the SD, if they exist."""
    rows = map_rows(predictions, [gene], shown, uncertainty="std" in predictions.parts, residual=False, fade=True)
    columns = map_columns(rows)
    side = _WIDTH / max(len(columns), 2)
    heights = [side * section.picture.shape[0] / section.picture.shape[1] + 0.35 for section in shown]
    drawing = canvas((side + 0.35) * len(columns), sum(heights))
    draw_maps(drawing, rows, unit=predictions.unit, cmap="magma", alpha=0.9, size=1.35)
    sections = ", ".join(section.name for section in shown)
    parts = ", ".join("SD" if name == "std" else name for name in columns)
    return raster(drawing, f"{gene}: {parts}; sections {sections}", f"{gene}{kind}, {sections}", marks)
