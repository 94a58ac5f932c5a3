"""A network's training and its pathways: what is drawn is what is stored, and contributions add up to the prediction."""

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import img2gene as ig
from img2gene import Img2GeneError, MissingKeyError
from img2gene._study.model_inputs import model_inputs
from img2gene._study.study import Study

GENES = tuple(f"G{i:02d}" for i in range(24))
SETS = {
    "red": [f"G{i:02d}" for i in range(0, 24, 3)],
    "green": [f"G{i:02d}" for i in range(1, 24, 3)],
    "noise": [f"G{i:02d}" for i in range(2, 24, 3)],
}
SMALL = {"n_models": 2, "dim": 16, "heads": 2, "n_latents": 4, "max_epochs": 6, "n_validations": 2, "dropout": 0.0}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def shared(make_study):
    """Models under several keys on three patients; not to be changed."""
    sdata = make_study([("A1", "A"), ("B1", "B"), ("C1", "C")], genes=GENES)
    ig.tl.fit(sdata, "img2gene", validate_on=["C"], key_added="bare", **{**SMALL, "max_epochs": 1, "n_validations": 0})
    ig.pp.score_pathways(sdata, SETS, n_top=2)
    ig.tl.fit(sdata, "img2gene", validate_on=["C"], **SMALL)
    ig.tl.fit(sdata, "img2gene", validate_on=["C"], key_added="total", effect="TE", **SMALL)
    ig.tl.fit(sdata, "ridge", validate_on=["C"], key_added="ridge")
    return sdata


@pytest.fixture
def fitted(shared, copy_of):
    return copy_of(shared)


def prediction(sdata, model):
    inputs = model_inputs(Study.of(sdata), model)
    return model.predict(inputs.features, inputs.sections, **inputs.extra)


# Contributions


@pytest.mark.parametrize("key", ["img2gene", "total"])
def test_contributions_add_up_to_what_the_context_adds_to_the_prediction(fitted, key):
    model = ig.get.model(fitted, key)
    fitted_model = model.predictor.fitted
    # The network has a say.
    fitted_model.weights[2] = 0.7
    contributions = ig.tl.pathway_contributions(fitted, "G03", model=model)
    complete = prediction(fitted, model)
    with torch.no_grad():
        fitted_model.ensemble.get_parameter("pathway_context/value/weight").zero_()
    added = (complete - prediction(fitted, model))[:, model.genes.index("G03")]
    assert np.abs(added).max() > 1e-4
    np.testing.assert_allclose(contributions.sum(axis=1), added, atol=2e-6)


def test_contributions_are_named_by_spot_and_pathway_and_nothing_is_written(fitted, snapshot):
    before = snapshot(fitted["table"])
    found = ig.tl.pathway_contributions(fitted, "G00")
    assert list(found.columns) == ig.get.model(fitted).predictor.context["names"]
    assert found.index.equals(fitted["table"].obs_names)
    assert found.dtypes.eq(np.float32).all()
    assert snapshot(fitted["table"]) == before


def test_a_network_without_weight_is_told_from_pathways_that_add_nothing(fitted, caplog):
    model = ig.get.model(fitted)
    model.predictor.fitted.weights[2] = 0.5
    ig.tl.pathway_contributions(fitted, "G00", model=model)
    assert not caplog.records
    model.predictor.fitted.weights[2] = 0
    assert not ig.tl.pathway_contributions(fitted, "G00", model=model).to_numpy().any()
    assert "validation gave the network no weight" in caplog.text


def test_contributions_survive_a_file(fitted, tmp_path):
    path = ig.io.save_model(fitted, tmp_path / "model")
    here = ig.tl.pathway_contributions(fitted, "G00")
    np.testing.assert_array_equal(ig.tl.pathway_contributions(fitted, "G00", model=path), here)


def test_contributions_need_a_known_gene_and_a_model_with_pathways(fitted):
    with pytest.raises(MissingKeyError, match=r"does not predict `g0` \(near: G"):
        ig.tl.pathway_contributions(fitted, "g0")
    with pytest.raises(MissingKeyError, match=r"does not predict `XYZ` \(available: G00"):
        ig.tl.pathway_contributions(fitted, "XYZ")
    with pytest.raises(Img2GeneError, match="trained without a pathway context. Run `img2gene.pp.score_pathways"):
        ig.tl.pathway_contributions(fitted, "G00", key="bare")
    with pytest.raises(Img2GeneError, match="`ridge` has no pathway context.*score_pathways"):
        ig.tl.pathway_contributions(fitted, "G00", key="ridge")
    with pytest.raises(MissingKeyError, match="`none` not found"):
        ig.tl.pathway_contributions(fitted, "G00", key="none")


def test_models_of_counts_have_no_contributions_in_units_of_labels(fitted):
    options = {**SMALL, "max_epochs": 1, "n_validations": 0, "objective": "negative_binomial"}
    ig.tl.fit(fitted, "img2gene", validate_on=["C"], key_added="counts", **options)
    with pytest.raises(Img2GeneError, match="log rates of counts.*objective='gaussian'"):
        ig.tl.pathway_contributions(fitted, "G00", key="counts")


def test_bars_are_mean_absolute_contributions(fitted, snapshot):
    before = snapshot(fitted["table"])
    ax = plt.subplots()[1]
    assert ig.pl.pathways(fitted, kind="contribution", gene="G00", sections="A1", ax=ax) is ax.figure
    rows = (fitted["table"].obs["section"] == "A1").to_numpy()
    found = ig.tl.pathway_contributions(fitted, "G00")[rows]
    expected = found.abs().mean().sort_values(ascending=False)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == expected.index.tolist()
    drawn = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in ax.patches}
    np.testing.assert_allclose([drawn[i] for i in range(len(labels))], expected, rtol=1e-6)
    # The first container holds those that raise the prediction.
    raising = [labels[round(bar.get_y() + bar.get_height() / 2)] for bar in ax.containers[0]]
    assert set(raising) == set(found.columns[found.mean() >= 0])
    assert snapshot(fitted["table"]) == before


