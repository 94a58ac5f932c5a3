"""Find the tissue in a thumbnail of an H&E image."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

logger = logging.getLogger(__name__)

_MIN_SATURATION, _MAX_SATURATION = 0.04, 0.15
_LEAST_OF_CHANCE = 0.5
# On twelve public sections the right places have more tissue than all others, by .04 at least.
_DOUBTFUL_GAIN, _ENOUGH_SPOTS, _MOST_TISSUE = 0.1, 20, 0.7
_CORNER, _SMALLEST_PART, _MOST_PARTS, _BLACK = 0.02, 0.0005, 10_000, 20


def tissue_mask(thumbnail: np.ndarray) -> np.ndarray:
    """Find tissue, which is more saturated than the grey glass, by Otsu's threshold kept within 0.04–0.15.

    Parameters
    ----------
    thumbnail
        uint8 (height, width, 3).

    Returns
    -------
    bool (height, width); holes and specks under 20 pixels are closed and removed.
    """
    from skimage.color import rgb2hsv
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import remove_small_holes, remove_small_objects

    saturation = gaussian(rgb2hsv(thumbnail)[..., 1], sigma=1)
    threshold = np.clip(threshold_otsu(saturation), _MIN_SATURATION, _MAX_SATURATION)
    mask = saturation > threshold
    return remove_small_holes(remove_small_objects(mask, max_size=20), max_size=20)


def box_fractions(mask: np.ndarray, boxes: np.ndarray, step: float) -> np.ndarray:
    """Compute the share of each box that ``mask``, with one value per ``step`` pixels, covers.

    ``boxes`` are (n, 4): y0, x0, y1, x1 in image pixels.
    """
    # Cumulative sums give the tissue in a box from its four corners, whatever its size.
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    total[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)
    edges = np.rint(np.asarray(boxes) / step).astype(int)
    y0, x0 = edges[:, 0], edges[:, 1]
    # A box that is smaller than a step still covers one value.
    y1, x1 = np.maximum(edges[:, 2], y0 + 1), np.maximum(edges[:, 3], x0 + 1)
    area = (y1 - y0) * (x1 - x0)
    # The area is computed before clipping, so the part of a box outside the image counts as no tissue.
    y0, y1 = np.clip([y0, y1], 0, mask.shape[0])
    x0, x1 = np.clip([x0, x1], 0, mask.shape[1])
    return (total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]) / area


def warn_of_misplaced_spots(region: str, image_key: str, boxes: np.ndarray, mask: np.ndarray, step: float) -> None:
    """Warn if the spots of a region lie on the glass of their image, or would lie on more tissue with swapped or mirrored axes.

    ``boxes`` and ``mask``, the tissue of the whole image, are as in :func:`box_fractions`.
    """
    if not len(boxes):
        return
    covered, mean = float(mask.mean()), float(box_fractions(mask, boxes, step).mean())
    # Spots at random places would have the share of the whole image. Fat and pale tissue are missed in part.
    if mean < _LEAST_OF_CHANCE * covered:
        logger.warning(
            "patches of region `%s` show %.0f %% tissue, and image `%s` as a whole %.0f %%: spots seem to lie beside the tissue. "
            "Check that the image shows this section, that positions are (column, row), and the transformation or alignment; "
            "draw them with `img2gene.pl.patches(sdata)`",
            region,
            100 * mean,
            image_key,
            100 * covered,
        )
        return
    if len(boxes) < _ENOUGH_SPOTS:
        return
    # A part of a section, or a core of several, can lie on other tissue in any direction.
    shares = {
        name: float(box_fractions(mask, other, step).mean())
        for name, other in _other_axes(boxes, mask, step)
        if _spanned(mask, other, step) > _MOST_TISSUE
    }
    best = max(shares, key=lambda name: shares[name], default="")
    if best and shares[best] > mean + _DOUBTFUL_GAIN:
        logger.warning(
            "patches of region `%s` show %.0f %% tissue; with %s it would be %.0f %%. Check that positions are (column, row) "
            "from the top left pixel of image `%s`, and the alignment; draw them with `img2gene.pl.patches(sdata)`",
            region,
            100 * mean,
            best,
            100 * shares[best],
            image_key,
        )


def _spanned(mask: np.ndarray, boxes: np.ndarray, step: float) -> float:
    """Compute the share of all tissue that lies between the outermost boxes."""
    extent = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    y0, x0, y1, x1 = np.maximum(np.rint(extent / step), 0).astype(int)
    return float(mask[y0:y1, x0:x1].sum() / max(mask.sum(), 1))


def _other_axes(boxes: np.ndarray, mask: np.ndarray, step: float) -> Iterator[tuple[str, np.ndarray]]:
    """Yield boxes where they would lie if axes had been swapped or counted from the other side."""
    height, width = np.array(mask.shape) * step
    y0, x0, y1, x1 = boxes.T
    yield "x and y swapped", np.stack([x0, y0, x1, y1], axis=1)
    yield "y counted from below", np.stack([height - y1, x0, height - y0, x1], axis=1)
    yield "x counted from the right", np.stack([y0, width - x1, y1, width - x0], axis=1)
    yield "the section turned by 180°", np.stack([height - y1, width - x1, height - y0, width - x0], axis=1)


def slide_tissue(thumbnail: np.ndarray) -> tuple[np.ndarray, str]:
    """Find tissue in a thumbnail of a whole slide by squidpy's detector, else by :func:`tissue_mask`.

    squidpy divides the picture into dark and bright, so :func:`tissue_mask` decides where there is no background: where it
    finds tissue in all four corners, and where squidpy fails or finds none.

    Parameters
    ----------
    thumbnail
        uint8 (height, width, 3).

    Returns
    -------
    bool (height, width), and the name of the detector.
    """
    saturated = tissue_mask(thumbnail)
    if not saturated.any():
        # squidpy finds two kinds of pixels even in a white picture.
        return saturated, "saturation (nothing is stained)"
    if _fills_corners(saturated):
        return saturated, "saturation (the corners show tissue)"
    try:
        mask = _squidpy_tissue(thumbnail)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - its module is experimental, and changes from release to release
        return saturated, f"saturation (squidpy: {type(error).__name__}: {str(error)[:100]})"
    return (mask, "squidpy") if mask.any() else (saturated, "saturation (squidpy found none)")


def _fills_corners(mask: np.ndarray) -> bool:
    """Check whether all four corners are tissue."""
    height, width = (max(1, round(_CORNER * length)) for length in mask.shape)
    corners = (mask[rows, columns] for rows in _ends(height) for columns in _ends(width))
    return all(corner.mean() > 0.5 for corner in corners)


def _ends(length: int) -> tuple[slice, slice]:
    return slice(None, length), slice(-length, None)


def _squidpy_tissue(thumbnail: np.ndarray) -> np.ndarray:
    """Find tissue by squidpy's detector."""
    import logging
    import warnings

    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel

    picture = Image2DModel.parse(np.moveaxis(thumbnail, -1, 0), dims=("c", "y", "x"), c_coords=["r", "g", "b"])
    # Its messages for each step say nothing that the caller's message does not.
    progress = logging.getLogger("spatialdata._logging")
    level, progress.level = progress.level, logging.WARNING
    try:
        with warnings.catch_warnings():
            # It calls other packages by names that are about to go.
            warnings.simplefilter("ignore")
            from squidpy.experimental.im import detect_tissue

            labels = detect_tissue(
                SpatialData(images={"picture": picture}),
                "picture",
                channel_format="rgb",
                # Without corners it takes what is bright for background, as in every stained section. With corners it compares
                # their mean with the median of the picture, which are equal on slides that are mostly background.
                corners_are_background=False,
                # Biopsies may cover little of a slide, and cores of a microarray are many.
                min_specimen_area_frac=_SMALLEST_PART,
                n_samples=_MOST_PARTS,
                inplace=False,
            )
    finally:
        progress.level = level
    # Places that were not scanned may be black.
    return (np.asarray(labels) > 0) & (thumbnail.max(axis=-1) > _BLACK)
