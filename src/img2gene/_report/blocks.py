"""What a page is made of: chapters of texts, tables and figures; the template turns them into HTML."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd

UNDEFINED = "–"
# The calls that bring standard deviations, intervals and distances from the training data.
CALIBRATED = "img2gene.tl.fit(sdata, …); img2gene.tl.predict(sdata)"


@dataclass(frozen=True)
class Text:
    """A paragraph; ``kind`` is ``"plain"``, ``"lead"`` for what a chapter comes to, or ``"warning"``."""

    block: ClassVar[str] = "text"
    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class Missing:
    """What is not on the page, why, and the call that would add it."""

    block: ClassVar[str] = "missing"
    text: str
    call: str = ""


@dataclass(frozen=True)
class Table:
    """Cells as text, below a caption; ``marks`` say what keeps scores from being honest; ``folded`` hides it at first.

    ``strong`` and ``muted`` are numbers of rows that stand out and back.
    """

    block: ClassVar[str] = "table"
    caption: str
    columns: list[str]
    rows: list[list[str]]
    marks: list[str] = field(default_factory=list)
    note: str = ""
    folded: bool = False
    strong: frozenset[int] = frozenset()
    muted: frozenset[int] = frozenset()
    numeric: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Figure:
    """An image as a data URI, with its caption, and its largest width in CSS pixels."""

    block: ClassVar[str] = "figure"
    source: str
    alt: str
    caption: str
    width: int
    marks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """Tables or figures side by side where the window is wide enough."""

    block: ClassVar[str] = "row"
    blocks: list[Any]


@dataclass(frozen=True)
class Details:
    """Preformatted text that is folded at first."""

    block: ClassVar[str] = "details"
    title: str
    text: str


@dataclass(frozen=True)
class Chapter:
    """One part of the page."""

    id: str
    title: str
    blocks: list[Any]


def table(
    frame: pd.DataFrame, caption: str, *, limit: int | None = None, what: str = "rows", note: str = "", **style: Any
) -> Table:
    """A table of a frame's columns; of more than ``limit`` rows the first, and how many there are."""
    shown = frame if limit is None else frame.head(limit)
    if len(shown) < len(frame):
        note = f"{len(shown)} of {len(frame):,} {what} shown. {note}".strip()
    numeric = [pd.api.types.is_numeric_dtype(frame[name]) or name in style.get("right", ()) for name in frame]
    style.pop("right", None)
    rows = [[number(value) for value in values] for values in shown.itertuples(index=False, name=None)]
    return Table(caption, [str(name) for name in frame], rows, note=note, numeric=numeric, **style)


def number(value: Any, digits: int = 3) -> str:
    """A value as text: whole numbers with thousands separated, others with three digits; a dash if undefined."""
    if value is None or value is pd.NA or (isinstance(value, numbers.Real) and math.isnan(value)):
        return UNDEFINED
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if not isinstance(value, numbers.Real):
        return str(value)
    real = float(value)
    text = (
        f"{int(value):,}" if isinstance(value, numbers.Integral) else f"{real:,.{digits if abs(real) < 1000 else 0}f}"
    )
    # A minus that is as wide as a plus, and none before zeros.
    return text.replace("-", "−") if any(digit in "123456789" for digit in text) else text.lstrip("-")


def interval(mean: float, low: float, high: float) -> str:
    """A mean with its confidence interval, as far as they are defined."""
    if not math.isfinite(mean):
        return UNDEFINED
    return number(mean) if not math.isfinite(low) else f"{number(mean)} [{number(low)}, {number(high)}]"


def signed(value: float) -> str:
    """A difference as text, with a plus where it is positive."""
    text = number(float(value))
    return f"+{text}" if value > 0 and text.strip("0.") else text


def names(values: Sequence[object], limit: int = 12) -> str:
    """Names in a line, shortened after ``limit``."""
    shown = ", ".join(str(value) for value in values[:limit])
    return shown if len(values) <= limit else f"{shown}, … ({len(values):,} in all)"
