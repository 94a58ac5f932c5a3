"""Ridge regression with a penalty for each component of the responses, and spots weighted by depth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.models.centring import DOUBLE_LIMIT, centre, check_centring
from img2gene.models.data import TrainingData
from img2gene.models.decomposition import Decomposition, decompose, leading_directions
from img2gene.models.depth import depth_weights
from img2gene.models.linear import PENALTIES, LinearPredictor, one_standard_error
from img2gene.models.uncertainty.held_out import N_FOLDS, HeldOut, unit_labels
from img2gene.models.uncertainty.inner_folds import InnerFolds, inner_folds

# Leading components differ most from each other in how well an image shows them, so their bins are narrow.
_RESPONSE_EDGES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
# Rows that a mean converts to double precision at a time.
_MEAN_ROWS = 2048


@dataclass(frozen=True)
class _WeightedSpots:
    """Centred scores and labels of some spots, times the root of their weights.

    Attributes
    ----------
    scores
        float64 (n, k): principal component scores of the features.
    labels
        (n, n_genes): float64, or float32 where they are many.
    """

    scores: np.ndarray
    labels: np.ndarray

    @staticmethod
    def products(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Products of scores and labels, float64 (k, n_genes), in the precision of the labels."""
        # Of two precisions, numpy would copy the labels.
        return (scores.astype(labels.dtype, copy=False).T @ labels).astype(np.float64, copy=False)


@dataclass(frozen=True)
class _Solution:
    """Weighted least squares, from which the coefficients for all penalties follow.

    Attributes
    ----------
    axes
        float64 (k, k): eigenvectors of the products of the scores; ``values`` (k,) are the eigenvalues.
    responses
        float64 (n_genes, r): principal directions of the labels.
    projected
        float64 (k, r): products of scores and labels, along the responses; ``rest`` (k, n_genes) is what is left.
    energy
        Unit of the penalties.
    """

    axes: np.ndarray
    values: np.ndarray
    responses: np.ndarray
    projected: np.ndarray
    rest: np.ndarray
    energy: float

    @classmethod
    def of(cls, spots: _WeightedSpots, n_responses: int, energy: float, seed: int) -> _Solution:
        """Solve for the products of some spots."""
        values, axes = np.linalg.eigh(spots.scores.T @ spots.scores)
        products = axes.T @ spots.products(spots.scores, spots.labels)
        responses = leading_directions(spots.labels, n_responses, seed)
        projected = products @ responses
        return cls(axes, np.maximum(values, 0), responses, projected, products - projected @ responses.T, energy)

    def inverse(self, penalty: float) -> np.ndarray:
        """Factor of each component (k,): 1 / (s² + λ), λ = penalty · energy."""
        return 1 / (self.values + penalty * self.energy)

    def coefficients(self, penalties: Sequence[float]) -> np.ndarray:
        """Coefficients float32 (k, n_genes), with a penalty for each bin of responses and the last for the rest."""
        total = self.inverse(penalties[-1])[:, None] * self.rest
        for penalty, part in zip(penalties, _bins(self.responses.shape[1]), strict=False):
            total += (self.inverse(penalty)[:, None] * self.projected[:, part]) @ self.responses[:, part].T
        return (self.axes @ total).astype(np.float32)

    def errors(self, held: _WeightedSpots, penalties: Sequence[float]) -> np.ndarray:
        """Squared error on other spots for each bin of responses and the rest, and each penalty.

        A share of the squared labels, less the error of the prediction 0; float64 (n_bins + 1, n_penalties).
        """
        scores = held.scores @ self.axes
        along = held.labels @ self.responses
        rest = held.labels - along @ self.responses.T
        covariance = scores.T @ scores
        parts = [(self.projected[:, part], scores.T @ along[:, part]) for part in _bins(self.responses.shape[1])]
        parts.append((self.rest, held.products(scores, rest)))
        total = max(float(np.square(held.labels).sum()), 1e-12)
        return np.array([_errors(self, covariance, *part, penalties) for part in parts]) / total


def _errors(
    solution: _Solution,
    covariance: np.ndarray,
    projected: np.ndarray,
    products: np.ndarray,
    penalties: Sequence[float],
) -> list[float]:
    """|Y − Z diag(d) P|² − |Y|² = dᵀ (ZᵀZ ∘ PPᵀ) d − 2 d · diag(Zᵀ Y Pᵀ), for the factors d of each penalty."""
    quadratic, linear = covariance * (projected @ projected.T), (projected * products).sum(axis=1)
    factors = [solution.inverse(penalty) for penalty in penalties]
    return [float(d @ quadratic @ d - 2 * d @ linear) for d in factors]


