"""The parts of a page: chapters of texts, tables and figures, which the template turns into HTML."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd

UNDEFINED = "–"
# Calls that add standard deviations, intervals and distances, and the study's own data.
CALIBRATED = "img2gene.tl.fit(sdata, …); img2gene.tl.predict(sdata)"
WITH_STUDY = "img2gene.report(sdata, path, cv=result)"


@dataclass(frozen=True)
class Text:
    """A paragraph; ``kind`` is ``"plain"``, ``"lead"`` for the result of a chapter, or ``"warning"``."""

    block: ClassVar[str] = "text"
    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class Missing:
    """A note on what the page lacks, and the call that adds it."""

    block: ClassVar[str] = "missing"
    text: str
    call: str = ""


@dataclass(frozen=True)
class Table:
    """Cells as text with a caption; a ``folded`` table is hidden at first.

    ``marks`` are reasons why scores are no honest estimates, ``strong`` and ``muted`` the numbers of rows in bold and
    grey.
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
    frame: pd.DataFrame,
    caption: str,
    *,
    limit: int | None = None,
    what: str = "rows",
    note: str = "",
    right: Sequence[str] = (),
    **style: Any,
) -> Table:
    """Turn a frame into a table of its first ``limit`` rows; columns in ``right`` are aligned as numbers."""
    shown = frame if limit is None else frame.head(limit)
    if len(shown) < len(frame):
        note = f"{len(shown)} of {len(frame):,} {what} shown. {note}".strip()
    numeric = [pd.api.types.is_numeric_dtype(frame[name]) or name in right for name in frame]
    rows = [[number(value) for value in values] for values in shown.itertuples(index=False, name=None)]
    return Table(caption, [str(name) for name in frame], rows, note=note, numeric=numeric, **style)


def number(value: Any, digits: int = 3) -> str:
    """Write whole numbers with separated thousands, other numbers with three digits, and a dash if undefined."""
    if value is None or value is pd.NA or (isinstance(value, numbers.Real) and math.isnan(value)):
        return UNDEFINED
    # True is a Real in Python, so truth values come before numbers.
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if not isinstance(value, numbers.Real):
        return str(value)
    digits = 0 if isinstance(value, numbers.Integral) or abs(float(value)) >= 1000 else digits
    text = f"{value:,.{digits}f}"
    # A minus as wide as a plus, and no minus before zeros.
    return text.replace("-", "−") if any(digit in "123456789" for digit in text) else text.lstrip("-")


def interval(mean: float, low: float, high: float) -> str:
    """Write a mean, with its confidence interval if that is defined."""
    if not math.isfinite(mean):
        return UNDEFINED
    return number(mean) if not math.isfinite(low) else f"{number(mean)} [{number(low)}, {number(high)}]"


def signed(value: float) -> str:
    """Write a difference, with a plus if it is positive."""
    text = number(float(value))
    return f"+{text}" if value > 0 and text.strip("0.") else text


def names(values: Sequence[object], limit: int = 12) -> str:
    """Write at most ``limit`` names, and how many there are."""
    shown = ", ".join(str(value) for value in values[:limit])
    return shown if len(values) <= limit else f"{shown}, … ({len(values):,} in all)"
