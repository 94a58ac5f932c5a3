"""k nearest neighbours in feature space: retrieval without training."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError
from img2gene.models.centring import CENTRES, centre, check_centring
from img2gene.models.components import Components, stored_components
from img2gene.models.data import TrainingData, with_prefix
from img2gene.models.reference_bank import WEIGHTINGS, Neighbors, ReferenceBank, check_size, unit_rows
from img2gene.models.row_blocks import Block, Rows, joined
from img2gene.models.stored import StoredConfig
from img2gene.models.uncertainty.inner_folds import inner_folds
from img2gene.models.validation import mean_correlation, scored_genes

# From nearly single spots to a broad average.
_CANDIDATES = (5, 10, 20, 50, 100, 200)


class FeatureKNN:
    """Mean expression of the training spots whose embeddings point the same way.

    Features and labels are centred per section, and features projected onto principal components; similarity is the cosine.

    Parameters
    ----------
    k
        Training spots that are averaged; None chooses among 5 to 200 by the correlation on inner folds.
    weighting
        ``"uniform"``, or ``"similarity"``: in proportion to the cosine.
    center
        ``"section"`` subtracts each section's mean, ``"none"`` the training mean.
    n_components
        Principal components of the embedding.
    """

    name: ClassVar[str] = "knn"
    dtypes: ClassVar[dict[str, str]] = {f"bank.{name}": dtype for name, dtype in ReferenceBank.dtypes.items()}

    def __init__(
        self,
        k: int | None = None,
        weighting: str = "uniform",
        center: str = "section",
        n_components: int = 256,
    ) -> None:
        check = Arguments()
        self.k = check.whole("k", k, 1, optional=True)
        self.weighting = check.choice("weighting", weighting, WEIGHTINGS)
        self.center = check.choice("center", center, CENTRES)
        self.n_components = check.whole("n_components", n_components, 1)
        check.raise_all()
        self.components: Components | None = None
        self._bank: ReferenceBank | None = None
        self.label_mean = np.empty(0, dtype=np.float32)
        self.report: dict[str, Any] = {}

    def fit(self, data: TrainingData, *, seed: int) -> None:
        """Keep the training spots; choose ``k`` if it is None."""
        check_centring(data.sections, self.center)
        data = data.in_canonical_order()
        if self.k is not None:
            check_size(self.k, len(data.labels))
        chosen = self._choose(data, seed) if self.k is None else self.k
        self.components, self._bank = self._reference(data, seed)
        self.label_mean = data.labels.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.report |= {"k": int(chosen), "n_references": len(data.labels)}

    def _reference(self, data: TrainingData, seed: int) -> tuple[Components, ReferenceBank]:
        options = {"center": self.center, "seed": seed, "scale": data.feature_scale}
        components = Components.fit(data.features, data.sections, self.n_components, **options)
        mean = None if self.center == "section" else data.labels.mean(axis=0, dtype=np.float64)
        values = centre(data.labels, data.sections, mean).astype(np.float32)
        keys = unit_rows(components(data.features, data.sections))
        return components, ReferenceBank(keys, values, data.sections, data.groups, data.positions.astype(np.float32))

    def _choose(self, data: TrainingData, seed: int) -> int:
        """The number of neighbours with the highest mean correlation over inner folds."""
        folds, genes = inner_folds(data, seed=seed), scored_genes(data.labels)
        names = folds.centred_in(data.sections)
        scores: dict[int, list[float]] = {}
        for fitted, held in folds.splits():
            components, bank = self._reference(data.take(fitted), seed)
            most = min(max(_CANDIDATES), len(bank))
            # One search serves all candidates: fewer neighbours are the first of more.
            near = bank.nearest(components(data.features[held], names[held]), most)
            for k in (k for k in _CANDIDATES if k <= most):
                predicted = bank.average(Neighbors(near.rows[:, :k], near.similarity[:, :k]), self.weighting)
                truth = data.labels[held][:, genes]
                scores.setdefault(k, []).append(mean_correlation(truth, predicted[:, genes], names[held]))
        means = {k: float(np.mean(values)) for k, values in scores.items()}
        self.report |= {"inner_folds": folds.kind, "inner_pcc": {str(k): round(v, 6) for k, v in means.items()}}
        # Without candidates there are too few spots to choose from.
        return max(means, key=lambda k: means[k]) if means else 1

    def reference_bank(self) -> ReferenceBank:
        """The training spots."""
        if self._bank is None:
            raise Img2GeneError("This model is not fitted yet; call `fit` first.")
        return self._bank

    def neighbors(
        self,
        features: np.ndarray,
        sections: np.ndarray,
        *,
        k: int,
        excluded: np.ndarray | None = None,
        by: str = "group",
    ) -> Neighbors:
        """The ``k`` training spots nearest to each spot, outside the groups or sections in ``excluded``."""
        bank = self.reference_bank()
        return bank.nearest(self._queries(features, sections), k, excluded=excluded, by=by)

    def _queries(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """Components of spots, float32 (n_spots, n_components)."""
        if self.components is None:
            raise Img2GeneError("This model is not fitted yet; call `fit` first.")
        check_centring(sections, self.center)
        return self.components(features, sections)

    def predict(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """Labels float32 (n_spots, n_genes)."""
        return joined(self.prepare(features, sections), len(features), len(self.label_mean))

    def prepare(self, features: np.ndarray, sections: np.ndarray, *, with_spread: bool = False) -> Rows:
        """Project all features; return a function that predicts a slice of rows."""
        bank, queries = self.reference_bank(), self._queries(features, sections)

        def predict(rows: slice) -> Block:
            near = bank.nearest(queries[rows], self.report["k"])
            return bank.average(near, self.weighting) + self.label_mean, None

        return predict

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Settings and fitted arrays."""
        names, arrays = self.reference_bank().state()
        stored = {f"bank.{name}": value for name, value in arrays.items()}
        stored |= stored_components(components=self.components)
        names_of = ("k", "weighting", "center", "n_components")
        settings = {name: getattr(self, name) for name in names_of}
        return {"settings": settings, "bank": names, "report": self.report}, stored | {"label_mean": self.label_mean}

    @classmethod
    def array_shapes(cls, config: dict[str, Any]) -> dict[str, tuple[str | int, ...]]:
        """Shapes of the arrays."""
        shapes: dict[str, tuple[str | int, ...]] = {f"bank.{name}": axes for name, axes in ReferenceBank.shapes.items()}
        parts = {"mean": ("width",), "scale": ("width",), "axes": ("key", "width")}
        return shapes | {f"components.{name}": axes for name, axes in parts.items()} | {"label_mean": ("genes",)}

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> FeatureKNN:
        """Restore a fitted predictor."""
        # Older models also name the library that searched their bank; results are the same.
        check = StoredConfig()
        check.entries("predictor", config, ("settings", "bank", "report"), ("search",))
        check.entries("settings", config["settings"], ("k", "weighting", "center", "n_components"), ("search",))
        check.whole("report.k", config["report"].get("k"), 1, len(arrays["bank.keys"]))
        check.positive(arrays, ["components.scale"])
        check.raise_all()
        model = cls(**{name: value for name, value in config["settings"].items() if name != "search"})
        model.components = Components(**with_prefix(arrays, "components"), center=model.center)
        model._bank = ReferenceBank.from_state(config["bank"], with_prefix(arrays, "bank"))
        model.label_mean, model.report = arrays["label_mean"], config["report"]
        return model

    def summary(self) -> dict[str, Any]:
        """Report the number of neighbours, and the validation score of every candidate."""
        return dict(self.report)
