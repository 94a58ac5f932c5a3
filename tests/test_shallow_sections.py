"""A section with few counts changes nothing in a model of deep ones, and is named."""

import numpy as np
import pytest
import scipy.sparse as sp

import img2gene as ig
from img2gene._errors import Img2GeneError
from img2gene.models.depth import shallow_sections

DEEP = ["A", "B"]


def thin(sdata, patient, share):
    """Keep a share of the counts of a patient."""
    table = sdata["table"]
    rows = (table.obs["patient"] == patient).to_numpy()
    counts = table.X.toarray()
    size = table.obs["library_size"].to_numpy(dtype=float).copy()
    rng = np.random.default_rng(0)
    counts[rows] = rng.binomial(counts[rows].astype(int), share)
    size[rows] *= share
    table.X = sp.csr_matrix(counts.astype(np.float32))
    table.obs["library_size"] = np.maximum(size, counts.sum(axis=1))
    return sdata


@pytest.fixture
def shallow(study):
    """Patients A and B at full depth, and C with a tenth of the counts."""
    return thin(study, "C", 0.1)


def fit(sdata, model="ridge", **options):
    return ig.tl.fit(sdata, model, groups="section", allow_leakage=True, inplace=False, **options)


def test_the_median_section_is_the_measure():
    sections = np.repeat(["S1", "S2", "S3"], 2)
    library = np.array([900.0, 1100, 5000, 5000, 8000, 10000])
    # Medians are 1000, 5000 and 9000; a fifth of 5000 is 1000, which is not below itself.
    assert shallow_sections(library, sections, 0.2) == {}
    assert shallow_sections(library, sections, 0.21) == {"S1": 1000.0}
    assert shallow_sections(library, sections, 1) == {"S1": 1000.0}


@pytest.mark.parametrize("model", ["ridge", "ridge-plain", "knn", "mean"])
def test_a_shallow_section_changes_no_model_of_deep_ones(shallow, caplog, model):
    deep = [name for name in shallow["table"].obs["section"].unique() if not name.startswith("C")]
    both, alone = fit(shallow, model), fit(shallow, model, train_on=deep)
    assert both.report["sections"] == alone.report["sections"] == sorted(deep)
    assert both.fingerprint == alone.fingerprint
    assert "left out the sections C1 (median" in caplog.text
    for name, values in both.statistics.items():
        np.testing.assert_array_equal(values, alone.statistics[name])
    kept = fit(shallow, model, min_depth=0)
    assert "C1" in kept.report["sections"]
    assert kept.fingerprint != alone.fingerprint


def test_the_panel_and_the_folds_leave_a_shallow_section_out(shallow):
    table = shallow["table"]
    ig.pp.select_genes(shallow, 5, key_added="all")
    ig.pp.select_genes(shallow, 5, sections=[s for s in table.obs["section"].unique() if s != "C1"], key_added="deep")
    np.testing.assert_array_equal(table.var["all"], table.var["deep"])
    options = {"groups": "section", "baselines": False, "n_permutations": 0, "allow_leakage": True, "test_on": ["A1"]}
    with_shallow = ig.tl.cross_validate(shallow, "knn", **options).scores
    kept = ig.tl.cross_validate(shallow, "knn", min_depth=0, **options).scores
    rest = table[(table.obs["section"] != "C1").to_numpy()].copy()
    rest.uns["spatialdata_attrs"]["region"] = rest.obs["region"].unique().tolist()
    shallow.tables["table"] = rest
    alone = ig.tl.cross_validate(shallow, "knn", **options).scores
    np.testing.assert_allclose(with_shallow["pcc"], alone["pcc"], rtol=1e-6)
    assert not np.allclose(kept["pcc"], alone["pcc"], rtol=1e-3, equal_nan=True)


def test_a_learning_curve_samples_deep_sections_alone(shallow):
    curve = ig.tl.learning_curve(
        shallow, "mean", fractions=(1,), n_repeats=1, groups="section", test_on=["A1"], allow_leakage=True
    )
    assert set(curve["n_groups"]) == {2}


def test_expression_in_a_layer_has_no_depth(shallow):
    shallow["table"].layers["mine"] = np.log1p(shallow["table"].X.toarray())
    assert "C1" in fit(shallow, layer="mine").report["sections"]


@pytest.mark.parametrize("value", [-0.1, 1.5, "deep", None])
def test_a_share_that_is_none_is_refused(shallow, value):
    for call in (fit, lambda sdata, **options: ig.tl.cross_validate(sdata, "mean", **options)):
        with pytest.raises(Img2GeneError, match="min_depth="):
            call(shallow, min_depth=value)


def test_where_most_sections_are_shallow_they_are_trained_on_and_named(study, caplog):
    thin(thin(study, "B", 0.1), "C", 0.1)
    model = fit(study, train_on=["A1", "B1", "C1"])
    assert model.report["sections"] == ["A1", "B1", "C1"]
    assert model.report["left_out"] == []
    assert "left out the sections" not in caplog.text
    assert "have fewer counts per spot than 0.2 × those of A1" in caplog.text
    caplog.clear()
    fit(study, train_on=["A1", "B1", "C1"], min_depth=0)
    assert "fewer counts per spot" not in caplog.text


def test_a_section_that_was_too_shallow_to_train_on_is_no_test_section(shallow):
    sections = shallow["table"].obs["section"].astype(str)
    trained = sorted(set(sections[sections.str.startswith("A")])) + ["C1"]
    held = next(name for name in sorted(set(sections)) if name.startswith("B"))
    ig.tl.fit(shallow, "ridge", genes=5, groups="section", train_on=trained, validate_on=[held], allow_leakage=True)
    model = ig.get.model(shallow)
    assert model.report["left_out"] == ["C1"]
    assert "C1" in model._repr_html_()
    ig.tl.predict(shallow)
    scored = ig.tl.evaluate(shallow, n_permutations=0, inplace=False, allow_leakage=True)
    assert "C1" not in set(scored["section"])
    named = ig.tl.evaluate(shallow, sections=["C1"], n_permutations=0, inplace=False, allow_leakage=True)
    assert set(named["section"]) == {"C1"}


def test_one_wrong_library_size_does_not_lead_the_fit():
    from img2gene.models.depth import depth_weights

    library, sections = np.full(100, 2000.0), np.repeat("S1", 100)
    library[0] = 1e9
    weights = depth_weights(library, sections)
    assert weights[0] / weights[1] == pytest.approx(10)


def test_a_library_size_far_above_the_others_is_named(study, caplog):
    fit(study)
    assert "are more than 100 times the median" not in caplog.text
    table = study["table"]
    table.obs["library_size"] = table.obs["library_size"].astype(float)
    table.obs.loc[table.obs_names[3], "library_size"] = 1e9
    fit(study)
    assert f"the library sizes of {table.obs_names[3]} are more than 100 times the median" in caplog.text
