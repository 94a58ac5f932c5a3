"""The correlation that a model reached against the ceiling that noise sets, gene by gene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, listing, raise_problems
from img2gene._study.study import Study
from img2gene.pl._arguments import PlotArguments, number_column, open_study, table_problems
from img2gene.pl._figures import shown_once

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

_COLORS = {True: "#3b6fb6", False: "#b0b0b0"}
_NAMES = {True: "predictable", False: "not predictable"}
# More names would cover the points.
_MOST_LABELS = 50
_COLUMNS = ("pcc", "pcc_ceiling", "predictable")


def predictability(
    result: pd.DataFrame | SpatialData, *, n_labels: int = 4, panel_size: float = 4.0, table_key: str = "table"
) -> Figure:
    """Draw the PCC that a model reached against the ceiling that noise sets, and the share of the ceiling.

    Parameters
    ----------
    result
        Result of :func:`img2gene.tl.predictability`, the study that holds it, or the ``var`` of its table.
    n_labels
        Number of genes to name on each side, closest to their ceiling and farthest below it, among the predictable
        genes whose ceiling is at least the median.
    panel_size
        Side of a panel in inches.
    table_key
        Table of a study.

    Returns
    -------
    Figure with a point for every gene and a line where PCC and ceiling are equal, and a histogram of PCC / ceiling of
    the predictable genes with their median. Genes without a PCC or a ceiling are not drawn; the title counts them.

    Raises
    ------
    MissingKeyError
        Columns are absent.
    Img2GeneError
        No gene has both a PCC and a ceiling, or a later prediction replaced the one that the result describes.

    Examples
    --------
    >>> import img2gene as ig
    >>> figure = ig.pl.predictability(ig.tl.predictability(sdata))  # doctest: +SKIP
    """
    import matplotlib.pyplot as plt

    check = PlotArguments()
    n_labels, panel_size = check.whole("n_labels", n_labels, 0, _MOST_LABELS), check.panel(panel_size)
    check.text("table_key", table_key)
    check.raise_all()
    frame = result if isinstance(result, pd.DataFrame) else _frame(open_study(result, table_key))
    known = _known(frame)
    figure, (left, right) = plt.subplots(1, 2, figsize=(2.3 * panel_size, 1.05 * panel_size), layout="constrained")
    draw_ceilings(left, known, n_labels)
    undefined = len(frame) - len(known)
    left.set_title(f"{len(known)} genes" + (f", {undefined} undefined" if undefined else ""), fontsize=10)
    _histogram(right, known)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return shown_once(figure)


def _frame(study: Study) -> pd.DataFrame:
    """Read the result from a study, if it still describes the stored prediction."""
    record = study.record(_schema.PREDICTABILITY)
    if record is not None and not _schema.judges(study.table, record["key"]):
        raise Img2GeneError(
            f"`{study.table_key}.var` judges predictions {record['key']!r}, which another model has replaced since. Run "
            f"`img2gene.tl.predictability(sdata, key={record['key']!r})` again."
        )
    return study.table.var


def _known(result: pd.DataFrame) -> pd.DataFrame:
    """Select genes with a PCC, a ceiling and a judgement."""
    absent = [name for name in _COLUMNS if name not in result]
    if absent:
        raise MissingKeyError(
            f"No columns {listing(absent)} (available: {listing(result.columns)}). "
            "Run `img2gene.tl.predictability` first."
        )
    raise_problems(table_problems(result, (), "result", ""))
    number_column(result, "pcc", "result")
    number_column(result, "pcc_ceiling", "result")
    known = result[list(_COLUMNS)].dropna()
    if not all(isinstance(value, bool | np.bool_) for value in known["predictable"]):
        raise Img2GeneError("result: the column `predictable` must hold True, False or nothing.")
    known = known[np.isfinite(known[["pcc", "pcc_ceiling"]].to_numpy(dtype=float)).all(axis=1)]
    if not len(known):
        raise Img2GeneError("No gene has both a PCC and a ceiling; `img2gene.tl.predictability` logs why.")
    return known.astype({"predictable": bool})


def draw_ceilings(ax: Axes, known: pd.DataFrame, n_labels: int) -> None:
    """Draw a point for each gene: ``pcc`` against ``pcc_ceiling``, coloured by ``predictable``."""
    # Predictable genes come last, on top of the others.
    for judgement in (False, True):
        part = known[known["predictable"] == judgement]
        style: dict[str, Any] = {"s": 12, "alpha": 0.7, "linewidths": 0, "rasterized": True}
        label = f"{_NAMES[judgement]} ({len(part)})"
        ax.scatter(part["pcc_ceiling"], part["pcc"], color=_COLORS[judgement], label=label, **style)
    ax.axline((0, 0), slope=1, color="0.4", linewidth=0.9, zorder=0)
    ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    upper = 1.08 * known[["pcc", "pcc_ceiling"]].to_numpy().max(initial=0.2)
    ax.set_xlim(-0.02, 1.15 * upper)
    ax.set_ylim(min(1.1 * known["pcc"].min(), -0.02), upper)
    ax.set_xlabel("ceiling: PCC of a perfect model", fontsize=9)
    ax.set_ylabel("PCC reached, within section", fontsize=9)
    ax.legend(fontsize=8, frameon=False, loc="upper left")
    ax.spines[["top", "right"]].set_visible(False)
    _name_extremes(ax, known[known["predictable"]], n_labels)


def _name_extremes(ax: Axes, genes: pd.DataFrame, n: int) -> None:
    """Name genes closest to their ceiling at the left of the points, genes farthest below it at the right."""
    # Every gene is close to a low ceiling, so such genes would take all names.
    genes = genes[genes["pcc_ceiling"] >= genes["pcc_ceiling"].median()]
    headroom = (genes["pcc_ceiling"] - genes["pcc"]).sort_values()
    n = min(n, len(headroom) // 2)
    lower, upper = ax.get_ylim()
    for names, aside in ((headroom.index[:n], -0.1), (headroom.index[len(headroom) - n :], 0.06)):
        chosen = genes.loc[names].sort_values("pcc", ascending=False)
        # One column of names, in the order of the points, so that names never overlap.
        column = (chosen["pcc_ceiling"].min() if aside < 0 else chosen["pcc_ceiling"].max()) + aside * (upper - lower)
        height = np.inf
        for gene, x, y in zip(chosen.index, chosen["pcc_ceiling"], chosen["pcc"], strict=True):
            height = min(height - 0.045 * (upper - lower), y + (0.06 * (upper - lower) if aside < 0 else 0.0))
            ax.annotate(
                str(gene),
                (x, y),
                xytext=(column, height),
                fontsize=7,
                ha="right" if aside < 0 else "left",
                va="center",
                arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 1},
            )


def _histogram(ax: Axes, known: pd.DataFrame) -> None:
    """Draw the share of the ceiling that predictable genes reach; for other genes the ratio is noise over noise."""
    genes = known[known["predictable"] & (known["pcc_ceiling"] > 0)]
    ax.set_xlabel("PCC / ceiling of predictable genes", fontsize=9)
    ax.set_ylabel("genes", fontsize=9)
    if not len(genes):
        ax.set_title("no predictable gene", fontsize=10)
        return
    share = (genes["pcc"] / genes["pcc_ceiling"]).to_numpy(dtype=float)
    # Ratios have no upper limit; the title counts what the last bar collects.
    ax.hist(np.clip(share, 0, 1.5), bins=np.linspace(0, 1.5, 31).tolist(), color=_COLORS[True], alpha=0.8)
    ax.axvline(1, color="0.4", linewidth=0.9)
    median = float(np.median(share))
    ax.axvline(median, color="black", linewidth=1.5)
    beyond = int((share > 1.5).sum())
    title = f"median {median:.2f} of the ceiling"
    ax.set_title(f"{title}, {beyond} above 1.5" if beyond else title, fontsize=10)
