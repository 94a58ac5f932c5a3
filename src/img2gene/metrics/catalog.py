"""The catalog of metrics: names, which of their values are better, and what each needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

OF_SPOTS = ("pcc", "spearman", "mse", "mae", "r2", "nrmse")
OF_MAPS = ("ssim", "moran")
UNCERTAINTY = ("coverage", "width", "error_correlation")
METRICS = (*OF_SPOTS, *OF_MAPS, "pcc_pooled", *UNCERTAINTY)
HIGHER = ("pcc", "spearman", "r2", "ssim", "pcc_pooled", "error_correlation", "structure")
LOWER = ("mse", "mae", "nrmse", "width", "structure_rmse")


def direction(metric: str) -> Literal["higher", "lower", "zero"] | None:
    """Which values of a metric are better; None where that depends on something else, as coverage does on its level.

    Examples
    --------
    >>> from img2gene.metrics.catalog import direction
    >>> direction("pcc"), direction("mse"), direction("moran"), direction("coverage")
    ('higher', 'lower', 'zero', None)
    """
    if metric in HIGHER:
        return "higher"
    if metric in LOWER:
        return "lower"
    # A difference of autocorrelations: too smooth and too rough are both wrong.
    return "zero" if metric == "moran" else None


def goodness(values: pd.Series, metric: str, level: float | None) -> pd.Series:
    """Values that are higher where scores are better; ``level`` is that of intervals, for their coverage.

    The scores themselves, where it is not known which are better.
    """
    if metric == "coverage" and level is not None:
        return -(values - level).abs()
    better = direction(metric)
    return -values if better == "lower" else -values.abs() if better == "zero" else values
