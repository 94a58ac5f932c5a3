"""The ridge: the closed form with weights, penalties by response, depth weights, and what must not change it."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from img2gene import models
from img2gene._errors import Img2GeneError
from img2gene.metrics import pearson
from img2gene.models import TrainingData
from img2gene.models import ridge as ridge_module
from img2gene.models.depth import depth_weights
from img2gene.models.linear import one_standard_error
from img2gene.models.plain_ridge import PlainRidge
from img2gene.models.ridge import Ridge
from img2gene.models.uncertainty.inner_folds import inner_folds

CENTRES = pytest.mark.parametrize("center", ["section", "none"])


def linear_data(n=240, width=12, n_genes=6, *, noise=0.5, n_sections=4, depth=None, seed=0):
    """Labels that are a linear function of features; sections ``s0`` … of as many groups."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, width))
    weights = np.random.default_rng(77).normal(size=(width, n_genes))
    labels = features @ weights / np.sqrt(width) + noise * rng.normal(size=(n, n_genes)) + 3
    names = np.array([f"s{i}" for i in np.arange(n) % n_sections])
    library = None if depth is None else rng.uniform(0.5, 2, size=n) * depth
    positions = rng.normal(size=(n, 2))
    return TrainingData(
        features.astype(np.float32), labels.astype(np.float32), names, names, positions, library=library
    )


def fitted(data, kind=Ridge, **params):
    model = kind(**params)
    model.fit(data, seed=0)
    return model


def predicted(data, new=None, kind=Ridge, **params):
    new = data if new is None else new
    return fitted(data, kind, **params).predict(new.features, new.sections)


@CENTRES
def test_it_recovers_a_planted_linear_signal(center):
    train, test = linear_data(300, noise=0.3), linear_data(100, noise=0.3, seed=1)
    assert pearson(test.labels, predicted(train, test, center=center)).min() > 0.85


def test_without_signal_it_predicts_close_to_the_mean():
    data = linear_data(200)
    noise = np.random.default_rng(1).normal(size=data.labels.shape).astype(np.float32)
    data = replace(data, labels=noise)
    predictions = predicted(data)
    assert predictions.std(axis=0).max() < 0.1
    np.testing.assert_allclose(predictions.mean(axis=0), noise.mean(axis=0), atol=0.02)


@CENTRES
@pytest.mark.parametrize("depth", [None, 1000.0])
@pytest.mark.parametrize("n_responses", [1, 3, 60])
def test_with_one_penalty_it_equals_weighted_least_squares_of_scikit_learn(center, depth, n_responses):
    data, new = linear_data(depth=depth), linear_data(20, seed=1)
    weights = depth_weights(data.library, data.sections)
    x, y = (np.asarray(values, dtype=np.float64) for values in (data.features, data.labels))
    spread = x - (x.mean(axis=0) if center == "none" else 0)
    if center == "section":
        for name in np.unique(data.sections):
            rows = data.sections == name
            spread[rows] = x[rows] - x[rows].mean(axis=0)
            for values in (x, y):
                values[rows] -= np.average(values[rows], axis=0, weights=weights[rows])
    else:
        spread = x - np.average(x, axis=0, weights=weights)
    scale = np.sqrt(np.square(spread).mean(axis=0))
    alpha = 2.0 * np.square(spread / scale).sum() / len(x)
    reference = SklearnRidge(alpha=alpha, fit_intercept=center == "none", solver="svd")
    reference.fit(x / scale, y, sample_weight=weights)
    # The prediction centres new sections by their plain mean.
    inputs = new.features.astype(np.float64)
    if center == "section":
        for name in np.unique(new.sections):
            inputs[new.sections == name] -= inputs[new.sections == name].mean(axis=0)
    expected = reference.predict(inputs / scale)
    if center == "section":
        expected = expected + np.average(data.labels, axis=0, weights=weights)
    predictions = predicted(data, new, penalty=2.0, center=center, n_responses=n_responses)
    np.testing.assert_allclose(predictions, expected, rtol=1e-4, atol=1e-4)


def two_responses(n=300, seed=0):
    """40 genes that share two programmes: the larger follows the features, the smaller one is noise."""
    rng = np.random.default_rng(seed)
    data = linear_data(n, n_genes=1, noise=0.0, seed=seed)
    signal = 3 * (data.labels - data.labels.mean(axis=0)) @ np.random.default_rng(5).normal(size=(1, 40))
    noise = 2 * rng.normal(size=(n, 1)) @ np.random.default_rng(6).normal(size=(1, 40))
    labels = signal + noise + 0.1 * rng.normal(size=(n, 40))
    return replace(data, labels=labels.astype(np.float32)), signal


def test_a_response_that_the_features_do_not_show_gets_a_larger_penalty():
    train, _ = two_responses()
    penalties = fitted(train).report["penalty"]
    assert penalties[0] < penalties[1] / 10


