"""Compare a study with what was read back from its store, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from img2gene._study.matrices import in_memory

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_TABLE_SLOTS = ("obs", "var", "layers", "obsm", "varm", "obsp", "varp", "uns")


def study_differences(study: SpatialData, stored: SpatialData) -> list[str]:
    """Name the elements, or parts of tables, that differ."""
    problems = []
    for kind, is_same in _COMPARISONS.items():
        ours, theirs = getattr(study, kind), getattr(stored, kind)
        problems += [f"{kind}[{name!r}]" for name in ours if name not in theirs]
        problems += [
            f"{kind}[{name!r}]"
            for name in ours
            if name in theirs
            and not (is_same(ours[name], theirs[name]) and _same_transformations(ours[name], theirs[name]))
        ]
    for name, table in study.tables.items():
        if name not in stored.tables:
            problems.append(f"tables[{name!r}]")
        else:
            problems += [f"tables[{name!r}].{part}" for part in _table_differences(table, stored.tables[name])]
    if not _same(study.attrs, stored.attrs):
        problems.append("attrs")
    return problems


def _same_transformations(ours: Any, theirs: Any) -> bool:
    from spatialdata.transformations import get_transformation

    one, other = (get_transformation(element, get_all=True) for element in (ours, theirs))
    axes = ("x", "y")
    return one.keys() == other.keys() and all(
        np.allclose(one[name].to_affine_matrix(axes, axes), other[name].to_affine_matrix(axes, axes)) for name in one
    )


def _same_raster(ours: Any, theirs: Any) -> bool:
    one, other = _levels(ours), _levels(theirs)
    return len(one) == len(other) and all(_same_pixels(a, b) for a, b in zip(one, other, strict=True))


def _levels(raster: Any) -> list[Any]:
    """List the arrays of a single- or multi-scale image or label element."""
    children = getattr(raster, "children", None)
    return [next(iter(node.ds.values())) for node in children.values()] if children else [raster]


def _same_pixels(ours: Any, theirs: Any) -> bool:
    import dask.array as da

    if ours.dims != theirs.dims or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if "c" in ours.coords and [str(name) for name in ours.coords["c"].values] != [
        str(name) for name in theirs.coords["c"].values
    ]:
        return False
    # A store places pixels by their number, so those of an image that was cut with xarray would move.
    for axis in {"y", "x"} & set(ours.coords) & set(theirs.coords):
        if not np.allclose(ours.coords[axis], theirs.coords[axis]):
            return False
    one, other = da.asarray(ours.data), da.asarray(theirs.data)
    differ = one != other
    if ours.dtype.kind == "f":
        differ = differ & ~(da.isnan(one) & da.isnan(other))
    # One chunk is in memory at a time.
    return not bool(differ.any().compute())


def _same_shapes(ours: Any, theirs: Any) -> bool:
    geometry = ours.geometry.name
    same = ours.geometry.to_wkb().tolist() == theirs.geometry.to_wkb().tolist()
    return same and _same_frame(ours.drop(columns=geometry), theirs.drop(columns=theirs.geometry.name))


def _same_points(ours: Any, theirs: Any) -> bool:
    if ours.npartitions != theirs.npartitions:
        return _same_frame(ours.compute(), theirs.compute())
    pairs = zip(ours.partitions, theirs.partitions, strict=True)
    return all(_same_frame(one.compute(), other.compute()) for one, other in pairs)


_COMPARISONS = {"images": _same_raster, "labels": _same_raster, "points": _same_points, "shapes": _same_shapes}


def _table_differences(ours: AnnData, theirs: AnnData) -> Iterator[str]:
    if ours.shape != theirs.shape:
        yield f"shape ({ours.shape}, and {theirs.shape} in the store)"
        return
    for slot in ("obs_names", "var_names"):
        if list(getattr(ours, slot).astype(str)) != list(getattr(theirs, slot).astype(str)):
            yield slot
    # Counts of a table that is backed by a file are read for the comparison.
    if not _same(in_memory(ours.X), in_memory(theirs.X)):
        yield "X"
    for slot in _TABLE_SLOTS:
        one, other = getattr(ours, slot), getattr(theirs, slot)
        # anndata 0.13 lists X among the layers, under the name None.
        yield from (
            f"{slot}[{name!r}]"
            for name in one
            if name is not None and (str(name) not in other or not _same(one[name], other[str(name)]))
        )


def _same(ours: Any, theirs: Any) -> bool:
    """Compare two values; what is stored in another type, such as a list as an array, is the same."""
    if isinstance(ours, Mapping):
        return isinstance(theirs, Mapping) and all(
            str(name) in theirs and _same(value, theirs[str(name)]) for name, value in ours.items()
        )
    if ours is None or theirs is None:
        return ours is theirs
    if isinstance(ours, pd.DataFrame):
        return isinstance(theirs, pd.DataFrame) and _same_frame(ours, theirs)
    if isinstance(ours, pd.Series | pd.Index) or hasattr(ours, "categories"):
        return _same_column(pd.Series(ours), pd.Series(theirs))
    if sp.issparse(ours) or sp.issparse(theirs):
        return _same_sparse(ours, theirs)
    return _same_arrays(np.atleast_1d(np.asarray(ours)), np.atleast_1d(np.asarray(theirs)))


def _same_sparse(ours: Any, theirs: Any) -> bool:
    if not (sp.issparse(ours) and sp.issparse(theirs)) or ours.shape != theirs.shape:
        return False
    one, other = sp.csr_array(ours), sp.csr_array(theirs)
    return all(_same_arrays(getattr(one, part), getattr(other, part)) for part in ("indptr", "indices", "data"))


def _same_arrays(ours: np.ndarray, theirs: np.ndarray) -> bool:
    if ours.shape != theirs.shape:
        return False
    if ours.dtype.names:
        return theirs.dtype.names is not None and all(
            name in theirs.dtype.names and _same_arrays(ours[name], theirs[name]) for name in ours.dtype.names
        )
    if ours.dtype.kind in "OUST" or theirs.dtype.kind in "OUST":
        return _same_column(pd.Series(ours.ravel()), pd.Series(theirs.ravel()))
    return bool(np.array_equal(ours, theirs, equal_nan=ours.dtype.kind in "fc"))


def _same_frame(ours: pd.DataFrame, theirs: pd.DataFrame) -> bool:
    if len(ours) != len(theirs) or {str(name) for name in ours} != {str(name) for name in theirs}:
        return False
    others = {str(name): theirs[name] for name in theirs}
    return _same_column(ours.index.to_series(), theirs.index.to_series()) and all(
        _same_column(ours[name], others[str(name)]) for name in ours
    )


def _same_column(ours: pd.Series, theirs: pd.Series) -> bool:
    """Compare two columns; text and categories of the same values are the same."""
    if len(ours) != len(theirs):
        return False
    absent = ours.isna().to_numpy()
    if not np.array_equal(absent, theirs.isna().to_numpy()):
        return False
    one, other = ours[~absent], theirs[~absent]
    if pd.api.types.is_numeric_dtype(ours) and pd.api.types.is_numeric_dtype(theirs):
        return bool((one.to_numpy() == other.to_numpy()).all())
    return bool((one.astype(str).to_numpy() == other.astype(str).to_numpy()).all())
