"""Far sections: the ridge predicts them alone, in models of version 0.1 a stiff and smoothed one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import img2gene as ig
from img2gene.models.networks.batches import split_sections

OLD = Path(__file__).parent / "data" / "models_format_1"


@pytest.fixture(scope="module")
def stored():
    """A stored model, and features, sections and positions to predict."""
    with np.load(OLD / "expected.npz") as arrays:
        inputs = {name: arrays[name] for name in ("features", "sections", "positions")}
    return ig.io.load_model(OLD / "img2gene.img2gene").predictor, inputs


def predict(model, inputs, by=0.0):
    features = inputs["features"] + np.float32(by) * model.fitted.validated.scale
    return model.predict(features, inputs["sections"], positions=inputs["positions"])


def share(model, inputs, by):
    rule = model.fitted.validated
    shares = rule(inputs["features"] + np.float32(by) * rule.scale, inputs["sections"])
    return np.array([shares[name][1] for name in inputs["sections"].tolist()])[:, None]


def test_far_sections_are_left_to_the_stiff_ridge(stored):
    model, inputs = stored
    rule, sections = model.fitted.validated, inputs["sections"]
    assert (share(model, inputs, 0) == 0).all()
    assert (share(model, inputs, 30) == 1).all()
    stiff = rule.ridge.predict(inputs["features"], sections)
    expected = (1 - rule.smoothing) * stiff
    n_neighbors = model.fitted.architecture.n_neighbors
    for section in split_sections(sections, inputs["positions"], n_neighbors, pad=True):
        expected[section.rows] += rule.smoothing * stiff[section.rows][section.neighbors].mean(axis=1)
    near, far = predict(model, inputs), predict(model, inputs, 30)
    np.testing.assert_allclose(far, expected, atol=1e-3)
    assert np.abs(near - far).max() > 0.01
    # In between, one passes over into the other.
    for by in np.linspace(rule.near, rule.far, 5):
        shares = share(model, inputs, by)
        np.testing.assert_allclose(predict(model, inputs, by), (1 - shares) * near + shares * far, atol=2e-3)


def test_features_that_do_not_vary_show_no_distance(stored):
    model, inputs = stored
    constant = replace(model.fitted.validated, scale=np.zeros_like(model.fitted.validated.scale))
    assert {value for _, value in constant(inputs["features"], inputs["sections"]).values()} == {0.0}
