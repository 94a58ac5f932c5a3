"""Measured and predicted gene–gene correlations side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene.pl._arguments import PlotArguments
from img2gene.pl._figures import shown_once

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from img2gene.tl import GeneCorrelation

_MIN_FONT, _READABLE_FONT, _MAX_FONT = 4.0, 6.5, 8.0
_MOST_NAMED = 60
# Share of a panel that its matrix takes.
_NAMED_SHARE, _POINTS_PER_INCH = 0.8, 72
_COLORS = (
    *("#3b6fb6", "#c4673d", "#5c9e5c", "#8d6cb3", "#b5903b"),
    *("#4fa3a5", "#c25b84", "#6b5b4b", "#9bb83f", "#222222"),
)
_OTHER = "#c9c9c9"


def gene_correlation(
    result: GeneCorrelation,
    *,
    cluster: bool = True,
    limit: float = 1.0,
    cmap: str = "RdBu_r",
    panel_size: float = 4.2,
) -> Figure:
    """Draw measured and predicted gene–gene correlations, and their agreement.

    Parameters
    ----------
    result
        From :func:`img2gene.tl.gene_correlation`.
    cluster
        Order genes by the clustering of their measured correlations, and frame its modules; otherwise genes keep the
        order of ``result.genes``.
    limit
        Colours of both matrices run from ``-limit`` to ``limit``.
    cmap
        Diverging colours.
    panel_size
        Side of a panel in inches, at least; up to 60 genes get larger panels, so that their names can be read.

    Returns
    -------
    Figure with the measured matrix, the predicted matrix in the same order, and a point for every pair of genes,
    coloured by the module of both genes. Genes without a correlation are grey, and last in a clustered figure. Names of
    genes are shown if they fit.

    Raises
    ------
    Img2GeneError
        Not a result of :func:`img2gene.tl.gene_correlation`, or unusable numbers or colours.

    Examples
    --------
    >>> import img2gene as ig
    >>> figure = ig.pl.gene_correlation(ig.tl.gene_correlation(sdata))  # doctest: +SKIP
    """
    import matplotlib.pyplot as plt

    from img2gene.tl import GeneCorrelation

    check = PlotArguments()
    check.instance("result", result, GeneCorrelation, "what `img2gene.tl.gene_correlation(sdata)` returns")
    cluster, cmap = check.flag("cluster", cluster), check.colors(cmap)
    limit, panel_size = check.number("limit", limit, above=0), check.panel(panel_size)
    check.raise_all()
    panel_size = _readable_side(len(result.genes), panel_size)
    figure = plt.figure(figsize=(3.5 * panel_size, 1.12 * panel_size), layout="constrained")
    draw_correlation(figure, result, cluster=cluster, limit=limit, cmap=cmap, panel_size=panel_size)
    return shown_once(figure)


def _readable_side(n_genes: int, panel_size: float) -> float:
    """Enlarge panels in which the names of up to 60 genes would be too small to read."""
    least = n_genes * _READABLE_FONT / (_NAMED_SHARE * _POINTS_PER_INCH)
    return max(panel_size, least) if n_genes <= _MOST_NAMED else panel_size


def draw_correlation(
    figure: Figure, result: GeneCorrelation, *, cluster: bool, limit: float, cmap: str, panel_size: float
) -> Figure:
    """Draw :func:`gene_correlation` on an empty figure."""
    axes = figure.subplots(1, 3)
    # Both matrices in one order, so that a module is at the same place in both.
    order = result.order if cluster else np.arange(len(result.genes))
    style: dict[str, Any] = {"cmap": cmap, "vmin": -limit, "vmax": limit}
    for ax, title, matrix in zip(axes, ("measured", "predicted"), (result.true, result.predicted), strict=False):
        drawn = ax.imshow(matrix[np.ix_(order, order)], interpolation="nearest", **style)
        # Grey shows where genes without a correlation leave the matrix empty.
        ax.set_facecolor("0.85")
        ax.set_title(title, fontsize=10)
        _name_genes(ax, [result.genes[i] for i in order], panel_size)
        if cluster:
            _frame_modules(ax, result.modules["n_genes"].tolist())
    bar = figure.colorbar(drawn, ax=axes[:2], fraction=0.03, pad=0.01)
    bar.set_label("correlation within section", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    _scatter(axes[2], result)
    scores = result.overall
    figure.suptitle(f"{result.key}: structure PCC {scores['pcc']:.3f}, RMSE {scores['rmse']:.3f}", fontsize=11)
    return figure


def _name_genes(ax: Axes, genes: list[str], panel_size: float) -> None:
    """Write names at both axes, as large as rows allow, unless they would be too small to read."""
    size = _NAMED_SHARE * _POINTS_PER_INCH * panel_size / max(len(genes), 1)
    if size < _MIN_FONT:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_xlabel(f"{len(genes)} genes", fontsize=8)
        return
    font = min(size, _MAX_FONT)
    ax.set_xticks(range(len(genes)), genes, fontsize=font, rotation=90)
    ax.set_yticks(range(len(genes)), genes, fontsize=font)
    ax.tick_params(length=0, pad=2)


def _frame_modules(ax: Axes, sizes: list[int]) -> None:
    from matplotlib.patches import Rectangle

    # `imshow` centres cells on whole numbers, so the first one begins here.
    start = -0.5
    for number, size in enumerate(sizes):
        if size > 1:
            color = _COLORS[number % len(_COLORS)]
            ax.add_patch(Rectangle((start, start), size, size, fill=False, edgecolor=color, linewidth=1.8))
        start += size


def _scatter(ax: Axes, result: GeneCorrelation) -> None:
    """Draw predicted against measured correlation of every pair of genes."""
    pairs = result.pairs.dropna()
    module = {gene: number for number, genes in enumerate(result.modules["genes"]) for gene in genes}
    one, two = (pairs[name].map(module).to_numpy() for name in ("gene_a", "gene_b"))
    # Thousands of pairs as vectors would make a PDF slow.
    points: dict[str, Any] = {"s": 7, "alpha": 0.6, "linewidths": 0, "rasterized": True}
    ax.scatter(
        pairs["true"][one != two], pairs["predicted"][one != two], color=_OTHER, label="between modules", **points
    )
    for number in range(len(result.modules)):
        within = (one == number) & (two == number)
        if within.any():
            color = _COLORS[number % len(_COLORS)]
            label = f"module {number + 1}"
            ax.scatter(pairs["true"][within], pairs["predicted"][within], color=color, label=label, **points)
    ax.axline((0, 0), slope=1, color="0.5", linewidth=0.8, zorder=0)
    reach = 1.05 * max(pairs[["true", "predicted"]].abs().to_numpy().max(initial=0), 0.1)
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    ax.set_box_aspect(1)
    ax.locator_params(nbins=5)
    ax.tick_params(labelsize=7)
    ax.set_xlabel("measured correlation of a pair", fontsize=9)
    ax.set_ylabel("predicted", fontsize=9)
    ax.set_title(f"{len(pairs)} pairs of genes", fontsize=10)
    ax.legend(fontsize=7, frameon=False, markerscale=2, loc="upper left")
    ax.spines[["top", "right"]].set_visible(False)
