"""The chapter on calibration: do intervals cover the measured values, and does the SD rank the errors?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from img2gene._report.blocks import CALIBRATED, Chapter, Figure, Missing, Row, Table, Text, table
from img2gene._report.figures import canvas, vector
from img2gene._report.subject import Subject
from img2gene.pl.calibration import MAX_GENES, MAX_SPOTS, draw_calibration, section_calibration

_MAX_ROWS = 60
# Coverage of single held-out patients of the synthetic cohort is .88 to .92 for nominal 90 % intervals.
_TOLERANCE = 0.03
_TITLES = {
    "coverage": "measured coverage",
    "width": "interval width",
    "error_correlation": "Spearman of |error| with SD",
}


def calibration_chapter(subject: Subject) -> Chapter:
    """Write the chapter, from predictions if there are any, else from the scores."""
    predictions, frame = subject.predictions, pd.DataFrame()
    if predictions is not None and {"std", "lower"} & set(predictions.parts):
        frame = section_calibration(predictions, subject.sections, subject.seed)
    if not len(frame):
        return Chapter("calibration", "Calibration of the uncertainty", _scored_calibration(subject))
    blocks: list[Any] = [Row([_reliability(frame, subject), _section_table(frame, subject)])]
    if "coverage" in frame:
        blocks.insert(0, Text(_coverage_text(frame["coverage"], subject.level), "lead"))
    else:
        blocks.append(Missing("coverage, because the predictions have no intervals", CALIBRATED))
    return Chapter("calibration", "Calibration of the uncertainty", blocks)


def _scored_calibration(subject: Subject) -> list[Any]:
    result = subject.result
    scores = pd.DataFrame() if result is None else result.scores[result.scores["model"] == subject.label]
    columns = [name for name in _TITLES if name in scores and scores[name].notna().any()]
    if not columns:
        return [Missing("standard deviations and intervals of held-out predictions", CALIBRATED)]
    frame = scores.groupby("section", sort=False)[columns].mean().reset_index().rename(columns=_TITLES)
    means = table(frame, "Mean over genes", limit=_MAX_ROWS, what="sections", marks=subject.marks)
    return [means, Missing("the reliability curve", "img2gene.tl.cross_validate(sdata, keep_predictions=True)")]


def _section_table(frame: pd.DataFrame, subject: Subject) -> Table:
    n: int = len(subject.predictions.measured_genes)  # type: ignore[union-attr]
    genes = f"all {n:,}" if n <= MAX_GENES else f"{MAX_GENES} of {n:,}"
    return table(
        frame.drop(columns="curve", errors="ignore").rename(columns=_TITLES),
        f"Calibration of {subject.predictions_name}",
        limit=_MAX_ROWS,
        what="sections",
        note=f"Mean over {genes} genes and at most {MAX_SPOTS:,} spots of each section.",
        marks=subject.predictions_marks,
    )


def _coverage_text(coverage: pd.Series, level: float) -> str:
    mean = coverage.mean()
    intervals = (
        f"Nominal {level:.0%} intervals" if np.isfinite(level) else "Intervals (of a level that is not recorded)"
    )
    text = f"{intervals} cover {mean:.1%} of the measured values"
    if len(coverage) > 1:
        text += f" ({coverage.min():.1%} to {coverage.max():.1%} in single sections)"
    if not np.isfinite(level):
        return f"{text}."
    narrow = "They are too narrow" if mean < level else "They are wider than necessary"
    return f"{text}. {'On average they are well calibrated' if abs(mean - level) <= _TOLERANCE else narrow}."


def _reliability(frame: pd.DataFrame, subject: Subject) -> Figure:
    drawing = canvas(4.6, 4.2)
    draw_calibration(drawing.add_subplot(), frame, subject.level)
    caption = "Below the diagonal the uncertainty is understated. Thin lines and dots are sections."
    return vector(drawing, "Measured against nominal coverage", caption, subject.predictions_marks)
