"""Check the arguments that several plots take: what is drawn, and how."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError, MissingKeyError, listing, near
from img2gene._study.study import Study

# Larger panels exceed the pixels that matplotlib can draw.
_LARGEST_PANEL, _LARGEST_SIZE = 50.0, 100.0
# More bars, boxes or violins cannot be read, and take minutes to draw.
MOST_PARTS = 200


class PlotArguments(Arguments):
    """Convert and check the arguments of one plot.

    Examples
    --------
    >>> from img2gene.pl._arguments import PlotArguments
    >>> check = PlotArguments()
    >>> check.opacity(2)
    2
    >>> check.messages
    ['alpha=2: expected a number from 0 to 1.']
    """

    def axes(self, value: Any) -> Any:
        """Check that ``ax`` is None or axes of matplotlib."""
        from matplotlib.axes import Axes

        if value is not None and not isinstance(value, Axes):
            self.messages.append(
                f"ax={shown(value)}: expected axes of matplotlib, such as `plt.subplots()[1]`, or None."
            )
        return value

    def colors(self, value: Any) -> Any:
        """Check that ``cmap`` names a colour map of matplotlib, or is one."""
        import matplotlib as mpl

        if isinstance(value, mpl.colors.Colormap) or (isinstance(value, str) and value in mpl.colormaps):
            return value
        known = near(value, mpl.colormaps) if isinstance(value, str) and len(value) < 100 else "such as 'magma'"
        self.messages.append(f"cmap={shown(value)}: no colour map of matplotlib ({known}).")
        return value

    def opacity(self, value: Any) -> Any:
        """Convert ``alpha``."""
        return self.number("alpha", value, 0, 1)

    def size(self, value: Any) -> Any:
        """Convert the size of drawn spots."""
        return self.number("size", value, above=0, most=_LARGEST_SIZE)

    def panel(self, value: Any) -> Any:
        """Convert the side of a panel in inches."""
        return self.number("panel_size", value, above=0, most=_LARGEST_PANEL)

    def style(self, cmap: Any, alpha: Any, size: Any) -> dict[str, Any]:
        """Convert what a map of spots is drawn with."""
        return {"cmap": self.colors(cmap), "alpha": self.opacity(alpha), "size": self.size(size)}

    def stored(self, key: Any, table: Any, name: str = "key") -> None:
        """Check the names that a result and its table are stored under."""
        self.text(name, key)
        self.text("table_key", table)

    def instance(self, name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> Any:
        """Check the class of a result; ``expected`` says what a function takes, and the call that makes it."""
        if not isinstance(value, kinds):
            self.messages.append(f"{name}: expected {expected}, got {_described(value)}.")
        return value


def open_study(sdata: Any, table_key: str) -> Study:
    """Open the study of a plot; for results of other kinds, name the plot that takes them."""
    from img2gene.tl import CrossValidation

    if isinstance(sdata, CrossValidation):
        raise Img2GeneError(
            "This plot takes a study, or predictions that a cross-validation kept: pass "
            f"`result.predictions[name]` (available: {listing(sdata.predictions)}). "
            "`img2gene.tl.cross_validate(sdata, keep_predictions=True)` keeps them; "
            "`img2gene.pl.cross_validation(result)` draws the scores."
        )
    return Study.of(sdata, table_key)


def study_or_kept(data: Any, table_key: str) -> Any:
    """Open a study, or take the predictions that a cross-validation kept, as they are."""
    from anndata import AnnData

    return data if isinstance(data, AnnData) else open_study(data, table_key)


def number_column(frame: Any, name: str, what: str) -> None:
    """Raise unless a column of a table of results exists and holds numbers."""
    numbers = [str(column) for column in frame.select_dtypes("number").columns]
    if name not in numbers:
        raise MissingKeyError(f"{name!r} is not a number of the {what} (available: {listing(numbers, 20)}).")


def table_problems(frame: Any, names: Iterable[str], argument: str, call: str) -> list[str]:
    """List why a table of results cannot be drawn; ``names`` are its columns, and ``call`` makes such a table."""
    absent = [name for name in names if name not in frame]
    if absent:
        available = listing(frame.columns)
        return [f"{argument}: no columns {listing(absent)} (available: {available}). Pass the result of {call}."]
    if not frame.columns.is_unique:
        return [f"{argument}: columns {listing(frame.columns[frame.columns.duplicated()])} exist more than once."]
    return [] if len(frame) else [f"{argument}: the table has no rows."]


def members(frame: Any, group: str) -> np.ndarray:
    """Mark the rows of a gene group, bool (n_rows,); rows without a value belong to none."""
    import pandas as pd

    values = frame[group].tolist()
    if not all(isinstance(value, bool | np.bool_) or pd.isna(value) for value in values):
        raise MissingKeyError(f"genes={group!r}: this column holds no truth values, so it is no gene group.")
    return np.array([not pd.isna(value) and bool(value) for value in values], dtype=bool)


def _described(value: Any) -> str:
    """Describe a value in the place of a result: text is shown, as it is often a path."""
    return repr(value[:80]) if isinstance(value, str) else f"a {type(value).__name__}"
