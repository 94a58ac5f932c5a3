"""Copies of patches in other stains: more or less haematoxylin, more or less eosin."""

from __future__ import annotations

from functools import cache

import numpy as np

from img2gene.encoders.base import resize

# Factor of the amount of stain, which laboratories and scanners easily differ by.
FACTOR = 1.2
STAINS = ("haematoxylin", "eosin")


def restained(pixels: np.ndarray, factors: np.ndarray) -> list[np.ndarray]:
    """Patches with another amount of each stain in turn.

    The amounts of stain in each pixel come from colour deconvolution. What they do not explain stays as it is.

    Parameters
    ----------
    pixels
        uint8 (n, height, width, 3) RGB.
    factors
        (n,): what the amount of a stain in each patch is multiplied with.

    Returns
    -------
    Two arrays like ``pixels``: with another amount of haematoxylin, and of eosin.

    References
    ----------
    Ruifrok & Johnston, "Quantification of histochemical staining by color deconvolution", 2001 (scikit-image).

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.encoders.restain import restained
    >>> white, purple = [255, 255, 255], [120, 80, 150]
    >>> pixels = np.array([[[white, purple]]], dtype=np.uint8)
    >>> more, _ = restained(pixels, np.array([1.2]))
    >>> more[0, 0, 0].tolist(), bool((more[0, 0, 1] < pixels[0, 0, 1]).all())
    ([255, 255, 255], True)
    """
    # 0 has no logarithm; half a grey level is black as well.
    density = -np.log(np.maximum(pixels, 0.5) / np.float32(255))
    to_stains, from_stains = _matrices()
    copies = []
    for number in range(len(STAINS)):
        # Negative amounts are noise of the deconvolution.
        amount = np.maximum(density @ to_stains[:, number], 0)[..., None] * from_stains[number]
        change = (np.asarray(factors, dtype=np.float32) - 1)[:, None, None, None]
        changed = 255 * np.exp(-(density + change * amount))
        copies.append(changed.round().clip(0, 255).astype(np.uint8))
    return copies


def stain_views(fields: list[np.ndarray], side: int) -> list[list[np.ndarray]]:
    """Patches as they are, and with 1.2 times as much and as little of each stain.

    ``fields`` has uint8 (n, h, h, 3) for each field of view; each of the five views is a list like it, of at most ``side`` pixels.
    """
    fields = [reduced(pixels, side) for pixels in fields]
    views = [fields]
    for factor in (FACTOR, 1 / FACTOR):
        copies = [restained(pixels, np.full(len(pixels), factor)) for pixels in fields]
        views += [[copy[number] for copy in copies] for number in range(len(STAINS))]
    return views


def reduced(pixels: np.ndarray, side: int) -> np.ndarray:
    """Reduce patches, uint8 (n, h, h, 3), to ``side`` pixels as an encoder would: restaining larger ones takes longer."""
    return pixels if pixels.shape[1] <= side else resize(pixels, side).permute(0, 2, 3, 1).numpy()


@cache
def _matrices() -> tuple[np.ndarray, np.ndarray]:
    """Optical density to amounts of stain, and back, float32 (3, 3) each."""
    from skimage.color import hed_from_rgb, rgb_from_hed

    return hed_from_rgb.astype(np.float32), rgb_from_hed.astype(np.float32)
