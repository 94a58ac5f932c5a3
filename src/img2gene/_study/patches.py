"""The patches of a study as recorded by ``pp.extract_patches``: their windows, and streams of their pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, missing
from img2gene._study.images import Windows, open_image, prefetch, stream_windows
from img2gene._study.sections import regions

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def field_boxes(centers: np.ndarray, sides: Sequence[int] | np.ndarray) -> np.ndarray:
    """Windows (n, n_fields, 4: y0, x0, y1, x1) of whole pixels around ``centers`` (n, 2: row, column)."""
    lengths = np.asarray(sides, dtype=np.int64)
    corners = np.floor(centers[:, None, :] - lengths[None, :, None] / 2 + 0.5).astype(np.int64)
    return np.concatenate([corners, corners + lengths[None, :, None]], axis=2)


def specification(table: AnnData, table_key: str) -> dict[str, Any]:
    """The stored patch specification; raises if there is none or rows were added since."""
    patches = _schema.read_json(table, "patches")
    if patches is None or _schema.PATCH_BBOX not in table.obsm:
        raise MissingKeyError(
            missing(
                _schema.PATCH_BBOX, f"sdata['{table_key}'].obsm", table.obsm, "Run `img2gene.pp.extract_patches` first."
            )
        )
    absent = [name for name in regions(table, table_key) if name not in patches["regions"]]
    if absent:
        raise Img2GeneError(f"No patches for the regions {', '.join(absent)}: run `img2gene.pp.extract_patches` again.")
    return patches


def centers_of(table: AnnData, rows: np.ndarray) -> np.ndarray:
    """Row and column (len(rows), 2) of the centres of chosen rows' patches, in pixels of the scale-0 image."""
    first = np.asarray(table.obsm[_schema.PATCH_BBOX])[rows]
    if not np.isfinite(first).all():
        raise Img2GeneError(f"`obsm['{_schema.PATCH_BBOX}']` is incomplete: run `img2gene.pp.extract_patches` again.")
    return (first[:, :2] + first[:, 2:]) / 2


def boxes_of(table: AnnData, rows: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """Windows (len(rows), n_fields, 4) of chosen rows, around the centres of their first field."""
    return field_boxes(centers_of(table, rows), sides)


def stream_patches(
    sdata: SpatialData, table_key: str, batch_size: int, num_workers: int, rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, Windows]]:
    """Pixels of all patches (or of ``rows``), region by region in chunk order: rows of the table and their windows."""
    table = _schema.get_table(sdata, table_key)
    patches = specification(table, table_key)
    for region, members in regions(table, table_key).items():
        chosen = members if rows is None else np.intersect1d(members, rows)
        if not len(chosen):
            continue
        entry = patches["regions"][region]
        if entry["image"] not in sdata.images:
            raise MissingKeyError(
                missing(entry["image"], "sdata.images", sdata.images, "Run `img2gene.pp.extract_patches` again.")
            )
        image = open_image(sdata, entry["image"])
        batches = stream_windows(image, boxes_of(table, chosen, entry["side_px"]), batch_size, num_workers)
        for windows in prefetch(batches) if num_workers else batches:
            yield chosen[windows.index], windows
