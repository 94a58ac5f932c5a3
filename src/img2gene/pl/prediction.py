"""Measured and predicted expression side by side on the tissue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene.pl._arguments import PlotArguments, study_or_kept
from img2gene.pl._figures import labelled, shown_once
from img2gene.pl._predictions import Predictions
from img2gene.pl._tissue import Canvas, color_limits, draw

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

_RANGE = (1, 99)
# Share of the opacity of predictions that should not be trusted: visible, but never mistaken for the others.
_FADED = 0.3
_FULL_TEXT_INCHES = 2.6
_COLORBARS = {"predicted": "", "std": "predictive SD", "residual": "measured − predicted"}


def prediction(
    data: SpatialData | AnnData,
    genes: str | list[str],
    *,
    sections: str | list[str] | None = None,
    key: str = "img2gene",
    table_key: str = "table",
    uncertainty: bool = False,
    residual: bool = True,
    fade: bool = True,
    cmap: str = "magma",
    alpha: float = 0.85,
    size: float = 1.3,
    panel_size: float = 3.2,
) -> Figure:
    """Draw measured expression, prediction and residual over the tissue image.

    Predictions that should not be trusted are drawn faintly, and the title says so: out-of-distribution spots, and
    genes that are not predictable.

    Parameters
    ----------
    data
        Study with predictions from :func:`img2gene.tl.predict`. Or predictions that a cross-validation kept, such as
        ``result.predictions["img2gene"]``, which are drawn without an image.
    genes
        One or several genes.
    sections
        One or several sections; by default all.
    key
        Name of the prediction: a layer of the table, or a separate table.
    table_key
        Table with the measured counts; for tiles, the table of the tiles.
    uncertainty
        Draw the predictive SD, too.
    residual
        Draw measured − predicted, too.
    fade
        Draw spots with ``obs["<key>_ood"]`` beyond the recorded threshold, and genes with False in
        ``var["predictable"]``, faintly; genes only if :func:`img2gene.tl.predictability` judged the stored prediction.
    cmap
        Colours of expression.
    alpha
        Opacity of the spots, 0–1.
    size
        Diameter of the drawn spots, as a multiple of the real one.
    panel_size
        Side of a panel in inches.

    Returns
    -------
    Figure with one row per gene and section and the columns measured, predicted, SD (with ``uncertainty``) and residual
    (measured − predicted). Measured and predicted share the colour scale (1st to 99th percentile of both); each title
    gives the Pearson correlation in the section. A section without measured spots shows only the prediction, and its
    SD.

    Raises
    ------
    MissingKeyError
        No such prediction, gene or section, a gene that the model does not predict, or no SD.

    Examples
    --------
    >>> import img2gene as ig
    >>> figure = ig.pl.prediction(sdata, ["ERBB2", "COL1A1"], sections="P4_S1")  # doctest: +SKIP
    """
    import matplotlib.pyplot as plt

    check = PlotArguments()
    names, sections = check.names("genes", genes, empty=True), check.labels("sections", sections)
    check.stored(key, table_key)
    uncertainty, residual = check.flag("uncertainty", uncertainty), check.flag("residual", residual)
    fade, panel_size = check.flag("fade", fade), check.panel(panel_size)
    style = check.style(cmap, alpha, size)
    check.raise_all()
    predictions = Predictions.of(study_or_kept(data, table_key), key, names)
    predictions.report_other_scale()
    if uncertainty and "std" not in predictions.parts:
        raise predictions.no_uncertainty()
    shown = predictions.canvases(
        predictions.section_names if sections is None else predictions.chosen_sections(sections)
    )
    rows = map_rows(predictions, names, shown, uncertainty=uncertainty, residual=residual, fade=fade)
    size_inches = (panel_size * 1.2 * len(map_columns(rows)), panel_size * len(rows))
    figure = plt.figure(figsize=size_inches, layout="constrained")
    draw_maps(figure, rows, unit=predictions.unit, **style)
    _shrink_texts(figure, panel_size)
    return shown_once(figure)


@dataclass(frozen=True, eq=False)
class MapRow:
    """What one row of maps shows: one gene in one section.

    Attributes
    ----------
    gene
        Name of the gene.
    canvas
        The section.
    values
        Value of each spot, by column: ``measured``, ``predicted``, ``std`` and ``residual``, or some of them, in this
        order.
    faint
        Spots with a prediction that should not be trusted.
    doubts
        Lines of the title that say why.
    """

    gene: str
    canvas: Canvas
    values: dict[str, np.ndarray]
    faint: np.ndarray
    doubts: list[str]


def map_rows(
    predictions: Predictions, genes: list[str], shown: list[Canvas], *, uncertainty: bool, residual: bool, fade: bool
) -> list[MapRow]:
    """Read what is drawn for each gene and section."""
    rows = []
    unpredictable = _unpredictable(predictions, genes) if fade else set()
    for gene in genes:
        for canvas in shown:
            values = _values(predictions, gene, canvas.rows, uncertainty, residual)
            far = predictions.out_of_distribution(canvas.rows) if fade else np.zeros(len(canvas.rows), dtype=bool)
            n_far = int(far.sum())
            doubts = ["not predictable"] if gene in unpredictable else []
            doubts += [f"{n_far} out-of-distribution spot{'s' if n_far > 1 else ''}"] if n_far else []
            rows.append(MapRow(gene, canvas, values, far | (gene in unpredictable), doubts))
    return rows


def _values(
    predictions: Predictions, gene: str, rows: np.ndarray, uncertainty: bool, residual: bool
) -> dict[str, np.ndarray]:
    parts = {
        name: values[:, 0]
        for name in ("measured", "predicted", *(["std"] if uncertainty else []))
        if (values := predictions.read(name, [gene], rows)) is not None
    }
    if "measured" in parts and not np.isfinite(parts["measured"]).any():
        del parts["measured"]
    if residual and "measured" in parts:
        parts["residual"] = parts["measured"] - parts["predicted"]
    return parts


def _unpredictable(predictions: Predictions, genes: list[str]) -> set[str]:
    """Genes that :func:`img2gene.tl.predictability` called unpredictable from this very prediction."""
    var = predictions.table.var
    if _schema.PREDICTABLE not in var or not _schema.judges(predictions.table, predictions.key):
        return set()
    # Genes that were not judged (NA) stay as they are.
    judged = var[_schema.PREDICTABLE].reindex(genes)
    return {gene for gene, value in judged.items() if not pd.isna(value) and not value}


def map_columns(rows: list[MapRow]) -> list[str]:
    """Columns that at least one row has, in the order in which they are drawn."""
    return [name for name in ("measured", "predicted", "std", "residual") if any(name in row.values for row in rows)]


def draw_maps(figure: Figure, rows: list[MapRow], *, unit: str, cmap: str, alpha: float, size: float) -> None:
    """Draw rows of maps on an empty figure; ``unit`` is that of the predictions."""
    columns = map_columns(rows)
    heights = [row.canvas.picture.shape[0] / row.canvas.picture.shape[1] for row in rows]
    grid = figure.subplots(len(rows), len(columns), squeeze=False, height_ratios=heights)
    for axes, row in zip(grid, rows, strict=True):
        scale = color_limits(
            np.concatenate([row.values[name] for name in ("measured", "predicted") if name in row.values])
        )
        for ax, name in zip(axes, columns, strict=True):
            # A section without measured spots has empty places below the measured panels of others.
            if name in row.values:
                _draw_map(ax, name, row, scale, unit, {"cmap": cmap, "alpha": alpha, "size": size})
            else:
                ax.set_axis_off()


def _shrink_texts(figure: Figure, panel_size: float) -> None:
    """Give small panels small texts, so that neighbours do not overlap."""
    for ax in figure.axes:
        for text in (ax.title, ax.yaxis.label):
            text.set_fontsize(float(text.get_fontsize()) * min(1.0, panel_size / _FULL_TEXT_INCHES))


def _draw_map(ax: Axes, name: str, row: MapRow, scale: tuple[float, float], unit: str, style: dict[str, Any]) -> None:
    values = row.values[name]
    if name != "measured":
        style["alpha"] = style["alpha"] * np.where(row.faint, _FADED, 1.0)
    if name == "residual":
        # The 99th percentile keeps a single extreme spot from bleaching all others.
        span = float(np.nanpercentile(np.abs(values), _RANGE[1])) if np.isfinite(values).any() else 1.0
        scale, style["cmap"] = (-span, span), "RdBu_r"
    elif name == "std":
        scale, style["cmap"] = color_limits(values, (0, _RANGE[1])), "viridis"
    drawn = draw(ax, row.canvas, values, vmin=scale[0], vmax=scale[1], **style)
    ax.set_title(_title(name, row), fontsize=9)
    if name in _COLORBARS:
        bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.046, pad=0.02)
        bar.set_label(labelled(_COLORBARS[name], unit) or "expression", fontsize=8)
        bar.ax.tick_params(labelsize=7)


def _title(name: str, row: MapRow) -> str:
    section = f"{row.canvas.name}  {row.gene}"
    if name != "predicted":
        return {"measured": f"{section} measured", "std": "SD", "residual": "residual"}[name]
    if "measured" not in row.values:
        return "\n".join([f"{section} predicted", *row.doubts])
    return "\n".join([f"predicted, PCC {_correlation(row.values['measured'], row.values['predicted'])}", *row.doubts])


def _correlation(truth: np.ndarray, predicted: np.ndarray) -> str:
    from img2gene.metrics import pearson

    known = np.isfinite(truth) & np.isfinite(predicted)
    value = pearson(truth[known], predicted[known])[0] if known.sum() > 1 else np.nan
    return f"{value:.2f}" if np.isfinite(value) else "undefined"
