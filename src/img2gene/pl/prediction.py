"""Measured and predicted expression side by side on the tissue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import MissingKeyError, listing, near_matches
from img2gene._study.expression import labels
from img2gene._study.predictions import predicted_values
from img2gene._study.study import Study
from img2gene.pl._tissue import Canvas, canvases, draw, gene_columns

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

_RANGE = (1, 99)
# Share of the opacity that is left of what should not be trusted.
_FADED = 0.3


def prediction(
    sdata: SpatialData,
    genes: str | list[str],
    *,
    sections: str | list[str] | None = None,
    key: str = "img2gene",
    table_key: str = "table",
    uncertainty: bool = False,
    fade: bool = True,
    cmap: str = "magma",
    alpha: float = 0.85,
    size: float = 1.3,
    panel_size: float = 3.2,
) -> Figure:
    """Draw measured expression, prediction and residual over the tissue image.

    What should not be trusted is drawn faintly, and the title says so: predictions of spots whose embedding is unlike the
    training data, and whole predictions of genes that are not predictable.

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
    uncertainty
        Draw the predictive SD, too.
    fade
        Draw spots with ``obs["<key>_ood"]`` beyond the recorded threshold, and genes with False in ``var["predictable"]``,
        faintly; the latter only where :func:`img2gene.tl.predictability` judged this very prediction.
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
    Figure with one row per gene and section and the columns measured, predicted, SD (if asked for) and residual (measured −
    predicted). Measured and predicted share the colour scale (1st to 99th percentile of both); each title gives the Pearson
    correlation in the section. Of a section without measured spots there is only the prediction, and its SD.

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

    study = Study.of(sdata, table_key)
    table = study.table
    names = [genes] if isinstance(genes, str) else list(genes)
    chosen = [sections] if isinstance(sections, str) else sections
    predicted = predicted_values(study, names, key)
    _check_predicted(table, key, names, predicted)
    std = predicted_values(study, names, key, part="std") if uncertainty else None
    measured = _measured(table, key, names)
    shown = canvases(study, chosen)
    truths = [[_known(measured, canvas.rows, gene) for canvas in shown] for gene in range(len(names))]
    compared = any(truth is not None for row in truths for truth in row)
    columns = (3 if compared else 1) + uncertainty
    figure, grid = plt.subplots(
        len(names) * len(shown),
        columns,
        figsize=(panel_size * 1.2 * columns, panel_size * len(names) * len(shown)),
        squeeze=False,
        layout="constrained",
    )
    style = {"cmap": cmap, "alpha": alpha, "size": size}
    strange = _strangers(table, key) if fade else np.zeros(table.n_obs, dtype=bool)
    judged = fade and _schema.judges(table, key)
    pairs = [(gene, place) for gene in range(len(names)) for place in range(len(shown))]
    for axes, (gene, place) in zip(grid, pairs, strict=True):
        rows = shown[place].rows
        sd = None if std is None else std[rows, gene]
        doubts = _Doubts(strange[rows], judged and _unpredictable(table, names[gene]))
        _draw_row(axes, shown[place], names[gene], (truths[gene][place], predicted[rows, gene], sd), doubts, style)
    return figure


def _check_predicted(table: AnnData, key: str, genes: list[str], predicted: np.ndarray) -> None:
    """Raise for genes that the layer has no value of: the model does not know them."""
    absent = [gene for gene, values in zip(genes, predicted.T, strict=True) if not np.isfinite(values).any()]
    if absent and table.n_obs:
        layer = table.layers.get(key)
        known = [] if layer is None else table.var_names[np.isfinite(np.asarray(layer)).any(axis=0)]
        raise MissingKeyError(
            f"{listing(absent)}: not predicted by the model of {key!r} ({near_matches(absent, known)})."
        )


def _known(measured: np.ndarray | None, rows: np.ndarray, gene: int) -> np.ndarray | None:
    """Labels of a gene in a section; None where no spot has one."""
    truth = None if measured is None else measured[rows, gene]
    return truth if truth is not None and np.isfinite(truth).any() else None


@dataclass(frozen=True)
class _Doubts:
    """What should not be trusted in one panel: some spots (bool (n,)), or the gene."""

    spots: np.ndarray
    gene: bool

    def opacity(self, alpha: float) -> np.ndarray:
        """Opacity of each spot (n,)."""
        return alpha * np.where(self.spots | self.gene, _FADED, 1.0)

    def lines(self) -> list[str]:
        """What the title says of it."""
        count = int(self.spots.sum())
        spots = f"{count} spot{'s' * (count > 1)} unlike the training data"
        return ["not predictable"] * self.gene + [spots] * (count > 0)


