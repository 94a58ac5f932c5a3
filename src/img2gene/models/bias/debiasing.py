"""What was done against bias in a trained model, and its stored form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from img2gene.models.bias.level import SectionLevel
from img2gene.models.bias.stain import StainShrinkage
from img2gene.models.centring import section_means
from img2gene.models.data import RowSource, TrainingData, with_prefix
from img2gene.models.row_blocks import Block, Rows


@dataclass(frozen=True)
class Debiasing:
    """Parts that change what a predictor sees, and what it predicts.

    Attributes
    ----------
    stain
        Applied to the features before the predictor sees them, in training and prediction.
    level
        Added to the predictions.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.bias.debiasing import Debiasing
    >>> Debiasing().features(np.ones((2, 3), dtype="f4")).sum()
    np.float32(6.0)
    """

    stain: StainShrinkage | None = None
    level: SectionLevel | None = None

    def features(self, features: np.ndarray | RowSource) -> Any:
        """What the predictor sees of features (n, width); those in a store are read when they are needed."""
        if self.stain is None:
            return features
        return _Shrunken(features, self.stain) if isinstance(features, RowSource) else self.stain(features)

    def seen(self, data: TrainingData) -> TrainingData:
        """Training data as the predictor sees them; scaling the features anew would undo their shrinkage."""
        if self.stain is None:
            return data
        return replace(data, features=self.stain(data.features), feature_scale=self.stain.scale)

    def levelled(self, predict: Rows, features: Any, sections: np.ndarray) -> Rows:
        """A function that predicts rows with the levels of their sections; ``features`` are those that the predictor saw."""
        if self.level is None:
            return predict
        names, means = section_means(features, sections)
        number, levels = np.searchsorted(names, sections), self.level.levels(means)

        def with_levels(rows: slice) -> Block:
            values, spread = predict(rows)
            # A predictor may return an array that it keeps, so nothing is added in place.
            return values + levels[number[rows]], spread

        return with_levels

    def add_levels(self, values: np.ndarray, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """Add the levels of sections to predictions of all of their spots."""
        return self.levelled(lambda rows: (values[rows], None), features, sections)(slice(0, len(values)))[0]

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """An entry for each part (JSON), and the arrays."""
        facts: dict[str, Any] = {}
        arrays: dict[str, np.ndarray] = {}
        for name, part in (("stain", self.stain), ("level", self.level)):
            if part is not None:
                facts[name] = {}
                arrays |= {f"{name}.{key}": getattr(part, key) for key in part.shapes}
        return facts, arrays

    @staticmethod
    def array_shapes(facts: dict[str, Any]) -> dict[str, tuple[str | int, ...]]:
        """Shapes of the arrays of the parts that ``facts`` names."""
        kinds = {name: kind for name, kind in _KINDS.items() if name in facts}
        return {f"{name}.{key}": axes for name, kind in kinds.items() for key, axes in kind.shapes.items()}

    @classmethod
    def from_state(cls, facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> Debiasing:
        """Restore it."""
        stain = StainShrinkage(**with_prefix(arrays, "stain")) if "stain" in facts else None
        return cls(stain, SectionLevel(**with_prefix(arrays, "level")) if "level" in facts else None)


class _Shrunken(RowSource):
    """Features in a store, shrunken for stain as they are read."""

    def __init__(self, source: RowSource, stain: StainShrinkage) -> None:
        self.source, self.stain, self.shape, self.dtype = source, stain, source.shape, np.dtype(np.float32)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.stain(np.asarray(self.source[rows]))


_KINDS: dict[str, type[StainShrinkage] | type[SectionLevel]] = {"stain": StainShrinkage, "level": SectionLevel}
