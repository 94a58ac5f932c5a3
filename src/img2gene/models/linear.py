"""What linear models share: prediction from principal components, and the stored arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import numpy as np

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError
from img2gene.models.centring import CENTRES, centre, check_centring, section_means
from img2gene.models.data import TrainingData
from img2gene.models.row_blocks import Block, Rows, joined
from img2gene.models.stored import StoredConfig

PENALTIES = tuple(float(value) for value in np.geomspace(0.1, 3000, 28).round(4))


class LinearPredictor(ABC):
    """A linear model of all genes on principal components of centred features; its subclasses differ in the fit.

    ŷ = ȳ + Bᵀ V (x − x̄) / s, with the mean x̄ of the section, or of the training data

    Attributes
    ----------
    penalties, center, n_components
        Checked parameters; the subclasses document them.
    arrays
        Fitted arrays by name; empty before the fit.
    report
        Facts about the fit.
    """

    name: ClassVar[str]
    shapes: ClassVar[dict[str, tuple[str, ...]]] = {
        "feature_mean": ("width",),
        "scale": ("width",),
        "components": ("components", "width"),
        "coefficients": ("components", "genes"),
        "label_mean": ("genes",),
    }
    dtypes: ClassVar[dict[str, str]] = {}

    def _check(self, penalty: Any, center: Any, n_components: Any) -> Arguments:
        """Check the parameters that all linear models have; the caller adds its own, and raises."""
        check = Arguments()
        candidates: list[Any] = [penalty]
        if isinstance(penalty, list | tuple | np.ndarray):
            candidates = [*(penalty.ravel() if isinstance(penalty, np.ndarray) else penalty)]
        self.penalties = [check.number("penalty", value, above=0) for value in candidates]
        if not candidates:
            check.messages.append("penalty=(): expected one or several positive numbers.")
        self.center = check.choice("center", center, CENTRES)
        self.n_components = check.whole("n_components", n_components, 1)
        self.arrays: dict[str, np.ndarray] = {}
        self.report: dict[str, Any] = {}
        return check

    def predict(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """Predict labels float32 (n_spots, n_genes), in blocks of spots to save memory."""
        rows = self.prepare(features, sections)
        return joined(rows, len(features), len(self.arrays["label_mean"]))

    def prepare(self, features: np.ndarray, sections: np.ndarray, *, with_spread: bool = False) -> Rows:
        """Find the means that features are centred by; return a function that predicts a slice of rows."""
        if not self.arrays:
            raise Img2GeneError("This ridge is not fitted yet; call `fit` first.")
        check_centring(sections, self.center)
        if self.center == "section":
            names, means = section_means(features, sections)
            number = np.searchsorted(names, sections)
        else:
            means, number = self.arrays["feature_mean"][None].astype(np.float64), np.zeros(len(features), dtype=int)
        projection = (self.arrays["components"] / self.arrays["scale"].astype(np.float64)).T
        coefficients, label_mean = self.arrays["coefficients"], self.arrays["label_mean"]
        width, k = projection.shape
        # The projection is in double precision, which costs twice as much; one product is cheaper for few genes.
        folded = width * len(label_mean) <= 2 * width * k + k * len(label_mean)
        weights = (projection @ coefficients.astype(np.float64)).astype(np.float32) if folded else coefficients

        def predict(rows: slice) -> Block:
            block, members = features[rows], number[rows]
            # Most blocks lie in one section, whose mean need not be repeated for every row.
            reference = means[members[:1]] if (members == members[:1]).all() else means[members]
            centred = np.empty(block.shape, dtype=np.float32 if folded else np.float64)
            np.subtract(block, reference, out=centred, dtype=np.float64, casting="same_kind")
            predicted = (centred if folded else (centred @ projection).astype(np.float32)) @ weights
            predicted += label_mean
            return predicted, None

        return predict

    def deviations(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """Predict labels relative to the model's mean label, float32 (n_spots, n_genes)."""
        predicted = self.predict(features, sections)
        predicted -= self.arrays["label_mean"]
        return predicted

    @abstractmethod
    def fit(self, data: TrainingData, *, seed: int) -> None:
        """Choose the penalties inside the training data, then fit to all of it."""

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Settings and fitted arrays."""
        config = {"penalty": self.penalties, "center": self.center, "n_components": self.n_components}
        return {**config, "report": self.report}, self.arrays

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """Restore a fitted ridge."""
        check = StoredConfig()
        known = ("penalty", "center", "n_components")
        check.entries("ridge", config, (*known, "report"), cls._more_parameters())
        check.positive(arrays, ["scale"])
        check.raise_all()
        parameters = {name: value for name, value in config.items() if name != "report"}
        model = cls(**parameters | {"penalty": tuple(config["penalty"])})
        model.arrays, model.report = dict(arrays), dict(config["report"])
        return model

    @classmethod
    def _more_parameters(cls) -> tuple[str, ...]:
        """Name the parameters of a subclass, which models of earlier versions lack."""
        return ()

    def summary(self) -> dict[str, Any]:
        """Report the chosen penalty and the validation error of every candidate."""
        return dict(self.report)

    def _centred(self, values: np.ndarray, sections: np.ndarray) -> np.ndarray:
        return centre(values, sections, self._reference(values))

    def _reference(self, values: np.ndarray) -> np.ndarray | None:
        """The mean of the fitted spots, which is subtracted from all spots; None where each section is centred."""
        return None if self.center == "section" else values.mean(axis=0, dtype=np.float64)


def one_standard_error(errors: np.ndarray, shares: np.ndarray, penalties: list[float]) -> int:
    """Find the largest penalty whose error is within one standard error of the best.

    Parameters
    ----------
    errors
        (n_folds, n_penalties).
    shares
        (n_folds,): how much each fold counts; the sum is 1.
    penalties
        The candidates.

    Returns
    -------
    Its index. The standard error is that of the differences to the best over folds: what all folds share does not
    distinguish penalties.
    """
    mean = shares @ errors
    best = int(mean.argmin())
    differences = errors - errors[:, [best]]
    variance = shares @ np.square(differences - shares @ differences)
    # The effective number of folds; of folds that count the same it is their number.
    n_folds = 1 / np.square(shares).sum()
    spread = np.sqrt(variance / max(n_folds - 1, 1))
    # Of penalties that cannot be distinguished the largest is the safest for new patients.
    return int(max(np.flatnonzero(mean <= mean[best] + spread), key=lambda i: penalties[i]))
