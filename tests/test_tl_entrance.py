"""Every function that reads a table checks it alike: names, regions, tissue, library sizes and the format of counts."""

import json
import logging
from types import SimpleNamespace

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import img2gene as ig
from img2gene import Img2GeneError
from img2gene._study.expression import count_problems, in_tissue, row_sums
from img2gene._study.matrices import plain

CALLS = {
    "fit": lambda sdata, model: ig.tl.fit(sdata, "ridge", validate_on=["C"]),
    "predict": lambda sdata, model: ig.tl.predict(sdata, model),
    "evaluate": lambda sdata, model: ig.tl.evaluate(sdata, model),
    "cross_validate": lambda sdata, model: ig.tl.cross_validate(sdata, "mean", baselines=False, n_permutations=0),
    "learning_curve": lambda sdata, model: ig.tl.learning_curve(sdata, "mean", fractions=(1,), n_repeats=1),
    "localize": lambda sdata, model: ig.tl.localize(sdata, ["G00", "G03"], model=model),
    "predictability": lambda sdata, model: ig.tl.predictability(sdata, model, n_permutations=9),
    "gene_correlation": lambda sdata, model: ig.tl.gene_correlation(sdata, model=model),
    "check_leaks": lambda sdata, model: ig.tl.check_leaks(sdata),
    "retrieve": lambda sdata, model: ig.tl.retrieve(sdata),
    "pathway_contributions": lambda sdata, model: ig.tl.pathway_contributions(sdata, "G00"),
}
COUNTED = ["fit", "cross_validate", "learning_curve", "evaluate", "predictability", "gene_correlation", "check_leaks"]


@pytest.fixture
def trained(trained_study, copy_of):
    return copy_of(trained_study)


def name_genes_alike(table):
    table.var_names = [table.var_names[1], *table.var_names[1:]]


def name_spots_alike(table):
    table.obs_names = [table.obs_names[1], *table.obs_names[1:]]


def lose_a_region(table):
    table.obs["region"] = table.obs["region"].astype(object)
    table.obs.iloc[0, table.obs.columns.get_loc("region")] = None


def lose_a_section(table):
    table.obs["section"] = table.obs["section"].astype(object)
    table.obs.iloc[0, table.obs.columns.get_loc("section")] = np.nan


def lose_the_names_of_regions(table):
    del table.obs["region"]


def lose_the_names_of_instances(table):
    del table.obs[table.uns["spatialdata_attrs"]["instance_key"]]


def half_on_tissue(table):
    table.obs["in_tissue"] = 0.5


SPOILED = {
    "genes": (name_genes_alike, "1 duplicate genes .G01.*var_names_make_unique"),
    "spots": (name_spots_alike, "1 duplicate spots .A1_1.*obs_names_make_unique"),
    "region": (lose_a_region, "1 rows of .* name no region"),
    "section": (lose_a_section, r"obs\['section'\]` is missing in 1 rows"),
    "regions": (lose_the_names_of_regions, "annotates no region"),
    "instances": (lose_the_names_of_instances, "not found in .*instance_key"),
    "tissue": (half_on_tissue, r"obs\['in_tissue'\]` holds 0.5"),
}


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("spoil", "message"), SPOILED.values(), ids=SPOILED)
def test_every_function_refuses_a_table_that_cannot_be_read(trained, spoil, message, call):
    model = ig.get.model(trained)
    spoil(trained["table"])
    with pytest.raises(Img2GeneError, match=message):
        call(trained, model)


