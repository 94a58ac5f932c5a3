"""Gene–gene structure: by hand, kept by what must keep it, lost in noise, and modules that were planted."""

import json

import matplotlib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import pearsonr
from spatialdata import read_zarr

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import img2gene as ig
from img2gene._errors import Img2GeneError, LeakageError, MissingKeyError
from img2gene.metrics import gene_correlation, structure_score
from img2gene.pl.correlation import _name_genes


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def study(trained_study, copy_of):
    """A copy of the study with model and predictions."""
    return copy_of(trained_study)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def labels(table):
    return np.log1p(1e4 * table.X.toarray() / table.obs["library_size"].to_numpy()[:, None])


def rows_of(study, section):
    return (study["table"].obs["section"] == section).to_numpy()


def set_predictions(study, values):
    study["table"].layers["img2gene"] = np.asarray(values, dtype=np.float32)


def set_labels(study, values):
    """Counts whose labels are ``values`` but for rounding."""
    table = study["table"]
    table.X = sp.csr_matrix(np.round(np.expm1(values) * 1e3))
    table.obs["library_size"] = 1e7


def planted(study, rng, n_modules=3, noise=0.5):
    """Labels of 12 genes in modules of equal size, in turn, and the module of each."""
    module = np.arange(12) % n_modules
    drivers = rng.normal(size=(study["table"].n_obs, n_modules))
    return 3 + 0.3 * (drivers[:, module] + noise * rng.normal(size=(len(drivers), 12))), module


def test_correlations_by_hand():
    values = np.array([[1.0, 2, 0], [2, 4, 1], [3, 6, 0]])
    np.testing.assert_allclose(gene_correlation(values), [[1, 1, 0], [1, 1, 0], [0, 0, 1]], atol=1e-12)


def test_correlations_equal_numpy_whatever_the_scale(rng):
    values = rng.normal(size=(30, 8))
    expected = np.corrcoef(values, rowvar=False)
    np.testing.assert_allclose(gene_correlation(values), expected)
    np.testing.assert_allclose(gene_correlation(values * np.arange(1, 9) + 5), expected)
    np.testing.assert_allclose(gene_correlation(values[rng.permutation(30)]), expected)


def test_constant_genes_and_genes_with_nan_have_no_correlation(rng):
    values = rng.normal(size=(20, 5))
    values[:, 1] = 0.1
    values[3, 4] = np.nan
    found = gene_correlation(values)
    known = np.ix_([0, 2, 3], [0, 2, 3])
    np.testing.assert_allclose(found[known], np.corrcoef(values[:, [0, 2, 3]], rowvar=False))
    assert np.isnan(found[[1, 4]]).all()
    assert np.isnan(found[:, [1, 4]]).all()
    assert np.isnan(gene_correlation(values[:1])).all()


def matrix(pairs):
    """Symmetric matrix of an upper triangle."""
    size = int((1 + np.sqrt(1 + 8 * len(pairs))) / 2)
    full = np.eye(size)
    full[np.triu_indices(size, 1)] = pairs
    return full + full.T - np.eye(size)


def test_structure_score_by_hand():
    true, predicted = [0.1, 0.5, -0.2, 0.7, 0.0, 0.3], [0.2, 0.4, -0.1, 0.9, 0.3, 0.3]
    # differences .1, -.1, .1, .2, .3, 0: squares sum to .16
    expected = pearsonr(true, predicted).statistic, np.sqrt(0.16 / 6)
    np.testing.assert_allclose(structure_score(matrix(true), matrix(predicted)), expected)


def test_pairs_that_are_undefined_in_either_matrix_are_left_out():
    true, predicted = [0.1, 0.5, -0.2, 0.7, 0.0, np.nan], [0.2, np.nan, -0.1, 0.9, 0.3, 0.3]
    expected = pearsonr([0.1, -0.2, 0.7, 0.0], [0.2, -0.1, 0.9, 0.3]).statistic, np.sqrt(0.15 / 4)
    np.testing.assert_allclose(structure_score(matrix(true), matrix(predicted)), expected)


