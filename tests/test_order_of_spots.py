"""Fits and predictions are the same whatever the order of spots and sections, on a lattice where distances tie."""

from dataclasses import replace

import numpy as np
import pytest

import img2gene as ig
from img2gene.models import Calibration, TrainingData
from img2gene.models.networks.finetuning import FineTuning
from img2gene.models.reference_bank import ReferenceBank, unit_rows
from img2gene.models.uncertainty.held_out import fit_held_out
from img2gene.models.uncertainty.inner_folds import inner_folds

TINY = {"max_epochs": 2, "n_models": 1, "n_validations": 1, "dim": 16, "heads": 2, "n_components": 4}
TINY |= {"batch_size": 16, "learning_rate": 0.02}
PARAMS = {
    "bleep": TINY | {"k": 5, "n_gene_tokens": 2},
    "cmrcnet": TINY | {"k": 5, "n_gene_tokens": 2, "output": "regression"},
    "coordinates": {},
    # without the ridge, which after two epochs would be all of the mixture
    "img2gene": TINY | {"ridge": "none", "effect": "TE", "n_confounders": 2, "n_neighbors": 4, "n_latents": 2, "k": 5},
    "knn": {},
    "mean": {},
    "ridge": {},
    "ridge-plain": {},
}
WIDTH, N_GENES, SIDE = 5, 4, 7
WEIGHT = np.random.default_rng(99).normal(size=(WIDTH, N_GENES))


def cohort(n_sections, *, seed, prefix):
    """Sections on square lattices, some of whose spots look exactly like others."""
    rng = np.random.default_rng(seed)
    lattice = 100.0 * np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)
    number = np.repeat(np.arange(n_sections), len(lattice))
    features = rng.normal(size=(len(number), WIDTH)).astype(np.float32)
    # blank patches: copies of one embedding with labels of their own
    features[::6] = features[0]
    labels = (3 + features @ WEIGHT + rng.normal(size=(len(number), N_GENES))).astype(np.float32)
    sections = np.array([f"{prefix}{i}" for i in number])
    groups = np.array([f"{prefix}P{i // 2}" for i in number])
    return TrainingData(features, labels, sections, groups, np.tile(lattice, (n_sections, 1)))


TRAIN = cohort(4, seed=0, prefix="s")
ORDER = np.random.default_rng(1).permutation(len(TRAIN.labels))
SHUFFLED = TRAIN.take(ORDER)


def target(name):
    """Spots to predict, of a section that the model may know where it has to."""
    new = cohort(1, seed=9, prefix="new")
    return new if name != "coordinates" else replace(new, sections=np.full(len(new.sections), "s1"))


def predicted(model, data):
    extra = {name: getattr(data, name) for name in getattr(model, "inputs", ()) if getattr(data, name) is not None}
    return model.predict(data.features, data.sections, **extra)


def fitted(name, data):
    model = ig.models.create(name, **PARAMS[name])
    return model, fit_held_out(model, data, seed=0)


@pytest.fixture(scope="module", params=sorted(PARAMS))
def both(request):
    """Name, and model and held-out predictions of the training data in two orders."""
    return request.param, fitted(request.param, TRAIN), fitted(request.param, SHUFFLED)


def calibrated(held_out, data):
    return Calibration.fit(held_out, data, level=0.9, seed=0)[0]


def in_rows(held_out, n):
    """Held-out predictions by row of the training data, NaN where a spot was not held out."""
    values = np.full((n, held_out.predicted.shape[1]), np.nan)
    values[held_out.rows] = held_out.predicted
    return values


def test_every_built_in_model_is_looked_at():
    from img2gene.models.registry import _BUILT_IN

    assert set(PARAMS) == set(_BUILT_IN)


def test_predictions_do_not_depend_on_the_order_of_training_spots(both):
    name, (one, _), (two, _) = both
    new = target(name)
    values = predicted(one, new)
    assert name == "mean" or np.ptp(values, axis=0).min() > 0.1
    np.testing.assert_allclose(predicted(two, new), values, atol=1e-5)


def test_predictions_do_not_depend_on_the_order_of_predicted_spots(both):
    name, (model, _), _ = both
    new = target(name)
    order = np.random.default_rng(2).permutation(len(new.labels))
    np.testing.assert_allclose(predicted(model, new.take(order)), predicted(model, new)[order], atol=1e-5)


def test_fit_alone_gives_the_same_model(both):
    name, (model, _), _ = both
    again = ig.models.create(name, **PARAMS[name])
    again.fit(SHUFFLED, seed=0)
    np.testing.assert_allclose(predicted(again, target(name)), predicted(model, target(name)), atol=1e-5)


