"""A strict comparison of studies: every value, type, name and order that a user could see."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

SLOTS = ("obsm", "varm", "obsp", "varp", "layers", "uns")
ELEMENTS = ("images", "labels", "points", "shapes")


def content(data: Any, *, pixels: bool = False) -> dict[str, str]:
    """Describe a study, a table, a model or a plain value as one text per entry; equal texts mean equal content.

    Images are compared by the identity of their arrays unless ``pixels`` asks for the values.
    """
    return dict(_entries("", data, pixels))


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """List entries that were added, removed or changed."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def _entries(path: str, data: Any, pixels: bool) -> Iterator[tuple[str, str]]:
    if isinstance(data, SpatialData):
        yield from _study_entries(path, data, pixels)
    elif isinstance(data, AnnData):
        yield from _table_entries(path, data, pixels)
    elif isinstance(data, Mapping):
        yield f"{path}/type", "mapping"
        for key, value in data.items():
            yield from _entries(f"{path}/{key}", value, pixels)
    elif hasattr(data, "state") and hasattr(data, "genes"):
        config, arrays = data.state()
        yield from _entries(path, {"config": config, "arrays": arrays}, pixels)
    else:
        yield path, text_of(data)


def _study_entries(path: str, sdata: SpatialData, pixels: bool) -> Iterator[tuple[str, str]]:
    yield f"{path}/attrs", text_of(sdata.attrs)
    for kind in ELEMENTS:
        for name, element in getattr(sdata, kind).items():
            place = f"{path}/{kind}/{name}"
            yield f"{place}/transformations", repr(get_transformation(element, get_all=True))
            yield place, _image_text(element, pixels) if kind in ("images", "labels") else text_of(element)
    for name, table in sdata.tables.items():
        yield from _table_entries(f"{path}/tables/{name}", table, pixels)


def _table_entries(path: str, table: AnnData, pixels: bool) -> Iterator[tuple[str, str]]:
    yield f"{path}/shape", str(table.shape)
    yield f"{path}/X", text_of(table.X)
    for slot in ("obs", "var"):
        frame = getattr(table, slot)
        yield f"{path}/{slot}/columns", text_of([*map(str, frame.columns), str(frame.index.name)])
        yield f"{path}/{slot}/names", text_of(frame.index)
        for column in frame:
            yield f"{path}/{slot}/{column}", text_of(frame[column])
    for slot in SLOTS:
        # anndata 0.13 lists X among the layers, under the name None.
        items = {key: value for key, value in getattr(table, slot).items() if key is not None}
        yield from _entries(f"{path}/{slot}", items, pixels)


def _image_text(element: Any, pixels: bool) -> str:
    scales = element.values() if hasattr(element, "subtree") else [element]
    arrays = [array for scale in scales for array in (scale.values() if hasattr(scale, "data_vars") else [scale])]
    if pixels:
        return " ".join(text_of(np.asarray(array)) for array in arrays)
    return " ".join(f"{array.dims} {array.shape} {array.dtype} {getattr(array.data, 'name', '')}" for array in arrays)


def text_of(value: Any) -> str:
    """Describe one value: its type, and a digest of what it holds."""
    if isinstance(value, np.ndarray):
        plain = value.astype("U") if value.dtype == object else np.ascontiguousarray(value)
        return f"{value.dtype}{value.shape} {hashlib.md5(plain.tobytes(), usedforsecurity=False).hexdigest()}"
    if sp.issparse(value):
        return f"{value.format} {value.shape} " + " ".join(map(text_of, (value.data, value.nonzero()[0])))
    if isinstance(value, pd.DataFrame):
        columns = " ".join(f"{name}={text_of(value[name])}" for name in value)
        return f"frame {text_of(value.index)} {columns}"
    if isinstance(value, pd.Series):
        return f"{value.dtype} {text_of(_plain(value))}"
    if isinstance(value, pd.Index):
        return f"index {value.name} {text_of(value.to_numpy(dtype=object))}"
    return f"{type(value).__name__} {value!r}"


def _plain(values: pd.Series) -> np.ndarray:
    if isinstance(values.dtype, pd.CategoricalDtype):
        categories = values.cat.categories.to_numpy(dtype=object).tolist()
        return np.array([*map(str, categories), *map(str, values.cat.codes.tolist())], dtype=object)
    array = values.to_numpy()
    # Shapely geometries are written as text, which `astype("U")` would cut for large polygons.
    return np.array([str(item) for item in array], dtype=object) if array.dtype == object else array