LIBRARIES = {
    "truth": (lambda sums: np.ones(len(sums), dtype=bool), "holds bool values"),
    "text": (lambda sums: sums.astype(int).astype(str), "values, not counts"),
    "missing": (lambda sums: np.where(np.arange(len(sums)) < 3, np.nan, sums), "holds NaN in 3 rows"),
    "infinite": (lambda sums: np.where(np.arange(len(sums)) < 2, np.inf, sums), "infinite values in 2 rows"),
    "negative": (lambda sums: np.where(np.arange(len(sums)) < 4, -5, sums), "smaller than the counts .* in 4 rows .first A1_0: -5"),
    "one": (lambda sums: np.ones(len(sums)), "smaller than the counts .* in 196 rows"),
    "half": (lambda sums: sums / 2, "smaller than the counts"),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize(("values", "message"), LIBRARIES.values(), ids=LIBRARIES)
def test_library_sizes_are_at_least_the_counts(trained, name, values, message):
    table = trained["table"]
    table.obs["library_size"] = values(row_sums(table.X))
    with pytest.raises(Img2GeneError, match=message):
        CALLS[name](trained, ig.get.model(trained))


def test_library_sizes_summed_in_less_digits_are_taken(study):
    table = study["table"]
    table.obs["library_size"] = (row_sums(table.X) * (1 - 2e-7)).astype(np.float32)
    assert ig.tl.fit(study, "ridge", inplace=False).report["n_spots"] == 196


TISSUE = {
    "whole numbers": lambda on: on.astype(int),
    "truth": lambda on: on,
    "fractions": lambda on: on.astype(np.float32),
    "text": lambda on: on.astype(int).astype(str),
    "words": lambda on: np.where(on, "True", "False"),
    "categories": lambda on: pd.Categorical(on.astype(int).astype(str)),
    "categories of numbers": lambda on: pd.Categorical(on.astype(int)),
    "nullable": lambda on: pd.array(on, dtype="boolean"),
    "nullable numbers": lambda on: pd.array(np.where(on, None, 0), dtype="Int64"),
    "missing": lambda on: np.where(on, np.nan, 0),
    "missing text": lambda on: np.where(on, None, "0"),
}


@pytest.mark.parametrize("written", TISSUE.values(), ids=TISSUE)
def test_the_column_in_tissue_is_read_as_it_is_written(written):
    on = np.arange(10) % 3 > 0
    obs = pd.DataFrame({"in_tissue": written(on)}, index=[str(i) for i in range(10)])
    np.testing.assert_array_equal(in_tissue(SimpleNamespace(obs=obs, n_obs=10)), on)


@pytest.fixture
def half_off(study, copy_of):
    """A study with spots off the tissue that hold nonsense, and the study without them."""
    table = study["table"]
    on = np.arange(table.n_obs) % 4 > 0
    kept = copy_of(study)
    kept.tables["table"] = table[on].copy()
    table.obs["in_tissue"] = on.astype(int)
    table.obsm["X_tiny"][~on] *= -30
    counts = table.X.toarray()
    counts[~on] = counts[~on][:, ::-1] * 7
    table.X, table.obs["library_size"] = sp.csr_matrix(counts), counts.sum(axis=1)
    return study, kept, on


def test_spots_off_the_tissue_are_left_out_and_counted(half_off, caplog):
    sdata, kept, on = half_off
    with caplog.at_level(logging.INFO, "img2gene"):
        ig.tl.fit(sdata, "ridge", validate_on=["C"])
    assert "left out 49 of 196 spots that lie off the tissue" in caplog.text
    ig.tl.fit(kept, "ridge", validate_on=["C"])
    reports = [ig.get.model(one).report for one in half_off[:2]]
    assert [report["n_spots"] for report in reports] == [on[:147].sum()] * 2
    assert [report["n_off_tissue_spots"] for report in reports] == [(~on[:147]).sum(), 0]
    for one in half_off[:2]:
        ig.tl.predict(one)
    predicted = sdata["table"].layers["img2gene"]
    np.testing.assert_array_equal(predicted[on], kept["table"].layers["img2gene"])
    assert np.isnan(predicted[~on]).all()
    assert np.isnan(sdata["table"].obs["img2gene_ood"][~on]).all()
    pd.testing.assert_frame_equal(*(ig.tl.evaluate(one) for one in half_off[:2]))
    pd.testing.assert_frame_equal(*(ig.tl.predictability(one, n_permutations=19) for one in half_off[:2]))
    pd.testing.assert_frame_equal(*(ig.tl.gene_correlation(one).scores for one in half_off[:2]))
    pd.testing.assert_frame_equal(*(ig.tl.check_leaks(one, groups="section") for one in half_off[:2]))
    found = [ig.tl.localize(one, ["G00", "G03"]) for one in half_off[:2]]
    pd.testing.assert_frame_equal(*found)


def test_cross_validation_and_learning_curve_leave_out_spots_off_the_tissue(half_off):
    scores = [ig.tl.cross_validate(one, "ridge", baselines=False, n_permutations=2).scores for one in half_off[:2]]
    pd.testing.assert_frame_equal(*scores)
    curves = [ig.tl.learning_curve(one, "ridge", fractions=(0.5, 1), n_repeats=1) for one in half_off[:2]]
    pd.testing.assert_frame_equal(*(curve.drop(columns="seconds") for curve in curves))


def test_spots_off_the_tissue_are_no_references(half_off):
    sdata, _, on = half_off
    ig.tl.fit(sdata, "knn", validate_on=["C"])
    references = ig.tl.retrieve(sdata, n=2)
    names = sdata["table"].obs_names[on]
    assert set(references["spot"]) == set(names)
    assert set(references["reference"]) <= set(names)
    with pytest.raises(Img2GeneError, match="A1_0 lie off the tissue"):
        ig.tl.retrieve(sdata, "A1_0", n=2)


def test_no_spot_on_tissue_trains_nothing(study):
    study["table"].obs["in_tissue"] = 0
    for call in ("fit", "cross_validate"):
        with pytest.raises(Img2GeneError, match="in_tissue"):
            CALLS[call](study, None)


def test_spots_without_a_count_are_counted(study, caplog):
    table = study["table"]
    counts = table.X.toarray()
    counts[:5] = 0
    table.X, table.obs["library_size"] = sp.csr_matrix(counts), counts.sum(axis=1)
    for call in ("fit", "cross_validate"):
        caplog.clear()
        CALLS[call](study, None)
        assert "left out 5" in caplog.text


def backed(counts, folder):
    import anndata as ad

    ad.AnnData(counts).write_h5ad(folder / "counts.h5ad")
    return ad.read_h5ad(folder / "counts.h5ad", backed="r").X


FORMATS = {
    **{
        f"{kind.__name__} {dtype}": (lambda x, _, kind=kind, dtype=dtype: kind(x.astype(dtype)))
        for kind in (np.asarray, sp.csr_matrix)
        for dtype in "int16 int32 int64 uint16 uint32 uint64 float32 float64".split()
    },
    "asarray float16": lambda x, _: x.astype(np.float16),
    "CSC": lambda x, _: sp.csc_matrix(x),
    "CSC array": lambda x, _: sp.csc_array(x),
    "CSR array": lambda x, _: sp.csr_array(x),
    "CSR array of uint16": lambda x, _: sp.csr_array(x.astype(np.uint16)),
    "dask": lambda x, _: da.from_array(x, chunks=(50, 5)),
    "dask of CSR": lambda x, _: da.from_array(x, chunks=(50, 12)).map_blocks(sp.csr_matrix),
    "unmasked": lambda x, _: np.ma.array(x),
    "backed dense": lambda x, folder: backed(x, folder),
    "backed CSR": lambda x, folder: backed(sp.csr_matrix(x), folder),
    "backed CSC": lambda x, folder: backed(sp.csc_matrix(x), folder),
}


@pytest.fixture(scope="module")
def expected(trained_study, copy_of):
    sdata = copy_of(trained_study)
    return outcomes(sdata)


def outcomes(sdata):
    ig.tl.fit(sdata, "ridge", validate_on=["C"])
    ig.tl.predict(sdata)
    table = sdata["table"]
    return [
        bytes(table.uns["img2gene"]["model"]["weights"]),
        np.asarray(table.layers["img2gene"]).tobytes(),
        ig.tl.evaluate(sdata, n_permutations=2),
        ig.tl.check_leaks(sdata, groups="section"),
    ]


@pytest.mark.parametrize("convert", FORMATS.values(), ids=FORMATS)
def test_counts_of_every_format_give_the_same_numbers(study, expected, convert, tmp_path):
    study["table"].X = convert(study["table"].X.toarray(), tmp_path)
    weights, predicted, scores, leaks = outcomes(study)
    assert weights == expected[0]
    assert predicted == expected[1]
    pd.testing.assert_frame_equal(scores, expected[2])
    pd.testing.assert_frame_equal(leaks, expected[3])


@pytest.mark.parametrize("name", ["dask", "CSR array of uint16", "backed CSR"])
def test_cross_validation_reads_counts_of_every_format(study, copy_of, name, tmp_path):
    other = copy_of(study)
    del study["table"].obs["library_size"]
    del other["table"].obs["library_size"]
    other["table"].X = FORMATS[name](study["table"].X.toarray(), tmp_path)
    scores = [ig.tl.cross_validate(one, "ridge", baselines=False, n_permutations=1).scores for one in (study, other)]
    pd.testing.assert_frame_equal(*scores)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (np.asarray, "float16"),
        *(
            (kind, dtype)
            for kind in (np.asarray, sp.csr_matrix, sp.csc_matrix)
            for dtype in ("int8", "uint8", "uint16")
        ),
    ],
)
def test_sums_of_counts_do_not_overflow(kind, dtype):
    counts = np.full((2, 1000), 120).astype(dtype)
    assert row_sums(kind(counts)).tolist() == [120_000, 120_000]


