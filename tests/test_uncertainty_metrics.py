"""Intervals and deviations: by hand, on data with known spread, and with parts that are not known."""

import numpy as np
import pytest
from scipy import stats

from img2gene._errors import Img2GeneError
from img2gene.metrics import coverage, error_correlation, interval_width

NAN = np.nan


def test_bounds_belong_to_the_interval():
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(coverage(truth, truth, truth), [1])
    np.testing.assert_allclose(coverage(truth, truth + 0.1, truth + 1), [0])
    np.testing.assert_allclose(coverage(truth, np.full(4, 2.0), np.full(4, 3.0)), [0.5])
    np.testing.assert_allclose(coverage(truth, np.full(4, -np.inf), np.full(4, np.inf)), [1])
    np.testing.assert_allclose(coverage(truth, truth + 1, truth - 1), [0])


def test_what_is_not_known_is_left_out_and_not_counted_as_missed():
    truth = np.array([[1.0, 1, NAN], [2, 2, 2], [3, 3, 3]])
    lower = np.array([[0.0, NAN, 0], [NAN, NAN, 0], [4, NAN, 0]])
    upper = np.array([[9.0, 9, 9], [9, 9, 9], [9, 9, NAN]])
    np.testing.assert_allclose(coverage(truth, lower, upper), [0.5, NAN, 1])
    np.testing.assert_allclose(interval_width(lower, upper), [(9 + 5) / 2, NAN, 9])


def test_intervals_of_known_noise_hold_what_they_promise():
    rng = np.random.default_rng(0)
    sd = rng.uniform(0.5, 2, (4000, 3))
    mean = rng.normal(size=sd.shape)
    truth = mean + sd * rng.normal(size=sd.shape)
    half = stats.norm.ppf(0.95) * sd
    np.testing.assert_allclose(coverage(truth, mean - half, mean + half), 0.9, atol=0.02)
    np.testing.assert_allclose(interval_width(mean - half, mean + half), 2 * half.mean(axis=0))


def test_error_correlation_equals_scipy_over_the_known_spots():
    rng = np.random.default_rng(1)
    truth, predicted = rng.normal(size=(2, 60, 4))
    sd = rng.uniform(size=(60, 4))
    sd[:20, 1] = NAN
    sd[:, 2] = NAN
    sd[1:, 3] = NAN
    error = np.abs(truth - predicted)
    expected = [
        stats.spearmanr(error[:, 0], sd[:, 0]).statistic,
        stats.spearmanr(error[20:, 1], sd[20:, 1]).statistic,
        NAN,
        NAN,
    ]
    np.testing.assert_allclose(error_correlation(truth, predicted, sd), expected)


def test_error_correlation_tells_deviations_that_know_from_those_that_do_not():
    rng = np.random.default_rng(2)
    sd = np.exp(rng.normal(scale=0.5, size=(20_000, 1)))
    truth = sd * rng.normal(size=sd.shape)
    zero = np.zeros_like(truth)
    assert error_correlation(truth, zero, sd)[0] == pytest.approx(0.46, abs=0.02)
    assert abs(error_correlation(truth, zero, rng.permutation(sd))[0]) < 0.03
    np.testing.assert_allclose(error_correlation(truth, zero, -sd), -error_correlation(truth, zero, sd))
    assert np.isnan(error_correlation(truth, zero, np.ones_like(sd))).all()


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_spots(n):
    values = np.ones((n, 2))
    assert np.isnan(error_correlation(values, values, values)).tolist() == [True, True]
    assert np.isnan(coverage(values, values, values)).tolist() == [n == 0] * 2
    assert np.isnan(interval_width(values, values)).tolist() == [n == 0] * 2


def test_shapes_have_to_agree():
    with pytest.raises(Img2GeneError, match=r"Values \(4, 2\) and Values \(4, 2\) and Values \(4, 3\) differ in shape"):
        coverage(np.ones((4, 2)), np.ones((4, 2)), np.ones((4, 3)))
