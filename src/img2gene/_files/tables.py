"""Write tables of results as CSV files that spreadsheets show and never run, and read them back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError
from img2gene._files.folders import atomic_path

if TYPE_CHECKING:
    import pandas as pd

# Spreadsheets run text that begins like this as a formula. An apostrophe in front makes it text again; text that has
# apostrophes in front already gets one more, so that reading can remove it.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
# A byte order mark at the start of a file is not part of its text.
_SPECIAL = re.compile(r'[",\r\n\ufeff]')
_NUMBER = re.compile(r"\s*[+-]?(\d|\.|inf|nan)", re.IGNORECASE)
# A cell, in quotes or without, and what ends it; the end of the file ends no further cell.
_CELL = re.compile(r'(?!\Z)(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|\Z)')
_FLAGS = {"True": True, "False": False}


def write_csv(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a table as CSV at once, without its index; text that a spreadsheet would run begins with an apostrophe.

    Text that looks like a number is in quotes, by which :func:`read_csv` knows it from a number.

    Raises
    ------
    Img2GeneError
        The folder does not exist, or the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> from img2gene._files.tables import read_csv, write_csv
    >>> path = Path(tempfile.mkdtemp()) / "scores.csv"
    >>> write_csv(pd.DataFrame({"gene": ["=1+1", "7"], "pcc": [-0.5, 0.5]}), path)
    >>> path.read_text().splitlines()
    ['gene,pcc', "'=1+1,-0.5", '"7",0.5']
    """
    check = Arguments()
    target = check.path("path", path)
    check.raise_all()
    try:
        if target.is_dir() or not target.parent.is_dir():
            raise Img2GeneError(f"path={shown(str(path))}: expected a file in a folder that exists.")
        # Half of a surrogate pair, as in broken names, has no encoding.
        with (
            atomic_path(target) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="replace") as file,
        ):
            file.writelines(f"{','.join(row)}\n" for row in _rows(frame))
    except (OSError, UnicodeError) as error:
        raise Img2GeneError(f"path={shown(str(path))} cannot be written ({error}).") from error


def read_csv(path: str | Path) -> pd.DataFrame:
    """Read a table that img2gene wrote as CSV, with all names as they were.

    Other readers keep the apostrophe in front of names such as ``-B``, take genes called ``NA`` for missing values, and
    sections called ``1`` or ``007`` for numbers.

    Parameters
    ----------
    path
        File that ``to_csv`` of :func:`img2gene.tl.cross_validate`'s result, or the benchmark, wrote.

    Returns
    -------
    The table, with a new index. Text comes back as text, numbers and truth values as such.

    Raises
    ------
    Img2GeneError
        The file does not exist, or is no table.

    Examples
    --------
    >>> import img2gene as ig
    >>> scores = ig.io.read_csv("scores.csv")  # doctest: +SKIP
    >>> ig.tl.summarize(scores)  # doctest: +SKIP
    """
    import pandas as pd

    check = Arguments()
    source = check.path("path", path)
    check.raise_all()
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = _parsed_rows(file.read())
    except (OSError, ValueError) as error:
        raise Img2GeneError(
            f"path={shown(str(path))} cannot be read as a table ({error}); name a CSV file that img2gene wrote."
        ) from error
    ragged = next((number for number, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if ragged is not None:
        raise Img2GeneError(
            f"path={shown(str(path))}: row {ragged} has {len(rows[ragged - 2])} cells, expected {len(header)}. "
            "Name a CSV file that img2gene wrote."
        )
    return pd.DataFrame(rows, columns=header, dtype=object).infer_objects()


def _rows(frame: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """Yield the cells of a table as they are written, the names of its columns first."""
    yield tuple(map(_cell, frame.columns))
    columns = (frame.iloc[:, place].astype(object) for place in range(frame.shape[1]))
    present = (column.where(column.notna(), None) for column in columns)
    yield from zip(*(list(map(_cell, column)) for column in present), strict=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return str(value)
    text = str(value)
    if _FORMULA.match(text):
        text = f"'{text}"
    needs_quotes = _SPECIAL.search(text) or not isinstance(_plain(text), str)
    return '"' + text.replace('"', '""') + '"' if needs_quotes else text


def _parsed_rows(text: str) -> Iterator[list[Any]]:
    """Yield the values of each row."""
    row: list[Any] = []
    place = 0
    for match in _CELL.finditer(text):
        if match.start() != place:
            break
        quoted, bare, end = match.groups()
        row.append(_without_apostrophe(_plain(bare) if quoted is None else quoted.replace('""', '"')))
        place = match.end()
        if end != ",":
            yield row
            row = []
    if place < len(text) or row or not text:
        raise ValueError(f"no table after {place} characters")


def _plain(text: str) -> Any:
    """Convert a cell without quotes: a missing value, a truth value, a number, or the text itself."""
    if not _NUMBER.match(text):
        return _FLAGS.get(text, text or np.nan)
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _without_apostrophe(value: Any) -> Any:
    return value[1:] if isinstance(value, str) and value.startswith("'") and _FORMULA.match(value) else value
