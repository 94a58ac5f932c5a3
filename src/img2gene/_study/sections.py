"""Row labels of a table: the region of each row, and text labels such as section, patient and group."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from img2gene._checks import name_text
from img2gene._errors import Img2GeneError, listing

if TYPE_CHECKING:
    from anndata import AnnData

# Missing values turn into these texts in a CSV file or by `.astype(str)`.
_MISSING_TEXTS = {"", "nan", "NaN", "None", "<NA>"}
_WHOLE_NUMBER = re.compile(r"(-?\d+)\.0+")


def region_column(table: AnnData, name: str) -> pd.Series:
    """Return the obs column that names the region of each row.

    Parameters
    ----------
    table
        Table of a study.
    name
        How messages call the table.

    Raises
    ------
    Img2GeneError
        The table annotates no region, or rows name none.
    """
    attrs = table.uns.get("spatialdata_attrs")
    key = attrs.get("region_key") if isinstance(attrs, Mapping) else None
    if not isinstance(key, str) or key not in table.obs:
        raise Img2GeneError(
            f"`{name}` annotates no region. Parse it with `spatialdata.models.TableModel.parse(table, "
            "region=…, region_key=…, instance_key=…)`."
        )
    column = table.obs[key]
    if column.isna().any():
        raise Img2GeneError(f"{int(column.isna().sum())} rows of `{name}` name no region.")
    return column


def folded(name: str) -> str:
    """Write a name without the blanks, capitals and zeros after the point that are often written differently."""
    text = " ".join(name.split()).casefold()
    number = _WHOLE_NUMBER.fullmatch(text)
    return number[1] if number else text


def check_distinct(labels: np.ndarray, name: str) -> None:
    """Refuse names that are written differently and mean one group, because a split would take them for two."""
    spellings: dict[str, list[str]] = {}
    for label in np.unique(labels):
        spellings.setdefault(folded(str(label)), []).append(repr(str(label)))
    alike = [" and ".join(names) for names in spellings.values() if len(names) > 1]
    if alike:
        raise Img2GeneError(
            f"`obs['{name}']` holds names that differ only in blanks, capitals or `.0` ({listing(alike)}), so one {name} could "
            f"be on both sides of a split. Write each {name} the same way in all rows, or give different ones clearly different "
            "names."
        )


def text_labels(column: pd.Series, name: str) -> np.ndarray:
    """Convert a column to text, str (n_obs,); missing values, and values that are no names, are refused.

    Whole numbers are written without a decimal point, also where pandas holds them as floats.
    """
    if isinstance(column, pd.DataFrame):
        raise Img2GeneError(f"`obs` has {column.shape[1]} columns `{name}`; keep one.")
    # Lists and arrays are values that pandas cannot compare.
    bad = [] if column.dtype != object else [value for value in column if not np.isscalar(value) and value is not None]
    bad = [value for value in bad if not (value is pd.NA or isinstance(value, np.datetime64 | date))]
    if bad:
        raise Img2GeneError(
            f"`obs['{name}']` holds {type(bad[0]).__name__} in {len(bad)} rows; expected text or numbers."
        )
    texts = [value for value in column.unique() if isinstance(value, str) and value.strip() in _MISSING_TEXTS]
    # `isin` does not find NaN among numbers.
    n_rows = int((column.isna() | column.isin(texts)).sum())
    if n_rows:
        how = f" (the text {listing(map(repr, texts))})" if texts else ""
        raise Img2GeneError(f"`obs['{name}']` is missing in {n_rows} rows{how}; name every row's {name}.")
    return column_texts(column).to_numpy(dtype=str)


def column_texts(column: pd.Series) -> pd.Series:
    """Write each name of a column as text; missing values become the text of what marks them."""
    # Dates without a time have a shorter text in a column than alone.
    if pd.api.types.is_datetime64_any_dtype(column):
        return column.astype(str)
    # Of categories, each is converted once.
    return column.map(name_text).astype(str)
