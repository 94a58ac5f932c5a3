"""Plots show the values they claim, leave the data alone, and name what is missing."""

import anndata as ad
import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import img2gene as ig
from img2gene import MissingKeyError, _schema
from img2gene._errors import Img2GeneError


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def predicted(study):
    ig.tl.fit(study, "ridge", validate_on=["C"])
    ig.tl.predict(study)
    return study


def _values(ax):
    return np.asarray(ax.collections[0].get_array())


def test_prediction_draws_measured_predicted_and_their_difference(predicted, snapshot):
    table = predicted["table"]
    before = snapshot(table)
    figure = ig.pl.prediction(predicted, ["G00", "G01"], sections="C1")
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert len(panels) == 6
    measured, shown, residual = (_values(ax) for ax in panels[:3])
    rows = (table.obs["section"] == "C1").to_numpy()
    np.testing.assert_allclose(shown, table.layers["img2gene"][rows][:, table.var_names.get_loc("G00")], rtol=1e-5)
    np.testing.assert_allclose(residual, measured - shown, atol=1e-5)
    assert snapshot(table) == before


def test_measured_and_predicted_share_their_colours(predicted):
    panels = [ax for ax in ig.pl.prediction(predicted, "G00", sections="C1").axes if ax.get_title()]
    assert panels[0].collections[0].get_clim() == panels[1].collections[0].get_clim()


def test_spots_are_drawn_where_they_lie(predicted):
    panel = next(ax for ax in ig.pl.prediction(predicted, "G00", sections="C1").axes if ax.get_title())
    height, width = panel.images[0].get_array().shape[:2]
    xy = np.asarray(panel.collections[0].get_offsets())
    assert (xy >= 0).all()
    assert (xy <= [width, height]).all()
    truth = predicted["table"].obsm["spatial"][(predicted["table"].obs["section"] == "C1").to_numpy()]
    # Only cropping and shrinking lie between the two.
    slope = np.ptp(xy, axis=0) / np.ptp(truth, axis=0)
    np.testing.assert_allclose(xy - xy[0], (truth - truth[0]) * slope, atol=1e-6)


def test_a_prediction_without_measured_genes_has_one_column(predicted):
    model = ig.get.model(predicted)
    ig.pp.tile_slide(predicted, "C1_image", tile_um=100, patch_um=100, patch_px=32)
    ig.pp.embed_patches(predicted, "tiny", table_key="slide_tiles")
    model.inputs = dict(_schema.read_json(predicted["slide_tiles"], "encoder")["tiny"])
    ig.tl.predict(predicted, model=model, table_key="slide_tiles", key_added="slide")
    titles = [ax.get_title() for ax in ig.pl.prediction(predicted, "G00", key="slide", table_key="slide_tiles").axes]
    assert [title for title in titles if title] == ["C1  G00 predicted"]


def test_sections_without_counts_show_the_prediction_beside_measured_ones(predicted):
    table = predicted["table"]
    rows = (table.obs["section"] == "C1").to_numpy()
    table.X = table.X.multiply(~rows[:, None]).tocsr()
    table.obs["library_size"] = np.where(rows, 0, table.obs["library_size"])
    alone = [ax.get_title() for ax in ig.pl.prediction(predicted, "G00", sections="C1").axes if ax.get_title()]
    assert alone == ["C1  G00 predicted"]
    figure = ig.pl.prediction(predicted, "G00", sections=["A1", "C1"])
    titles = [ax.get_title().split(",")[0] for ax in figure.axes if ax.get_title()]
    assert titles == ["A1  G00 measured", "predicted", "residual", "C1  G00 predicted"]
    own = next(ax for ax in figure.axes if ax.get_title() == "C1  G00 predicted")
    np.testing.assert_array_equal(_values(own), table.layers["img2gene"][rows, 0])
    # Below the predicted ones, with nothing at its sides
    assert own.get_subplotspec().colspan.start == 1
    assert [ax.axison for ax in figure.axes[3:6]] == [False, True, False]


def test_genes_that_the_model_does_not_know_are_named(predicted):
    ig.tl.fit(predicted, "ridge", genes=["G00", "G01"], validate_on=["C"])
    ig.tl.predict(predicted)
    with pytest.raises(MissingKeyError, match=r"^G07: not predicted by the model of 'img2gene' \(near: .*G0"):
        ig.pl.prediction(predicted, ["G00", "G07"])


