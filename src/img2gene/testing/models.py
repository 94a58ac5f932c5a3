"""Compare trained models, and check a predictor against its contract."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np

from img2gene.models import Model, Predictor, TrainingData
from img2gene.models.predictor import declared_inputs

_N_SIDE, _PITCH_UM, _WIDTH, _N_GENES = 6, 100.0, 8, 5


def assert_models_equal(one: Model, other: Model, *, atol: float = 0.0) -> None:
    """Assert that two models hold the same configuration and arrays.

    Parameters
    ----------
    one, other
        Trained models.
    atol
        Largest absolute difference of array values that still counts as equal.

    Raises
    ------
    AssertionError
        The models differ; the message names the first difference.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "ridge", validate_on=["P3"])
    >>> model = ig.get.model(sdata)
    >>> ig.testing.assert_models_equal(model, type(model).from_state(*model.state()))
    """
    (config, arrays), (other_config, other_arrays) = one.state(), other.state()
    for name in sorted({*config, *other_config}):
        left, right = (json.dumps(facts.get(name), sort_keys=True) for facts in (config, other_config))
        _demand(left == right, f"`{name}` differs: {left[:200]} against {right[:200]}.")
    for name in sorted({*arrays, *other_arrays}):
        _demand(name in arrays and name in other_arrays, f"Array `{name}` is in one of the models only.")
        first, second = arrays[name], other_arrays[name]
        _demand(first.shape == second.shape, f"Array `{name}` has shapes {first.shape} and {second.shape}.")
        _demand(first.dtype == second.dtype, f"Array `{name}` has types {first.dtype} and {second.dtype}.")
        same = np.allclose(first, second, rtol=0, atol=atol, equal_nan=True)
        _demand(same, f"Array `{name}` holds other values.")


def check_predictor(make: Callable[[], Predictor], *, atol: float = 1e-5) -> None:
    """Check that a predictor keeps the contract of :class:`img2gene.models.Predictor`.

    It is fitted to small made-up data: two patients with two sections of 36 spots each, on a square lattice.

    Parameters
    ----------
    make
        Makes an unfitted predictor: the class itself, or a function that sets its parameters.
    atol
        Largest absolute difference of predictions that counts as equal.

    Raises
    ------
    AssertionError
        The predictor breaks a rule. The message says which: predictions are float32 (n_spots, n_genes) and finite; the same
        seed gives the same predictions; predictions do not depend on the order of spots; fitting and predicting change no
        input; the stored state has the declared shapes and restores the same predictions; the summary is JSON.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.testing.check_predictor(ig.models.get("ridge"))
    """
    data = _training_data()
    before = copy.deepcopy(data)
    predictor = make()
    predictor.fit(data, seed=0)
    _demand(_same_data(data, before), "`fit` changes its training data.")
    predicted = _predict(predictor, data)
    _demand(_same_data(data, before), "`predict` changes its input.")
    _check_values(predicted, data)
    again = make()
    again.fit(data, seed=0)
    _demand(_close(_predict(again, data), predicted, atol), "Two fits with the same seed predict other values.")
    _check_order(make, predictor, data, predicted, atol)
    _check_state(predictor, data, predicted, atol)
    _demand_json(predictor.summary(), "`summary`")


def _check_values(predicted: np.ndarray, data: TrainingData) -> None:
    _demand(
        predicted.shape == data.labels.shape,
        f"Predictions have shape {predicted.shape}, expected {data.labels.shape} (n_spots, n_genes).",
    )
    _demand(predicted.dtype == np.float32, f"Predictions are {predicted.dtype}, expected float32.")
    _demand(bool(np.isfinite(predicted).all()), "Predictions hold NaN or infinite values.")


def _check_order(
    make: Callable[[], Predictor], predictor: Predictor, data: TrainingData, predicted: np.ndarray, atol: float
) -> None:
    order = np.random.default_rng(1).permutation(len(data.sections))
    shuffled = data.take(order)
    _demand(
        _close(_predict(predictor, shuffled), predicted[order], atol), "Predictions depend on the order of the spots."
    )
    refitted = make()
    refitted.fit(shuffled, seed=0)
    _demand(_close(_predict(refitted, data), predicted, atol), "The fit depends on the order of the training spots.")


def _check_state(predictor: Predictor, data: TrainingData, predicted: np.ndarray, atol: float) -> None:
    config, arrays = predictor.state()
    _demand_json(config, "The configuration of `state`")
    kind = type(predictor)
    shapes = kind.array_shapes(config) if hasattr(kind, "array_shapes") else kind.shapes
    _demand(
        set(arrays) == set(shapes), f"`state` returns the arrays {sorted(arrays)}, `shapes` declares {sorted(shapes)}."
    )
    sizes: dict[str, int] = {"genes": data.labels.shape[1], "width": data.features.shape[1]}
    for name, axes in shapes.items():
        shape = np.shape(arrays[name])
        _demand(len(shape) == len(axes), f"Array `{name}` has shape {shape}, declared are the axes {axes}.")
        expected = tuple(
            axis if isinstance(axis, int) else sizes.setdefault(axis, size)
            for axis, size in zip(axes, shape, strict=True)
        )
        _demand(shape == expected, f"Array `{name}` has shape {shape}, expected {expected} ({axes}).")
    restored = kind.from_state(json.loads(json.dumps(config)), arrays)
    _demand(
        _close(_predict(restored, data), predicted, atol), "A predictor restored from its state predicts otherwise."
    )


def _predict(predictor: Predictor, data: TrainingData) -> np.ndarray:
    extra = {"positions": data.positions} if "positions" in declared_inputs(predictor) else {}
    return predictor.predict(data.features, data.sections, **extra)


def _training_data() -> TrainingData:
    """Make data whose labels follow the features, which follow the position in each section."""
    rng = np.random.default_rng(0)
    rows, columns = np.meshgrid(np.arange(_N_SIDE), np.arange(_N_SIDE), indexing="ij")
    lattice = np.column_stack([rows.ravel(), columns.ravel()]) * _PITCH_UM
    sections = np.repeat(["A1", "A2", "B1", "B2"], len(lattice))
    positions = np.tile(lattice, (4, 1)).astype(float)
    waves = np.sin(positions @ rng.normal(scale=0.01, size=(2, _WIDTH)))
    features = (waves + rng.normal(scale=0.1, size=waves.shape)).astype(np.float32)
    effects = rng.normal(size=(_WIDTH, _N_GENES))
    labels = np.clip(2 + features @ effects + rng.normal(scale=0.1, size=(len(features), _N_GENES)), 0, None)
    groups = np.array([name[0] for name in sections])
    return TrainingData(features, labels.astype(np.float32), sections, groups, positions)


def _same_data(one: TrainingData, other: TrainingData) -> bool:
    pairs = ((getattr(one, part.name), getattr(other, part.name)) for part in fields(TrainingData))
    return all(left is right is None or np.array_equal(left, right) for left, right in pairs)


def _close(one: np.ndarray, other: np.ndarray, atol: float) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=0, atol=atol)


def _demand_json(value: Any, what: str) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{what} is not JSON: {error}.") from error


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
