"""Scores of a cross-validation for each patient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._docs import fill_parameters
from img2gene.pl._arguments import PlotArguments
from img2gene.pl._figures import shown_once
from img2gene.pl.scores import METRIC_LABELS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from img2gene.tl import CrossValidation

_MOST_COLORS = 10


@fill_parameters
def cross_validation(
    cv: CrossValidation, *, metric: str = "pcc", genes: str | None = None, ax: Axes | None = None
) -> Figure:
    """Draw the score of every model on every patient, with the mean and its confidence interval.

    Parameters
    ----------
    cv
        From :func:`img2gene.tl.cross_validate`.
    metric
        Any score of :meth:`img2gene.tl.CrossValidation.by_unit`: ``"pcc"``, ``"spearman"``, ``"mse"``, ``"structure"``,
        ….
    genes
        Gene group, such as ``"HVG"``; by default all genes.
    %(ax)s

    Returns
    -------
    Figure. A row is a model. A dot is the mean over genes and sections of one patient (or over genes of one section,
    if patients are not the unit), at the same height in every row. The diamond is the mean over dots with its 95 %
    interval. The title gives the reasons why scores are no honest estimates for new patients
    (:attr:`img2gene.tl.CrossValidation.marks`). Models without a defined score are marked.

    Raises
    ------
    MissingKeyError
        No such metric or gene group.
    Img2GeneError
        Not a cross-validation.

    Examples
    --------
    >>> import img2gene as ig
    >>> figure = ig.pl.cross_validation(ig.tl.cross_validate(sdata), genes="HVG")  # doctest: +SKIP
    """
    _check(cv, metric, genes, ax)
    group = "all" if genes is None else genes
    means = cv.summary(group, metric=metric).set_index("model")
    # By default, models without a defined score, such as the training mean, would be dropped.
    values = cv.by_unit(group).pivot_table(metric, cv.unit, "model", sort=False, dropna=False)
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(6.4, 1.4 + 0.5 * len(means)), layout="constrained")[1]
    _dots(ax, values.reindex(columns=means.index), cv.unit)
    _intervals(ax, means, metric)
    names = [
        str(name) if np.isfinite(mean) else f"{name}\n(undefined)" for name, mean in means[metric].astype(float).items()
    ]
    ax.set_yticks(range(len(names)), names, fontsize=9)
    # The axis points downwards, so that models stand in the order of the tables.
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel(f"{METRIC_LABELS.get(metric, metric)}, mean of each {cv.unit}")
    marks = f"\n({'; '.join(cv.marks)})" if cv.marks else ""
    ax.set_title(f"{'all genes' if group == 'all' else group}{marks}", fontsize=10)
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return shown_once(ax)


def _check(cv: CrossValidation, metric: str, genes: str | None, ax: Axes | None) -> None:
    from img2gene.tl import CrossValidation

    check = PlotArguments()
    check.instance(
        "cv",
        cv,
        CrossValidation,
        "what `img2gene.tl.cross_validate(sdata)` returns (a table of scores is drawn by `img2gene.pl.scores(table)`)",
    )
    check.text("metric", metric)
    check.text("genes", genes, optional=True)
    check.axes(ax)
    check.raise_all()


def _dots(ax: Axes, values: pd.DataFrame, unit: str) -> None:
    """Draw a dot for each unit (rows of ``values``) and model (columns); more than 10 units share one colour."""
    import matplotlib.style

    # Ten colours that people with a colour vision deficiency can tell apart, too.
    colors = list(matplotlib.style.library["tableau-colorblind10"]["axes.prop_cycle"])
    few = 1 < len(values) <= _MOST_COLORS
    # One height per unit in every row lets a reader follow a patient from model to model.
    heights = np.linspace(-0.26, 0.26, len(values)) if len(values) > 1 else np.zeros(1)
    for number, (name, row) in enumerate(values.iterrows()):
        style: dict[str, Any] = {"color": colors[number]["color"], "label": str(name)} if few else {"color": "0.6"}
        places = np.arange(len(row)) + heights[number]
        ax.scatter(row.to_numpy(dtype=float), places, s=22, alpha=0.8, linewidths=0, zorder=2, **style)
    if few:
        ax.legend(title=unit, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, title_fontsize=8, frameon=False)


def _intervals(ax: Axes, means: pd.DataFrame, metric: str) -> None:
    places, mean = np.arange(len(means)), means[metric].to_numpy(dtype=float)
    low, high = (means[name].to_numpy(dtype=float) for name in ("low", "high"))
    ax.hlines(places, low, high, color="black", linewidth=1.4, zorder=3)
    ax.scatter(mean, places, marker="D", s=30, color="black", edgecolors="white", linewidths=0.8, zorder=4)
    if (mean <= 0).any():
        ax.axvline(0, color="0.7", linewidth=0.8, zorder=1)
