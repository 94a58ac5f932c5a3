"""Pathway scores over the tissue, their enrichment, and their contributions to the prediction of a gene."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from img2gene import _schema, get
from img2gene._errors import Img2GeneError, MissingKeyError, no_such
from img2gene._study.expression import expression_unit
from img2gene._study.pathways import enrichment_table, required_pathways, stored_pathways
from img2gene._study.study import Study
from img2gene.io.model_store import stored_models
from img2gene.pl._arguments import PlotArguments, open_study
from img2gene.pl._figures import labelled, shown_once
from img2gene.pl._tissue import Canvas, canvases, color_limits, draw
from img2gene.tl.contributions import pathway_contributions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

KINDS = ("maps", "enrichment", "contribution")
_METHODS = {"aucell": "AUCell score", "ssgsea": "ssGSEA score", "zscore": "mean z"}
_N_MAPS, _N_BARS = 4, 20
_BAR_COLORS = {True: "#3b6fb6", False: "#c9c9c9"}
_SIGN_COLORS = {"raises the prediction on average": "#3b6fb6", "lowers it": "#c4673d"}


def pathways(
    sdata: SpatialData,
    pathways: str | list[str] | None = None,
    *,
    kind: str = "maps",
    gene: str | None = None,
    sections: str | list[str] | None = None,
    ax: Axes | None = None,
    key: str | None = None,
    table_key: str = "table",
    max_fdr: float = 0.05,
    cmap: str = "viridis",
    alpha: float = 0.85,
    size: float = 1.3,
    panel_size: float = 3.2,
) -> Figure:
    """Draw pathway scores over the tissue, their enrichment, or their contributions to the prediction of a gene.

    Parameters
    ----------
    sdata
        Study with pathways from :func:`img2gene.pp.score_pathways`; for contributions, with a model trained on them.
    pathways
        One or several. By default maps show the first 4 selected pathways, and bars the 20 with the highest NES or
        contribution.
    kind
        ``"maps"``: scores over the tissue image. ``"enrichment"``: a bar for each NES. ``"contribution"``: how much
        each pathway adds to the prediction of ``gene`` (:func:`img2gene.tl.pathway_contributions`), as bars, or as maps
        if ``pathways`` are named.
    gene
        Gene whose prediction is decomposed; needed for contributions.
    sections
        Sections to map, or to average contributions over; by default all. Enrichment takes none, because all scored
        spots enter it together.
    ax
        Axes for the bars, or for a single map; by default new ones.
    key
        Name the pathways are stored under, by default ``"pathways"``; for contributions the name of the model, by
        default ``"img2gene"``. Enrichment accepts both.
    table_key
        Table in which pathways were scored.
    max_fdr
        Bars with a higher false discovery rate are grey.
    cmap
        Colours of the maps of scores.
    alpha
        Opacity of the spots, 0–1.
    size
        Diameter of the drawn spots, as a multiple of the real one.
    panel_size
        Side of a map in inches.

    Returns
    -------
    Figure. Maps: a row per section, a column per pathway; all sections share a pathway's colours (1st to 99th
    percentile), spots without counts are left out. Bars: highest NES at the top, an asterisk where the FDR is at most
    ``max_fdr``. Contributions: bars are the mean over spots of the absolute contribution, coloured by the sign of the
    mean; maps are blue where a pathway lowers the prediction and red where it raises it.

    Raises
    ------
    MissingKeyError
        No pathways, no such pathway, section, model or gene.
    Img2GeneError
        No enrichment, because all pathways were taken; a model without pathway context; ``gene`` for another kind, or
        none for contributions; ``sections`` for enrichment; ``ax`` for several maps; unknown kind.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30)
    >>> ig.pp.score_pathways(sdata)
    >>> figure = ig.pl.pathways(sdata, "hypoxia")
    """
    check = PlotArguments()
    names = check.names("pathways", pathways, optional=True, empty=True)
    chosen = check.labels("sections", sections)
    kind, gene = check.choice("kind", kind, KINDS), check.text("gene", gene, optional=True)
    key = check.text("key", key, optional=True)
    check.text("table_key", table_key)
    max_fdr, panel_size = check.number("max_fdr", max_fdr, 0, 1), check.panel(panel_size)
    style = check.style(cmap, alpha, size)
    check.axes(ax)
    check.raise_all()
    study = open_study(sdata, table_key)
    if kind == "enrichment" and sections is not None:
        raise Img2GeneError(
            f"kind='enrichment', sections={sections!r}: enrichment is computed from all sections together."
        )
    if (gene is not None) != (kind == "contribution"):
        raise Img2GeneError(f"kind={kind!r}, gene={gene!r}: contributions need `gene=`, other kinds take none.")
    if kind == "enrichment":
        return _enrichment(_enrichment_of(study, key or _schema.PATHWAYS), names, ax, max_fdr)
    if kind == "maps":
        names, values = _scores(study, names, key or _schema.PATHWAYS)
        return _maps(canvases(study, chosen), names, values, ax, panel_size, style, unit=_score_unit(study, key))
    contributions = pathway_contributions(sdata, str(gene), key=key or "img2gene", table_key=table_key)
    if names is None:
        rows = _rows_of(study, chosen)
        return _contributions(contributions.iloc[rows], str(gene), ax)
    _check_known(names, list(contributions.columns))
    style["cmap"] = "RdBu_r"
    drawn = canvases(study, chosen)
    layer = get.model(sdata, key=key or "img2gene", table_key=table_key).labels["layer"]
    values, unit = contributions[names].to_numpy(dtype=float), labelled("contribution", expression_unit(layer))
    return _maps(drawn, names, values, ax, panel_size, style, f" → {gene}", unit=unit)


def _score_unit(study: Study, key: str | None) -> str:
    """Name the scores on colour bars by the method that made them."""
    return _METHODS[required_pathways(study, key or _schema.PATHWAYS)["method"]]


def _enrichment_of(study: Study, key: str) -> pd.DataFrame:
    """The enrichment of the stored pathways, or of a model."""
    if stored_pathways(study, key) is not None or key not in stored_models(study.table):
        return enrichment_table(study, key)
    sets = get.pathways(study.sdata, key=key, table_key=study.table_key)
    if sets["nes"].isna().all():
        raise Img2GeneError(f"The model took all {len(sets)} pathways, so no enrichment was computed.")
    # Names decide between equal scores, so that the order of the collection has no influence.
    return sets.sort_values(["nes", "pathway"], ascending=[False, True], ignore_index=True)


def _rows_of(study: Study, sections: list[str] | None) -> np.ndarray:
    known = study.section_names()
    names = known if sections is None else sections
    absent = [name for name in names if name not in known]
    if absent or not names:
        raise MissingKeyError(no_such("section", absent, known))
    return np.flatnonzero(np.isin(study.sections, names))


def _scores(study: Study, names: list[str] | None, key: str) -> tuple[list[str], np.ndarray]:
    """Names and scores (n_obs, n) of the pathways to map."""
    known = required_pathways(study, key)["names"]
    names = known[:_N_MAPS] if names is None else names
    _check_known(names, known)
    return names, np.asarray(study.table.obsm[key], dtype=float)[:, [known.index(name) for name in names]]


def _check_known(names: list[str], known: list[str]) -> None:
    absent = [name for name in names if name not in known]
    if absent or not names:
        raise MissingKeyError(no_such("pathway", absent, known, 20))


def _maps(
    shown: list[Canvas],
    names: list[str],
    values: np.ndarray,
    ax: Axes | None,
    panel_size: float,
    style: dict,
    target: str = "",
    *,
    unit: str,
) -> Figure:
    """Maps of scores, or, with a ``target``, of contributions to it, whose colours are symmetric about 0."""
    import matplotlib.pyplot as plt

    n_rows, n_columns = len(shown), len(names)
    if ax is None:
        size = (panel_size * 1.2 * n_columns, panel_size * n_rows)
        grid = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")[1]
    elif n_rows * n_columns == 1:
        grid = np.array([[ax]])
    else:
        raise Img2GeneError(f"`ax` takes one map, but {n_columns} pathways in {n_rows} sections are to be drawn.")
    everything = np.concatenate([canvas.rows for canvas in shown])
    for column, name in enumerate(names):
        # All sections share one scale, so that they can be compared.
        low, high = color_limits(values[everything, column])
        # Symmetric limits make white mean "no contribution".
        if target:
            low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
        for row, canvas in enumerate(shown):
            panel = grid[row, column]
            drawn = draw(panel, canvas, values[canvas.rows, column], vmin=low, vmax=high, **style)
            panel.set_title(f"{canvas.name}  {name}{target}", fontsize=9)
            bar = panel.figure.colorbar(drawn, ax=panel, fraction=0.046, pad=0.02)
            bar.set_label(unit, fontsize=8)
            bar.ax.tick_params(labelsize=7)
    return shown_once(grid[0, 0])


def _enrichment(table: pd.DataFrame, names: list[str] | None, ax: Axes | None, max_fdr: float) -> Figure:
    import matplotlib.pyplot as plt

    if names is not None:
        _check_known(names, table["pathway"].tolist())
    defined = table[table["nes"].notna()]
    chosen = defined.head(_N_BARS) if names is None else defined[defined["pathway"].isin(names)]
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
    return shown_once(ax)


def _contributions(contributions: pd.DataFrame, gene: str, ax: Axes | None) -> Figure:
    """Bars of the mean absolute contribution, largest at the top."""
    import matplotlib.pyplot as plt

    size = contributions.abs().mean().sort_values(ascending=False, kind="stable").head(_N_BARS)
    raising = contributions[size.index].mean() >= 0
    if ax is None:
        ax = plt.subplots(figsize=(6, 1.2 + 0.25 * len(size)), layout="constrained")[1]
    heights = np.arange(len(size), dtype=float)
    # One call for each sign gives both a line in the legend.
    for (label, color), shown in zip(_SIGN_COLORS.items(), (raising, ~raising), strict=True):
        ax.barh(heights[shown], size[shown], color=color, label=label)
    ax.set_yticks(heights, size.index.tolist(), fontsize=8)
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=6)
    ax.set_xlabel(f"mean |contribution| to {gene}")
    ax.legend(fontsize=7, frameon=False, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    return shown_once(ax)