def test_fewer_than_three_pairs_have_no_score():
    assert np.isnan(structure_score(np.eye(2), np.eye(2))).all()
    gap = matrix([0.1, np.nan, 0.3])
    assert np.isnan(structure_score(gap, matrix([0.1, 0.2, 0.3]))).all()
    # three equal pairs have no correlation, but an error
    np.testing.assert_allclose(structure_score(np.eye(3), matrix([0.5, 0.5, 0.5])), [np.nan, 0.5])


@pytest.mark.parametrize(("one", "two"), [((3, 3), (4, 4)), ((5, 3), (5, 3)), ((3,), (3,))])
def test_what_is_no_pair_of_matrices_is_refused(one, two):
    with pytest.raises(Img2GeneError, match="Expected two .* correlation matrices"):
        structure_score(np.zeros(one), np.zeros(two))
    with pytest.raises(Img2GeneError, match="Expected a .n_spots, n_genes. array"):
        gene_correlation(np.zeros(3))


def test_predictions_equal_to_the_labels_keep_everything(study):
    set_predictions(study, labels(study["table"]))
    result = ig.tl.gene_correlation(study)
    assert result.overall == pytest.approx(
        {"pcc": 1, "rmse": 0, "n_genes": 12, "n_constant": 0, "n_sections": 1, "leakage": False}, abs=1e-6
    )
    np.testing.assert_allclose(result.true, result.predicted, atol=1e-6)
    assert set(result.scores["section"]) == {"C1"}


def test_shuffling_the_spots_of_all_genes_alike_keeps_the_structure(study, rng):
    rows = np.flatnonzero(rows_of(study, "C1"))
    values = labels(study["table"])
    values[rows] = values[rng.permutation(rows)]
    set_predictions(study, values)
    assert ig.tl.gene_correlation(study).overall["pcc"] == pytest.approx(1)


def test_independent_noise_has_no_structure(study, rng):
    values, _ = planted(study, rng)
    set_labels(study, values)
    set_predictions(study, rng.normal(size=values.shape))
    result = ig.tl.gene_correlation(study)
    # 66 pairs: an SD of 1/√65 by chance
    assert abs(result.overall["pcc"]) < 4 / np.sqrt(65)
    assert result.overall["rmse"] > 0.3


def test_planted_modules_are_recovered_with_and_without_their_number(study, rng):
    values, module = planted(study, rng)
    set_labels(study, values)
    set_predictions(study, values + 0.3 * rng.normal(size=values.shape))
    expected = {frozenset(f"G{i:02d}" for i in np.flatnonzero(module == number)) for number in range(3)}
    for n_modules in (None, 3):
        result = ig.tl.gene_correlation(study, n_modules=n_modules)
        assert {frozenset(genes) for genes in result.modules["genes"]} == expected
    assert result.modules["module"].tolist() == [1, 2, 3]
    assert result.modules["n_genes"].tolist() == [4, 4, 4]
    # r within a module is 1/(1 + .5²) = .8
    np.testing.assert_allclose(result.modules["true"], 0.8, atol=0.12)
    assert (result.modules["predicted"] < result.modules["true"]).all()
    assert [result.genes[i] for i in result.order] == [gene for genes in result.modules["genes"] for gene in genes]


def test_a_module_is_scored_on_its_own_pairs(study, rng):
    values, _ = planted(study, rng)
    set_labels(study, values)
    result = ig.tl.gene_correlation(study)
    first = result.modules.iloc[0]
    members = [result.genes.index(gene) for gene in first["genes"]]
    parts = [found[np.ix_(members, members)] for found in (result.true, result.predicted)]
    np.testing.assert_allclose(first[["pcc", "rmse"]].astype(float), structure_score(*parts))
    pairs = np.triu_indices(len(members), 1)
    np.testing.assert_allclose(first[["true", "predicted"]].astype(float), [part[pairs].mean() for part in parts])


