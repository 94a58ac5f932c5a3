"""Maps of expression: by scikit-image on full rectangles, by hand elsewhere."""

import numpy as np
import pytest
from scipy import stats
from skimage.metrics import structural_similarity

from img2gene._errors import Img2GeneError
from img2gene.metrics import moran_agreement, morans_i, neighbor_graph, rasterize, ssim


def square(rows, columns):
    return np.indices((rows, columns)).reshape(2, -1).T.astype(float)


def hexagonal(rows, columns):
    places = square(rows, columns)
    places[:, 1] += places[:, 0] % 2 / 2
    places[:, 0] *= np.sqrt(3) / 2
    return places


@pytest.fixture(scope="module")
def maps():
    """Smooth and noisy maps of six genes on 12 × 17 spots, and their positions."""
    rng = np.random.default_rng(0)
    positions = square(12, 17)
    waves = np.sin(positions @ rng.normal(scale=0.3, size=(2, 6)))
    return waves + rng.normal(scale=0.3, size=waves.shape), 0.7 * waves, positions


def reference(truth, predicted, shape, **options):
    found = []
    for y, p in zip(truth.T, predicted.T, strict=True):
        extent = max(y.max(), p.max()) - min(y.min(), p.min())
        found.append(structural_similarity(y.reshape(shape), p.reshape(shape), data_range=extent, **options))
    return found


def test_ssim_of_a_full_rectangle_equals_scikit_image(maps):
    truth, predicted, positions = maps
    np.testing.assert_allclose(ssim(truth, predicted, positions), reference(truth, predicted, (12, 17)), rtol=1e-10)


def test_units_place_and_order_of_spots_leave_ssim(maps):
    truth, predicted, positions = maps
    expected = ssim(truth, predicted, positions)
    order = np.random.default_rng(1).permutation(len(positions))
    found = ssim(truth[order], predicted[order], 29.3 * positions[order] - 1234.5)
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(ssim(predicted, truth, positions), expected)
    np.testing.assert_allclose(ssim(5 * truth, 5 * predicted, positions), expected)


def test_spots_that_lie_a_little_off_the_lattice_are_on_it(maps):
    truth, predicted, positions = maps
    moved = positions + np.random.default_rng(2).uniform(-0.08, 0.08, positions.shape)
    np.testing.assert_allclose(ssim(truth, predicted, moved), ssim(truth, predicted, positions))


def test_ssim_knows_equal_inverted_and_constant_maps(maps):
    truth, _, positions = maps
    np.testing.assert_allclose(ssim(truth, truth, positions), 1)
    # around a level, as the signs of two opposite means would cancel the sign of the covariance
    assert (ssim(5 + truth, 5 - truth, positions) < -0.3).all()
    constant = np.broadcast_to(truth.mean(axis=0), truth.shape)
    assert (np.abs(ssim(truth, constant, positions)) < 0.2).all()
    assert np.isnan(ssim(constant, truth, positions)).all()


def test_only_tissue_counts(maps):
    truth, predicted, positions = maps
    hole = (np.abs(positions - [6, 8]).max(axis=1) <= 1) | (positions.sum(axis=1) < 4)
    found = ssim(truth[~hole], predicted[~hole], positions[~hole])
    expected = []
    y, p, tissue = (values.reshape(12, 17, -1) for values in (truth, predicted, ~hole))
    for gene in range(truth.shape[1]):
        inside = np.concatenate([truth[~hole, gene], predicted[~hole, gene]])
        c1, c2 = (0.01 * np.ptp(inside)) ** 2, (0.03 * np.ptp(inside)) ** 2
        windows = []
        for i in range(12 - 6):
            for j in range(17 - 6):
                there = tissue[i : i + 7, j : j + 7, 0]
                a, b = (values[i : i + 7, j : j + 7, gene][there] for values in (y, p))
                if there.sum() < 24.5:
                    continue
                cov = np.cov(a, b)
                score = (2 * a.mean() * b.mean() + c1) * (2 * cov[0, 1] + c2)
                windows.append(score / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)))
        expected.append(np.mean(windows))
    np.testing.assert_allclose(found, expected)


