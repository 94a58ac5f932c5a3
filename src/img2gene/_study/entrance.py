"""Open the study of a call: the checks of the table that every function shares."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, Problems, listing, missing
from img2gene._study.expression import in_tissue, name_problems, readable
from img2gene._study.geometry import divided_sections
from img2gene._study.matrices import with_plain_counts
from img2gene._study.predictions import prediction_problems
from img2gene._study.sections import region_column, text_labels
from img2gene._study.study import Study

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)


def open_study(check: Arguments, sdata: SpatialData, table_key: Any) -> Study:
    """Open the study of a call for reading counts, and add to ``check`` what makes its table unusable.

    The checks are those of :func:`open_table`.

    Examples
    --------
    >>> import img2gene as ig
    >>> from img2gene._checks import Arguments
    >>> from img2gene._study.entrance import open_study
    >>> check = Arguments()
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> open_study(check, sdata, "table").n_obs, check.messages
    (60, [])
    """
    before = len(check.messages)
    study = open_table(check, sdata, table_key)
    with check.collect():
        check.messages += prediction_problems(study)
    return study if len(check.messages) > before else Study(sdata, study.table_key, with_plain_counts(study.table))


def open_table(check: Arguments, sdata: SpatialData, table_key: Any, *, with_windows: bool = True) -> Study:
    """Open the study of a call that reads no counts, and add to ``check`` what makes its table unusable.

    Duplicate genes or spots, rows without a region, a spot or a section, and a column ``in_tissue`` that is not 0 and 1
    are collected. Without the table nothing more can be checked, and columns that occur twice, or positions and windows
    that are no numbers, cannot be read. These errors are raised at once, with all earlier ones.

    ``with_windows=False`` ignores the windows of patches, for a call that replaces them.
    """
    table_key = check.text("table_key", table_key)
    if not isinstance(table_key, str):
        check.raise_all()
    study = None
    with check.collect():
        study = Study.of(sdata, table_key)
    if study is None:
        check.raise_all()
    table, name = study.table, study.name
    unreadable = column_problems(table, name)
    if not unreadable:
        check.messages += name_problems(table, name) + table_problems(table, name)
        with check.collect():
            _ = study.regions, study.sections
            check.messages += divided_sections(study)
        unreadable = position_problems(table.obsm.get("spatial"), f"`{name}.obsm['spatial']`")
        unreadable += window_problems(table, name) if with_windows else []
    if unreadable:
        check.messages += unreadable
        check.raise_all()
    return study


def report_off_tissue(study: Study) -> int:
    """Log how many spots lie off the tissue, and return their number."""
    lost, unused = ~readable(study.table), ~in_tissue(study.table)
    n_off = int((unused & ~lost).sum())
    if n_off:
        logger.warning("left out %d of %d spots that lie off the tissue (obs['in_tissue'] is 0)", n_off, study.n_obs)
    if lost.any():
        logger.warning(
            "left out %d of %d spots whose pixels could not be read (obs['%s'] is False)",
            int(lost.sum()),
            study.n_obs,
            _schema.PATCH_READABLE,
        )
    return int(unused.sum())


def column_problems(table: AnnData, name: str) -> list[str]:
    """List columns that occur twice, and names of genes or spots that are no text."""
    problems = []
    for axis, kind in (("obs", "spots"), ("var", "genes")):
        frame = getattr(table, axis)
        twice = frame.columns[frame.columns.duplicated()].unique()
        if len(twice):
            problems.append(f"`{name}.{axis}` has several columns {listing(twice)}; keep one of each.")
        names = frame.index
        is_text = pd.api.types.infer_dtype(names, skipna=False) in ("string", "categorical", "empty")
        if len(names) and (names.nlevels > 1 or names.hasnans or not is_text):
            problems.append(
                f"The names of {kind} in `{name}` are not all text ({listing(names[:3])}): set `{name}.{axis}_names = …`."
            )
    return problems


def table_problems(table: AnnData, name: str, *, is_annotated: bool = True) -> list[str]:
    """List why the regions, spots, sections or tissue of a table cannot be read.

    A table that annotates no region (``is_annotated=False``) needs none.
    """
    check = Problems(_annotation_problems(table, name) if is_annotated else [])
    with check.collect():
        in_tissue(table)
    if _schema.SECTION in table.obs:
        with check.collect():
            text_labels(table.obs[_schema.SECTION], _schema.SECTION)
    return check.messages


def position_problems(values: Any, name: str) -> list[str]:
    """List why an array cannot hold positions (n_obs, 2); missing ones are allowed, because joining leaves gaps."""
    if values is None:
        return []
    hidden = isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values)
    try:
        array = None if sp.issparse(values) or hidden or np.iscomplexobj(values) else np.asarray(values, dtype=float)
    except (TypeError, ValueError, OverflowError):
        array = None
    if array is None:
        return [f"{name} holds values that are not numbers, or masks some; expected an array (n_obs, 2)."]
    if array.ndim != 2 or array.shape[1] < 2:
        return [f"{name} has shape {array.shape}; expected (n_obs, 2): x and y of each spot."]
    return []


def stored_positions(study: Study, rows: np.ndarray, way_out: str = "leave out spots without a position") -> np.ndarray:
    """Read ``obsm["spatial"]`` of some rows, float (n, 2); refuse spots without a position."""
    positions = np.asarray(study.table.obsm["spatial"], dtype=float)[rows, :2]
    bad = rows[~np.isfinite(positions).all(axis=1)]
    if len(bad):
        raise Img2GeneError(
            f"`{study.name}.obsm['spatial']` holds NaN or infinite positions in {len(bad)} rows "
            f"({listing(study.table.obs_names[bad], 5)}); {way_out}."
        )
    return positions


def window_problems(table: AnnData, name: str) -> list[str]:
    """List why the stored windows of patches cannot be read."""
    if _schema.PATCH_BBOX not in table.obsm:
        return []
    boxes = np.asarray(table.obsm[_schema.PATCH_BBOX])
    if boxes.dtype.kind in "iuf" and boxes.shape == (table.n_obs, 4):
        return []
    return [
        f"`{name}.obsm['{_schema.PATCH_BBOX}']` holds {boxes.dtype} values of shape {boxes.shape}; expected numbers (n_obs, "
        "4). Run `img2gene.pp.extract_patches` again."
    ]


def number_problems(matrix: Any, name: str) -> list[str]:
    """List why the values of a matrix are no real numbers, without reading them."""
    if isinstance(matrix, np.ma.MaskedArray) and np.ma.is_masked(matrix):
        n_masked = int(np.ma.getmaskarray(matrix).sum())
        return [f"{name} masks {n_masked} values; fill them, or leave out the spots or genes."]
    dtype = getattr(matrix, "dtype", None)
    if matrix is None or (dtype is not None and dtype.kind in "iuf"):
        return []
    return [f"{name} holds {dtype} values, not numbers."]


def object_problems(frame: pd.DataFrame, name: str) -> list[str]:
    """List columns with lists or other values that can be neither joined nor stored."""
    odd = [
        str(column)
        for column, values in frame.items()
        if values.dtype == object and not values.map(lambda value: isinstance(value, Hashable)).all()
    ]
    return [f"`{name}` holds lists or other containers in {listing(odd)}; convert them to text, or drop them."] * bool(
        odd
    )


def _annotation_problems(table: AnnData, name: str) -> list[str]:
    """List what spatialdata's record of the annotated regions, and the two columns that it names, lack."""
    attrs = table.uns.get("spatialdata_attrs", {})
    if not isinstance(attrs, Mapping):
        return [
            f"`{name}.uns['spatialdata_attrs']` is a {type(attrs).__name__}; parse the table with `TableModel.parse`."
        ]
    check, key = Problems(), attrs.get("instance_key")
    with check.collect():
        column = region_column(table, name)
        text_labels(column, str(column.name))
    if check.messages:
        return check.messages
    if not isinstance(key, str) or key not in table.obs:
        return [missing(str(key), f"{name}.obs", table.obs.columns, "It names the spot of each row (`instance_key`).")]
    return _instance_problems(table.obs[key], column, f"`{name}.obs['{key}']`")


def _instance_problems(spots: pd.Series, regions: pd.Series, name: str) -> list[str]:
    """List missing spots, values that name no spot, and spots that several rows of one region name."""
    if spots.isna().any():
        return [f"{name} is missing in {int(spots.isna().sum())} rows; name the spot of every row."]
    odd = [value for value in spots if not np.isscalar(value)] if spots.dtype == object else []
    if odd:
        return [f"{name} holds {type(odd[0]).__name__} in {len(odd)} rows; expected text or whole numbers."]
    pairs = pd.DataFrame({"region": regions.astype(str).to_numpy(), "spot": spots.astype(object).to_numpy()})
    twice = pairs[pairs.duplicated()]
    if not len(twice):
        return []
    spot, region = twice["spot"].iloc[0], twice["region"].iloc[0]
    return [
        f"{name} names {len(twice)} spots twice (first: {spot} of `{region}`); each row needs a spot of its own. Correct the "
        "column, or leave out these rows."
    ]