@pytest.mark.parametrize(
    ("genes", "options", "message"),
    [
        ("nothing", {}, "`nothing` not found"),
        ([], {}, "Name at least one gene .available: G00"),
        ("G00", {"sections": "Z9"}, "No section named Z9"),
        ("G00", {"sections": []}, "Name at least one section"),
        ("G00", {"key": "other"}, "`other` not found.*predict"),
    ],
)
def test_prediction_names_what_is_missing(predicted, genes, options, message):
    with pytest.raises(MissingKeyError, match=message):
        ig.pl.prediction(predicted, genes, **options)


def test_scores_state_each_mean_and_what_is_undefined(predicted):
    scores = ig.tl.evaluate(predicted)
    (ax,) = ig.pl.scores(scores).axes
    labels = [label.get_text() for label in ax.get_xticklabels()]
    mean = scores[scores["model"] == "ridge"].groupby("gene")["pcc"].mean().mean()
    assert labels[0].startswith(f"ridge\nmean {mean:.3f}")
    assert labels[1] == "training mean\nundefined"


def test_scores_draw_on_given_axes_and_refuse_unknown_columns(predicted):
    scores = ig.tl.evaluate(predicted)
    ax = plt.subplots()[1]
    assert ig.pl.scores(scores, metric="mse", by="section", ax=ax) is ax.figure
    with pytest.raises(MissingKeyError, match="'accuracy' is not a column"):
        ig.pl.scores(scores, metric="accuracy")


def test_bias_stands_below_each_section_before_and_after(predicted):
    before = ig.tl.evaluate(predicted)
    after = before.assign(bias=before["bias"] / 2, slope=1.0)
    figure = ig.pl.bias({"before": before, "after": after})
    level, slope = figure.axes
    rows = before[before["model"] == "ridge"]
    section = rows["section"].iloc[0]
    mean = rows[rows["section"] == section]["bias"].abs().mean()
    assert level.get_xticklabels()[0].get_text() == f"{section}\n{mean:.2f} → {mean / 2:.2f}"
    assert slope.get_xticklabels()[0].get_text().endswith(" → 1.00")
    # The number is named, as no axis shows its sign.
    assert level.get_xlabel() == "section, mean |bias| of the genes"
    assert slope.get_xlabel() == "section, median slope of the genes"
    assert [text.get_text() for text in level.get_legend().get_texts()] == ["before", "after"]
    one = ig.pl.bias(before, model="section mean (oracle)")
    # The oracle has the mean of the section and no differences between spots.
    assert one.axes[0].get_xticklabels()[0].get_text() == f"{section}\n0.00"
    assert one.axes[1].get_xticklabels()[0].get_text() == f"{section}\n"
    for scores, options, message in (
        ({}, {}, "got none"),
        ({"a": 3}, {}, r"scores\['a'\]: expected the table"),
        (before, {"model": "best"}, "model='best' is not in the scores"),
        (before.drop(columns="bias"), {}, "'bias' is not a number"),
    ):
        with pytest.raises(Img2GeneError, match=message):
            ig.pl.bias(scores, **options)


def test_patches_shows_the_pixels_of_the_chosen_spots(study):
    figure = ig.pl.patches(study, [3, 1], label="section")
    shown = [ax for ax in figure.axes if ax.images]
    for ax, row in zip(shown, [3, 1], strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), ig.get.patches(study, [row])[0])
        assert ax.get_title() == str(study["table"].obs["section"].iloc[row])
    with pytest.raises(MissingKeyError, match="`weather` not found"):
        ig.pl.patches(study, [0], label="weather")


def _kept(predicted):
    """Predictions of two sections as a cross-validation keeps them, with an SD of 1 and intervals of ± 1."""
    table = predicted["table"][predicted["table"].obs["section"].isin(["A1", "C1"])]
    measured = np.log1p(1e4 * table.X.toarray() / table.obs["library_size"].to_numpy()[:, None])
    kept = ad.AnnData(measured + 0.5, obs=table.obs[["section"]].copy(), var=table.var[[]].copy())
    kept.layers["measured"], kept.layers["std"] = measured, np.ones_like(measured)
    kept.layers["lower"], kept.layers["upper"] = measured - 1, measured + 1
    kept.obsm["spatial"] = table.obsm["spatial"]
    return kept


