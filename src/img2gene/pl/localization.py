"""Marker score of a tissue over the image, with the outlines of the called and of the annotated region."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing, no_such
from img2gene._study.localization import (
    agreement,
    annotated,
    inside_column,
    positive_values,
    required_record,
    score_column,
)
from img2gene._study.study import Study
from img2gene.pl._arguments import PlotArguments, open_study
from img2gene.pl._figures import shown_once
from img2gene.pl._tissue import Canvas, canvases, color_limits, draw, outline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

_COLUMNS = 3
# The annotation is dashed on top of a wider line, so that both show where they agree.
_LINES: dict[str, dict[str, Any]] = {
    "called": {"color": "#00b8d4", "linestyle": "solid", "linewidth": 2.6},
    "annotated": {"color": "black", "linestyle": "dashed", "linewidth": 1.2},
}


def localization(
    sdata: SpatialData,
    tissue: str,
    *,
    sections: str | list[str] | None = None,
    annotation: str | None = None,
    positive: str | list[str] | None = None,
    key_added: str = "localization",
    table_key: str = "table",
    cmap: str = "magma",
    alpha: float = 0.85,
    size: float = 1.3,
    panel_size: float = 3.6,
) -> Figure:
    """Draw the marker score of a tissue, the outline of the called region, and the outline of an annotation.

    Parameters
    ----------
    sdata
        Study on which :func:`img2gene.tl.localize` was run.
    tissue
        Name of a localised tissue.
    sections
        One or several scored sections; by default all.
    annotation
        Column of obs to compare with; by default the one that ``localize`` used, if any.
    positive
        Values of the annotation that mean the tissue; by default chosen as by :func:`img2gene.tl.localize`.
    key_added
        Name under which the localisation is stored.
    table_key
        Table with the scored spots.
    cmap
        Colours of the score.
    alpha
        Opacity of the spots, 0–1.
    size
        Diameter of the drawn spots, as a multiple of the real one.
    panel_size
        Side of a panel in inches.

    Returns
    -------
    Figure with a panel per section; all panels share a colour scale (1st to 99th percentile). A spot covers the area
    that is nearer to it than to other spots. Titles give AUROC and Dice coefficient against the annotation.

    Raises
    ------
    MissingKeyError
        No such localisation, tissue, section or annotation, or a section that was not scored.

    Examples
    --------
    >>> import img2gene as ig
    >>> figure = ig.pl.localization(sdata, "tumour", annotation="domain")  # doctest: +SKIP
    """
    import matplotlib.pyplot as plt

    check = PlotArguments()
    names, positive = check.labels("sections", sections), check.names("positive", positive, optional=True)
    check.text("tissue", tissue)
    check.text("annotation", annotation, optional=True)
    check.stored(key_added, table_key, "key_added")
    look, panel_size = check.style(cmap, alpha, size), check.panel(panel_size)
    check.raise_all()
    study = open_study(sdata, table_key)
    record = required_record(study, key_added)
    if tissue not in record["markers"]:
        raise MissingKeyError(f"No tissue {tissue!r} in `{key_added}` (available: {listing(record['markers'])}).")
    chosen = _sections(record, names)
    scores, inside = _scores(study, key_added, tissue)
    truth = _truth(study, record, tissue, annotation, positive)
    shown = canvases(study, chosen)
    columns = min(len(shown), _COLUMNS)
    lines = -(-len(shown) // columns)
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(panel_size * 1.05 * columns + 0.8, panel_size * lines),
        squeeze=False,
        layout="constrained",
    )
    limits = color_limits(scores[np.concatenate([canvas.rows for canvas in shown])])
    style = look | {"vmin": limits[0], "vmax": limits[1]}
    for ax, canvas in zip(grid.flat, shown, strict=False):
        rows = canvas.rows
        drawn = _panel(ax, canvas, tissue, scores[rows], inside[rows], truth[rows], style)
    for ax in grid.flat[len(shown) :]:
        ax.set_axis_off()
    bar = figure.colorbar(drawn, ax=grid, shrink=0.8, pad=0.01)
    bar.set_label(f"{tissue} score ({record['use']}, mean z)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    _legend(figure, bool(np.isfinite(truth).any()))
    return shown_once(figure)


def _sections(record: dict[str, Any], sections: list[str] | None) -> list[str]:
    names = record["sections"] if sections is None else sections
    absent = [name for name in names if name not in record["sections"]]
    if not names:
        raise MissingKeyError(no_such("section", (), record["sections"]))
    if absent:
        raise MissingKeyError(f"Section {listing(absent)} was not scored (scored: {listing(record['sections'])}).")
    return names


def _scores(study: Study, key: str, tissue: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the score of each spot, NaN if it was not scored, and whether it was called."""
    import pandas as pd

    obs, names = study.table.obs, [score_column(key, tissue), inside_column(key, tissue)]
    hint = "Run `img2gene.tl.localize` again."
    absent = [name for name in names if name not in obs]
    if absent:
        raise MissingKeyError(missing(listing(absent), f"{study.name}.obs", obs.columns, hint))
    if not pd.api.types.is_numeric_dtype(obs[names[0]]):
        raise Img2GeneError(f"`{study.name}.obs['{names[0]}']` holds {obs[names[0]].dtype} values, not scores. {hint}")
    # Truth values are text in some stored tables.
    return obs[names[0]].to_numpy(dtype=float, na_value=np.nan), annotated(obs[names[1]], ["True"]) == 1


def _truth(
    study: Study,
    record: dict[str, Any],
    tissue: str,
    annotation: str | None,
    positive: str | list[str] | None,
) -> np.ndarray:
    """Read the annotation: 1 inside the tissue, 0 outside, NaN if it is unknown."""
    table = study.table
    column = record["annotation"] if annotation is None else annotation
    if column is None:
        return np.full(table.n_obs, np.nan)
    if column not in table.obs:
        raise MissingKeyError(missing(column, f"{study.name}.obs", table.obs.columns))
    # The values that `localize` used belong to its annotation; another column has other values.
    if positive is None and column == record["annotation"]:
        positive = record["positive"][tissue]
    return annotated(table.obs[column], positive_values(table.obs[column], [tissue], positive)[tissue])


def _panel(
    ax: Axes, canvas: Canvas, tissue: str, scores: np.ndarray, inside: np.ndarray, truth: np.ndarray, style: dict
) -> Any:
    drawn = draw(ax, canvas, scores, **style)
    outline(ax, canvas, inside, _LINES["called"])
    title = f"{canvas.name}  {tissue}"
    if np.isfinite(truth).any():
        outline(ax, canvas, truth == 1, _LINES["annotated"])
        scored = agreement(truth, scores, inside)
        parts = [f"{label} {_text(scored[key])}" for label, key in (("AUROC", "auroc"), ("Dice", "dice"))]
        title += "\n" + ", ".join(parts)
    ax.set_title(title, fontsize=9)
    return drawn


def _text(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "undefined"


def _legend(figure: Figure, compared: bool) -> None:
    from matplotlib.lines import Line2D

    names = ["called", "annotated"] if compared else ["called"]
    lines = [Line2D([], [], **_LINES[name]) for name in names]
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
