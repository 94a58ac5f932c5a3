"""Scores of predictions: computed by hand, compared with baselines, and never in-sample by accident."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats
from skimage.metrics import structural_similarity

import img2gene as ig
from img2gene import metrics
from img2gene._errors import Img2GeneError, LeakageError, MissingKeyError
from img2gene.tl.evaluate import MEAN, METRICS, NULL, ORACLE

COLUMNS = ["model", "section", "patient", "gene", "HEG", "HVG", "SVG", *METRICS, "n_spots", "leakage"]
UNCERTAINTY = ["coverage", "width", "error_correlation"]


@pytest.fixture
def study(trained_study, copy_of):
    """A copy of the study with model and predictions."""
    return copy_of(trained_study)


def labels(table):
    return np.log1p(1e4 * table.X.toarray() / table.obs["library_size"].to_numpy()[:, None])


def of_model(scores, name="ridge"):
    return scores[scores["model"] == name].set_index("gene")


def test_every_score_of_every_gene_by_hand(study):
    scores = ig.tl.evaluate(study)
    assert [*scores.columns] == COLUMNS
    assert list(scores["model"].unique()) == ["ridge", MEAN, ORACLE, NULL]
    assert set(scores["section"]) == {"C1"}
    assert set(scores["patient"]) == {"C"}
    assert set(scores["n_spots"]) == {49}
    assert len(scores) == 4 * 12
    table = study["table"]
    held_out = (table.obs["section"] == "C1").to_numpy()
    truth, predicted = labels(table)[held_out], table.layers["img2gene"][held_out].astype(float)
    mean = labels(table)[~held_out].mean(axis=0)
    positions = table.obsm["patch_bbox"][held_out][:, :2]
    moran = [metrics.morans_i(values, metrics.neighbor_graph(positions)) for values in (truth, predicted)]
    maps = [np.moveaxis(values.T.reshape(12, 7, 7), 0, -1) for values in (truth, predicted)]
    found = of_model(scores).loc[table.var_names]
    expected = {
        "pcc": [stats.pearsonr(truth[:, g], predicted[:, g]).statistic for g in range(12)],
        "spearman": [stats.spearmanr(truth[:, g], predicted[:, g]).statistic for g in range(12)],
        "mse": ((truth - predicted) ** 2).mean(axis=0),
        "mae": np.abs(truth - predicted).mean(axis=0),
        "r2": 1 - ((truth - predicted) ** 2).sum(axis=0) / ((truth - mean) ** 2).sum(axis=0),
        "nrmse": np.sqrt(((truth - predicted) ** 2).mean(axis=0)) / truth.std(axis=0),
        "moran": moran[1] - moran[0],
        "ssim": [
            structural_similarity(
                maps[0][..., g],
                maps[1][..., g],
                data_range=max(m[..., g].max() for m in maps) - min(m[..., g].min() for m in maps),
            )
            for g in range(12)
        ],
        "pcc_pooled": [stats.pearsonr(truth[:, g], predicted[:, g]).statistic for g in range(12)],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    assert scores.query("model != 'ridge'")[UNCERTAINTY].isna().all(axis=None)


def test_the_mean_of_the_section_itself_is_an_oracle_of_the_level(study):
    scores = ig.tl.evaluate(study, inplace=False)
    found, training = of_model(scores, ORACLE), of_model(scores, MEAN)
    assert found[["pcc", "spearman", "pcc_pooled", "moran"]].isna().all(axis=None)
    np.testing.assert_allclose(found["nrmse"], 1)
    table = study["table"]
    held_out = (table.obs["section"] == "C1").to_numpy()
    np.testing.assert_allclose(found["mse"], labels(table)[held_out].var(axis=0), rtol=1e-5)
    gap = labels(table)[held_out].mean(axis=0) - labels(table)[~held_out].mean(axis=0)
    np.testing.assert_allclose(training["mse"] - found["mse"], gap**2, rtol=1e-3, atol=1e-6)
    assert (found["r2"] >= 0).all()
    assert found["r2"].max() > 0


def test_pooled_correlation_is_that_of_all_scored_spots_in_each_section(study):
    ig.tl.fit(study, "ridge", validate_on=["B", "C"])
    ig.tl.predict(study)
    scores = ig.tl.evaluate(study, n_permutations=3, inplace=False)
    table = study["table"]
    rows = np.concatenate([np.flatnonzero(table.obs["section"] == name) for name in ("B1", "C1")])
    truth, predicted = labels(table)[rows], table.layers["img2gene"][rows]
    by_section = scores[scores["model"] == "ridge"].pivot(index="gene", columns="section", values="pcc_pooled")
    for name in ("B1", "C1"):
        np.testing.assert_allclose(by_section[name].loc[table.var_names], metrics.pearson(truth, predicted), rtol=1e-5)
    summary = ig.tl.summarize(scores).set_index(["model", "genes"])["pcc_pooled"]
    assert summary["ridge", "all"] == pytest.approx(by_section["B1"].mean())
    # means of two sections: they tell the sections apart, and nothing else
    levels = np.repeat([truth[:49].mean(axis=0), truth[49:].mean(axis=0)], 49, axis=0)
    oracle = of_model(scores[scores["section"] == "B1"], ORACLE)["pcc_pooled"].loc[table.var_names]
    np.testing.assert_allclose(oracle, metrics.pearson(truth, levels), rtol=1e-5)
    assert scores.loc[scores["model"] == MEAN, "pcc_pooled"].isna().all()
    assert scores.loc[scores["model"] == NULL, "pcc_pooled"].notna().all()


def test_intervals_and_deviations_are_scored_where_they_were_written(study):
    table = study["table"]
    predicted = table.layers["img2gene"]
    held_out = (table.obs["section"] == "C1").to_numpy()
    std = np.abs(labels(table) - predicted).astype(np.float32) + 0.01
    std[:, 3] = np.nan
    lower, upper = predicted - std, predicted + std
    lower[np.flatnonzero(held_out)[:9], 5] = np.nan
    upper[held_out, 6] = lower[held_out, 6]
    table.layers.update({"img2gene_std": std, "img2gene_lower": lower, "img2gene_upper": upper})
    scores = ig.tl.evaluate(study)
    found = of_model(scores).loc[table.var_names]
    expected = np.ones(12)
    expected[[3, 6]] = np.nan, 0
    np.testing.assert_allclose(found["coverage"], expected)
    np.testing.assert_allclose(found["error_correlation"], np.where(np.arange(12) == 3, np.nan, 1))
    width = 2 * std[held_out].astype(float)
    width[:, 6] = 0
    width[:9, 5] = np.nan
    np.testing.assert_allclose(found["width"].drop("G03"), np.nanmean(np.delete(width, 3, axis=1), axis=0), rtol=1e-5)
    assert scores.loc[scores["model"] != "ridge", UNCERTAINTY].isna().all(axis=None)
    summary = ig.tl.summarize(scores).set_index(["model", "genes"])
    assert summary.loc[("ridge", "all"), "coverage"] == pytest.approx(10 / 11)
    assert summary.loc[(MEAN, "all"), UNCERTAINTY].isna().all()


def test_deviations_without_intervals_are_scored_alone(study):
    ig.tl.predict(study, uncertainty=False)
    study["table"].layers["img2gene_std"] = np.abs(study["table"].layers["img2gene"]) + 1
    found = of_model(ig.tl.evaluate(study, inplace=False))
    assert found["error_correlation"].notna().all()
    assert found[["coverage", "width"]].isna().all(axis=None)


def test_without_places_maps_are_not_scored(study):
    expected = ig.tl.evaluate(study, inplace=False)
    assert expected.loc[expected["model"] == NULL, ["ssim", "moran"]].notna().all(axis=None)
    for name in ("patch_bbox", "spatial"):
        study["table"].obsm.pop(name, None)
    found = ig.tl.evaluate(study, inplace=False)
    assert found[["ssim", "moran"]].isna().all(axis=None)
    # The null permutes spots in the order of their places.
    found, expected = (scores[scores["model"] != NULL].drop(columns=["ssim", "moran"]) for scores in (found, expected))
    pd.testing.assert_frame_equal(found, expected)


def test_results_survive_a_file_and_joining(study, tmp_path):
    scores = ig.tl.evaluate(study, inplace=False)
    pd.concat([scores, scores.assign(model="again")]).to_csv(tmp_path / "scores.csv", index=False)
    found = ig.tl.summarize(pd.read_csv(tmp_path / "scores.csv")).set_index("model").loc["ridge"]
    expected = ig.tl.summarize(scores).set_index("model").loc["ridge"]
    pd.testing.assert_frame_equal(found, expected)


def test_the_training_mean_explains_nothing_and_the_shuffled_labels_correlate_with_nothing(study):
    scores = ig.tl.evaluate(study, n_permutations=100, inplace=False)
    np.testing.assert_allclose(of_model(scores, MEAN)["r2"], 0, atol=1e-6)
    assert of_model(scores, MEAN)["pcc"].isna().all()
    null = of_model(scores, NULL)
    # a mean of 100 correlations of SD 1/√48
    assert null["pcc"].abs().max() < 5 / np.sqrt(48 * 100)
    assert (null["r2"] < of_model(scores)["r2"] - 0.5).all()


def test_shuffles_follow_the_seed_and_leave_the_model_alone(study):
    one, again, other = (ig.tl.evaluate(study, seed=seed, inplace=False) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, again)
    pd.testing.assert_frame_equal(of_model(one), of_model(other))
    assert not of_model(one, NULL)["pcc"].equals(of_model(other, NULL)["pcc"])
    without = ig.tl.evaluate(study, n_permutations=0, inplace=False)
    assert list(without["model"].unique()) == ["ridge", MEAN, ORACLE]


def test_gene_groups_come_from_the_training_labels(study):
    table = study["table"]
    trained = (table.obs["section"] != "C1").to_numpy()
    counts = table.X.toarray()
    counts[~trained] = counts[~trained][:, ::-1]
    study["table"].X = sp.csr_matrix(counts)
    groups = {"top": ("mean", 3), "markers": ["G09", "G02"]}
    found = of_model(ig.tl.evaluate(study, gene_groups=groups, inplace=False))
    leading = np.argsort(-labels(table)[trained].mean(axis=0))[:3]
    assert set(found.index[found["top"]]) == set(table.var_names[leading])
    assert set(found.index[found["markers"]]) == {"G09", "G02"}


def test_a_constant_gene_has_no_correlation_and_is_counted(study):
    counts = study["table"].X.toarray()
    counts[(study["table"].obs["section"] == "C1").to_numpy(), 4] = 0
    study["table"].X = sp.csr_matrix(counts)
    scores = ig.tl.evaluate(study)
    found = of_model(scores)
    assert found.index[found["pcc"].isna()].tolist() == ["G04"]
    summary = ig.tl.summarize(scores).set_index(["model", "genes"])
    assert summary.loc[("ridge", "all"), "n_nan"] == 1
    assert summary.loc[(MEAN, "all"), "n_nan"] == 12
    assert summary.loc[("ridge", "all"), "pcc"] == pytest.approx(found["pcc"].drop("G04").mean())
    assert np.isnan(study["table"].var.loc["G04", "pcc"])


def test_the_result_is_written_beside_the_genes(study):
    scores = ig.tl.evaluate(study)
    expected = of_model(scores)["pcc"].reindex(study["table"].var_names)
    np.testing.assert_allclose(study["table"].var["pcc"], expected)
    stored = pd.DataFrame(json.loads(study["table"].uns["img2gene"]["evaluation"]))
    stored = stored.astype(dict.fromkeys(METRICS, float))
    pd.testing.assert_frame_equal(stored, ig.tl.summarize(scores), check_dtype=False, check_exact=False, atol=1e-9)
    assert ig.get.model(study).genes == list(study["table"].var_names)


def test_the_mean_over_sections_stands_beside_the_genes(study):
    ig.tl.fit(study, "ridge", validate_on=["B", "C"])
    ig.tl.predict(study)
    scores = ig.tl.evaluate(study)
    own = scores[scores["model"] == "ridge"].pivot(index="gene", columns="section", values="pcc")
    assert list(own.columns) == ["B1", "C1"]
    np.testing.assert_allclose(study["table"].var["pcc"], own.mean(axis=1).loc[study["table"].var_names])


def test_not_in_place_writes_nothing(study, snapshot):
    before = snapshot(study["table"])
    ig.tl.evaluate(study, inplace=False)
    assert snapshot(study["table"]) == before


def test_genes_that_the_model_does_not_know_are_not_scored(study):
    ig.tl.fit(study, "ridge", genes=["G02", "G07"], validate_on=["C"])
    ig.tl.predict(study)
    scores = ig.tl.evaluate(study)
    assert set(scores["gene"]) == {"G02", "G07"}
    assert study["table"].var["pcc"].notna().tolist() == [name in ("G02", "G07") for name in study["table"].var_names]


def frame(rows):
    columns = ["model", "section", "gene", "pcc", "top"]
    result = pd.DataFrame(rows, columns=columns).assign(patient="P", n_spots=5, leakage=False)
    return result.assign(spearman=result["pcc"], mse=1.0, mae=2.0, r2=0.5)


def test_summaries_average_genes_within_sections_then_sections():
    scores = frame(
        [
            ("ridge", "S1", "A", 0.2, True),
            ("ridge", "S1", "B", 0.4, False),
            ("ridge", "S1", "C", np.nan, True),
            ("ridge", "S2", "A", 0.9, True),
            ("other", "S1", "A", -0.5, True),
        ]
    )
    found = ig.tl.summarize(scores).set_index(["model", "genes"])
    # mean(.2, .4) = .3 in S1 and .9 in S2: .6, not the .5 of all three
    assert found.loc[("ridge", "all"), "pcc"] == pytest.approx(0.6)
    assert found.loc[("ridge", "top"), "pcc"] == pytest.approx((0.2 + 0.9) / 2)
    assert found.loc[("other", "all"), "pcc"] == pytest.approx(-0.5)
    assert found.loc[("ridge", "all"), ["n_sections", "n_genes", "n_nan"]].tolist() == [2, 3, 1]
    assert found.loc[("ridge", "top"), ["n_sections", "n_genes", "n_nan"]].tolist() == [2, 2, 1]
    assert found.loc[("ridge", "all"), ["mse", "mae", "r2"]].tolist() == [1, 2, 0.5]
    by_section = ig.tl.summarize(scores, by=["model", "section"]).query("genes == 'all'")
    assert by_section["pcc"].round(6).tolist() == [-0.5, 0.3, 0.9] or by_section["pcc"].round(6).tolist() == [
        0.3,
        0.9,
        -0.5,
    ]


def test_summaries_do_not_depend_on_the_order_or_index_of_rows(study):
    scores = ig.tl.evaluate(study, inplace=False)
    expected = ig.tl.summarize(scores).set_index(["model", "genes"])
    shuffled = scores.sample(frac=1, random_state=0)
    found = ig.tl.summarize(shuffled).set_index(["model", "genes"]).loc[expected.index]
    pd.testing.assert_frame_equal(found, expected)


def test_joined_results_are_summarised_by_model(study):
    scores = ig.tl.evaluate(study, inplace=False)
    other = scores[scores["model"] == "ridge"].assign(model="again", pcc=0.25)
    found = ig.tl.summarize(pd.concat([scores, other])).set_index(["model", "genes"])
    expected = ig.tl.summarize(scores).set_index(["model", "genes"])
    assert found.loc[("again", "all"), "pcc"] == pytest.approx(0.25)
    assert found.loc[("ridge", "HEG"), "pcc"] == pytest.approx(expected.loc[("ridge", "HEG"), "pcc"])


def test_a_table_without_patients_can_be_scored(study):
    del study["table"].obs["patient"]
    ig.tl.fit(study, "ridge", groups="section", validate_on=["C1"])
    ig.tl.predict(study)
    scores = ig.tl.evaluate(study)
    assert scores["patient"].isna().all()
    assert scores["leakage"].isna().all()
    assert ig.tl.summarize(scores)["leakage"].isna().all()


def test_training_sections_are_scored_on_request_only_and_marked(study):
    with pytest.raises(LeakageError, match="trained on the patient .* of the sections A1"):
        ig.tl.evaluate(study, sections=["A1", "C1"])
    scores = ig.tl.evaluate(study, sections=["A1", "C1"], allow_leakage=True, inplace=False)
    assert scores.groupby("section")["leakage"].unique().map(list).to_dict() == {"A1": [True], "C1": [False]}


def test_another_section_of_a_training_patient_is_not_an_honest_test(study):
    ig.tl.fit(study, "ridge", train_on=["A1", "B1"], groups="section")
    ig.tl.predict(study)
    with pytest.raises(LeakageError, match="of the sections A2:"):
        ig.tl.evaluate(study)
    assert not ig.tl.evaluate(study, sections="C1")["leakage"].any()


def test_a_model_of_all_sections_has_no_honest_score(study):
    ig.tl.fit(study, "ridge")
    ig.tl.predict(study)
    with pytest.raises(Img2GeneError, match="trained on every section of this study.*validate_on"):
        ig.tl.evaluate(study)


FAULTS = {
    "no predictions": (lambda s: s["table"].layers.pop("img2gene"), {}, r"`img2gene` not found in .* Run `img2gene.tl.predict` first"),
    "section": (None, {"sections": ["Z9"]}, r"No section named Z9 \(available: A1, A2, B1, C1\)"),
    "no section": (None, {"sections": []}, r"Name at least one section \(available: A1, A2, B1, C1\)"),
    "statistic": (None, {"gene_groups": {"x": ("fame", 5)}}, "by='fame': expected one of .*dispersion"),
    "group of no gene": (None, {"gene_groups": {"x": ["G01", "TP53", "MYC"]}}, "Gene group 'x': TP53, MYC not predicted"),
    "group called like a column": (None, {"gene_groups": {"pcc": ["G01"]}}, "A gene group cannot be called 'pcc'"),
    "log counts": (lambda s: setattr(s["table"], "X", s["table"].X.log1p()), {}, "looks normalised or log-transformed"),
    "model": (None, {"model": "forest"}, "`forest` is neither a trained model of the table"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_leave_the_object_untouched(study, snapshot, fault):
    spoil, options, message = FAULTS[fault]
    if spoil:
        spoil(study)
    before = snapshot(study["table"])
    kind = MissingKeyError if fault in ("no predictions", "section", "model") else Img2GeneError
    with pytest.raises(kind, match=message):
        ig.tl.evaluate(study, **options)
    assert snapshot(study["table"]) == before


def without_counts(study, sections):
    table = study["table"]
    empty = table.obs["section"].isin(sections).to_numpy()
    table.X = table.X.multiply(~empty[:, None]).tocsr()
    table.obs["library_size"] = np.where(empty, 0, table.obs["library_size"])


MEASURED = {
    "evaluate": ig.tl.evaluate,
    "predictability": ig.tl.predictability,
    "gene_correlation": lambda sdata: ig.tl.gene_correlation(sdata, genes=("mean", 5)),
}


@pytest.mark.parametrize("function", MEASURED.values(), ids=MEASURED)
def test_a_table_without_measured_expression_is_named_as_such(study, snapshot, function):
    ig.tl.fit(study, "ridge")
    ig.tl.predict(study)
    with pytest.raises(Img2GeneError, match="trained on every section of this study"):
        function(study)
    without_counts(study, ["A1", "A2", "B1", "C1"])
    before = snapshot(study["table"])
    with pytest.raises(
        Img2GeneError, match="`sdata\\['table'\\]` has no measured expression .*none of its 196 spots"
    ) as caught:
        function(study)
    assert "trained" not in str(caught.value)
    assert snapshot(study["table"]) == before


@pytest.mark.parametrize("function", [*MEASURED.values(), lambda sdata: ig.tl.localize(sdata, ["G00"])])
def test_a_table_without_spots_is_named_as_such(study, function):
    # spatialdata refuses to store a table without rows, so it is filtered in place.
    study["table"]._inplace_subset_obs(np.zeros(study["table"].n_obs, dtype=bool))
    with pytest.raises(Img2GeneError, match="`sdata\\['table'\\]` has no spots") as caught:
        function(study)
    assert "trained" not in str(caught.value)


def test_sections_without_labels_are_left_out_and_alone_refused(study, snapshot, caplog):
    without_counts(study, ["C1"])
    before = snapshot(study["table"])
    judge = [
        ig.tl.evaluate,
        ig.tl.predictability,
        lambda study, **options: ig.tl.gene_correlation(study, genes=("mean", 5), **options),
    ]
    for function in judge:
        with pytest.raises(Img2GeneError, match=r"Nothing to score against.*C1.*with counts: A1, A2, B1\)"):
            function(study)
    assert snapshot(study["table"]) == before
    caplog.set_level("INFO")
    scores = ig.tl.evaluate(study, sections=["B1", "C1"], allow_leakage=True)
    assert scores["section"].unique().tolist() == ["B1"]
    assert "sections C1 have no counts and are not scored" in caplog.text
    assert study["table"].var["pcc"].notna().all()


@pytest.mark.parametrize("asked", [{"markers": []}, {"markers": iter(())}, {"gene_groups": {"mine": []}}])
def test_a_group_without_genes_is_refused(study, asked):
    with pytest.raises(Img2GeneError, match=f"{'mine' if 'gene_groups' in asked else 'markers'} has no gene"):
        ig.tl.evaluate(study, **asked)


@pytest.mark.parametrize("text", ["", " ", "nan", "NaN", "None", "<NA>"])
@pytest.mark.parametrize("column", ["patient", "section"])
def test_a_missing_name_as_text_is_no_name(study, column, text):
    names = study["table"].obs[column].astype(str)
    study["table"].obs[column] = np.where(names.isin(["C", "C1"]), text, names)
    with pytest.raises(Img2GeneError, match=rf"`obs\['{column}'\]` is missing in 49 rows \(the text '{text}'\)"):
        ig.tl.fit(study, "ridge", validate_on=["B"])


def test_predictions_of_another_model_are_not_judged(study):
    """A second fit under the same name may hold out other patients: the first one was trained on them."""
    ig.tl.fit(study, "knn", k=1, validate_on=["A"])
    ig.tl.predict(study)
    judge = [
        lambda: ig.tl.evaluate(study),
        lambda: ig.tl.gene_correlation(study, genes=("mean", 5)),
        lambda: ig.tl.localize(study, {"tissue": [study["table"].var_names[0]]}),
        lambda: ig.tl.predictability(study),
    ]
    ig.tl.fit(study, "ridge", validate_on=["B"])
    for function in judge:
        with pytest.raises(ig.Img2GeneError, match=r"made by another model \(`knn` \w+\).*tl.predict"):
            function()
    ig.tl.predict(study)
    assert ig.tl.evaluate(study)["model"].iloc[0] == "ridge"


def test_a_model_and_its_copy_in_a_file_are_the_same(study, tmp_path):
    model = ig.tl.fit(study, "ridge", validate_on=["A"], inplace=False)
    copy = ig.io.load_model(ig.io.save_model(model, tmp_path / "m"))
    assert copy.fingerprint == model.fingerprint
    assert ig.tl.fit(study, "ridge", validate_on=["B"], inplace=False).fingerprint != model.fingerprint
    ig.tl.predict(study, model)
    assert len(ig.tl.evaluate(study, copy))
