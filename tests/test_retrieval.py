"""Retrieval: exact against brute force, whatever the blocks; exclusions; averages by hand; what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from img2gene._errors import Img2GeneError
from img2gene.models import reference_bank
from img2gene.models.reference_bank import Neighbors, ReferenceBank, neighbor_weights, unit_rows


def bank(n=60, d=5, n_genes=3, seed=0):
    rng = np.random.default_rng(seed)
    keys = unit_rows(rng.normal(size=(n, d)))
    sections = np.array([f"S{i % 4}" for i in range(n)])
    groups = np.array([f"P{i % 4 // 2}" for i in range(n)])
    values = rng.normal(size=(n, n_genes)).astype(np.float32)
    return ReferenceBank(keys, values, sections, groups, rng.uniform(size=(n, 2)).astype(np.float32))


def queries(n=17, d=5, seed=1):
    return np.random.default_rng(seed).normal(size=(n, d))


@settings(deadline=None, max_examples=25)
@given(n_queries=st.integers(1, 9), n_keys=st.integers(3, 70), k=st.integers(1, 3), block=st.integers(1, 30))
def test_the_nearest_are_those_of_brute_force_whatever_the_blocks(n_queries, n_keys, k, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_bank, "_QUERIES", block)
        patch.setattr(reference_bank, "_REFERENCES", block)
        references, asked = bank(n_keys), queries(n_queries)
        found = references.nearest(asked, k)
    cosines = unit_rows(asked) @ references.keys.T
    expected = np.argsort(-cosines, axis=1)[:, :k]
    np.testing.assert_array_equal(found.rows, expected)
    np.testing.assert_allclose(found.similarity, np.take_along_axis(cosines, expected, axis=1), rtol=1e-5, atol=1e-6)


def test_the_length_of_a_query_does_not_matter():
    references, asked = bank(), queries()
    np.testing.assert_array_equal(references.nearest(100 * asked, 4).rows, references.nearest(asked, 4).rows)


@pytest.mark.parametrize("by", ["group", "section"])
def test_exclusions_are_those_of_a_bank_without_them(by):
    references, asked = bank(), queries()
    labels = getattr(references, f"{by}s")
    barred = np.array([labels[i % 8] for i in range(len(asked))])
    found = references.nearest(asked, 5, excluded=barred, by=by)
    for row, name in enumerate(barred):
        kept = np.flatnonzero(labels != name)
        alone = references.take(kept).nearest(asked[[row]], 5)
        np.testing.assert_array_equal(found.rows[row], kept[alone.rows[0]])


def test_what_the_bank_does_not_hold_excludes_nothing():
    references, asked = bank(), queries()
    free = references.nearest(asked, 5, excluded=np.array(["", "new patient"] * 8 + [""]))
    np.testing.assert_array_equal(free.rows, references.nearest(asked, 5).rows)


def test_a_spot_of_the_bank_finds_itself_unless_its_own_are_excluded():
    references = bank()
    rows = np.arange(10)
    sections = references.sections[rows]
    assert references.own(sections, "none") is None
    np.testing.assert_array_equal(references.nearest(references.keys[rows], 1).rows[:, 0], rows)
    for by in ("section", "group"):
        found = references.nearest(references.keys[rows], 6, excluded=references.own(sections, by), by=by)
        labels = getattr(references, f"{by}s")
        assert not (labels[found.rows] == labels[rows, None]).any()


def test_averages_by_hand():
    values = np.array([[1.0, 10], [2, 20], [6, 60]], dtype=np.float32)
    names = np.array(["a"] * 3)
    references = ReferenceBank(np.eye(3, dtype=np.float32), values, names, names, np.zeros((3, 2), dtype=np.float32))
    found = Neighbors(np.array([[0, 2]]), np.array([[0.75, 0.25]], dtype=np.float32))
    np.testing.assert_allclose(references.average(found), [[3.5, 35]])
    np.testing.assert_allclose(references.average(found, "similarity"), [[0.75 * 1 + 0.25 * 6, 22.5]])


def test_weights_never_are_negative_and_sum_to_one():
    similarity = np.array([[0.5, -0.5], [-0.2, -0.4]], dtype=np.float32)
    np.testing.assert_array_equal(neighbor_weights(similarity, "similarity"), [[1, 0], [0.5, 0.5]])
    np.testing.assert_array_equal(neighbor_weights(similarity, "uniform"), np.full((2, 2), 0.5))


def test_many_queries_are_averaged_like_few(monkeypatch):
    references, asked = bank(), queries(40)
    found = references.nearest(asked, 7)
    whole = references.average(found, "similarity")
    monkeypatch.setattr(reference_bank, "_AVERAGED", 3)
    np.testing.assert_array_equal(references.average(found, "similarity"), whole)
    np.testing.assert_allclose(references.average(found), references.values[found.rows].mean(axis=1), rtol=1e-5)


def test_a_bank_survives_its_state():
    references = bank()
    names, arrays = references.state()
    again = ReferenceBank.from_state(names, arrays)
    assert set(arrays) == set(ReferenceBank.shapes)
    for name in ("keys", "values", "sections", "groups", "positions"):
        np.testing.assert_array_equal(getattr(again, name), getattr(references, name))


def test_a_bank_that_is_too_small_is_refused():
    references = bank(6)
    with pytest.raises(Img2GeneError, match=r"k=7: the bank has 6 reference spots\. Lower `k`"):
        references.nearest(queries(), 7)
    with pytest.raises(Img2GeneError, match="k=1: the bank has no reference spots"):
        references.take(np.zeros(6, dtype=bool)).nearest(queries(), 1)
    with pytest.raises(Img2GeneError, match="expected at least 1"):
        references.nearest(queries(), 0)
    with pytest.raises(
        Img2GeneError, match=r"Without the group P0 the bank has 2 reference spots.*groups in it: P0, P1"
    ):
        references.nearest(queries(1), 3, excluded=np.array(["P0"]))
    with pytest.raises(Img2GeneError, match="Without the group a the bank has no reference spots"):
        one = np.array(["a"] * 3)
        ReferenceBank(references.keys[:3], references.values[:3], one, one, references.positions[:3]).nearest(
            queries(1), 1, excluded=np.array(["a"])
        )
    with pytest.raises(Img2GeneError, match="2 exclusions for 17 queries"):
        references.nearest(queries(), 1, excluded=np.array(["P0", "P1"]))
    with pytest.raises(Img2GeneError, match="weighting='rank': choose one of uniform, similarity"):
        neighbor_weights(np.ones((1, 1)), "rank")


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        (np.where(np.arange(17)[:, None] < 2, np.nan, 1.0) * np.ones(5), {}, "2 of 17 queries are NaN or infinite"),
        (np.ones((3, 4)), {}, r"Queries have shape \(3, 4\); the bank takes \(n_queries, 5\)"),
        (np.ones(5), {}, r"Queries have shape \(5,\)"),
        (np.ones((1, 5)), {"excluded": ["P0"], "by": "patient"}, "by='patient': choose one of group, section"),
        (np.ones((1, 5)), {"k": 1.5}, "k=1.5: expected at least 1, a whole number"),
    ],
)
def test_what_cannot_be_looked_up_is_refused(asked, options, message):
    with pytest.raises(Img2GeneError, match=message):
        bank().nearest(asked, **({"k": 1} | options))


def test_a_kind_that_spots_do_not_have_excludes_nothing_by_mistake():
    with pytest.raises(Img2GeneError, match="by='patient': choose one of none, group, section"):
        bank().own(np.array(["S1"]), "patient")


def test_rows_of_zeros_have_no_direction():
    assert not unit_rows(np.zeros((2, 3))).any()
