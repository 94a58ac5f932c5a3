"""Embeddings of patches in two dimensions."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, MissingKeyError, missing, near
from img2gene._study.expression import expression_unit, in_tissue, labels
from img2gene._study.inputs import choose_encoder, embedding
from img2gene._study.study import Study
from img2gene.pl._arguments import PlotArguments, open_study
from img2gene.pl._figures import shown_once
from img2gene.pl._tissue import color_limits
from img2gene.settings import settings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

_COMPONENTS = 50
# UMAP needs a few spots, and this many fit into the smallest picture.
_LEAST_SPOTS, _MOST_SPOTS, _MOST_COLORS = 10, 100_000, 20


@fill_parameters
def umap(
    sdata: SpatialData,
    color: str = "section",
    *,
    encoder: str | None = None,
    n_neighbors: int = 15,
    max_spots: int = 5000,
    seed: int | None = None,
    size: float = 8.0,
    cmap: str = "viridis",
    ax: Axes | None = None,
    table_key: str = "table",
) -> Figure:
    """Draw a UMAP of the embeddings of patches, coloured by section, patient, domain, expression or stain.

    Spots of different sections that lie apart show that the encoder sees the section (stain, scanner, patient) and not only
    the tissue.

    Parameters
    ----------
    %(sdata_embedded)s
    color
        Column of obs, or a gene.
    %(encoder)s
    n_neighbors
        Neighbours of each spot in the graph that UMAP lays out.
    max_spots
        At most so many spots are drawn, chosen at random.
    seed
        Seed of the sample and of UMAP; None takes ``img2gene.settings.seed``.
    size
        Area of a dot in points².
    cmap
        Colours of numbers.
    %(ax)s
    table_key
        Table with the embedding.

    Returns
    -------
    Figure. Spots on tissue, by :func:`scanpy.tl.umap` on the neighbours of their first 50 principal components; expression
    is log1p(CP10K). The study is not changed. Distances between groups in a UMAP are no measure of difference. The first call
    of a session takes up to a minute longer than the next ones, as UMAP is compiled (by numba) when it is imported.

    Raises
    ------
    MissingKeyError
        No embedding, column or gene.
    Img2GeneError
        Several embeddings and no ``encoder``, or fewer than 10 spots.

    Examples
    --------
    >>> import img2gene as ig
    >>> figure = ig.pl.umap(sdata, "patient")  # doctest: +SKIP
    """
    import matplotlib.pyplot as plt

    check = PlotArguments()
    check.text("color", color)
    encoder, table_key = check.text("encoder", encoder, optional=True), check.text("table_key", table_key)
    n_neighbors, max_spots = (
        check.whole("n_neighbors", n_neighbors, 2, 200),
        check.whole("max_spots", max_spots, _LEAST_SPOTS, _MOST_SPOTS),
    )
    seed = check.seed("seed", settings.seed if seed is None else seed)
    size, cmap = check.size(size), check.colors(cmap)
    check.axes(ax)
    check.raise_all()
    study = open_study(sdata, table_key)
    values = _color_values(study, color)
    label = f"{color}, {expression_unit(None)}" if color not in (_schema.SECTION, *study.table.obs) else color
    identity = choose_encoder(study, encoder)
    rows = _sample(study, max_spots, seed)
    places = _layout(embedding(study, identity)[rows], n_neighbors, seed)
    if ax is None:
        ax = plt.subplots(figsize=(5.6, 4.4), layout="constrained")[1]
    _draw(ax, places, values.iloc[rows], label, {"s": size, "linewidths": 0, "rasterized": True}, cmap)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    ax.set_title(f"{identity['name']}, {len(rows):,} spots", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    return shown_once(ax)


def _color_values(study: Study, color: str) -> pd.Series:
    """Read a column of obs, the sections, or the expression of a gene."""
    import pandas as pd

    table = study.table
    if color == _schema.SECTION:
        return pd.Series(study.sections)
    if color in table.obs:
        return table.obs[color].reset_index(drop=True)
    if color in table.var_names:
        column = table.var_names.get_indexer([color])
        return pd.Series(labels(table, np.arange(table.n_obs), column, layer=None)[:, 0])
    hint = f"Nor is it a gene ({near(color, table.var_names)})." if table.n_vars else ""
    raise MissingKeyError(missing(color, f"{study.name}.obs", table.obs.columns, hint))


def _sample(study: Study, most: int, seed: int) -> np.ndarray:
    rows = np.flatnonzero(in_tissue(study.table))
    if len(rows) < _LEAST_SPOTS:
        raise Img2GeneError(f"`{study.name}` has {len(rows)} spots on tissue; a UMAP needs {_LEAST_SPOTS}.")
    return rows if len(rows) <= most else np.sort(np.random.default_rng(seed).permutation(rows)[:most])


def _layout(features: np.ndarray, n_neighbors: int, seed: int) -> np.ndarray:
    """Lay spots out in two dimensions, float (n_spots, 2)."""
    import anndata as ad
    import scanpy as sc

    spots = ad.AnnData(features)
    with warnings.catch_warnings():
        # UMAP warns that a seed keeps it on one processor, and scanpy of its own coming defaults.
        warnings.simplefilter("ignore")
        n_components = min(_COMPONENTS, *(side - 1 for side in features.shape))
        sc.pp.pca(spots, n_comps=n_components, random_state=seed)
        sc.pp.neighbors(spots, n_neighbors=min(n_neighbors, len(features) - 1), random_state=seed)
        sc.tl.umap(spots, random_state=seed)
    return np.asarray(spots.obsm["X_umap"])


def _draw(ax: Axes, places: np.ndarray, values: pd.Series, name: str, dots: dict[str, Any], cmap: str) -> None:
    """Draw numbers with a colour bar, and names with a legend."""
    import pandas as pd

    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if is_number:
        numbers = values.to_numpy(dtype=float, na_value=np.nan)
        known = np.isfinite(numbers)
        low, high = color_limits(numbers)
        ax.scatter(*places[~known].T, color="0.85", **dots)
        across, down = places[known].T
        drawn = ax.scatter(across, down, c=numbers[known], cmap=cmap, vmin=low, vmax=high, **dots)
        bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.046, pad=0.02)
        bar.set_label(name, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        return
    names = values.astype(str).to_numpy()
    for number, one in enumerate(dict.fromkeys(names)):
        ax.scatter(*places[names == one].T, color=_color(number), label=one, **dots)
    if len(set(names)) <= _MOST_COLORS:
        style: dict[str, Any] = {"fontsize": 7, "title_fontsize": 8, "frameon": False, "markerscale": 2}
        ax.legend(title=name, loc="upper left", bbox_to_anchor=(1, 1), **style)


def _color(number: int) -> str:
    import matplotlib.style

    colors = matplotlib.style.library["tableau-colorblind10"]["axes.prop_cycle"].by_key()["color"]
    return colors[number % len(colors)]
