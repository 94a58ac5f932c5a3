"""A prediction drawn as a picture on the H&E image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._docs import fill_parameters
from img2gene._study.images import scale0
from img2gene._study.pyramids import thumbnail
from img2gene.pl._arguments import PlotArguments, open_study
from img2gene.pl._figures import labelled, scale_bar, shown_once
from img2gene.pl._predictions import predicted_unit
from img2gene.pl._tissue import color_limits
from img2gene.tl.rasterize import rasterize_prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

_OVERVIEW_PX = 1600


@fill_parameters
def slide(
    sdata: SpatialData,
    gene: str,
    *,
    section: str | None = None,
    key: str = "img2gene",
    um_per_px: float | None = None,
    table_key: str = "table",
    cmap: str = "magma",
    alpha: float = 0.6,
    ax: Axes | None = None,
) -> Figure:
    """Draw the prediction of a gene over the H&E image of a section or slide, with a scale bar.

    Parameters
    ----------
    sdata
        Study with predictions from :func:`img2gene.tl.predict`.
    gene
        Gene that the model predicts.
    section
        Section to draw; needed if the table has several.
    key
        Name of the prediction.
    um_per_px
        Side of a pixel of the prediction in µm, as in :func:`img2gene.tl.rasterize_prediction`.
    table_key
        Table that was predicted; for tiles, the table of the tiles.
    cmap
        Colours of expression.
    alpha
        Opacity of the prediction, 0–1.
    %(ax)s

    Returns
    -------
    Figure, whose axes are in µm from the top left corner of the image. Colours span the 1st to the 99th percentile.

    Raises
    ------
    Img2GeneError
        As in :func:`img2gene.tl.rasterize_prediction`.

    Examples
    --------
    >>> import img2gene as ig
    >>> figure = ig.pl.slide(sdata, "ERBB2", table_key="slide_tiles")  # doctest: +SKIP
    """
    import matplotlib.pyplot as plt

    check = PlotArguments()
    check.text("gene", gene)
    check.stored(key, table_key)
    colors, alpha, ax = check.colors(cmap), check.opacity(alpha), check.axes(ax)
    check.raise_all()
    options: dict[str, Any] = {"section": section, "key": key, "um_per_px": um_per_px, "table_key": table_key}
    raster: Any = rasterize_prediction(sdata, gene, outside=None, inplace=False, **options)
    place = raster.attrs[_schema.RASTER]
    axes = plt.subplots(layout="constrained")[1] if ax is None else ax
    _draw_picture(axes, sdata, place["image"], place["mpp"])
    values = np.asarray(raster.values[0])
    low, high = color_limits(values)
    (top, left), side = place["origin_um"], place["um_per_px"]
    extent = (left, left + side * values.shape[1], top + side * values.shape[0], top)
    drawn = axes.imshow(
        np.ma.masked_invalid(values),
        extent=extent,
        cmap=colors,
        vmin=low,
        vmax=high,
        alpha=alpha,
        interpolation="nearest",
    )
    _frame(axes, extent, f"{gene}, {place['section']}")
    unit = predicted_unit(open_study(sdata, table_key), key)
    axes.figure.colorbar(drawn, ax=axes, label=labelled("predicted", unit), shrink=0.7)
    return shown_once(axes)


def _draw_picture(axes: Axes, sdata: SpatialData, image_key: str, mpp: float) -> None:
    """Draw a thumbnail of an image in µm."""
    height, width = scale0(sdata, image_key).shape[1:]
    picture, _ = thumbnail(sdata, image_key, max(1, max(height, width) // _OVERVIEW_PX))
    axes.imshow(picture, extent=(0, width * mpp, height * mpp, 0))


def _frame(axes: Axes, extent: tuple[float, float, float, float], title: str) -> None:
    """Show the predicted part with a margin, without ticks, and with a scale bar."""
    left, right, bottom, top = extent
    margin = 0.05 * max(right - left, bottom - top)
    axes.set_xlim(left - margin, right + margin)
    axes.set_ylim(bottom + margin, top - margin)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title)
    scale_bar(axes, 1.0)