def test_it_is_nearer_to_the_signal_than_a_ridge_with_one_penalty_for_all_responses():
    train, _ = two_responses()
    test, signal = two_responses(200, seed=1)
    error = {
        kind: np.square(predicted(train, test, kind) - train.labels.mean(axis=0) - signal).mean()
        for kind in (Ridge, PlainRidge)
    }
    assert error[Ridge] < 0.8 * error[PlainRidge]


@CENTRES
def test_errors_of_the_choice_equal_those_of_fits_without_the_fold(center):
    data, penalties = linear_data(depth=1000.0), (0.1, 1.0, 30.0)
    model = fitted(data, penalty=penalties, center=center)
    weights = depth_weights(data.library, data.sections)
    shares, totals = [], []
    for fit_on, held in inner_folds(data, seed=0).splits():
        w = weights[held][:, None]
        truth = data.labels[held].astype(np.float64)
        reference = np.average(truth, axis=0, weights=w[:, 0])
        if center == "none":
            reference = np.average(data.labels[fit_on], axis=0, weights=weights[fit_on])
        errors = []
        for penalty in penalties:
            part = Ridge(penalty=penalty, center=center)
            # Only the weights relative to each other matter, which leaving a section out does not change.
            part.fit(data.take(fit_on), seed=0)
            guess = part.predict(data.features[held], data.sections[held]).astype(np.float64)
            guess -= part.arrays["label_mean"]
            if center == "section":
                guess -= np.average(guess, axis=0, weights=w[:, 0])
            errors.append((w * np.square(truth - reference - guess)).sum() / (w * np.square(truth - reference)).sum())
        shares.append(w.sum())
        totals.append(errors)
    expected = np.average(totals, axis=0, weights=shares)
    # Errors of all bins add up to that of one penalty for all.
    errors = np.array(model.report["inner_error"]) - 1
    np.testing.assert_allclose(1 + errors.sum(axis=0), expected, rtol=2e-2)


def test_one_standard_error_by_hand():
    # Means 1.0, 1.1, 1.2 and 2.0. Differences to the first over two folds: (0, .2), (.2, .2), (1, 1):
    # their standard errors are .1, 0 and 0, so only the second is within one of the best.
    errors, equal = np.array([[1.0, 1.0, 1.2, 2.0], [1.0, 1.2, 1.2, 2.0]]), np.array([0.5, 0.5])
    assert one_standard_error(errors, equal, [1.0, 10.0, 100.0, 1000.0]) == 1
    assert one_standard_error(errors[:, ::-1], equal, [1000.0, 100.0, 10.0, 1.0]) == 2
    # what both folds share does not widen the choice
    assert one_standard_error(errors + np.array([[0.0], [50.0]]), equal, [1.0, 10.0, 100.0, 1000.0]) == 1
    # with one fold there is no standard error: the best
    assert one_standard_error(errors[:1, 1:], np.ones(1), [10.0, 100.0, 1000.0]) == 0


def test_a_fold_of_little_share_decides_little():
    errors = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]])
    assert one_standard_error(errors, np.array([0.49, 0.49, 0.02]), [1.0, 10.0]) == 0
    assert one_standard_error(errors, np.array([0.1, 0.1, 0.8]), [1.0, 10.0]) == 1


def test_depth_weights_by_hand():
    sections = np.array(["a", "a", "a", "b"])
    # a: median 4, times root of 1/4, 1 and 4; b: median 16. 4^1.5 = 8, 16^1.5 = 64.
    weights = np.array([4.0, 8.0, 16.0, 64.0])
    np.testing.assert_allclose(depth_weights(np.array([1, 4, 16, 16]), sections), weights / weights.mean())
    np.testing.assert_array_equal(depth_weights(None, sections), 1)
    # an empty spot is as deep as one count
    assert depth_weights(np.array([0, 4, 16, 16]), sections)[0] == pytest.approx(4 / weights.mean())


def test_depth_weights_do_not_depend_on_the_unit_of_depth():
    data = linear_data(depth=1000.0)
    deeper = replace(data, library=7 * data.library)
    np.testing.assert_allclose(predicted(deeper), predicted(data), rtol=1e-5, atol=1e-5)
    assert np.abs(predicted(data) - predicted(data, depth_weights=False)).max() > 1e-3
    np.testing.assert_array_equal(predicted(data, depth_weights=False), predicted(replace(data, library=None)))


def of_counts(depths, seed=0, n=150, n_genes=60, width=20):
    """Labels of counts: rates follow the features, in the last section in another way; one section for each depth."""
    rng = np.random.default_rng(seed)
    share = np.random.default_rng(1).dirichlet(np.full(n_genes, 0.5)) + 1e-4
    slopes = 0.15 * np.random.default_rng(2).normal(size=(2, width, n_genes))
    features, labels, sections, library = [], [], [], []
    for number, depth in enumerate(depths):
        x = rng.normal(size=(n, width))
        rates = share * np.exp(x @ slopes[int(depth < 1000)])
        counts = rng.poisson(depth * rates / rates.sum(axis=1, keepdims=True))
        total = np.maximum(counts.sum(axis=1), 1)
        features.append(x)
        labels.append(np.log1p(1e4 * counts / total[:, None]))
        sections += [f"s{number}"] * n
        library.append(total)
    names = np.array(sections)
    arrays = (np.concatenate(part).astype(np.float32) for part in (features, labels))
    return TrainingData(*arrays, names, names, rng.normal(size=(len(names), 2)), library=np.concatenate(library))


