"""The patches of a study as recorded by ``pp.extract_patches``: their windows, and streams of their pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from img2gene import _schema
from img2gene._errors import Problems
from img2gene._study.images import RGBImage, Windows, chunk_order, open_image, prefetch, stream_windows
from img2gene._study.origins import open_region
from img2gene._study.pyramids import scale_factors
from img2gene._study.resolution import nearest_scale
from img2gene._study.study import Study

# Windows of large fields are read in smaller batches.
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
        Side in pixels that the encoder resizes patches to, by which the scale of the image is chosen; None reads full
        resolution.
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
    sides
        int (n_fields,): sides in pixels that larger windows are averaged to.
    skip_unreadable
        Mark spots whose pixels cannot be decoded, instead of raising.
    """

    images: tuple[RGBImage, ...]
    rows: np.ndarray
    boxes: np.ndarray
    sides: np.ndarray
    skip_unreadable: bool = False

    def stream(self, batch_size: int, num_workers: int, order: np.ndarray | None = None) -> Iterator[Windows]:
        """Stream the pixels of all windows, or of those that ``order`` numbers, whose numbers batches then refer to."""
        boxes = self.boxes if order is None else self.boxes[order]
        lengths = boxes[0, :, 2] - boxes[0, :, 0]
        batch_size = min(batch_size, max(1, _BATCH_BYTES // int(3 * (lengths**2).sum())))
        batches = stream_windows(self.images, boxes, batch_size, num_workers, skip_unreadable=self.skip_unreadable)
        for windows in prefetch(batches) if num_workers else batches:
            fields = [_averaged(field, int(side)) for field, side in zip(windows.fields, self.sides, strict=True)]
            yield replace(windows, fields=fields)

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
    images, final = [image] * len(sides), sides
    if reading.input_px is not None:
        images, final = _scales_of_fields(study, region, image, reading.input_px)
    boxes = _scaled_boxes(study.centers[rows], sides, images, image)
    return RegionWindows(tuple(images), rows, boxes, final, reading.skip_unreadable)


def _scales_of_fields(study: Study, region: str, image: RGBImage, input_px: int) -> tuple[list[RGBImage], np.ndarray]:
    """Choose the scale of the image that is nearest to the encoder's µm per pixel in each field of view.

    Also return the sides in pixels at ``resolution_um``, which larger windows are averaged to.
    """
    record, entry = study.patches, study.patches["regions"][region]
    images, resolution = {0: image}, record.get("resolution_um") or 0.0
    fields = np.array(record["patch_um"], dtype=float)
    if not entry.get("mpp"):
        # Patches from other programs may have no microns; then nothing can be compared.
        return [image] * len(fields), np.array(entry["side_px"])
    mpps = entry["mpp"] * scale_factors(study.sdata, entry["image"])
    # At one resolution for all images, no field may be read from a coarser scale of one of them.
    chosen = [nearest_scale(mpps, resolution or field / input_px) for field in fields]
    for scale in chosen:
        if scale not in images:
            images[scale] = open_image(study.sdata, entry["image"], scale=scale)
    final = np.rint(fields / resolution) if resolution else np.full(len(fields), _schema.MAX_SIDE_PX)
    return [images[scale] for scale in chosen], final.astype(np.int64)


def _scaled_boxes(centers: np.ndarray, sides: np.ndarray, images: list[RGBImage], full: RGBImage) -> np.ndarray:
    """Windows (n, n_fields, 4) in pixels of each field's image, for centres and sides in pixels of the full resolution."""
    boxes = []
    for side, image in zip(sides, images, strict=True):
        factor = np.array([image.height / full.height, image.width / full.width])
        length = max(1, round(float(side) * float(factor.mean())))
        boxes.append(field_boxes(centers * factor, [length])[:, 0])
    return np.stack(boxes, axis=1)


def _averaged(pixels: np.ndarray, side: int) -> np.ndarray:
    """Average windows (n, h, h, 3) down to ``side`` pixels; smaller windows stay as they are."""
    if side >= pixels.shape[1] or not len(pixels):
        return pixels
    from PIL import Image

    # A coarser scanner averages over the area of its pixels, which other filters would blur.
    parts = [Image.fromarray(window).resize((side, side), Image.Resampling.BOX) for window in pixels]
    return np.stack([np.asarray(part) for part in parts])