def test_genes_are_correlated_within_sections_and_sections_averaged(study):
    # an offset of one section correlates all genes over both sections, and none within one
    table = study["table"]
    values = labels(table)
    set_predictions(study, table.layers["img2gene"] + 5.0 * rows_of(study, "B1")[:, None])
    result = ig.tl.gene_correlation(study, sections=["B1", "C1"], genes=["G03", "G01", "G08"], allow_leakage=True)
    columns = [3, 1, 8]
    for found, source in ((result.true, values), (result.predicted, table.layers["img2gene"])):
        parts = [np.corrcoef(source[rows_of(study, name)][:, columns], rowvar=False) for name in ("B1", "C1")]
        np.testing.assert_allclose(found, np.mean(parts, axis=0), rtol=1e-4, atol=1e-5)
    assert result.genes == ["G03", "G01", "G08"]
    assert result.scores["leakage"].tolist() == [True, False]
    assert result.scores["patient"].tolist() == ["B", "C"]
    assert result.scores["n_spots"].tolist() == [49, 49]
    assert result.overall["leakage"]


def test_a_gene_that_is_constant_in_one_section_counts_in_the_other(study):
    table = study["table"]
    counts = table.X.toarray()
    counts[rows_of(study, "C1"), 4] = 0
    table.X = sp.csr_matrix(counts)
    table.layers["img2gene"][rows_of(study, "B1"), 7] = 1.5
    with pytest.warns(UserWarning, match=r"G07 \(predicted, section B1\); G04 \(measured, section C1\)") as caught:
        result = ig.tl.gene_correlation(study, sections=["B1", "C1"], allow_leakage=True)
    assert caught[0].filename == __file__
    assert result.scores["n_constant"].tolist() == [1, 1]
    assert result.overall["n_constant"] == 0
    at = {gene: i for i, gene in enumerate(result.genes)}
    for gene, section in (("G04", "B1"), ("G07", "C1")):
        rows = rows_of(study, section)
        for found, source in ((result.true, labels(table)), (result.predicted, table.layers["img2gene"])):
            expected = np.corrcoef(source[rows, 0], source[rows, int(gene[1:])])[0, 1]
            assert found[at["G00"], at[gene]] == pytest.approx(expected, abs=1e-5)
    # never defined in the same section
    assert np.isnan(result.true[at["G04"], at["G07"]])
    assert np.isnan(result.predicted[at["G04"], at["G07"]])


def test_a_gene_that_is_constant_everywhere_is_counted_and_in_no_module(study):
    study["table"].layers["img2gene"][:, 2] = 0.7
    with pytest.warns(UserWarning, match=r"left out: G02 \(predicted, section C1\)\."):
        result = ig.tl.gene_correlation(study)
    assert (result.overall["n_genes"], result.overall["n_constant"]) == (11, 1)
    assert result.genes[result.order[-1]] == "G02"
    assert "G02" not in {gene for genes in result.modules["genes"] for gene in genes}
    assert result.pairs["true"].isna().sum() == 11
    assert np.isfinite(result.overall["pcc"])
    figure = ig.pl.gene_correlation(result)
    drawn = figure.axes[1].images[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn).all(axis=0), [False] * 11 + [True])


def test_predictions_that_are_constant_throughout_have_no_score(study):
    set_predictions(study, np.ones(study["table"].shape))
    with pytest.warns(UserWarning, match="Constant genes"):
        result = ig.tl.gene_correlation(study)
    assert np.isnan([result.overall["pcc"], result.overall["rmse"]]).all()
    assert result.overall["n_constant"] == 12
    assert result.modules.empty
    assert result.least_preserved().empty
    assert json.loads(study["table"].uns["img2gene"]["gene_correlation"])["overall"]["pcc"] is None
    assert ig.pl.gene_correlation(result)


