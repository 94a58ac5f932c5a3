"""Find the tissue in a thumbnail of an H&E image."""

from __future__ import annotations

import numpy as np

_MIN_SATURATION, _MAX_SATURATION = 0.04, 0.15


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
