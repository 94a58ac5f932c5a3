"""Whatever pathway functions are given: the right value, or an error that names the argument."""

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from img2gene._errors import Img2GeneError
from img2gene.pathways import (
    aucell,
    enrich,
    match_gene_sets,
    rank_genes,
    read_gene_sets,
    select_pathways,
    ssgsea,
    zscore,
)
from img2gene.pathways.context import score_spots


class Unprintable:
    """An argument whose own methods fail."""

    __hash__ = None

    def __repr__(self):
        raise RuntimeError("no representation")

    def __eq__(self, other):
        raise RuntimeError("no comparison")


class NoPathways:
    """Looks like a table, but its columns are nothing."""

    columns = None


HOSTILE = [
    None,
    -1,
    0,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "a\0b",
    b"name",
    [],
    {},
    {"a"},
    (1,),
    object(),
    Unprintable(),
]
HOSTILE += [np.zeros(3), np.zeros((2, 2)), np.array(["a"]), np.array(3), 10**30, 1j, True, lambda: None, NoPathways()]
HOSTILE += [
    {"a": 1},
    {"a": "b"},
    {"a": [1.5]},
    {1: [None]},
    [["a"], ["a", "b"]],
    pd.DataFrame(),
    pd.Series(dtype=float),
]
HOSTILE += [np.array([np.nan, 1.0]), sp.csr_matrix((2, 2)), np.ma.masked_array([1, 2], [True, False]), slice("a", None)]

COUNTS = np.array([[9, 5, 4, 1], [1, 2, 3, 4], [0, 2, 0, 7]])
GENES = ["A", "B", "C", "D"]
PLACES = np.arange(12.0).reshape(6, 2)
VALUES = np.random.default_rng(0).random((6, 4))
RANKING = pd.Series({f"G{i}": -float(i) for i in range(30)})
TABLE = pd.DataFrame({"pathway": ["b", "a"], "nes": [1.0, 2.0]})

CALLS = {
    "aucell": (aucell, {"counts": COUNTS, "sets": {"a": [0, 1]}, "genes": GENES, "n_up": 3, "batch_size": 2}),
    "ssgsea": (ssgsea, {"counts": COUNTS, "sets": {"a": [0, 1]}, "genes": GENES}),
    "zscore": (zscore, {"labels": COUNTS, "sets": {"a": [0, 1]}, "reference": [0, 1]}),
    "match": (
        match_gene_sets,
        {"gene_sets": {"a": ["A", "B"]}, "genes": GENES, "ids": ["1", "2", "3", "4"], "min_genes": 2},
    ),
    "rank": (
        rank_genes,
        {"labels": VALUES, "sections": list("aaabbb"), "positions": PLACES, "features": VALUES[:, :2], "seed": 0},
    ),
    "enrich": (
        enrich,
        {"ranking": RANKING, "gene_sets": {"a": ["G0", "G3"]}, "seed": 0, "n_permutations": 100},
    ),
    "select": (select_pathways, {"table": TABLE, "n_top": 1}),
    "read": (read_gene_sets, {"source": {"a": ["A"]}, "organism": "human"}),
}
ARGUMENTS = [(name, argument) for name, (_, arguments) in CALLS.items() for argument in arguments]


def call(name, **changes):
    function, arguments = CALLS[name]
    arguments = {**arguments, **changes}
    if name == "enrich":
        return function(arguments.pop("ranking"), arguments.pop("gene_sets"), **arguments)
    return (
        function(**arguments)
        if name != "match"
        else function(*list(arguments.values())[:3], min_genes=arguments["min_genes"])
    )


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_no_value_of_an_argument_gives_a_foreign_error(name, argument):
    refused = 0
    for value in HOSTILE:
        try:
            call(name, **{argument: value})
        except Img2GeneError as error:
            refused += 1
            assert len(str(error)) < 3000
    assert refused > len(HOSTILE) / 2


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_an_object_is_refused_with_the_name_of_its_argument(name, argument):
    with pytest.raises(Img2GeneError, match=f"{argument}|Gene sets cannot be read from object"):
        call(name, **{argument: object()})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("aucell", {"n_up": np.int64(3), "batch_size": np.int32(1)}),
        ("match", {"min_genes": np.int16(2)}),
        ("rank", {"seed": np.int64(0)}),
        ("enrich", {"seed": np.uint8(0), "n_permutations": np.int64(100)}),
        ("select", {"n_top": np.int64(1)}),
    ],
)
def test_numbers_of_numpy_are_numbers(name, changes):
    expected, result = call(name), call(name, **changes)
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(result, expected)
    else:
        np.testing.assert_equal(result, expected) if name != "match" else np.testing.assert_equal(
            result[0], expected[0]
        )