def test_large_counts_keep_their_digits():
    counts = sp.csr_matrix(np.array([[2**24 + 1, 3]], dtype=np.uint64))
    assert plain(counts).toarray().tolist() == [[2**24 + 1, 3]]


NO_COUNTS = {
    "complex": (np.ones((2, 2), dtype=complex), "holds complex128 values"),
    "masked": (np.ma.array(np.ones((2, 2)), mask=[[0, 1], [0, 0]]), "masks 1 values"),
    "truth": (np.ones((2, 2), dtype=bool), "holds bool values"),
    "text": (np.full((2, 2), "1"), "holds <U1 values"),
    "objects": (np.full((2, 2), None), "holds object values"),
    "infinite": (np.array([[1.0, np.inf]]), "holds infinite values"),
}


@pytest.mark.parametrize(("matrix", "message"), NO_COUNTS.values(), ids=NO_COUNTS)
def test_what_is_no_count_is_named(matrix, message):
    assert message in count_problems(matrix, "X")[0]


@pytest.mark.parametrize("convert", [sp.csr_matrix, np.asarray, sp.csc_array, lambda x: x.astype(np.int32)])
def test_raw_counts_in_a_layer_are_refused_with_the_next_call(study, convert):
    table = study["table"]
    counts = table.X.toarray()
    table.layers["raw"] = convert(counts)
    table.X = np.log1p(counts).astype(np.float32)
    with pytest.raises(Img2GeneError, match=r"layers\['raw'\]` holds raw counts: call `sdata\['table'\].X = "):
        ig.tl.fit(study, "ridge", validate_on=["C"])
    for call in (ig.tl.fit, ig.tl.cross_validate, ig.tl.learning_curve):
        with pytest.raises(Img2GeneError, match=r"layers\['raw'\]` holds raw counts, .*`sdata\['table'\].X = "):
            call(study, "ridge", layer="raw")
    table.X = table.layers["raw"]
    assert ig.tl.fit(study, "ridge", validate_on=["C"], inplace=False).labels["target_sum"] == 1e4


