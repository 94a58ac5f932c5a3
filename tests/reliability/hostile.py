"""Values that no argument expects, and some that only some arguments expect."""

from __future__ import annotations

import datetime
import decimal
import fractions
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from spatialdata import SpatialData

from reliability import studies


class Unshowable:
    """Fails whenever it is shown."""

    def __repr__(self) -> str:
        raise RuntimeError("cannot be shown")


def _deep(depth: int = 5_000) -> list[Any]:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


def _lonely(path: Path) -> str:
    file = path / "a_file"
    file.touch()
    return str(file)


# Each value is made anew for each call; the argument is the folder of the call.
VALUES: dict[str, Callable[[Path], Any]] = {
    "None": lambda folder: None,
    "True": lambda folder: True,
    "0": lambda folder: 0,
    "-1": lambda folder: -1,
    "3": lambda folder: 3,
    "1.5": lambda folder: 1.5,
    "nan": lambda folder: float("nan"),
    "inf": lambda folder: float("inf"),
    "-inf": lambda folder: float("-inf"),
    "1e-320": lambda folder: 1e-320,
    "1e308": lambda folder: 1e308,
    "2**40": lambda folder: 2**40,
    "2**70": lambda folder: 2**70,
    "10**400": lambda folder: 10**400,
    "1j": lambda folder: 1j,
    "empty text": lambda folder: "",
    "unknown name": lambda folder: "no_such_name",
    "null character": lambda folder: "a\0b",
    "lone surrogate": lambda folder: "\ud800",
    "long text": lambda folder: "x" * 5_000,
    "parent folder": lambda folder: "../outside",
    "unknown home": lambda folder: "~no_such_user/file",
    "number as text": lambda folder: "5",
    "bytes": lambda folder: b"table",
    "object": lambda folder: object(),
    "class": lambda folder: int,
    "function": lambda folder: lambda *args, **kwargs: None,
    "ellipsis": lambda folder: ...,
    "[]": lambda folder: [],
    "()": lambda folder: (),
    "[[1], [2]]": lambda folder: [[1], [2]],
    "[None]": lambda folder: [None],
    "[nan]": lambda folder: [float("nan")],
    "['a', 'a']": lambda folder: ["a", "a"],
    "['a', 1, None]": lambda folder: ["a", 1, None],
    "deep list": lambda folder: _deep(),
    "{}": lambda folder: {},
    "{'a': [1]}": lambda folder: {"a": [1]},
    "{1: None}": lambda folder: {1: None},
    "{None: 'a'}": lambda folder: {None: "a"},
    "{'a': {'b': {}}}": lambda folder: {"a": {"b": {}}},
    "set": lambda folder: {1, "a"},
    "frozenset": lambda folder: frozenset({"a"}),
    "generator": lambda folder: (item for item in ("a", 1)),
    "range": lambda folder: range(3),
    "slice": lambda folder: slice(None, None, 0),
    "np.int64(-1)": lambda folder: np.int64(-1),
    "np.int64(2)": lambda folder: np.int64(2),
    "np.float64(nan)": lambda folder: np.float64("nan"),
    "np.float32(0.5)": lambda folder: np.float32(0.5),
    "np.bool_": lambda folder: np.bool_(True),
    "np.str_": lambda folder: np.str_("no_such_name"),
    "np.datetime64": lambda folder: np.datetime64("2020-01-01"),
    "array of 0": lambda folder: np.array([]),
    "array with nan": lambda folder: np.array([1.0, np.nan]),
    "array of 3 axes": lambda folder: np.zeros((2, 3, 4)),
    "array without axes": lambda folder: np.array(5),
    "array of objects": lambda folder: np.array(["a", None, [1]], dtype=object),
    "array of text": lambda folder: np.array(["a", "b"]),
    "complex array": lambda folder: np.ones((5, 3), dtype=complex),
    "masked array": lambda folder: np.ma.masked_all((5, 3)),
    "record array": lambda folder: np.zeros(3, dtype=[("a", "f4")]),
    "sparse array": lambda folder: sp.csr_matrix(np.eye(3)),
    "pd.NA": lambda folder: pd.NA,
    "pd.NaT": lambda folder: pd.NaT,
    "Series": lambda folder: pd.Series([1.0, 2.0]),
    "DataFrame": lambda folder: pd.DataFrame({"a": [1]}),
    "empty DataFrame": lambda folder: pd.DataFrame(),
    "Decimal": lambda folder: decimal.Decimal("NaN"),
    "Fraction": lambda folder: fractions.Fraction(1, 3),
    "date": lambda folder: datetime.date(2020, 1, 1),
    "unshowable": lambda folder: Unshowable(),
    "folder": lambda folder: folder,
    "folder as text": lambda folder: str(folder),
    "file below a file": lambda folder: f"{_lonely(folder)}/below",
    "unwritable folder": lambda folder: "/proc/no_such_folder/file",
    "path with null": lambda folder: Path("a\0b"),
    "AnnData": lambda folder: studies.cohort()["table"].copy(),
    "empty study": lambda folder: SpatialData(),
    "unembedded study": lambda folder: studies.copy_of(studies.cohort()),
    "model": lambda folder: studies.trained("mean"),
}
