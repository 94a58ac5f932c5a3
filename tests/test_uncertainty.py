"""Intervals hold what they state on patients that were never seen, and what is unlike the training data is noticed."""

import dataclasses
import logging

import dask.array as da
import matplotlib
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from scipy.ndimage import gaussian_filter
from spatialdata import SpatialData, read_zarr

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import img2gene as ig
from img2gene import Img2GeneError, MissingKeyError
from img2gene._study.expression import labels
from img2gene.metrics import auroc
from img2gene.models import HeldOut, TrainingData
from img2gene.models.uncertainty.calibration import Calibration, _factor, _nested_means, _quantiles, predictive_sd
from img2gene.models.uncertainty.held_out import cross_fit, fit_held_out
from img2gene.models.uncertainty.ood import Ellipsoid, Novelty, part_numbers, sample_rows, unit_weights
from img2gene.models.uncertainty.shallow import at_depth
from img2gene.testing import assert_models_equal

PARTS = ("img2gene_std", "img2gene_lower", "img2gene_upper")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def cohort(seed, n_patients=4):
    sdata = ig.datasets.synthetic_cohort(n_patients, n_spots=100, seed=seed, mpp=1.3)
    ig.pp.extract_patches(sdata, patch_um=112)
    ig.pp.embed_patches(sdata, "color-texture")
    return sdata


@pytest.fixture(scope="module")
def default_cohort():
    return cohort(0)


def covered(table, key="img2gene"):
    """Whether each measured label lies in its interval."""
    truth = labels(table, np.arange(table.n_obs), np.arange(table.n_vars), layer=None)
    return (truth >= table.layers[f"{key}_lower"]) & (truth <= table.layers[f"{key}_upper"])


def coverage_when_held_out(sdata, model="ridge", **params):
    """Mean coverage of each patient, by a model of all others."""
    table, found = sdata["table"], []
    for patient in table.obs["patient"].unique():
        trained = ig.tl.fit(sdata, model, validate_on=[patient], inplace=False, **params)
        predicted = ig.tl.predict(sdata, trained, inplace=False)
        own = (table.obs["patient"] == patient).to_numpy()
        truth = labels(table, np.flatnonzero(own), table.var_names.get_indexer(trained.genes), layer=None)
        inside = (truth >= predicted.layers["img2gene_lower"][own]) & (truth <= predicted.layers["img2gene_upper"][own])
        found.append(inside.mean())
    return np.array(found)


def two_levels(rng, n_groups, n_spots=200, n_genes=40, between=0.3, slope=0.0):
    """Labels of one feature, with an offset of each group and gene; noise grows with the feature where there is a slope."""
    groups = np.repeat([f"P{i}" for i in range(n_groups)], n_spots)
    feature = rng.normal(size=(len(groups), 1))
    offsets = rng.normal(size=(n_groups, n_genes)) * between
    noise = rng.normal(size=(len(groups), n_genes)) * np.exp(slope * feature)
    values = feature + np.repeat(offsets, n_spots, axis=0) + noise
    places = np.stack([np.arange(len(groups)), np.zeros(len(groups))], axis=1)
    return TrainingData(feature.astype("f4"), values.astype("f4"), groups, groups, places.astype(float))


def calibrated(data, model="ridge", level=0.9, **params):
    predictor = ig.models.create(model, **params)
    return predictor, *Calibration.fit(fit_held_out(predictor, data, seed=0), data, level=level, seed=0)


# Coverage


@pytest.mark.parametrize("seed", [0, 1])
def test_ridge_intervals_cover_what_they_state_on_held_out_patients(seed, default_cohort):
    found = coverage_when_held_out(default_cohort if seed == 0 else cohort(seed))
    assert 0.88 <= found.mean() <= 0.92
    assert (np.abs(found - 0.9) < 0.04).all()


@pytest.mark.parametrize("level", [0.5, 0.8])
def test_other_levels_are_covered_alike(default_cohort, level):
    assert abs(coverage_when_held_out(default_cohort, level=level).mean() - level) < 0.03