@pytest.mark.parametrize("values", [np.log1p, lambda x: (x > x.mean()).astype(float)], ids=["logarithms", "detection"])
def test_a_layer_with_labels_is_taken_as_it_is(study, values):
    table = study["table"]
    table.layers["mine"] = values(table.X.toarray())
    assert ig.tl.fit(study, "ridge", layer="mine", inplace=False).labels == {"layer": "mine", "target_sum": None}


RENAMED = {
    "Ensembl": (lambda gene: f"ENSG{int(gene[1:]):011d}", "Ensembl identifiers"),
    "capitals": (str.lower, "human symbols are in capitals"),
    "others": (lambda gene: f"other {gene}", "names that the model was trained with"),
}


@pytest.mark.parametrize(("rename", "reason"), RENAMED.values(), ids=RENAMED)
def test_no_shared_gene_is_said_when_predicting_and_explained_when_scoring(trained, caplog, rename, reason):
    model, table = ig.get.model(trained), trained["table"]
    del table.layers["img2gene"]
    table.var_names = [rename(gene) for gene in table.var_names]
    ig.tl.predict(trained, model)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "None of the model's 12 genes" in warned[0]
    assert reason in warned[0]
    assert trained.tables["img2gene"].var_names.tolist() == model.genes
    for call in ("evaluate", "predictability", "gene_correlation"):
        with pytest.raises(Img2GeneError, match=rf"None of the model's 12 genes .*{reason}"):
            CALLS[call](trained, model)


