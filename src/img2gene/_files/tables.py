"""Write tables of results as CSV files that spreadsheets show and never run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError
from img2gene._files.folders import atomic_path

if TYPE_CHECKING:
    import pandas as pd

# Spreadsheets run text that begins like this as a formula. An apostrophe in front makes it text again; text that has
# apostrophes in front already gets one more, so that reading can remove it.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def write_csv(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a table as CSV at once, without its index; text that a spreadsheet would run begins with an apostrophe.

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
    >>> write_csv(pd.DataFrame({"gene": ["=1+1"], "pcc": [-0.5]}), path)
    >>> path.read_text().splitlines()
    ['gene,pcc', "'=1+1,-0.5"]
    >>> read_csv(path)["gene"].tolist()
    ['=1+1']
    """
    check = Arguments()
    target = check.path("path", path)
    check.raise_all()
    escaped = _with_text(frame, _escape)
    try:
        if target.is_dir() or not target.parent.is_dir():
            raise Img2GeneError(f"path={shown(str(path))}: expected a file in a folder that exists.")
        with atomic_path(target) as temporary:
            # Half of a surrogate pair, as in broken names, has no encoding.
            escaped.to_csv(temporary, index=False, errors="replace")
    except (OSError, UnicodeError) as error:
        raise Img2GeneError(f"path={shown(str(path))} cannot be written ({error}).") from error


def read_csv(path: str | Path) -> pd.DataFrame:
    """Read a table that :func:`write_csv` wrote, with its original names."""
    import pandas as pd

    return _with_text(pd.read_csv(path), _unescape)


def _with_text(frame: pd.DataFrame, change: Any) -> pd.DataFrame:
    """Change all text of a table, its column names included; numbers stay as they are."""
    import pandas as pd

    result = frame.rename(columns=change)
    for place in range(result.shape[1]):
        column = result.iloc[:, place]
        if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column)):
            result.isetitem(place, column.astype(object).map(change))
    return result


def _escape(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _unescape(value: Any) -> Any:
    return value[1:] if isinstance(value, str) and value.startswith("'") and _FORMULA.match(value) else value
