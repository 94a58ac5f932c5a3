"""Cross-validation: what is held out, what is fitted inside the folds, resuming, workers, and what the result says."""

import dataclasses
import json
import logging

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

import img2gene as ig
from img2gene.models import Model
from img2gene.models.ridge import Ridge
from img2gene.tl._cross_validation import task
from img2gene.tl._cross_validation.result import BETWEEN, UNKNOWN, WITHIN, CrossValidation
from img2gene.tl.evaluate import METRICS

QUICK = {"models": "ridge", "baselines": False, "n_permutations": 2}


@pytest.fixture(scope="module")
def result(shared_study):
    """The ridge and all baselines on three patients, with predictions."""
    return ig.tl.cross_validate(shared_study, "ridge", keep_predictions=True, markers=["G00", "G03"])


def by_patient(sdata, patient, genes=None):
    """Scores of a ridge trained without one patient, by the other functions of the package."""
    model = ig.tl.fit(
        sdata, "ridge", validate_on=[patient], inplace=False, **({} if genes is None else {"genes": genes})
    )
    ig.tl.predict(sdata, model)
    return ig.tl.evaluate(sdata, model, inplace=False)


def test_scores_are_those_of_models_trained_without_the_patient(result, study):
    for patient in "ABC":
        expected = by_patient(study, patient).query("model == 'ridge'").set_index(["section", "gene"])["pcc"]
        found = result.scores.query("model == 'ridge' and patient == @patient").set_index(["section", "gene"])["pcc"]
        np.testing.assert_allclose(found, expected.reindex(found.index), atol=1e-6)


def test_every_section_is_scored_once_by_every_model_and_baseline(result, shared_study):
    counts = result.scores.groupby(["model", "section"]).size()
    assert set(counts) == {shared_study["table"].n_vars}
    assert set(counts.index.get_level_values(1)) == {"A1", "A2", "B1", "C1"}
    assert {"ridge", "ridge, not centred", "feature k-NN", "training mean", "permutation null"} <= set(result.models)
    assert "section mean (oracle)" in result.models


def test_baselines_are_left_out_where_the_user_compares_them_already(shared_study):
    found = ig.tl.cross_validate(shared_study, {"mine": {"model": "ridge"}}, n_permutations=1)
    assert found.models[0] == "mine"
    assert "ridge" not in found.models
    assert "feature k-NN" in found.models


def test_held_out_predictions_come_from_models_without_the_patient(result, study):
    table = result.predictions["ridge"]
    assert table.obs_names.tolist() == study["table"].obs_names.tolist()
    model = ig.tl.fit(study, "ridge", validate_on=["B"], inplace=False)
    ig.tl.predict(study, model)
    rows = (table.obs["patient"] == "B").to_numpy()
    np.testing.assert_allclose(table.X[rows], study["table"].layers["img2gene"][rows], atol=1e-5)
    counts = study["table"].X.toarray()
    expected = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(table.layers["measured"], expected, rtol=1e-5)


def test_summary_averages_genes_then_sections_then_patients(result):
    own = result.scores.query("model == 'ridge'")
    sections = own.groupby(["patient", "section"])["pcc"].mean()
    patients = sections.groupby("patient").mean()
    row = result.summary("all").query("model == 'ridge'").iloc[0]
    assert row["pcc"] == pytest.approx(patients.mean())
    half = stats.t.ppf(0.975, 2) * patients.std(ddof=1) / np.sqrt(3)
    assert (row["low"], row["high"]) == pytest.approx((patients.mean() - half, patients.mean() + half))
    assert (row["n_patients"], row["n_sections"]) == (3, 4)
    assert sections.mean() != pytest.approx(patients.mean())


def test_structure_is_that_of_the_section(result):
    table = result.predictions["ridge"]
    rows = (table.obs["section"] == "A2").to_numpy()
    pair = [np.corrcoef(values[rows].T) for values in (table.layers["measured"], table.X)]
    upper = np.triu_indices(table.n_vars, 1)
    expected = np.corrcoef(pair[0][upper], pair[1][upper])[0, 1]
    found = result.structure.query("model == 'ridge' and section == 'A2' and genes == 'all'")["structure"]
    assert found.item() == pytest.approx(expected, abs=1e-5)
    assert "structure" in result.summary("all")


def test_comparison_is_paired_by_patient_and_by_gene(result):
    row = result.compare("ridge").set_index("model").loc["feature k-NN"]
    wide = result.scores.pivot_table("pcc", "gene", "model")
    assert row["p_genes"] == pytest.approx(stats.wilcoxon(wide["feature k-NN"], wide["ridge"]).pvalue)
    units = result.by_unit().pivot(index="patient", columns="model", values="pcc")
    assert row["difference"] == pytest.approx((units["feature k-NN"] - units["ridge"]).mean())
    assert row["n_better"] == (units["feature k-NN"] > units["ridge"]).sum()
    assert row["p_patients"] >= 0.25


def test_comparison_of_a_model_with_itself_would_be_no_row(result):
    assert "ridge" not in set(result.compare("ridge")["model"])
    # A constant prediction has no correlation to compare.
    assert "training mean" not in set(result.compare("ridge")["model"])
    assert "training mean" in set(result.compare("ridge", metric="mse")["model"])