def test_adding_a_shallow_section_does_not_harm_the_prediction_of_deep_ones():
    everything, test = of_counts([10_000, 10_000, 10_000, 500]), of_counts([10_000], seed=3)
    deep = everything.take(everything.library > 2000)

    def score(kind, train):
        return np.nanmean(pearson(test.labels, predicted(train, test, kind)))

    assert score(Ridge, everything) > score(Ridge, deep) - 0.005
    # a ridge without weights is harmed
    assert score(PlainRidge, everything) < score(PlainRidge, deep) - 0.01


def test_order_of_genes_and_spots_does_not_matter():
    data, new = linear_data(depth=1000.0, n_genes=30), linear_data(40, n_genes=30, seed=1)
    expected = predicted(data, new)
    genes = np.random.default_rng(0).permutation(30)
    other = predicted(replace(data, labels=data.labels[:, genes]), new)
    np.testing.assert_allclose(other, expected[:, genes], rtol=1e-4, atol=1e-5)
    spots = np.random.default_rng(1).permutation(len(data.labels))
    np.testing.assert_allclose(predicted(data.take(spots), new), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_sections", [1, 3])
@CENTRES
def test_held_out_is_what_a_ridge_without_the_fold_predicts(center, n_sections):
    data = linear_data(n_sections=n_sections, depth=1000.0)
    folds = inner_folds(data, seed=0, n_max=5)
    held_out = Ridge(penalty=3.0, center=center).fit_held_out(data, seed=0)
    assert held_out.kind == folds.kind == ("block" if n_sections == 1 else "group")
    for fit_on, held in folds.splits():
        alone = fitted(data.take(fit_on), penalty=3.0, center=center)
        expected = alone.predict(data.features[held], data.sections[held])
        # Scale and unit of the penalty are those of all training spots.
        np.testing.assert_allclose(held_out.predicted[held], expected, atol=0.1)


def test_held_out_spots_are_predicted_without_their_own_labels():
    data = linear_data(depth=1000.0)
    one = data.sections == "s1"
    changed = replace(data, labels=np.where(one[:, None], -5 * data.labels, data.labels))
    before, after = (Ridge(penalty=1.0).fit_held_out(each, seed=0).predicted for each in (data, changed))
    np.testing.assert_array_equal(after[one], before[one])
    assert np.abs(after[~one] - before[~one]).min(axis=0).max() > 0.01


def test_few_spots_have_fewer_responses():
    data = linear_data(8, n_genes=40, n_sections=2)
    report = fitted(data).report
    # eight spots, centred in two sections
    assert report["n_responses"] == 6
    # bins of components 1, 2, 3, 4, and 5 with 6, and what they leave out
    assert len(report["penalty"]) == len(report["inner_error"]) == 6


@CENTRES
def test_state_round_trip_is_exact(center):
    data = linear_data(depth=1000.0)
    model = fitted(data, center=center, n_responses=4, depth_weights=False)
    config, arrays = model.state()
    again = Ridge.from_state(config, {name: values.copy() for name, values in arrays.items()})
    assert again.predict(data.features, data.sections).tobytes() == predicted_bytes(model, data)
    assert again.state()[0] == config
    assert (again.center, again.n_responses, again.depth_weights) == (center, 4, False)


def predicted_bytes(model, data):
    return model.predict(data.features, data.sections).tobytes()


def test_a_model_that_was_stored_before_there_were_responses_is_read():
    data = linear_data()
    config, arrays = fitted(data, PlainRidge).state()
    again = Ridge.from_state(config, arrays)
    assert predicted_bytes(again, data) == predicted_bytes(PlainRidge.from_state(config, arrays), data)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"penalty": 0}, "penalty=0: expected a number above 0"),
        ({"n_responses": 0}, "n_responses=0: expected a whole number, 1 or more"),
        ({"depth_weights": "yes"}, "depth_weights='yes': expected True or False"),
        ({"center": "slide", "n_responses": 0}, "2 problems"),
        ({"alpha": 3}, r"`ridge` has no parameter alpha \(available: penalty, center, n_components, n_responses"),
    ],
)
def test_parameters_out_of_range_are_refused(params, message):
    with pytest.raises(Img2GeneError, match=message):
        models.create("ridge", **params)


def test_an_unfitted_ridge_says_so():
    with pytest.raises(Img2GeneError, match="not fitted yet"):
        Ridge().predict(np.zeros((2, 3), np.float32), np.array(["a", "a"]))


@CENTRES
def test_many_labels_are_fitted_in_single_precision_alike(center, monkeypatch):
    data = linear_data(400, depth=1000.0)
    expected = predicted(data, center=center)
    monkeypatch.setattr(ridge_module, "DOUBLE_LIMIT", 10)
    monkeypatch.setattr(ridge_module, "_MEAN_ROWS", 7)
    found = predicted(data, center=center)
    assert not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
