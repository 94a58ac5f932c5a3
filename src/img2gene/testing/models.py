"""Compare trained models, and check a predictor against its contract."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError
from img2gene.models import Model, Predictor, TrainingData, create
from img2gene.models.predictor import declared_inputs
from img2gene.testing._rules import close, demand, demand_json

_METHODS = ("fit", "predict", "state", "from_state", "summary")
_N_SIDE, _PITCH_UM, _WIDTH, _N_GENES, _N_TOKENS, _TOKEN_WIDTH = 6, 100.0, 8, 5, 4, 3


def assert_models_equal(one: Model, other: Model, *, atol: float = 0.0) -> None:
    """Assert that two models hold the same configuration and arrays.

    Parameters
    ----------
    one
        The expected model.
    other
        The model that is compared with it.
    atol
        Largest absolute difference of array values that counts as equal.

    Raises
    ------
    AssertionError
        The models differ; the message names the first entry or array that does, with both values.

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
    check = Arguments()
    atol = check.number("atol", atol, 0)
    for name, model in (("one", one), ("other", other)):
        if not isinstance(model, Model):
            check.messages.append(f"{name}={shown(model)}: expected a model, such as `img2gene.get.model(sdata)`.")
    check.raise_all()
    (config, arrays), (other_config, other_arrays) = one.state(), other.state()
    # Digests differ with everything else, which is named below.
    del config["digest"], other_config["digest"]
    _compare_entries("", *(json.loads(json.dumps(facts)) for facts in (config, other_config)))
    for name in sorted({*arrays, *other_arrays}):
        demand(name in other_arrays, f"Array `{name}` is missing.")
        demand(name in arrays, f"Array `{name}` is not expected.")
        _compare_arrays(name, arrays[name], other_arrays[name], atol)


def _compare_entries(path: str, expected: Any, value: Any) -> None:
    """Compare JSON values down to the first entry that differs."""
    if isinstance(expected, dict) and isinstance(value, dict):
        for name in sorted({*expected, *value}):
            entry = f"{path}.{name}" if path else name
            demand(name in value, f"`{entry}` is missing.")
            demand(name in expected, f"`{entry}` is not expected.")
            _compare_entries(entry, expected[name], value[name])
        return
    if isinstance(expected, list) and isinstance(value, list) and len(expected) == len(value):
        for i, (left, right) in enumerate(zip(expected, value, strict=True)):
            _compare_entries(f"{path}[{i}]", left, right)
        return
    left, right = json.dumps(expected), json.dumps(value)
    demand(left == right, f"`{path}`: expected {left[:200]}, found {right[:200]}.")


def _compare_arrays(name: str, expected: np.ndarray, values: np.ndarray, atol: float) -> None:
    demand(values.shape == expected.shape, f"Array `{name}`: expected shape {expected.shape}, found {values.shape}.")
    demand(values.dtype == expected.dtype, f"Array `{name}`: expected type {expected.dtype}, found {values.dtype}.")
    differ = np.argwhere(~np.isclose(values, expected, rtol=0, atol=atol, equal_nan=True))
    if len(differ):
        place = tuple(map(int, differ[0]))
        raise AssertionError(
            f"Array `{name}`: expected {expected[place]} at {place}, found {values[place]}; {len(differ)} of "
            f"{expected.size} values differ."
        )


def check_predictor(make: str | Callable[[], Predictor], *, atol: float = 1e-5) -> None:
    """Check that a predictor keeps the contract of :class:`img2gene.models.Predictor`.

    It is fitted to small made-up data: two patients with two sections of 36 spots each, on a square lattice. The data
    hold tokens if the predictor declares them as an input.

    The rules: predictions are float32 (n_spots, n_genes) and finite, also for a section that was not in the
    training data, unless the predictor refuses it with an ``Img2GeneError``; the same seed gives the same
    predictions; predictions depend neither on the order of the spots, nor on other sections, nor on earlier calls;
    fitting and predicting change no input; the stored state has the declared shapes and restores the same
    predictions; configuration and summary are JSON.

    Parameters
    ----------
    make
        The class of the predictor, a function that sets its parameters and returns it unfitted, or its registered name.
    atol
        Largest absolute difference of predictions that counts as equal.

    Raises
    ------
    AssertionError
        A rule is broken; the message says which.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.testing.check_predictor("ridge")
    >>> ig.testing.check_predictor(lambda: ig.models.create("knn", k=3))
    """
    check = Arguments()
    atol = check.number("atol", atol, 0)
    if not (isinstance(make, str) or callable(make)):
        check.messages.append(
            f"make={shown(make)}: expected the name of a model, its class, or a function that returns it unfitted."
        )
    check.raise_all()
    build = (lambda: create(make)) if isinstance(make, str) else make
    predictor = _built(build)
    data = _training_data("tokens" in declared_inputs(predictor))
    before = copy.deepcopy(data)
    _fit(predictor, data)
    demand(_same_data(data, before), "`fit` changes its training data.")
    predicted = _first_prediction(predictor, data)
    demand(_same_data(data, before), "`predict` changes its input.")
    _check_values(predicted, data)
    _check_calls(predictor, data, predicted, atol)
    _check_refits(build, data, predicted, atol)
    _check_state(predictor, data, predicted, atol)
    demand_json(predictor.summary(), "`summary`")


