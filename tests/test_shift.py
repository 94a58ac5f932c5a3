"""Means of sections and how far one lies from others, by hand."""

import numpy as np
import pytest

from img2gene.models import centring as module
from img2gene.models.centring import section_means
from img2gene.models.networks.section_shift import shift


def test_means_of_sections_by_hand():
    features = np.array([[1, 2], [10, 20], [3, 4], [5, 9]], dtype=np.float32)
    names, means = section_means(features, np.array(["b", "a", "b", "b"]))
    assert names.tolist() == ["a", "b"]
    assert means.dtype == np.float64
    np.testing.assert_array_equal(means, [[10, 20], [3, 5]])


@pytest.mark.parametrize("n_rows", [1, 7, 1000])
def test_means_do_not_depend_on_the_blocks_they_are_summed_in(monkeypatch, n_rows):
    rng = np.random.default_rng(0)
    features, sections = rng.normal(100, 1, (60, 3)).astype(np.float32), rng.choice(["x", "y", "z"], 60)
    monkeypatch.setattr(module, "_BLOCK_ROWS", n_rows)
    names, means = section_means(features, sections)
    for name, mean in zip(names, means, strict=True):
        np.testing.assert_allclose(mean, features[sections == name].astype(np.float64).mean(axis=0), rtol=1e-13)


def test_a_sum_of_many_spots_is_not_rounded_to_single_precision():
    _, means = section_means(np.full((200_000, 1), 0.1, dtype=np.float32), np.full(200_000, "a"))
    np.testing.assert_allclose(means, np.float64(np.float32(0.1)), rtol=1e-12)


def test_shift_by_hand():
    # differences (3, 4) and (6, 16) in units of (1, 2): (3, 2) and (6, 8); √((9 + 4) / 2), √((36 + 64) / 2)
    references, scale = np.array([[3.0, 4.0], [6.0, 16.0]]), np.array([1.0, 2.0])
    assert shift(np.zeros(2), references, scale) == pytest.approx(np.sqrt(6.5))
    assert shift(np.zeros(2), references[1:], scale) == pytest.approx(np.sqrt(50))
    assert shift(references[1], references, scale) == 0


@pytest.mark.parametrize("dead", [0.0, np.inf, np.nan, np.finfo(np.float32).max])
def test_features_that_do_not_vary_are_left_out(dead):
    scale = np.array([1.0, dead, 2.0], dtype=np.float32)
    assert shift(np.zeros(3), np.array([[3.0, 1e6, 4.0]]), scale) == pytest.approx(np.sqrt(6.5))
    assert np.isnan(shift(np.zeros(1), np.ones((2, 1)), scale[1:2]))


def test_the_unit_of_a_feature_does_not_matter():
    rng = np.random.default_rng(0)
    mean, references, scale, unit = (
        rng.normal(size=5),
        rng.normal(size=(3, 5)),
        rng.uniform(1, 2, 5),
        10.0 ** np.arange(5),
    )
    assert shift(mean * unit, references * unit, scale * unit) == pytest.approx(shift(mean, references, scale))