STORED = {
    "csr": sp.csr_matrix,
    "csr_array": sp.csr_array,
    "csc": sp.csc_matrix,
    "coo": sp.coo_array,
    "dask": lambda values: da.from_array(values, chunks=2),
    "frame": pd.DataFrame,
    "float16": lambda values: values.astype(np.float16),
    "uint8": lambda values: values.astype(np.uint8),
    "uint8 csr": lambda values: sp.csr_matrix(values.astype(np.uint8)),
    "explicit zeros": lambda values: sp.csr_matrix((values.ravel(), np.tile(range(4), 3), [0, 4, 8, 12]), shape=(3, 4)),
    "list": lambda values: values.tolist(),
}


def doubled(values):
    """Every value in two halves at the same place."""
    places = np.repeat(np.arange(4), 2)
    halves = np.repeat(values.astype(float), 2, axis=1) / 2
    return sp.csr_matrix((halves.ravel(), np.tile(places, 3), np.arange(4) * 8), shape=(3, 4))


@pytest.mark.parametrize("kind", [*STORED, "halves"])
@pytest.mark.parametrize("name", ["aucell", "ssgsea", "zscore"])
def test_scores_do_not_depend_on_how_the_matrix_is_stored(kind, name):
    values = np.array([[200, 5, 4, 1], [1, 2, 30, 4], [0, 2, 0, 7]])
    matrix = doubled(values) if kind == "halves" else STORED[kind](values)
    argument = "labels" if name == "zscore" else "counts"
    expected = call(name, **{argument: values.astype(np.float32)})
    np.testing.assert_allclose(call(name, **{argument: matrix}), expected, rtol=1e-5)


