"""The plain ridge: known signal, the closed form, what must not change it, and how it chooses its penalty."""

import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from img2gene import models
from img2gene._errors import Img2GeneError
from img2gene.metrics import pearson
from img2gene.models import TrainingData, centring, decomposition, row_blocks
from img2gene.models.decomposition import decompose
from img2gene.models.plain_ridge import PlainRidge, _gene_bins, _inverse_sd
from img2gene.models.uncertainty.inner_folds import deal, inner_folds


def linear_data(n=240, width=12, n_genes=6, *, noise=0.5, n_sections=4, shift=0.0, seed=0):
    """Labels that are a linear function of features; sections ``s0`` … of as many groups, shifted against each other."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, width))
    weights = rng.normal(size=(width, n_genes))
    labels = features @ weights / np.sqrt(width) + noise * rng.normal(size=(n, n_genes)) + 3
    number = np.arange(n) % n_sections
    features = features + shift * rng.normal(size=(n_sections, width))[number]
    labels = labels + shift * rng.normal(size=(n_sections, n_genes))[number]
    names = np.array([f"s{i}" for i in number])
    return TrainingData(features.astype(np.float32), labels.astype(np.float32), names, names, rng.normal(size=(n, 2)))


def fitted(data, **params):
    model = PlainRidge(**params)
    model.fit(data, seed=0)
    return model


def predicted(data, new=None, **params):
    new = data if new is None else new
    return fitted(data, **params).predict(new.features, new.sections)


def test_taking_spots_takes_their_part_of_everything():
    data = linear_data(6)
    scale = np.arange(1.0, data.features.shape[1] + 1)
    tokens = np.arange(48, dtype=np.float16).reshape(6, 2, 4)
    whole = replace(data, tokens=tokens, library=np.arange(6.0), feature_scale=scale)
    for rows in (np.array([4, 1]), np.array([False, True, False, False, True, False])):
        part = whole.take(rows)
        assert part.pathways is None
        # Features have one scale, whichever spots are taken.
        assert part.feature_scale is scale
        for name in (field.name for field in fields(whole) if field.name not in ("pathways", "feature_scale")):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows])
    assert part.library.tolist() == [1, 4]
    assert data.take(rows).tokens is None


def test_it_recovers_a_planted_linear_signal():
    data = linear_data(400, noise=0.3)
    train, test = data.take(np.arange(300)), data.take(np.arange(300, 400))
    # noise of SD .3 is added to a signal of about unit SD
    assert pearson(test.labels, predicted(train, test)).min() > 0.9
    assert pearson(test.labels, predicted(train, test, center="none")).min() > 0.9


def test_without_signal_it_predicts_close_to_the_mean():
    data = linear_data(200, noise=0)
    noise = np.random.default_rng(1).normal(size=data.labels.shape).astype(np.float32)
    data = replace(data, labels=noise)
    found = predicted(data)
    assert found.std(axis=0).max() < 0.1
    np.testing.assert_allclose(found.mean(axis=0), noise.mean(axis=0), atol=0.02)


@pytest.mark.parametrize("n", [60, 9])
@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_it_equals_the_closed_form_of_scikit_learn(penalty, n):
    data, new = linear_data(n, width=12), linear_data(20, width=12, seed=1)
    scaler = StandardScaler().fit(data.features.astype(np.float64))
    scaled = scaler.transform(data.features)
    alpha = penalty * np.square(scaled).sum() / n
    reference = SklearnRidge(alpha=alpha, solver="svd").fit(scaled, data.labels.astype(np.float64))
    found = predicted(data, new, penalty=penalty, center="none")
    np.testing.assert_allclose(found, reference.predict(scaler.transform(new.features)), rtol=1e-4, atol=1e-4)


def test_centred_by_section_it_equals_the_closed_form_on_centred_data():
    data = linear_data(shift=2.0)
    centred = {name: getattr(data, name).astype(np.float64) for name in ("features", "labels")}
    for values in centred.values():
        for section in np.unique(data.sections):
            values[data.sections == section] -= values[data.sections == section].mean(axis=0)
    scaled = centred["features"] / centred["features"].std(axis=0)
    alpha = 2.0 * np.square(scaled).sum() / len(scaled)
    reference = SklearnRidge(alpha=alpha, fit_intercept=False).fit(scaled, centred["labels"]).predict(scaled)
    expected = reference + data.labels.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(predicted(data, penalty=2.0), expected, rtol=1e-4, atol=1e-4)


def test_truncation_keeps_the_leading_components():
    data = linear_data(width=12)
    rank_two = np.random.default_rng(0).normal(size=(240, 2)) @ np.random.default_rng(1).normal(size=(2, 12))
    flat = replace(data, features=rank_two.astype(np.float32))
    np.testing.assert_allclose(predicted(flat, penalty=1.0, n_components=2), predicted(flat, penalty=1.0), atol=1e-4)
    assert fitted(data, penalty=1.0, n_components=5).arrays["components"].shape == (5, 12)


def test_shifts_of_whole_sections_do_not_matter_when_centred_by_section():
    data, rng = linear_data(), np.random.default_rng(3)
    number = np.unique(data.sections, return_inverse=True)[1]
    features = data.features + 5 * rng.normal(size=(4, 12)).astype(np.float32)[number]
    offsets = rng.normal(size=(4, 6)).astype(np.float32)
    offsets -= offsets.mean(axis=0)
    shifted = replace(data, features=features, labels=data.labels + offsets[number])
    np.testing.assert_allclose(predicted(shifted), predicted(data), atol=1e-3)
    # without centring they do
    assert np.abs(predicted(shifted, center="none") - predicted(data, center="none")).max() > 0.1


def test_a_shift_of_the_new_section_does_not_matter_when_centred_by_section():
    data, new = linear_data(), linear_data(50, seed=1)
    model = fitted(data)
    moved = new.features + np.float32(7)
    np.testing.assert_allclose(model.predict(moved, new.sections), model.predict(new.features, new.sections), atol=1e-3)


def test_sections_are_predicted_independently():
    model, new = fitted(linear_data()), linear_data(60, n_sections=3, seed=2)
    whole = model.predict(new.features, new.sections)
    for section in ("s0", "s1", "s2"):
        rows = new.sections == section
        np.testing.assert_allclose(model.predict(new.features[rows], new.sections[rows]), whole[rows], atol=1e-5)


def test_order_of_spots_does_not_matter():
    data = linear_data()
    order = np.random.default_rng(0).permutation(240)
    one, two = fitted(data), fitted(data.take(order))
    assert one.report["penalty"] == two.report["penalty"]
    new = linear_data(40, seed=1)
    np.testing.assert_allclose(
        two.predict(new.features, new.sections), one.predict(new.features, new.sections), atol=1e-4
    )
    np.testing.assert_allclose(
        one.predict(data.features[order], data.sections[order]), predicted(data)[order], atol=1e-4
    )


def test_the_same_seed_gives_the_same_bytes():
    data = linear_data()
    one, two = fitted(data), fitted(data)
    assert all(one.arrays[name].tobytes() == two.arrays[name].tobytes() for name in one.arrays)


def test_noisier_labels_get_a_larger_penalty():
    chosen = [fitted(linear_data(noise=noise, seed=5)).report["penalty"][0] for noise in (0.1, 1.0, 8.0)]
    assert chosen[0] < chosen[1] < chosen[2]


def test_scale_of_a_feature_does_not_matter():
    data = linear_data()
    scale = np.geomspace(0.01, 100, 12).astype(np.float32)
    scaled = replace(data, features=data.features * scale)
    np.testing.assert_allclose(predicted(scaled), predicted(data), atol=1e-3)


def test_a_constant_feature_is_harmless_even_where_it_later_varies():
    data, new = linear_data(), linear_data(40, seed=1)
    constant = np.full((240, 1), 0.3, dtype=np.float32)
    wide = replace(data, features=np.hstack([data.features, constant]))
    varies = np.random.default_rng(0).normal(size=(40, 1)).astype(np.float32)
    model = fitted(wide)
    found = model.predict(np.hstack([new.features, varies]), new.sections)
    np.testing.assert_allclose(found, predicted(data, new), atol=1e-4)
    assert all(np.isfinite(values).all() for values in model.arrays.values())


def fold_errors(data, bins, *, penalties=(0.1, 1.0, 30.0), center="section"):
    """Folds × bins × penalties."""
    model, folds = PlainRidge(penalties, center=center), inner_folds(data, seed=0)
    weights = _inverse_sd(model._centred(data.labels, data.sections))
    return np.array([model._fold_errors(data, split, folds, bins, weights, seed=0) for split in folds.splits()])


@pytest.mark.parametrize("center", ["section", "none"])
def test_fold_errors_equal_brute_force(center):
    data, penalties = linear_data(), (0.1, 1.0, 30.0)
    data = replace(data, labels=data.labels * np.geomspace(0.1, 10, 6).astype(np.float32))
    bins = [np.array([0, 3]), np.array([1, 2, 4, 5])]
    sections = [data.labels[data.sections == name] for name in np.unique(data.sections)]
    if center == "section":
        sd = np.sqrt(np.mean([part.var(axis=0) for part in sections], axis=0))
    else:
        sd = data.labels.std(axis=0)
    found = fold_errors(data, bins, center=center)
    for i, (fit_on, held) in enumerate(inner_folds(data, seed=0).splits()):
        train, test = data.take(fit_on), data.take(held)
        offset = test.labels.mean(axis=0) if center == "section" else train.labels.mean(axis=0)
        for j, penalty in enumerate(penalties):
            guess = predicted(train, test, penalty=penalty, center=center) - train.labels.mean(axis=0)
            residual = np.square((test.labels - offset - guess) / sd)
            total = np.square((test.labels - offset) / sd)
            expected = [residual[:, genes].sum() / total[:, genes].sum() for genes in bins]
            np.testing.assert_allclose(found[i, :, j], expected, rtol=1e-4)


def test_each_gene_counts_the_same_in_the_choice_of_the_penalty():
    # five genes of noise and one that the features tell, in units in which its variance exceeds theirs a millionfold
    data = linear_data(noise=0.1)
    labels = np.random.default_rng(1).normal(size=data.labels.shape).astype(np.float32)
    labels[:, 0] = data.labels[:, 0]
    plain, loud = replace(data, labels=labels), replace(data, labels=labels * np.float32([1e3, 1, 1, 1, 1, 1]))
    bins = [np.arange(6)]
    np.testing.assert_allclose(fold_errors(loud, bins), fold_errors(plain, bins), rtol=1e-4)
    assert fitted(loud).report["penalty"] == fitted(plain).report["penalty"]
    # alone, the loud gene wants another one
    assert fitted(replace(data, labels=labels[:, :1])).report["penalty"] < fitted(loud).report["penalty"]


def test_a_gene_that_does_not_vary_in_the_held_out_fold_is_left_out_of_its_error():
    data = linear_data()
    labels = data.labels.copy()
    labels[data.sections == "s1", 2] = 0.1
    data = replace(data, labels=labels)
    found = fold_errors(data, [np.array([0, 1, 2, 3]), np.array([0, 1, 3]), np.array([2])])
    np.testing.assert_array_equal(found[1, 0], found[1, 1])
    np.testing.assert_array_equal(found[1, 2], 1)
    assert np.abs(found[0, 0] - found[0, 1]).min() > 1e-3


def test_gene_bins_go_by_falling_mean():
    means = np.random.default_rng(0).permutation(1200).astype(float)
    bins = _gene_bins(np.tile(means, (3, 1)))
    assert [len(part) for part in bins] == [250, 750, 200]
    assert means[bins[0]].min() > means[bins[1]].max()
    assert means[bins[1]].min() > means[bins[2]].max()
    np.testing.assert_array_equal(np.sort(np.concatenate(bins)), np.arange(1200))


def with_groups(data, sections, groups):
    return replace(data, sections=np.array(sections), groups=np.array(groups))


def test_inner_folds_leave_out_groups_then_sections_then_blocks():
    data = linear_data(60)
    sections = np.repeat(["a", "b", "c"], 20)
    by_group = inner_folds(with_groups(data, sections, np.repeat(["P", "Q"], [40, 20])), seed=0)
    assert by_group.kind == "group"
    np.testing.assert_array_equal(by_group.labels, np.repeat(["P", "Q"], [40, 20]))
    by_section = inner_folds(with_groups(data, sections, ["P"] * 60), seed=0)
    assert by_section.kind == "section"
    np.testing.assert_array_equal(by_section.labels, sections)
    by_block = inner_folds(with_groups(data, ["a"] * 60, ["P"] * 60), seed=0)
    assert by_block.kind == "block"
    assert len(np.unique(by_block.labels)) == 5
    for fitted_on, held in by_block.splits():
        assert (fitted_on ^ held).all()


def test_blocks_are_compact_parts_of_the_section():
    grid = np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0)), axis=-1).reshape(-1, 2)
    data = TrainingData(np.zeros((144, 1)), np.zeros((144, 1)), np.full(144, "a"), np.full(144, "P"), grid)
    blocks = inner_folds(data, seed=0).labels
    spread = [grid[blocks == name].std(axis=0).max() for name in np.unique(blocks)]
    assert max(spread) < 0.75 * grid.std(axis=0).max()


def test_a_section_of_few_spots_still_has_spots_left_to_fit_to():
    report = fitted(linear_data(15, n_sections=1)).report
    assert report["inner_folds"] == "block"
    assert len(set(report["inner_error"][0])) > 1


@pytest.mark.parametrize(("n", "sizes"), [(3, [3, 2, 2]), (7, [1] * 7), (20, [1] * 7)])
def test_names_are_dealt_in_turn_from_a_random_order(n, sizes):
    names = list("ABCDEFG")
    parts = deal(names, n, seed=4)
    assert [len(part) for part in parts] == sizes
    assert sorted(np.concatenate(parts)) == names
    shuffled = np.random.default_rng(4).permutation(names)
    assert [part.tolist() for part in parts] == [shuffled[i::n].tolist() for i in range(len(sizes))]


def test_many_groups_are_dealt_into_ten_folds_that_never_split_a_group():
    data = linear_data(100)
    groups = np.array([f"P{i % 25}" for i in range(100)])
    folds = inner_folds(with_groups(data, groups, groups), seed=0)
    assert len(np.unique(folds.labels)) == 10
    assert all(len(set(folds.labels[groups == name])) == 1 for name in np.unique(groups))


def two_bins(**options):
    """300 genes, the first 250 of which (the most expressed) have less noise than the others."""
    data = linear_data(n_genes=300, noise=0.1, **options)
    labels = data.labels.copy()
    labels[:, 250:] += np.random.default_rng(1).normal(scale=4, size=(len(labels), 50)) - 8
    return replace(data, labels=labels)


@pytest.mark.parametrize("center", ["section", "none"])
def test_held_out_is_what_a_ridge_without_the_fold_predicts(center):
    data = two_bins(shift=1.0)
    model, folds = fitted(data, center=center), inner_folds(data, seed=0)
    found = model.held_out(data, folds, seed=0)
    assert found.dtype == np.float32
    quiet, noisy = model.report["penalty"]
    assert quiet < noisy
    for fit_on, held in folds.splits():
        train, test = data.take(fit_on), data.take(held)
        for genes, penalty in ((slice(250), quiet), (slice(250, None), noisy)):
            expected = predicted(train, test, penalty=penalty, center=center)[:, genes]
            np.testing.assert_allclose(found[held, genes], expected, rtol=1e-4, atol=1e-4)


def test_held_out_blocks_of_the_only_section_are_centred_by_themselves():
    data = linear_data(n_sections=1)
    model, folds = fitted(data), inner_folds(data, seed=0)
    assert folds.kind == "block"
    found = model.held_out(data, folds, seed=0)
    for fit_on, held in folds.splits():
        ridge = fitted(data.take(fit_on), penalty=model.report["penalty"][0])
        alone = ridge.predict(data.features[held], data.sections[held])
        np.testing.assert_allclose(found[held], alone, rtol=1e-4, atol=1e-4)


def test_held_out_spots_are_predicted_without_their_own_labels():
    data = linear_data()
    model, folds = fitted(data, penalty=1.0), inner_folds(data, seed=0)
    one = data.sections == "s1"
    changed = replace(data, labels=np.where(one[:, None], -5 * data.labels, data.labels))
    before, after = (model.held_out(each, folds, seed=0) for each in (data, changed))
    np.testing.assert_array_equal(after[one], before[one])
    assert np.abs(after[~one] - before[~one]).min(axis=0).max() > 0.01


def test_what_a_fit_leaves_behind_is_not_stored_and_missed_by_name():
    data = linear_data()
    folds, stored = inner_folds(data, seed=0), PlainRidge.from_state(*fitted(data).state())
    for ridge in (PlainRidge(), stored):
        with pytest.raises(Img2GeneError, match="`held_out` needs intermediate results"):
            ridge.held_out(data, folds, seed=0)


@pytest.mark.parametrize("n_sections", [1, 3])
def test_the_report_says_how_the_penalty_was_chosen(n_sections):
    report = fitted(linear_data(n_sections=n_sections)).summary()
    assert report["inner_folds"] == ("block" if n_sections == 1 else "group")
    assert len(report["penalty"]) == len(report["inner_error"]) == 1
    assert report["penalty"][0] in report["penalties"]
    assert report["genes_per_penalty"] == [6]


@pytest.mark.parametrize("center", ["section", "none"])
@pytest.mark.parametrize("n_rows", [1, 7, 64, 1000])
def test_predictions_do_not_depend_on_the_blocks_they_are_made_in(monkeypatch, center, n_rows):
    data, new = linear_data(shift=3.0), linear_data(90, n_sections=3, shift=20.0, seed=2)
    model, values = fitted(data, center=center), new.features.astype(np.float64)
    monkeypatch.setattr(row_blocks, "BLOCK_ROWS", n_rows)
    means = np.array([values[new.sections == name].mean(axis=0) for name in new.sections])
    centred = values - (means if center == "section" else model.arrays["feature_mean"])
    scores = centred / model.arrays["scale"] @ model.arrays["components"].T
    expected = scores @ model.arrays["coefficients"] + model.arrays["label_mean"]
    found = model.predict(new.features, new.sections)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_predicting_takes_little_memory_beside_input_and_output():
    data, new = linear_data(300, width=512, n_genes=4), linear_data(30_000, width=512, n_genes=4, seed=1)
    model = fitted(data, penalty=1.0)
    tracemalloc.start()
    model.predict(new.features, new.sections)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # a copy of the features would take 59 MiB
    assert new.features.nbytes > 58 * 2**20
    assert peak < 20 * 2**20


@pytest.mark.parametrize("center", ["section", "none"])
def test_state_round_trip_is_exact(center):
    data = linear_data()
    model = fitted(data, center=center)
    config, arrays = model.state()
    again = PlainRidge.from_state(config, {name: values.copy() for name, values in arrays.items()})
    assert (
        again.predict(data.features, data.sections).tobytes() == model.predict(data.features, data.sections).tobytes()
    )
    assert again.state()[0] == config
    assert again.center == center
    assert set(PlainRidge.shapes) == set(arrays)


def test_wide_and_tall_data_have_the_same_decomposition():
    rng = np.random.default_rng(0)
    for shape in ((30, 8), (8, 30)):
        features = rng.normal(size=shape)
        found = decompose(features, rng.normal(size=(shape[0], 2)), 100, 0)
        expected = np.linalg.svd(features / found.scale, compute_uv=False)
        np.testing.assert_allclose(found.singular, expected, rtol=1e-6)
        np.testing.assert_allclose(found.components @ found.components.T, np.eye(8), atol=1e-8)


@pytest.mark.parametrize("kind", ["ridge", "ridge-plain"])
def test_single_precision_of_large_arrays_predicts_the_same(kind, monkeypatch):
    data = linear_data(n=300, width=40, shift=1.0)
    double, single = models.create(kind), models.create(kind)
    double.fit(data, seed=0)
    monkeypatch.setattr(centring, "DOUBLE_LIMIT", 0)
    single.fit(data, seed=0)
    expected = double.predict(data.features, data.sections)
    found = single.predict(data.features, data.sections)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert not np.array_equal(found, expected)


def test_leading_components_of_a_large_gram_matrix_are_those_of_the_exact_decomposition(monkeypatch):
    rng = np.random.default_rng(0)
    # Singular values that fall by a tenth from one component to the next.
    features = (rng.normal(size=(400, 60)) * 0.9 ** np.arange(60)) @ rng.normal(size=(60, 200))
    exact = decompose(features, np.zeros((400, 0)), 20, 0)
    monkeypatch.setattr(decomposition, "_EXACT_LIMIT", 100)
    found = decompose(features, np.zeros((400, 0)), 20, 0)
    np.testing.assert_allclose(found.singular, exact.singular, rtol=0.01)
    # The cosines of the angles between both spaces; the last components mix with those that are left out.
    cosines = np.linalg.svd(found.components[:15] @ exact.components.T, compute_uv=False)
    assert cosines.min() > 0.999


def test_the_baseline_predicts_the_training_mean():
    data = linear_data()
    model = models.create("mean")
    model.fit(data, seed=0)
    found = model.predict(np.zeros((3, 12), np.float32), np.array(["x"] * 3))
    np.testing.assert_allclose(found, np.tile(data.labels.mean(axis=0), (3, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"penalty": 0}, "penalty=0: expected a number above 0"),
        ({"penalty": (1, np.nan)}, "penalty=nan: expected a number above 0"),
        ({"center": "slide"}, "center='slide': expected one of section, none"),
        ({"n_components": 0}, "n_components=0: expected a whole number, 1 or more"),
        ({"center": "slide", "n_components": 0}, "2 problems"),
        ({"alpha": 3}, r"`ridge-plain` has no parameter alpha \(available: penalty, center, n_components\)"),
    ],
)
def test_parameters_out_of_range_are_refused(params, message):
    with pytest.raises(Img2GeneError, match=message):
        models.create("ridge-plain", **params)


def test_an_unfitted_ridge_says_so():
    with pytest.raises(Img2GeneError, match="not fitted yet"):
        PlainRidge().predict(np.zeros((2, 3), np.float32), np.array(["a", "a"]))


def test_unknown_and_taken_names_of_models():
    with pytest.raises(
        Img2GeneError,
        match=r"`forest` not found in `img2gene.models` \(available: bleep, cmrcnet, .*ridge",
    ):
        models.get("forest")
    with pytest.raises(Img2GeneError, match="A model named `ridge` is registered already"):
        models.register(type("Other", (PlainRidge,), {"name": "ridge"}))
    assert models.register(PlainRidge) is PlainRidge
    assert {"mean", "ridge"} <= set(models.list())