@pytest.mark.parametrize("n_groups", [2, 3, 5, 12])
def test_coverage_of_new_groups_with_few_and_with_many_groups(n_groups):
    found = []
    for seed in range(4):
        data = two_levels(np.random.default_rng(seed), n_groups + 3)
        known = np.isin(data.groups, [f"P{i}" for i in range(n_groups)])
        predictor, calibration, _ = calibrated(data.take(known), center="none")
        values = predictor.predict(data.features[~known], data.sections[~known])
        _, lower, upper = calibration.bounds(values, None)
        found.append(((data.labels[~known] >= lower) & (data.labels[~known] <= upper)).mean())
    assert 0.87 <= np.mean(found) <= 0.93


def test_intervals_widen_where_groups_differ_more_than_spots():
    factors, found = [], {"with": [], "without": []}
    for seed in range(6):
        data = two_levels(np.random.default_rng(seed), 8, between=4.0)
        known = np.isin(data.groups, ["P0", "P1", "P2"])
        predictor, calibration, report = calibrated(data.take(known), center="none")
        values = predictor.predict(data.features[~known], data.sections[~known])
        factors.append(report["factor"])
        for name, factor in (("with", 1.0), ("without", report["factor"])):
            std, lower, upper = calibration.bounds(values, None)
            middle = values + calibration.median * std
            inside = (data.labels[~known] >= middle - (middle - lower) / factor) & (
                data.labels[~known] <= middle + (upper - middle) / factor
            )
            found[name].append(inside.mean())
    assert min(factors) > 1.1
    assert np.mean(found["without"]) < np.mean(found["with"]) - 0.03
    assert np.mean(found["with"]) > 0.8


def test_quantiles_give_every_group_the_same_weight():
    # Ten spots of one group against two of another: alone, the pooled 90 % quantile would be 0.
    values = np.array([[0.0]] * 10 + [[5.0], [7.0]])
    weights = unit_weights(np.array(["A"] * 10 + ["B"] * 2))
    np.testing.assert_allclose(weights, [0.05] * 10 + [0.25] * 2)
    median, below, above = _quantiles(values, weights, 0.5)
    # 25 %: 0; 50 %: 0; 75 %: 5.
    assert (median[0], above[0]) == (0.0, 5.0)
    # Ties leave no width below; what is left can be widened.
    assert below[0] == 0.05


def test_means_of_parts_are_those_of_fits_without_the_left_out_part():
    rng = np.random.default_rng(0)
    offsets = rng.normal(size=(5, 3))
    others = np.array([offsets[[j for j in range(5) if j != i]].mean(axis=0) for i in range(5)])
    found = _nested_means(offsets - others, 2)
    for part in (0, 1, 3, 4):
        rest = [j for j in range(5) if j not in (2, part)]
        np.testing.assert_allclose(found[part], offsets[part] - offsets[rest].mean(axis=0))
    np.testing.assert_allclose(found[2], offsets[2] - others[2])


def test_no_factor_is_learnt_from_two_groups():
    assert _factor(np.zeros((4, 1)), np.array([0, 0, 1, 1]), np.full(4, 0.25), 0.9) == (1.0, None)


# Predictive SD


def test_sd_follows_residuals_that_grow_with_the_prediction():
    data = two_levels(np.random.default_rng(0), 4, n_spots=500, slope=0.4)
    predictor, calibration, _ = calibrated(data)
    values = predictor.predict(data.features, data.sections)
    std, *_ = calibration.bounds(values, None)
    order = np.argsort(values[:, 0])
    assert (np.diff(std[order, 0]) >= 0).all()
    for rows in (order[:400], order[-400:]):
        residual = data.labels[rows] - values[rows]
        assert np.sqrt(np.square(residual).mean()) == pytest.approx(std[rows].mean(), rel=0.35)