def test_maps_show_the_contribution_of_a_pathway_with_colours_about_zero(fitted):
    name = ig.get.model(fitted).predictor.context["names"][0]
    figure = ig.pl.pathways(fitted, name, kind="contribution", gene="G00", sections=["B1"])
    panel = figure.axes[0]
    rows = (fitted["table"].obs["section"] == "B1").to_numpy()
    shown = panel.collections[0]
    np.testing.assert_allclose(shown.get_array(), ig.tl.pathway_contributions(fitted, "G00")[name][rows])
    assert shown.get_clim()[0] == -shown.get_clim()[1]
    assert panel.get_title() == f"B1  {name} → G00"


def test_plots_of_contributions_name_what_is_missing(fitted):
    with pytest.raises(Img2GeneError, match="contributions need `gene=`"):
        ig.pl.pathways(fitted, kind="contribution")
    with pytest.raises(Img2GeneError, match="kind='maps', gene='G00'"):
        ig.pl.pathways(fitted, gene="G00")
    with pytest.raises(MissingKeyError, match="No pathway named blue"):
        ig.pl.pathways(fitted, "blue", kind="contribution", gene="G00")
    with pytest.raises(MissingKeyError, match="No section named Z9"):
        ig.pl.pathways(fitted, kind="contribution", gene="G00", sections="Z9")


# What a model knows of its pathways


def test_a_model_brings_its_own_enrichment(fitted):
    context = ig.get.model(fitted).predictor.context
    found = ig.get.pathways(fitted, key="img2gene")
    assert list(found) == ["pathway", "selected", "n_matched", "es", "nes", "pval", "fdr", "leading_edge"]
    assert found["pathway"].tolist()[:2] == context["names"]
    assert found["selected"].tolist() == [True, True, False]
    stored = dict(zip(context["enrichment"]["pathway"], context["enrichment"]["nes"], strict=True))
    assert found["nes"].tolist() == [stored[name] for name in found["pathway"]]
    assert found["n_matched"].tolist() == [8, 8, 8]
    ax = ig.pl.pathways(fitted, kind="enrichment", key="img2gene").axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], sorted(stored.values(), reverse=True))


def test_a_model_that_took_all_pathways_has_no_enrichment(fitted):
    ig.pp.score_pathways(fitted, SETS)
    ig.tl.fit(fitted, "img2gene", validate_on=["C"], key_added="all", **{**SMALL, "max_epochs": 1, "n_validations": 0})
    found = ig.get.pathways(fitted, key="all")
    assert found["pathway"].tolist() == list(SETS)
    assert found["selected"].all()
    assert found["nes"].isna().all()
    with pytest.raises(Img2GeneError, match="took all 3 pathways"):
        ig.pl.pathways(fitted, kind="enrichment", key="all")
    with pytest.raises(Img2GeneError, match="sections=.*all sections together"):
        ig.pl.pathways(fitted, kind="enrichment", sections="A1")


@pytest.mark.parametrize("key", ["bare", "ridge"])
def test_a_model_without_pathways_says_so(fitted, key):
    with pytest.raises(Img2GeneError, match="has no pathway context"):
        ig.get.pathways(fitted, key=key)


# Training


def lines_of(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_training_draws_the_history_of_each_run(fitted, snapshot):
    before = snapshot(fitted["table"])
    figure = ig.pl.training(fitted)
    history = ig.get.model(fitted).predictor.history_
    panels = {ax.get_title(): ax for ax in figure.axes if ax.get_title()}
    assert list(panels) == ["loss", "labels", "views", "pathways", "pathway coherence", "coherence", "validation"]
    for name, ax in panels.items():
        for run, line in lines_of(ax).items():
            entries = [entry for entry in history if entry["run"] == run and name in entry]
            np.testing.assert_array_equal(line.get_xdata(), [entry["epoch"] for entry in entries])
            np.testing.assert_array_equal(line.get_ydata(), [entry[name] for entry in entries])
    assert list(lines_of(panels["loss"])) == ["validation 1", "validation 2", "fit"]
    assert snapshot(fitted["table"]) == before


def test_training_marks_the_best_epoch(fitted):
    model = ig.get.model(fitted)
    ax = plt.subplots()[1]
    assert ig.pl.training(model, "validation", ax=ax) is ax.figure
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert [float(line.get_xdata()[0]) for line in points] == model.predictor.report["best_epochs"]
    np.testing.assert_allclose(
        [float(line.get_ydata()[0]) for line in points], model.predictor.report["validation_pcc"], atol=1e-6
    )
    assert len([line for line in ax.lines if line.get_linestyle() == ":"]) == 2


def test_training_without_validation_has_losses_only(fitted):
    panels = [ax.get_title() for ax in ig.pl.training(fitted, key="bare").axes if ax.get_title()]
    assert panels == ["loss", "labels", "views", "coherence"]


def test_training_names_what_is_missing(fitted):
    with pytest.raises(Img2GeneError, match="`ridge` is not trained in epochs and has no history"):
        ig.pl.training(fitted, key="ridge")
    with pytest.raises(MissingKeyError, match=r"holds no speed \(available: loss, labels"):
        ig.pl.training(fitted, "speed")
    with pytest.raises(Img2GeneError, match="`ax` takes one value, but there are 7"):
        ig.pl.training(fitted, ax=plt.subplots()[1])
    with pytest.raises(MissingKeyError, match="`other` not found"):
        ig.pl.training(fitted, key="other")
