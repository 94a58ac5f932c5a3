"""Parts of the debiasing: stain, level of sections, depth; and the components that networks predict."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

import img2gene as ig
from img2gene._errors import Img2GeneError
from img2gene.encoders.restain import restained
from img2gene.models import Model, TrainingData, create
from img2gene.models.bias.debiasing import Debiasing
from img2gene.models.bias.level import SectionLevel
from img2gene.models.bias.stain import StainShrinkage
from img2gene.models.centring import centre
from img2gene.models.img2gene.responses import Responses


@pytest.fixture(scope="module")
def cohort():
    sdata = ig.datasets.synthetic_cohort(n_patients=4, n_sections=1, n_spots=40, n_genes=60)
    ig.pp.extract_patches(sdata, patch_um=112)
    ig.pp.embed_patches(sdata, "color-texture", restained=12)
    return sdata


def test_a_factor_of_one_changes_nothing_and_white_has_no_stain():
    pixels = np.random.default_rng(0).integers(1, 256, size=(2, 4, 4, 3), dtype=np.uint8)
    for same in restained(pixels, np.ones(2)):
        np.testing.assert_array_equal(same, pixels)
    white = np.full((1, 2, 2, 3), 255, dtype=np.uint8)
    for copy in restained(white, np.array([2.0])):
        np.testing.assert_array_equal(copy, white)


def test_twice_the_stain_is_twice_the_optical_density():
    from skimage.color import rgb_from_hed

    # one unit of haematoxylin alone, by the colours of the deconvolution
    density = 0.8 * rgb_from_hed[0]
    pixels = (255 * np.exp(-density)).round().astype(np.uint8).reshape(1, 1, 1, 3)
    more, other = restained(pixels, np.array([2.0]))
    np.testing.assert_allclose(-np.log(more[0, 0, 0] / 255), 2 * density, atol=0.03)
    np.testing.assert_allclose(other, pixels, atol=2)


def test_each_patch_has_a_factor_of_its_own():
    pixels = np.tile(np.array([120, 80, 150], dtype=np.uint8), (2, 1, 1, 1))
    for copy in restained(pixels, np.array([1.2, 1 / 1.2])):
        assert copy[0].sum() < pixels[0].sum() < copy[1].sum()


def test_a_direction_that_stain_moves_is_shrunk_by_the_stated_factor():
    features = np.random.default_rng(0).normal(size=(400, 3)).astype("f4") * np.float32([1, 2, 4])
    sd = (features - features.mean(axis=0)).std(axis=0)
    changes = np.array([[0, 2.0, 0], [0, -4.0, 0]], dtype="f4")
    r = np.sqrt((4 + 16) / 2) / sd[1]
    shrinkage = StainShrinkage.fit(features, np.repeat("S1", 400), changes)
    expected = features * [1, 1 / np.sqrt(1 + (3 * r) ** 2), 1]
    np.testing.assert_allclose(shrinkage(features), expected, rtol=1e-4, atol=1e-5)
    effect = shrinkage.effect(changes)
    assert effect["moved_after"] == pytest.approx(effect["moved_before"] / np.sqrt(1 + (3 * r) ** 2), abs=1e-4)


def test_blocks_and_features_that_never_vary_change_nothing(monkeypatch):
    features = np.random.default_rng(0).normal(size=(30, 4)).astype("f4")
    features[:, 3] = 7
    changes = np.random.default_rng(1).normal(size=(6, 4)).astype("f4")
    shrinkage = StainShrinkage.fit(features, np.repeat("S1", 30), changes)
    whole = shrinkage(features)
    assert np.isfinite(whole).all()
    np.testing.assert_allclose(whole[:, 3], 7)
    monkeypatch.setattr("img2gene.models.bias.stain._BLOCK_VALUES", 12)
    np.testing.assert_allclose(shrinkage(features), whole, atol=1e-6)


def levelled(n_groups=6, informative=True, seed=0, n=40):
    """Sections whose mean label follows their mean features with the coefficients that hold within sections, or not."""
    rng = np.random.default_rng(seed)
    names = np.repeat([f"G{i}" for i in range(n_groups)], n)
    shift = np.repeat(rng.normal(size=(n_groups, 3)), n, axis=0)
    within = rng.normal(size=(n_groups * n, 3))
    weights = rng.normal(size=(3, 8))
    labels = (within + (shift if informative else 0)) @ weights
    labels += 0.05 * rng.normal(size=labels.shape)
    if not informative:
        labels += np.repeat(rng.normal(size=(n_groups, 8)), n, axis=0)
    places = np.stack([np.tile(np.arange(n), n_groups), np.zeros(n_groups * n)], axis=1).astype(float)
    return TrainingData((within + shift).astype("f4"), labels.astype("f4"), names, names, places)


def test_levels_that_mean_features_show_are_predicted_for_a_group_that_was_left_out():
    data = levelled(8)
    held = data.sections == "G7"
    level, report = SectionLevel.fit(data.take(~held), seed=0)
    assert report["validated_on"] == "group"
    assert report["n_units"] == 7
    assert report["share"] > 0.7
    assert report["mse_after"] < 0.3 * report["mse_before"]
    mean = data.labels[~held].mean(axis=0)
    truth = data.labels[held].mean(axis=0) - mean
    levels = level.levels(data.features[held].mean(axis=0, keepdims=True))[0]
    bounds = [data.labels[data.sections == name].mean(axis=0) - mean for name in np.unique(data.sections[~held])]
    within = (truth > np.min(bounds, axis=0)) & (truth < np.max(bounds, axis=0))
    assert np.abs(levels - truth)[within].mean() < 0.4 * np.abs(truth)[within].mean()


def test_levels_that_features_do_not_show_stay_out():
    reports = [SectionLevel.fit(levelled(informative=False, seed=seed), seed=0)[1] for seed in range(4)]
    assert np.mean([report["share"] for report in reports]) < 0.15
    assert all(report["mse_after"] <= report["mse_before"] for report in reports)


def test_a_level_never_lies_beyond_those_of_the_training():
    data = levelled()
    level, _ = SectionLevel.fit(data, seed=0)
    far = level.levels(np.full((1, 3), 1e4))[0]
    assert ((far >= level.lowest) & (far <= level.highest)).all()


@pytest.mark.parametrize(("n_groups", "unit"), [(2, "section"), (1, "part")])
def test_with_few_groups_levels_are_validated_on_smaller_units(n_groups, unit):
    data = levelled(4 if unit == "section" else 2)
    groups = np.where(np.isin(data.sections, ["G0", "G1"]), "A", "B" if n_groups == 2 else "A")
    assert SectionLevel.fit(replace(data, groups=groups), seed=0)[1]["validated_on"] == unit


def test_without_a_share_a_level_changes_nothing():
    level, report = SectionLevel.fit(
        levelled(informative=False), seed=0, spot_weights=lambda data: np.arange(240) + 1.0
    )
    nothing = replace(level, share=np.zeros(1, dtype="f4"))
    assert (nothing.levels(np.random.default_rng(0).normal(size=(5, 3))) == 0).all()
    assert (level.lowest <= 0).all()
    assert (level.highest >= 0).all()


def test_one_section_says_nothing_of_others_but_its_parts_have_levels():
    data = levelled(1, n=100)
    level, report = SectionLevel.fit(data, seed=0)
    assert report["validated_on"] == "part"
    np.testing.assert_allclose(level.levels(data.features.mean(axis=0, keepdims=True)), 0, atol=1e-5)
    assert (level.highest > level.lowest).all()


def test_components_keep_the_squared_error_of_what_they_span():
    rng = np.random.default_rng(0)
    labels = (rng.normal(size=(50, 4)) @ rng.normal(size=(4, 20))).astype("f4")
    responses = Responses.of(labels, np.ones(50), 6, seed=0)
    assert responses.directions.shape == (20, 6)
    reduced = responses.reduce(torch.from_numpy(labels))
    np.testing.assert_allclose(responses.expand(reduced), labels, atol=1e-3)
    assert float(reduced.square().mean()) == pytest.approx(float(np.square(labels).mean()), rel=1e-4)
    assert Responses.of(labels, np.ones(50), 20, seed=0).directions is None
    one = responses.of_gene(3, 6)
    np.testing.assert_allclose(reduced @ one, labels[:, 3], atol=1e-3)


def test_a_weight_of_zero_takes_a_spot_out_of_the_components():
    labels = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 50, 0], [0, -50, 0]], dtype="f4")
    responses = Responses.of(labels, np.array([1.0, 1, 0, 0]), 1, seed=0)
    np.testing.assert_allclose(np.abs(responses.directions[:, 0]), [1, 0, 0], atol=1e-6)


def test_restained_patches_come_from_all_sections_and_follow_their_spots(cohort):
    table = cohort["table"]
    changes = table.obsm["X_color-texture_restained"]
    known = np.diff(changes.indptr) > 0
    assert known.sum() == 12
    assert table.obs["section"][known].value_counts().tolist() == [3, 3, 3, 3]
    assert changes.shape == (160, 2 * table.obsm["X_color-texture"].shape[1])
    assert (np.abs(changes[known].toarray()).max(axis=1) > 0).all()


def test_restaining_does_not_depend_on_the_order_of_the_rows(cohort):
    from img2gene._study.restaining import restained_rows
    from img2gene._study.study import Study

    study = Study.of(cohort)
    names = set(study.table.obs_names[restained_rows(study, 12, 0)])
    turned = cohort.subset([*cohort.images, *cohort.shapes, "table"])
    turned.tables["table"] = cohort["table"][::-1].copy()
    assert set(turned["table"].obs_names[restained_rows(Study.of(turned), 12, 0)]) == names


def test_the_stored_model_predicts_what_the_fitted_one_does(cohort, tmp_path):
    model = ig.tl.fit(cohort, "ridge", validate_on=["P4"], debias=["stain", "level"], inplace=False)
    assert model.report["debias"]["parts"] == ["stain", "level"]
    ig.io.save_model(model, tmp_path / "m.img2gene")
    stored = ig.io.load_model(tmp_path / "m.img2gene")
    assert stored.fingerprint == model.fingerprint
    tables = [ig.tl.predict(cohort, one, inplace=False) for one in (model, stored)]
    np.testing.assert_array_equal(tables[0].X, tables[1].X)
    plain = ig.tl.fit(cohort, "ridge", validate_on=["P4"], debias=None, inplace=False)
    assert plain.debiasing is None
    assert plain.fingerprint != model.fingerprint


def test_the_predictor_sees_shrunken_features_and_levels_are_added():
    data = levelled(4)
    stain = StainShrinkage.fit(data.features, data.sections, np.array([[3.0, 0, 0]], dtype="f4"))
    seen = replace(data, features=stain(data.features))
    ridge = create("ridge-plain")
    ridge.fit(seen, seed=0)
    level, _ = SectionLevel.fit(seen, seed=0)
    inputs = {"name": "color-texture", "width": 3}
    model = Model(ridge, list("abcdefgh"), {}, inputs, {"layer": None}, debiasing=Debiasing(stain, level))
    expected = ridge.predict(seen.features, data.sections)
    for name in np.unique(data.sections):
        rows = data.sections == name
        expected[rows] += level.levels(seen.features[rows].mean(axis=0, keepdims=True, dtype=np.float64))[0]
    np.testing.assert_allclose(model.predict(data.features, data.sections), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["ridge", "ridge-plain"])
def test_shrinkage_is_a_penalty_on_what_the_stain_moves(name):
    """Only the first feature moves with the stain: it is shrunk along its own axis, which scaling anew would undo."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 5)).astype("f4") * np.float32([1, 2, 3, 4, 5])
    labels = (features[:, :1] + features[:, 1:2] + rng.normal(size=(120, 6))).astype("f4")
    sections = np.repeat(["a", "b", "c"], 40)
    data = TrainingData(features, labels, sections, sections, rng.normal(size=(120, 2)))
    changes = np.zeros((20, 5), dtype="f4")
    changes[:, 0] = rng.choice([-2, 2], 20)
    debiasing = Debiasing(StainShrinkage.fit(features, sections, changes))
    model = create(name, penalty=0.5 * len(features))
    model.fit(debiasing.seen(data), seed=0)
    x, y = centre(features, sections, None), centre(labels, sections, None)
    sd = x.std(axis=0)
    # Factors are squared in the penalty: λ (1 + (3 r)²) for the first feature, λ for the others.
    moved = np.array([2 / sd[0], 0, 0, 0, 0])
    energy = (1 / (1 + np.square(3 * moved))).sum()
    penalty = 0.5 * len(features) * energy * (1 + np.square(3 * moved))
    z = x / sd
    expected = z @ np.linalg.solve(z.T @ z + np.diag(penalty), z.T @ y) + labels.mean(axis=0)
    found = model.predict(debiasing.features(features), sections)
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize(("name", "params"), [("ridge", {}), ("ridge-plain", {}), ("knn", {"k": 20})])
def test_predictions_of_restained_patches_move_less(cohort, name, params):
    table = cohort["table"]
    width = table.obsm["X_color-texture"].shape[1]
    changes = table.obsm["X_color-texture_restained"].toarray()
    rows = np.flatnonzero(np.abs(changes).sum(axis=1))
    moved = []
    for debias in (None, "stain"):
        model = ig.tl.fit(cohort, name, debias=debias, validate_on=["P4"], uncertainty=False, inplace=False, **params)
        features, sections = table.obsm["X_color-texture"], table.obs["section"].astype(str).to_numpy()
        stained = features.copy()
        stained[rows] += changes[rows, :width]
        before, after = (model.predict(values, sections) for values in (features, stained))
        moved.append(np.sqrt(np.square(after - before)[rows].mean()))
    assert moved[1] < 0.85 * moved[0]