@dataclass(frozen=True)
class _Inputs:
    """Training data in principal components.

    Attributes
    ----------
    decomposition
        Of the features of all training spots; labels play no part in it.
    scores
        float64 (n, k): principal component scores.
    labels
        (n, n_genes): float64, or float32 where they are many.
    sections
        str (n,).
    weights
        float64 (n,), with mean 1.
    center
        ``"section"`` or ``"none"``.
    seed
        Seed of randomised decompositions.
    """

    decomposition: Decomposition
    scores: np.ndarray
    labels: np.ndarray
    sections: np.ndarray
    weights: np.ndarray
    center: str
    seed: int

    @classmethod
    def of(cls, data: TrainingData, weights: np.ndarray, center: str, n_components: int, seed: int) -> _Inputs:
        """Project the features of all spots."""
        reference = None if center == "section" else np.average(data.features, axis=0, weights=weights)
        centred = centre(data.features, data.sections, reference)
        decomposition = decompose(centred, np.zeros((len(centred), 0)), n_components, seed, data.feature_scale)
        # In double precision, 15,000 genes of 50,000 spots and their centred copies would take over 20 GiB.
        double = data.labels.size < DOUBLE_LIMIT
        labels = np.asarray(data.labels, dtype=np.float64 if double else np.float32)
        return cls(decomposition, decomposition.scores(centred), labels, data.sections, weights, center, seed)

    def mean_label(self, rows: np.ndarray) -> np.ndarray:
        """Mean label of some spots, float32 (n_genes,)."""
        return _mean(self.labels[rows], self.weights[rows]).astype(np.float32)

    def solve(self, fitted: np.ndarray, n_responses: int) -> _Solution:
        """Solve for some spots."""
        spots = self._weighted(fitted, self.sections, fitted)
        return _Solution.of(spots, n_responses, self.decomposition.energy, self.seed)

    def held(self, fitted: np.ndarray, held: np.ndarray, folds: InnerFolds) -> _WeightedSpots:
        """Return held-out spots, centred without a look at the fitted spots of their block."""
        return self._weighted(held, folds.centred_in(self.sections), fitted)

    def held_scores(self, fitted: np.ndarray, held: np.ndarray, folds: InnerFolds) -> np.ndarray:
        """Return scores of held-out spots as a prediction centres them, float64 (n_held, k)."""
        if self.center == "none":
            return self.scores[held] - np.average(self.scores[fitted], axis=0, weights=self.weights[fitted])
        return centre(self.scores[held], folds.centred_in(self.sections)[held])

    def _weighted(self, rows: np.ndarray, units: np.ndarray, reference: np.ndarray) -> _WeightedSpots:
        """Weighted spots ``rows``, centred in their ``units``, or by the mean of the spots ``reference``."""
        root = np.sqrt(self.weights[rows])[:, None]
        parts = []
        for values in (self.scores, self.labels):
            if self.center == "none":
                centred = values[rows] - _mean(values[reference], self.weights[reference]).astype(values.dtype)
            else:
                centred = _centre_weighted(values[rows], units[rows], self.weights[rows])
            centred *= root
            parts.append(centred)
        return _WeightedSpots(*parts)


