"""The patches of a study as recorded by ``pp.extract_patches``: their windows, and streams of their pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from img2gene._errors import Problems
from img2gene._study.images import RGBImage, open_image
from img2gene._study.origins import open_region
from img2gene._study.pyramids import scale_factors
from img2gene._study.resolution import nearest_scale
from img2gene._study.study import Study
from img2gene._study.windows import Shrinking, Windows, chunk_order, prefetch, stream_windows

# Windows that stay large are read in smaller batches.
_BATCH_BYTES = 2**30


def field_boxes(centers: np.ndarray, sides: Sequence[int] | np.ndarray) -> np.ndarray:
    """Windows (n, n_fields, 4: y0, x0, y1, x1) of whole pixels around ``centers`` (n, 2: row, column)."""
    lengths = np.asarray(sides, dtype=np.int64)
    # `np.rint` rounds halves to even numbers, which would shift every second window by one pixel.
    corners = np.floor(centers[:, None, :] - lengths[None, :, None] / 2 + 0.5).astype(np.int64)
    return np.concatenate([corners, corners + lengths[None, :, None]], axis=2)


@dataclass(frozen=True)
class Reading:
    """How pixels are read.

    Attributes
    ----------
    input_px
        Side in pixels of the encoder's input: the scale of the image is chosen by it, and larger windows are reduced to it.
        None reads full resolution.
    skip_unreadable
        Mark spots whose pixels cannot be decoded, instead of raising.
    """

    input_px: int | None = None
    skip_unreadable: bool = False


def stream_patches(
    study: Study, batch_size: int, num_workers: int, rows: np.ndarray | None = None, reading: Reading = Reading()
) -> Iterator[tuple[np.ndarray, Windows]]:
    """Stream the pixels of all patches, or of ``rows``, in chunk order: rows of the table and their windows.

    Images that have changed since the patches were found in them are refused before the first pixel is returned.
    """
    for windows in region_windows(study, rows, reading).values():
        for batch in windows.stream(batch_size, num_workers):
            yield windows.rows[batch.index], batch


@dataclass(frozen=True)
class RegionWindows:
    """The windows of a region in its image, which other processes can read, too.

    Attributes
    ----------
    images
        For each field of view, the scale of the image that it is read from.
    rows
        int (n,): rows of the table.
    boxes
        int (n, n_fields, 4): windows of each of them, in pixels of the field's image.
    shrinking
        For each field of view, how larger windows are reduced.
    skip_unreadable
        Mark spots whose pixels cannot be decoded, instead of raising.
    """

    images: tuple[RGBImage, ...]
    rows: np.ndarray
    boxes: np.ndarray
    shrinking: tuple[Shrinking, ...]
    skip_unreadable: bool = False

    def stream(self, batch_size: int, num_workers: int, order: np.ndarray | None = None) -> Iterator[Windows]:
        """Stream the pixels of all windows, or of those that ``order`` numbers, whose numbers batches then refer to."""
        boxes = self.boxes if order is None else self.boxes[order]
        lengths = (boxes[0, :, 2] - boxes[0, :, 0]).tolist()
        sides = [way.side(length) for way, length in zip(self.shrinking, lengths, strict=True)]
        batch_size = min(batch_size, max(1, _BATCH_BYTES // sum(3 * side**2 for side in sides)))
        batches = stream_windows(
            self.images, boxes, batch_size, num_workers, shrinking=self.shrinking, skip_unreadable=self.skip_unreadable
        )
        yield from prefetch(batches) if num_workers else batches

    def parts(self, size: int) -> list[np.ndarray]:
        """Divide the windows into parts of about ``size`` that lie on the same chunks of the image, as far as possible."""
        first = [image is self.images[0] for image in self.images]
        order = chunk_order(self.images[0], self.boxes[:, first])
        return np.array_split(order, -(-len(order) // size))


def region_windows(
    study: Study, rows: np.ndarray | None = None, reading: Reading = Reading()
) -> dict[str, RegionWindows]:
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
    return {region: _windows(study, region, image, chosen[region], reading) for region, image in images.items()}


def _windows(study: Study, region: str, image: RGBImage, rows: np.ndarray, reading: Reading) -> RegionWindows:
    sides = np.array(study.patches["regions"][region]["side_px"], dtype=np.int64)
    images, ways = [image] * len(sides), [Shrinking()] * len(sides)
    if reading.input_px is not None:
        images, ways = _scales_of_fields(study, region, image, reading.input_px)
    boxes = _scaled_boxes(study.centers[rows], sides, images, image)
    return RegionWindows(tuple(images), rows, boxes, tuple(ways), reading.skip_unreadable)


def _scales_of_fields(
    study: Study, region: str, image: RGBImage, input_px: int
) -> tuple[list[RGBImage], list[Shrinking]]:
    """Choose the scale of the image that is nearest to the encoder's µm per pixel in each field of view.

    Also say how windows are reduced: to their side at ``resolution_um``, if there is one, and to the encoder's input.
    """
    record, entry = study.patches, study.patches["regions"][region]
    images, resolution = {0: image}, record.get("resolution_um") or 0.0
    fields = np.array(record["patch_um"], dtype=float)
    if not entry.get("mpp"):
        # Patches from other programs may have no microns; then nothing can be compared.
        return [image] * len(fields), [Shrinking(resized=input_px)] * len(fields)
    mpps = entry["mpp"] * scale_factors(study.sdata, entry["image"])
    # At one resolution for all images, no field may be read from a coarser scale of one of them.
    chosen = [nearest_scale(mpps, resolution or field / input_px) for field in fields]
    for scale in chosen:
        if scale not in images:
            images[scale] = open_image(study.sdata, entry["image"], scale=scale)
    averaged = [round(field / resolution) if resolution else None for field in fields.tolist()]
    return [images[scale] for scale in chosen], [Shrinking(side, input_px) for side in averaged]


def _scaled_boxes(centers: np.ndarray, sides: np.ndarray, images: list[RGBImage], full: RGBImage) -> np.ndarray:
    """Windows (n, n_fields, 4) in pixels of each field's image, for centres and sides in pixels of the full resolution."""
    boxes = []
    for side, image in zip(sides, images, strict=True):
        factor = np.array([image.height / full.height, image.width / full.width])
        length = max(1, round(float(side) * float(factor.mean())))
        boxes.append(field_boxes(centers * factor, [length])[:, 0])
    return np.stack(boxes, axis=1)
