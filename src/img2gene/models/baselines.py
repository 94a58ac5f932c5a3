"""Models that every other one has to beat."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from img2gene.models.base import TrainingData


class TrainingMean:
    """Predicts each gene's mean over the training spots, whatever the image shows."""

    name: ClassVar[str] = "mean"
    shapes: ClassVar[dict[str, tuple[str, ...]]] = {"mean": ("genes",)}

    def __init__(self) -> None:
        self.mean = np.empty(0, dtype=np.float32)

    def fit(self, data: TrainingData, *, seed: int) -> None:
        """Average the labels."""
        self.mean = data.labels.mean(axis=0, dtype=np.float64).astype(np.float32)

    def predict(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """The same row for every spot."""
        return np.tile(self.mean, (len(features), 1))

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The means."""
        return {}, {"mean": self.mean}

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> TrainingMean:
        """Restore the means."""
        model = cls()
        model.mean = arrays["mean"]
        return model

    def summary(self) -> dict[str, Any]:
        """Nothing was chosen."""
        return {}
