"""The patches of a study as recorded by ``pp.extract_patches``: their windows, and streams of their pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from img2gene._errors import Problems
from img2gene._study.images import RGBImage, Windows, chunk_order, prefetch, stream_windows
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
    for windows in region_windows(study, rows).values():
        for batch in windows.stream(batch_size, num_workers):
            yield windows.rows[batch.index], batch


@dataclass(frozen=True)
class RegionWindows:
    """The windows of a region in its image, which other processes can read, too.

    Attributes
    ----------
    image
        The image.
    rows
        int (n,): rows of the table.
    boxes
        int (n, n_fields, 4): windows of each of them.
    """

    image: RGBImage
    rows: np.ndarray
    boxes: np.ndarray

    def stream(self, batch_size: int, num_workers: int, order: np.ndarray | None = None) -> Iterator[Windows]:
        """Stream the pixels of all windows, or of those that ``order`` numbers, whose numbers batches then refer to."""
        boxes = self.boxes if order is None else self.boxes[order]
        sides = boxes[0, :, 2] - boxes[0, :, 0]
        batch_size = min(batch_size, max(1, _BATCH_BYTES // int(3 * (sides**2).sum())))
        batches = stream_windows(self.image, boxes, batch_size, num_workers)
        yield from prefetch(batches) if num_workers else batches

    def parts(self, size: int) -> list[np.ndarray]:
        """Divide the windows into parts of about ``size`` that lie on the same chunks of the image, as far as possible."""
        order = chunk_order(self.image, self.boxes)
        return np.array_split(order, -(-len(order) // size))


def region_windows(study: Study, rows: np.ndarray | None = None) -> dict[str, RegionWindows]:
    """Find the windows of all patches, or of ``rows``, in each region; images that have changed are refused."""
    chosen = {
        region: members if rows is None else np.intersect1d(members, rows) for region, members in study.regions.items()
    }
    chosen = {region: members for region, members in chosen.items() if len(members)}
    images, problems = {}, Problems()
    for region in chosen:
        with problems.collect():
            images[region] = open_region(study, region)
    problems.raise_all()
    sides = {region: study.patches["regions"][region]["side_px"] for region in chosen}
    return {
        region: RegionWindows(image, chosen[region], field_boxes(study.centers[chosen[region]], sides[region]))
        for region, image in images.items()
    }
