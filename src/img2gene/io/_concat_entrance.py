"""Check each table and region that is to be joined, as every other function checks its study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError, Problems, listing
from img2gene._study.entrance import (
    column_problems,
    number_problems,
    object_problems,
    position_problems,
    table_problems,
    window_problems,
)
from img2gene._study.expression import count_problems, layer_problems, name_problems
from img2gene._study.sections import region_column

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

ATTRS = "spatialdata_attrs"


def is_annotated(table: AnnData) -> bool:
    """Check whether a table says which regions its rows belong to."""
    return ATTRS in table.uns


def check_annotation(table: AnnData, key: str) -> None:
    """Raise if a table names columns of regions and instances that it does not have."""
    if not is_annotated(table):
        return
    attrs = table.uns[ATTRS]
    key_column = attrs.get("instance_key") if isinstance(attrs, Mapping) else None
    if not isinstance(key_column, str) or key_column not in table.obs or "region" not in attrs:
        raise Img2GeneError(
            f"`uns['{ATTRS}']` of `{key}` does not name the columns of regions and instances. Parse the table with "
            "`spatialdata.models.TableModel.parse(table, region=…, region_key=…, instance_key=…)`."
        )
    region_column(table, key)


def regions_of(table: AnnData) -> list[str]:
    """List the regions that the rows of a table name, in order of appearance."""
    if not is_annotated(table):
        return []
    return [str(name) for name in pd.unique(table.obs[table.uns[ATTRS]["region_key"]])]


def entrance_problems(table: AnnData, name: str, key: str) -> list[str]:
    """List why no function could read a table, joined or not."""
    problems = column_problems(table, name)
    if problems:
        return problems
    check = Problems()
    with check.collect():
        check_annotation(table, key)
    # The other checks read the columns that are named there.
    if not check.messages:
        check.messages += table_problems(table, name, is_annotated=is_annotated(table))
    if check.messages:
        return check.messages
    problems = position_problems(table.obsm.get("spatial"), f"`{name}.obsm['spatial']`")
    problems += window_problems(table, name) + object_problems(table.obs, f"{name}.obs")
    problems += number_problems(table.X, f"`{name}.X`") or _size_problems(table, name)
    return problems + _kind_problems(table, name) + name_problems(table, key, f" of {listing(regions_of(table), 3)}")


def _kind_problems(table: AnnData, name: str) -> list[str]:
    """List columns of regions and spots whose kind spatialdata does not store."""
    if not is_annotated(table) or not table.n_obs:
        return []
    region_key, instance_key = (table.uns[ATTRS][name] for name in ("region_key", "instance_key"))
    regions, spots = table.obs[region_key], table.obs[instance_key]
    problems = []
    if not all(isinstance(value, str) for value in pd.unique(regions)):
        problems.append(f"`{name}.obs['{region_key}']` holds values that are not text; it names regions.")
    is_number = isinstance(spots.dtype, np.dtype) and spots.dtype.kind in "iu"
    is_text = pd.api.types.infer_dtype(spots, skipna=False) in ("string", "categorical")
    if not (is_number or is_text):
        problems.append(
            f"`{name}.obs['{instance_key}']` holds {spots.dtype} values; spatialdata takes whole numbers and text. Convert "
            f"it: `{name}.obs['{instance_key}'] = {name}.obs['{instance_key}'].astype(int)`."
        )
    return problems


def _size_problems(table: AnnData, name: str) -> list[str]:
    """List why library sizes are not those of the counts in X; a table without them needs none."""
    if _schema.LIBRARY_SIZE not in table.obs or table.X is None or not table.n_vars or count_problems(table.X, ""):
        return []
    return layer_problems(table, None, name)


def element_problems(parts: list[SpatialData]) -> list[str]:
    """List shapes that are named twice in a region, or have no place."""
    import shapely

    problems = []
    for name, shapes in ((name, item) for part in parts for name, item in part.shapes.items()):
        if not shapes.index.is_unique:
            problems.append(f"`{name}` has duplicate instance names; its index must be unique.")
        bad = int((~np.isfinite(shapely.bounds(shapes.geometry.values)).all(axis=1)).sum())
        if bad:
            problems.append(f"`{name}` has {bad} shapes without a position; leave them out, with their rows.")
    return problems
