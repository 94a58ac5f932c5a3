"""Colour and texture statistics: an encoder without weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from img2gene.encoders.base import resize
from img2gene.encoders.spec import EncoderSpec
from img2gene.encoders.tokens import cells

if TYPE_CHECKING:
    from img2gene.encoders.base import Encoder

_PERCENTILES = (10, 50, 90)
_DISTANCES = (1, 4)
# With 256 grey levels most of the 65,536 pairs would be absent from a small patch.
_LEVELS = 16
_PROPERTIES = ("contrast", "homogeneity", "energy", "correlation")
WIDTH = 3 * (2 + len(_PERCENTILES)) * 2 + len(_PROPERTIES) * len(_DISTANCES) + 10 + 2


class ColorTextureEncoder:
    """Computes colour and texture statistics of each patch.

    The features are mean, SD and percentiles of RGB and of haematoxylin–eosin–DAB densities, grey-level co-occurrence
    (contrast, homogeneity, energy and correlation at 1 and 4 pixels), a histogram of local binary patterns, and mean
    and SD of edge strength.

    References
    ----------
    Ruifrok and Johnston 2001 (stain separation); Haralick et al. 1973 (co-occurrence); Ojala et al. 2002 (binary
    patterns).
    """

    width = WIDTH

    def __call__(self, patches: np.ndarray, side: int | None = None) -> np.ndarray:
        """Compute features float32 (n, width) of uint8 (n, h, h, 3) patches, resized to ``side`` pixels first."""
        return _each(_resized(patches, side))

    def tokens(self, patches: np.ndarray, side: int | None, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """Compute features of each patch, and of each of its cells by itself, float32 (n, grid², width)."""
        resized = _resized(patches, side)
        spans = cells(resized.shape[1], grid)
        tokens = [_each([patch[y0:y1, x0:x1] for y0, y1 in spans for x0, x1 in spans]) for patch in resized]
        return _each(resized), np.array(tokens, dtype=np.float32).reshape(-1, grid**2, WIDTH)


def _resized(patches: np.ndarray, side: int | None) -> np.ndarray:
    return resize(patches, side or patches.shape[1]).permute(0, 2, 3, 1).numpy()


def _each(patches: Iterable[np.ndarray]) -> np.ndarray:
    return np.array([_features(patch) for patch in patches], dtype=np.float32).reshape(-1, WIDTH)


def _features(patch: np.ndarray) -> np.ndarray:
    from skimage.color import rgb2gray, rgb2hed
    from skimage.filters import sobel

    rgb = patch / 255.0
    gray = rgb2gray(rgb)
    edges = sobel(gray)
    strength = np.array([edges.mean(), edges.std()])
    return np.concatenate([_colour(rgb), _colour(rgb2hed(rgb)), _cooccurrence(gray), _binary_patterns(gray), strength])


def _colour(channels: np.ndarray) -> np.ndarray:
    flat = channels.reshape(-1, 3)
    return np.concatenate([flat.mean(axis=0), flat.std(axis=0), np.percentile(flat, _PERCENTILES, axis=0).ravel()])


def _cooccurrence(gray: np.ndarray) -> np.ndarray:
    from skimage.feature import graycomatrix, graycoprops

    levels = np.minimum((gray * _LEVELS).astype(np.uint8), _LEVELS - 1)
    matrix = graycomatrix(levels, _DISTANCES, [0, np.pi / 2], levels=_LEVELS, symmetric=True, normed=True)
    return np.concatenate([graycoprops(matrix, name).mean(axis=1) for name in _PROPERTIES])


def _binary_patterns(gray: np.ndarray) -> np.ndarray:
    from skimage.feature import local_binary_pattern

    # Ten codes: nine rotation-invariant uniform patterns of eight neighbours, and one for all others.
    codes = local_binary_pattern(np.rint(gray * 255).astype(np.uint8), P=8, R=1, method="uniform").astype(int)
    return np.bincount(codes.ravel(), minlength=10) / codes.size


def _build(spec: EncoderSpec, *, device: str | None, amp: bool | str | None, backend: str) -> Encoder:
    return ColorTextureEncoder()


SPECS = (
    EncoderSpec(
        name="color-texture",
        width=WIDTH,
        # The statistics change with the resolution, so every patch is resized to one side.
        input_px=96,
        any_size=False,
        mpp=None,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        licence="BSD-3-Clause",
        gated=False,
        source="img2gene",
        revision="1",
        build=_build,
        token_width=WIDTH,
    ),
)
