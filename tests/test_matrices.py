"""A sparse matrix may store a value as several entries: their sum is the value, in every function."""

import numpy as np
import pytest
import scipy.sparse as sp

import img2gene as ig
from img2gene._study.expression import count_problems
from img2gene._study.matrices import in_memory, plain
from img2gene.testing import assert_models_equal


def split(matrix, part, dtype=None, kind=sp.csr_matrix):
    """The same matrix, with ``part`` of each value in an entry of its own."""
    whole = sp.coo_matrix(matrix)
    values = np.concatenate([whole.data - part, np.full_like(whole.data, part)])
    rows, columns = np.tile(whole.row, 2), np.tile(whole.col, 2)
    order = np.argsort(rows, kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=whole.shape[0]))])
    split = sp.csr_matrix((values[order].astype(dtype or values.dtype), columns[order], ends), shape=whole.shape)
    assert split.nnz == 2 * whole.nnz
    return kind(split)


FORMS = {
    "whole": {"part": 1},
    "halves": {"part": 0.5},
    "negative": {"part": 1000},
    "csc": {"part": 1, "kind": sp.csc_matrix},
    "array": {"part": 1, "kind": sp.csr_array},
    "integers": {"part": 1, "dtype": np.uint16},
}


@pytest.fixture(scope="module")
def counts():
    return np.random.default_rng(0).poisson(3, size=(20, 8)).astype(np.float32)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_split_entries_are_summed_in_a_copy(counts, form):
    matrix = split(counts, **form)
    stored = matrix.data.copy()
    for read in (in_memory, plain):
        values = read(matrix)
        assert values.has_canonical_format
        assert values.data.max() == counts.max()
        np.testing.assert_array_equal(values.toarray(), counts)
    assert count_problems(matrix, "X") == []
    np.testing.assert_array_equal(matrix.data, stored)


def test_the_sum_of_split_entries_exceeds_their_type():
    matrix = split([[300.0]], 150, np.uint8)
    assert plain(matrix).toarray().item() == in_memory(matrix).toarray().item() == 300


def test_true_faults_of_split_counts_are_still_named(counts):
    assert "negative" in count_problems(split(counts - 2, 1), "X")[0]
    assert "fractions" in count_problems(split(counts + 0.5, 1), "X")[0]


@pytest.mark.parametrize("method", ["genes", "thinning"])
def test_ceilings_do_not_depend_on_split_entries(counts, method):
    sections = np.repeat(["A", "B"], 10)
    whole, other = (
        ig.metrics.noise_ceiling(matrix, method=method, sections=sections, seed=0)
        for matrix in (sp.csr_matrix(counts), split(counts, 0.5))
    )
    assert np.isfinite(whole).any()
    np.testing.assert_array_equal(other, whole)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_training_and_predictability_do_not_depend_on_split_entries(trained_study, copy_of, form):
    other = copy_of(trained_study)
    other["table"].X = split(trained_study["table"].X, **form)
    results = []
    for sdata in (trained_study, other):
        frame = ig.tl.predictability(sdata, n_permutations=19, inplace=False)
        results.append((frame, ig.tl.fit(sdata, "ridge", validate_on=["C"], uncertainty=False, inplace=False)))
    (frame, model), (other_frame, other_model) = results
    np.testing.assert_array_equal(other_frame.select_dtypes("number"), frame.select_dtypes("number"))
    assert_models_equal(model, other_model)
