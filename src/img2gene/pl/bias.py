"""Bias and calibration of each gene, before and after, section by section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene.pl._arguments import MOST_PARTS, PlotArguments, number_column, table_problems
from img2gene.pl._figures import shown_once

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#8a8a8a", "#3b6fb6", "#c4673d", "#5c9e5c", "#8d6cb3")
# The ideal value of each score, what is written on its axis, and what the number below each section is.
_PANELS = {
    "bias": (0.0, "bias: mean prediction − mean expression", "section, mean |bias| of the genes"),
    "slope": (1.0, "slope of expression on prediction", "section, median slope of the genes"),
}
_EVALUATE = "`img2gene.tl.evaluate(sdata)`"


def bias(
    scores: pd.DataFrame | Mapping[str, pd.DataFrame], *, model: str | None = None, panel_size: float = 3.6
) -> Figure:
    """Draw how far predicted levels and differences are off, gene by gene.

    Parameters
    ----------
    scores
        Result of :func:`img2gene.tl.evaluate`; or several by name, such as before and after a correction, which are drawn side by
        side.
    model
        Model to draw; by default the first of each table, which is the one that was evaluated.
    panel_size
        Height of a panel in inches.

    Returns
    -------
    Figure with two panels, a box over genes for each section and table: ``bias``, which is 0 where the level of a gene in
    the section is right, and ``slope``, which is 1 where differences between spots are as large as predicted. Below each
    section stands the mean absolute bias, or the median slope, of each table. Whiskers reach from the 5 % to the 95 %
    quantile; genes without a slope, because their prediction is constant, are left out.

    Raises
    ------
    MissingKeyError
        A table has no bias or slope.
    Img2GeneError
        Not a table of scores, no such model, or too many boxes.

    Examples
    --------
    >>> import img2gene as ig
    >>> before = ig.tl.evaluate(sdata, at_measured_depth=False)  # doctest: +SKIP
    >>> after = ig.tl.evaluate(sdata, at_measured_depth=True)  # doctest: +SKIP
    >>> figure = ig.pl.bias({"as predicted": before, "at the measured depth": after})  # doctest: +SKIP
    """
    import matplotlib.pyplot as plt

    tables, panel_size = _checked(scores, model, panel_size)
    sections = list(dict.fromkeys(name for table in tables.values() for name in table["section"].astype(str)))
    n_boxes = len(sections) * len(tables)
    if n_boxes > MOST_PARTS:
        raise Img2GeneError(f"scores: {n_boxes} sections in all tables; at most {MOST_PARTS} boxes are drawn.")
    width = max(3.2, 0.9 + 0.55 * n_boxes)
    figure, axes = plt.subplots(1, 2, figsize=(2 * width, panel_size), layout="constrained")
    for ax, name in zip(axes, _PANELS, strict=True):
        _boxes(ax, tables, sections, name)
    if len(tables) > 1:
        # Above the panel, so that it hides no whisker.
        axes[0].legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(tables))
    return shown_once(figure)


def _checked(scores: Any, model: Any, panel_size: Any) -> tuple[dict[str, pd.DataFrame], float]:
    """Check the arguments; return the rows of the model in each table."""
    import pandas as pd

    check = PlotArguments()
    tables = dict(scores) if isinstance(scores, Mapping) else {"": scores}
    for name, table in tables.items():
        check.instance(f"scores[{name!r}]" if name else "scores", table, pd.DataFrame, f"the table of {_EVALUATE}")
    if not tables:
        check.messages.append(f"scores: expected the table of {_EVALUATE}, or several by name; got none.")
    check.text("model", model, optional=True)
    panel_size = check.panel(panel_size)
    check.raise_all()
    return {str(name): _rows(table, model) for name, table in tables.items()}, panel_size


def _rows(table: pd.DataFrame, model: str | None) -> pd.DataFrame:
    raise_problems(table_problems(table, ("model", "section", "gene"), "scores", _EVALUATE))
    for name in _PANELS:
        number_column(table, name, "scores")
    known = list(dict.fromkeys(table["model"].astype(str)))
    if model is not None and model not in known:
        raise Img2GeneError(f"model={model!r} is not in the scores (available: {listing(known)}).")
    return table[table["model"].astype(str) == (known[0] if model is None else model)]


def _boxes(ax: Axes, tables: dict[str, pd.DataFrame], sections: list[str], score: str) -> None:
    """Draw one score of all tables, a group of boxes for each section."""
    ideal, label, below = _PANELS[score]
    ax.axhline(ideal, color="0.6", linewidth=0.8, zorder=0)
    texts = [[section] for section in sections]
    for number, (name, table) in enumerate(tables.items()):
        color = _COLORS[number % len(_COLORS)]
        for place, section in enumerate(sections):
            values = table.loc[table["section"].astype(str) == section, score].to_numpy(dtype=float)
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            offset = (number - (len(tables) - 1) / 2) * 0.8 / len(tables)
            style: dict[str, Any] = {
                "widths": 0.6 / len(tables),
                "whis": (5, 95),
                "showfliers": False,
                "patch_artist": True,
            }
            box = ax.boxplot([values], positions=[place + offset], **style)
            box["boxes"][0].set(facecolor=color, alpha=0.7, label=name if place == 0 else None)
            box["medians"][0].set_color("black")
            texts[place].append(f"{np.abs(values).mean():.2f}" if score == "bias" else f"{np.median(values):.2f}")
    ax.set_xticks(range(len(sections)), ["\n".join([text[0], " → ".join(text[1:])]) for text in texts], fontsize=8)
    ax.set_xlabel(below, fontsize=8)
    ax.set_ylabel(label, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
