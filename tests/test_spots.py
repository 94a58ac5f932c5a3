"""Batches of spots: neighbours by hand, offsets in µm, and every spot once an epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from img2gene._errors import Img2GeneError
from img2gene.models.networks.batches import compact_parts, gather, split_sections, training_chunks


def one_section(positions, k=2, pad=False):
    positions = np.asarray(positions, dtype=float)
    (section,) = split_sections(np.array(["a"] * len(positions)), positions, k, pad=pad)
    return section


def lattice(side, pitch=100.0):
    return pitch * np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).reshape(-1, 2)


def cloud(n, seed=0):
    return np.random.default_rng(seed).uniform(0, 1000, size=(n, 2))


def test_neighbours_of_a_line_by_hand():
    section = one_section([[0, 0], [0, 10], [0, 30], [0, 70]])
    assert section.neighbors.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert section.offsets(np.array([2, 0])).tolist() == [[[0, -20], [0, -30]], [[0, 10], [0, 30]]]


def test_sections_are_apart_and_keep_their_order_and_rows():
    names = np.array(["z", "a", "z", "a", "z"])
    positions = np.array([[0, 0], [0, 1], [0, 10], [0, 2], [0, 30]], dtype=float)
    z, a = split_sections(names, positions, 1, pad=False)
    assert (z.name, a.name) == ("z", "a")
    assert (z.rows.tolist(), a.rows.tolist()) == ([0, 2, 4], [1, 3])
    assert z.neighbors.ravel().tolist() == [1, 0, 1]
    assert a.neighbors.ravel().tolist() == [1, 0]


@pytest.mark.parametrize("k", [1, 3, 6])
def test_neighbours_equal_all_distances_sorted(k):
    positions = cloud(40)
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    expected = np.argsort(distances, axis=1)[:, 1 : k + 1]
    np.testing.assert_array_equal(one_section(positions, k).neighbors, expected)


def test_offsets_are_in_microns_far_from_the_origin():
    near, far = one_section(cloud(30), 3), one_section(cloud(30) + 1e7, 3)
    np.testing.assert_array_equal(far.neighbors, near.neighbors)
    np.testing.assert_allclose(far.offsets(np.arange(30)), near.offsets(np.arange(30)), atol=1e-2)
    assert near.offsets(np.arange(30)).dtype == np.float32


@pytest.mark.parametrize("positions", [lattice(6), cloud(36), 55.3 * lattice(6) + 0.123])
def test_neighbours_do_not_depend_on_the_order_of_spots(positions):
    order = np.random.default_rng(1).permutation(len(positions))
    one, two = one_section(positions, 6), one_section(positions[order], 6)
    # by where they lie: what ties in distance is chosen by place
    found = positions[order][two.neighbors]
    np.testing.assert_array_equal(found, positions[one.neighbors][order])


def test_a_spot_is_no_neighbour_of_itself_even_where_spots_coincide():
    positions = np.repeat([[0.0, 0.0], [50.0, 0.0]], 5, axis=0)
    section = one_section(positions, 3)
    assert (section.neighbors != np.arange(10)[:, None]).all()
    assert not section.offsets(np.arange(10)).any()
    assert all(len(set(row)) == 3 for row in section.neighbors.tolist())


def test_padding_repeats_the_neighbours_there_are():
    section = one_section([[0, 0], [0, 1], [0, 3]], k=5, pad=True)
    assert section.neighbors.tolist() == [[1, 2, 1, 2, 1], [0, 2, 0, 2, 0], [1, 0, 1, 0, 1]]


def test_small_sections_are_named_with_their_sizes():
    names = np.array(["alone"] + ["few"] * 3 + ["many"] * 9 + ["other"] * 6)
    with pytest.raises(
        Img2GeneError, match=r"(?s)2 problems.*alone have a single spot.*n_neighbors=6: sections few \(3\), other \(6\)"
    ):
        split_sections(names, cloud(19), 6, pad=False)
    # what one has to predict may be small, but not a single spot
    assert len(split_sections(names[1:], cloud(18), 6, pad=True)) == 3
    with pytest.raises(Img2GeneError, match="alone have a single spot"):
        split_sections(names, cloud(19), 6, pad=True)


def test_a_batch_holds_what_its_spots_look_at():
    section = split_sections(np.array(["b"] * 3 + ["a"] * 12), np.vstack([cloud(3), cloud(12, 1)]), 2, pad=False)[1]
    features = np.arange(30, dtype=np.float32).reshape(15, 2)
    tokens = np.arange(60, dtype=np.float16).reshape(15, 2, 2)
    spots, anchors = np.array([7, 2]), np.array([0, 2, 11])
    batch = gather(section, spots, anchors, features, tokens)
    seen = batch.features.numpy()
    np.testing.assert_array_equal(seen[batch.own], features[3:][spots])
    np.testing.assert_array_equal(seen[batch.around], features[3:][section.neighbors[spots]])
    np.testing.assert_array_equal(seen[batch.anchors], features[3:][anchors])
    np.testing.assert_array_equal(batch.tokens.numpy(), tokens[3:][spots].astype(np.float32))
    np.testing.assert_array_equal(batch.offsets.numpy(), section.offsets(spots))
    assert len(np.unique(seen, axis=0)) == len(seen)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 80), size=st.integers(1, 20), seed=st.integers(0, 99), distinct=st.booleans())
def test_parts_are_a_partition_into_small_parts(n, size, seed, distinct):
    positions = cloud(n, seed) if distinct else np.zeros((n, 2))
    parts = compact_parts(positions, size, np.random.default_rng(seed))
    assert sorted(np.concatenate(parts)) == list(range(n))
    assert all(1 <= len(part) <= size for part in parts)


def test_parts_lie_together():
    positions = cloud(400)
    parts = compact_parts(positions, 16, np.random.default_rng(0))
    # 16 of 400 spots on a square millimetre: a square with sides of 200 µm, elongated by cuts off the middle
    assert np.median([np.ptp(positions[part], axis=0).max() for part in parts]) < 400


def epoch(sections, number, batch_size=8, n_anchors=5):
    rng = np.random.default_rng([0, number])
    return [
        (section.name, spots.tolist(), anchors.tolist())
        for section, spots, anchors in training_chunks(sections, batch_size, n_anchors, rng)
    ]


def test_an_epoch_has_every_spot_once_and_is_reproducible():
    names = np.array(["a"] * 50 + ["b"] * 3)
    sections = split_sections(names, cloud(53), 2, pad=False)
    first = epoch(sections, 0)
    for section in sections:
        spots = [spot for name, chunk, _ in first if name == section.name for spot in chunk]
        assert sorted(spots) == list(range(len(section.rows)))
    assert [len(chunk) for name, chunk, _ in first if name == "b"] == [3]
    assert {len(chunk) for name, chunk, _ in first if name == "a"} <= {8, 9}
    assert all(len(set(anchors)) == (3 if name == "b" else 5) for name, _, anchors in first)
    assert epoch(sections, 0) == first
    assert epoch(sections, 1) != first
