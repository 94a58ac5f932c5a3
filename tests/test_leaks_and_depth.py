"""Training sections are recognised under other names, and library sizes that cannot be right are named."""

import numpy as np
import pytest

import img2gene as ig
from img2gene._errors import Img2GeneError, LeakageError


@pytest.fixture
def trained(trained_study, copy_of):
    return copy_of(trained_study)


def rename(sdata, column, names):
    values = sdata["table"].obs[column].astype(str)
    sdata["table"].obs[column] = values.replace(names)


@pytest.mark.parametrize("other", ["A ", "a", " A", "A\t"])
def test_patients_that_differ_in_blanks_or_capitals_are_refused(study, other):
    rows = study["table"].obs["section"] == "A2"
    study["table"].obs["patient"] = np.where(rows, other, study["table"].obs["patient"].astype(str))
    calls = [
        lambda: ig.tl.fit(study, "ridge", validate_on=["A"]),
        lambda: ig.tl.cross_validate(study, "ridge", baselines=False, n_permutations=2),
        lambda: ig.tl.learning_curve(study, "ridge", fractions=(1,), n_repeats=1),
        lambda: ig.tl.check_leaks(study),
    ]
    for call in calls:
        with pytest.raises(Img2GeneError, match=r"obs\['patient'\]` holds names that differ only in blanks, capitals"):
            call()


def test_names_that_differ_in_more_are_different_patients(study):
    rename(study, "patient", {"A": "P 1", "B": "P1", "C": "P11"})
    assert ig.tl.fit(study, "ridge", validate_on=["P11"], inplace=False).report["patients"] == ["P 1", "P1"]


def test_a_trained_patient_in_other_capitals_is_a_leak_in_another_object(trained, make_study):
    model = ig.get.model(trained)
    # The first four sections have the images of the training.
    other = make_study([*((f"F{i}", "F") for i in range(4)), ("D1", "a "), ("E1", "E")])
    ig.tl.predict(other, model, key_added="img2gene")
    with pytest.raises(LeakageError, match="of the sections D1:"):
        ig.tl.evaluate(other, model, sections=["D1", "E1"])
    with pytest.raises(LeakageError, match="of the sections F0, F1, F2:"):
        ig.tl.evaluate(other, model, sections=["F0", "F1", "F2", "F3"])
    assert set(ig.tl.evaluate(other, model, sections=["E1"])["leakage"]) == {False}


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_a_training_section_with_another_name_and_patient_is_no_new_one(trained, share):
    rename(trained, "section", {"B1": "new section"})
    rename(trained, "patient", {"B": "new patient"})
    order = np.random.default_rng(0).permutation(trained["table"].n_obs)
    trained.tables["table"] = trained["table"][order[: int(share * len(order))]].copy()
    with pytest.raises(LeakageError, match="of the sections new section"):
        ig.tl.evaluate(trained)
    scores = ig.tl.evaluate(trained, allow_leakage=True)
    assert scores.groupby("section")["leakage"].first().to_dict() == {"C1": False, "new section": True}


def test_reports_of_earlier_versions_name_no_spots(trained):
    model = ig.get.model(trained)
    for name in ("spots", "depth"):
        del model.report[name]
    assert set(ig.tl.evaluate(trained, model)["section"]) == {"C1"}


def test_measured_expression_of_fewer_genes_is_on_another_scale_and_says_so(trained, caplog):
    counts = trained["table"].X
    del trained["table"].obs["library_size"]
    ig.tl.fit(trained, "ridge", validate_on=["C"])
    ig.tl.predict(trained)
    ig.tl.evaluate(trained)
    assert "library_size" not in caplog.text
    depth = ig.get.model(trained).report["depth"]
    trained_rows = (trained["table"].obs["patient"] != "C").to_numpy()
    median = np.median(np.asarray(counts.sum(axis=1)).ravel()[trained_rows])
    assert depth == {"median_library_size": median, "n_genes_in_table": 12, "share_in_table": 1}
    full = trained["table"]
    trained.tables["table"] = full[:, :5].copy()
    ig.tl.evaluate(trained)
    assert "sum over the 5 genes of the table" in caplog.text
    assert "the model was trained with 12 genes" in caplog.text
    caplog.clear()
    trained.tables["table"] = full[:, :5].copy()
    trained["table"].obs["library_size"] = np.asarray(counts.sum(axis=1)).ravel()
    ig.tl.evaluate(trained)
    assert "library_size" not in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: (x - x.mean(axis=0)) / x.std(axis=0), "another scale than in the training"),
        (lambda x: 100 * x, "0 % of the values are negative"),
        (lambda x: 1.4 * x, ""),
    ],
    ids=["scaled", "percent", "another base"],
)
def test_a_layer_that_was_rescaled_after_the_training_is_named(trained, caplog, change, said):
    table = trained["table"]
    table.layers["mine"] = np.log1p(table.X.toarray().astype(np.float64))
    ig.tl.fit(trained, "ridge", layer="mine", validate_on=["C"])
    ig.tl.predict(trained)
    ig.tl.evaluate(trained)
    assert "another scale" not in caplog.text
    table.layers["mine"] = change(table.layers["mine"])
    ig.tl.evaluate(trained)
    assert said in caplog.text
    assert ("sdata['table'].layers['mine'] has another scale" in caplog.text) == bool(said)


def test_measured_markers_of_fewer_genes_are_on_another_scale_and_say_so(trained, caplog):
    genes = trained["table"].var_names[:5].tolist()
    ig.tl.localize(trained, genes, use="measured")
    assert "library_size" not in caplog.text
    trained.tables["table"] = trained["table"][:, :5].copy()
    del trained["table"].obs["library_size"]
    ig.tl.localize(trained, genes)
    assert "library_size" not in caplog.text
    ig.tl.localize(trained, genes, use="measured")
    assert "sum over the 5 genes of the table" in caplog.text
    assert "the model was trained with 12 genes" in caplog.text


def test_plots_of_measured_expression_of_fewer_genes_say_that_it_is_on_another_scale(trained, caplog):
    gene = trained["table"].var_names[0]
    ig.pl.prediction(trained, [gene], sections="C1")
    assert "library_size" not in caplog.text
    trained.tables["table"] = trained["table"][:, :5].copy()
    del trained["table"].obs["library_size"]
    ig.pl.prediction(trained, [gene], sections="C1")
    assert "sum over the 5 genes of the table" in caplog.text
    caplog.clear()
    # Without counts there is nothing measured that could be on another scale.
    trained["table"].X = 0 * trained["table"].X
    ig.pl.prediction(trained, [gene], sections="C1")
    assert "library_size" not in caplog.text


def test_library_sizes_of_another_unit_are_named_when_training(study, caplog):
    ig.tl.fit(study, "ridge", validate_on=["C"])
    assert "library_size" not in caplog.text
    study["table"].obs["library_size"] *= 1e6
    ig.tl.fit(study, "ridge", validate_on=["C"])
    assert "expression normalised by such sizes is close to 0" in caplog.text