def _built(build: Callable[[], Predictor]) -> Predictor:
    """Make a predictor, and demand the methods and attributes of the contract."""
    try:
        predictor = build()
    except Img2GeneError:
        raise
    except Exception as error:
        raise AssertionError(f"The predictor cannot be made without arguments: {error!r}.") from error
    kind = type(predictor).__name__
    for name in _METHODS:
        demand(callable(getattr(predictor, name, None)), f"`{kind}` has no method `{name}`.")
    demand(isinstance(getattr(predictor, "name", None), str), f"`{kind}` has no `name`, under which it is registered.")
    shapes = getattr(predictor, "shapes", None)
    demand(
        isinstance(shapes, Mapping) or hasattr(predictor, "array_shapes"),
        f"`{kind}` has no `shapes`: a dictionary from the arrays of its state to their axes.",
    )
    return predictor


def _fit(predictor: Predictor, data: TrainingData) -> None:
    try:
        predictor.fit(data, seed=0)
    except Exception as error:
        raise AssertionError(f"`fit` fails: {error!r}.") from error


def _check_values(predicted: np.ndarray, data: TrainingData) -> None:
    demand(
        isinstance(predicted, np.ndarray),
        f"`predict` returns a {type(predicted).__name__}, expected an array of numpy.",
    )
    demand(
        predicted.shape == data.labels.shape,
        f"Predictions have shape {predicted.shape}, expected {data.labels.shape} (n_spots, n_genes).",
    )
    demand(predicted.dtype == np.float32, f"Predictions are {predicted.dtype}, expected float32.")
    demand(bool(np.isfinite(predicted).all()), "Predictions hold NaN or infinite values.")


def _check_calls(predictor: Predictor, data: TrainingData, predicted: np.ndarray, atol: float) -> None:
    demand(close(_predict(predictor, data), predicted, atol), "A second call of `predict` returns other values.")
    order = np.random.default_rng(1).permutation(len(data.sections))
    shuffled = _predict(predictor, data.take(order))
    demand(close(shuffled, predicted[order], atol), "Predictions depend on the order of the spots.")
    for section in np.unique(data.sections):
        rows = data.sections == section
        alone = _predict(predictor, data.take(rows))
        demand(
            close(alone, predicted[rows], atol), "Predictions of a section depend on the other sections of the call."
        )
    _check_new_sections(predictor, replace(data, sections=np.char.add("new ", data.sections)))


def _first_prediction(predictor: Predictor, data: TrainingData) -> np.ndarray:
    try:
        return _predict(predictor, data)
    except Exception as error:
        raise AssertionError(f"`predict` fails on the training data: {error!r}.") from error


def _check_new_sections(predictor: Predictor, data: TrainingData) -> None:
    try:
        predicted = _predict(predictor, data)
    except Img2GeneError:
        # A model that knows its training sections alone, such as `coordinates`, refuses others by name.
        return
    except Exception as error:
        message = f"`predict` fails on a section that was not in the training data: {error!r}."
        raise AssertionError(message) from error
    _check_values(predicted, data)


def _check_refits(build: Callable[[], Predictor], data: TrainingData, predicted: np.ndarray, atol: float) -> None:
    again = build()
    again.fit(data, seed=0)
    demand(close(_predict(again, data), predicted, atol), "Two fits with the same seed predict other values.")
    shuffled = build()
    shuffled.fit(data.take(np.random.default_rng(1).permutation(len(data.sections))), seed=0)
    demand(close(_predict(shuffled, data), predicted, atol), "The fit depends on the order of the training spots.")


def _check_state(predictor: Predictor, data: TrainingData, predicted: np.ndarray, atol: float) -> None:
    config, arrays = predictor.state()
    demand_json(config, "The configuration of `state`")
    kind = type(predictor)
    shapes = kind.array_shapes(config) if hasattr(kind, "array_shapes") else kind.shapes
    demand(
        set(arrays) == set(shapes), f"`state` returns the arrays {sorted(arrays)}, `shapes` declares {sorted(shapes)}."
    )
    sizes: dict[str, int] = {"genes": data.labels.shape[1], "width": data.features.shape[1]}
    for name, axes in shapes.items():
        shape = np.shape(arrays[name])
        demand(len(shape) == len(axes), f"Array `{name}` has shape {shape}, declared are the axes {axes}.")
        expected = tuple(
            axis if isinstance(axis, int) else sizes.setdefault(axis, size)
            for axis, size in zip(axes, shape, strict=True)
        )
        demand(shape == expected, f"Array `{name}` has shape {shape}, expected {expected} ({axes}).")
    restored = kind.from_state(json.loads(json.dumps(config)), arrays)
    demand(close(_predict(restored, data), predicted, atol), "A predictor restored from its state predicts otherwise.")


def _predict(predictor: Predictor, data: TrainingData) -> np.ndarray:
    extra = {name: getattr(data, name) for name in declared_inputs(predictor)}
    return predictor.predict(data.features, data.sections, **extra)


def _training_data(with_tokens: bool) -> TrainingData:
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
    tokens = rng.normal(size=(len(features), _N_TOKENS, _TOKEN_WIDTH)).astype(np.float16) if with_tokens else None
    return TrainingData(features, labels.astype(np.float32), sections, groups, positions, tokens)


def _same_data(one: TrainingData, other: TrainingData) -> bool:
    pairs = ((getattr(one, part.name), getattr(other, part.name)) for part in fields(TrainingData))
    return all(left is right is None or np.array_equal(left, right) for left, right in pairs)