def test_signal_is_found_and_the_null_is_not(result):
    summary = result.summary("all").set_index("model")["pcc"]
    followed = result.genes("ridge")["pcc"]
    assert followed[[f"G{i:02d}" for i in range(12) if i % 3 != 2]].mean() > 0.3
    assert abs(summary["permutation null"]) < 0.05


def test_genes_that_lead_are_chosen_in_every_fold_anew(make_study):
    sdata = make_study()
    table = sdata["table"]
    rows = (table.obs["patient"] == "C").to_numpy()
    counts = table.X.toarray()
    # Patient C would put G11 first; without C it is the last of all.
    counts[rows, 11] += 500
    table.X, table.obs["library_size"] = type(table.X)(counts), counts.sum(axis=1)
    found = ig.tl.cross_validate(sdata, genes=6, gene_groups={"top": ("mean", 2)}, **QUICK).scores
    genes = found.query("model == 'ridge'").groupby("fold")["gene"].unique()
    assert "G11" in genes["A"] and "G11" in genes["B"]
    assert "G11" not in genes["C"]


def test_inner_groups_are_handed_to_the_fit(study, monkeypatch):
    seen = []
    fit = task.fit
    monkeypatch.setattr(task, "fit", lambda *args, **options: seen.append(options["groups"]) or fit(*args, **options))
    ig.tl.cross_validate(study, inner="section", test_on=["A"], **QUICK)
    ig.tl.cross_validate(study, test_on=["A"], **QUICK)
    assert seen == ["section", "patient"]


def test_training_rows_are_all_that_a_model_sees(study, monkeypatch):
    fits = []
    fit = task.fit
    monkeypatch.setattr(task, "fit", lambda part, **options: fits.append(part) or fit(part, **options))
    ig.tl.cross_validate(study, **QUICK)
    held_out = [set("ABC") - set(part["table"].obs["patient"]) for part in fits]
    assert held_out == [{"A"}, {"B"}, {"C"}]


def test_folds_deal_whole_groups(make_study):
    names = [(f"{patient}{i}", patient) for patient in "ABCDE" for i in (1, 2)]
    sdata = make_study(names, n_side=4)
    found = ig.tl.cross_validate(sdata, n_folds=2, seed=3, **QUICK)
    patients = found.scores.groupby("fold")["patient"].unique()
    assert len(patients) == 2
    assert sorted(np.concatenate(patients.tolist())) == list("ABCDE")
    assert {len(part) for part in patients} == {2, 3}


def test_workers_give_the_same_result(result, shared_study):
    found = ig.tl.cross_validate(shared_study, "ridge", keep_predictions=True, markers=["G00", "G03"], n_jobs=2)
    pd.testing.assert_frame_equal(found.scores, result.scores)
    pd.testing.assert_frame_equal(found.structure, result.structure)
    np.testing.assert_array_equal(found.predictions["ridge"].X, result.predictions["ridge"].X)


def test_study_is_left_as_it_was(study, snapshot):
    before = snapshot(study["table"])
    ig.tl.cross_validate(study, **QUICK)
    assert snapshot(study["table"]) == before


def test_interrupted_run_goes_on_with_the_missing_parts_only(study, tmp_path, monkeypatch):
    folder = tmp_path / "cv"
    whole = ig.tl.cross_validate(study, **QUICK)
    run, trained = task.Task.run, []

    def interrupted(task):
        if task.fold.name == "C":
            raise KeyboardInterrupt
        return run(task)

    monkeypatch.setattr(task.Task, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ig.tl.cross_validate(study, folder=folder, **QUICK)
    monkeypatch.setattr(task.Task, "run", lambda task: trained.append(task.fold.name) or run(task))
    found = ig.tl.cross_validate(study, folder=folder, **QUICK)
    assert trained == ["C"]
    pd.testing.assert_frame_equal(found.scores, whole.scores)
    again = ig.tl.cross_validate(study, folder=folder, **QUICK)
    assert trained == ["C"]
    pd.testing.assert_frame_equal(again.scores, whole.scores)
    assert not list(folder.glob("*.partial"))


def test_predictions_asked_for_later_are_computed(study, tmp_path):
    ig.tl.cross_validate(study, folder=tmp_path / "cv", **QUICK)
    found = ig.tl.cross_validate(study, folder=tmp_path / "cv", keep_predictions=["ridge"], **QUICK)
    again = ig.tl.cross_validate(study, folder=tmp_path / "cv", keep_predictions=["ridge"], **QUICK)
    np.testing.assert_array_equal(found.predictions["ridge"].X, again.predictions["ridge"].X)
    assert np.isfinite(again.predictions["ridge"].X).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "seed"),
        ({"genes": 5}, "genes"),
        ({"models": {"ridge": {"model": "ridge", "penalty": 9.0}}}, "models"),
    ],
    ids=["seed", "genes", "parameters"],
)
def test_results_of_two_runs_are_never_mixed(study, tmp_path, change, named):
    ig.tl.cross_validate(study, folder=tmp_path / "cv", **QUICK)
    with pytest.raises(ig.Img2GeneError, match=f"holds a cross-validation with other .*{named}.*never mixed"):
        ig.tl.cross_validate(study, folder=tmp_path / "cv", **{**QUICK, **change})


