"""Distributions of scores over genes, for models and baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, MissingKeyError, listing, raise_problems
from img2gene.metrics.catalog import CATALOG
from img2gene.pl._arguments import MOST_PARTS, PlotArguments, members, number_column, table_problems
from img2gene.pl._figures import shown_once

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC_LABELS = {metric.name: metric.label for metric in CATALOG.values()}
_COLORS = ("#3b6fb6", "#8a8a8a", "#c9c9c9", "#c4673d", "#5c9e5c", "#8d6cb3")


@fill_parameters
def scores(
    scores: pd.DataFrame, *, metric: str = "pcc", genes: str | None = None, by: str = "model", ax: Axes | None = None
) -> Figure:
    """Draw the distribution over genes of a score for each model.

    Parameters
    ----------
    scores
        Result of :func:`img2gene.tl.evaluate`, or several concatenated.
    metric
        A score of :func:`img2gene.tl.evaluate`, such as ``"pcc"``, ``"r2"`` or ``"ssim"``.
    genes
        Gene group, a column of truth values such as ``"HVG"``; by default all genes.
    by
        Column with one violin per value: ``"model"``, or ``"section"`` for the sections of one model.
    %(ax)s

    Returns
    -------
    Figure. Each gene counts once, averaged over sections; the line is the mean. The number of undefined scores, such
    as correlations of the constant training mean, is written below the name.

    Raises
    ------
    MissingKeyError
        No such metric, gene group or column.
    Img2GeneError
        Not a table of scores, no gene in the group, or too many violins.

    Examples
    --------
    >>> import img2gene as ig
    >>> figure = ig.pl.scores(ig.tl.evaluate(sdata), genes="HVG")  # doctest: +SKIP
    """
    import matplotlib.pyplot as plt

    _check(scores, metric, genes, by, ax)
    chosen = scores if genes is None else scores[members(scores, genes)]
    _check_parts(chosen, genes, by)
    if ax is None:
        ax = plt.subplots(figsize=(1.6 + 1.3 * chosen[by].nunique(), 3.6), layout="constrained")[1]
    ticks = []
    # By default, categories without rows would get a place, too.
    for place, (name, part) in enumerate(chosen.groupby(by, sort=False, observed=True)):
        values = part.groupby("gene", observed=True)[metric].mean().to_numpy(dtype=float)
        ticks.append(_violin(ax, place, str(name), values))
    ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    ax.set_xticks(range(len(ticks)), ticks, fontsize=9)
    ax.set_ylabel(f"{METRIC_LABELS.get(metric, metric)} per gene{'' if metric == 'pcc_pooled' else ', within section'}")
    ax.set_title("all genes" if genes is None else genes, fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    return shown_once(ax)


def _check(scores: pd.DataFrame, metric: str, genes: str | None, by: str, ax: Axes | None) -> None:
    import pandas as pd

    check = PlotArguments()
    check.instance(
        "scores",
        scores,
        pd.DataFrame,
        "the table that `img2gene.tl.evaluate(sdata)` returns (of a cross-validation `result.scores`; its patients are "
        "drawn by `img2gene.pl.cross_validation(result)`)",
    )
    check.text("metric", metric)
    check.text("genes", genes, optional=True)
    check.text("by", by)
    check.axes(ax)
    check.raise_all()
    for name in filter(None, (metric, genes, by)):
        if name not in scores:
            raise MissingKeyError(f"{name!r} is not a column of the scores (available: {listing(scores.columns)}).")
    raise_problems(table_problems(scores, ("gene",), "scores", "`img2gene.tl.evaluate(sdata)`"))
    number_column(scores, metric, "scores")


def _check_parts(chosen: pd.DataFrame, genes: str | None, by: str) -> None:
    if not len(chosen):
        raise Img2GeneError(f"genes={genes!r}: no gene of the scores is in this group.")
    parts = chosen[by].nunique()
    if parts > MOST_PARTS:
        raise Img2GeneError(f"by={by!r}: this column has {parts} values; at most {MOST_PARTS} are drawn.")


def _violin(ax: Axes, place: int, name: str, values: np.ndarray) -> str:
    """Draw one distribution, and return its label with the mean and the number of undefined genes."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return f"{name}\nundefined"
    color = _COLORS[place % len(_COLORS)]
    # A density of equal values is undefined.
    if len(defined) > 1 and np.ptp(defined) > 0:
        body = ax.violinplot(defined, [place], widths=0.75, showextrema=False)["bodies"][0]  # type: ignore[index]
        body.set_facecolor(color)
        body.set_alpha(0.7)
    ax.hlines(defined.mean(), place - 0.25, place + 0.25, color="black", linewidth=1.5)
    missing = len(values) - len(defined)
    return f"{name}\nmean {defined.mean():.3f}" + (f"\n{missing} undefined" if missing else "")