class Ridge(LinearPredictor):
    """Ridge regression of all genes at once, with a penalty for each part of the expression.

    Features and labels are centred per section, so that stain and batch shifts between slides are removed; predictions are
    offset by the training mean. The labels are rotated to their principal components: what an image shows well gets a small
    penalty, and what it does not show a large one. Penalties are chosen inside the training data by leaving out one group at
    a time (one section, or one compact block, where there are fewer): for each bin of components the largest within one
    standard error of the best, and one for all that the components leave out. Nothing is cut off.

    Spots are weighted by depth (:func:`img2gene.models.depth.depth_weights`), in the fit and in the choice, so that adding a
    shallow section does not harm the prediction of deep ones.

    Parameters
    ----------
    penalty
        One or several candidates, in units of the mean squared length of a scaled training row.
    center
        ``"section"`` subtracts each section's mean, also at prediction; ``"none"`` subtracts the training mean.
    n_components
        Largest number of principal components of the features.
    n_responses
        Largest number of principal components of the labels.
    depth_weights
        Whether spots are weighted by their library size. Without library sizes all weigh the same.

    References
    ----------
    Slide-centring: arXiv:2609.32857. Rotated responses: Breiman & Friedman, J. R. Stat. Soc. B 59 (1997).
    """

    name: ClassVar[str] = "ridge"

    def __init__(
        self,
        penalty: float | Sequence[float] | np.ndarray = PENALTIES,
        center: str = "section",
        n_components: int = 512,
        n_responses: int = 60,
        depth_weights: bool = True,
    ) -> None:
        check = self._check(penalty, center, n_components)
        self.n_responses = check.whole("n_responses", n_responses, 1)
        self.depth_weights = check.flag("depth_weights", depth_weights)
        check.raise_all()
        self._fitted: tuple[_Inputs, list[float]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the training data out of copies and pickles."""
        return self.__dict__ | {"_fitted": None}

    def fit(self, data: TrainingData, *, seed: int) -> None:
        """Choose the penalties inside the training data, then fit to all of it."""
        self._fitted = self._fit(data.in_canonical_order(), seed)

    def fit_held_out(self, data: TrainingData, *, seed: int) -> HeldOut:
        """Fit, and predict all training spots by ridges without their group (section, block), at most five of them."""
        order, data = data.canonical_order(), data.in_canonical_order()
        # A subclass may fit in another way.
        self.fit(data, seed=seed)
        folds = inner_folds(data, seed=seed, n_max=N_FOLDS)
        predicted, inputs = self.held_out(folds), self._intermediate[0]
        for fitted, held in folds.splits():
            predicted[held] += inputs.mean_label(fitted)
        self._fitted = None
        back = np.argsort(order)
        return HeldOut(np.arange(len(predicted)), predicted[back], folds.kind, unit_labels(data, folds)[back])

    def held_out(self, folds: InnerFolds) -> np.ndarray:
        """Predict every training spot by a ridge fitted without its fold, relative to the mean label of the fitted spots.

        Spots are in canonical order. The penalties are those that :meth:`fit` chose on all of them.

        Returns
        -------
        float32 (n_spots, n_genes).
        """
        inputs, penalties = self._intermediate
        predicted = np.empty(inputs.labels.shape, dtype=np.float32)
        for fitted, held in folds.splits():
            coefficients = inputs.solve(fitted, self.n_responses).coefficients(penalties)
            predicted[held] = inputs.held_scores(fitted, held, folds).astype(np.float32) @ coefficients
        return predicted

    def spot_weights(self, data: TrainingData) -> np.ndarray:
        """Weights of training spots, float64 (n_spots,), with mean 1."""
        return depth_weights(data.library if self.depth_weights else None, data.sections)

    @property
    def _intermediate(self) -> tuple[_Inputs, list[float]]:
        if self._fitted is None:
            raise Img2GeneError(
                f"`{type(self).__name__}.held_out` needs intermediate results of `Ridge.fit`, which are not saved with the "
                "model; call `fit` first."
            )
        return self._fitted

    def _fit(self, data: TrainingData, seed: int) -> tuple[_Inputs, list[float]]:
        check_centring(data.sections, self.center)
        weights = self.spot_weights(data)
        inputs = _Inputs.of(data, weights, self.center, self.n_components, seed)
        everything = np.ones(len(weights), dtype=bool)
        solution = inputs.solve(everything, self.n_responses)
        n_bins = len(_bins(solution.responses.shape[1]))
        penalties = self._choose_penalties(inputs, inner_folds(data, seed=seed), n_bins)
        self.arrays = {
            "feature_mean": np.average(data.features, axis=0, weights=weights).astype(np.float32),
            "scale": inputs.decomposition.scale.astype(np.float32),
            "components": inputs.decomposition.components.astype(np.float32),
            "coefficients": solution.coefficients(penalties),
            "label_mean": inputs.mean_label(everything),
        }
        self.report |= {
            "penalty": penalties,
            "n_responses": solution.responses.shape[1],
            "n_components": len(inputs.decomposition.singular),
        }
        return inputs, penalties

    def _choose_penalties(self, inputs: _Inputs, folds: InnerFolds, n_bins: int) -> list[float]:
        """Choose the penalty of each bin of responses, and of what they leave out."""
        if len(self.penalties) == 1:
            return self.penalties * (n_bins + 1)
        splits = folds.splits()
        errors = np.zeros((len(splits), n_bins + 1, len(self.penalties)))
        for error, (fitted, held) in zip(errors, splits, strict=True):
            solution = inputs.solve(fitted, self.n_responses)
            values = solution.errors(inputs.held(fitted, held, folds), self.penalties)
            # Few spots have fewer responses; the bins that they lack add no error.
            error[: len(values) - 1], error[-1] = values[:-1], values[-1]
        shares = np.array([inputs.weights[held].sum() for _, held in splits])
        shares /= shares.sum()
        self.report |= {
            "inner_folds": folds.kind,
            "penalties": self.penalties,
            "inner_error": (1 + np.tensordot(shares, errors, axes=1)).round(6).tolist(),
        }
        chosen = [one_standard_error(errors[:, number], shares, self.penalties) for number in range(n_bins + 1)]
        return [self.penalties[i] for i in chosen]

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Settings and fitted arrays."""
        config, arrays = super().state()
        return config | {name: getattr(self, name) for name in self._more_parameters()}, arrays

    @classmethod
    def _more_parameters(cls) -> tuple[str, ...]:
        return ("n_responses", "depth_weights")


def _centre_weighted(values: np.ndarray, units: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Subtract from each unit its weighted mean."""
    centred = np.empty_like(values)
    for name in np.unique(units):
        rows = units == name
        centred[rows] = values[rows] - _mean(values[rows], weights[rows]).astype(values.dtype)
    return centred


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean over rows, float64, without a copy of single-precision values in double precision."""
    if values.dtype == np.float64:
        return np.average(values, axis=0, weights=weights)
    parts = range(0, len(values), _MEAN_ROWS)
    total: Any = sum(weights[i : i + _MEAN_ROWS] @ values[i : i + _MEAN_ROWS].astype(np.float64) for i in parts)
    return total / weights.sum()


def _bins(n_responses: int) -> list[slice]:
    """Divide responses into bins that share a penalty."""
    edges = [0, *(edge for edge in _RESPONSE_EDGES if edge < n_responses), n_responses]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]