def test_held_out_predictions_belong_to_the_rows_that_were_passed(both):
    name, (_, one), (_, two) = both
    if name == "coordinates":
        assert one is None and two is None
        return
    n = len(TRAIN.labels)
    np.testing.assert_allclose(in_rows(two, n), in_rows(one, n)[ORDER], atol=1e-5)
    np.testing.assert_array_equal(two.units, SHUFFLED.groups[two.rows])


def test_intervals_and_percentiles_do_not_depend_on_the_order(both, monkeypatch):
    name, (model, one), (_, two) = both
    if name == "coordinates":
        return
    # so few that spots are drawn
    for limit, value in {"_LEAST_ROWS": 30, "_MOST_ROWS": 30, "_FACTOR_ROWS": 20}.items():
        monkeypatch.setattr(f"img2gene.models.uncertainty.calibration.{limit}", value)
    monkeypatch.setattr("img2gene.models.uncertainty.ood._MOST_ROWS", 40)
    new = target(name)
    values = predicted(model, new)
    first, second = calibrated(one, TRAIN), calibrated(two, SHUFFLED)
    for part, other in zip(first.bounds(values, None), second.bounds(values, None), strict=True):
        np.testing.assert_allclose(other, part, atol=1e-5)
    percentiles = (each.novelty.percentile(new.features, new.sections) for each in (first, second))
    np.testing.assert_allclose(*percentiles, atol=1e-5)


@pytest.mark.parametrize("kind", ["group", "section", "block"])
def test_inner_folds_do_not_depend_on_the_order(kind):
    data = replace(TRAIN, groups=np.full(len(TRAIN.groups), "P")) if kind != "group" else TRAIN
    data = data.take(data.sections == "s2") if kind == "block" else data
    order = np.random.default_rng(3).permutation(len(data.labels))
    one, two = inner_folds(data, seed=0), inner_folds(data.take(order), seed=0)
    assert one.kind == two.kind == kind
    np.testing.assert_array_equal(two.labels, one.labels[order])


def test_coordinates_take_the_first_of_equally_near_spots_by_position():
    data = TRAIN.take(TRAIN.sections == "s0")
    data = data.take(~(data.positions == 300).all(axis=1))
    for data_in_order in (data, data.take(np.random.default_rng(4).permutation(len(data.labels)))):
        model = ig.models.create("coordinates", k=2)
        model.fit(data_in_order, seed=0)
        values = model.predict(np.zeros((1, WIDTH)), np.array(["s0"]), positions=np.array([[300.0, 300.0]]))
        rows = [int(np.flatnonzero((data.positions == place).all(axis=1))[0]) for place in ([200, 300], [300, 200])]
        np.testing.assert_allclose(values[0], data.labels[rows].mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("block", [1, 7, 512])
def test_of_many_copies_of_a_spot_the_first_are_retrieved(block, monkeypatch):
    monkeypatch.setattr("img2gene.models.reference_bank._QUERIES", block)
    rng = np.random.default_rng(5)
    keys = unit_rows(rng.normal(size=(300, 40)))
    keys[10:250] = keys[10]
    names = np.full(len(keys), "s")
    bank = ReferenceBank(keys, np.zeros((300, 1), "f4"), names, names, np.zeros((300, 2), "f4"))
    queries = keys[10] + 0.01 * rng.normal(size=(50, 40))
    np.testing.assert_array_equal(bank.nearest(queries, 5).rows, np.tile(np.arange(10, 15), (50, 1)))


def test_coincident_spots_are_sorted_by_their_values():
    data = replace(TRAIN, positions=np.zeros_like(TRAIN.positions))
    one, two = data.in_canonical_order(), data.take(ORDER).in_canonical_order()
    np.testing.assert_array_equal(one.labels, two.labels)
    assert one.in_canonical_order() is one


def test_fine_tuning_takes_the_same_batches():
    from img2gene.models.networks.finetuning import FineTuningParameters

    def batches(data):
        pixels = np.zeros((len(data.labels), 1, 3, 2, 2), dtype=np.uint8)
        tuning = FineTuning(None, None, pixels, data, FineTuningParameters("last", batch_size=16), 0)
        return [batch.labels.numpy() for batch in tuning._batches(np.ones(len(data.labels), dtype=bool), 0)]

    for one, two in zip(batches(TRAIN), batches(SHUFFLED), strict=True):
        np.testing.assert_array_equal(one, two)
