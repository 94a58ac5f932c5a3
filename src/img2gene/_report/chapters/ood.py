"""The chapter on out-of-distribution spots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from img2gene._report.blocks import CALIBRATED, Chapter, Figure, Missing, Row, Text, table
from img2gene._report.figures import canvas, vector
from img2gene._report.sources import TRAINED
from img2gene._report.subject import Subject, uncertainty_facts

_MOST_BOXES, _MOST_ROWS = 40, 60


def ood_chapter(subject: Subject) -> Chapter:
    """Which spots are unlike those that the model was trained on."""
    percentiles, sections, source = ood_values(subject)
    title = "Spots unlike the training data"
    if percentiles is None or sections is None:
        text = "distances of spots from the training embeddings"
        return Chapter("ood", title, [Missing(text, CALIBRATED)])
    threshold = uncertainty_facts(subject)[1]
    frame = ood_shares(subject)
    far = frame["share beyond"].to_numpy() if frame is not None else np.array([])
    trained = [] if subject.study is None else subject.study.with_role(TRAINED)
    others = ~np.isin(sections, trained)
    where = " of sections that the model was not trained on" if trained and others.any() else ""
    known = percentiles[others if others.any() else ~others]
    beyond = np.mean(known[np.isfinite(known)] > threshold)
    lead = f"{beyond:.1%} of spots{where} lie beyond the {threshold:g}th percentile of the distances among training patients, "
    lead += f"where some {100 - threshold:g}% are to be expected; {source}."
    shown = frame.assign(**{"share beyond": [f"{value:.1%}" for value in far]})  # type: ignore[union-attr]
    caption = f"Share of spots beyond the {threshold:g}th percentile"
    part = table(shown, caption, limit=_MOST_ROWS, what="sections", right=("share beyond",))
    return Chapter("ood", title, [Text(lead, "lead"), Row([_ood_boxes(percentiles, sections, threshold), part])])


def ood_values(subject: Subject) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    """Percentile and section of each spot, and where they come from."""
    if subject.study is not None and subject.study.ood is not None:
        return subject.study.ood, subject.study.sections, "distances from the sections the stored model was trained on"
    values = subject.values
    if values is not None and values.ood is not None:
        return values.ood, values.sections, "distances of each section from the training sections of its fold"
    return None, None, ""


def ood_shares(subject: Subject) -> pd.DataFrame | None:
    """Share of spots beyond the threshold in each section, the highest first."""
    percentiles, sections, _ = ood_values(subject)
    if percentiles is None or sections is None:
        return None
    roles = {} if subject.study is None else subject.study.roles
    rows = []
    for name in dict.fromkeys(sections.tolist()):
        own = percentiles[sections == name]
        own = own[np.isfinite(own)]
        facts = {"section": name, "role": roles.get(name), "spots": len(own)}
        beyond = float((own > uncertainty_facts(subject)[1]).mean()) if len(own) else np.nan
        rows.append(facts | {"share beyond": beyond, "median percentile": np.median(own) if len(own) else np.nan})
    frame = pd.DataFrame(rows).sort_values("share beyond", ascending=False, kind="stable", ignore_index=True)
    return frame if roles else frame.drop(columns="role")


def _ood_boxes(percentiles: np.ndarray, sections: np.ndarray, threshold: float) -> Figure:
    names = list(dict.fromkeys(sections.tolist()))[:_MOST_BOXES]
    drawing = canvas(5.6, 1.3 + 0.28 * len(names))
    ax = drawing.add_subplot()
    parts = [percentiles[(sections == name) & np.isfinite(percentiles)] for name in names]
    style: dict[str, Any] = {"patch_artist": True, "widths": 0.6, "showfliers": False}
    style |= {"boxprops": {"facecolor": "#9db7dc", "edgecolor": "#3b6fb6"}, "medianprops": {"color": "black"}}
    ax.boxplot(parts, orientation="horizontal", **style)
    ax.axvline(threshold, color="#c4673d", linewidth=1.2)
    ax.set_yticks(range(1, len(names) + 1), names, fontsize=8)
    ax.invert_yaxis()
    ax.set(xlim=(-2, 102), xlabel="percentile of the distance from the training data")
    ax.spines[["top", "right"]].set_visible(False)
    limited = f" First {len(names)} sections." if len(names) < len(np.unique(sections)) else ""
    caption = f"Distribution over the spots of each section; line: threshold.{limited}"
    return vector(drawing, "Percentiles of the distance from the training data", caption)
