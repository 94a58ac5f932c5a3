"""A score of each gene in each section."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing, raise_problems
from img2gene.metrics.catalog import CATALOG
from img2gene.pl._arguments import MOST_PARTS, PlotArguments, members, number_column, table_problems
from img2gene.pl._figures import shown_once
from img2gene.pl.scores import METRIC_LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW_INCHES, _COLUMN_INCHES, _FONT = 0.16, 0.42, 8
_IDEAL = {"zero": 0.0, "one": 1.0}
_EVALUATE = "`img2gene.tl.evaluate(sdata)`"


@fill_parameters
def score_heatmap(
    scores: pd.DataFrame,
    *,
    metric: str = "pcc",
    genes: str | list[str] | None = None,
    n_genes: int = 50,
    model: str | None = None,
    cmap: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw a score of each gene in each section as a heat map.

    Parameters
    ----------
    scores
        Result of :func:`img2gene.tl.evaluate`, or ``result.scores`` of a cross-validation.
    metric
        A score, such as ``"pcc"``, ``"r2"`` or ``"bias"``.
    genes
        Genes to draw; or the name of a gene group, a column of truth values such as ``"HVG"``. By default all.
    n_genes
        Largest number of genes: those with the best mean over sections are drawn, and the title says how many there are.
    model
        Model to draw; by default the first of the table, which is the one that was evaluated.
    cmap
        Colours. By default blue to red around 0 for scores that have a sign, else dark to bright.
    %(ax)s

    Returns
    -------
    Figure with a row for each gene, best mean first, and a column for each section. Undefined scores are grey.

    Raises
    ------
    MissingKeyError
        No such metric, gene, group or model.
    Img2GeneError
        Not a table of scores, no defined score, or more than 200 genes or sections.

    Examples
    --------
    >>> import img2gene as ig
    >>> figure = ig.pl.score_heatmap(ig.tl.evaluate(sdata), genes="HVG")  # doctest: +SKIP
    """
    import matplotlib.pyplot as plt

    n_genes = _check(scores, metric, genes, n_genes, model, cmap, ax)
    matrix = _matrix(_rows(scores, model), metric, genes)
    shown = _best_first(matrix, metric).iloc[:n_genes]
    if ax is None:
        size = (1.9 + _COLUMN_INCHES * shown.shape[1], 1.2 + _ROW_INCHES * shown.shape[0])
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    style, label = _style(shown.to_numpy(), cmap), METRIC_LABELS.get(metric, metric)
    drawn = ax.imshow(shown.to_numpy(), aspect="auto", interpolation="nearest", **style)
    ax.set_facecolor("0.8")
    ax.set_yticks(range(shown.shape[0]), shown.index.tolist(), fontsize=_FONT)
    ax.set_xticks(range(shown.shape[1]), shown.columns.tolist(), fontsize=_FONT, rotation=90)
    ax.tick_params(length=0)
    ax.set_title(
        f"{len(shown)} of {len(matrix)} genes" if len(shown) < len(matrix) else f"{len(shown)} genes", fontsize=9
    )
    bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.05, pad=0.02, shrink=min(1.0, 6 / (1 + len(shown) * _ROW_INCHES)))
    bar.set_label(f"{label} (grey: undefined)", fontsize=_FONT)
    bar.ax.tick_params(labelsize=7)
    return shown_once(ax)


def _check(scores: Any, metric: Any, genes: Any, n_genes: Any, model: Any, cmap: Any, ax: Any) -> int:
    check = PlotArguments()
    check.instance("scores", scores, pd.DataFrame, f"the table of {_EVALUATE}")
    check.text("metric", metric)
    check.text("model", model, optional=True)
    check.names("genes", genes, optional=True)
    n_genes = check.whole("n_genes", n_genes, 1, MOST_PARTS)
    if cmap is not None:
        check.colors(cmap)
    check.axes(ax)
    check.raise_all()
    raise_problems(table_problems(scores, ("model", "section", "gene"), "scores", _EVALUATE))
    number_column(scores, metric, "scores")
    return n_genes


def _rows(scores: pd.DataFrame, model: str | None) -> pd.DataFrame:
    """Rows of one model."""
    names = scores["model"].astype(str)
    known = list(dict.fromkeys(names))
    if model is not None and model not in known:
        raise MissingKeyError(missing(model, "scores['model']", known))
    return scores[names == (known[0] if model is None else model)]


def _matrix(rows: pd.DataFrame, metric: str, genes: str | list[str] | None) -> pd.DataFrame:
    """Scores of genes (rows) in sections (columns); a section that was scored twice counts by its mean."""
    known = rows["gene"].astype(str)
    if isinstance(genes, str) and genes in rows and genes not in set(known):
        rows = rows[members(rows, genes)]
    elif genes is not None:
        names = [genes] if isinstance(genes, str) else list(genes)
        absent = [name for name in names if name not in set(known)]
        if absent:
            raise MissingKeyError(missing(listing(absent), "scores['gene']", dict.fromkeys(known)))
        rows = rows[known.isin(names)]
    if not rows[metric].notna().any():
        raise Img2GeneError(f"No gene has a defined {metric!r}, so there is nothing to draw.")
    keys = [rows[name].astype(str) for name in ("gene", "section")]
    matrix = rows[metric].astype(float).groupby(keys).mean().unstack()
    # In the order of the table; `unstack(sort=False)` of pandas puts values into wrong cells.
    matrix = matrix.reindex(index=keys[0].unique(), columns=keys[1].unique())
    if matrix.shape[1] > MOST_PARTS:
        raise Img2GeneError(f"scores: {matrix.shape[1]} sections; at most {MOST_PARTS} columns are drawn.")
    return matrix


def _best_first(matrix: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Order genes by their mean; those without a defined score come last."""
    direction = CATALOG[metric].direction if metric in CATALOG else "higher"
    # Too high in one section and too low in another is wrong in both.
    wrong = (matrix - _IDEAL[direction]).abs() if direction in _IDEAL else matrix
    mean, ascending = wrong.mean(axis=1), direction in (*_IDEAL, "lower")
    return matrix.loc[mean.sort_values(ascending=ascending, kind="stable", na_position="last").index]


def _style(values: np.ndarray, cmap: str | None) -> dict[str, Any]:
    """Colours that are symmetric about 0 where scores have a sign."""
    known = values[np.isfinite(values)]
    if (known < 0).any():
        reach = float(np.abs(known).max())
        return {"cmap": cmap or "RdBu_r", "vmin": -reach, "vmax": reach}
    high = float(known.max())
    return {"cmap": cmap or "viridis", "vmin": 0.0, "vmax": high if high > 0 else 1.0}