def test_levels_and_the_predictions_that_they_are_added_to_have_one_mean():
    """A depth-weighted ridge has a weighted mean; with it levels stay between those of the training sections."""
    rng = np.random.default_rng(0)
    sections = np.repeat(["a", "b", "c", "d"], 40)
    level = np.repeat([0.0, 0.2, 2.0, 2.2], 40)[:, None]
    features = (level + 0.1 * rng.normal(size=(160, 3))).astype("f4")
    labels = (3 + features[:, :1] + 0.01 * rng.normal(size=(160, 2))).astype("f4")
    library = np.repeat([100.0, 100.0, 10_000.0, 10_000.0], 40)
    data = TrainingData(features, labels, sections, sections, rng.normal(size=(160, 2)), library=library)
    model = create("ridge")
    model.fit(data, seed=0)
    assert np.abs(model.arrays["label_mean"] - labels.mean(axis=0)).min() > 0.3
    found, _ = SectionLevel.fit(data, seed=0, spot_weights=model.spot_weights)
    debiasing = Debiasing(level=replace(found, share=np.ones(1, dtype="f4")))
    far = (features + 50).astype("f4")
    for values, end in (
        (far, labels[sections == "d"].mean(axis=0)),
        (features - 50, labels[sections == "a"].mean(axis=0)),
    ):
        predicted = debiasing.add_levels(model.predict(values, sections), values, sections)
        np.testing.assert_allclose(predicted.mean(axis=0), end, atol=0.02)


