"""What would further candidates add to the stack of the default? Each alone, and mixed with the ridge.

``python benchmarks/candidates.py`` fits each candidate to every split of two cohorts, with a penalty, k or width that is chosen
inside the training sections, and mixes it with ``ridge`` by the weights that the default uses: non-negative, chosen on
held-out folds of the training sections. Seeds matter to none of them but the kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ablation import Split, fit, repeat, score
from spatialdata import SpatialData

import img2gene as ig
from img2gene.models import TrainingData
from img2gene.models.centring import centre
from img2gene.models.components import Components
from img2gene.models.depth import depth_weights
from img2gene.models.linear import LinearPredictor
from img2gene.models.networks.stacking import stack_weights
from img2gene.models.ridge import Ridge
from img2gene.models.uncertainty.inner_folds import InnerFolds, inner_folds

# Of the default's networks; candidates are mixed by the same rule.
_SHRINKAGE = 0.1
_KERNEL_COMPONENTS, _KERNEL_FEATURES = 64, 3000


class Candidate:
    """A model of features and sections that predicts labels relative to the mean of its training spots.

    Parameters
    ----------
    create
        Makes the predictor.
    embedded
        Makes new features of the training data, and the function that makes those of other spots; None to keep them.
    """

    def __init__(self, create: Callable[[], Any], embedded: Callable[..., Any] | None = None) -> None:
        self.create, self.embedded = create, embedded

    def __call__(self, data: TrainingData, seed: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """Fit; return the function that predicts."""
        transform = self.embedded(data, seed) if self.embedded else lambda features, sections: features
        predictor = self.create()
        predictor.fit(dataclasses.replace(data, features=transform(data.features, data.sections)), seed=seed)
        mean = predictor.arrays["label_mean"] if isinstance(predictor, LinearPredictor) else data.labels.mean(axis=0)
        return lambda features, sections: predictor.predict(transform(features, sections), sections) - mean

    def held_out(self, data: TrainingData, folds: InnerFolds, seed: int) -> np.ndarray:
        """Predict each fold by a fit without it, which chooses its parameters without it, too."""
        predicted, units = np.empty_like(data.labels), folds.centred_in(data.sections)
        for fitted, held in folds.splits():
            predicted[held] = self(data.take(fitted), seed)(data.features[held], units[held])
        return predicted


def kernel(data: TrainingData, seed: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Random Fourier features of a Gaussian kernel, as wide as the median distance of two training spots.

    A ridge on them is a kernel ridge: Rahimi & Recht, NeurIPS 2007.
    """
    components = Components.fit(data.features, data.sections, _KERNEL_COMPONENTS, center="section", seed=seed)
    points, rng = components(data.features, data.sections), np.random.default_rng(seed)
    some, others = rng.integers(0, len(points), (2, 4000))
    width = np.median(np.linalg.norm(points[some] - points[others], axis=1))
    frequencies = rng.normal(size=(points.shape[1], _KERNEL_FEATURES)) / width
    phases = rng.uniform(0, 2 * np.pi, _KERNEL_FEATURES)

    def transform(features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        return np.cos(components(features, sections) @ frequencies + phases).astype(np.float32)

    return transform


def stiffer(factor: float) -> Callable[[], Ridge]:
    """Make a ridge whose penalties are those that ``ridge`` chooses, times a factor."""

    class Stiffer(Ridge):
        def _choose_penalties(self, inputs: Any, folds: InnerFolds, n_bins: int) -> list[float]:
            chosen = super()._choose_penalties(inputs, folds, n_bins)
            return [penalty * factor for penalty in chosen]

    return Stiffer


CANDIDATES = {
    "ridge": Candidate(Ridge),
    "ridge-plain": Candidate(lambda: ig.models.create("ridge-plain")),
    "ridge, penalties × 4": Candidate(stiffer(4)),
    "ridge, penalties × 16": Candidate(stiffer(16)),
    "ridge, 12 responses": Candidate(lambda: Ridge(n_responses=12)),
    "kernel ridge": Candidate(Ridge, kernel),
    "k-NN": Candidate(lambda: ig.models.create("knn")),
}


class Stacked:
    """A candidate and the ridge, mixed by weights of inner folds; ``alone`` leaves the ridge out."""

    name: ClassVar[str] = "stacked"
    shapes: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __init__(self, candidate: str = "ridge", alone: bool = True) -> None:
        self.candidate, self.alone = candidate, alone

    def fit(self, data: TrainingData, *, seed: int) -> None:
        """Choose the weights, and fit to everything."""
        data = data.in_canonical_order()
        self.label_mean = data.labels.mean(axis=0)
        names = [self.candidate] if self.alone else ["ridge", self.candidate]
        self.weights = np.ones(1)
        if not self.alone:
            folds = inner_folds(data, seed=seed)
            units = folds.centred_in(data.sections)
            held = [centre(CANDIDATES[name].held_out(data, folds, seed), units) for name in names]
            weights = depth_weights(data.library, data.sections)
            self.weights = stack_weights(held, centre(data.labels, units), weights, shrinkage=_SHRINKAGE)
        self.parts = [CANDIDATES[name](data, seed) for name in names]

    def predict(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """Labels float32 (n_spots, n_genes)."""
        predicted = self.label_mean + sum(
            weight * part(features, sections) for weight, part in zip(self.weights, self.parts, strict=True)
        )
        return predicted.astype(np.float32)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Facts by which two models are told apart; the model is not stored."""
        return self.summary(), {}

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Stacked:
        """Raise: these models are only measured."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """Name the candidate, and the weights."""
        return {"candidate": self.candidate, "alone": self.alone, "weights": self.weights.tolist()}


VARIANTS: dict[str, dict[str, object]] = {
    **{name: {"model": "stacked", "candidate": name} for name in CANDIDATES},
    **{f"ridge + {name}": {"model": "stacked", "candidate": name, "alone": False} for name in [*CANDIDATES][1:]},
}


def run(sdata: SpatialData, split: Split, variant: str, seed: int, cohort: str) -> list[dict[str, object]]:
    """Scores of one variant on one split."""
    model, seconds = fit(sdata, split, seed, VARIANTS[variant])
    facts = {"variant": variant, "protocol": split.protocol, "test": split.test[0], "seed": seed}
    return [{**facts, **score(sdata, model, split), "seconds": seconds}]


if __name__ == "__main__":
    ig.models.register(Stacked)
    repeat(__doc__, VARIANTS, run, Path(__file__).parent / "results" / "candidates.csv")
