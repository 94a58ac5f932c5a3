"""Warnings of libraries that say nothing about a study, silenced where it is written and read, and nowhere else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_KNOWN = (
    # anndata, at each array of a table: https://github.com/scverse/anndata/blob/main/src/anndata/_io/specs/methods.py
    ("zarr v3 autosharding will be the default", UserWarning),
    # ome-zarr, which spatialdata calls for each image: https://github.com/ome/ome-zarr-py/blob/master/ome_zarr/scale.py
    ("Call to deprecated class Scaler", DeprecationWarning),
    # spatialdata, at each table whose images were left out: https://github.com/scverse/spatialdata/blob/main/src/spatialdata/_core/spatialdata.py
    ("The table is annotating", UserWarning),
    ("SpatialData is not stored in the most current format", UserWarning),
    # dask and anndata on pandas 3.1: https://pandas.pydata.org/docs/dev/whatsnew/v3.1.0.html
    ("The inplace keyword in DataFrame", DeprecationWarning),
    ("The 'future.infer_string' option is deprecated", DeprecationWarning),
)


@contextmanager
def without_library_warnings() -> Iterator[None]:
    """Leave out the known warnings of libraries; all others are shown."""
    with warnings.catch_warnings():
        for message, category in _KNOWN:
            warnings.filterwarnings("ignore", message, category)
        yield
