"""Distances of spots from the training data, section by section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from img2gene._docs import fill_parameters
from img2gene._errors import MissingKeyError, missing
from img2gene.pl._arguments import PlotArguments, study_or_kept
from img2gene.pl._figures import shown_once
from img2gene.pl._predictions import Predictions

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData


@fill_parameters
def out_of_distribution(
    data: SpatialData | AnnData,
    *,
    sections: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    key: str = "img2gene",
    table_key: str = "table",
) -> Figure:
    """Draw how far the spots of each section lie from the training data.

    Parameters
    ----------
    data
        Study with predictions from :func:`img2gene.tl.predict`, or predictions that a cross-validation kept, such as
        ``result.predictions["img2gene"]``.
    sections
        One or several sections; by default all, also training sections.
    %(ax)s
    %(key_study)s
    table_key
        Table of the study.

    Returns
    -------
    Figure. A box is a section: quartiles over its spots of the percentile 0–100 among the distances of training
    spots, with whiskers to the farthest spots within 1.5 interquartile ranges. Spots beyond the vertical line are
    out-of-distribution; their share is written at each section.

    Raises
    ------
    MissingKeyError
        No such prediction or section, or no distances.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "ridge", validate_on=["P3"])
    >>> ig.tl.predict(sdata)
    >>> figure = ig.pl.out_of_distribution(sdata)
    """
    check = PlotArguments()
    sections = check.labels("sections", sections)
    check.stored(key, table_key)
    check.axes(ax)
    check.raise_all()
    predictions = Predictions.of(study_or_kept(data, table_key), key)
    if predictions.ood is None:
        column, where = (
            ("ood", "the obs of the predictions")
            if predictions.study is None
            else (f"{key}_ood", f"{predictions.study.name}.obs")
        )
        hint = "Run `img2gene.tl.predict` first, with a model that was fitted with `uncertainty=True`."
        raise MissingKeyError(missing(column, where, predictions.table.obs.columns, hint))
    names = predictions.section_names if sections is None else predictions.chosen_sections(sections)
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5.6, 1.3 + 0.28 * len(names)), layout="constrained")[1]
    return shown_once(draw_distances(ax, predictions, names))


def section_distances(predictions: Predictions, sections: list[str]) -> pd.DataFrame:
    """Summarise the stored distances of each section.

    Returns
    -------
    DataFrame with ``section``, ``spots`` (spots with a distance), ``share beyond`` the threshold and ``median
    percentile``.
    """
    rows = []
    for name in sections:
        values = _distances(predictions, name)
        beyond = float((values > predictions.threshold).mean()) if len(values) else np.nan
        median = float(np.median(values)) if len(values) else np.nan
        rows.append({"section": name, "spots": len(values), "share beyond": beyond, "median percentile": median})
    return pd.DataFrame(rows)


def _distances(predictions: Predictions, section: str) -> np.ndarray:
    values = predictions.ood[predictions.rows(section)]  # type: ignore[index]
    return values[np.isfinite(values)]


def draw_distances(ax: Axes, predictions: Predictions, sections: list[str]) -> Axes:
    """Draw a box for each section of predictions with stored distances."""
    shares = section_distances(predictions, sections).set_index("section")["share beyond"]
    labels = [
        f"{name} ({'no distances' if np.isnan(share) else f'{share:.0%} beyond'})" for name, share in shares.items()
    ]
    parts = [_distances(predictions, name) for name in sections]
    ax.boxplot(
        parts,
        orientation="horizontal",
        patch_artist=True,
        widths=0.6,
        showfliers=False,
        boxprops={"facecolor": "#9db7dc", "edgecolor": "#3b6fb6"},
        medianprops={"color": "black"},
    )
    ax.axvline(predictions.threshold, color="#c4673d", linewidth=1.2)
    ax.set_yticks(range(1, len(sections) + 1), labels, fontsize=8)
    ax.invert_yaxis()
    # The axis is a little wider than 0–100, so that boxes at both ends are seen whole.
    ax.set(xlim=(-2, 102), xlabel="percentile of the distance from the training data")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
