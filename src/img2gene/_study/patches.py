"""The patches of a study as recorded by ``pp.extract_patches``: their windows, and streams of their pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from img2gene._errors import MissingKeyError, missing
from img2gene._study.images import Windows, open_image, prefetch, stream_windows
from img2gene._study.study import Study


def field_boxes(centers: np.ndarray, sides: Sequence[int] | np.ndarray) -> np.ndarray:
    """Windows (n, n_fields, 4: y0, x0, y1, x1) of whole pixels around ``centers`` (n, 2: row, column)."""
    lengths = np.asarray(sides, dtype=np.int64)
    # `np.rint` rounds halves to even numbers, which would shift every second window by one pixel.
    corners = np.floor(centers[:, None, :] - lengths[None, :, None] / 2 + 0.5).astype(np.int64)
    return np.concatenate([corners, corners + lengths[None, :, None]], axis=2)


def stream_patches(
    study: Study, batch_size: int, num_workers: int, rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, Windows]]:
    """Stream the pixels of all patches, or of ``rows``, in chunk order: rows of the table and their windows."""
    images = study.sdata.images
    for region, members in study.regions.items():
        chosen = members if rows is None else np.intersect1d(members, rows)
        if not len(chosen):
            continue
        entry = study.patches["regions"][region]
        if entry["image"] not in images:
            raise MissingKeyError(
                missing(entry["image"], "sdata.images", images, "Run `img2gene.pp.extract_patches` again.")
            )
        image = open_image(study.sdata, entry["image"])
        batches = stream_windows(image, field_boxes(study.centers[chosen], entry["side_px"]), batch_size, num_workers)
        for windows in prefetch(batches) if num_workers else batches:
            yield chosen[windows.index], windows
