"""Counts under another form are recognised as counts, and only truth values make a panel."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import img2gene as ig
from img2gene._errors import Img2GeneError
from img2gene._study.expression import are_nearly_counts

GENES = [f"G{i:02d}" for i in range(12)]


def halves(counts):
    """Store each count as two entries of half of it."""
    coo = sp.coo_matrix(counts)
    twice = (np.tile(coo.data / 2, 2), (np.tile(coo.row, 2), np.tile(coo.col, 2)))
    matrix = sp.coo_matrix(twice, shape=coo.shape)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(matrix.row, minlength=coo.shape[0]))])
    order = np.argsort(matrix.row, kind="stable")
    return sp.csr_matrix((matrix.data[order], matrix.col[order], indptr), shape=coo.shape)


def with_a_fraction(counts):
    values = counts.astype(float)
    values[0, 0] = 2.5
    return values


@pytest.mark.parametrize(
    "change",
    [
        lambda x: np.expm1(np.log1p(x.astype(float))),
        lambda x: np.expm1(np.log1p(x.astype(np.float32))),
        lambda x: sp.csr_matrix(np.expm1(np.log1p(x.astype(np.float32)))),
        with_a_fraction,
        halves,
    ],
    ids=["float64", "float32", "sparse", "one fraction", "parts"],
)
def test_counts_with_rounding_are_not_taken_as_labels(study, change):
    table = study["table"]
    table.layers["umi_matrix"] = change(table.X.toarray())
    for call in (ig.tl.fit, ig.tl.cross_validate):
        with pytest.raises(Img2GeneError, match=r"layers\['umi_matrix'\]` holds raw counts.*Put them in X"):
            call(study, "ridge", layer="umi_matrix")


def test_rounding_as_the_message_says_gives_the_counts_back(study):
    table = study["table"]
    counts = table.X.toarray()
    table.layers["umi_matrix"] = sp.csr_matrix(np.expm1(np.log1p(counts.astype(np.float32))))
    with pytest.raises(
        Img2GeneError, match=r"`sdata\['table'\].X = np.rint\(sdata\['table'\].layers\['umi_matrix'\]\)`"
    ):
        ig.tl.fit(study, "ridge", layer="umi_matrix")
    np.testing.assert_array_equal(np.rint(table.layers["umi_matrix"]).toarray(), counts)


@pytest.mark.parametrize("name", ["counts", "Raw_counts"])
def test_a_layer_named_counts_is_never_taken_as_labels(study, name):
    study["table"].layers[name] = study["table"].X.toarray() * 0.37
    with pytest.raises(Img2GeneError, match=f"layers\\['{name}'\\]` is named after counts"):
        ig.tl.fit(study, "ridge", layer=name)


@pytest.mark.parametrize(
    "scale",
    [
        np.log1p,
        np.sqrt,
        lambda x: np.log2(x + 1),
        lambda x: x > 0,
        lambda x: (x - x.mean()) / x.std(),
        lambda x: x * 0.37,
    ],
    ids=["ln", "root", "log2", "detection", "z", "scaled"],
)
def test_other_scales_are_no_counts(scale):
    counts = np.random.default_rng(0).poisson(np.random.default_rng(1).gamma(0.3, 3.0, size=50), size=(300, 50))
    assert are_nearly_counts(counts)
    assert not are_nearly_counts(scale(counts.astype(float)).astype(np.float32))


IN_PANEL = ["G00", "G01", "G04"]


@pytest.mark.parametrize(
    "column",
    [
        lambda inside: inside,
        lambda inside: pd.array(inside, dtype="boolean"),
        lambda inside: pd.array([True if x else None for x in inside], dtype="boolean"),
        lambda inside: np.array([True if x else np.nan for x in inside], dtype=object),
        lambda inside: [True if x else None for x in inside],
        lambda inside: pd.Categorical(inside),
        lambda inside: inside.astype(int),
        lambda inside: np.where(inside, 1.0, np.nan),
    ],
    ids=["bool", "nullable", "missing", "nan", "none", "category", "whole", "float"],
)
def test_genes_without_a_value_are_not_in_the_panel(study, column):
    inside = np.isin(GENES, IN_PANEL)
    study["table"].var["panel"] = column(inside)
    assert ig.tl.fit(study, "ridge", inplace=False).genes == IN_PANEL


@pytest.mark.parametrize("column", [["True"] * 3 + ["False"] * 9, pd.Categorical(["yes"] * 3 + ["no"] * 9), [2] * 12])
def test_a_panel_of_other_values_is_refused_unless_genes_are_named(study, column):
    study["table"].var["panel"] = column
    for call in (ig.tl.fit, ig.tl.cross_validate, ig.tl.learning_curve):
        with pytest.raises(Img2GeneError, match=r"var\['panel'\]` holds .*only True and False say which genes"):
            call(study, "ridge")
    ig.tl.fit(study, "ridge", genes=IN_PANEL)
    result = ig.tl.cross_validate(study, "ridge", genes=IN_PANEL, baselines=False, n_permutations=2)
    assert set(result.scores["gene"]) == set(IN_PANEL)


def test_an_empty_panel_is_refused(study):
    study["table"].var["panel"] = False
    with pytest.raises(Img2GeneError, match=r"var\['panel'\]` marks no gene. Run `img2gene.pp.select_genes`"):
        ig.tl.fit(study, "ridge")


def test_a_panel_of_one_section_stays_that_panel_in_a_union(make_study):
    parts = [make_study([("A1", "A")]), make_study([("B1", "B")])]
    parts[0].tables["table"] = parts[0]["table"][:, :8].copy()
    ig.pp.select_genes(parts[0], n_genes=3)
    expected = sorted(parts[0]["table"].var_names[parts[0]["table"].var["panel"]])
    joined = ig.io.concat_sections(parts, genes="union")
    table = joined["table"]
    table.X = np.nan_to_num(table.X.toarray() if sp.issparse(table.X) else table.X)
    assert ig.tl.fit(joined, "ridge", inplace=False).genes == expected


def test_a_panel_that_two_sections_chose_was_chosen_on_both(make_study):
    from img2gene._errors import LeakageError

    parts = [make_study([("A1", "A")]), make_study([("B1", "B")])]
    for part in parts:
        ig.pp.select_genes(part, n_genes=12)
    joined = ig.io.concat_sections(parts)
    with pytest.raises(LeakageError, match="chosen on the held-out sections B1"):
        ig.tl.fit(joined, "ridge", validate_on=["B"])


@pytest.mark.parametrize(
    "call",
    [
        lambda sdata: ig.tl.fit(sdata, "ridge"),
        lambda sdata: ig.tl.check_leaks(sdata),
        lambda sdata: ig.tl.cross_validate(sdata, "ridge"),
        lambda sdata: ig.pp.select_genes(sdata),
        lambda sdata: ig.pp.bin_to(sdata, 200),
    ],
    ids=["fit", "check_leaks", "cross_validate", "select_genes", "bin_to"],
)
def test_a_table_without_x_is_told_apart_from_one_with_other_values(call):
    sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    ig.pp.extract_patches(sdata, patch_um=112)
    ig.pp.embed_patches(sdata, "color-texture")
    sdata["table"].X = None
    with pytest.raises(Img2GeneError, match=r"`sdata\['table'\].X` is missing.*[pP]ut raw counts in it"):
        call(sdata)


def test_the_layer_that_could_take_the_place_of_x_is_named():
    sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    table = sdata["table"]
    table.layers["counts"], table.X = table.X.copy(), None
    with pytest.raises(
        Img2GeneError, match=r"X` is missing \(layers: truth, counts\).*call `(sdata.*\.X) = (.*layers\['counts'\])`"
    ):
        ig.pp.select_genes(sdata, n_genes=5)
    table.X = table.layers["counts"]
    ig.pp.select_genes(sdata, n_genes=5)