def test_folder_of_another_study_is_refused(study, tmp_path):
    ig.tl.cross_validate(study, folder=tmp_path / "cv", **QUICK)
    study["table"].X[0, 0] -= 1
    with pytest.raises(ig.Img2GeneError, match="other data"):
        ig.tl.cross_validate(study, folder=tmp_path / "cv", **QUICK)


def test_folder_of_another_version_is_refused(study, tmp_path):
    folder = tmp_path / "cv"
    ig.tl.cross_validate(study, folder=folder, **QUICK)
    record = json.loads((folder / "identity.json").read_text())
    (folder / "identity.json").write_text(json.dumps({**record, "format": 0, "img2gene": "0.0.1"}))
    with pytest.raises(ig.Img2GeneError, match=r"written by img2gene 0.0.1 \(format 0\)"):
        ig.tl.cross_validate(study, folder=folder, **QUICK)


def test_folder_with_other_files_is_refused(study, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ig.Img2GeneError, match="not empty and holds no cross-validation"):
        ig.tl.cross_validate(study, folder=tmp_path, **QUICK)


def test_one_patient_is_a_within_patient_estimate_wherever_it_appears(make_study, caplog):
    sdata = make_study([("A1", "A"), ("A2", "A"), ("A3", "A")], n_side=5)
    with caplog.at_level(logging.WARNING, logger="img2gene"):
        found = ig.tl.cross_validate(sdata, **QUICK)
    assert found.scope == WITHIN
    assert "one patient only" in caplog.text
    assert (
        set(found.scores["scope"])
        == set(found.summary()["scope"])
        == set(found.compare("training mean", metric="mse")["scope"])
    )
    assert found.scores["leakage"].all()
    assert found.unit == "section" and "n_patients" not in found.summary()
    for text in (repr(found), found._repr_html_(), found.to_markdown()):
        assert "within" in text.lower()


def test_sections_of_shared_patients_need_permission(study):
    with pytest.raises(ig.LeakageError, match=r"Patients A are on both sides of folds by section"):
        ig.tl.cross_validate(study, groups="section", **QUICK)
    found = ig.tl.cross_validate(study, groups="section", allow_leakage=True, **QUICK)
    assert found.scope == WITHIN
    leaked = found.scores.groupby("section")["leakage"].all()
    assert leaked.to_dict() == {"A1": True, "A2": True, "B1": False, "C1": False}


def test_unknown_patients_are_said_to_be_unknown(study):
    del study["table"].obs["patient"]
    with pytest.raises(ig.MissingKeyError, match="Say which donor"):
        ig.tl.cross_validate(study, **QUICK)
    found = ig.tl.cross_validate(study, groups="section", **QUICK)
    assert found.scope == UNKNOWN
    assert found.scores["leakage"].isna().all()


def test_missing_group_names_are_refused(study):
    patients = study["table"].obs["patient"].astype(object)
    patients.iloc[:3] = None
    study["table"].obs["patient"] = patients
    with pytest.raises(ig.Img2GeneError, match=r"missing in 3 rows"):
        ig.tl.cross_validate(study, **QUICK)


def test_single_section_cannot_be_held_out(make_study):
    with pytest.raises(ig.Img2GeneError, match="nothing can be held out"):
        ig.tl.cross_validate(make_study([("A1", "A")]), **QUICK)


def test_gene_without_variation_in_a_fold_is_nan_there_and_counted(study, caplog):
    table = study["table"]
    rows = (table.obs["patient"] != "C").to_numpy()
    counts = table.X.toarray()
    counts[rows, 4] = 0
    table.X = type(table.X)(counts)
    with caplog.at_level(logging.WARNING, logger="img2gene"):
        found = ig.tl.cross_validate(study, genes=["G00", "G01", "G04"], markers=["G01", "G04"], **QUICK)
    assert "without C, genes that do not vary: G04" in caplog.text
    own = found.scores.query("model == 'ridge' and gene == 'G04'").set_index("section")["pcc"]
    assert np.isnan(own["C1"])
    assert found.folds.set_index("fold")["absent"].to_dict() == {"A": "", "B": "", "C": "G04"}
    # Constant in the sections of A and B, absent in the fold of C.
    assert found.genes("ridge").loc["G04", "n_nan"] == 4


def test_blocks_of_a_section_are_compared_with_their_coordinates(make_study):
    sdata = make_study([("A1", "A"), ("A2", "A")], n_side=10)
    table = sdata["table"]
    right = table.obsm["spatial"][:, 0] > np.median(table.obsm["spatial"][:, 0])
    table.obs["half"] = np.where(right, "right", "left")
    with pytest.raises(ig.LeakageError):
        ig.tl.cross_validate(sdata, groups="half", **QUICK)
    found = ig.tl.cross_validate(sdata, "ridge", groups="half", allow_leakage=True, n_permutations=1)
    assert "coordinate k-NN" in found.models
    assert found.scope == WITHIN


def test_coordinates_average_the_nearest_spots_of_the_section(study):
    model = ig.tl.fit(study, "coordinates", validate_on=["C"], inplace=False, k=1)
    rows = (study["table"].obs["patient"] == "A").to_numpy()
    with pytest.raises(ig.Img2GeneError, match="was not trained on the sections C1"):
        ig.tl.predict(study, model)
    kept = Model.from_state(*model.state())
    positions = kept.predictor.arrays["positions"]
    found = kept.predict(np.zeros((len(positions), 6), "f4"), np.repeat(["A1", "A2", "B1"], 49), positions=positions)
    np.testing.assert_array_equal(found, kept.predictor.arrays["labels"])
    assert rows.sum() == 98


