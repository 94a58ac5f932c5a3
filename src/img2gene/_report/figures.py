"""Figures as data URIs, drawn without pyplot: no backend is chosen and no figure stays behind."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from img2gene._report.blocks import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_PX_PER_INCH = 96
_MAP_DPI = 110


@contextmanager
def plain_style() -> Iterator[None]:
    """Matplotlib's own style, whatever the user's, with light lines and the same ids in every run."""
    from matplotlib import style

    ours = {
        "svg.hashsalt": "img2gene",
        # Names of genes and sections are no formulas.
        "text.parse_math": False,
        "axes.edgecolor": "0.6",
        "xtick.color": "0.35",
        "ytick.color": "0.25",
        "axes.labelcolor": "0.25",
    }
    with style.context(["default", ours]):
        yield


def canvas(width: float, height: float) -> Drawing:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure as Drawing

    return Drawing(figsize=(width, height), layout="constrained")


def vector(drawing: Drawing, alt: str, caption: str, marks: list[str] | None = None) -> Figure:
    """A chart as SVG."""
    out = io.BytesIO()
    drawing.savefig(out, format="svg", metadata={"Date": None})
    return _block(drawing, out.getvalue(), "image/svg+xml", alt, caption, marks)


def raster(drawing: Drawing, alt: str, caption: str, marks: list[str] | None = None) -> Figure:
    """A map as PNG."""
    out = io.BytesIO()
    drawing.savefig(out, format="png", dpi=_MAP_DPI)
    return _block(drawing, out.getvalue(), "image/png", alt, caption, marks)


def _block(drawing: Drawing, content: bytes, kind: str, alt: str, caption: str, marks: Any) -> Figure:
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return Figure(source, alt, caption, round(drawing.get_figwidth() * _PX_PER_INCH), list(marks or []))
