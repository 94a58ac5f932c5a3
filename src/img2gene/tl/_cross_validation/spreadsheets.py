"""Write result tables to CSV files that spreadsheets can open."""

from __future__ import annotations

from typing import Any

import pandas as pd

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError
from img2gene._files import atomic_path

_FORMULA = ("=", "+", "-", "@")


def write_csv(frame: pd.DataFrame, path: Any) -> None:
    r"""Write a table at once; texts that a spreadsheet would run as a formula get a ``'`` before them.

    Raises
    ------
    Img2GeneError
        The folder does not exist, or the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> import pandas as pd
    >>> from img2gene.tl._cross_validation.spreadsheets import write_csv
    >>> path = f"{tempfile.mkdtemp()}/scores.csv"
    >>> write_csv(pd.DataFrame({"model": ["=A1"], "pcc": [-0.5]}), path)
    >>> open(path).read()
    "model,pcc\n'=A1,-0.5\n"
    """
    check = Arguments()
    target = check.path("path", path)
    check.raise_all()
    texts = [name for name in frame if pd.api.types.is_object_dtype(frame[name])]
    safe = frame.assign(**{str(name): frame[name].map(_without_formula) for name in texts})
    try:
        if target.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        with atomic_path(target) as temporary:
            safe.to_csv(temporary, index=False)
    except OSError as error:
        raise Img2GeneError(
            f"path={str(target)!r} cannot be written ({error.strerror}); name a file in a folder that exists."
        ) from error


def _without_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