def test_intervals_have_the_level_that_was_asked_for(result, shared_study):
    half = ig.tl.cross_validate(shared_study, level=0.5, keep_predictions=True, **QUICK)
    assert (half.settings["level"], result.settings["level"]) == (0.5, 0.9)
    wide, narrow = (found.scores.query("model == 'ridge'").set_index(["section", "gene"]) for found in (result, half))
    assert (narrow["width"] < wide["width"]).all()
    assert narrow["coverage"].mean() < 0.75 < wide["coverage"].mean()


def test_smoothing_averages_neighbours_after_the_split(make_study):
    study = make_study(depth=100.0)
    raw = ig.tl.cross_validate(study, keep_predictions=True, **QUICK)
    smooth = ig.tl.cross_validate(study, keep_predictions=True, smooth=4, **QUICK)
    measured = {
        name: found.predictions["ridge"].layers["measured"] for name, found in (("raw", raw), ("smooth", smooth))
    }
    # Spot 24 is the middle of the first section of 7 × 7 spots.
    around = [24, 17, 31, 23, 25]
    np.testing.assert_allclose(measured["smooth"][24], measured["raw"][around].mean(axis=0), rtol=1e-5)
    assert any("averaged over 4 neighbours" in line for line in smooth.warnings)
    assert smooth.settings["smooth"] == 4
    assert smooth.settings["versions"]["img2gene"] == ig.__version__
    assert smooth.summary("all")["pcc"][0] > raw.summary("all")["pcc"][0]


def test_spots_without_counts_take_no_part(study):
    whole = ig.tl.cross_validate(study, **QUICK).scores
    table = study["table"]
    counts = table.X.toarray()
    counts[:5] = 0
    table.X, table.obs["library_size"] = type(table.X)(counts), counts.sum(axis=1)
    found = ig.tl.cross_validate(study, **QUICK)
    assert found.scores.query("section == 'A1'")["n_spots"].unique().tolist() == [44]
    assert len(found.scores) == len(whole)


def only_these_follow_the_image(sdata, section, genes):
    """Shuffle all other genes of a section over its spots, and let these have the pattern of the first gene."""
    table = sdata["table"]
    rows, columns = np.flatnonzero(table.obs["section"] == section), table.var_names.get_indexer(genes)
    counts, rng = table.X.toarray(), np.random.default_rng(0)
    signal = counts[rows][:, :1]
    counts[rows] = rng.permutation(counts[rows])
    counts[np.ix_(rows, columns)] = rng.poisson(signal, size=(len(rows), len(genes)))
    table.X, table.obs["library_size"] = sp.csr_matrix(counts), counts.sum(axis=1).max()


def test_pathways_are_selected_inside_the_folds(make_study, monkeypatch):
    genes = tuple(f"G{i:02d}" for i in range(60))
    sets = {"of A": list(genes[10:20]), "of C": list(genes[30:40])}
    sdata = make_study([("A1", "A"), ("C1", "C")], genes=genes)
    for section, name in (("A1", "of A"), ("C1", "of C")):
        only_these_follow_the_image(sdata, section, sets[name])
    ig.pp.score_pathways(sdata, sets, n_top=1, method="zscore")
    contexts, fit = {}, task.fit

    def watched(part, **options):
        model = fit(part, **options)
        contexts[part["table"].obs["patient"].iloc[0]] = model.predictor.context["names"]
        return model

    monkeypatch.setattr(task, "fit", watched)
    parameters = {"model": "img2gene", "n_models": 1, "n_validations": 0, "max_epochs": 1, "dim": 16}
    ig.tl.cross_validate(sdata, {"small": parameters}, baselines=False, n_permutations=0)
    assert contexts == {"A": ["of A"], "C": ["of C"]}