def test_tokens_are_left_out_with_stain_and_a_warning_says_so(cohort, copy_of, caplog):
    sdata, options = copy_of(cohort), {"max_epochs": 1, "n_models": 1, "n_validations": 0, "dim": 16, "inplace": False}
    without = ig.tl.fit(sdata, debias="stain", validate_on=["P4"], uncertainty=False, **options)
    ig.pp.embed_patches(sdata, "color-texture", restained=12, tokens=9)
    with caplog.at_level(logging.WARNING, logger="img2gene"):
        model = ig.tl.fit(sdata, debias="stain", validate_on=["P4"], uncertainty=False, **options)
    assert "tokens of patches are left out" in caplog.text
    # The model must not ask for what it does not use.
    del sdata["table"].obsm["X_color-texture_tokens"]
    expected, found = (ig.tl.predict(sdata, each, inplace=False).X for each in (without, model))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_nothing_is_done_unless_it_is_named(cohort):
    for name in ("ridge", "ridge-plain", "mean"):
        model = ig.tl.fit(cohort, name, validate_on=["P4"], inplace=False)
        assert model.report["debias"]["parts"] == []
        assert model.debiasing is None


def test_without_restained_patches_a_request_is_refused(cohort):
    bare = cohort.subset([*cohort.images, *cohort.shapes, "table"])
    bare.tables["table"] = cohort["table"].copy()
    del bare["table"].obsm["X_color-texture_restained"]
    with pytest.raises(Img2GeneError, match=r"debias='stain': .*embed_patches\(sdata, 'color-texture', restained=40\)"):
        ig.tl.fit(bare, "ridge", validate_on=["P4"], debias="stain")


