"""Figures as data URIs, drawn without pyplot, so that no backend is chosen and no figure stays open."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from img2gene._report.blocks import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

# CSS defines an inch as 96 pixels.
_PX_PER_INCH = 96
_MAP_DPI = 110


@contextmanager
def plain_style() -> Iterator[None]:
    """Draw in matplotlib's default style instead of the user's, with light axes and the same SVG ids in every run."""
    from matplotlib import style

    ours = {
        "svg.hashsalt": "img2gene",
        # Matplotlib would read a name with two $ signs as a formula.
        "text.parse_math": False,
        "axes.edgecolor": "0.6",
        "xtick.color": "0.35",
        "ytick.color": "0.25",
        "axes.labelcolor": "0.25",
    }
    with style.context(["default", ours]):
        yield


def canvas(width: float, height: float) -> Drawing:
    """Open an empty figure; width and height are in inches."""
    from matplotlib.figure import Figure as Drawing

    return Drawing(figsize=(width, height), layout="constrained")


def vector(drawing: Drawing, alt: str, caption: str, marks: Sequence[str] = ()) -> Figure:
    """Store a chart as SVG."""
    # Without a date, the same chart is the same text in every run.
    return _figure(drawing, "svg+xml", alt, caption, marks, format="svg", metadata={"Date": None})


def raster(drawing: Drawing, alt: str, caption: str, marks: Sequence[str] = ()) -> Figure:
    """Store a map as PNG."""
    return _figure(drawing, "png", alt, caption, marks, format="png", dpi=_MAP_DPI)


def _figure(drawing: Drawing, kind: str, alt: str, caption: str, marks: Sequence[str], **options: Any) -> Figure:
    out = io.BytesIO()
    drawing.savefig(out, **options)
    source = f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
    return Figure(source, alt, caption, round(drawing.get_figwidth() * _PX_PER_INCH), list(marks))
