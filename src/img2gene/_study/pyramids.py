"""Check that the scales of an image show one picture in several sizes, and read small pictures of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene._study.images import RGBImage, open_image, scales

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

# Scales round their size to whole pixels, and some programs crop up to one tile at the edge.
_SIZE_TOLERANCE, _SIZE_PX = 0.02, 2
_CELLS, _TILE_PX, _N_TILES = 24, 32, 16
# Mean colours of a tile differ by a few grey levels between scales, through compression and shifts by a pixel.
_COLOUR_TOLERANCE = 40


def scale_factors(sdata: SpatialData, image_key: str) -> np.ndarray:
    """Pixels of the full resolution per pixel of each scale, float (n_scales,)."""
    sizes = np.array([level.shape[1:] for level in scales(sdata, image_key)], dtype=float)
    return (sizes[0] / sizes).mean(axis=1)


def thumbnail(sdata: SpatialData, image_key: str, step: int) -> tuple[np.ndarray, float]:
    """Read about every ``step``-th pixel from the coarsest sufficient scale; also return the exact pixels per step.

    What cannot be read is white, like glass, and a warning says where.
    """
    picture, exact, _ = thumbnail_and_lost(sdata, image_key, step)
    return picture, exact


def thumbnail_and_lost(sdata: SpatialData, image_key: str, step: int) -> tuple[np.ndarray, float, np.ndarray]:
    """Read a picture as :func:`thumbnail` does; also mark what could not be read of it, bool (height, width)."""
    levels = scales(sdata, image_key)
    factors = [round(levels[0].shape[1] / level.shape[1]) for level in levels]
    best = max(i for i, factor in enumerate(factors) if factor <= max(step, 1))
    inner = max(1, step // factors[best])
    image = open_image(sdata, image_key, scale=best)
    picture = image.thumbnail(inner)
    lost = image.lost_points(inner)
    if image.unreadable:
        y0, x0, *_ = min(tuple(box) for boxes in image.unreadable.values() for box in boxes)
        logger.warning(
            "%.2g %% of the pixels of image `%s` cannot be read, and no tissue can be found there (the first at row %d, column %d). "
            "Copy or export the file again",
            100 * lost.mean(),
            image_key,
            y0 * factors[best],
            x0 * factors[best],
        )
    return picture, float(inner * factors[best]), lost


def check_pyramid(sdata: SpatialData, image_key: str) -> None:
    """Refuse an image whose scales have different proportions, do not become smaller, or show different pictures."""
    levels = scales(sdata, image_key)
    if len(levels) < 2:
        return
    check_sizes([level.shape[1:] for level in levels], f"image `{image_key}`")
    images = [open_image(sdata, image_key, scale=scale) for scale in range(len(levels))]
    corners = _places(images[-1])
    for number, (fine, coarse) in enumerate(zip(images[:-1], images[1:], strict=True)):
        difference = _difference(fine, coarse, corners)
        if difference > _COLOUR_TOLERANCE:
            raise Img2GeneError(
                f"image `{image_key}`: its scales {number} and {number + 1} ({fine.height} × {fine.width} and "
                f"{coarse.height} × {coarse.width} px) show different pictures: mean colours differ by {difference:.0f} of 255 in "
                f"places. {_REMEDY}"
            )


_REMEDY = (
    "Build the pyramid anew, or keep the full resolution alone: `sdata.images[name] = "
    "spatialdata.models.Image2DModel.parse(pixels, dims=('c', 'y', 'x'), scale_factors=[4, 4], transformations=…)`."
)


def check_sizes(sizes: Any, name: str) -> None:
    """Refuse scales, given as (height, width), of different proportions, or that do not become smaller."""
    values = np.array([tuple(size) for size in sizes], dtype=float)
    for number, (size, before) in enumerate(zip(values[1:], values[:-1], strict=True), start=1):
        factors = values[0] / size
        # The rounded side of a scale may be off by a pixel or two, which matters in tiny ones only.
        slack = factors.min() * (_SIZE_TOLERANCE + _SIZE_PX / size.min())
        if abs(factors[0] - factors[1]) > slack or not (size < before).all():
            raise Img2GeneError(
                f"{name}: its scale {number} has {size[0]:.0f} × {size[1]:.0f} px, after {before[0]:.0f} × {before[1]:.0f} px and a full "
                f"resolution of {values[0][0]:.0f} × {values[0][1]:.0f}: scales must have the same proportions and become "
                f"smaller. {_REMEDY}"
            )


def _places(image: RGBImage) -> np.ndarray:
    """Choose centres of tiles, float (n, 2), as shares of height and width, from dark to bright in the coarsest scale."""
    step = max(1, min(image.height, image.width) // (4 * _CELLS))
    grey = image.thumbnail(step).mean(axis=2)
    n_rows, n_columns = (min(_CELLS, length) for length in grey.shape)
    rows, columns = (
        np.linspace(0, length, n + 1).astype(int) for length, n in zip(grey.shape, (n_rows, n_columns), strict=True)
    )
    means = np.add.reduceat(np.add.reduceat(grey, rows[:-1], axis=0), columns[:-1], axis=1)
    order = np.argsort(means / np.outer(np.diff(rows), np.diff(columns)), axis=None, kind="stable")
    # Half of the places are the darkest, as tissue may cover little of a slide.
    chosen = np.unique(
        np.concatenate([order[: _N_TILES // 2], order[np.linspace(0, order.size - 1, _N_TILES // 2).astype(int)]])
    )
    return (np.column_stack(np.unravel_index(chosen, (n_rows, n_columns))) + 0.5) / (n_rows, n_columns)


def _difference(fine: RGBImage, coarse: RGBImage, places: np.ndarray) -> float:
    """Largest difference of the mean colour of a tile between two scales; tiles that cannot be read are left out."""
    share = _TILE_PX / min(coarse.height, coarse.width)
    means, lost = [], np.zeros(len(places), dtype=bool)
    for image in (fine, coarse):
        size = np.array([image.height, image.width])
        side = int(np.clip(round(share * size.min()), 1, size.min()))
        corners = np.clip(np.rint(places * size - side / 2), 0, size - side).astype(np.int64)
        means.append(image.tiles(corners, side).mean(axis=(1, 2)))
        lost |= image.lost(np.concatenate([corners, corners + side], axis=1))
    return float(np.abs(means[0] - means[1])[~lost].max(initial=0))