def test_errors_name_the_fold_and_the_model(study):
    with pytest.raises(ig.Img2GeneError, match="Without A, 'neighbours': "):
        ig.tl.cross_validate(study, {"neighbours": {"model": "knn", "k": 10**6}}, baselines=False)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"models": "forest"}, "forest"),
        ({"models": []}, "`models` is empty"),
        ({"groups": "donor"}, "donor"),
        ({"inner": "donor"}, "donor"),
        ({"n_folds": 9}, "3 groups to deal"),
        ({"test_on": ["Z"]}, "Z"),
        ({"genes": ["FOXP3"]}, "FOXP3"),
        ({"markers": ["FOXP3"]}, "FOXP3"),
        ({"n_jobs": 0}, "n_jobs=0"),
        ({"level": 1.0}, "level=1.0"),
        ({"smooth": -1}, "smooth=-1"),
        ({"keep_predictions": ["lasso"]}, "lasso"),
        ({"layer": "scaled"}, "scaled"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_named(study, change, match):
    with pytest.raises(ig.Img2GeneError, match=match):
        ig.tl.cross_validate(study, **{**QUICK, **change})


def test_all_problems_come_at_once(study):
    with pytest.raises(ig.Img2GeneError) as error:
        ig.tl.cross_validate(study, "forest", n_jobs=0, smooth=-1, inner="donor")
    assert all(name in str(error.value) for name in ("forest", "n_jobs", "smooth", "donor"))


@pytest.mark.parametrize("call", ["summary", "by_unit", "compare"])
def test_result_names_what_it_does_not_have(result, call):
    arguments = {"genes": "HKG"}
    with pytest.raises(ig.MissingKeyError, match=r"No gene group 'HKG' .*HEG"):
        getattr(result, call)(**arguments)


def test_tables_go_through_csv(result, tmp_path):
    result.to_csv(tmp_path / "scores.csv")
    found = pd.read_csv(tmp_path / "scores.csv")
    np.testing.assert_allclose(found["pcc"], result.scores["pcc"])
    assert found["model"].tolist() == result.scores["model"].tolist()
    result.to_csv(tmp_path / "summary.csv", "summary")
    assert pd.read_csv(tmp_path / "summary.csv")["model"].tolist() == result.summary()["model"].tolist()
    with pytest.raises(ig.MissingKeyError, match="No table 'genes'"):
        result.to_csv(tmp_path / "genes.csv", "genes")


def test_html_escapes_names(result):
    scores = result.scores.assign(model=result.scores["model"].replace("ridge", "<script>alert(1)</script>"))
    text = CrossValidation(scores, result.structure, result.folds, BETWEEN, warnings=["<b>"])._repr_html_()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("model", ["ridge", "knn", "bleep", "cmrcnet", "img2gene"])
def test_noise_scores_nothing(shared_study, copy_of, model):
    """Mean correlation over 10 seeds, with a confidence interval, where labels say nothing about features."""
    small = {"n_models": 1, "n_validations": 1, "max_epochs": 2, "dim": 16}
    parameters = {"model": model, **({} if model in ("ridge", "knn") else small)}
    sdata, means = copy_of(shared_study), []
    for seed in range(10):
        counts = np.random.default_rng(seed).poisson(40, sdata["table"].shape)
        sdata["table"].X = type(sdata["table"].X)(counts.astype(np.float32))
        found = ig.tl.cross_validate(sdata, {"it": parameters}, baselines=False, n_permutations=0, seed=seed)
        means.append(found.summary("all").set_index("model").loc["it", "pcc"])
    _, low, high = ig.metrics.mean_interval(means)
    assert low < 0 < high
    assert high - low < 0.1


def test_parts_are_those_of_their_model_and_fold_in_whatever_order(study, tmp_path):
    options = {"baselines": False, "n_permutations": 1, "keep_predictions": True, "folder": tmp_path / "cv"}
    first = ig.tl.cross_validate(study, ["ridge", "knn"], test_on=["A", "B"], **options)
    second = ig.tl.cross_validate(study, ["knn", "ridge"], test_on=["B", "A"], **options)
    for label in ("ridge", "knn"):
        np.testing.assert_array_equal(first.predictions[label].X, second.predictions[label].X)
        scores = [
            found.scores.query(f"model == {label!r}").set_index(["fold", "section", "gene"])["pcc"].sort_index()
            for found in (first, second)
        ]
        pd.testing.assert_series_equal(*scores)


@pytest.mark.parametrize("dense", [np.asarray, np.asfortranarray, lambda x: x.astype(np.uint16)])
def test_dense_counts_give_what_sparse_ones_do(study, tmp_path, dense):
    expected = ig.tl.cross_validate(study, **QUICK).scores
    study["table"].X = dense(study["table"].X.toarray())
    found = ig.tl.cross_validate(study, folder=tmp_path / "cv", **QUICK).scores
    np.testing.assert_allclose(found["mse"], expected["mse"], rtol=1e-4)


def damaged(path, how):
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100] if how == "cut" else b"")


@pytest.mark.parametrize(
    ("pattern", "how"),
    [("A-*.json", "empty"), ("A-*-scores.parquet", "cut"), ("A-*-scores.parquet", "empty"), ("A-*.npz", "missing"),
     ("A-*.npz", "cut"), ("A-*-structure.parquet", "missing")],
)  # fmt: skip
def test_damaged_parts_are_computed_again(study, tmp_path, caplog, pattern, how):
    options = {**QUICK, "keep_predictions": True, "folder": tmp_path}
    expected = ig.tl.cross_validate(study, **options)
    (path,) = tmp_path.glob(pattern)
    damaged(path, how)
    with caplog.at_level(logging.WARNING, logger="img2gene"):
        found = ig.tl.cross_validate(study, **options)
    assert "computed again" in caplog.text
    pd.testing.assert_frame_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.predictions["ridge"].X, expected.predictions["ridge"].X)


def test_part_of_another_model_is_not_taken_for_it(study, tmp_path, caplog):
    expected = ig.tl.cross_validate(study, ["ridge", "knn"], baselines=False, n_permutations=1, folder=tmp_path)
    (ridge,), (knn,) = (list(tmp_path.glob(f"B-{name}-*-scores.parquet")) for name in ("ridge", "knn"))
    ridge.write_bytes(knn.read_bytes())
    with caplog.at_level(logging.WARNING, logger="img2gene"):
        found = ig.tl.cross_validate(study, ["ridge", "knn"], baselines=False, n_permutations=1, folder=tmp_path)
    assert "ridge" in caplog.text and "differ from what was written" in caplog.text
    pd.testing.assert_frame_equal(found.scores, expected.scores)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 1'])
