"""The contract of a predictor: fit on arrays, predict arrays, turn into arrays and back."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from img2gene.models.data import TrainingData

# A new input also needs a place in TrainingData and in Model.predict.
EXTRA_INPUTS = ("positions", "tokens")


class Predictor(Protocol):
    """The contract of a model: fit on arrays, predict arrays, turn into arrays and back.

    ``shapes`` declares every stored array by named axes; stored models are checked against it. A predictor whose arrays
    depend on its configuration has a class method ``array_shapes(config)`` instead, whose axes may be sizes, too.

    A predictor may declare ``inputs: ClassVar[tuple[str, ...]]``, the keyword inputs that its ``predict`` takes in
    addition to features and sections: ``"positions"``, float (n_spots, 2), row and column in µm; ``"tokens"``, float16 (n_spots, m,
    token_width), which :class:`TrainingData` then holds, too, where they are stored. One that was fitted without tokens
    is called without them. Without the attribute, ``predict`` is called with features and sections alone.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.models.get("ridge").shapes["label_mean"]
    ('genes',)
    """

    name: ClassVar[str]
    shapes: ClassVar[dict[str, tuple[str, ...]]]

    def fit(self, data: TrainingData, *, seed: int) -> None:
        """Fit to training data; nothing outside ``data`` may be looked at."""
        ...

    def predict(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """Labels float32 (n_spots, n_genes) of float32 (n_spots, width) features; ``sections`` names each spot's."""
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Configuration (JSON) and arrays that :meth:`from_state` restores the predictor from."""
        ...

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Predictor:
        """Restore a fitted predictor."""
        ...

    def summary(self) -> dict[str, Any]:
        """What the fit chose and how it validated, for the training report (JSON)."""
        ...


@runtime_checkable
class UsesPathways(Protocol):
    """A predictor that is also trained on pathway scores, and stores their description.

    Examples
    --------
    >>> import img2gene as ig
    >>> isinstance(ig.models.create("ridge"), ig.models.UsesPathways)
    False
    """

    @property
    def uses_pathways(self) -> bool:
        """Whether the fit uses :attr:`TrainingData.pathways`."""
        ...

    def set_context(self, facts: dict[str, Any]) -> None:
        """Set names, gene sets, method and enrichment of the pathways (JSON); called before ``fit``."""
        ...


def declared_inputs(predictor: Predictor | type[Predictor]) -> tuple[str, ...]:
    """Inputs that a predictor takes in addition to features and sections; none if it declares none."""
    return tuple(getattr(predictor, "inputs", ()))


def centres_by_section(predictor: Predictor) -> bool:
    """Check whether a predictor compares spots with the mean of their section.

    Examples
    --------
    >>> import img2gene as ig
    >>> from img2gene.models.predictor import centres_by_section
    >>> centres_by_section(ig.models.create("ridge")), centres_by_section(ig.models.create("mean"))
    (True, False)
    """
    holder = predictor if hasattr(predictor, "center") else getattr(predictor, "parameters", None)
    return getattr(holder, "center", "none") == "section"
