"""Density of spots by measured and predicted expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError
from img2gene.pl._arguments import PlotArguments, study_or_kept
from img2gene.pl._figures import labelled, shown_once
from img2gene.pl._predictions import Predictions

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure, SubFigure
    from spatialdata import SpatialData

_CELLS, _COLUMNS, _MOST_PANELS = 45, 5, 60
_LINE_COLOR = "#c4673d"


@fill_parameters
def measured_vs_predicted(
    data: SpatialData | AnnData,
    genes: str | list[str] | None = None,
    *,
    sections: str | Sequence[str] | None = None,
    key: str = "img2gene",
    table_key: str = "table",
    cmap: str = "viridis",
    panel_size: float = 2.6,
    ax: Axes | None = None,
) -> Figure:
    """Draw how many spots have which measured and which predicted expression.

    Parameters
    ----------
    data
        Study with predictions from :func:`img2gene.tl.predict`, or predictions that a cross-validation kept, such as
        ``result.predictions["img2gene"]``.
    genes
        One or several genes, each in a panel of its own; None draws all genes together in one panel.
    sections
        One or several sections with measured spots; by default all that the stored model was not trained on, or all
        sections if there are none.
    %(key_study)s
    table_key
        Table of the study.
    cmap
        Colours of the number of spots, on a logarithmic scale.
    panel_size
        Side of a panel in inches.
    ax
        Axes to draw a single panel on, of one gene or of all genes together; by default new ones.

    Returns
    -------
    Figure. Hexagons count spots (spots × genes for all genes together). The line marks where prediction and measurement
    are equal. Titles give the PCC over the drawn spots of all sections together, and the slope of measured on predicted
    expression, which is 1 where differences between spots are as large as predicted.

    Raises
    ------
    MissingKeyError
        No such prediction, gene or section.
    Img2GeneError
        No measured spot, more than 60 genes, or ``ax`` with several genes.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "ridge", validate_on=["P3"])
    >>> ig.tl.predict(sdata)
    >>> figure = ig.pl.measured_vs_predicted(sdata, ["ERBB2", "COL1A1"])
    """
    check = PlotArguments()
    names, sections = check.names("genes", genes, optional=True, empty=True), check.labels("sections", sections)
    check.stored(key, table_key)
    cmap, panel_size = check.colors(cmap), check.panel(panel_size)
    check.axes(ax)
    n_panels = len(names) if isinstance(names, list) else 1
    if n_panels > _MOST_PANELS:
        check.messages.append(f"genes: {n_panels} genes; at most {_MOST_PANELS} panels are drawn.")
    elif ax is not None and n_panels > 1:
        check.messages.append(f"ax: {n_panels} genes need as many panels; pass one gene, or leave `ax` out.")
    check.raise_all()
    predictions = Predictions.of(study_or_kept(data, table_key), key, names)
    predictions.report_other_scale()
    panels = _panels(predictions, names, predictions.chosen_sections(sections))
    figure, grid = _axes(len(panels), panel_size, ax)
    drawn = [
        _density(one, name, truth, predicted, cmap)
        for one, (name, (truth, predicted)) in zip(grid.flat, panels.items(), strict=False)
    ]
    for one in grid.flat[len(panels) :]:
        one.set_axis_off()
    _color_bar(figure, grid, drawn, "spots" if names is not None else "spots × genes")
    across, down = (labelled(what, predictions.unit) for what in ("predicted", "measured"))
    if ax is None:
        figure.supxlabel(across, fontsize=9)
        figure.supylabel(down, fontsize=9)
    else:
        ax.set_xlabel(across, fontsize=9)
        ax.set_ylabel(down, fontsize=9)
    return shown_once(figure)


def _axes(n_panels: int, panel_size: float, ax: Axes | None) -> tuple[Figure | SubFigure, np.ndarray]:
    """Return the axes of all panels (rows, columns) with their figure: a new one, or that of the given axes."""
    import matplotlib.pyplot as plt

    if ax is not None:
        return ax.figure, np.array([[ax]])
    n_columns = min(_COLUMNS, n_panels)
    n_rows = -(-n_panels // n_columns)
    # Room for titles of two lines, and for the labels of both axes.
    size = (panel_size * n_columns + 1.0, panel_size * 1.2 * n_rows + 0.6)
    return plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")


def _panels(
    predictions: Predictions, genes: list[str] | None, sections: list[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Measured and predicted values of each panel, of spots that have both."""
    rows = np.concatenate([predictions.rows(name) for name in sections])
    chosen = predictions.measured_genes if genes is None else genes
    truth, predicted = (predictions.read(part, chosen, rows) for part in ("measured", "predicted"))
    if truth is None or predicted is None or not (np.isfinite(truth) & np.isfinite(predicted)).any():
        raise Img2GeneError(f"No measured spot in the sections {', '.join(sections)}, so there is nothing to compare.")
    if genes is None:
        known = np.isfinite(truth) & np.isfinite(predicted)
        return {f"{len(chosen)} genes": (truth[known], predicted[known])}
    panels = {}
    for number, gene in enumerate(genes):
        known = np.isfinite(truth[:, number]) & np.isfinite(predicted[:, number])
        panels[gene] = truth[known, number], predicted[known, number]
    return panels


def _density(ax: Axes, name: str, truth: np.ndarray, predicted: np.ndarray, cmap: str) -> PolyCollection:
    """Draw one panel on a square with equal axes."""
    values = np.concatenate([truth, predicted])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.5
    low, high = low - margin, high + margin
    drawn = ax.hexbin(
        predicted, truth, gridsize=_CELLS, extent=(low, high, low, high), mincnt=1, cmap=cmap, linewidths=0.1
    )
    ax.axline((low, low), slope=1, color=_LINE_COLOR, linewidth=1)
    ax.set(xlim=(low, high), ylim=(low, high))
    ax.set_box_aspect(1)
    ax.tick_params(labelsize=7)
    ax.set_title(f"{name}\n{_scores(truth, predicted)}", fontsize=8)
    return drawn


def _color_bar(figure: Figure | SubFigure, grid: np.ndarray, drawn: list[PolyCollection], what: str) -> None:
    """Give all panels one scale, from one spot to the fullest hexagon, and a colour bar."""
    from matplotlib.colors import LogNorm

    # One hexagon with a single spot has no range of counts.
    most = max(2.0, *(float(count) for one in drawn for count in np.asarray(one.get_array())))
    for one in drawn:
        one.set_norm(LogNorm(1, most))
    bar = figure.colorbar(drawn[0], ax=grid, shrink=min(1.0, 2 / len(grid)), aspect=20, pad=0.01)
    bar.set_label(f"{what} in a hexagon", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _scores(truth: np.ndarray, predicted: np.ndarray) -> str:
    from img2gene import metrics

    if len(truth) < 2:
        return "PCC undefined"
    pcc, slope = metrics.pearson(truth, predicted)[0], metrics.slope(truth, predicted)[0]
    return ", ".join(
        f"{label} {value:.2f}" if np.isfinite(value) else f"{label} undefined"
        for label, value in (("PCC", pcc), ("slope", slope))
    )
