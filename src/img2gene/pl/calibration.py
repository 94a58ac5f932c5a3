"""Measured against nominal coverage of the predicted uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import metrics
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError
from img2gene.pl._arguments import PlotArguments, study_or_kept
from img2gene.pl._figures import shown_once
from img2gene.pl._predictions import Predictions
from img2gene.settings import settings

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

LEVELS = np.linspace(0.05, 0.95, 19)
# Coverage is a mean over genes and spots, so a sample is enough, and a page about 20,000 genes takes seconds.
MAX_GENES, MAX_SPOTS = 300, 2000


@fill_parameters
def calibration(
    data: SpatialData | AnnData,
    *,
    sections: str | Sequence[str] | None = None,
    level: float | None = None,
    ax: Axes | None = None,
    seed: int | None = None,
    key: str = "img2gene",
    table_key: str = "table",
) -> Figure:
    """Draw the measured coverage of the predicted uncertainty against its nominal coverage.

    Below the diagonal the uncertainty is understated, above it overstated.

    Parameters
    ----------
    data
        Study with predictions from :func:`img2gene.tl.predict`, or predictions that a cross-validation kept, such as
        ``result.predictions["img2gene"]``.
    sections
        One or several sections with measured spots; by default all that the stored model was not
        trained on, or all sections if there are none.
    level
        Nominal coverage of the intervals; by default the recorded one. Kept predictions of a cross-validation do not
        record it: pass ``result.settings["level"]``.
    %(ax)s
    seed
        Seed of the sample of at most 2,000 spots per section; None takes ``img2gene.settings.seed``.
    %(key_study)s
    table_key
        Table of the study.

    Returns
    -------
    Figure. A thin line is a section, the thick one the mean over sections: the share of spots and genes whose
    absolute error lies within the central interval of a normal distribution with the predicted SD. Dots show the
    coverage of the stored intervals in each section, the diamond the mean over sections. At most 300 genes are used,
    spread over the panel.

    Raises
    ------
    MissingKeyError
        No such prediction or section, or neither an SD nor intervals.
    Img2GeneError
        No measured spot.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "ridge", validate_on=["P3"])
    >>> ig.tl.predict(sdata)
    >>> figure = ig.pl.calibration(sdata)
    """
    check = PlotArguments()
    sections, level = check.labels("sections", sections), check.number("level", level, 0, 1, optional=True)
    seed = check.seed("seed", settings.seed if seed is None else seed)
    check.stored(key, table_key)
    check.axes(ax)
    check.raise_all()
    predictions = Predictions.of(study_or_kept(data, table_key), key)
    if not {"std", "lower"} & set(predictions.parts):
        raise predictions.no_uncertainty()
    names = predictions.chosen_sections(sections)
    frame = section_calibration(predictions, names, seed)
    if not len(frame):
        raise Img2GeneError(f"No measured spot in the sections {', '.join(names)}, so coverage is undefined.")
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(4.6, 4.2), layout="constrained")[1]
    return shown_once(draw_calibration(ax, frame, predictions.level if level is None else level))


def section_calibration(predictions: Predictions, sections: list[str], seed: int) -> pd.DataFrame:
    """Measure the calibration of each section that has measured spots.

    Returns
    -------
    DataFrame with ``section``, ``spots``, and where they are defined ``coverage`` and ``width`` of the intervals,
    ``error_correlation`` of the SD, and ``curve``: coverage of normal intervals at each of the nominal :data:`LEVELS`.
    """
    rng, rows = np.random.default_rng(seed), []
    genes = predictions.measured_genes
    if len(genes) > MAX_GENES:
        genes = [genes[i] for i in np.linspace(0, len(genes) - 1, MAX_GENES).astype(int)]
    for name in sections:
        members = np.sort(rng.permutation(predictions.rows(name))[:MAX_SPOTS])
        parts = {part: predictions.read(part, genes, members) for part in predictions.parts}
        measured = parts.get("measured")
        known = np.zeros(0, dtype=bool) if measured is None else np.isfinite(measured).any(axis=1)
        if known.any():
            values = {part: matrix[known] for part, matrix in parts.items() if matrix is not None}
            rows.append({"section": name, "spots": int(known.sum()), **_calibration(values)})
    return pd.DataFrame(rows)


def _calibration(values: dict[str, np.ndarray]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    truth = values["measured"]
    if {"lower", "upper"} <= values.keys():
        facts["coverage"] = _mean(metrics.coverage(truth, values["lower"], values["upper"]))
        facts["width"] = _mean(metrics.interval_width(values["lower"], values["upper"]))
    if "std" in values:
        facts["error_correlation"] = _mean(metrics.error_correlation(truth, values["predicted"], values["std"]))
        facts["curve"] = _normal_coverage(np.abs(truth - values["predicted"]), values["std"])
    return facts


def _mean(values: np.ndarray) -> float:
    # `nanmean` warns if no value is known.
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def _normal_coverage(error: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Share of errors within the central normal interval of each level."""
    from scipy.stats import norm

    # An SD of 0 promises no error at all, so it has no place on a normal scale.
    ratio = (error / np.where(std > 0, std, np.nan)).ravel()
    ratio = ratio[np.isfinite(ratio)]
    return np.array([(ratio <= norm.ppf(0.5 + level / 2)).mean() if len(ratio) else np.nan for level in LEVELS])


def draw_calibration(ax: Axes, frame: pd.DataFrame, level: float) -> Axes:
    """Draw the result of :func:`section_calibration`, with the intervals at their nominal ``level`` if it is known."""
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    if "curve" in frame:
        curves = np.array(frame["curve"].tolist())
        ax.plot(LEVELS, curves.T, color="#9db7dc", linewidth=0.8)
        ax.plot(LEVELS, curves.mean(axis=0), color="#3b6fb6", linewidth=2, label="normal intervals from the SD")
    if "coverage" in frame and np.isfinite(level):
        ax.scatter([level] * len(frame), frame["coverage"], s=16, color="#c4673d", alpha=0.6, zorder=3)
        mean = frame["coverage"].mean()
        ax.scatter(level, mean, marker="D", s=40, color="#c4673d", zorder=4, label="stored intervals")
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="nominal coverage", ylabel="measured coverage")
    ax.set_aspect("equal")
    # Without SD and level only the diagonal is drawn, and an empty legend would warn.
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8, loc="upper left")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
