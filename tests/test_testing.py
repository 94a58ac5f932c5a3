"""The public checks pass for what the package has, and each of them sees the one rule that is broken."""

import dataclasses

import numpy as np
import pytest

import img2gene as ig
from img2gene.models import registry
from img2gene.testing import assert_models_equal, check_encoder, check_predictor

NETWORK = {"max_epochs": 2, "n_models": 1, "n_validations": 1, "dim": 8, "heads": 2, "n_components": 4}
QUICK = {
    "img2gene": {**NETWORK, "n_neighbors": 4},
    "cmrcnet": {**NETWORK, "k": 10},
    "bleep": {**NETWORK, "k": 10},
    "knn": {"k": 5},
}


@pytest.mark.parametrize("name", sorted(set(registry._BUILT_IN)))
def test_every_model_keeps_the_contract(name):
    check_predictor(lambda: ig.models.create(name, **QUICK.get(name, {})))


def test_a_model_can_be_named():
    check_predictor("mean")
    with pytest.raises(ig.MissingKeyError, match="moan"):
        check_predictor("moan")


class Linear:
    """Least squares without any fault; its children have one each."""

    name = "linear"
    shapes = {"coefficients": ("width", "genes")}

    def fit(self, data, *, seed):
        self.coefficients = np.linalg.lstsq(data.features, data.labels, rcond=None)[0].astype(np.float32)

    def predict(self, features, sections):
        return features @ self.coefficients

    def state(self):
        return {}, {"coefficients": self.coefficients}

    @classmethod
    def from_state(cls, config, arrays):
        model = cls()
        model.coefficients = arrays["coefficients"]
        return model

    def summary(self):
        return {}


class ChangesInput(Linear):
    def fit(self, data, *, seed):
        super().fit(data, seed=seed)
        data.labels[0] = 0


class ChangesFeatures(Linear):
    def predict(self, features, sections):
        predicted = super().predict(features, sections)
        features[0] = 0
        return predicted


class CentresTheCall(Linear):
    def predict(self, features, sections):
        predicted = super().predict(features, sections)
        return predicted - predicted.mean(axis=0, dtype=np.float64).astype(np.float32)


class CountsCalls(Linear):
    calls = 0

    def predict(self, features, sections):
        self.calls += 1
        return super().predict(features, sections) + np.float32(self.calls)


class KnowsItsSections(Linear):
    known = frozenset(("A1", "A2", "B1", "B2"))
    error = KeyError

    def predict(self, features, sections):
        if unknown := set(sections) - self.known:
            raise self.error(f"unknown sections {unknown}")
        return super().predict(features, sections)


class RefusesNewSections(KnowsItsSections):
    error = ig.Img2GeneError


class GapsInNewSections(Linear):
    def predict(self, features, sections):
        predicted = super().predict(features, sections)
        predicted[np.char.startswith(sections, "new")] = np.nan
        return predicted


class NeedsTokens(Linear):
    inputs = ("tokens", "positions")

    def fit(self, data, *, seed):
        assert data.tokens.dtype == np.float16
        super().fit(data, seed=seed)

    def predict(self, features, sections, *, tokens, positions):
        assert len(tokens) == len(positions) == len(features)
        return super().predict(features, sections) + tokens[:, 0, :1]


class NoJsonState(Linear):
    def state(self):
        return {"penalty": float("nan")}, {"coefficients": self.coefficients}


class MissingAxis(Linear):
    shapes = {"coefficients": ("width",)}


class WrongType(Linear):
    def predict(self, features, sections):
        return super().predict(features, sections).astype(np.float64)


class Gaps(Linear):
    def predict(self, features, sections):
        predicted = super().predict(features, sections)
        predicted[0] = np.nan
        return predicted


class OneGene(Linear):
    def predict(self, features, sections):
        return super().predict(features, sections)[:, :1]


class Unseeded(Linear):
    def fit(self, data, *, seed):
        super().fit(data, seed=seed)
        self.coefficients += np.random.default_rng().normal(size=self.coefficients.shape).astype(np.float32)


class LooksAtRows(Linear):
    def predict(self, features, sections):
        return super().predict(features, sections) + np.arange(len(features), dtype=np.float32)[:, None]


class FirstSpots(Linear):
    def fit(self, data, *, seed):
        super().fit(data.take(np.arange(40)), seed=seed)


class Undeclared(Linear):
    def state(self):
        return {}, {"coefficients": self.coefficients, "bias": np.zeros(1)}


