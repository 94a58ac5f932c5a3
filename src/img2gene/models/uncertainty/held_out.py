"""Held-out predictions of training spots, which a model is calibrated on."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from img2gene.models.checked import checked_labels, checked_prediction, failures
from img2gene.models.predictor import declared_inputs
from img2gene.models.uncertainty.inner_folds import InnerFolds, inner_folds

if TYPE_CHECKING:
    from img2gene.models.data import TrainingData
    from img2gene.models.predictor import Predictor

logger = logging.getLogger(__name__)
# Each fold is a whole fit.
N_FOLDS = 5


@dataclass(frozen=True)
class HeldOut:
    """Predictions of some training spots by fits without them.

    Attributes
    ----------
    rows
        int (n,): rows of the training data.
    predicted
        float32 (n, n_genes): on the scale of the labels.
    kind
        What was left out together: ``"group"``, ``"section"`` or ``"block"``, as in the folds of the training data.
    units
        str (n,): the group, section or block of each row.
    spread
        float32 (n, n_genes): SD over the members of an ensemble; None where there is none.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models import HeldOut
    >>> HeldOut(np.arange(2), np.zeros((2, 5), dtype="f4"), "group", np.array(["P1", "P2"])).spread is None
    True
    """

    rows: np.ndarray
    predicted: np.ndarray
    kind: str
    units: np.ndarray
    spread: np.ndarray | None = None


@runtime_checkable
class CrossFitted(Protocol):
    """A predictor whose fit returns held-out predictions, so that calibration needs no further fits.

    Examples
    --------
    >>> import img2gene as ig
    >>> isinstance(ig.models.create("ridge"), ig.models.CrossFitted)
    True
    """

    def fit_held_out(self, data: TrainingData, *, seed: int) -> HeldOut | None:
        """Fit as ``fit`` does, and return predictions of training spots by fits without them; None if nothing can be left out."""
        ...


@runtime_checkable
class HasMembers(Protocol):
    """A predictor that is an ensemble and returns the SD over its members.

    Examples
    --------
    >>> import img2gene as ig
    >>> isinstance(ig.models.create("ridge"), ig.models.HasMembers)
    False
    """

    def predict_spread(
        self, features: np.ndarray, sections: np.ndarray, **extra: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Predict as ``predict`` does, with the SD over the members, float32 (n_spots, n_genes) each; None if there is one."""
        ...


def unit_labels(data: TrainingData, folds: InnerFolds) -> np.ndarray:
    """The exchangeable unit of each spot: its group, however many of these a fold holds; else its section or block."""
    return data.groups if folds.kind == "group" else folds.labels


def fit_held_out(predictor: Predictor, data: TrainingData, *, seed: int) -> HeldOut | None:
    """Fit a predictor, and predict training spots by fits without them: its own fits, or :func:`cross_fit`.

    None where nothing can be left out: the predictor then is fitted all the same.
    """
    if isinstance(predictor, CrossFitted):
        # Its own held-out predictions cost no further fits.
        held_out = predictor.fit_held_out(data, seed=seed)
        return held_out if held_out is None else _checked_held_out(held_out, predictor.name, data.labels.shape[1])
    # Copied before the fit, so that cross-fitting starts from an unfitted predictor.
    fresh = copy.deepcopy(predictor)
    predictor.fit(data, seed=seed)
    try:
        return cross_fit(fresh, data, seed=seed)
    except ValueError as error:
        logger.warning(
            "no uncertainty: `%s` cannot be calibrated without a part of the training data: %s", fresh.name, error
        )
        return None


def cross_fit(fresh: Predictor, data: TrainingData, *, seed: int) -> HeldOut:
    """Fit copies of an unfitted predictor without a group (section, block) each, at most five, and predict what is left out."""
    folds = inner_folds(data, seed=seed, n_max=N_FOLDS)
    names = folds.centred_in(data.sections)
    predicted = np.empty(data.labels.shape, dtype=np.float32)
    spread: np.ndarray | None = np.empty_like(predicted) if isinstance(fresh, HasMembers) else None
    for fitted, held in folds.splits():
        # A predictor may keep state between fits.
        part = copy.deepcopy(fresh)
        part.fit(data.take(fitted), seed=seed)
        left = data.take(held)
        inputs = {"positions": left.positions, "tokens": left.tokens}
        values, sd = predict_spread(part, left.features, names[held], data.labels.shape[1], **inputs)
        predicted[held] = values
        if spread is not None and sd is not None:
            spread[held] = sd
        else:
            spread = None
    return HeldOut(np.arange(len(predicted)), predicted, folds.kind, unit_labels(data, folds), spread)


def predict_spread(
    predictor: Predictor, features: np.ndarray, sections: np.ndarray, n_genes: int, **inputs: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Predict with SD over members; None for predictors without members. Inputs that it does not declare are dropped."""
    extra = {name: inputs[name] for name in declared_inputs(predictor) if inputs.get(name) is not None}
    if not isinstance(predictor, HasMembers):
        return checked_prediction(predictor, features, sections, extra, n_genes), None
    with failures(predictor.name, "predict_spread"):
        values, spread = predictor.predict_spread(features, sections, **extra)
    shape, name = (len(features), n_genes), predictor.name
    return (
        checked_labels(values, shape, name, "predictions"),
        None if spread is None else checked_labels(spread, shape, name, "the SD over members"),
    )


def _checked_held_out(held_out: HeldOut, name: str, n_genes: int) -> HeldOut:
    """Refuse held-out predictions of another shape, and those that are not finite; residuals would be NaN silently."""
    with failures(name, "fit_held_out"):
        shape = (len(held_out.rows), n_genes)
        return replace(held_out, predicted=checked_labels(held_out.predicted, shape, name, "held-out predictions"))