def test_record_that_cannot_be_read_is_named(study, tmp_path, content):
    (tmp_path / "identity.json").write_bytes(content)
    with pytest.raises(ig.Img2GeneError, match=r"identity.json' cannot be read.*Remove the folder"):
        ig.tl.cross_validate(study, folder=tmp_path, **QUICK)


def test_folder_that_is_a_file_is_refused(study, tmp_path):
    (tmp_path / "cv").write_text("")
    with pytest.raises(ig.Img2GeneError, match="cv' is a file; name a folder"):
        ig.tl.cross_validate(study, folder=tmp_path / "cv", **QUICK)
    with pytest.raises(ig.Img2GeneError, match="below' cannot be made"):
        ig.tl.cross_validate(study, folder=tmp_path / "cv" / "below", **QUICK)


@pytest.mark.parametrize("name", ["fold", "scope"])
def test_gene_groups_cannot_be_called_like_columns(study, name):
    with pytest.raises(ig.Img2GeneError, match=f"cannot be called '{name}'"):
        ig.tl.cross_validate(study, gene_groups={name: ["G00"]}, **QUICK)


def test_absent_gene_stays_a_marker_and_measured(study):
    table = study["table"]
    counts = table.X.toarray()
    counts[(table.obs["patient"] != "C").to_numpy(), 4] = 0
    table.X = type(table.X)(counts)
    found = ig.tl.cross_validate(
        study, genes=["G00", "G01", "G04"], markers=["G01", "G04"], keep_predictions=True, **QUICK
    )
    assert found.scores.query("gene == 'G04'")["markers"].all()
    row = found.summary("markers").set_index("model").loc["ridge"]
    assert (row["n_genes"], row["n_nan"]) == (2, 4)
    kept = found.predictions["ridge"]
    rows = (kept.obs["patient"] == "C").to_numpy()
    assert np.isnan(kept[rows, "G04"].X).all()
    expected = np.log1p(1e4 * counts[rows, 4] / table.obs["library_size"].to_numpy()[rows])
    np.testing.assert_allclose(kept[rows, "G04"].layers["measured"].ravel(), expected, rtol=1e-5)


def test_one_gene_by_name_is_recorded_as_such(study):
    assert ig.tl.cross_validate(study, genes="G00", **QUICK).settings["genes"] == ["G00"]


class Odd(Ridge):
    """A ridge that gives up, or predicts the wrong shape."""

    name = "odd"

    def __init__(self, fails="fit"):
        super().__init__()
        self.fails = fails

    def fit(self, data, *, seed):
        if self.fails == "fit":
            raise RuntimeError("gave up")
        super().fit(data, seed=seed)

    def predict(self, features, sections):
        return super().predict(features, sections)[:, :-1]


@pytest.mark.parametrize("fails", ["fit", "predict"])
def test_errors_of_other_kinds_say_the_fold_and_the_model_too(study, fails):
    ig.models.register(Odd)
    with pytest.raises((RuntimeError, ValueError)) as error:
        ig.tl.cross_validate(study, {"mine": {"model": "odd", "fails": fails}}, baselines=False, test_on=["B"])
    text = "\n".join([str(error.value), *getattr(error.value, "__notes__", [])])
    assert "'mine'" in text and "ithout B" in text
    assert fails != "fit" or isinstance(error.value, RuntimeError)


def test_every_fit_has_checkpoints_of_its_own(study, tmp_path):
    small = {"model": "img2gene", "n_models": 1, "n_validations": 0, "max_epochs": 1, "dim": 16}
    models = {name: {**small, "checkpoint_dir": tmp_path} for name in ("one", "two")}
    options = {"test_on": ["A", "B"], "baselines": False, "n_permutations": 0}
    first = ig.tl.cross_validate(study, models, **options)
    assert len(list(tmp_path.iterdir())) == 4
    pd.testing.assert_frame_equal(ig.tl.cross_validate(study, models, **options).scores, first.scores)


def toy(values, patients="ABC", **settings):
    """A result of models on two genes in one section of each patient: pcc of shape (patient, gene) for each model."""
    rows = [
        {"model": model, "fold": patient, "section": f"{patient}1", "patient": patient, "gene": gene}
        | dict.fromkeys(METRICS, np.nan)
        | {"pcc": value, "mse": 1 - value, "moran": value, "n_spots": 9, "leakage": False, "scope": BETWEEN}
        for model, table in values.items()
        for patient, genes in zip(patients, table, strict=True)
        for gene, value in zip(("easy", "hard"), genes, strict=True)
    ]
    scores = pd.DataFrame(rows).astype({"leakage": "boolean"})
    structure = pd.DataFrame(columns=["model", "fold", "section", "patient", "genes", "structure", "structure_rmse"])
    return CrossValidation(scores, structure, pd.DataFrame({"fold": list(patients)}), BETWEEN, settings)


WHOLE = [[0.6, 0.2], [0.7, 0.3], [0.8, 0.1]]
# Worse than the whole in every gene, but silent about the hard one of two patients.
SPARED = [[0.5, np.nan], [0.6, np.nan], [0.7, 0.0]]
BLANK = np.full((3, 2), np.nan)