def test_squares_of_small_integers_do_not_overflow():
    values = np.array([[200, 1], [100, 1], [0, 7]], dtype=np.uint8)
    expected = zscore(values.astype(float), {"a": [0]})
    np.testing.assert_allclose(zscore(sp.csr_matrix(values), {"a": [0]}), expected, rtol=1e-6)
    np.testing.assert_allclose(expected[:, 0], (values[:, 0] - 100.0) / np.std([200, 100, 0]), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("stored", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("name", ["aucell", "ssgsea", "zscore", "rank"])
def test_matrices_with_gaps_are_refused(name, stored, bad):
    values = VALUES.copy() if name == "rank" else COUNTS.astype(float)
    values[1, 2] = bad
    argument = "labels" if name in ("zscore", "rank") else "counts"
    with pytest.raises(Img2GeneError, match=f"{argument}: 1 values are NaN or infinite"):
        call(name, **{argument: stored(values)})


def test_masked_and_complex_values_are_refused():
    with pytest.raises(Img2GeneError, match="counts: 1 values are masked"):
        aucell(np.ma.masked_equal(COUNTS, 9), {"a": [0]})
    for values in (COUNTS.astype(complex), sp.csr_matrix(COUNTS.astype(complex))):
        with pytest.raises(Img2GeneError, match="counts: expected .*real numbers"):
            ssgsea(values, {"a": [0]})


@pytest.mark.parametrize("members", [[0.5], [True, False, True, False], "ABC", ["A"], 0, None, [[0], [1]], {0: 1}])
def test_what_is_no_list_of_columns_is_refused(members):
    for function in (aucell, ssgsea, zscore):
        with pytest.raises(Img2GeneError, match="Gene sets odd are not lists of columns"):
            function(COUNTS, {"even": [0], "odd": members})


def test_columns_may_be_any_collection_of_whole_numbers():
    expected = zscore(COUNTS, {"a": [0, 2]})
    for members in (
        (0, 2),
        {0, 2},
        np.array([2, 0, 2], dtype=np.uint8),
        range(0, 4, 2),
        pd.Index([0, 2]),
        iter([0, 2]),
    ):
        np.testing.assert_array_equal(zscore(COUNTS, {"a": members}), expected)


def test_the_reference_of_a_zscore_is_rows_or_a_mask():
    expected = zscore(COUNTS, {"a": [0]}, reference=[0, 2])
    for reference in (np.array([True, False, True]), pd.Series([True, False, True]), (0, 2), slice(0, 3, 2)):
        np.testing.assert_array_equal(zscore(COUNTS, {"a": [0]}, reference=reference), expected)
    for reference in ([-1], [3], [True, False], [0.0, 2.0], "all", 1, np.array([[0, 1]])):
        with pytest.raises(Img2GeneError, match="reference.*expected rows from 0 to 2, or a mask of 3 rows"):
            zscore(COUNTS, {"a": [0]}, reference=reference)
    for reference in ([], [False] * 3, slice(0, 0)):
        with pytest.raises(Img2GeneError, match="No spot of `reference` has expression"):
            zscore(COUNTS, {"a": [0]}, reference=reference)


def test_gene_sets_of_generators_are_read_once_and_kept():
    sets = {"a": (gene for gene in ["A", "B", "A"]), "b": iter(["C", "D"])}
    columns, table = match_gene_sets(sets, GENES, min_genes=2)
    np.testing.assert_equal(columns, {"a": np.array([0, 1]), "b": np.array([2, 3])})
    assert table["n_genes"].tolist() == [2, 2]
    assert read_gene_sets({"a": (gene for gene in ["A", "B", "A"])}) == {"a": ["A", "B"]}


def test_ids_belong_to_the_genes_one_by_one():
    with pytest.raises(Img2GeneError, match="`ids` has 3 names for 4 genes: pass one per gene"):
        match_gene_sets({"a": ["E1"]}, GENES, ["E1", "E2", "E3"], min_genes=1)
    ids = pd.Series(["E1", np.nan, None, "E4"])
    columns, _ = match_gene_sets({"a": ["E4", "nan", "None", ""]}, GENES, ids, min_genes=1)
    np.testing.assert_equal(columns, {"a": np.array([3])})


def test_sets_whose_names_are_the_same_text_are_refused():
    with pytest.raises(Img2GeneError, match="different names"):
        read_gene_sets({1: ["A"], "1": ["B"]})
    assert read_gene_sets({0: ["A"], 1: ["B"]}) == {"0": ["A"], "1": ["B"]}


def test_a_gene_listed_twice_counts_once_in_enrichment():
    once = enrich(RANKING, {"a": ["G0", "G2", "G3"]}, seed=0, n_permutations=100)
    twice = enrich(RANKING, {"a": ["G0", "G2", "G3", "G0"]}, seed=0, n_permutations=100)
    pd.testing.assert_frame_equal(once, twice)


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        (RANKING.to_dict(), "expected a pandas Series"),
        (RANKING.astype(str), "values: expected numbers"),
        (RANKING.reset_index(drop=True), "does not hold gene names"),
        (RANKING.replace(-3.0, np.inf), "1 infinite scores"),
        (RANKING.astype(complex), "complex128 values: expected numbers"),
    ],
)
def test_what_is_no_ranking_is_refused(ranking, message):
    with pytest.raises(Img2GeneError, match=message):
        enrich(ranking, {"a": ["G0"]}, seed=0)


def test_all_faults_of_a_call_are_in_one_error():
    with pytest.raises(
        Img2GeneError, match="(?s)4 problems.*not lists of columns.*n_up=1.*batch_size=0.*2 names for 4"
    ):
        aucell(COUNTS, {"a": "A"}, n_up=1, batch_size=0, genes=["A", "B"])
    with pytest.raises(Img2GeneError, match="(?s)3 problems.*expected a dict.*genes=5.*min_genes=0"):
        match_gene_sets([1], 5, min_genes=0)


@pytest.mark.parametrize("method", ["mean", None, "", ["aucell"], object()])
def test_a_stored_method_that_does_not_exist_is_named(method):
    with pytest.raises(Img2GeneError, match="method=.*expected one of aucell, ssgsea, zscore"):
        score_spots(method, COUNTS, COUNTS, {"a": [0, 1]})


def test_one_gene_has_no_ranks():
    with pytest.raises(Img2GeneError, match="counts have 1 gene: ranks need two or more"):
        aucell(np.ones((2, 1)), {"a": [0]})


def test_no_spots_give_no_scores():
    for function in (aucell, ssgsea, zscore):
        assert function(np.zeros((0, 4)), {"a": [0]}).shape == (0, 1)
    with pytest.raises(Img2GeneError, match="labels have no spots"):
        rank_genes(np.zeros((0, 4)), [], np.zeros((0, 2)))