def test_pairs_are_each_named_once_and_ranked_by_their_error(study):
    result = ig.tl.gene_correlation(study)
    pairs = result.pairs
    assert len(pairs) == 66 == len({frozenset(pair) for pair in zip(pairs["gene_a"], pairs["gene_b"], strict=True)})
    index = {gene: i for i, gene in enumerate(result.genes)}
    one, two = (pairs[name].map(index) for name in ("gene_a", "gene_b"))
    np.testing.assert_array_equal(pairs["true"], result.true[one, two])
    np.testing.assert_array_equal(pairs["difference"], result.predicted[one, two] - result.true[one, two])
    error = pairs["difference"].abs()
    np.testing.assert_array_equal(result.least_preserved(5)["difference"].abs(), error.nlargest(5))
    # a tenth of 66 pairs is 7 of them
    strong = pairs["true"].abs().nlargest(7).index
    np.testing.assert_array_equal(result.most_preserved(3)["difference"].abs(), error[strong].nsmallest(3))
    np.testing.assert_array_equal(result.most_preserved(3, share=1)["difference"].abs(), error.nsmallest(3))


def test_default_genes_lead_by_their_training_mean(study):
    model = ig.get.model(study)
    assert ig.tl.gene_correlation(study).genes == model.top_genes("mean", 50)
    assert ig.tl.gene_correlation(study, genes=("moran", 5)).genes == model.top_genes("moran", 5)
    assert ig.tl.gene_correlation(study, genes=["G05", "G01", "G05"]).genes == ["G05", "G01"]


def test_the_order_of_genes_and_spots_does_not_matter(study):
    genes = [f"G{i:02d}" for i in range(12)]
    one, other = (ig.tl.gene_correlation(study, genes=names) for names in (genes, genes[::-1]))
    assert one.overall == pytest.approx(other.overall)
    np.testing.assert_allclose(one.true, other.true[::-1, ::-1])
    assert {frozenset(part) for part in one.modules["genes"]} == {frozenset(part) for part in other.modules["genes"]}


def test_any_model_under_any_key(study):
    ig.tl.fit(study, "ridge", genes=["G02", "G07", "G09"], validate_on=["C"], key_added="small")
    ig.tl.predict(study, key_added="small")
    result = ig.tl.gene_correlation(study, key="small")
    assert set(result.genes) == {"G02", "G07", "G09"}
    assert "gene_correlation" in study["table"].uns["small"]
    assert "gene_correlation" not in study["table"].uns["img2gene"]
    small = ig.get.model(study, key="small")
    other = ig.tl.gene_correlation(study, model=small, key="small", inplace=False)
    assert set(other.genes) == {"G02", "G07", "G09"}
    with pytest.raises(Img2GeneError, match="The predictions 'img2gene' were made by another model"):
        ig.tl.gene_correlation(study, model=small)


def test_scores_are_written_and_survive_a_file(study, tmp_path):
    result = ig.tl.gene_correlation(study)
    study.write(tmp_path / "study.zarr")
    stored = json.loads(str(read_zarr(tmp_path / "study.zarr")["table"].uns["img2gene"]["gene_correlation"]))
    assert stored["overall"] == pytest.approx(result.overall)
    pd.testing.assert_frame_equal(pd.DataFrame(stored["sections"]), result.scores, check_dtype=False)
    assert ig.get.model(study).name == "ridge"


def test_not_in_place_writes_nothing(study, snapshot):
    before = snapshot(study["table"])
    result = ig.tl.gene_correlation(study, inplace=False)
    assert snapshot(study["table"]) == before
    assert "12 genes" in repr(result)
    assert "<table" in result._repr_html_()


def test_a_table_without_patients_can_be_scored(study):
    del study["table"].obs["patient"]
    ig.tl.fit(study, "ridge", groups="section", validate_on=["C1"])
    ig.tl.predict(study)
    result = ig.tl.gene_correlation(study)
    assert result.overall["leakage"] is None
    stored = json.loads(study["table"].uns["img2gene"]["gene_correlation"])
    assert (stored["overall"]["leakage"], stored["sections"][0]["leakage"]) == (None, None)