def test_comparison_takes_no_gain_from_genes_without_a_score():
    found = toy({"ridge": WHOLE, "lazy": SPARED, "training mean": BLANK})
    summary = found.summary("all").set_index("model")["pcc"]
    assert summary["lazy"] > summary["ridge"]
    row = found.compare("ridge").set_index("model").loc["lazy"]
    assert row["difference"] == pytest.approx(-0.1)
    assert (row["n_better"], row["n_dropped"], row["n_genes"], row["n_patients"]) == (0, 2, 2, 3)
    assert row["p_genes"] == pytest.approx(stats.wilcoxon([-0.1, -0.1]).pvalue)
    for text in (found.to_markdown(), found._repr_html_()):
        assert "fewer genes" in text and "lazy (2)" in text and "`compare` uses the pairs that both models have" in text
    whole = toy({"ridge": WHOLE, "training mean": BLANK, "mean": BLANK})
    assert "fewer genes" not in whole.to_markdown()


def test_comparison_averages_genes_then_sections_then_patients(result):
    wide = result.scores.pivot_table("pcc", ["patient", "section", "gene"], "model")
    pairs = wide["feature k-NN"] - wide["ridge"]
    units = pairs.groupby(["patient", "section"]).mean().groupby("patient").mean()
    row = result.compare("ridge").set_index("model").loc["feature k-NN"]
    assert row["difference"] == pytest.approx(units.mean())
    assert row["n_dropped"] == 0


def test_comparison_without_pairs_has_its_columns():
    found = toy({"ridge": WHOLE, "mean": BLANK})
    assert found.compare("mean").empty
    assert found.compare("mean").columns.tolist() == toy({"ridge": WHOLE, "lazy": SPARED}).compare().columns.tolist()
    assert {"difference", "p_patients", "n_dropped"} <= set(found.compare("mean"))


def test_structure_is_compared_by_section(result):
    row = result.compare("ridge", metric="structure").set_index("model").loc["feature k-NN"]
    units = result.by_unit().pivot(index="patient", columns="model", values="structure")
    assert row["difference"] == pytest.approx((units["feature k-NN"] - units["ridge"]).mean())
    assert "p_genes" not in row


def test_better_is_what_the_metric_says():
    found = toy({"ridge": WHOLE, "worse": np.array(WHOLE) - 0.05, "training mean": BLANK})
    for metric in ("pcc", "mse"):
        assert found.compare(metric=metric)["n_better"].tolist() == [0]
    # Nearer to 0.
    assert found.compare(metric="moran")["n_better"].tolist() == [3]
    tables = {metric: found.genes("ridge", metric=metric)[metric] for metric in ("pcc", "mse", "moran")}
    assert tables["pcc"].is_monotonic_decreasing and tables["mse"].is_monotonic_increasing
    assert tables["moran"].is_monotonic_increasing
    coverage = found.scores.assign(coverage=found.scores["gene"].map({"easy": 1.0, "hard": 0.85}))
    found = dataclasses.replace(found, scores=coverage, settings={"level": 0.9})
    assert found.genes("ridge", metric="coverage").index.tolist() == ["hard", "easy"]


def test_marks_are_wherever_scores_are(tmp_path):
    honest = toy({"ridge": WHOLE})
    assert honest.marks == [] and "smooth" not in honest.summary()
    marked = toy({"ridge": WHOLE}, smooth=8, allow_leakage=True)
    marked = dataclasses.replace(marked, warnings=["Spots are duplicated."])
    expected = ["possible leakage allowed", "labels smoothed"]
    assert marked.marks == expected
    text = marked.to_markdown()
    assert "Spots are duplicated." in text
    for place in (text, repr(marked), marked._repr_html_(), ig.pl.cross_validation(marked).axes[0].get_title()):
        assert all(mark in place for mark in expected)
    marked.to_csv(tmp_path / "summary.csv", "summary")
    assert set(pd.read_csv(tmp_path / "summary.csv")["smooth"]) == {8}
    plt.close("all")


@pytest.mark.parametrize("call", ["summary", "compare", "genes"])
def test_columns_that_are_no_scores_are_no_metrics(result, call):
    with pytest.raises(ig.MissingKeyError, match=r"No metric 'patient' .*pcc"):
        getattr(result, call)(metric="patient")


@pytest.mark.parametrize("label", ["training mean", "section mean (oracle)", "permutation null"])
def test_names_of_baseline_rows_are_reserved(study, label):
    with pytest.raises(ig.Img2GeneError, match="the label of a baseline of every result"):
        ig.tl.cross_validate(study, {label: {"model": "ridge"}}, baselines=False)


def test_label_of_a_baseline_belongs_to_it(study):
    with pytest.raises(ig.Img2GeneError, match=r"models\['ridge'\] has the label of the baseline"):
        ig.tl.cross_validate(study, {"ridge": {"model": "knn"}})
    with pytest.raises(ig.Img2GeneError, match=r"other parameters"):
        ig.tl.cross_validate(study, {"ridge": {"model": "ridge", "n_components": 3}})
    # The very baseline, spelled out.
    found = ig.tl.cross_validate(
        study, {"ridge": {"model": "ridge", "center": "section"}}, n_permutations=0, test_on=["A"]
    )
    assert found.models.count("ridge") == 1


