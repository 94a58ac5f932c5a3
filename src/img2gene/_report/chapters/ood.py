"""The chapter on out-of-distribution spots."""

from __future__ import annotations

import numpy as np
import pandas as pd

from img2gene._report.blocks import CALIBRATED, Chapter, Figure, Missing, Row, Text, table
from img2gene._report.figures import canvas, vector
from img2gene._report.sources import TRAINED
from img2gene._report.subject import Subject
from img2gene.pl._predictions import Predictions
from img2gene.pl.out_of_distribution import draw_distances, section_distances

_MAX_BOXES, _MAX_ROWS = 40, 60


def ood_chapter(subject: Subject) -> Chapter:
    """Write the chapter from the distances that were stored with the predictions."""
    frame, distances, title = ood_shares(subject), subject.distances, "Out-of-distribution spots"
    if frame is None or distances is None:
        return Chapter("ood", title, [Missing("distances of spots from the training embeddings", CALIBRATED)])
    threshold, trained = subject.threshold, [] if subject.study is None else subject.study.with_role(TRAINED)
    others = ~np.isin(distances.section_of, trained)
    where = " in sections that the model was not trained on" if trained and others.any() else ""
    # Training spots lie near themselves and would hide how far new sections are.
    values = distances.ood[others if others.any() else ~others]  # type: ignore[index]
    beyond = np.mean(values[np.isfinite(values)] > threshold)
    lead = f"{beyond:.1%} of spots{where} lie beyond the {threshold:g}th percentile of the distances among training "
    lead += f"patients; about {100 - threshold:g}% are expected. Distances are measured from the training sections of "
    lead += "the stored model." if distances.study is not None else "each fold."
    frame["share beyond"] = [f"{share:.1%}" for share in frame["share beyond"]]
    caption = f"Share of spots beyond the {threshold:g}th percentile"
    shares = table(frame, caption, limit=_MAX_ROWS, what="sections", right=("share beyond",))
    return Chapter("ood", title, [Text(lead, "lead"), Row([_boxes(distances), shares])])


def ood_shares(subject: Subject) -> pd.DataFrame | None:
    """Share of spots beyond the threshold in each section, the highest first; None without distances."""
    if subject.distances is None:
        return None
    frame = section_distances(subject.distances, subject.distances.section_names)
    if subject.study is not None:
        frame.insert(1, "role", [subject.study.roles.get(name) for name in frame["section"]])
    return frame.sort_values("share beyond", ascending=False, kind="stable", ignore_index=True)


def _boxes(distances: Predictions) -> Figure:
    names = distances.section_names
    shown = names[:_MAX_BOXES]
    drawing = canvas(5.6, 1.3 + 0.28 * len(shown))
    draw_distances(drawing.add_subplot(), distances, shown)
    limited = f" First {len(shown)} of {len(names)} sections." if len(shown) < len(names) else ""
    caption = f"Distances of the spots of each section. Spots right of the line are out-of-distribution.{limited}"
    return vector(drawing, "Percentiles of the distance from the training data", caption)
