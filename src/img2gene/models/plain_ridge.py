"""Slide-centred ridge regression on the principal components of an embedding, with one penalty for all genes of a bin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.models.centring import centre, check_centring, section_means
from img2gene.models.data import TrainingData
from img2gene.models.decomposition import Decomposition, decompose
from img2gene.models.linear import PENALTIES, LinearPredictor, one_standard_error
from img2gene.models.uncertainty.held_out import N_FOLDS, HeldOut, unit_labels
from img2gene.models.uncertainty.inner_folds import InnerFolds, inner_folds

_BIN_EDGES = (250, 1000, 4000)


class PlainRidge(LinearPredictor):
    """Ridge regression of all genes at once on the principal components of the embedding.

    Features and labels are centred per section, so that stain and batch shifts between slides are removed; predictions
    are offset by the training mean. One decomposition serves all penalties. The penalty is chosen inside the training data
    by leaving out one group at a time (one section, or one compact block, where there are fewer): the largest within one
    standard error of the best, for each of up to four bins of genes by expression. Each gene of a bin counts the same.

    ŷ = ȳ_train + (x − x̄_section) / s · Vᵀ · diag(σ / (σ² + λ)) · Uᵀ (y − ȳ_section)

    Parameters
    ----------
    penalty
        One or several candidates, in units of the mean squared length of a scaled training row.
    center
        ``"section"`` subtracts each section's mean, also at prediction; ``"none"`` subtracts the training mean (a plain
        ridge with intercept).
    n_components
        Largest number of principal components.

    References
    ----------
    Slide-centring: arXiv:2609.32857. Probe without centring: HEST-Benchmark, Jaume et al., NeurIPS 2024.
    """

    name: ClassVar[str] = "ridge-plain"

    def __init__(
        self,
        penalty: float | Sequence[float] | np.ndarray = PENALTIES,
        center: str = "section",
        n_components: int = 512,
    ) -> None:
        self._check(penalty, center, n_components).raise_all()
        self._penalties: np.ndarray | None = None

    def fit(self, data: TrainingData, *, seed: int) -> None:
        """Choose the penalties inside the training data, then fit to all of it."""
        check_centring(data.sections, self.center)
        data = data.in_canonical_order()
        bins = _gene_bins(data.labels)
        chosen = self._choose_penalties(data, bins, seed)
        penalties = np.empty(data.labels.shape[1])
        for genes, penalty in zip(bins, chosen, strict=True):
            penalties[genes] = penalty
        features, labels = self._centred(data.features, data.sections), self._centred(data.labels, data.sections)
        decomposition = decompose(features, labels, self.n_components, seed, data.feature_scale)
        self._penalties = penalties
        self.arrays = {
            "feature_mean": data.features.mean(axis=0, dtype=np.float64).astype(np.float32),
            "scale": decomposition.scale.astype(np.float32),
            "components": decomposition.components.astype(np.float32),
            "coefficients": decomposition.coefficients(penalties),
            "label_mean": data.labels.mean(axis=0, dtype=np.float64).astype(np.float32),
        }
        self.report |= {
            "penalty": chosen,
            "genes_per_penalty": [len(genes) for genes in bins],
            "n_components": len(decomposition.singular),
        }

    def fit_held_out(self, data: TrainingData, *, seed: int) -> HeldOut:
        """Fit, and predict all training spots by ridges without their group (section, block), at most five of them."""
        order, data = data.canonical_order(), data.in_canonical_order()
        self.fit(data, seed=seed)
        folds = inner_folds(data, seed=seed, n_max=N_FOLDS)
        back = np.argsort(order)
        predicted = self.held_out(data, folds, seed=seed)[back]
        return HeldOut(np.arange(len(predicted)), predicted, folds.kind, unit_labels(data, folds)[back])

    def held_out(self, data: TrainingData, folds: InnerFolds, *, seed: int) -> np.ndarray:
        """Prediction of every training spot by a ridge fitted without its fold, float32 (n_spots, n_genes).

        On the scale of :meth:`predict`: the mean label of the spots that were fitted to is added. The penalties are those
        that :meth:`fit` chose on all of ``data``.
        """
        if self._penalties is None:
            raise Img2GeneError(
                "`held_out` needs intermediate results that are not saved with the model; call `fit` first."
            )
        predicted = np.empty(data.labels.shape, dtype=np.float32)
        for fitted, held in folds.splits():
            decomposition, scores = self._left_out(data, (fitted, held), folds, seed)
            mean = data.labels[fitted].mean(axis=0, dtype=np.float64).astype(np.float32)
            predicted[held] = scores.astype(np.float32) @ decomposition.coefficients(self._penalties) + mean
        return predicted

    def left_out_levels(
        self, data: TrainingData, fitted: np.ndarray, held: np.ndarray, units: np.ndarray, *, seed: int
    ) -> np.ndarray:
        """Levels of held-out units by a ridge without them: its coefficients times how their mean features differ.

        Parameters
        ----------
        data
            What :meth:`fit` was called with.
        fitted, held
            Masks of the spots that are fitted to, and of those that are held out.
        units
            The section, or part of one, of each held-out spot.

        Returns
        -------
        float64 (n_units, n_genes), relative to the mean label of the fitted spots.
        """
        features, labels = (
            self._centred(values[fitted], data.sections[fitted]) for values in (data.features, data.labels)
        )
        decomposition = decompose(features, labels, self.n_components, seed, data.feature_scale)
        means = section_means(data.features[held], units)[1] - data.features[fitted].mean(axis=0, dtype=np.float64)
        return decomposition.scores(means) @ decomposition.coefficients(np.asarray(self._penalties))

    def _choose_penalties(self, data: TrainingData, bins: list[np.ndarray], seed: int) -> list[float]:
        """For each bin of genes the largest penalty within one standard error (over folds) of the smallest error."""
        if len(self.penalties) == 1:
            return self.penalties * len(bins)
        folds = inner_folds(data, seed=seed)
        # One unit for all folds, or folds of little variation would count more.
        weights = _inverse_sd(self._centred(data.labels, data.sections))
        # folds × bins × penalties
        errors = np.array([self._fold_errors(data, split, folds, bins, weights, seed) for split in folds.splits()])
        self.report |= {
            "inner_folds": folds.kind,
            "penalties": self.penalties,
            "inner_error": errors.mean(axis=0).round(6).tolist(),
        }
        shares = np.full(len(errors), 1 / len(errors))
        return [
            self.penalties[one_standard_error(errors[:, number], shares, self.penalties)] for number in range(len(bins))
        ]

    def _fold_errors(
        self,
        data: TrainingData,
        split: tuple[np.ndarray, np.ndarray],
        folds: InnerFolds,
        bins: list[np.ndarray],
        weights: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """Squared error of held-out sections as a share of their variance, (n_bins, n_penalties).

        Genes are in units of their SD over all training spots (``weights`` is its inverse), so that each counts the same:
        in the units of the labels a few very variable genes would decide for all others. The SD is not that of the fold,
        in which it may be next to nothing; genes that do not vary there at all are left out.

        With scores Z, shrinkages d and projected labels P the error |Y − Z diag(d) P|² expands into
        |Y|² − 2 d · diag(Zᵀ Y Pᵀ) + dᵀ (ZᵀZ ∘ PPᵀ) d, so all penalties and genes cost one product with the labels.
        """
        fitted, held = split
        decomposition, scores = self._left_out(data, split, folds, seed)
        outside = folds.centred_in(data.sections)[held]
        truth = centre(data.labels[held], outside, self._reference(data.labels[fitted]))
        truth *= weights.astype(truth.dtype)
        projected, varies = decomposition.projected * weights, _varies(data.labels[held], outside)
        shrinkages = [decomposition.shrinkage(penalty) for penalty in self.penalties]
        covariance, products = scores.T @ scores, scores.T @ truth
        errors = []
        for genes in (genes[varies[genes]] for genes in bins):
            total = max(float(np.square(truth[:, genes]).sum()), 1e-12)
            linear = (products[:, genes] * projected[:, genes]).sum(axis=1)
            quadratic = covariance * (projected[:, genes] @ projected[:, genes].T)
            errors.append([1 + (d @ quadratic @ d - 2 * d @ linear) / total for d in shrinkages])
        return np.array(errors)

    def _left_out(
        self, data: TrainingData, split: tuple[np.ndarray, np.ndarray], folds: InnerFolds, seed: int
    ) -> tuple[Decomposition, np.ndarray]:
        """Decomposition of the spots outside a fold, and the scores (n_held, k) of those in it."""
        fitted, held = split
        inside, outside = data.sections[fitted], folds.centred_in(data.sections)[held]
        features, labels = self._centred(data.features[fitted], inside), self._centred(data.labels[fitted], inside)
        decomposition = decompose(features, labels, self.n_components, seed, data.feature_scale)
        return decomposition, decomposition.scores(
            centre(data.features[held], outside, self._reference(data.features[fitted]))
        )


def _gene_bins(labels: np.ndarray) -> list[np.ndarray]:
    """Genes by falling mean label in bins of rank 1–250, –1000, –4000 and beyond.

    The less a gene is expressed, the noisier its labels and the larger its best penalty. A gene's bin depends little on the
    number of other genes that are predicted.
    """
    order = np.argsort(-labels.mean(axis=0, dtype=np.float64), kind="stable")
    edges = [edge for edge in _BIN_EDGES if edge < len(order)]
    return [np.sort(part) for part in np.split(order, edges)]


def _inverse_sd(centred: np.ndarray) -> np.ndarray:
    """1 / SD of each column (n_columns,); 0 for those that do not vary."""
    sd = np.sqrt(np.square(centred).mean(axis=0, dtype=np.float64))
    return np.divide(1, sd, out=np.zeros_like(sd), where=sd > 1e-12)


def _varies(values: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """Which columns (n_columns,) differ between spots of one section; exact, unlike the variance of centred values."""
    parts = [values[sections == name] for name in np.unique(sections)]
    return np.any([part.max(axis=0) > part.min(axis=0) for part in parts], axis=0)
