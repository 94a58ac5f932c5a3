"""Predictions can be converted to another depth, and are then compared like with like."""

import numpy as np
import pytest
import scipy.sparse as sp

import img2gene as ig
from img2gene._errors import Img2GeneError
from img2gene.models import Model
from img2gene.models.depth_scale import DepthScale

SHARES = np.array([3e-5, 2e-4, 1e-3, 1e-2])


def simulated(depth, dispersion, n=40_000, seed=0):
    """Labels of negative binomial counts, and their library sizes."""
    rng = np.random.default_rng(seed)
    library = depth * rng.uniform(0.6, 1.4, n)
    rates = rng.gamma(1 / dispersion, dispersion, (n, len(SHARES))) if dispersion else np.ones((n, len(SHARES)))
    counts = rng.poisson(rates * SHARES * library[:, None])
    return np.log1p(1e4 * counts / library[:, None]), library


@pytest.mark.parametrize("dispersion", [0, 0.5, 2])
@pytest.mark.parametrize(("source", "target"), [(600, 9000), (9000, 600)])
def test_mean_labels_at_another_depth_are_those_of_a_simulation(dispersion, source, target):
    (before, library), (after, other) = simulated(source, dispersion), simulated(target, dispersion, seed=1)
    scale = DepthScale.fit(before, library, np.repeat("S", len(library)))
    np.testing.assert_allclose(scale.dispersion[1:], dispersion, atol=0.15 + 0.1 * dispersion)
    converted = scale.convert(before.mean(axis=0)[None], other)[0]
    np.testing.assert_allclose(converted, after.mean(axis=0), rtol=0.05, atol=0.02)


def test_unlimited_depth_gives_the_share():
    labels, library = simulated(2000, 0)
    scale = DepthScale.fit(labels, library, np.repeat("S", len(library)))
    np.testing.assert_allclose(scale.convert(labels.mean(axis=0)[None], np.inf)[0], np.log1p(1e4 * SHARES), rtol=0.05)


def test_conversions_rise_with_the_prediction_and_can_be_undone():
    labels, library = simulated(2000, 0.5)
    scale = DepthScale.fit(labels, library, np.repeat("S", len(library)))
    values = np.linspace(0.05, 4, 40)[:, None].repeat(len(SHARES), axis=1)
    for depth in (500.0, np.inf, np.array([300.0, 5000.0])):
        there = scale.convert(values, depth)
        assert (np.diff(there, axis=0) > 0).all()
        np.testing.assert_allclose(scale.convert(there, "training", source=depth), values, atol=2e-3)
    np.testing.assert_allclose(scale.convert(values, "training"), values, atol=1e-5)
    np.testing.assert_allclose(
        scale.take(np.array([2])).convert(values[:, :1], 500.0), scale.convert(values, 500.0)[:, 2:3]
    )


@pytest.fixture
def trained(trained_study, copy_of):
    return copy_of(trained_study)


def thinned(sdata, share):
    table = sdata["table"]
    table.X = sp.csr_matrix(np.random.default_rng(0).binomial(table.X.toarray().astype(int), share).astype(np.float32))
    # Genes that the table lacks are thinned as well.
    table.obs["library_size"] = np.maximum(table.obs["library_size"].to_numpy() * share, table.X.sum(axis=1).A1)
    return sdata


def test_models_of_thinned_and_full_counts_agree_at_one_depth(study, copy_of):
    models = {
        name: ig.tl.fit(sdata, "ridge", validate_on=["C"], inplace=False)
        for name, sdata in (("full", study), ("thin", thinned(copy_of(study), 0.01)))
    }

    def gap(**options):
        levels = [ig.tl.predict(study, model, inplace=False, **options).X.mean(axis=0) for model in models.values()]
        return np.abs(levels[0] - levels[1]).mean()

    # The tissue is the same, so the truth is 0.
    assert gap(depth="unlimited") < 0.3 * gap()
    assert gap(depth=50) < 0.3 * gap()


def test_predictions_at_a_stated_depth_are_scored_at_the_measured_one(trained):
    usual = ig.tl.evaluate(trained, at_measured_depth=True)
    ig.tl.predict(trained, depth="unlimited")
    table = trained["table"]
    assert (table.layers["img2gene_lower"] <= table.layers["img2gene_upper"]).all()
    assert (table.layers["img2gene_std"] >= 0).all()
    scores = ig.tl.evaluate(trained)
    for name in ("mse", "bias", "pcc", "r2"):
        np.testing.assert_allclose(scores[name], usual[name], atol=5e-3)
    apart = ig.tl.evaluate(trained, at_measured_depth=False)
    assert (apart["mse"] != scores["mse"]).any()
    ig.tl.predict(trained)
    assert "depth" not in table.uns["img2gene"]["predicted_by"]


