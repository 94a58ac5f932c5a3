"""How far a section may lie from the training sections until its prediction is left to the ridge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from img2gene.models.centring import section_means
from img2gene.models.data import TrainingData, with_prefix
from img2gene.models.networks.batches import SectionSpots
from img2gene.models.networks.section_shift import shift
from img2gene.models.ridge import Ridge
from img2gene.models.stored import StoredConfig
from img2gene.models.uncertainty.inner_folds import InnerFolds

_NEVER = 1e6


@dataclass(frozen=True)
class ValidatedRange:
    """Distances from the training sections at which the networks were validated; beyond them the ridge predicts.

    The share of the ridge is 0 up to the largest distance between a fold and the rest of the training data, and 1 from twice
    that distance.

    Attributes
    ----------
    ridge
        The ridge that predicts far sections. Models that were stored up to version 0.1 have one with larger penalties here.
    means
        float32 (n_sections, width): mean features of the training sections.
    scale
        float32 (width,): SD of features within sections.
    near, far
        Distances (:func:`~img2gene.models.networks.section_shift.shift`) up to which the networks predict, and from which on
        the ridge predicts alone.
    smoothing
        Share of the mean over the nearest spots in the ridge's prediction: 0, but in stored models of version 0.1.
    """

    ridge: Ridge
    means: np.ndarray
    scale: np.ndarray
    near: float
    far: float
    smoothing: float = 0.0

    @classmethod
    def of(cls, data: TrainingData, folds: InnerFolds, ridge: Ridge, *, always: bool) -> ValidatedRange:
        """Find the range of training data; ``always`` leaves no section to the ridge."""
        scale, units = ridge.arrays["scale"], folds.centred_in(data.sections)
        distances = [0.0]
        for fitted, held in folds.splits():
            references = section_means(data.features[fitted], units[fitted])[1]
            distances += [shift(mean, references, scale) for mean in section_means(data.features[held], units[held])[1]]
        near = float(np.nanmax(distances))
        if always or near == 0:
            near = _NEVER
        means = section_means(data.features, data.sections)[1]
        return cls(ridge, means.astype(np.float32), scale, near, 2 * near)

    def __call__(self, features: np.ndarray, sections: np.ndarray) -> dict[str, tuple[float, float]]:
        """Distance of each section from the nearest training section, and the share of the ridge in its prediction."""
        names, means = section_means(features, sections)
        distances = [shift(mean, self.means, self.scale) for mean in means]
        # Where no feature varies there is no distance.
        shares = np.nan_to_num(np.clip((np.array(distances) - self.near) / (self.far - self.near), 0, 1))
        return dict(zip(names.tolist(), zip(distances, shares.tolist(), strict=True), strict=True))

    def deviations(self, features: np.ndarray, section: SectionSpots) -> np.ndarray:
        """Labels of one section by the ridge, relative to the mean, float32 (n_spots, n_genes)."""
        values = self.ridge.deviations(features[section.rows], np.full(len(section.rows), section.name))
        if self.smoothing:
            values = (1 - self.smoothing) * values + self.smoothing * values[section.neighbors].mean(axis=1)
        return values

    def state(self, ridge: Ridge) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Facts (JSON) and arrays; the ridge is stored only if it is not the given one, and then its coefficients."""
        config = {"shift": {"near": self.near, "far": self.far}, "smoothing": self.smoothing}
        arrays = {"shift.means": self.means, "shift.scale": self.scale}
        if self.ridge is not ridge:
            arrays["stiff.coefficients"] = self.ridge.arrays["coefficients"]
        return config, arrays

    @classmethod
    def array_shapes(cls, config: Mapping[str, Any]) -> dict[str, tuple[str | int, ...]]:
        """Shapes of the arrays."""
        shapes: dict[str, tuple[str | int, ...]] = {"shift.means": ("sections", "width"), "shift.scale": ("width",)}
        # Only models of version 0.1 smooth, and only they have a ridge of its own here.
        return shapes | ({"stiff.coefficients": Ridge.shapes["coefficients"]} if config["smoothing"] else {})

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray], ridge: Ridge) -> ValidatedRange:
        """Restore it for a model with this ridge."""
        check = StoredConfig()
        check.positive(arrays, ["shift.scale"])
        if not len(arrays["shift.means"]):
            check.messages.append("Array `shift.means` holds no sections.")
        check.raise_all()
        if "stiff.coefficients" in arrays:
            facts, weights = ridge.state()
            ridge = Ridge.from_state(facts, weights | {"coefficients": arrays["stiff.coefficients"]})
        distance = with_prefix(arrays, "shift")
        return cls(ridge, distance["means"], distance["scale"], **config["shift"], smoothing=config["smoothing"])
