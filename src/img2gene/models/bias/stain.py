"""Features in which a change of stain moves little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.models.centring import centre

# A change of 20 % in a stain counts as much as this many such changes (benchmarks/bias.md).
STRENGTH = 3.0
_MOST_DIRECTIONS = 128
_BLOCK_VALUES = 2**24


@dataclass(frozen=True)
class StainShrinkage:
    """Shrinks the directions along which features move when a patch is restained.

    With features in units of their SD within sections, and r_j the root mean square of the changes along direction j, a
    direction is multiplied by 1 / √(1 + (3 r_j)²). A direction that only stain moves all but vanishes, and one that stain
    hardly moves stays. For a linear model this is a penalty on how far restaining moves its predictions.

    Attributes
    ----------
    directions
        float32 (k, width), orthonormal.
    factors
        float32 (k,), between 0 and 1.
    scale
        float32 (width,): SD of each feature within the training sections.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.bias.stain import StainShrinkage
    >>> features = np.random.default_rng(0).normal(size=(50, 3)).astype("f4")
    >>> only_first = np.array([[5.0, 0, 0], [-5.0, 0, 0]], dtype="f4")
    >>> shrinkage = StainShrinkage.fit(features, np.repeat("S1", 50), only_first)
    >>> (shrinkage(features) / features)[0].round(1) + 0.0
    array([0.1, 1. , 1. ], dtype=float32)
    """

    directions: np.ndarray
    factors: np.ndarray
    scale: np.ndarray

    shapes: ClassVar[dict[str, tuple[str | int, ...]]] = {
        "directions": ("stain directions", "width"),
        "factors": ("stain directions",),
        "scale": ("width",),
    }

    def __post_init__(self) -> None:
        """Refuse numbers that no shrinkage can have."""
        if not (((self.factors >= 0) & (self.factors <= 1)).all() and (self.scale > 0).all()):
            raise Img2GeneError("Factors of the stain shrinkage must lie between 0 and 1, and its scales above 0.")

    @classmethod
    def fit(cls, features: np.ndarray, sections: np.ndarray, changes: np.ndarray) -> StainShrinkage:
        """Find the directions.

        Parameters
        ----------
        features, sections
            float32 (n, width) features of the training spots, and the section of each.
        changes
            float32 (m, width): features of restained patches less those of the patches themselves.
        """
        centred = centre(features, sections, None)
        scale = centred.std(axis=0, dtype=np.float64)
        # A feature without variance moves no prediction.
        scale[scale <= 1e-6 * max(scale.max(initial=0), 1e-12)] = np.inf
        _, moved, directions = np.linalg.svd(changes / scale, full_matrices=False)
        moved, directions = moved[:_MOST_DIRECTIONS] / np.sqrt(len(changes)), directions[:_MOST_DIRECTIONS]
        scale[np.isinf(scale)] = 1
        factors = 1 / np.sqrt(1 + np.square(STRENGTH * moved))
        return cls(directions.astype(np.float32), factors.astype(np.float32), scale.astype(np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Shrink features, float32 (n, width), in blocks."""
        out = np.empty(features.shape, dtype=np.float32)
        down, up = self.directions.T / self.scale[:, None], (1 - self.factors[:, None]) * self.directions * self.scale
        step = max(_BLOCK_VALUES // max(features.shape[1], 1), 1)
        for start in range(0, len(features), step):
            part = features[start : start + step]
            out[start : start + step] = part - (part @ down) @ up
        return out

    def effect(self, changes: np.ndarray) -> dict[str, Any]:
        """How far restaining moves the features, root mean square in SD over features, before and after."""
        before = changes / self.scale
        along = before @ self.directions.T
        after = before - (along * (1 - self.factors)) @ self.directions
        rms = [float(np.sqrt(np.square(values).mean())) for values in (before, after)]
        return {"n_copies": len(changes), "moved_before": round(rms[0], 4), "moved_after": round(rms[1], 4)}