def _strangers(table: AnnData, key: str) -> np.ndarray:
    """Spots (n_obs,) beyond the threshold that was recorded with the prediction."""
    record = _schema.read_json(table, _schema.UNCERTAINTY, default={}).get(key)
    column = _schema.ood_key(key)
    if record is None or column not in table.obs:
        return np.zeros(table.n_obs, dtype=bool)
    return table.obs[column].to_numpy(dtype=float) > record["ood_threshold"]


def _unpredictable(table: AnnData, gene: str) -> bool:
    """Whether the table says so; what is not known is no reason to doubt."""
    if _schema.PREDICTABLE not in table.var or gene not in table.var_names:
        return False
    value = table.var.loc[gene, _schema.PREDICTABLE]
    return not pd.isna(value) and not bool(value)


def _measured(table: AnnData, key: str, genes: list[str]) -> np.ndarray | None:
    """Labels on the scale of the prediction; None where the table has not measured these genes."""
    if key not in table.layers:
        return None
    from img2gene.io.model_store import read_model, stored_models

    layer = read_model(table, key).labels["layer"] if key in stored_models(table) else None
    columns = np.array(gene_columns(table, genes, "var_names"))
    return labels(table, np.arange(table.n_obs), columns, layer=layer).astype(float)


def _draw_row(
    axes: np.ndarray,
    canvas: Canvas,
    gene: str,
    values: tuple[np.ndarray | None, np.ndarray, np.ndarray | None],
    doubts: _Doubts,
    style: dict[str, Any],
) -> None:
    truth, predicted, std = values
    # Where only other sections were measured, the columns of what is compared stay empty.
    empty = [axes[0], axes[-1]] if truth is None and len(axes) > 1 + (std is not None) else []
    for ax in empty:
        ax.set_axis_off()
    panels = iter([ax for ax in axes if ax not in empty])
    faded = {**style, "alpha": doubts.opacity(style["alpha"])}
    both = [part for part in (truth, predicted) if part is not None]
    low, high = _limits(np.concatenate(both), _RANGE)
    if truth is not None:
        ax = next(panels)
        draw(ax, canvas, truth, vmin=low, vmax=high, **style)
        ax.set_title(f"{canvas.name}  {gene} measured", fontsize=9)
    ax = next(panels)
    drawn = draw(ax, canvas, predicted, vmin=low, vmax=high, **faded)
    title = f"{canvas.name}  {gene} predicted" if truth is None else f"predicted, PCC {_correlation(truth, predicted)}"
    ax.set_title("\n".join([title, *doubts.lines()]), fontsize=9)
    _colorbar(ax, drawn, "expression")
    if std is not None:
        _draw_beside(next(panels), canvas, std, ("SD", "predictive SD"), _limits(std, (0, _RANGE[1])), "viridis", faded)
    if truth is not None:
        residual = truth - predicted
        span = float(np.nanpercentile(np.abs(residual), _RANGE[1])) if np.isfinite(residual).any() else 1.0
        words = ("residual", "measured − predicted")
        _draw_beside(next(panels), canvas, residual, words, (-span, span), "RdBu_r", faded)


def _draw_beside(
    ax: Axes,
    canvas: Canvas,
    values: np.ndarray,
    words: tuple[str, str],
    limits: tuple[float, float],
    cmap: str,
    style: dict[str, Any],
) -> None:
    drawn = draw(ax, canvas, values, vmin=limits[0], vmax=limits[1], **{**style, "cmap": cmap})
    ax.set_title(words[0], fontsize=9)
    _colorbar(ax, drawn, words[1])


def _limits(values: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, percentiles) if len(known) else (0.0, 1.0)
    return float(low), float(high)


def _correlation(truth: np.ndarray, predicted: np.ndarray) -> str:
    from img2gene.metrics import pearson

    known = np.isfinite(truth) & np.isfinite(predicted)
    value = pearson(truth[known], predicted[known])[0]
    return f"{value:.2f}" if np.isfinite(value) else "undefined"


def _colorbar(ax: Axes, mappable: object, label: str) -> None:
    bar = ax.figure.colorbar(mappable, ax=ax, fraction=0.046, pad=0.02)  # type: ignore[arg-type]
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
