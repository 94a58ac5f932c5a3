"""Measured and predicted expression side by side on the tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from img2gene import _schema
from img2gene._expression import labels
from img2gene._study import predicted_values
from img2gene.pl._tissue import Canvas, canvases, draw, gene_columns

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

_RANGE = (1, 99)


def prediction(
    sdata: SpatialData,
    genes: str | list[str],
    *,
    sections: str | list[str] | None = None,
    key: str = "img2gene",
    table_key: str = "table",
    cmap: str = "magma",
    alpha: float = 0.85,
    size: float = 1.3,
    panel_size: float = 3.2,
) -> Figure:
    """Draw measured expression, prediction and residual over the tissue image.

    Parameters
    ----------
    sdata
        Study with predictions from :func:`img2gene.tl.predict`.
    genes
        One or several genes.
    sections
        One or several sections; by default all.
    key
        Name of the prediction: a layer of the table, or a table of its own.
    table_key
        Table with the measured counts; for tiles, the table of the tiles.
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
    Figure with one row per gene and section and the columns measured, predicted and residual (measured − predicted).
    Measured and predicted share the colour scale (1st to 99th percentile of both); each title gives the Pearson
    correlation in the section. Where nothing was measured there is only the prediction.

    Raises
    ------
    MissingKeyError
        No such prediction, gene or section.

    Examples
    --------
    >>> import img2gene as ig
    >>> figure = ig.pl.prediction(sdata, ["ERBB2", "COL1A1"], sections="P4_S1")  # doctest: +SKIP
    """
    import matplotlib.pyplot as plt

    table = _schema.get_table(sdata, table_key)
    names = [genes] if isinstance(genes, str) else list(genes)
    chosen = [sections] if isinstance(sections, str) else sections
    predicted = predicted_values(sdata, names, key, table_key)
    measured = _measured(table, key, names)
    shown = canvases(sdata, table_key, chosen)
    columns = 1 if measured is None else 3
    figure, grid = plt.subplots(
        len(names) * len(shown),
        columns,
        figsize=(panel_size * 1.2 * columns, panel_size * len(names) * len(shown)),
        squeeze=False,
        layout="constrained",
    )
    style = {"cmap": cmap, "alpha": alpha, "size": size}
    pairs = [(gene, canvas) for gene in range(len(names)) for canvas in shown]
    for axes, (gene, canvas) in zip(grid, pairs, strict=True):
        truth = None if measured is None else measured[canvas.rows, gene]
        _draw_row(axes, canvas, names[gene], truth, predicted[canvas.rows, gene], style)
    return figure


def _measured(table: AnnData, key: str, genes: list[str]) -> np.ndarray | None:
    """Labels on the scale of the prediction; None where the table has not measured these genes."""
    if key not in table.layers:
        return None
    from img2gene.io.model_store import read_model, stored_models

    layer = read_model(table, key).labels["layer"] if key in stored_models(table) else None
    columns = np.array(gene_columns(table, genes, "var_names"))
    return labels(table, np.arange(table.n_obs), columns, layer=layer).astype(float)


def _draw_row(
    axes: np.ndarray, canvas: Canvas, gene: str, truth: np.ndarray | None, predicted: np.ndarray, style: dict
) -> None:
    both = predicted if truth is None else np.concatenate([truth, predicted])
    both = both[np.isfinite(both)]
    low, high = np.percentile(both, _RANGE) if len(both) else (0.0, 1.0)
    drawn = draw(axes[-1] if truth is None else axes[1], canvas, predicted, vmin=low, vmax=high, **style)
    if truth is None:
        axes[0].set_title(f"{canvas.name}  {gene} predicted", fontsize=9)
        _colorbar(axes[0], drawn, "expression")
        return
    draw(axes[0], canvas, truth, vmin=low, vmax=high, **style)
    residual = truth - predicted
    span = float(np.nanpercentile(np.abs(residual), _RANGE[1])) if np.isfinite(residual).any() else 1.0
    rest = draw(axes[2], canvas, residual, vmin=-span, vmax=span, **{**style, "cmap": "RdBu_r"})
    axes[0].set_title(f"{canvas.name}  {gene} measured", fontsize=9)
    axes[1].set_title(f"predicted, PCC {_correlation(truth, predicted)}", fontsize=9)
    axes[2].set_title("residual", fontsize=9)
    _colorbar(axes[1], drawn, "expression")
    _colorbar(axes[2], rest, "measured − predicted")


def _correlation(truth: np.ndarray, predicted: np.ndarray) -> str:
    from img2gene.metrics import pearson

    known = np.isfinite(truth) & np.isfinite(predicted)
    value = pearson(truth[known], predicted[known])[0]
    return f"{value:.2f}" if np.isfinite(value) else "undefined"


def _colorbar(ax: Axes, mappable: object, label: str) -> None:
    bar = ax.figure.colorbar(mappable, ax=ax, fraction=0.046, pad=0.02)  # type: ignore[arg-type]
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
