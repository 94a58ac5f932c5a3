"""The level of a section: how its mean expression differs from that of the training sections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.models.centring import section_means
from img2gene.models.data import TrainingData
from img2gene.models.linear import one_standard_error
from img2gene.models.plain_ridge import PlainRidge
from img2gene.models.uncertainty.inner_folds import InnerFolds, inner_folds

# Fewer units do not show how levels differ between them.
FEWEST_UNITS = 3
# Shares of the level that the ridge reads off the mean features of a section.
_SHARES = tuple(float(share) for share in np.linspace(1, 0, 11).round(1))


@dataclass(frozen=True)
class SectionLevel:
    """Predicts the level of a section, which a model that centres by section leaves out, from its mean features.

    level = κ (x̄_section − x̄_train) B

    B are the coefficients of a slide-centred ridge. κ between 0 and 1 is chosen by leaving groups out, and is 0 where mean
    features of new groups do not show their level. A level never lies beyond those of the training sections.

    Attributes
    ----------
    feature_mean, scale
        float32 (width,): mean training features, and what features are divided by.
    components, coefficients
        float32 (k, width) and (k, n_genes): B as a product.
    lowest, highest
        float32 (n_genes,): levels of the training sections.
    share
        float32 (1,): κ.
    """

    feature_mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    coefficients: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    share: np.ndarray

    shapes: ClassVar[dict[str, tuple[str | int, ...]]] = {
        "feature_mean": ("width",),
        "scale": ("width",),
        "components": ("level components", "width"),
        "coefficients": ("level components", "genes"),
        "lowest": ("genes",),
        "highest": ("genes",),
        "share": (1,),
    }

    def __post_init__(self) -> None:
        """Refuse numbers that no level can have."""
        if not ((self.scale > 0).all() and (self.share >= 0).all() and (self.share <= 1).all()):
            raise Img2GeneError("Scales of the section level must be above 0, and its share between 0 and 1.")

    @classmethod
    def fit(
        cls, data: TrainingData, *, seed: int, spot_weights: Callable[[TrainingData], np.ndarray] | None = None
    ) -> tuple[SectionLevel, dict[str, Any]]:
        """Fit the ridge, and choose κ on groups that are left out; also return what that gave.

        Levels are relative to the means of training spots with ``spot_weights``, those by which the predictor that levels are
        added to weights spots; None for equal weights.

        With fewer than three groups sections are left out, and with fewer than three sections parts of sections. The
        report says so: levels of new groups then are not validated.
        """
        data = data.in_canonical_order()
        unit, folds = _level_folds(data, seed)
        ridge = PlainRidge()
        ridge.fit(data, seed=seed)
        errors, sizes = _errors(ridge, data, folds, seed)
        weights = sizes / sizes.sum()
        # Of shares that cannot be distinguished, the smallest is the safest.
        chosen = one_standard_error(errors, weights, [1 - share for share in _SHARES])
        mean = weights @ errors
        arrays = {name: ridge.arrays[name] for name in ("scale", "components", "coefficients")}
        by_spot = None if spot_weights is None else spot_weights(data)
        arrays["feature_mean"] = np.average(data.features, axis=0, weights=by_spot).astype(np.float32)
        # Parts of a section differ less than sections do, but one section alone shows no other levels.
        lowest, highest = _range(data.labels, folds.labels if unit == "part" else data.sections, by_spot)
        ends = {"lowest": lowest.astype(np.float32), "highest": highest.astype(np.float32)}
        share = _SHARES[chosen]
        report = {
            "validated_on": unit,
            "n_units": len(errors),
            "share": share,
            "mse_before": round(float(mean[_SHARES.index(0.0)]), 5),
            "mse_after": round(float(mean[chosen]), 5),
        }
        return cls(**arrays, **ends, share=np.array([share], dtype=np.float32)), report

    def levels(self, means: np.ndarray) -> np.ndarray:
        """Levels float32 (n_sections, n_genes) of mean features (n_sections, width)."""
        scores = ((means - self.feature_mean) / self.scale) @ self.components.T.astype(np.float64)
        levels = float(self.share[0]) * (scores @ self.coefficients)
        return np.clip(levels, self.lowest, self.highest).astype(np.float32)


def _range(labels: np.ndarray, units: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest level of some units, (n_genes,) each, relative to their mean; never without 0, which is no level."""
    spots = np.ones(len(units)) if weights is None else weights
    means = np.array(
        [np.average(labels[units == name], axis=0, weights=spots[units == name]) for name in np.unique(units)]
    )
    levels = means - np.average(labels, axis=0, weights=spots)
    return np.minimum(levels.min(axis=0), 0), np.maximum(levels.max(axis=0), 0)


def _level_folds(data: TrainingData, seed: int) -> tuple[str, InnerFolds]:
    """What is left out to learn levels: groups, sections, or parts of sections."""
    n_groups, n_sections = len(np.unique(data.groups)), len(np.unique(data.sections))
    if n_groups >= FEWEST_UNITS:
        return "group", inner_folds(data, seed=seed)
    if n_sections >= FEWEST_UNITS:
        return "section", inner_folds(dataclasses.replace(data, groups=data.sections), seed=seed)
    parts = np.empty(len(data.labels), dtype=object)
    for name in np.unique(data.sections):
        rows = data.sections == name
        blocks = inner_folds(data.take(rows), seed=seed).labels
        parts[rows] = [f"{name}: {block}" for block in blocks.tolist()]
    return "part", InnerFolds("block", parts.astype(str))


def _errors(ridge: PlainRidge, data: TrainingData, folds: InnerFolds, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared error of the levels of each fold for each share, (n_folds, n_shares), and the spots of each fold."""
    errors, sizes = [], []
    for fitted, held in folds.splits():
        units = folds.centred_in(data.sections)[held]
        predicted = ridge.left_out_levels(data, fitted, held, units, seed=seed)
        truth = section_means(data.labels[held], units)[1] - data.labels[fitted].mean(axis=0, dtype=np.float64)
        lowest, highest = _range(data.labels[fitted], folds.centred_in(data.sections)[fitted], None)
        levels = [np.clip(share * predicted, lowest, highest) for share in _SHARES]
        errors.append([np.square(truth - level).mean() for level in levels])
        sizes.append(float(held.sum()))
    return np.array(errors), np.array(sizes)