def test_sd_is_constant_where_residuals_are():
    data = two_levels(np.random.default_rng(0), 4, n_spots=500, n_genes=200)
    _, calibration, _ = calibrated(data)
    # Slopes of noise alone are shrunk, most of them to 0.
    assert (calibration.slope == 0).mean() > 0.4
    np.testing.assert_allclose(calibration.scale.mean(), np.sqrt(1 + 0.09 * 4 / 3), rtol=0.06)


def test_ensemble_and_residual_variance_are_added():
    zero, one = np.zeros(1), np.ones(1)
    found = predictive_sd(np.zeros((2, 1)), np.array([[1.0], [3.0]]), zero, 2 * one, zero, zero, zero, one)
    # 2² − 1 is what no ensemble explains.
    np.testing.assert_allclose(found[:, 0], np.sqrt([3 + 1, 3 + 9]))


def test_members_that_differ_more_than_residuals_leave_a_floor():
    zero, one = np.zeros(1), np.ones(1)
    found = predictive_sd(np.zeros((1, 1)), np.zeros((1, 1)), zero, one, zero, zero, zero, 9 * one)
    np.testing.assert_allclose(found, 0.25)


def test_sd_does_not_run_away_beyond_the_predictions_that_were_seen():
    zero, one = np.zeros(1), np.ones(1)
    found = predictive_sd(np.array([[-9.0], [1.0], [99.0]]), None, zero, one, one, -0.5 * one, one, zero)
    np.testing.assert_allclose(found[:, 0], [0.5, 2, 2])


def test_held_out_errors_have_the_predicted_variance(default_cohort):
    table = default_cohort["table"]
    trained = ig.tl.fit(default_cohort, "ridge", validate_on=["P4"], inplace=False)
    predicted = ig.tl.predict(default_cohort, trained, inplace=False)
    own = (table.obs["patient"] == "P4").to_numpy()
    truth = labels(table, np.flatnonzero(own), table.var_names.get_indexer(trained.genes), layer=None)
    squared = np.square(truth - predicted.X[own]).mean()
    assert squared == pytest.approx(np.square(predicted.layers["img2gene_std"][own]).mean(), rel=0.1)


# Held-out predictions


class Nearest:
    """The label of the nearest training spot: an error of 0 for whoever saw it."""

    name = "nearest"
    shapes = {"features": ("spots", "width"), "labels": ("spots", "genes")}

    def fit(self, data, *, seed):
        if len(np.unique(data.labels[:, 0])) < 3:
            raise ValueError("three spots, please")
        self.data = data

    def predict(self, features, sections):
        return self.data.labels[np.abs(features[:, :1] - self.data.features[:, 0]).argmin(axis=1)]


def test_any_predictor_is_fitted_without_what_it_is_calibrated_on():
    data = two_levels(np.random.default_rng(0), 3, n_spots=30)
    held_out = fit_held_out(Nearest(), data, seed=0)
    assert held_out.kind == "group"
    for name in np.unique(data.groups):
        other, own = Nearest(), data.groups == name
        other.fit(data.take(~own), seed=0)
        np.testing.assert_array_equal(held_out.predicted[own], other.predict(data.features[own], data.sections[own]))


def test_at_most_five_fits_are_made_but_groups_stay_the_unit():
    data = two_levels(np.random.default_rng(0), 12, n_spots=10, n_genes=2)
    assert len(np.unique(cross_fit(Nearest(), data, seed=0).units)) == 12


def test_a_predictor_that_needs_all_spots_is_fitted_without_uncertainty(caplog):
    data = two_levels(np.random.default_rng(0), 2, n_spots=2, n_genes=1)
    predictor = Nearest()
    assert fit_held_out(predictor, data, seed=0) is None
    assert "three spots, please" in caplog.text
    assert predictor.data is data


