"""Which of two scores is better."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from img2gene.tl._section_scores import direction

if TYPE_CHECKING:
    import pandas as pd

    from img2gene.tl import CrossValidation


def better_is(result: CrossValidation, metric: str) -> str | None:
    """What a better score is, in words; None where that is not known, as of coverage without its level."""
    if metric == "coverage":
        level = result.settings.get("level")
        return None if level is None else f"nearer to {level:.0%}"
    way = direction(metric)
    return "nearer to 0" if way == "zero" else way


def goodness(result: CrossValidation, metric: str, values: pd.Series) -> pd.Series:
    """Values that are higher where scores are better; the scores themselves where it is not known what is."""
    if metric == "coverage" and better_is(result, metric):
        return -(values - result.settings["level"]).abs()
    way = direction(metric)
    return -values if way == "lower" else -values.abs() if way == "zero" else values


def gains(result: CrossValidation, metric: str, model: str, reference: str | None, group: str = "all") -> np.ndarray:
    """By how much a model is better than the reference in each unit, over what both have a score of.

    These are genes within sections (for structure, sections), averaged within sections, then over the sections of a unit.
    """
    scores = result.scores if metric in result.scores else result.structure[result.structure["genes"] == group]
    if metric in result.scores and group != "all":
        scores = scores[(scores[group] == True).to_numpy(dtype=bool)]  # noqa: E712 - NaN is no member
    sections = list(dict.fromkeys([result.unit, "section"]))
    keys = [*sections, *(["gene"] if "gene" in scores else [])]
    own, other = (
        goodness(result, metric, scores[scores["model"] == name].groupby(keys)[metric].mean())
        for name in (model, reference)
    )
    pairs = (own - other).dropna()
    return pairs.groupby(sections).mean().groupby(level=result.unit).mean().to_numpy(dtype=float)
