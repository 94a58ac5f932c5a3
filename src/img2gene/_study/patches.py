"""The patches of a study as recorded by ``pp.extract_patches``: their windows, and streams of their pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from img2gene._errors import Problems
from img2gene._study.images import RGBImage, Windows, prefetch, stream_windows
from img2gene._study.origins import open_region
from img2gene._study.study import Study

# Windows of large fields are read in smaller batches.
_BATCH_BYTES = 2**30


def field_boxes(centers: np.ndarray, sides: Sequence[int] | np.ndarray) -> np.ndarray:
    """Windows (n, n_fields, 4: y0, x0, y1, x1) of whole pixels around ``centers`` (n, 2: row, column)."""
    lengths = np.asarray(sides, dtype=np.int64)
    # `np.rint` rounds halves to even numbers, which would shift every second window by one pixel.
    corners = np.floor(centers[:, None, :] - lengths[None, :, None] / 2 + 0.5).astype(np.int64)
    return np.concatenate([corners, corners + lengths[None, :, None]], axis=2)


def stream_patches(
    study: Study, batch_size: int, num_workers: int, rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, Windows]]:
    """Stream the pixels of all patches, or of ``rows``, in chunk order: rows of the table and their windows.

    Images that have changed since the patches were found in them are refused before the first pixel is returned.
    """
    chosen = {
        region: members if rows is None else np.intersect1d(members, rows) for region, members in study.regions.items()
    }
    chosen = {region: members for region, members in chosen.items() if len(members)}
    images, problems = {}, Problems()
    for region in chosen:
        with problems.collect():
            images[region] = open_region(study, region)
    problems.raise_all()
    for region, image in images.items():
        yield from _stream_region(study, region, image, chosen[region], batch_size, num_workers)


def _stream_region(
    study: Study, region: str, image: RGBImage, rows: np.ndarray, batch_size: int, num_workers: int
) -> Iterator[tuple[np.ndarray, Windows]]:
    sides = np.array(study.patches["regions"][region]["side_px"], dtype=np.int64)
    batch_size = min(batch_size, max(1, _BATCH_BYTES // int(3 * (sides**2).sum())))
    batches = stream_windows(image, field_boxes(study.centers[rows], sides), batch_size, num_workers)
    for windows in prefetch(batches) if num_workers else batches:
        yield rows[windows.index], windows