class WrongShape(Linear):
    shapes = {"coefficients": ("genes", "width")}


class Forgets(Linear):
    @classmethod
    def from_state(cls, config, arrays):
        return super().from_state(config, {"coefficients": arrays["coefficients"] * 0})


class NoJson(Linear):
    def summary(self):
        return {"error": np.float32(1)}


@pytest.mark.parametrize("kind", [Linear, RefusesNewSections, NeedsTokens])
def test_a_predictor_without_fault_passes(kind):
    check_predictor(kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ChangesInput, "`fit` changes its training data"),
        (ChangesFeatures, "`predict` changes its input"),
        (CentresTheCall, "depend on the other sections"),
        (CountsCalls, "second call"),
        (KnowsItsSections, "fails on a section that was not in the training data: KeyError"),
        (GapsInNewSections, "NaN"),
        (NoJsonState, "configuration of `state` is not JSON"),
        (MissingAxis, "declared are the axes"),
        (WrongType, "are float64, expected float32"),
        (Gaps, "NaN"),
        (OneGene, "have shape"),
        (Unseeded, "same seed"),
        (LooksAtRows, "depend on the order of the spots"),
        (FirstSpots, "depends on the order of the training spots"),
        (Undeclared, "`shapes` declares"),
        (WrongShape, "has shape"),
        (Forgets, "restored from its state"),
        (NoJson, "`summary` is not JSON"),
    ],
)
def test_each_broken_rule_is_seen(kind, message):
    with pytest.raises(AssertionError, match=message):
        check_predictor(kind)


@pytest.mark.parametrize("name", ["color-texture", "efficientnet-lite0", "tiny"])
def test_offline_encoders_keep_their_specification(name):
    check_encoder(ig.encoders.get(name))


class Mean:
    width = 3

    def __call__(self, patches, side=None):
        return patches.mean(axis=(1, 2)).astype(np.float32)


class Batchwise(Mean):
    def __call__(self, patches, side=None):
        values = super().__call__(patches, side)
        return values - values.mean(axis=0)


class Remembers(Mean):
    calls = 0

    def __call__(self, patches, side=None):
        self.calls += 1
        return super().__call__(patches, side) + np.float32(100 * self.calls)


class Wide(Mean):
    def __call__(self, patches, side=None):
        return np.tile(super().__call__(patches, side), 2)


class Double(Mean):
    def __call__(self, patches, side=None):
        return super().__call__(patches, side).astype(np.float64)


class Blind(Mean):
    def __call__(self, patches, side=None):
        return np.ones((len(patches), 3), dtype=np.float32)


class Paints(Mean):
    def __call__(self, patches, side=None):
        values = super().__call__(patches, side)
        patches[:] = 0
        return values


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Batchwise, "depend on the other patches"),
        (Remembers, "second call"),
        (Wide, "have shape"),
        (Double, "float64"),
        (Blind, "whatever their pixels"),
        (Paints, "changes the pixels"),
    ],
)
def test_each_broken_rule_of_an_encoder_is_seen(tiny_encoder, kind, message):
    spec = dataclasses.replace(tiny_encoder, name="own", width=3, build=lambda spec, **options: kind())
    with pytest.raises(AssertionError, match=message):
        check_encoder(spec)


def test_an_encoder_without_specification_is_checked_alone():
    check_encoder(Mean())
    with pytest.raises(AssertionError, match="depend on the other patches"):
        check_encoder(Batchwise())


class Tokens(Mean):
    """Every cell has the mean of its patch and the number of the cell; the children have one fault each."""

    def tokens(self, patches, side, grid):
        features = self(patches, side)
        cells = np.arange(grid**2, dtype=np.float32)
        return features, np.stack([features[:, :1] + cells, np.tile(cells, (len(patches), 1))], axis=2)


class OtherFeatures(Tokens):
    def tokens(self, patches, side, grid):
        features, tokens = super().tokens(patches, side, grid)
        return features + 1, tokens


class NarrowTokens(Tokens):
    def tokens(self, patches, side, grid):
        features, tokens = super().tokens(patches, side, grid)
        return features, tokens[..., :1]


class DoubleTokens(Tokens):
    def tokens(self, patches, side, grid):
        features, tokens = super().tokens(patches, side, grid)
        return features, tokens.astype(np.float64)


