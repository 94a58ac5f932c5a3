"""Row labels of a table: region, section, patient and group of each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing

if TYPE_CHECKING:
    from anndata import AnnData

# What NaN and its like become as text, in a CSV or by `.astype(str)`.
_ABSENT = {"", "nan", "NaN", "None", "<NA>"}


def region_column(table: AnnData, table_key: str = "table") -> pd.Series:
    """The obs column that names each row's region."""
    attrs = table.uns.get("spatialdata_attrs", {})
    key = attrs.get("region_key")
    if key is None or key not in table.obs:
        raise Img2GeneError(
            f"`sdata['{table_key}']` annotates no region. Parse it with `spatialdata.models.TableModel.parse(table, "
            "region=…, region_key=…, instance_key=…)`."
        )
    return table.obs[key]


def section_labels(table: AnnData, table_key: str = "table") -> np.ndarray:
    """Section of each row: ``obs["section"]``, else the region's name; str (n_obs,)."""
    column = table.obs[_schema.SECTION] if _schema.SECTION in table.obs else region_column(table, table_key)
    return _as_text(column, _schema.SECTION)


def group_labels(table: AnnData, groups: str, table_key: str = "table") -> np.ndarray:
    """Values of the grouping column, str (n_obs,); ``"section"`` falls back to the region."""
    if groups == _schema.SECTION:
        return section_labels(table, table_key)
    if groups not in table.obs:
        raise MissingKeyError(
            missing(
                groups,
                f"sdata['{table_key}'].obs",
                table.obs.columns,
                f"Say which donor each section comes from (`sdata['{table_key}'].obs['{groups}'] = …`), or pass "
                '`groups="section"` if patients are unknown.',
            )
        )
    return _as_text(table.obs[groups], groups)


def _as_text(column: pd.Series, name: str) -> np.ndarray:
    absent = [value for value in column.unique() if pd.isna(value) or str(value).strip() in _ABSENT]
    if absent:
        n = int(column.isin(absent).sum())
        shown = [repr(value) for value in absent if isinstance(value, str)]
        how = f" (the text {listing(shown)})" if shown else ""
        raise Img2GeneError(f"`obs['{name}']` is missing in {n} rows{how}; name every row's {name}.")
    return column.astype(str).to_numpy(dtype=str)


def regions(table: AnnData, table_key: str = "table") -> dict[str, np.ndarray]:
    """Rows of each region, in the order of first appearance."""
    column = region_column(table, table_key)
    if column.isna().any():
        raise Img2GeneError(f"{int(column.isna().sum())} rows of `sdata['{table_key}']` name no region.")
    values = column.astype(str).to_numpy(dtype=str)
    return {str(name): np.flatnonzero(values == name) for name in pd.unique(values)}


def patient_labels(table: AnnData) -> np.ndarray | None:
    """Patient of each row, or None where patients are not recorded."""
    return group_labels(table, _schema.PATIENT) if _schema.PATIENT in table.obs else None


def section_names(table: AnnData, rows: np.ndarray, table_key: str) -> list[str]:
    """Sections among ``rows``, in order of appearance."""
    return list(dict.fromkeys(section_labels(table, table_key)[rows].tolist()))
