"""Components and weights of predictions: by their definitions, and indifferent to blocks, stains and scales."""

import numpy as np
import pytest
from scipy.optimize import nnls

from img2gene.models import components
from img2gene.models.components import Components
from img2gene.models.networks.stacking import stack_weights

RNG = np.random.default_rng(0)
SECTIONS = np.repeat(["a", "b"], [30, 20])
FEATURES = (RNG.normal(size=(50, 6)) * np.geomspace(0.1, 10, 6) + 5).astype(np.float32)


def test_components_have_unit_energy_and_keep_all_distances():
    found = Components.fit(FEATURES, SECTIONS, 6, center="section", seed=0)(FEATURES, SECTIONS)
    np.testing.assert_allclose(np.square(found).sum(axis=1).mean(), 1, rtol=1e-4)
    centred = np.concatenate([FEATURES[SECTIONS == name] - FEATURES[SECTIONS == name].mean(axis=0) for name in "ab"])
    scaled = centred / np.sqrt(np.square(centred).mean(axis=0)) / np.sqrt(6)
    np.testing.assert_allclose(found @ found.T, scaled @ scaled.T, atol=1e-4)


@pytest.mark.parametrize("center", ["section", "none"])
def test_blocks_do_not_matter_and_the_stain_of_a_section_only_where_it_is_not_centred(monkeypatch, center):
    fitted = Components.fit(FEATURES, SECTIONS, 3, center=center, seed=0)
    expected = fitted(FEATURES, SECTIONS)
    monkeypatch.setattr(components, "_BLOCK_VALUES", 20)
    np.testing.assert_allclose(fitted(FEATURES, SECTIONS), expected, atol=1e-5)
    moved = fitted(FEATURES + np.where(SECTIONS == "a", 3, 0).astype(np.float32)[:, None], SECTIONS)
    assert (np.abs(moved - expected).max() < 1e-3) == (center == "section")
    order = RNG.permutation(50)
    np.testing.assert_allclose(fitted(FEATURES[order], SECTIONS[order]), expected[order], atol=1e-5)


def test_tokens_are_projected_one_by_one():
    tokens = np.stack([FEATURES, FEATURES[::-1]], axis=1).astype(np.float16)
    fitted = Components.fit(tokens, SECTIONS, 3, center="none", seed=0)
    found = fitted(tokens, SECTIONS)
    assert found.shape == (50, 2, 3)
    np.testing.assert_allclose(found[:, 1], fitted(tokens[:, 1], SECTIONS), atol=1e-4)


def test_weights_are_those_of_non_negative_least_squares():
    labels = RNG.normal(size=(40, 3)) * [1, 10, 0.1]
    candidates = [0.5 * labels + RNG.normal(size=labels.shape) * [1, 10, 0.1] * noise for noise in (0.3, 0.6)]
    candidates.append(-labels)
    sd = np.sqrt(np.square(labels).mean(axis=0))
    expected = nnls(np.column_stack([(part / sd).ravel() for part in candidates]), (labels / sd).ravel())[0]
    np.testing.assert_allclose(stack_weights(candidates, labels), expected, atol=1e-6)
    assert expected[2] == 0


def test_a_spot_of_weight_two_counts_like_two_spots():
    labels = RNG.normal(size=(40, 3))
    candidates = [labels + noise * RNG.normal(size=labels.shape) for noise in (0.5, 1.0)]
    twice = np.r_[np.arange(40), np.arange(10)]
    expected = stack_weights([part[twice] for part in candidates], labels[twice])
    weights = np.where(np.arange(40) < 10, 2.0, 1.0)
    np.testing.assert_allclose(stack_weights(candidates, labels, weights), expected, atol=1e-6)
    assert np.abs(expected - stack_weights(candidates, labels)).max() > 1e-3


def test_the_same_prediction_twice_and_none_at_all_get_finite_weights():
    labels = RNG.normal(size=(40, 3))
    twice = stack_weights([labels, labels], labels)
    np.testing.assert_allclose(twice.sum(), 1, atol=1e-6)
    assert not stack_weights([np.zeros((40, 3))] * 2, labels).any()
    # genes without variance count nothing
    spoiled = np.column_stack([labels, np.full(40, 9.0)])
    np.testing.assert_allclose(stack_weights([spoiled], np.column_stack([labels, np.zeros(40)])), 1)