def test_a_table_that_was_filtered_in_place_names_the_regions_that_are_left(trained):
    table = trained["table"]
    model = ig.get.model(trained)
    table._inplace_subset_obs(table.obs["section"].isin(["A1", "C1"]).to_numpy())
    table._inplace_subset_var(table.var_names[:6])
    table.obs["region"] = pd.Categorical(
        table.obs["region"], categories=["A1_spots", "A2_spots", "B1_spots", "C1_spots"]
    )
    assert len(table.uns["spatialdata_attrs"]["region"]) == 4
    predicted = ig.tl.predict(trained, model, inplace=False)
    assert predicted.uns["spatialdata_attrs"]["region"] == ["A1_spots", "C1_spots"]
    assert predicted.obs["region"].cat.categories.tolist() == ["A1_spots", "C1_spots"]
    ig.tl.predict(trained, model)
    ig.tl.evaluate(trained, model)
    result = ig.tl.cross_validate(trained, "mean", baselines=False, n_permutations=0)
    assert set(result.scores["section"]) == {"A1", "C1"}


def test_embeddings_that_overflow_are_refused_before_training(study, monkeypatch):
    monkeypatch.setattr(ig.models.get("ridge"), "fit", lambda *args, **options: pytest.fail("trained"))
    study["table"].obsm["X_tiny"] = study["table"].obsm["X_tiny"].astype(float) * 1e60
    with pytest.raises(Img2GeneError, match=r"obsm\['X_tiny'\]` holds values beyond .* in 196 rows"):
        ig.tl.fit(study, "ridge")
    study["table"].obsm["X_tiny"] = np.full((196, 6), "a")
    with pytest.raises(Img2GeneError, match=r"obsm\['X_tiny'\]` holds <U1 values"):
        ig.tl.fit(study, "ridge")


def test_an_embedding_that_does_not_vary_is_named(study, caplog):
    study["table"].obsm["X_tiny"][:] = 1
    ig.tl.fit(study, "mean", uncertainty=False)
    assert "`obsm['X_tiny']` does not vary" in caplog.text


@pytest.mark.parametrize("value", [{"params": {}}, "text", 3, np.zeros(3)], ids=["dict", "text", "number", "array"])
def test_what_others_keep_in_uns_is_never_overwritten(study, monkeypatch, value):
    monkeypatch.setattr(ig.models.get("ridge"), "fit", lambda *args, **options: pytest.fail("trained"))
    study["table"].uns["pca"] = value
    with pytest.raises(Img2GeneError, match=r"`uns\['pca'\]` holds something else"):
        ig.tl.fit(study, "ridge", key_added="pca")
    assert study["table"].uns["pca"] is value


def test_predictions_with_another_record_are_never_left_behind(trained, monkeypatch):
    table = trained["table"]
    ig.tl.fit(trained, "mean", validate_on=["C"], key_added="other")
    before = table.layers["img2gene"].copy()
    record = json.loads(table.uns["img2gene"]["predicted_by"])
    monkeypatch.setattr(ig._schema, "write_json", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ig.tl.predict(trained, "other", key_added="img2gene")
    np.testing.assert_array_equal(table.layers["img2gene"], before)
    assert json.loads(table.uns["img2gene"]["predicted_by"]) == record
    assert {"img2gene_std", "img2gene_lower", "img2gene_upper"} <= set(table.layers)