def test_depth_is_the_scale_of_predictions_unless_told_otherwise(cohort):
    model = ig.tl.fit(cohort, "ridge", validate_on=["P4"], debias="depth", inplace=False)
    default, unlimited, training = (
        ig.tl.predict(cohort, model, depth=depth, inplace=False).X for depth in (None, "unlimited", "training")
    )
    np.testing.assert_array_equal(default, unlimited)
    assert np.abs(default - training).max() > 0.01


def test_an_effect_becomes_the_parameter_of_the_model(cohort):
    options = {"validate_on": ["P4"], "inplace": False, "max_epochs": 1, "n_models": 1, "n_validations": 0}
    model = ig.tl.fit(cohort, debias=["TDE", "stain"], uncertainty=False, **options)
    assert model.predictor.parameters.effect == "TDE"
    assert model.report["debias"]["parts"] == ["stain", "TDE"]
    assert "stain, TDE" in model._repr_html_()


@pytest.mark.parametrize("params", [{"effect": "TE"}, {"preset": "cscc"}])
def test_an_effect_is_reported_however_it_was_named(cohort, params):
    options = {"validate_on": ["P4"], "inplace": False, "max_epochs": 1, "n_models": 1, "n_validations": 0}
    model = ig.tl.fit(cohort, uncertainty=False, **options, **params)
    assert model.report["debias"]["parts"] == ["TE"]