FAULTS = {
    "no predictions": (MissingKeyError, {"key": "other", "model": "img2gene"}, "`other` not found in .* Run `img2gene.tl.predict` first"),
    "no model": (MissingKeyError, {"key": "other"}, "other"),
    "genes": (MissingKeyError, {"genes": ["g01", "G02", "TP53"]}, r"(?s)2 problems.*`g01` is not predicted \(near: G01.*`TP53` is not predicted \(available"),
    "one gene": (Img2GeneError, {"genes": "G01"}, "gives G01; correlations need at least two genes"),
    "statistic": (Img2GeneError, {"genes": ("fame", 5)}, "by='fame': expected one of"),
    "section": (MissingKeyError, {"sections": ["Z9"]}, r"No section named Z9 \(available: A1, A2, B1, C1\)"),
    "leakage": (LeakageError, {"sections": ["A1"]}, "trained on the patient .* of the sections A1"),
    "a number": (Img2GeneError, {"genes": 5}, r"genes=5: pass names of genes, or a statistic .* such as \('mean', 50\)"),
    "a fraction": (Img2GeneError, {"genes": ("mean", 2.5)}, r"genes=\('mean', 2.5\): pass names"),
    "modules of another type": (Img2GeneError, {"n_modules": "2"}, "n_modules='2': expected a whole number, 1 or more"),
    "no module": (Img2GeneError, {"n_modules": 0}, "n_modules=0: expected a whole number, 1 or more"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_leave_the_object_untouched(study, snapshot, fault):
    kind, options, message = FAULTS[fault]
    before = snapshot(study["table"])
    with pytest.raises(kind, match=message):
        ig.tl.gene_correlation(study, **options)
    assert snapshot(study["table"]) == before


def test_a_model_of_all_sections_has_no_honest_score(study):
    ig.tl.fit(study, "ridge")
    ig.tl.predict(study)
    with pytest.raises(Img2GeneError, match="trained on every section of this study.*validate_on"):
        ig.tl.gene_correlation(study)


def test_the_figure_shows_both_matrices_in_one_order_and_on_one_scale(study):
    result = ig.tl.gene_correlation(study, n_modules=3)
    before = result.true.copy()
    figure = ig.pl.gene_correlation(result)
    order = np.ix_(result.order, result.order)
    for ax, expected in zip(figure.axes[:2], (result.true, result.predicted), strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), expected[order])
        assert ax.images[0].get_clim() == (-1, 1)
        assert [tick.get_text() for tick in ax.get_yticklabels()] == [result.genes[i] for i in result.order]
        framed = [patch.get_width() for patch in ax.patches]
        assert framed == [size for size in result.modules["n_genes"] if size > 1]
    assert f"PCC {result.overall['pcc']:.3f}" in figure.get_suptitle()
    points = np.concatenate([part.get_offsets() for part in figure.axes[2].collections])
    expected = result.pairs[["true", "predicted"]].to_numpy()
    np.testing.assert_allclose(points[np.lexsort(points.T)], expected[np.lexsort(expected.T)])
    np.testing.assert_array_equal(result.true, before)


def test_an_unclustered_figure_keeps_the_order_of_the_genes(study):
    result = ig.tl.gene_correlation(study)
    ax = ig.pl.gene_correlation(result, cluster=False, limit=0.5).axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), result.true)
    assert ax.images[0].get_clim() == (-0.5, 0.5)
    assert not ax.patches


def test_names_are_left_out_where_they_do_not_fit(study):
    result = ig.tl.gene_correlation(study)
    ax = plt.figure().add_subplot()
    _name_genes(ax, list(result.genes), panel_size=0.5)
    assert not ax.get_yticklabels()
    assert ax.get_xlabel() == "12 genes"


def test_panels_grow_until_names_can_be_read(study):
    result = ig.tl.gene_correlation(study)
    ax = ig.pl.gene_correlation(result, panel_size=0.5).axes[0]
    assert min(label.get_fontsize() for label in ax.get_yticklabels()) >= 6
