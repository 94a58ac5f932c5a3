"""Accuracy against the amount of training data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from img2gene._docs import fill_parameters
from img2gene._errors import MissingKeyError, listing, raise_problems
from img2gene.pl._arguments import PlotArguments, number_column, table_problems
from img2gene.pl._figures import shown_once
from img2gene.pl.scores import METRIC_LABELS
from img2gene.pl.training import LINE_COLORS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CALL = "`img2gene.tl.learning_curve(sdata)`"
_X_LABELS = {"n_spots": "training spots", "n_groups": "training groups", "fraction": "fraction of the training data"}


@fill_parameters
def learning_curve(
    result: pd.DataFrame, *, metric: str = "pcc", genes: str = "HEG", x: str = "n_spots", ax: Axes | None = None
) -> Figure:
    """Draw how accuracy grows with the training data, one line for each model.

    Parameters
    ----------
    result
        Result of :func:`img2gene.tl.learning_curve`, or several concatenated.
    metric
        A score of :func:`img2gene.tl.evaluate`, such as ``"pcc"`` or ``"r2"``; or another column of numbers, such as
        ``"seconds"``.
    genes
        Gene group, such as ``"HVG"``; ``"all"`` for all genes.
    x
        ``"n_spots"`` (logarithmic), ``"n_groups"`` or ``"fraction"``.
    %(ax)s

    Returns
    -------
    Figure. A point is the mean over held-out groups and repeats at one fraction of the training data; its x is a
    mean, too. The band is ± 1 SD over the same groups and repeats. The legend marks models without a defined score,
    such as the correlation of the constant training mean.

    Raises
    ------
    MissingKeyError
        No such metric, gene group or column.
    Img2GeneError
        Not a learning curve.

    Examples
    --------
    >>> import img2gene as ig
    >>> figure = ig.pl.learning_curve(ig.tl.learning_curve(sdata), genes="HVG")  # doctest: +SKIP
    """
    import matplotlib.pyplot as plt

    _check(result, metric, genes, x, ax)
    if ax is None:
        ax = plt.subplots(figsize=(4.6, 3.4), layout="constrained")[1]
    chosen = result[result["genes"] == genes]
    for number, (name, part) in enumerate(chosen.groupby("model", sort=False, observed=True)):
        _line(ax, str(name), part, metric, x, LINE_COLORS[number % len(LINE_COLORS)])
    _scale(ax, x)
    ax.set_xlabel(_X_LABELS[x])
    ax.set_ylabel(METRIC_LABELS.get(metric, metric))
    ax.set_title("all genes" if genes == "all" else genes, fontsize=10)
    ax.legend(fontsize=8, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return shown_once(ax)


def _check(result: pd.DataFrame, metric: str, genes: str, x: str, ax: Axes | None) -> None:
    import pandas as pd

    check = PlotArguments()
    check.instance("result", result, pd.DataFrame, f"the table that {_CALL} returns")
    for name, value in (("metric", metric), ("genes", genes), ("x", x)):
        check.text(name, value)
    check.axes(ax)
    check.raise_all()
    raise_problems(table_problems(result, ("model", "genes", *_X_LABELS), "result", _CALL))
    number_column(result, metric, "learning curve")
    if x not in _X_LABELS:
        raise MissingKeyError(f"x={x!r}: curves are drawn against {listing(_X_LABELS)}.")
    if genes not in result["genes"].unique():
        raise MissingKeyError(f"No gene group {genes!r} (available: {listing(result['genes'].unique())}).")
    number_column(result, x, "learning curve")


def _scale(ax: Axes, x: str) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    if x == "n_spots":
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        # Labels of minor ticks would run into the others.
        ax.xaxis.set_minor_formatter(NullFormatter())
    elif x == "n_groups":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _line(ax: Axes, name: str, part: pd.DataFrame, metric: str, x: str, color: str) -> None:
    points = part.groupby("fraction")
    places, values = points[x].mean(), points[metric]
    # One held-out group has no SD, so its band has no width.
    mean, spread = values.mean(), values.std().fillna(0)
    label = name if mean.notna().any() else f"{name} (undefined)"
    ax.plot(places, mean, "o-", color=color, markersize=4, linewidth=1.5, label=label)
    ax.fill_between(places, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
