"""The catalog of metrics: one entry for each score that evaluations report.

A new metric takes a function in this package and an entry in :data:`CATALOG`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from img2gene.metrics.moments import Moments
from img2gene.metrics.raster import ssim
from img2gene.metrics.regression import mae, mse, nrmse, pearson, r2
from img2gene.metrics.spatial import moran_difference
from img2gene.metrics.uncertainty import coverage, error_correlation, interval_width

if TYPE_CHECKING:
    import pandas as pd

Direction = Literal["higher", "lower", "zero", "one"]
# Arguments of a metric's function, by what it needs. `mean` is the training mean of each gene, `sd` the predicted SD.
# Moments and ranks are computed once for several metrics and baselines.
ARGUMENTS = {
    "moments": ("moments",),
    "ranks": ("truth_ranks", "predicted_ranks"),
    "pairs": ("truth", "predicted"),
    "reference": ("truth", "predicted", "mean"),
    "map": ("truth", "predicted", "positions"),
    "graph": ("truth", "predicted", "graph"),
    "pooled": ("moments",),
    "interval": ("truth", "lower", "upper"),
    "bounds": ("lower", "upper"),
    "sd": ("truth", "predicted", "sd"),
}


@dataclass(frozen=True)
class Metric:
    """A score of each gene.

    Attributes
    ----------
    name
        Column in tables of scores.
    function
        Returns float64 (n_genes,) for the arguments that ``needs`` stands for.
    needs
        A key of :data:`ARGUMENTS`. All are scored in one section, except ``"pooled"``: over the spots of all sections.
    direction
        Which values are better; None where that depends on something else, as coverage does on its nominal level.
    label
        Name in figures.
    """

    name: str
    function: Callable[..., np.ndarray]
    needs: str
    direction: Direction | None
    label: str


CATALOG = {
    metric.name: metric
    for metric in (
        Metric("pcc", Moments.pearson, "moments", "higher", "PCC"),
        # Pearson correlation of ranks is Spearman correlation.
        Metric("spearman", pearson, "ranks", "higher", "Spearman"),
        Metric("mse", mse, "pairs", "lower", "MSE"),
        Metric("mae", mae, "pairs", "lower", "MAE"),
        Metric("r2", r2, "reference", "higher", "R²"),
        Metric("nrmse", nrmse, "pairs", "lower", "NRMSE"),
        Metric("bias", Moments.bias, "moments", "zero", "bias"),
        Metric("slope", Moments.slope, "moments", "one", "slope"),
        Metric("ssim", ssim, "map", "higher", "SSIM"),
        # Too smooth and too rough are both wrong.
        Metric("moran", moran_difference, "graph", "zero", "Moran's I, predicted − measured"),
        Metric("pcc_pooled", Moments.pearson, "pooled", "higher", "PCC over all sections together"),
        Metric("coverage", coverage, "interval", None, "coverage"),
        Metric("width", interval_width, "bounds", "lower", "width of intervals"),
        Metric("error_correlation", error_correlation, "sd", "higher", "Spearman of error and predicted SD"),
    )
}
METRICS = tuple(CATALOG)
_TARGETS = {"zero": 0.0, "one": 1.0}
# Scores of all genes together, which one call of `structure_score` returns: they are no scores of single genes.
_STRUCTURE: dict[str, Direction] = {"structure": "higher", "structure_rmse": "lower"}


def direction(metric: str) -> Direction | None:
    """Look up which values of a metric are better; None where that depends on something else, and for unknown names.

    Examples
    --------
    >>> from img2gene.metrics.catalog import direction
    >>> direction("pcc"), direction("mse"), direction("moran"), direction("coverage")
    ('higher', 'lower', 'zero', None)
    """
    if not isinstance(metric, str):
        return None
    return CATALOG[metric].direction if metric in CATALOG else _STRUCTURE.get(metric)


def goodness(values: pd.Series, metric: str, level: float | None) -> pd.Series:
    """Turn scores into values that are higher where the scores are better.

    ``level`` is the nominal level of intervals, which their coverage is compared with. Scores without a direction stay
    as they are.
    """
    if metric == "coverage" and level is not None:
        return -(values - level).abs()
    better = direction(metric)
    if better in _TARGETS:
        return -(values - _TARGETS[better]).abs()
    return -values if better == "lower" else values
