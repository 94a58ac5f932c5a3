"""Scores of predictions: by hand, beside their baselines, and never in-sample by accident."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

import img2gene as ig
from img2gene._errors import Img2GeneError, LeakageError, MissingKeyError

COLUMNS = ["model", "section", "patient", "gene", "HEG", "HVG", "SVG", "pcc", "spearman", "mse", "mae", "r2", "n_spots"]


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
    assert [*scores.columns] == [*COLUMNS, "leakage"]
    assert list(scores["model"].unique()) == ["ridge", "training mean", "permutation null"]
    assert set(scores["section"]) == {"C1"}
    assert set(scores["patient"]) == {"C"}
    assert set(scores["n_spots"]) == {49}
    assert len(scores) == 3 * 12
    table = study["table"]
    held_out = (table.obs["section"] == "C1").to_numpy()
    truth, predicted = labels(table)[held_out], table.layers["img2gene"][held_out].astype(float)
    mean = labels(table)[~held_out].mean(axis=0)
    found = of_model(scores).loc[table.var_names]
    expected = {
        "pcc": [stats.pearsonr(truth[:, g], predicted[:, g]).statistic for g in range(12)],
        "spearman": [stats.spearmanr(truth[:, g], predicted[:, g]).statistic for g in range(12)],
        "mse": ((truth - predicted) ** 2).mean(axis=0),
        "mae": np.abs(truth - predicted).mean(axis=0),
        "r2": 1 - ((truth - predicted) ** 2).sum(axis=0) / ((truth - mean) ** 2).sum(axis=0),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4)


def test_the_training_mean_explains_nothing_and_the_shuffled_labels_correlate_with_nothing(study):
    scores = ig.tl.evaluate(study, n_permutations=100, inplace=False)
    np.testing.assert_allclose(of_model(scores, "training mean")["r2"], 0, atol=1e-6)
    assert of_model(scores, "training mean")["pcc"].isna().all()
    null = of_model(scores, "permutation null")
    # a mean of 100 correlations of SD 1/√48
    assert null["pcc"].abs().max() < 5 / np.sqrt(48 * 100)
    assert (null["r2"] < of_model(scores)["r2"] - 0.5).all()


def test_shuffles_follow_the_seed_and_leave_the_model_alone(study):
    one, again, other = (ig.tl.evaluate(study, seed=seed, inplace=False) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, again)
    pd.testing.assert_frame_equal(of_model(one), of_model(other))
    assert not of_model(one, "permutation null")["pcc"].equals(of_model(other, "permutation null")["pcc"])
    assert list(ig.tl.evaluate(study, n_permutations=0, inplace=False)["model"].unique()) == ["ridge", "training mean"]


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
    assert summary.loc[("training mean", "all"), "n_nan"] == 12
    assert summary.loc[("ridge", "all"), "pcc"] == pytest.approx(found["pcc"].drop("G04").mean())
    assert np.isnan(study["table"].var.loc["G04", "pcc"])


def test_the_result_is_written_beside_the_genes(study):
    scores = ig.tl.evaluate(study)
    expected = of_model(scores)["pcc"].reindex(study["table"].var_names)
    np.testing.assert_allclose(study["table"].var["pcc"], expected)
    stored = pd.DataFrame(json.loads(study["table"].uns["img2gene"]["evaluation"]))
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
    "no section": (None, {"sections": []}, "No section named none"),
    "statistic": (None, {"gene_groups": {"x": ("fame", 5)}}, "by='fame': statistics are .*dispersion"),
    "group of no gene": (None, {"gene_groups": {"x": ["G01", "TP53", "MYC"]}}, "Gene group 'x': TP53, MYC not predicted"),
    "group called like a column": (None, {"gene_groups": {"pcc": ["G01"]}}, "A gene group cannot be called 'pcc'"),
    "log counts": (lambda s: setattr(s["table"], "X", s["table"].X.log1p()), {}, "looks normalised or log-transformed"),
    "model": (None, {"model": "forest"}, "`forest` not found in `the trained models of the table, nor a file`"),
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
