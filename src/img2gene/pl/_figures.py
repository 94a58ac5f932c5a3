"""Figures that notebooks show once, units of what is drawn, and scale bars."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_BAR_FONT = 7


def shown_once(drawn: Figure | SubFigure | Axes) -> Figure:
    """Return the figure of what was drawn, so that a notebook shows it once.

    The inline backend of Jupyter shows every open figure at the end of a cell. A figure that is also the value of the cell would
    be shown twice.
    """
    # Axes can lie in a part of a figure.
    figure: Any = drawn.get_figure(root=True)
    # IPython calls this method first when it shows an object. An attribute, because the figure may be the user's own.
    figure._ipython_display_ = partial(_close_before_display, figure)
    return figure


def _close_before_display(figure: Figure) -> None:
    """Close a figure that IPython is about to show, so that the inline backend does not show it again."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    if "inline" in mpl.get_backend():
        plt.close(figure)
    # IPython takes this as the answer that the object is shown as others of its class are.
    raise NotImplementedError


def scale_bar(ax: Axes, um_per_unit: float | None) -> None:
    """Draw a scale bar in the lower left corner of axes whose unit has a known length in µm; none if it is unknown."""
    from matplotlib_scalebar.scalebar import ScaleBar

    if um_per_unit is not None:
        options = {"length_fraction": 0.25, "location": "lower left", "box_alpha": 0.7, "pad": 0.3, "sep": 2}
        ax.add_artist(ScaleBar(um_per_unit, "um", font_properties={"size": _BAR_FONT}, **options))


def labelled(name: str, unit: str) -> str:
    """Write a name with its unit, or one of them if the other is empty.

    Examples
    --------
    >>> from img2gene.pl._figures import labelled
    >>> labelled("SD", "log1p(CP10K)"), labelled("", "log1p(CP10K)"), labelled("SD", "")
    ('SD, log1p(CP10K)', 'log1p(CP10K)', 'SD')
    """
    return ", ".join(filter(None, (name, unit)))
