"""The chapter on calibration: do intervals cover what they promise?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from img2gene import metrics
from img2gene._report.blocks import CALIBRATED, Chapter, Figure, Missing, Text, table
from img2gene._report.figures import canvas, vector
from img2gene._report.sources import Values
from img2gene._report.subject import Subject, marks, uncertainty_facts

_LEVELS = np.linspace(0.05, 0.95, 19)
_MOST_GENES, _MOST_SPOTS, _MOST_ROWS = 300, 2000, 60


def calibration_chapter(subject: Subject) -> Chapter:
    """Whether intervals cover what they should, and whether larger SDs go with larger errors."""
    values = subject.values
    present = set() if values is None else set(values.layers) & {"std", "lower", "upper"}
    if values is None or "measured" not in values.layers or not present:
        blocks: list[Any] = _scored_calibration(subject)
        return Chapter("calibration", "Calibration of the uncertainty", blocks)
    parts = _sampled(values, subject.seed)
    frame = pd.DataFrame([_section_calibration(name, part) for name, part in parts.items()])
    lead: list[Any] = (
        [Text(_coverage_text(frame, uncertainty_facts(subject)[0]), "lead")] if "coverage" in frame else []
    )
    titles = {"coverage": "measured coverage", "width": "interval width", "error": "Spearman of |error| with SD"}
    note = f"Mean over {_n_genes(values)} genes; at most {_MOST_SPOTS:,} spots of a section."
    shown = table(
        frame.drop(columns="curve", errors="ignore").rename(columns=titles),
        f"By section, of {subject.values_of}",
        limit=_MOST_ROWS,
        what="sections",
        note=note,
        marks=subject.values_marks,
    )
    blocks = [*lead, _reliability(frame, subject)] if "curve" in frame else lead
    if "coverage" not in frame:
        blocks.append(Missing("coverage: there are no interval bounds", CALIBRATED))
    return Chapter("calibration", "Calibration of the uncertainty", [*blocks, shown])


def _scored_calibration(subject: Subject) -> list[Any]:
    """What the scores hold of it where no predictions are at hand."""
    result = subject.result
    names = ["coverage", "width", "error_correlation"]
    own = pd.DataFrame() if result is None else result.scores[result.scores["model"] == subject.label]
    known = [name for name in names if name in own and own[name].notna().any()]
    if not known:
        return [Missing("standard deviations and intervals of held-out predictions", CALIBRATED)]
    frame = own.groupby("section", sort=False)[known].mean().reset_index()
    found = table(frame, "Mean over genes", limit=_MOST_ROWS, what="sections", marks=marks(result))
    return [found, Missing("the reliability curve", "img2gene.tl.cross_validate(sdata, keep_predictions=True)")]


def _n_genes(values: Values) -> str:
    return (
        f"all {len(values.genes):,}" if len(values.genes) <= _MOST_GENES else f"{_MOST_GENES} of {len(values.genes):,}"
    )


def _sampled(values: Values, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of each section with labels, of evenly chosen genes and of spots at random where there are many."""
    genes, rng, found = values.genes, np.random.default_rng(seed), {}
    if len(genes) > _MOST_GENES:
        genes = [genes[i] for i in np.linspace(0, len(genes) - 1, _MOST_GENES).astype(int)]
    for name in dict.fromkeys(values.sections.tolist()):
        rows = np.flatnonzero(values.sections == name)
        rows = np.sort(rng.permutation(rows)[:_MOST_SPOTS])
        read = {layer: values.read(layer, genes, rows) for layer in values.layers}
        kept = np.isfinite(read["measured"]).any(axis=1)  # type: ignore[arg-type]
        found[name] = {layer: part[kept] for layer, part in read.items() if part is not None}
    return found


def _section_calibration(name: str, part: dict[str, np.ndarray]) -> dict[str, Any]:
    truth, predicted = part["measured"], part["predicted"]
    facts: dict[str, Any] = {"section": name, "spots": len(truth)}
    if {"lower", "upper"} <= part.keys():
        known = np.isfinite(truth) & np.isfinite(part["lower"]) & np.isfinite(part["upper"])
        inside = (part["lower"] <= truth) & (truth <= part["upper"])
        facts["coverage"] = float(inside[known].mean()) if known.any() else np.nan
        facts["width"] = float((part["upper"] - part["lower"])[known].mean()) if known.any() else np.nan
    if "std" in part:
        error = np.abs(truth - predicted)
        complete = np.isfinite(error).all(axis=0) & np.isfinite(part["std"]).all(axis=0)
        found = metrics.spearman(error[:, complete], part["std"][:, complete]) if complete.any() else np.array([])
        facts["error"] = float(found[np.isfinite(found)].mean()) if np.isfinite(found).any() else np.nan
        facts["curve"] = _normal_coverage(error, part["std"])
    return facts


def _normal_coverage(error: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Share of errors within the central normal interval of each level."""
    from scipy.stats import norm

    ratio = (error / np.where(std > 0, std, np.nan)).ravel()
    ratio = ratio[np.isfinite(ratio)]
    return np.array([(ratio <= norm.ppf(0.5 + level / 2)).mean() if len(ratio) else np.nan for level in _LEVELS])


def _coverage_text(frame: pd.DataFrame, level: float) -> str:
    found = frame["coverage"].mean()
    nominal = f"of nominally {level:.0%}" if np.isfinite(level) else "of a level that is not recorded"
    text = f"Intervals {nominal} cover {found:.1%} of what was measured"
    if len(frame) > 1:
        text += f" (sections: {frame['coverage'].min():.1%} to {frame['coverage'].max():.1%})"
    if not np.isfinite(level):
        return f"{text}."
    off = found - level
    verdict = "as they should" if abs(off) <= 0.03 else "too narrow" if off < 0 else "wider than they need to be"
    return f"{text}: {verdict}."


def _reliability(frame: pd.DataFrame, subject: Subject) -> Figure:
    drawing = canvas(4.6, 4.2)
    ax = drawing.add_subplot()
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    for curve in frame["curve"]:
        ax.plot(_LEVELS, curve, color="#9db7dc", linewidth=0.8)
    ax.plot(
        _LEVELS, np.mean(frame["curve"].tolist(), axis=0), color="#3b6fb6", linewidth=2, label="normal, from the SD"
    )
    if "coverage" in frame:
        level = uncertainty_facts(subject)[0]
        ax.scatter([level] * len(frame), frame["coverage"], s=16, color="#c4673d", alpha=0.6, zorder=3)
        ax.scatter(level, frame["coverage"].mean(), marker="D", s=40, color="#c4673d", zorder=4, label="intervals")
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="nominal coverage", ylabel="measured coverage")
    ax.set_aspect("equal")
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    ax.spines[["top", "right"]].set_visible(False)
    caption = (
        "Nominal against measured coverage: below the diagonal, the uncertainty is understated. Thin lines and dots: "
    )
    return vector(drawing, "Nominal against measured coverage", f"{caption}sections.", subject.values_marks)
