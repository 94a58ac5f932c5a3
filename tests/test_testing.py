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


def test_a_predictor_without_fault_passes():
    check_predictor(Linear)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ChangesInput, "`fit` changes its training data"),
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


def test_missing_tokens_are_seen(tiny_encoder):
    spec = dataclasses.replace(tiny_encoder, name="own", width=3, token_width=4, build=lambda spec, **options: Mean())
    with pytest.raises(AssertionError, match="no method `tokens`"):
        check_encoder(spec)


def test_models_are_compared_array_by_array(trained_study):
    model = ig.get.model(trained_study)
    copy = type(model).from_state(*model.state())
    assert_models_equal(model, copy)
    copy.statistics["mean"] = copy.statistics["mean"] + 1
    with pytest.raises(AssertionError, match=r"`statistics.mean` holds other values"):
        assert_models_equal(model, copy)
    assert_models_equal(model, copy, atol=2)
    shorter = dataclasses.replace(model, genes=model.genes[:-1])
    with pytest.raises(AssertionError, match="`genes` differs"):
        assert_models_equal(model, shorter)