def test_ridge_gives_the_held_out_predictions_of_generic_cross_fitting():
    data = two_levels(np.random.default_rng(0), 3, n_spots=40)
    one, other = (ig.models.create("ridge-plain", penalty=1.0) for _ in range(2))
    own, generic = one.fit_held_out(data, seed=0), cross_fit(other, data, seed=0)
    np.testing.assert_allclose(own.predicted, generic.predicted, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("img2gene", {"n_models": 2, "n_validations": 1}),
        ("img2gene", {"n_models": 1, "n_validations": 0, "ridge": "none"}),
        ("cmrcnet", {"ridge": True, "k": 5}),
        ("bleep", {"k": 5, "n_validations": 0}),
    ],
)
def test_networks_are_calibrated_on_three_groups_however_many_they_validate_on(study, model, params):
    trained = ig.tl.fit(study, model, max_epochs=2, dim=8, n_components=4, inplace=False, **params)
    assert trained.report["uncertainty"]["units"] == ["A", "B", "C"]
    plain, with_intervals = (
        ig.tl.predict(study, trained, uncertainty=wanted, inplace=False) for wanted in (False, True)
    )
    np.testing.assert_array_equal(plain.X, with_intervals.X)
    lower, upper, std = (with_intervals.layers[f"img2gene_{part}"] for part in ("lower", "upper", "std"))
    assert (lower <= upper).all()
    assert (std > 0).all()


def test_members_of_an_ensemble_that_differ_widen_the_interval(study):
    trained = ig.tl.fit(study, "img2gene", max_epochs=2, dim=8, n_components=4, n_models=3, ridge="none", inplace=False)
    features = study["table"].obsm["X_tiny"]
    inputs = (features, study["table"].obs["section"].to_numpy(dtype=str))
    places = np.asarray(study["table"].obsm["spatial"], dtype=float)
    values, spread = trained.predictor.predict_spread(*inputs, positions=places)
    assert (spread > 0).any()
    calm, *_ = trained.calibration.bounds(values, np.zeros_like(spread))
    wild, *_ = trained.calibration.bounds(values, 3 * spread)
    assert (wild >= calm).all()
    assert (wild > calm).any()


# Unlike the training data


def changed(sdata, change):
    """Patient P4 with other pixels, embedded."""
    table = sdata["table"]
    rows = (table.obs["patient"] == "P4").to_numpy()
    images = {name: image for name, image in sdata.images.items() if name.startswith("P4")}
    images = {
        name: image.copy(data=da.from_array(change(np.asarray(image.data)), chunks=image.data.chunks))
        for name, image in images.items()
    }
    shapes = {name: shape for name, shape in sdata.shapes.items() if name.startswith("P4")}
    part = table[rows].copy()
    part.uns["spatialdata_attrs"] = {**part.uns["spatialdata_attrs"], "region": sorted(shapes)}
    found = SpatialData(images=images, shapes=shapes, tables={"table": part})
    ig.pp.extract_patches(found, patch_um=112)
    ig.pp.embed_patches(found, "color-texture")
    return found


def blurred(pixels):
    return np.stack([gaussian_filter(channel.astype(float), 2) for channel in pixels]).astype(np.uint8)


def restained(pixels):
    """The same dyes, as the lamp sees them through stains that no patient of the cohort has."""
    usual = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
    other = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    density = -np.log(np.clip(pixels.astype(float), 1, None) / 245)
    dyes = np.linalg.lstsq(usual.T, density.reshape(3, -1), rcond=None)[0]
    return np.clip(245 * np.exp(-(other.T @ dyes)), 0, 255).reshape(pixels.shape).astype(np.uint8)


@pytest.mark.parametrize("change", [blurred, restained])
def test_unseen_stain_and_blur_are_told_from_an_ordinary_held_out_patient(default_cohort, change, caplog):
    trained = ig.tl.fit(default_cohort, "ridge", validate_on=["P4"], inplace=False)
    ordinary = ig.tl.predict(default_cohort, trained, inplace=False).obs
    ordinary = ordinary["img2gene_ood"][ordinary["patient"] == "P4"].to_numpy()
    strange = changed(default_cohort, change)
    ig.tl.predict(strange, trained)
    found = strange["table"].obs["img2gene_ood"].to_numpy()
    truth = np.repeat([False, True], [len(ordinary), len(found)])
    assert auroc(truth, np.concatenate([ordinary, found])) >= 0.95
    assert (ordinary > 99).mean() < 0.1
    assert (found > 99).mean() > 0.5
    assert "P4_S1, P4_S2" in caplog.text


