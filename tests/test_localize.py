"""Localisation: scores by hand, planted tissue found, thresholds that know when it is absent, and what is stored."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import spatialdata
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import img2gene as ig
from img2gene import Img2GeneError, LeakageError, MissingKeyError
from img2gene._errors import near_matches
from img2gene._study.localization import best_threshold, pairs_within, smoothed
from img2gene.datasets._genes import GENES
from img2gene.metrics import auprc, auroc, dice

FIRST = ["G00", "G03", "G06"]  # genes that follow the first field of the small sections


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def study(trained_study, copy_of):
    """A copy of the study, annotated by its first field: the upper third of the true mean of its genes in each section."""
    sdata = copy_of(trained_study)
    table = sdata["table"]
    counts = table[:, FIRST].X.toarray().sum(axis=1)
    high = (
        pd.Series(counts).groupby(table.obs["section"].astype(str).to_numpy()).transform(lambda x: x > x.quantile(0.67))
    )
    table.obs["pathology"] = pd.Categorical(np.where(high, "red", "pale"))
    return sdata


def in_section(table, *names):
    return table.obs["section"].isin(names).to_numpy()


def z_mean(sdata, genes, values):
    """The documented score, with mean and SD of the training labels from the counts themselves."""
    table = sdata["table"]
    labels = np.log1p(1e4 * table.X.toarray() / table.obs["library_size"].to_numpy()[:, None])
    train = labels[~in_section(table, "C1")]
    columns = table.var_names.get_indexer(genes)
    z = (values[:, columns] - train.mean(axis=0)[columns]) / train.std(axis=0)[columns]
    return z.mean(axis=1)


def test_scores_of_spots_equal_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.random(200) < 0.3
    score = np.round(truth + rng.normal(size=200), 1)
    assert auroc(truth, score) == pytest.approx(roc_auc_score(truth, score))
    assert auprc(truth, score) == pytest.approx(average_precision_score(truth, score))
    assert dice(truth, score > 0.5) == pytest.approx(f1_score(truth, score > 0.5))


def test_scores_of_spots_by_hand():
    truth = np.array([1, 0, 1, 0])
    # pairs inside > outside: (4 > 3, 4 > 1, 1 = 1 counts half, 1 < 3)
    assert auroc(truth, [4.0, 3, 1, 1]) == (1 + 1 + 0.5) / 4
    # precision 1 at recall ½, 2/3 at recall 1
    assert auprc(truth, [4.0, 3, 2, 1]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert dice(truth, [True, True, False, False]) == 2 * 1 / (2 + 2)
    order = [2, 0, 3, 1]
    assert auroc(truth[order], np.exp(np.array([4.0, 3, 1, 1]))[order]) == auroc(truth, [4.0, 3, 1, 1])


@pytest.mark.parametrize("truth", [np.zeros(4, bool), np.ones(4, bool), np.empty(0, bool)])
def test_one_class_has_no_ranking(truth):
    score = np.arange(float(len(truth)))
    assert np.isnan([auroc(truth, score), auprc(truth, score)]).all()


def test_edges_of_the_scores_of_spots():
    none, some = np.zeros(3, bool), np.array([True, False, False])
    assert np.isnan(dice(none, none))
    assert dice(none, some) == dice(some, none) == 0
    assert dice(some, some) == 1
    assert np.isnan(auroc(some, [np.nan, 1, 2]))
    with pytest.raises(Img2GeneError, match=r"Truth \(3,\) and score \(2,\) differ in shape"):
        auroc(some, [1.0, 2])
    with pytest.raises(Img2GeneError, match="must be boolean, or contain only 0 and 1"):
        dice(np.array([0.0, 0.5]), np.array([0, 1]))


def test_the_best_threshold_lies_midway_between_the_classes():
    assert best_threshold(np.array([0, 0, 1, 1]), np.array([0.0, 1, 3, 4])) == 2
    # one spot inside among the low ones: J = 2/3 above 2 (threshold 2.5), 1/2 or less elsewhere
    assert best_threshold(np.array([1, 0, 0, 1, 1]), np.array([0.0, 1, 2, 3, 4])) == 2.5
    # a score that ranks the wrong way cannot separate: everything is called, as nothing else is as good
    assert best_threshold(np.array([1, 0]), np.array([0.0, 1])) == np.nextafter(0, -1)


def test_smoothing_averages_within_a_radius_the_spots_of_a_section_that_have_a_score():
    places = np.array([[0.0, 0], [1, 0], [2, 0], [3, 0], [0.5, 0]])
    graph = pairs_within(places, [np.arange(4), np.array([4])], 1.1)
    found = smoothed(np.array([0.0, 4, np.nan, 8, 100]), graph)
    # (0 + 4) / 2 twice, as the third has none; the last lies among them, but in another section
    np.testing.assert_array_equal(found, [2, 2, np.nan, 8, 100])


def test_scores_are_mean_z_scores_on_the_scale_of_the_training(study):
    ig.tl.localize(study, {"red": FIRST, "green": ["G01", "G04"]})
    table = study["table"]
    held_out = in_section(table, "C1")
    predicted = table.layers["img2gene"].astype(float)
    for tissue, genes in {"red": FIRST, "green": ["G01", "G04"]}.items():
        found = table.obs[f"localization_{tissue}"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[held_out], z_mean(study, genes, predicted)[held_out], rtol=1e-3, atol=1e-3)
        assert found[~held_out].isna().all()
        assert table.obs[f"localization_{tissue}_inside"].isna().tolist() == (~held_out).tolist()


def test_measured_scores_use_the_labels(study):
    table = study["table"]
    labels = np.log1p(1e4 * table.X.toarray() / table.obs["library_size"].to_numpy()[:, None])
    ig.tl.localize(study, FIRST, name="red", use="measured", key_added="seen")
    held_out = in_section(table, "C1")
    expected = z_mean(study, FIRST, labels)[held_out]
    np.testing.assert_allclose(table.obs["seen_red"][held_out], expected, rtol=1e-3, atol=1e-3)


def test_the_result_is_that_of_the_written_columns(study):
    result = ig.tl.localize(study, {"red": FIRST}, annotation="pathology", threshold=0.2)
    table = study["table"][in_section(study["table"], "C1")]
    truth = (table.obs["pathology"] == "red").to_numpy()
    score, inside = table.obs["localization_red"], table.obs["localization_red_inside"].astype(bool)
    np.testing.assert_array_equal(inside, score > 0.2)
    row = result.iloc[0]
    assert row[["tissue", "section", "patient", "use", "rule"]].tolist() == ["red", "C1", "C", "predicted", "given"]
    counts = [len(table), inside.sum(), len(table), truth.sum()]
    assert row[["n_spots", "n_inside", "n_annotated", "n_positive"]].tolist() == counts
    assert row["auroc"] == pytest.approx(roc_auc_score(truth, score))
    assert row["auprc"] == pytest.approx(average_precision_score(truth, score))
    assert row["dice"] == pytest.approx(f1_score(truth, inside))
    assert row["threshold"] == 0.2
    assert not row["leakage"]


@pytest.mark.parametrize("layout", ["truth values", "nullable", "other names", "list", "gaps"])
def test_annotations_come_in_several_forms(study, layout):
    expected = ig.tl.localize(study, {"red": FIRST}, annotation="pathology", inplace=False)
    obs = study["table"].obs
    red = obs["pathology"] == "red"
    options = {"annotation": "other"}
    if layout in ("truth values", "nullable"):
        obs["other"] = red if layout == "truth values" else red.astype("boolean")
    else:
        obs["other"] = np.where(red, np.where(np.arange(len(obs)) % 2, "invasive", "in situ"), "none")
        options["positive"] = {"red": ["invasive", "in situ"]} if layout != "list" else ["invasive", "in situ"]
    if layout == "gaps":
        obs.loc[obs.index[obs["section"] == "C1"][:5], "other"] = None
    found = ig.tl.localize(study, {"red": FIRST}, inplace=False, **options)
    if layout == "gaps":
        assert found["n_annotated"].item() == 44
        assert found["n_spots"].item() == 49
    else:
        pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize(
    ("inside", "outside", "positive"),
    [(1, 0, 1), (1, 0, 1.0), (1.0, 0.0, 1), (1, 0, "1"), (1.0, 0.0, "1.0"), (2.5, 0.5, 2.5), ("1", "0", 1)],
)
def test_numbers_are_compared_as_numbers(study, inside, outside, positive):
    expected = ig.tl.localize(study, {"red": FIRST}, annotation="pathology", inplace=False)
    obs = study["table"].obs
    obs["other"] = np.where(obs["pathology"] == "red", inside, outside)
    for form in (positive, [positive], {"red": positive}):
        found = ig.tl.localize(study, {"red": FIRST}, annotation="other", positive=form, inplace=False)
        pd.testing.assert_frame_equal(found, expected)
    obs["other"] = obs["other"].astype("category")
    found = ig.tl.localize(study, {"red": FIRST}, annotation="other", positive=positive, inplace=False)
    pd.testing.assert_frame_equal(found, expected)
    with pytest.raises(MissingKeyError, match="has no value 7 .red.; available: "):
        ig.tl.localize(study, {"red": FIRST}, annotation="other", positive=7)


def test_text_that_stands_for_no_value_is_no_annotation(study):
    obs = study["table"].obs
    obs["other"] = obs["pathology"].astype(str)
    rows = obs.index[obs["section"] == "C1"][:10]
    obs.loc[rows, "other"] = ["", "nan", "None", "<NA>", " ", "", "nan", "None", "<NA>", None]
    found = ig.tl.localize(study, {"red": FIRST}, annotation="other", inplace=False)
    assert found["n_annotated"].item() == 39
    with pytest.raises(MissingKeyError, match="has no value nan .red.; available: pale, red"):
        ig.tl.localize(study, {"red": FIRST}, annotation="other", positive="nan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smooth": "a"}, "smooth='a': expected a number, 0 or more"),
        ({"threshold": None}, "threshold=None: .*or a finite number"),
    ],
)
def test_options_of_another_type_are_refused(study, options, message):
    with pytest.raises(Img2GeneError, match=message):
        ig.tl.localize(study, {"red": FIRST}, **options)


def test_the_training_threshold_does_not_look_at_the_scored_section(study):
    one = ig.tl.localize(study, {"red": FIRST}, annotation="pathology", inplace=False)
    assert one["rule"].item() == "training"
    obs = study["table"].obs
    held_out = in_section(study["table"], "C1")
    swapped = obs["pathology"].astype(str).where(~held_out, obs["pathology"].map({"red": "pale", "pale": "red"}))
    obs["pathology"] = pd.Categorical(swapped)
    two = ig.tl.localize(study, {"red": FIRST}, annotation="pathology", inplace=False)
    assert two["threshold"].item() == one["threshold"].item()
    assert two["auroc"].item() == pytest.approx(1 - one["auroc"].item())


def test_without_annotated_training_spots_otsu_decides(study):
    obs = study["table"].obs
    obs["pathology"] = obs["pathology"].astype(object).where(in_section(study["table"], "C1"))
    assert ig.tl.localize(study, {"red": FIRST}, annotation="pathology")["rule"].item() == "otsu"
    with pytest.raises(Img2GeneError, match="needs an `annotation` of the training sections"):
        ig.tl.localize(study, {"red": FIRST}, annotation="pathology", threshold="training")
    with pytest.raises(Img2GeneError, match="needs an `annotation` of the training sections"):
        ig.tl.localize(study, {"red": FIRST}, threshold="training")


def test_a_section_without_the_tissue_is_divided_by_otsu_but_not_by_the_training_threshold(study):
    table = study["table"]
    rng = np.random.default_rng(0)
    red = (table.obs["pathology"] == "red").to_numpy() & ~in_section(table, "C1")
    layer = np.tile(ig.get.model(study).statistics["mean"], (table.n_obs, 1))
    layer += (2.0 * red + 0.2 * rng.normal(size=table.n_obs))[:, None]
    table.layers["img2gene"] = layer.astype(np.float32)
    called = {
        rule: ig.tl.localize(study, {"red": FIRST}, annotation="pathology", threshold=rule, inplace=False)
        for rule in ("otsu", "training")
    }
    assert called["otsu"]["n_inside"].item() > 0.25 * 49
    assert called["training"]["n_inside"].item() == 0


def test_scores_do_not_depend_on_the_order_of_spots_or_on_other_sections(study, copy_of):
    alone = ig.tl.localize(study, {"red": FIRST}, smooth=110, sections="C1", inplace=False)
    both = ig.tl.localize(study, {"red": FIRST}, smooth=110, sections=["A1", "C1"], allow_leakage=True, inplace=False)
    pd.testing.assert_frame_equal(both[both["section"] == "C1"].reset_index(drop=True), alone)
    assert both["leakage"].tolist() == [True, False]
    ig.tl.localize(study, {"red": FIRST}, smooth=110)
    other = copy_of(study)
    order = np.random.default_rng(0).permutation(study["table"].n_obs)
    other.tables["table"] = study["table"][order].copy()
    ig.tl.localize(other, {"red": FIRST}, smooth=110)
    found = other["table"].obs["localization_red"].loc[study["table"].obs_names]
    np.testing.assert_allclose(found, study["table"].obs["localization_red"], rtol=1e-5)


def test_not_in_place_writes_nothing_and_a_second_call_replaces_the_first(study, snapshot):
    before = snapshot(study["table"])
    ig.tl.localize(study, {"red": FIRST, "green": ["G01"]}, annotation=None, inplace=False)
    assert snapshot(study["table"]) == before
    ig.tl.localize(study, {"red": FIRST, "green": ["G01"]})
    ig.tl.localize(study, {"green": ["G04"]}, key_added="other")
    ig.tl.localize(study, {"red": FIRST})
    written = [name for name in study["table"].obs if name.startswith(("localization", "other"))]
    assert sorted(written) == ["localization_red", "localization_red_inside", "other_green", "other_green_inside"]
    assert ig.get.model(study).genes == list(study["table"].var_names)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_written_survives_a_store(study, tmp_path):
    ig.tl.localize(study, {"red": FIRST}, annotation="pathology")
    study.write(tmp_path / "study.zarr")
    again = spatialdata.read_zarr(tmp_path / "study.zarr")
    one, two = study["table"].obs, again["table"].obs
    for name in ("localization_red", "localization_red_inside"):
        pd.testing.assert_series_equal(two[name], one[name])
    assert again["table"].uns["img2gene"]["localization"] == study["table"].uns["img2gene"]["localization"]
    assert ig.pl.localization(again, "red").axes[0].get_title() == ig.pl.localization(study, "red").axes[0].get_title()


def test_tiles_are_localised_by_a_prediction_of_their_own(study):
    model = ig.get.model(study)
    ig.pp.tile_slide(study, "C1_image", tile_um=100, patch_um=60, patch_px=32)
    ig.pp.embed_patches(study, "tiny", table_key="slide_tiles")
    ig.tl.predict(study, model=model, table_key="slide_tiles", key_added="slide")
    result = ig.tl.localize(study, {"red": FIRST}, model=model, key="slide", table_key="slide_tiles")
    assert result["n_spots"].item() == study["slide_tiles"].n_obs
    assert study["slide_tiles"].obs["localization_red"].notna().all()
    with pytest.raises(Img2GeneError, match="has not measured G00, G03, G06"):
        ig.tl.localize(study, {"red": FIRST}, model=model, key="slide", table_key="slide_tiles", use="measured")


def one_class(sdata):
    sdata["table"].obs["pathology"] = pd.Categorical(["pale"] * sdata["table"].n_obs, categories=["pale", "red"])


MARKERS = {"red": FIRST}
COMPARED = {"annotation": "pathology"}
FAULTS = {
    "no prediction": (lambda s: s["table"].layers.pop("img2gene"), MARKERS, {}, "`img2gene` not found in .* Run `img2gene.tl.predict` first"),
    "genes": (None, {"red": ["g00", "G03", "G1"]}, {}, r"Markers g00, G1 are not among the 12 genes .*near g00: G00.*; near G1: G1[01]"),
    "no genes": (None, {"red": []}, {}, "names no gene for red"),
    "section": (None, MARKERS, {"sections": "Z9"}, "No section named Z9"),
    "leakage": (None, MARKERS, {"sections": "A1"}, "trained on the patient"),
    "annotation": (None, MARKERS, {"annotation": "domain"}, "`domain` not found in `sdata..table...obs` .*pathology"),
    "value": (None, MARKERS, COMPARED | {"positive": {"red": ["crimson"]}}, r"no value crimson \(red\); available: pale, red"),
    "name": (None, {"tumour": FIRST}, COMPARED, r"no value tumour \(tumour\); available: pale, red.*positive="),
    "tissue": (None, MARKERS, COMPARED | {"positive": {"blue": "red"}}, r"names tissues without markers: blue \(available: red\)"),
    "one class": (one_class, MARKERS, COMPARED, "cannot judge red: none of the 49 annotated spots .* C1 have the value red"),
    "positive alone": (None, MARKERS, {"positive": "red"}, "pass that, too"),
    "options": (None, MARKERS, {"use": "guessed", "threshold": "half", "smooth": -1}, "3 problems:(.|\n)*guessed(.|\n)*half(.|\n)*-1"),
    "tissue name": (None, {"red tissue": FIRST}, {}, "cannot be stored"),
    "column": (lambda s: s["table"].obs.insert(0, "localization_red", 1.0), MARKERS, {}, "localization_red are needed twice, or hold something"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_leave_the_object_untouched(study, snapshot, fault):
    spoil, markers, options, message = FAULTS[fault]
    if spoil:
        spoil(study)
    before = snapshot(study["table"])
    kinds = {"leakage": LeakageError} | dict.fromkeys(
        ["no prediction", "genes", "annotation", "value"], MissingKeyError
    )
    with pytest.raises(kinds.get(fault, Img2GeneError), match=message):
        ig.tl.localize(study, markers, **options)
    assert snapshot(study["table"]) == before


def test_all_faults_of_the_input_come_at_once(study):
    with pytest.raises(Img2GeneError, match=r"3 problems:(.|\n)*Z9(.|\n)*TP53(.|\n)*weather"):
        ig.tl.localize(study, ["TP53"], sections="Z9", annotation="weather")


def test_a_section_with_one_class_has_no_ranking_and_is_counted(study):
    obs = study["table"].obs
    obs.loc[in_section(study["table"], "A1"), "pathology"] = "pale"
    result = ig.tl.localize(
        study, MARKERS, annotation="pathology", sections=["A1", "C1"], allow_leakage=True, inplace=False
    ).set_index("section")
    assert result["auroc"].isna().tolist() == [True, False]
    assert result["n_positive"].tolist() == [
        0,
        int((obs.loc[in_section(study["table"], "C1"), "pathology"] == "red").sum()),
    ]


def test_near_names_ignore_case_and_list_everything_if_nothing_is_near():
    known = ["ERBB2", "KRT8", "KRT18"]
    assert near_matches(["Erbb2"], known) == "near: ERBB2"
    assert near_matches(["Erbb2", "xyz", "KRT1"], known).startswith("near Erbb2: ERBB2; near KRT1: KRT")
    assert near_matches(["xyz"], known) == "available: ERBB2, KRT8, KRT18"


def test_markers_are_a_gene_group_beside_the_others(study):
    scores = ig.tl.evaluate(study, markers=["G03", "G07"], inplace=False)
    assert list(scores.columns[4:8]) == ["HEG", "HVG", "SVG", "markers"]
    assert set(scores.loc[scores["markers"], "gene"]) == {"G03", "G07"}
    assert "markers" in set(ig.tl.summarize(scores)["genes"])
    with pytest.raises(MissingKeyError, match=r"Gene group 'markers': g03, G7 not predicted \(near g03: G03"):
        ig.tl.evaluate(study, markers=["g03", "G7"])
    with pytest.raises(Img2GeneError, match="Both `markers` and `gene_groups`"):
        ig.tl.evaluate(study, markers=["G03"], gene_groups={"markers": ["G04"]})


def test_the_map_shows_scores_and_the_outline_of_what_was_called(study, snapshot):
    ig.tl.localize(study, MARKERS, annotation="pathology")
    table = study["table"]
    before = snapshot(table)
    ax = ig.pl.localization(study, "red").axes[0]
    rows = in_section(table, "C1")
    np.testing.assert_allclose(ax.collections[0].get_array(), table.obs["localization_red"][rows], rtol=1e-6)
    result = ig.tl.localize(study, MARKERS, annotation="pathology", inplace=False).iloc[0]
    assert ax.get_title() == f"C1  red\nAUROC {result['auroc']:.3f}, Dice {result['dice']:.3f}"
    assert len(ax.collections) == 3
    outline = ax.collections[1].get_paths()[0]
    xy = np.asarray(ax.collections[0].get_offsets())
    inside = table.obs["localization_red_inside"][rows].astype(bool).to_numpy()
    rings = [ring for ring in outline.to_polygons() if len(ring) > 2]
    # Even-odd rule: holes are rings, too.
    crossings = sum(matplotlib.path.Path(ring).contains_points(xy).astype(int) for ring in rings)
    np.testing.assert_array_equal(crossings % 2 == 1, inside)
    assert snapshot(table) == before


def test_the_map_needs_no_annotation_and_names_what_is_missing(study):
    with pytest.raises(MissingKeyError, match="Run `img2gene.tl.localize` first"):
        ig.pl.localization(study, "red")
    ig.tl.localize(study, MARKERS, threshold=1e6)
    ax = ig.pl.localization(study, "red").axes[0]
    assert ax.get_title() == "C1  red"
    assert len(ax.collections) == 1
    with pytest.raises(MissingKeyError, match="No tissue 'blue' .*available: red"):
        ig.pl.localization(study, "blue")
    with pytest.raises(MissingKeyError, match=r"Section A1 was not scored \(scored: C1\)"):
        ig.pl.localization(study, "red", sections="A1")
    with pytest.raises(MissingKeyError, match="`weather` not found"):
        ig.pl.localization(study, "red", annotation="weather")
    assert "Dice 0.000" in ig.pl.localization(study, "red", annotation="pathology").axes[0].get_title()


def test_the_map_names_columns_that_are_gone_or_hold_no_scores(study):
    ig.tl.localize(study, MARKERS, threshold=1e6)
    obs = study["table"].obs
    for column in ("localization_red", "localization_red_inside"):
        values = obs.pop(column)
        with pytest.raises(MissingKeyError, match=f"`{column}` not found in .* Run `img2gene.tl.localize` again"):
            ig.pl.localization(study, "red")
        obs[column] = values
    obs["localization_red"] = "high"
    with pytest.raises(Img2GeneError, match=r"obs\['localization_red'\]` holds object values, not scores"):
        ig.pl.localization(study, "red")


def test_called_spots_that_are_stored_as_text_are_outlined_alike(study):
    ig.tl.localize(study, MARKERS)
    outlines = []
    for values in (
        study["table"].obs["localization_red_inside"],
        study["table"].obs["localization_red_inside"].astype(str),
    ):
        study["table"].obs["localization_red_inside"] = values
        paths = ig.pl.localization(study, "red").axes[0].collections[-1].get_paths()
        outlines.append(np.concatenate([path.vertices for path in paths]))
    np.testing.assert_array_equal(*outlines)


def test_the_tumour_of_a_held_out_patient_is_found():
    sdata = ig.datasets.synthetic_cohort(n_patients=4, n_sections=1, n_spots=80, n_genes=120)
    ig.pp.extract_patches(sdata)
    ig.pp.embed_patches(sdata, "color-texture", orientations=1)
    ig.tl.fit(sdata, "ridge-plain", validate_on=["P4"])
    ig.tl.predict(sdata)
    markers = {
        domain: [gene for gene, group in GENES[:120] if group == domain] for domain in ("tumour", "stroma", "immune")
    }
    predicted = ig.tl.localize(sdata, markers, annotation="domain").set_index("tissue")
    measured = ig.tl.localize(sdata, markers, annotation="domain", use="measured", inplace=False).set_index("tissue")
    assert predicted.loc["tumour", "auroc"] >= 0.95
    assert predicted.loc["tumour", "dice"] > 0.7
    assert (predicted["rule"] == "training").all()
    assert measured.loc["tumour", "auroc"] >= 0.95
