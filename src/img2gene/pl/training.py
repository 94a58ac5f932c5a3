"""Losses and validation scores by epoch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from img2gene._errors import Img2GeneError, MissingKeyError, listing, no_such
from img2gene.pl._arguments import PlotArguments, open_study
from img2gene.pl._figures import shown_once

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

    from img2gene.models import Model

_VALIDATION = "validation"
LINE_COLORS = ("#3b6fb6", "#c4673d", "#5c9e5c", "#8d6cb3", "#b5903b", "#4fa3a5")
_REFIT_COLOR = "#222222"
_N_COLUMNS = 4


def training(
    model: Model | SpatialData,
    values: str | list[str] | None = None,
    *,
    ax: Axes | None = None,
    key: str = "img2gene",
    table_key: str = "table",
    panel_size: float = 2.6,
) -> Figure:
    """Draw how a model was trained: its losses and its validation score by epoch.

    Parameters
    ----------
    model
        A model, or the study that holds it under ``key``.
    values
        One or several values of the history: ``"loss"`` and its parts (unweighted), ``"validation"``. By default all.
    ax
        Axes for a single value; by default new ones.
    key
        Name of the model in the study.
    table_key
        Table it was trained on.
    panel_size
        Side of a panel in inches.

    Returns
    -------
    Figure with a panel for each value and a line for each training run: one run for each inner validation, and a last
    run on all training data, which is not validated. Dotted lines, and a point in the panel of the validation score,
    mark the epoch with the best validation score of each run.

    Raises
    ------
    MissingKeyError
        No such model or value.
    Img2GeneError
        The model is not trained in epochs, such as the ridge; ``ax`` for several values.

    Examples
    --------
    >>> import img2gene as ig
    >>> figure = ig.pl.training(sdata, "validation")  # doctest: +SKIP
    """
    from img2gene.io.model_store import read_model
    from img2gene.models import Model

    check = PlotArguments()
    values, panel_size = check.names("values", values, optional=True, empty=True), check.panel(panel_size)
    check.stored(key, table_key)
    check.axes(ax)
    if isinstance(model, str | Path):
        check.messages.append("model: expected a model or a study; read a file with `img2gene.io.load_model(path)`.")
    check.raise_all()
    trained = model if isinstance(model, Model) else read_model(open_study(model, table_key).table, key)
    runs = _runs(_history(trained))
    names = _names(runs, values)
    panels = _panels(names, panel_size) if ax is None else [ax]
    if len(panels) < len(names):
        raise Img2GeneError(
            f"`ax` takes one value, but there are {len(names)}: pass `values=` with one of {listing(names)}."
        )
    for panel, name in zip(panels, names, strict=True):
        _draw(panel, name, runs)
    panels[0].legend(fontsize=7, frameon=False)
    return shown_once(panels[0])


def _panels(names: list[str], panel_size: float) -> list[Axes]:
    import matplotlib.pyplot as plt

    n_columns = min(_N_COLUMNS, len(names))
    n_rows = -(-len(names) // n_columns)
    size = (panel_size * 1.2 * n_columns, panel_size * n_rows)
    grid = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")[1]
    for spare in grid.flat[len(names) :]:
        spare.axis("off")
    return list(grid.flat[: len(names)])


def _history(model: Model) -> list[dict]:
    history = getattr(model.predictor, "history_", None)
    if not history:
        raise Img2GeneError(
            f"The model `{model.name}` is not trained in epochs and has no history to draw. "
            "Networks have one: `img2gene.tl.fit(sdata, 'img2gene')`."
        )
    return history


def _runs(history: list[dict]) -> dict[str, list[dict]]:
    """Group the entries of the history by training run."""
    runs: dict[str, list[dict]] = {}
    for entry in history:
        runs.setdefault(str(entry.get("run", "fit")), []).append(entry)
    return runs


def _names(runs: dict[str, list[dict]], values: str | list[str] | None) -> list[str]:
    recorded = dict.fromkeys(name for run in runs.values() for entry in run for name in entry)
    losses = [name for name in recorded if name not in ("run", "epoch", _VALIDATION)]
    known = [*losses, *([_VALIDATION] if _VALIDATION in recorded else [])]
    names = known if values is None else [values] if isinstance(values, str) else list(values)
    absent = [name for name in names if name not in known]
    if not names:
        raise MissingKeyError(no_such("value of the history", (), known))
    if absent:
        raise MissingKeyError(f"The history holds no {listing(absent)} (available: {listing(known)}).")
    return names


def _best_epoch(run: list[dict]) -> float | None:
    """Find the epoch with the best validation score, the first of equals; None without validation."""
    scored = [entry for entry in run if _VALIDATION in entry]
    return float(max(scored, key=lambda entry: entry[_VALIDATION])["epoch"]) if scored else None


def _draw(ax: Axes, name: str, runs: dict[str, list[dict]]) -> None:
    for number, (label, run) in enumerate(runs.items()):
        known = [entry for entry in run if name in entry]
        best = _best_epoch(run)
        # Only the last run, on all training data, is not validated.
        color = _REFIT_COLOR if best is None else LINE_COLORS[number % len(LINE_COLORS)]
        epochs = np.array([entry["epoch"] for entry in known], dtype=float)
        heights = np.array([entry[name] for entry in known], dtype=float)
        ax.plot(epochs, heights, color=color, linewidth=1.2, label=label)
        if best is not None:
            ax.axvline(best, color=color, linewidth=0.8, linestyle=":")
        if best is not None and name == _VALIDATION:
            ax.plot(best, heights[epochs == best][0], "o", color=color, markersize=5)
    ax.set_title(name, fontsize=9)
    ax.set_xlabel("epoch", fontsize=8)
    ax.set_ylabel("mean correlation" if name == _VALIDATION else "loss", fontsize=8)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