@pytest.mark.parametrize(
    ("model", "params", "message"),
    [
        ("ridge", {"debias": "TE"}, "the model 'ridge' has no causal effects"),
        ("img2gene", {"debias": ["TE", "NDE"]}, "TE, NDE are alternatives"),
        ("img2gene", {"debias": "TE", "effect": "NDE"}, "contradicts effect='NDE'"),
        ("ridge", {"debias": "colour"}, "debias='colour': choose from stain, level, depth, TE"),
        ("ridge", {"debias": 1}, "debias=1"),
        ("mean", {"debias": "level"}, "a level is added only"),
        ("ridge", {"debias": "depth", "layer": "truth"}, "debias='depth' needs counts"),
        ("img2gene", {"depth_weights": True, "layer": "truth"}, "depth_weights=True needs library sizes"),
        (
            "img2gene",
            {"debias": "NIE", "neighborhood": False, "section_view": False},
            "effect='NIE' is what the neighbourhood and the section add",
        ),
    ],
)
def test_what_cannot_be_done_is_named(cohort, model, params, message):
    with pytest.raises(Img2GeneError, match=message):
        ig.tl.fit(cohort, model, validate_on=["P4"], **params)


def test_stain_and_fine_tuning_are_refused_before_anything_is_trained(cohort, monkeypatch):
    from img2gene._study.finetuning import StudyFineTuning

    monkeypatch.setattr(StudyFineTuning, "run", lambda *args, **kwargs: pytest.fail("trained"))
    with pytest.raises(Img2GeneError, match="a fine-tuned encoder has no restained patches"):
        ig.tl.fit(cohort, "ridge", encoder="efficientnet-lite0", finetune="last", debias="stain", validate_on=["P4"])


def test_levels_of_few_groups_are_called_unknown(cohort, caplog):
    with caplog.at_level(logging.WARNING, logger="img2gene"):
        ig.tl.fit(cohort, "ridge", validate_on=["P3", "P4"], debias="level", inplace=False)
    assert "levels of new patients are unknown" in caplog.text


def test_a_constant_in_the_pathway_scores_of_a_section_changes_nothing():
    rng = np.random.default_rng(0)
    data = levelled(3)
    scores = rng.normal(size=(len(data.labels), 4)).astype("f4")
    shifted = scores + np.repeat(rng.normal(size=(3, 4)), 40, axis=0).astype("f4")
    models = []
    for pathways in (scores, shifted):
        model = create("img2gene", max_epochs=2, n_models=1, n_validations=0, dim=8, heads=2, ridge="none")
        model.fit(replace(data, pathways=pathways), seed=0)
        models.append(model.predict(data.features, data.sections, positions=data.positions))
    np.testing.assert_allclose(*models, atol=1e-4)


def test_backdoor_centroids_tell_sections_apart():
    data = levelled(3)
    model = create("img2gene", max_epochs=1, n_models=1, n_validations=0, dim=8, heads=2, n_confounders=8)
    model.fit(data, seed=0)
    network = model.fitted.ensemble
    centroids = network.get_buffer("backdoor/centroids")[0]
    assert centroids.shape[0] == 3
    assert torch.pdist(centroids).min() > 0.1


def test_sections_of_few_spots_are_named_where_predictions_refer_to_their_mean(cohort, caplog):
    few = cohort.subset([*cohort.images, *cohort.shapes, "table"])
    table = cohort["table"]
    few.tables["table"] = table[(table.obs["patient"] != "P2").to_numpy() | (np.arange(table.n_obs) % 10 == 0)].copy()
    for name, named in (("ridge-plain", True), ("mean", False)):
        model = ig.tl.fit(cohort, name, validate_on=["P4"], inplace=False)
        caplog.clear()
        ig.tl.predict(few, model, inplace=False)
        assert ("P2_S1 (4) have fewer than 20 spots" in caplog.text) == named


@pytest.mark.parametrize(("every", "named"), [(3, True), (1, False)])
def test_a_table_of_a_part_of_a_section_is_named(cohort, caplog, every, named):
    part = cohort.subset([*cohort.images, *cohort.shapes, "table"])
    table = cohort["table"]
    part.tables["table"] = table[
        (table.obs["patient"] != "P2").to_numpy() | (np.arange(table.n_obs) % every == 0)
    ].copy()
    model = ig.tl.fit(cohort, "ridge-plain", validate_on=["P4"], inplace=False)
    ig.tl.predict(part, model, inplace=False)
    total = len(cohort["P2_S1_spots"])
    assert ("less than three quarters of the spots of P2_S1_spots (" in caplog.text) == named
    assert (f" of {total})" in caplog.text) == named
