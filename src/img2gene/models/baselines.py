"""Baselines that every other model should beat."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, listing
from img2gene.models.data import TrainingData
from img2gene.models.row_blocks import Rows
from img2gene.models.stored import StoredConfig

# References beyond the k nearest that are looked at for ties in distance: a ring of a lattice has 4 to 12 spots.
_TIES = 12


class TrainingMean:
    """Predicts each gene's mean over the training spots, whatever the image shows."""

    name: ClassVar[str] = "mean"
    shapes: ClassVar[dict[str, tuple[str, ...]]] = {"mean": ("genes",)}
    dtypes: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        self.mean = np.empty(0, dtype=np.float32)

    def fit(self, data: TrainingData, *, seed: int) -> None:
        """Average the labels."""
        self.mean = data.labels.mean(axis=0, dtype=np.float64).astype(np.float32)

    def predict(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """Predict the same row for every spot."""
        return np.tile(self.mean, (len(features), 1))

    def prepare(self, features: np.ndarray, sections: np.ndarray, *, with_spread: bool = False) -> Rows:
        """Return a function that predicts a slice of rows."""
        return lambda rows: (np.tile(self.mean, (rows.stop - rows.start, 1)), None)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The means."""
        return {}, {"mean": self.mean}

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> TrainingMean:
        """Restore the means."""
        check = StoredConfig()
        check.entries("predictor", config, ())
        check.raise_all()
        model = cls()
        model.mean = arrays["mean"]
        return model

    def summary(self) -> dict[str, Any]:
        """Return nothing, as the model makes no choices."""
        return {}


class CoordinateKNN:
    """Mean of the nearest training spots of the same section, whatever the image shows.

    The baseline for sections of which a part was measured: there, an image model should beat it. It cannot predict sections
    that it was not trained on.

    Parameters
    ----------
    k
        Training spots that are averaged, fewer where a section has fewer.
    """

    name: ClassVar[str] = "coordinates"
    inputs: ClassVar[tuple[str, ...]] = ("positions",)
    shapes: ClassVar[dict[str, tuple[str, ...]]] = {
        "positions": ("spots", "axes"),
        "labels": ("spots", "genes"),
        "section": ("spots",),
    }
    dtypes: ClassVar[dict[str, str]] = {"positions": "float64", "section": "int64"}

    def __init__(self, k: int = 6) -> None:
        check = Arguments()
        self.k = check.whole("k", k, 1)
        check.raise_all()
        self.sections: list[str] = []
        self.arrays: dict[str, np.ndarray] = {}

    def fit(self, data: TrainingData, *, seed: int) -> None:
        """Keep the training spots."""
        data = data.in_canonical_order()
        names, number = np.unique(data.sections, return_inverse=True)
        self.sections = names.tolist()
        self.arrays = {
            "positions": np.asarray(data.positions, dtype=np.float64),
            "labels": np.asarray(data.labels, dtype=np.float32),
            "section": number.astype(np.int64),
        }

    def predict(self, features: np.ndarray, sections: np.ndarray, *, positions: np.ndarray) -> np.ndarray:
        """Labels float32 (n_spots, n_genes)."""
        # An average over other sections would be an answer without any information about this one.
        unknown = sorted(set(sections.tolist()) - set(self.sections))
        if unknown:
            raise Img2GeneError(
                f"`coordinates` was not trained on the sections {listing(unknown)} (trained on: {listing(self.sections)}); where "
                "a spot lies says nothing about its expression in a new section. Take a model of the image."
            )
        out = np.empty((len(sections), self.arrays["labels"].shape[1]), dtype=np.float32)
        for name in np.unique(sections):
            rows = sections == name
            known = np.flatnonzero(self.arrays["section"] == self.sections.index(name))
            near = _nearest_references(self.arrays["positions"][known], positions[rows], min(self.k, len(known)))
            out[rows] = self.arrays["labels"][known][near].mean(axis=1)
        return out

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Settings and training spots."""
        return {"k": self.k, "sections": self.sections}, self.arrays

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> CoordinateKNN:
        """Restore a fitted predictor."""
        check = StoredConfig()
        check.entries("predictor", config, ("k", "sections"))
        check.codes("section", arrays["section"], config["sections"])
        if arrays["positions"].shape[1] != 2:
            check.messages.append(f"Array `positions` has {arrays['positions'].shape[1]} columns, expected 2.")
        check.raise_all()
        model = cls(config["k"])
        model.sections, model.arrays = list(config["sections"]), dict(arrays)
        return model

    def summary(self) -> dict[str, Any]:
        """Report the number of training spots."""
        return {"k": self.k, "n_references": len(self.arrays["labels"])}


def _nearest_references(references: np.ndarray, positions: np.ndarray, k: int) -> np.ndarray:
    """Indices (n, k) of the references nearest to each position; of equally near ones the first in ``references``.

    References come sorted by position, so ties in distance are broken by position.
    """
    from scipy.spatial import cKDTree

    tree, width = cKDTree(references), min(k + _TIES, len(references))
    distances, indices = (
        np.asarray(values).reshape(len(positions), width) for values in tree.query(positions, k=width)
    )
    # On a lattice the same distance differs by rounding from spot to spot.
    rings = np.cumsum(np.diff(distances, axis=1, prepend=0) > 1e-9 * distances, axis=1)
    order = np.lexsort((indices, rings))[:, :k]
    return np.take_along_axis(indices, order, axis=1)