def test_percentiles_of_new_groups_are_uniform_where_they_are_like_the_others():
    rng = np.random.default_rng(0)
    draw = rng.normal(size=(4000, 6))
    units = np.repeat(np.arange(10), 200).astype(str)
    found = Novelty.fit(draw[:2000], units, units, seed=0).percentile(draw[2000:], units)
    np.testing.assert_allclose(np.quantile(found, [0.1, 0.5, 0.9]), [10, 50, 90], atol=4)


def test_the_further_the_higher_without_ties():
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(3), 100).astype(str)
    novelty = Novelty.fit(rng.normal(size=(300, 3)), units, units, seed=0)
    away = np.linspace(0, 500, 200)[:, None] * np.ones(3) + novelty.ellipsoid.mean
    found = novelty.percentile(away, np.arange(len(away)).astype(str))
    assert (np.diff(found) > 0).all()
    assert found[0] >= 0
    assert found[-1] < 100


def test_mahalanobis_distance_is_that_of_the_shrunk_covariance():
    rng = np.random.default_rng(0)
    draw = rng.normal(size=(5000, 4)) @ rng.normal(size=(4, 4))
    found = Ellipsoid.fit(draw, seed=0).distances(draw[:50])
    inverse, centred = np.linalg.inv(np.cov(draw.T)), draw[:50] - draw.mean(axis=0)
    np.testing.assert_allclose(found, np.sqrt(np.einsum("ni,ij,nj->n", centred, inverse, centred)), rtol=0.03)


def test_features_that_do_not_vary_and_single_spots_are_no_problem():
    features = np.ones((4, 3), dtype=np.float32)
    names = np.array(["A", "A", "B", "B"])
    for n in (4, 1):
        found = Novelty.fit(features[:n], names[:n], names[:n], seed=0).percentile(features, names)
        assert np.isfinite(found).all()
        assert (found < 99).all()


def test_a_section_of_few_ordinary_spots_is_no_stranger():
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(10), 200).astype(str)
    novelty = Novelty.fit(rng.normal(size=(2000, 6)), units, units, seed=0)
    found = novelty.percentile(rng.normal(size=(2000, 6)), np.repeat(np.arange(400), 5).astype(str))
    assert (found > 99).mean() < 0.05


def test_a_shift_that_all_spots_of_a_section_share_counts_more_than_that_of_one_spot():
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(10), 200).astype(str)
    novelty = Novelty.fit(rng.normal(size=(2000, 6)), units, units, seed=0)
    draw = rng.normal(size=(200, 6)).astype("f4")
    alone, all_of_them = draw.copy(), draw + np.float32(1.5)
    alone[0] += 1.5
    where = np.repeat("new", 200)
    assert novelty.percentile(all_of_them, where)[0] > novelty.percentile(alone, where)[0]


def test_rows_are_sampled_from_all_units_alike():
    units = np.repeat(["A", "B", "C"], [100, 10, 50])
    rows = sample_rows(units, 40, 0)
    assert [(units[rows] == name).sum() for name in "ABC"] == [15, 10, 15]
    np.testing.assert_array_equal(sample_rows(units, 160, 0), np.arange(160))
    assert len(np.unique(part_numbers(np.arange(30).astype(str), 10, 0))) == 10


# What is written


def test_predict_writes_layers_and_percentile_and_removes_them_again(study):
    table = study["table"]
    ig.tl.fit(study, "ridge", validate_on=["C"])
    ig.tl.predict(study)
    assert all(table.layers[name].dtype == np.float32 and table.layers[name].shape == table.shape for name in PARTS)
    assert table.obs["img2gene_ood"].between(0, 100).all()
    assert (table.layers["img2gene_lower"] >= 0).all()
    ig.tl.predict(study, uncertainty=False)
    assert not {*PARTS} & {*table.layers}
    assert "img2gene_ood" not in table.obs