def test_baselines_are_on_the_embedding_of_the_first_model(study):
    table = study["table"]
    (known,) = ig._schema.read_json(table, "encoder", default={}).values()
    other = next(name for name in ("color-texture", "efficientnet_lite0") if name != known["name"])
    table.obsm[ig._schema.embedding_key(other)] = table.obsm[ig._schema.embedding_key(known["name"])][:, ::-1].copy()
    ig._schema.write_json(table, "encoder", {known["name"]: known, other: {**known, "name": other}})
    models = {"a": {"model": "knn", "encoder": known["name"]}, "b": {"model": "ridge", "encoder": other}}
    found = ig.tl.cross_validate(study, models, n_permutations=0, test_on=["A"])
    assert found.settings["models"]["ridge"] == {"model": "ridge", "encoder": known["name"]}
    assert "feature k-NN" not in found.models


def test_model_may_be_named_for_a_label(study):
    found = ig.tl.cross_validate(study, {"x": "ridge"}, baselines=False, n_permutations=0, test_on=["A"])
    assert found.models[0] == "x"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"genes": 10.0}, r"genes=10.0: expected names"),
        ({"n_folds": 2.0}, r"n_folds=2.0: expected a whole number, 2 or more"),
        ({"models": None}, r"models=None: expected"),
        ({"models": [{"model": "ridge"}]}, r"models: \{'model': 'ridge'\} is no name"),
        ({"models": {"x": 3}}, r"models\['x'\]=3: expected"),
        ({"models": {"x": {"model": "ridge", "penalty": "abc"}}}, r"models\['x'\]: penalty='abc'"),
        ({"models": {"x": {"model": "img2gene", "max_epochs": "3"}}}, "max_epochs='3': expected a whole number, 1 or more"),
        ({"models": {"x": {"model": "img2gene", "n_models": 2.5}}}, r"n_models=2.5: expected a whole number"),
        ({"models": {"x": {"model": "img2gene", "heads": "a"}}}, r"heads='a': expected a whole number"),
        ({"models": {"x": {"model": "cmrcnet", "learning_rate": "a"}}}, "learning_rate='a': expected a number above 0"),
        ({"models": {"x": {"model": "cmrcnet", "dropout": "a"}}}, "dropout='a': expected a number from 0 to 1"),
        ({"models": {"x": {"model": "img2gene", "coherence": "a"}}}, "coherence='a': expected a number, 0 or more"),
        ({"smooth": 1.5}, r"smooth=1.5"),
        ({"n_jobs": "all"}, r"n_jobs='all'"),
        ({"keep_predictions": ["feature k-NN"]}, r"no model labelled feature k-NN \(available: ridge\)"),
        ({"keep_predictions": 3}, r"keep_predictions=3: expected"),
        ({"encoder": "uni", "models": ["ridge", "knn"]}, r"^`X_[^`]*` not found(?!.*\n).*$"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)  # fmt: skip
def test_arguments_of_the_wrong_type_are_named(study, change, match):
    with pytest.raises(ig.Img2GeneError, match=match):
        ig.tl.cross_validate(study, **{**QUICK, **change})


def without_counts(study, patients):
    table = study["table"]
    counts = table.X.toarray()
    counts[table.obs["patient"].isin(patients).to_numpy()] = 0
    table.X, table.obs["library_size"] = type(table.X)(counts), counts.sum(axis=1)
    return study


def test_patients_without_counts_are_said_to_have_none(study, caplog):
    with pytest.raises(ig.Img2GeneError, match=r"no spot of patient B has a count.*available: A, C"):
        ig.tl.cross_validate(without_counts(study, ["B"]), test_on=["B"], **QUICK)
    with caplog.at_level(logging.WARNING, logger="img2gene"):
        ig.tl.cross_validate(without_counts(study, ["C"]), **QUICK)
    assert "one patient only (A; patient without counts: B, C)" in caplog.text
    table = study["table"]
    table.obs["half"] = np.where(table.obs["patient"] == "A", "left", "right")
    with pytest.raises(ig.Img2GeneError, match=r"one value only \(left; half without counts: right\)"):
        ig.tl.cross_validate(study, groups="half", **QUICK)


def test_a_panel_chosen_on_all_patients_leaks_by_name_too(study):
    ig.pp.select_genes(study, 5)
    panel = study["table"].var_names[study["table"].var["panel"]].tolist()
    for genes in (None, panel):
        with pytest.raises(ig.LeakageError, match="gene panel was chosen on sections of 3 groups"):
            ig.tl.cross_validate(study, genes=genes, **QUICK)
    assert set(ig.tl.cross_validate(study, genes=panel[:4], **QUICK).scores["gene"]) == set(panel[:4])


def test_gains_are_positive_where_a_model_is_better(result):
    """Of errors, the lower is the better one."""
    for metric, sign in (("pcc", 1), ("mse", -1)):
        row = result.compare("feature k-NN", metric=metric).set_index("model").loc["ridge"]
        gains = result.gains("ridge", "feature k-NN", metric=metric)
        assert gains.mean() == pytest.approx(sign * row["difference"])
        assert (gains > 0).sum() == row["n_better"]
    assert (result.gains("ridge", "ridge") == 0).all()
