"""Scores against independent implementations, and what must not change them."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from img2gene._errors import Img2GeneError
from img2gene.metrics import (
    gene_correlation,
    mae,
    morans_i,
    mse,
    neighbor_graph,
    pearson,
    r2,
    spatial_correlation_test,
    spearman,
    structure_score,
)

COUNTS = arrays(np.float64, (8, 3), elements=st.integers(0, 6).map(float))


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    truth = rng.poisson(2, (40, 7)).astype(float)
    return truth, truth + rng.normal(size=truth.shape)


def test_correlations_equal_scipy(pair):
    truth, predicted = pair
    genes = range(truth.shape[1])
    np.testing.assert_allclose(
        pearson(truth, predicted), [stats.pearsonr(truth[:, g], predicted[:, g]).statistic for g in genes]
    )
    np.testing.assert_allclose(
        spearman(truth, predicted), [stats.spearmanr(truth[:, g], predicted[:, g]).statistic for g in genes]
    )


def test_errors_equal_scikit_learn(pair):
    truth, predicted = pair
    np.testing.assert_allclose(mse(truth, predicted), mean_squared_error(truth, predicted, multioutput="raw_values"))
    np.testing.assert_allclose(mae(truth, predicted), mean_absolute_error(truth, predicted, multioutput="raw_values"))
    np.testing.assert_allclose(
        r2(truth, predicted, truth.mean(axis=0)), r2_score(truth, predicted, multioutput="raw_values")
    )


def test_r2_against_a_reference_that_is_not_the_mean_of_the_labels():
    # Σ(y − ŷ)² = 1 + 1 = 2; Σ(y − 3)² = 4 + 1 + 0 = 5
    np.testing.assert_allclose(r2(np.array([1.0, 2, 3]), np.array([2.0, 2, 2]), 3.0), [1 - 2 / 5])
    reference = np.array([3.0, -1.0])
    truth = np.array([[1.0, 2], [2, 0], [3, 5]])
    np.testing.assert_allclose(r2(truth, np.broadcast_to(reference, truth.shape), reference), [0, 0])


def test_constants_have_no_correlation_and_are_nan():
    varies = np.arange(5.0)
    truth = np.column_stack([varies, np.full(5, 3.1), varies, np.full(5, 0.1)])
    predicted = np.column_stack([np.full(5, 0.7), varies, varies, np.full(5, 0.3)])
    for score in (pearson, spearman):
        np.testing.assert_allclose(score(truth, predicted), [np.nan, np.nan, 1, np.nan])
    assert np.isnan(r2(np.full(4, 2.0), np.arange(4.0), 2.0)).all()


def test_rounding_error_of_a_constant_does_not_count_as_variation():
    constant = np.full(50, 0.1, dtype=np.float32) + np.float32(1e-9) * np.arange(50, dtype=np.float32)
    assert np.isnan(pearson(np.arange(50.0), constant)).all()


def test_nan_stays_in_its_own_gene(pair):
    truth, predicted = (values.copy() for values in pair)
    predicted[3, 2] = np.nan
    for score in (pearson, spearman, mse, mae):
        found = score(truth, predicted)
        assert np.isnan(found).tolist() == [False, False, True, False, False, False, False]
        others = np.delete(np.arange(7), 2)
        np.testing.assert_allclose(found[others], score(truth[:, others], predicted[:, others]))


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_spots_have_no_correlation(n):
    for score in (pearson, spearman):
        assert np.isnan(score(np.ones((n, 4)), np.ones((n, 4)))).tolist() == [True] * 4


def test_without_spots_every_error_is_nan():
    empty = np.empty((0, 2))
    for found in (mse(empty, empty), mae(empty, empty), r2(empty, empty, 0.0)):
        assert np.isnan(found).tolist() == [True, True]


def test_sparse_matrices_are_refused_by_name():
    dense = np.eye(4)
    matrix, places = sp.csr_matrix(dense), np.arange(8.0).reshape(4, 2)
    for call in (
        lambda: pearson(matrix, dense),
        lambda: mse(dense, matrix),
        lambda: morans_i(matrix, neighbor_graph(places, 2)),
        lambda: gene_correlation(matrix),
        lambda: structure_score(dense, matrix),
        lambda: spatial_correlation_test(matrix, dense, places),
    ):
        with pytest.raises(Img2GeneError, match=r"no sparse matrices.*\.toarray\(\)"):
            call()


def test_shapes_have_to_agree():
    with pytest.raises(Img2GeneError, match=r"Expression \(4, 2\) and predictions \(4, 3\) differ in shape"):
        pearson(np.ones((4, 2)), np.ones((4, 3)))
    with pytest.raises(Img2GeneError, match="got 3 dimensions"):
        mse(np.ones((4, 2, 1)), np.ones((4, 2, 1)))


@given(COUNTS, COUNTS, st.permutations(range(8)), st.floats(0.1, 50), st.floats(-50, 50))
@settings(deadline=None)
def test_order_of_spots_and_affine_scales_leave_correlations(truth, predicted, order, factor, shift):
    expected = pearson(truth, predicted)
    np.testing.assert_allclose(pearson(truth[order], predicted[order]), expected, atol=1e-9)
    np.testing.assert_allclose(pearson(truth, factor * predicted + shift), expected, atol=1e-6)
    np.testing.assert_allclose(pearson(truth, -predicted), -expected, atol=1e-9)
    np.testing.assert_allclose(pearson(predicted, truth), expected, atol=1e-9)
    ranks = spearman(truth, predicted)
    np.testing.assert_allclose(spearman(truth[order], np.exp(predicted[order])), ranks, atol=1e-9)


@given(COUNTS, COUNTS, st.permutations(range(8)))
@settings(deadline=None)
def test_errors_are_symmetric_and_bounded(truth, predicted, order):
    np.testing.assert_allclose(mse(truth[order], predicted[order]), mse(predicted, truth), atol=1e-12)
    np.testing.assert_allclose(mae(truth[order], predicted[order]), mae(predicted, truth), atol=1e-12)
    assert (mae(truth, predicted) ** 2 <= mse(truth, predicted) + 1e-12).all()


def test_neighbor_graph_of_a_line_by_hand():
    graph = neighbor_graph(np.column_stack([[0.0, 1, 3, 10], np.zeros(4)]), k=2).toarray()
    np.testing.assert_allclose(graph, [[0, 0.5, 0.5, 0], [0.5, 0, 0.5, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0]])


@given(arrays(np.float64, (9, 2), elements=st.integers(0, 3).map(float)), st.integers(1, 12))
@settings(deadline=None)
def test_no_spot_is_its_own_neighbour_even_where_spots_coincide(positions, k):
    graph = neighbor_graph(positions, k)
    assert (graph.diagonal() == 0).all()
    np.testing.assert_allclose(graph.sum(axis=1), 1)
    assert (graph.getnnz(axis=1) == min(k, 8)).all()


def test_a_single_spot_has_no_neighbours():
    assert neighbor_graph(np.zeros((1, 2))).nnz == 0
    assert np.isnan(morans_i(np.ones((1, 3)), neighbor_graph(np.zeros((1, 2))))).all()


def test_moran_of_a_line_by_hand():
    # z = (−1.5, −.5, .5, 1.5), Σz² = 5; neighbours of a chain: Σ w z z = 2(.75 − .25 + .75) = 2.5; Σ w = 6
    chain = sp.csr_matrix(np.eye(4, k=1) + np.eye(4, k=-1))
    np.testing.assert_allclose(morans_i(np.arange(4.0)[:, None], chain), [4 / 6 * 2.5 / 5])


def test_moran_equals_squidpy_on_the_same_graph(make_section):
    squidpy = pytest.importorskip("squidpy")
    adata = make_section("S1", "P1")["table"].copy()
    adata.X = adata.X.toarray()
    adata.obsp["spatial_connectivities"] = neighbor_graph(adata.obsm["spatial"])
    found = squidpy.gr.spatial_autocorr(adata, mode="moran", copy=True, n_perms=None, transformation=False)
    expected = found["I"].reindex(adata.var_names).to_numpy()
    np.testing.assert_allclose(morans_i(adata.X, adata.obsp["spatial_connectivities"]), expected, rtol=1e-5)


def test_moran_tells_smooth_genes_from_noise_and_constants():
    rng = np.random.default_rng(0)
    positions = np.stack(np.meshgrid(np.arange(15.0), np.arange(15.0)), axis=-1).reshape(-1, 2)
    values = np.column_stack([positions[:, 0], rng.normal(size=225), np.full(225, 0.1)])
    smooth, noisy, constant = morans_i(values, neighbor_graph(positions))
    assert smooth > 0.9
    assert abs(noisy) < 0.15
    assert np.isnan(constant)


def test_every_metric_of_the_catalog_prefers_the_better_prediction():
    from img2gene.metrics.catalog import ARGUMENTS, CATALOG, METRICS, goodness
    from img2gene.metrics.moments import Moments
    from img2gene.metrics.regression import ranks

    rng = np.random.default_rng(0)
    positions = np.indices((12, 12)).reshape(2, -1).T.astype(float)
    truth = np.sin(positions / 3).sum(axis=1)[:, None] + 0.1 * rng.normal(size=(144, 8))

    def scores(noise):
        sd = noise * rng.uniform(0.2, 2, truth.shape)
        predicted = truth + sd * rng.normal(size=truth.shape) + noise / 2
        values = {"truth": truth, "predicted": predicted, "mean": truth.mean(axis=0), "positions": positions}
        values |= {"graph": neighbor_graph(positions), "moments": Moments.of(truth, predicted)}
        values |= {"truth_ranks": ranks(truth), "predicted_ranks": ranks(predicted)}
        values |= {"lower": predicted - noise, "upper": predicted + noise, "sd": sd if noise < 1 else sd[::-1]}
        return {m.name: m.function(*(values[name] for name in ARGUMENTS[m.needs])) for m in CATALOG.values()}

    good, bad = scores(0.1), scores(2.0)
    assert tuple(good) == METRICS
    for name in METRICS:
        assert good[name].shape == (8,)
        if name != "coverage":
            assert goodness(pd.Series(good[name]), name, None).min() > goodness(pd.Series(bad[name]), name, None).max()
    levels = pd.Series([0.5, 0.9, 0.95])
    assert goodness(levels, "coverage", 0.9).idxmax() == 1
    assert goodness(levels, "coverage", None).equals(levels)