def test_returned_predictions_in_a_table_of_their_own_are_scored_at_the_measured_depth(trained):
    ig.tl.predict(trained, depth="unlimited")
    expected = ig.tl.evaluate(trained, inplace=False, n_permutations=0)
    apart = ig.tl.predict(trained, depth="unlimited", inplace=False)
    table = trained["table"]
    for name in [name for name in table.layers if name.startswith("img2gene")]:
        del table.layers[name]
    del table.uns["img2gene"]["predicted_by"]
    trained.tables["img2gene"] = apart
    found = ig.tl.evaluate(trained, inplace=False, n_permutations=0)
    for name in ("mse", "bias", "pcc"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_expected_labels_settle_at_great_depth(trained):
    first, *others = (ig.tl.predict(trained, depth=depth, inplace=False).X for depth in (1e7, 1e9, 1e12))
    for values in others:
        np.testing.assert_allclose(values, first, atol=0.001)
    # Counts that vary more than those of Poisson have a lower mean logarithm than log1p(1e4 · share).
    assert (first <= ig.tl.predict(trained, depth="unlimited", inplace=False).X + 1e-4).all()


def test_measured_totals_have_a_depth_of_their_own(trained):
    with pytest.raises(Img2GeneError, match="measured totals have the depth of their spots"):
        ig.tl.predict(trained, resolution_um=50, totals="measured", depth="unlimited", inplace=False)


def test_a_shallow_section_is_compared_at_its_depth(trained):
    thinned(trained, 0.01)
    raw = ig.tl.evaluate(trained, inplace=False).query("model == 'ridge'")
    fair = ig.tl.evaluate(trained, at_measured_depth=True, inplace=False).query("model == 'ridge'")
    assert fair["bias"].abs().mean() < 0.5 * raw["bias"].abs().mean()
    assert fair["mse"].mean() < raw["mse"].mean()


def test_the_depth_scale_is_stored(trained, tmp_path):
    model = ig.get.model(trained)
    ig.io.save_model(model, tmp_path / "m.img2gene")
    loaded = ig.io.load_model(tmp_path / "m.img2gene")
    for name in DepthScale.shapes:
        np.testing.assert_array_equal(getattr(loaded.depth_scale, name), getattr(model.depth_scale, name))
    config, arrays = model.state()
    arrays["depth_scale.depths"] = -arrays["depth_scale.depths"]
    with pytest.raises(Img2GeneError):
        Model.from_state(config, arrays)


@pytest.mark.parametrize("depth", [0, 0.5, -5, "deep", np.nan, True, [500], np.array([500, 600])])
def test_a_depth_that_is_none_is_refused(trained, depth):
    with pytest.raises(Img2GeneError, match="depth="):
        ig.tl.predict(trained, depth=depth)
    with pytest.raises(Img2GeneError, match="at_measured_depth="):
        ig.tl.evaluate(trained, at_measured_depth="always")


def test_labels_of_a_layer_have_no_depth(study):
    study["table"].layers["mine"] = np.log1p(study["table"].X.toarray())
    model = ig.tl.fit(study, "ridge", layer="mine", validate_on=["C"], inplace=False)
    with pytest.raises(Img2GeneError, match="knows no depth"):
        ig.tl.predict(study, model, depth=500)


def test_a_gene_that_is_absent_is_so_at_every_depth():
    labels, library = simulated(2000, 0.5, n=2000)
    scale = DepthScale.fit(labels, library, np.repeat("S", len(library)))
    values = np.array([[-0.3], [-0.1], [0], [1e-6], [1e-3]]).repeat(len(SHARES), axis=1)
    for depth in (20.0, 500.0, np.inf):
        found = scale.convert(values, depth)
        np.testing.assert_array_equal(found[:3], values[:3].astype("f4"))
        assert (np.diff(found, axis=0) > 0).all()


@pytest.mark.parametrize("share", [1, 0.5, 0.15, 0.05])
def test_intervals_at_the_depth_of_thinned_counts_hold_what_they_state(share):
    sdata = ig.datasets.synthetic_cohort(n_patients=4, n_sections=1, n_spots=60, n_genes=60)
    ig.pp.extract_patches(sdata, patch_um=112)
    ig.pp.embed_patches(sdata, "color-texture")
    ig.tl.fit(sdata, "ridge", validate_on=["P4"])
    thinned(sdata, share)
    for depth in (float(np.median(sdata["table"].obs["library_size"])), "unlimited"):
        ig.tl.predict(sdata, depth=depth)
        scores = ig.tl.evaluate(sdata, n_permutations=0, inplace=False)
        assert scores.loc[scores["model"] == "ridge", "coverage"].mean() > 0.85


def test_intervals_come_back_from_another_depth(trained):
    expected = ig.tl.evaluate(trained, at_measured_depth=True, n_permutations=0, inplace=False)
    ig.tl.predict(trained, depth="unlimited")
    found = ig.tl.evaluate(trained, n_permutations=0, inplace=False)
    for name in ("coverage", "width"):
        np.testing.assert_allclose(found[name], expected[name], atol=0.02)


def test_figures_say_that_predictions_have_another_depth(trained, caplog):
    gene = ig.get.model(trained).genes[0]
    ig.pl.prediction(trained, gene)
    ig.pl.measured_vs_predicted(trained, [gene])
    assert "is predicted at depth" not in caplog.text
    ig.tl.predict(trained, depth="unlimited")
    for draw in (ig.pl.prediction, ig.pl.measured_vs_predicted):
        caplog.clear()
        draw(trained, [gene])
        assert "'img2gene' is predicted at depth unlimited, and the measured expression has the depth" in caplog.text


def test_a_depth_that_no_spot_has_is_refused(trained):
    with pytest.raises(Img2GeneError, match=r"depth=1e\+25: expected a number from 1 to 10+"):
        ig.tl.predict(trained, depth=1e25)