class GapsInTokens(Tokens):
    def tokens(self, patches, side, grid):
        features, tokens = super().tokens(patches, side, grid)
        tokens[0] = np.inf
        return features, tokens


class BatchwiseTokens(Tokens):
    def tokens(self, patches, side, grid):
        features, tokens = super().tokens(patches, side, grid)
        return features, tokens - tokens.mean(axis=0)


def test_tokens_without_fault_pass(tiny_encoder):
    check_encoder(dataclasses.replace(tiny_encoder, width=3, token_width=2, build=lambda spec, **options: Tokens()))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Mean, "no method `tokens`"),
        (OtherFeatures, "other features than a plain call"),
        (NarrowTokens, "Tokens have shape"),
        (DoubleTokens, "Tokens are float64"),
        (GapsInTokens, "Tokens hold NaN"),
        (BatchwiseTokens, "Tokens of a patch depend on the other patches"),
    ],
)
def test_each_broken_rule_of_tokens_is_seen(tiny_encoder, kind, message):
    spec = dataclasses.replace(tiny_encoder, width=3, token_width=2, build=lambda spec, **options: kind())
    with pytest.raises(AssertionError, match=message):
        check_encoder(spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 4}, "has width 3, its specification 4"),
        ({"licence": ""}, "no `licence`"),
        ({"source": ""}, "no `source`"),
        ({"revision": ""}, "no `revision`"),
        ({"std": (1.0, 0.0, 1.0)}, "`std` of the specification"),
    ],
)
def test_each_impossible_specification_is_seen(tiny_encoder, changes, message):
    spec = dataclasses.replace(tiny_encoder, **({"width": 3, "build": lambda spec, **options: Mean()} | changes))
    with pytest.raises(AssertionError, match=message):
        check_encoder(spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.5,)}, r"mean=\(0.5,\): expected three numbers"),
        ({"std": (1.0, 1.0)}, r"std=\(1.0, 1.0\): expected three numbers"),
        ({"mpp": 0.0}, "mpp=0.0: expected a number above 0, or None"),
    ],
)
def test_a_specification_that_cannot_be_is_refused_when_it_is_made(tiny_encoder, changes, message):
    with pytest.raises(ig.Img2GeneError, match=message):
        dataclasses.replace(tiny_encoder, **changes)


@pytest.fixture
def two_models(trained_study):
    model = ig.get.model(trained_study)
    return model, type(model).from_state(*model.state())


def test_a_model_equals_its_stored_copy(two_models):
    assert_models_equal(*two_models)


def test_values_that_differ_are_given_with_their_place(two_models):
    model, other = two_models
    means = other.statistics["mean"].copy()
    means[3] = model.statistics["mean"][3] + 1
    other.statistics["mean"] = means
    place = rf"`statistics.mean`: expected {model.statistics['mean'][3]} at \(3,\), found {means[3]}; 1 of 12"
    with pytest.raises(AssertionError, match=place):
        assert_models_equal(model, other)
    assert_models_equal(model, other, atol=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values[:-1], r"expected shape \(12,\), found \(11,\)"),
        (lambda values: values.astype(np.float16), "found float16"),
    ],
)
def test_arrays_of_another_shape_or_type_are_named(two_models, change, message):
    model, other = two_models
    other.statistics["mean"] = change(other.statistics["mean"])
    with pytest.raises(AssertionError, match=f"`statistics.mean`: .*{message}"):
        assert_models_equal(model, other)


def test_an_array_of_one_model_alone_is_named(two_models):
    model, other = two_models
    del other.statistics["mean"]
    with pytest.raises(AssertionError, match="`statistics.mean` is missing"):
        assert_models_equal(model, other)
    with pytest.raises(AssertionError, match="`statistics.mean` is not expected"):
        assert_models_equal(other, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genes": [*"ABCDEFGHIJK", "Z"]}, r"`genes\[0\]`: expected \"G00\", found \"A\""),
        ({"genes": ["G00"]}, "`genes`: expected"),
        ({"labels": {"layer": "own", "target_sum": 1e4}}, '`labels.layer`: expected null, found "own"'),
        ({"inputs": {}}, r"`inputs\.\w+` is missing"),
        ({"report": {"note": 1}}, r"`report\.\w+` is"),
    ],
)
def test_the_first_entry_that_differs_is_named(two_models, changes, message):
    model, other = two_models
    with pytest.raises(AssertionError, match=message):
        assert_models_equal(model, dataclasses.replace(other, **changes))
