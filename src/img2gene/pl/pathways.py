"""Pathway scores over the tissue, and which pathways vary with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, listing
from img2gene._pathways import enrichment_table, required_pathways
from img2gene.pl._tissue import Canvas, canvases, draw

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

KINDS = ("maps", "enrichment")
_RANGE = (1, 99)
_N_MAPS, _N_BARS = 4, 20
_BAR_COLORS = {True: "#3b6fb6", False: "#c9c9c9"}


def pathways(
    sdata: SpatialData,
    pathways: str | list[str] | None = None,
    *,
    kind: str = "maps",
    sections: str | list[str] | None = None,
    ax: Axes | None = None,
    key: str = _schema.PATHWAYS,
    table_key: str = "table",
    max_fdr: float = 0.05,
    cmap: str = "viridis",
    alpha: float = 0.85,
    size: float = 1.3,
    panel_size: float = 3.2,
) -> Figure:
    """Draw pathway scores over the tissue, or the enrichment that pathways were selected by.

    Parameters
    ----------
    sdata
        Study with pathways from :func:`img2gene.pp.score_pathways`.
    pathways
        One or several. By default the first 4 selected ones as maps, and the 20 with the highest NES as bars.
    kind
        ``"maps"``: scores over the tissue image. ``"enrichment"``: a bar for each NES.
    sections
        Sections to map; by default all.
    ax
        Axes for the bars, or for a single map; by default new ones.
    key
        Name the pathways are stored under.
    table_key
        Table they were scored in.
    max_fdr
        Bars with a higher false discovery rate are grey.
    cmap
        Colours of the maps.
    alpha
        Opacity of the spots, 0–1.
    size
        Diameter of the drawn spots, as a multiple of the real one.
    panel_size
        Side of a map in inches.

    Returns
    -------
    Figure. Maps: a row per section, a column per pathway; all sections share a pathway's colours (1st to 99th percentile),
    spots without counts are left out. Bars: highest NES at the top, an asterisk where the FDR is at most ``max_fdr``.

    Raises
    ------
    MissingKeyError
        No pathways, no such pathway or section.
    Img2GeneError
        No enrichment, as all pathways were taken; ``ax`` for several maps; unknown kind.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30)
    >>> ig.pp.score_pathways(sdata)
    >>> figure = ig.pl.pathways(sdata, "hypoxia")
    """
    table = _schema.get_table(sdata, table_key)
    asked = [pathways] if isinstance(pathways, str) else pathways
    if kind == "enrichment":
        return _enrichment(enrichment_table(table, key, table_key=table_key), asked, ax, max_fdr)
    if kind != "maps":
        raise Img2GeneError(f"kind={kind!r}: choose {listing(KINDS)}.")
    names, values = _scores(table, asked, key, table_key)
    shown = canvases(sdata, table_key, [sections] if isinstance(sections, str) else sections)
    style = {"cmap": cmap, "alpha": alpha, "size": size}
    return _maps(shown, names, values, ax, panel_size, style)


def _scores(table: AnnData, asked: list[str] | None, key: str, table_key: str) -> tuple[list[str], np.ndarray]:
    """Names and scores (n_obs, n) of the pathways to map."""
    known = required_pathways(table, table_key, key)["names"]
    names = known[:_N_MAPS] if asked is None else asked
    _check_known(names, known)
    return names, np.asarray(table.obsm[key], dtype=float)[:, [known.index(name) for name in names]]


def _check_known(names: list[str], known: list[str]) -> None:
    absent = [name for name in names if name not in known]
    if absent or not names:
        raise MissingKeyError(f"No pathway named {listing(absent)} (available: {listing(known, 20)}).")


def _maps(
    shown: list[Canvas], names: list[str], values: np.ndarray, ax: Axes | None, panel_size: float, style: dict
) -> Figure:
    import matplotlib.pyplot as plt

    n_rows, n_columns = len(shown), len(names)
    if ax is None:
        size = (panel_size * 1.2 * n_columns, panel_size * n_rows)
        grid = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")[1]
    elif n_rows * n_columns == 1:
        grid = np.array([[ax]])
    else:
        raise Img2GeneError(f"`ax` takes one map, here are {n_columns} pathways in {n_rows} sections.")
    everything = np.concatenate([canvas.rows for canvas in shown])
    for column, name in enumerate(names):
        low, high = _limits(values[everything, column])
        for row, canvas in enumerate(shown):
            panel = grid[row, column]
            drawn = draw(panel, canvas, values[canvas.rows, column], vmin=low, vmax=high, **style)
            panel.set_title(f"{canvas.name}  {name}", fontsize=9)
            bar = panel.figure.colorbar(drawn, ax=panel, fraction=0.046, pad=0.02)
            bar.ax.tick_params(labelsize=7)
    return grid[0, 0].figure


def _limits(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, _RANGE) if len(known) else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1


def _enrichment(table: pd.DataFrame, asked: list[str] | None, ax: Axes | None, max_fdr: float) -> Figure:
    import matplotlib.pyplot as plt

    if asked is not None:
        _check_known(asked, table["pathway"].tolist())
    defined = table[table["nes"].notna()]
    chosen = defined.head(_N_BARS) if asked is None else defined[defined["pathway"].isin(asked)]
    if ax is None:
        ax = plt.subplots(figsize=(6, 1 + 0.25 * len(chosen)), layout="constrained")[1]
    sure = (chosen["fdr"] <= max_fdr).tolist()
    heights = [float(place) for place in range(len(chosen))]
    ax.barh(heights, chosen["nes"], color=[_BAR_COLORS[flag] for flag in sure])
    for height, nes, flag in zip(heights, chosen["nes"], sure, strict=True):
        ax.text(nes, height, " *" if flag else "", ha="left" if nes >= 0 else "right", va="center", fontsize=9)
    ax.set_yticks(heights, chosen["pathway"].tolist(), fontsize=8)
    ax.invert_yaxis()
    ax.axvline(0, color="0.7", linewidth=0.8)
    ax.set_xlabel(f"NES (* FDR ≤ {max_fdr:g})")
    ax.spines[["top", "right"]].set_visible(False)
    return ax.figure  # type: ignore[return-value]
