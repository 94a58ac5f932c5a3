"""Figures that notebooks show once, units of what is drawn, and scale bars."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAR_FONT = 7


def shown_once(drawn: Figure | Axes) -> Figure:
    """Return the figure of what was drawn, so that a notebook shows it once.

    The inline backend of Jupyter shows every open figure at the end of a cell. A figure that is also the value of the cell would
    be shown twice.
    """
    from matplotlib.axes import Axes

    # Axes can lie in a part of a figure.
    figure = drawn.get_figure(root=True) if isinstance(drawn, Axes) else drawn
    # IPython asks an object for this method first. An attribute, because the figure may be the user's own.
    figure._ipython_display_ = partial(_leave_to_backend, figure)  # type: ignore[union-attr]
    return figure  # type: ignore[return-value]


def _leave_to_backend(figure: Figure) -> None:
    """Show nothing if the inline backend is going to show the figure; else let IPython go on as it does."""
    import matplotlib as mpl
    from matplotlib._pylab_helpers import Gcf

    is_open = any(manager.canvas.figure is figure for manager in Gcf.get_all_fig_managers())
    if is_open and "inline" in mpl.get_backend():
        return
    # IPython takes this as the answer that there is nothing special to do.
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