def test_calibration_draws_the_share_of_errors_within_each_interval(predicted):
    kept = _kept(predicted)
    outside = (kept.obs["section"] == "C1").to_numpy()
    kept.layers["lower"][outside] = kept.layers["measured"][outside] + 0.1
    (ax,) = ig.pl.calibration(kept, level=0.9).axes
    curve = next(line for line in ax.lines if line.get_label() == "normal intervals from the SD")
    # Every error is half an SD, which central intervals hold from the nominal level 0.383 on.
    np.testing.assert_array_equal(curve.get_ydata(), (np.asarray(curve.get_xdata()) > 0.3829).astype(float))
    dots, mean = ax.collections
    np.testing.assert_allclose(dots.get_offsets(), [[0.9, 1], [0.9, 0]])
    np.testing.assert_allclose(mean.get_offsets(), [[0.9, 0.5]])


def test_calibration_of_a_study_shows_the_sections_that_were_held_out(predicted):
    ax = plt.subplots()[1]
    assert ig.pl.calibration(predicted, ax=ax) is ax.figure
    table = predicted["table"]
    rows = (table.obs["section"] == "C1").to_numpy()
    truth = np.log1p(1e4 * table.X.toarray()[rows] / table.obs["library_size"].to_numpy()[rows, None])
    lower, upper = table.layers["img2gene_lower"][rows], table.layers["img2gene_upper"][rows]
    np.testing.assert_allclose(
        ax.collections[0].get_offsets(), [[0.9, ((lower <= truth) & (truth <= upper)).mean()]], atol=0.005
    )
    with pytest.raises(MissingKeyError, match="No section named Z9"):
        ig.pl.calibration(predicted, sections="Z9")
    ig.tl.predict(predicted, uncertainty=False)
    with pytest.raises(MissingKeyError, match="uncertainty=True"):
        ig.pl.calibration(predicted)
    with pytest.raises(MissingKeyError, match="`other` not found"):
        ig.pl.calibration(predicted, key="other")


def test_distances_of_each_section_are_drawn_with_the_share_beyond(predicted):
    obs = predicted["table"].obs
    obs["img2gene_ood"] = np.where(obs["section"] == "C1", 99.9, 40.0)
    (ax,) = ig.pl.out_of_distribution(predicted).axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["A1 (0% beyond)", "A2 (0% beyond)", "B1 (0% beyond)", "C1 (100% beyond)"]
    medians = [
        line.get_xdata()[0] for line in ax.lines if line.get_color() == "black" and len(set(line.get_xdata())) == 1
    ]
    assert {40.0, 99.9} <= set(medians)
    (one,) = ig.pl.out_of_distribution(predicted, sections="B1").axes
    assert [label.get_text() for label in one.get_yticklabels()] == ["B1 (0% beyond)"]
    del obs["img2gene_ood"]
    with pytest.raises(MissingKeyError, match="`img2gene_ood` not found"):
        ig.pl.out_of_distribution(predicted)
    with pytest.raises(MissingKeyError, match="`ood` not found"):
        ig.pl.out_of_distribution(_kept(predicted))


def test_kept_predictions_are_drawn_at_the_places_of_their_spots(predicted):
    kept = _kept(predicted)
    figure = ig.pl.prediction(kept, "G01", sections="C1", uncertainty=True, residual=False)
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["C1  G01 measured", "predicted, PCC 1.00", "SD"]
    rows = (kept.obs["section"] == "C1").to_numpy()
    np.testing.assert_allclose(_values(panels[1]), kept.X[rows, 1])
    xy, places = np.asarray(panels[0].collections[0].get_offsets()), kept.obsm["spatial"][rows]
    slope = (xy[-1] - xy[0]) / (places[-1] - places[0])
    np.testing.assert_allclose(slope[0], slope[1])
    np.testing.assert_allclose(xy - xy[0], (places - places[0]) * slope)
    height, width = panels[0].images[0].get_array().shape[:2]
    assert (xy > 0).all() and (xy < [width, height]).all()
    with pytest.raises(MissingKeyError, match="`G99` not found"):
        ig.pl.prediction(kept, "G99")
    del kept.obsm["spatial"]
    with pytest.raises(Img2GeneError, match="obsm\\['spatial'\\]"):
        ig.pl.prediction(kept, "G01")