def test_tissue_without_a_window_has_no_ssim():
    strip = square(6, 40)
    sparse = square(20, 20)
    sparse = sparse[(sparse[:, 0] < 2) | (sparse[:, 1] < 2)]
    for positions in (strip, sparse, square(1, 1), np.empty((0, 2))):
        values = np.random.default_rng(3).normal(size=(len(positions), 3))
        assert np.isnan(ssim(values, values, positions)).tolist() == [True] * 3


def test_nan_stays_in_its_own_gene(maps):
    truth, predicted, positions = (values.copy() for values in maps)
    predicted[0, 2] = np.nan
    expected = ssim(*maps[:2], positions)
    expected[2] = np.nan
    np.testing.assert_array_equal(ssim(truth, predicted, positions), expected)


def test_maps_hold_every_spot_once():
    kept = np.delete(np.random.default_rng(5).permutation(20), [3, 7])
    positions = square(4, 5)[kept]
    found = rasterize(np.arange(18.0), 55.0 * positions)
    assert found.shape == (4, 5, 1)
    assert np.isfinite(found).sum() == 18
    np.testing.assert_array_equal(found[(*positions.astype(int).T, 0)], np.arange(18))


def test_rows_of_a_hexagonal_lattice_stay_rows():
    positions = hexagonal(40, 30)
    found = rasterize(np.column_stack([positions[:, 0], positions[:, 1]]), 100 * positions)
    assert found.shape[1] == 30
    # no holes, pixels hold what lies within them, and spots of one lattice row share a row of pixels
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[..., 0], np.broadcast_to(found[:, :1, 0], found.shape[:2]))
    assert np.abs(found[..., 0] - np.arange(len(found))[:, None]).max() < 1
    assert np.abs(found[..., 1] - np.arange(30)).max() <= 0.5


def test_spots_in_one_pixel_are_averaged():
    positions = np.array([[0.0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [0.1, 0]])
    found = rasterize(np.array([[2.0], [1], [1], [1], [1], [1], [6]]), positions)[..., 0]
    np.testing.assert_array_equal(found, [[4, 1, 1], [1, 1, 1]])


def test_ssim_tells_better_from_worse_on_a_round_hexagonal_section():
    rng = np.random.default_rng(4)
    positions = hexagonal(45, 40)
    positions = positions[np.hypot(*(positions - positions.mean(axis=0)).T) < 18]
    truth = np.sin(positions @ rng.normal(scale=0.3, size=(2, 20)))
    scores = [
        ssim(truth, truth + rng.normal(scale=noise, size=truth.shape), positions).mean() for noise in (0.1, 0.3, 1)
    ]
    assert 1 > scores[0] > scores[1] > scores[2] > 0


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (np.ones((4, 3)), r"positions \(n_spots, 2: row, column\), got shape \(4, 3\)"),
        (np.full((4, 2), np.nan), "finite positions"),
        (square(1, 3), "3 positions for 4 spots"),
        (np.array([[0.0, 0], [1, 0], [0, 1], [1e6, 1e6]]), "positions of one section"),
    ],
)
def test_positions_that_make_no_map_are_refused(positions, message):
    for call in (lambda: rasterize(np.ones(4), positions), lambda: ssim(np.ones(4), np.ones(4), positions)):
        with pytest.raises(Img2GeneError, match=message):
            call()


def test_moran_agreement_compares_genes(maps):
    truth, predicted, positions = maps
    graph = neighbor_graph(positions)
    measured, found = morans_i(truth, graph), morans_i(predicted, graph)
    correlation, difference = moran_agreement(truth, predicted, graph)
    assert correlation == pytest.approx(stats.pearsonr(measured, found).statistic)
    assert difference == pytest.approx((found - measured).mean())
    assert difference > 0
    with_constant = [np.column_stack([values, np.ones(len(values))]) for values in (truth, predicted)]
    assert moran_agreement(*with_constant, graph) == (correlation, difference)


def test_moran_agreement_without_genes_is_nan(maps):
    truth, _, positions = maps
    graph = neighbor_graph(positions)
    assert np.isnan(moran_agreement(truth, np.ones_like(truth), graph)).all()
    correlation, difference = moran_agreement(truth[:, :1], truth[:, :1], graph)
    assert np.isnan(correlation)
    assert difference == 0
