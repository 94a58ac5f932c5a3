"""Which of two scores is better, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from img2gene.tl._section_scores import direction

if TYPE_CHECKING:
    from img2gene.tl import CrossValidation


def better_is(result: CrossValidation, metric: str) -> str | None:
    """What a better score is, in words; None where that is not known, as of coverage without its level."""
    if metric == "coverage":
        level = result.settings.get("level")
        return None if level is None else f"nearer to {level:.0%}"
    way = direction(metric)
    return "nearer to 0" if way == "zero" else way