def test_models_without_calibration_predict_as_before(study):
    ig.tl.fit(study, "ridge", uncertainty=False)
    model = ig.get.model(study)
    ig.tl.predict(study)
    assert model.calibration is None
    assert "uncertainty" not in model.report
    assert not {*PARTS} & {*study["table"].layers}
    with pytest.raises(Img2GeneError, match="uncertainty=True"):
        model.predict_intervals(np.zeros((1, 6)), np.array(["A1"]))


def test_uncertainty_does_not_change_the_model(study):
    one, other = (ig.tl.fit(study, "ridge", uncertainty=wanted, inplace=False) for wanted in (True, False))
    assert one.calibration is not None
    plain = dataclasses.replace(one, calibration=None, report=other.report)
    assert_models_equal(plain, other)


def test_genes_and_tiles_that_the_table_lacks_go_to_a_table_of_their_own(study):
    trained = ig.tl.fit(study, "ridge", inplace=False)
    for name in [name for name in study["table"].layers if name is not None]:
        del study["table"].layers[name]
    part = study["table"][:, :5].copy()
    del study.tables["table"]
    study.tables["table"] = part
    ig.tl.predict(study, trained)
    own = study["img2gene"]
    assert own.shape[1] == 12
    for name in PARTS:
        np.testing.assert_array_equal(study["table"].layers[name], own.layers[name][:, :5])
    np.testing.assert_array_equal(study["table"].obs["img2gene_ood"], own.obs["img2gene_ood"])


def test_order_of_spots_and_other_sections_do_not_matter(study):
    trained = ig.tl.fit(study, "ridge", validate_on=["C"], inplace=False)
    whole = ig.tl.predict(study, trained, inplace=False)
    features, sections = study["table"].obsm["X_tiny"], study["table"].obs["section"].to_numpy(dtype=str)
    rows = np.random.default_rng(0).permutation(np.flatnonzero(np.isin(sections, ["A1", "C1"])))
    found = trained.predict_intervals(features[rows], sections[rows])
    for part in ("std", "lower", "upper"):
        np.testing.assert_allclose(getattr(found, part), whole.layers[f"img2gene_{part}"][rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.ood, whole.obs["img2gene_ood"].to_numpy()[rows])


@pytest.mark.parametrize("model", ["ridge", "knn", "mean"])
def test_calibration_survives_a_file_and_a_store(study, model, tmp_path):
    ig.tl.fit(study, model, validate_on=["C"])
    ig.tl.predict(study)
    trained = ig.get.model(study)
    loaded = ig.io.load_model(ig.io.save_model(trained, tmp_path / "model"))
    study.write(tmp_path / "study.zarr")
    back = read_zarr(tmp_path / "study.zarr")
    features, sections = study["table"].obsm["X_tiny"], study["table"].obs["section"].to_numpy(dtype=str)
    expected = trained.predict_intervals(features, sections)
    for other in (loaded, ig.get.model(back)):
        found = other.predict_intervals(features, sections)
        assert all(np.array_equal(getattr(found, part), getattr(expected, part)) for part in vars(expected))
    for name in PARTS:
        np.testing.assert_array_equal(back["table"].layers[name], study["table"].layers[name])
    np.testing.assert_array_equal(back["table"].obs["img2gene_ood"], study["table"].obs["img2gene_ood"])


def test_a_calibration_of_the_wrong_shape_is_refused(study):
    config, arrays = ig.tl.fit(study, "ridge", inplace=False).state()
    arrays["calibration.scale"] = arrays["calibration.scale"][:3]
    with pytest.raises(Img2GeneError, match=r"calibration.scale` has shape \(3,\)"):
        ig.models.Model.from_state(config, arrays)


def test_level_is_checked_before_anything_is_fitted(study):
    with pytest.raises(Img2GeneError, match=r"level=1.5: expected a number between 0 and 1"):
        ig.tl.fit(study, "ridge", level=1.5)


# Edges


@pytest.mark.parametrize(
    ("names", "kind"), [((("A1", "A"), ("A2", "A")), "section"), ((("A1", "A"),), "block")], ids=["section", "block"]
)
def test_one_patient_is_calibrated_within_and_says_so(make_study, names, kind, caplog):
    study = make_study(names)
    with caplog.at_level(logging.WARNING):
        trained = ig.tl.fit(study, "ridge", allow_single_section=True, inplace=False)
    assert trained.report["uncertainty"]["left_out"] == kind
    assert "do not cover other variation between" in caplog.text
    assert trained.report["uncertainty"]["least_depth"] == 500
    found = ig.tl.predict(study, trained, inplace=False)
    assert np.isfinite(found.layers["img2gene_std"]).all()


def test_intervals_at_another_depth_are_quantiles_of_counts():
    shares = np.array([[0.0, 1e-5, 2e-4, 3e-3, 0.2]])
    values = np.log1p(1e4 * shares)
    lower, upper = at_depth(values, values, depth=700, level=0.8)
    for bound, quantile in ((lower, 0.1), (upper, 0.9)):
        counts = scipy.stats.poisson.ppf(quantile, 700 * shares)
        np.testing.assert_allclose(bound, np.log1p(1e4 * counts / 700), rtol=1e-6)


@pytest.mark.parametrize("groups", ["patient", "section"])
def test_intervals_of_one_patient_cover_a_shallow_one(make_study, groups):
    study = make_study((("A1", "A"), ("A2", "A")))
    trained = ig.tl.fit(study, "mean", groups=groups, inplace=False)
    within = ig.tl.predict(study, trained, inplace=False).layers
    study["table"].obs["patient"] = "new"
    counts = np.random.default_rng(0).binomial(study["table"].X.toarray().astype(int), 0.2)
    shallow = np.log1p(1e4 * counts / (0.2 * study["table"].obs["library_size"].to_numpy())[:, None])
    layers = ig.tl.predict(study, trained, inplace=False).layers
    covered = {
        name: ((each["img2gene_lower"] <= shallow) & (shallow <= each["img2gene_upper"])).mean()
        for name, each in (("new", layers), ("within", within))
    }
    assert covered["within"] < 0.9 < covered["new"]


def test_two_spots_are_enough():
    data = two_levels(np.random.default_rng(0), 1, n_spots=2, n_genes=3)
    predictor, calibration, _ = calibrated(data, "mean")
    std, lower, upper = calibration.bounds(predictor.predict(data.features, data.sections), None)
    assert (lower <= upper).all()
    assert np.isfinite(std).all()


def test_a_gene_without_residuals_has_no_width():
    data = two_levels(np.random.default_rng(0), 3, n_spots=20, n_genes=2)
    data.labels[:, 1] = 1
    predictor, calibration, _ = calibrated(data, "mean")
    std, lower, upper = calibration.bounds(predictor.predict(data.features, data.sections), None)
    np.testing.assert_array_equal(std[:, 1], 0)
    np.testing.assert_allclose(lower[:, 1], upper[:, 1])


def test_labels_of_a_layer_may_be_negative_and_bounds_are_not_cut(study):
    table = study["table"]
    table.layers["z"] = np.random.default_rng(0).normal(size=table.shape).astype("f4")
    ig.tl.fit(study, "ridge", layer="z", validate_on=["C"])
    ig.tl.predict(study)
    assert (table.layers["img2gene_lower"] < 0).all()


def test_groups_with_very_few_spots_count_like_the_others():
    rows, units = np.arange(103), np.repeat(["A", "B", "C"], [50, 50, 3])
    data = TrainingData(np.ones((103, 1), "f4"), np.zeros((103, 1), "f4"), units, units, np.zeros((103, 2)))
    data.labels[units == "C"] = 9
    held_out = HeldOut(rows, np.zeros((103, 1), "f4"), "group", units)
    calibration, report = Calibration.fit(held_out, data, level=0.9, seed=0)
    # A third of the weight lies at 9, so the 95 % quantile does; without C no value shows such a group.
    _, _, upper = calibration.bounds(np.zeros((1, 1), "f4"), None)
    assert upper[0, 0] / report["factor"] == pytest.approx(9, rel=1e-3)
    assert report["factor"] == 3
    assert report["coverage_without_factor"] == pytest.approx(2 / 3, abs=0.35)


# Plots


@pytest.fixture
def doubtful(study):
    ig.tl.fit(study, "ridge", validate_on=["C"])
    ig.tl.predict(study)
    table = study["table"]
    table.obs["img2gene_ood"] = np.where(np.arange(table.n_obs) % 7 == 0, 99.5, 10.0)
    ig.tl.predictability(study, n_permutations=1)
    table.var["predictable"] = pd.array([True, False, pd.NA] * 4, dtype="boolean")
    return study


def panels(figure):
    return [ax for ax in figure.axes if ax.get_title()]


def test_spots_unlike_the_training_data_are_drawn_faintly(doubtful):
    figure = ig.pl.prediction(doubtful, "G00", sections="C1")
    measured, predicted, residual = panels(figure)
    assert "7 out-of-distribution spots" in predicted.get_title()
    assert measured.collections[0].get_alpha() == 0.85
    for ax in (predicted, residual):
        alpha = ax.collections[0].get_alpha()
        np.testing.assert_allclose(alpha, np.where(np.arange(49) % 7 == 0, 0.3 * 0.85, 0.85))


def test_genes_that_are_not_predictable_are_drawn_faintly(doubtful):
    shown = {gene: panels(ig.pl.prediction(doubtful, gene, sections="A1"))[1] for gene in ("G00", "G01", "G02")}
    assert {gene: "not predictable" in ax.get_title() for gene, ax in shown.items()} == {
        "G00": False,
        "G01": True,
        "G02": False,
    }
    np.testing.assert_allclose(shown["G01"].collections[0].get_alpha(), 0.3 * 0.85)


def test_a_verdict_fades_only_the_prediction_that_it_is_about(doubtful):
    def faded(key):
        return "not predictable" in panels(ig.pl.prediction(doubtful, "G01", sections="A1", key=key))[1].get_title()

    ig.tl.fit(doubtful, "knn", validate_on=["C"], key_added="knn")
    ig.tl.predict(doubtful, key_added="knn")
    assert (faded("img2gene"), faded("knn")) == (True, False)
    ig.tl.predict(doubtful, "knn", key_added="img2gene")
    assert not faded("img2gene")
    with pytest.raises(Img2GeneError, match="another model has replaced"):
        ig.pl.predictability(doubtful)


def test_nothing_fades_unless_wanted(doubtful):
    _, predicted, _ = panels(ig.pl.prediction(doubtful, "G01", sections="A1", fade=False))
    np.testing.assert_allclose(predicted.collections[0].get_alpha(), 0.85)
    assert "out-of-distribution" not in predicted.get_title()


def test_sd_has_a_panel_of_its_own(doubtful, snapshot):
    before = snapshot(doubtful["table"])
    shown = panels(ig.pl.prediction(doubtful, "G00", sections="A1", uncertainty=True))
    assert [ax.get_title().split(",")[0] for ax in shown] == ["A1  G00 measured", "predicted", "SD", "residual"]
    rows = (doubtful["table"].obs["section"] == "A1").to_numpy()
    np.testing.assert_array_equal(
        shown[2].collections[0].get_array(), doubtful["table"].layers["img2gene_std"][rows, 0]
    )
    assert snapshot(doubtful["table"]) == before
    ig.tl.predict(doubtful, uncertainty=False)
    with pytest.raises(MissingKeyError, match="uncertainty=True"):
        ig.pl.prediction(doubtful, "G00", uncertainty=True)
