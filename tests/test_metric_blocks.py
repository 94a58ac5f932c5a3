"""Metrics of many genes: the same numbers in whatever blocks and threads, and whatever else is scored with a gene."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_squared_error

from img2gene._errors import Img2GeneError
from img2gene.metrics import (
    _blocks,
    bias,
    coverage,
    error_correlation,
    gene_correlation,
    interval_width,
    mae,
    morans_i,
    mse,
    neighbor_graph,
    nrmse,
    pearson,
    pooled_pearson,
    r2,
    slope,
    spearman,
    ssim,
    structure,
    structure_score,
)
from img2gene.metrics.regression import ranks

POSITIONS = np.indices((9, 11)).reshape(2, -1).T.astype(float)
N, G = len(POSITIONS), 23
GRAPH = neighbor_graph(POSITIONS)

SCORES = {
    "pearson": lambda y, p, s: pearson(y, p),
    "spearman": lambda y, p, s: spearman(y, p),
    "ranks": lambda y, p, s: ranks(y),
    "bias": lambda y, p, s: bias(y, p),
    "mse": lambda y, p, s: mse(y, p),
    "mae": lambda y, p, s: mae(y, p),
    "nrmse": lambda y, p, s: nrmse(y, p),
    "slope": lambda y, p, s: slope(y, p),
    "r2": lambda y, p, s: r2(y, p, 0.3),
    "morans_i": lambda y, p, s: morans_i(y, GRAPH),
    "ssim": lambda y, p, s: ssim(y, p, POSITIONS),
    "coverage": lambda y, p, s: coverage(y, p - s, p + s),
    "interval_width": lambda y, p, s: interval_width(p - s, p + s),
    "error_correlation": lambda y, p, s: error_correlation(y, p, s),
    "pooled_pearson": lambda y, p, s: pooled_pearson([y[:40], y[40:]], [p[:40], p[40:]]),
    "gene_correlation": lambda y, p, s: np.nan_to_num(np.diag(gene_correlation(y)), nan=-1),
}


@pytest.fixture(scope="module")
def section():
    """Labels, predictions and deviations; of some genes constant, or partly unknown."""
    rng = np.random.default_rng(0)
    truth = np.log1p(rng.poisson(1, (N, G))).astype(np.float32)
    predicted = (truth + rng.normal(size=truth.shape)).astype(np.float32)
    sd = rng.uniform(0.2, 2, truth.shape).astype(np.float32)
    truth[:, 4], predicted[:, 7], predicted[3, 9], sd[:50, 11], sd[:, 13] = 0, 1.5, np.nan, np.nan, np.nan
    return truth, predicted, sd


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(("genes", "cores"), [(1, 1), (2, 3), (5, 2), (100, 8)])
def test_blocks_and_threads_leave_every_bit(section, monkeypatch, name, genes, cores):
    expected = SCORES[name](*section)
    monkeypatch.setattr(_blocks, "_BLOCK_VALUES", genes * N)
    monkeypatch.setattr(_blocks, "_cores", lambda: cores)
    np.testing.assert_array_equal(SCORES[name](*section), expected)


@pytest.mark.parametrize("name", sorted(set(SCORES) - {"gene_correlation"}))
def test_a_gene_alone_scores_as_among_others_and_nothing_is_changed(section, name):
    before = [values.copy() for values in section]
    expected = SCORES[name](*section)
    alone = [SCORES[name](*(values[:, [gene]] for values in section)) for gene in range(G)]
    np.testing.assert_array_equal(np.concatenate(alone, axis=-1), expected)
    for values, kept in zip(section, before, strict=True):
        np.testing.assert_array_equal(values, kept)


@pytest.mark.parametrize("name", SCORES)
def test_no_genes_have_no_scores(section, name):
    assert SCORES[name](*(values[:, :0] for values in section)).shape[-1] == 0


def test_float32_is_summed_as_float64():
    rng = np.random.default_rng(1)
    values = (1000 + rng.normal(scale=0.01, size=(5000, 2))).astype(np.float32)
    expected = stats.pearsonr(*values.astype(np.float64).T).statistic
    np.testing.assert_allclose(pearson(values[:, 0], values[:, 1]), expected, rtol=1e-9)


def test_ranks_equal_scipy_and_give_spearman(section):
    truth, predicted, _ = section
    expected = stats.rankdata(predicted, axis=0, nan_policy="propagate")
    np.testing.assert_array_equal(ranks(predicted), expected)
    np.testing.assert_array_equal(ranks(truth), stats.rankdata(truth, axis=0))
    order = np.random.default_rng(2).permutation(N)
    np.testing.assert_array_equal(pearson(ranks(truth)[order], ranks(predicted)), spearman(truth[order], predicted))


def test_bias_and_slope_by_hand_and_by_numpy(section):
    truth, predicted = (values[:, :4].astype(np.float64) for values in section[:2])
    np.testing.assert_allclose(bias(np.array([1.0, 2, 6]), np.array([0.0, 2, 4])), -1)
    np.testing.assert_allclose(slope(np.array([1.0, 2, 6]), np.array([0.0, 2, 4])), 1.25)
    np.testing.assert_allclose(bias(truth, predicted), predicted.mean(axis=0) - truth.mean(axis=0))
    fitted = [np.polyfit(one, two, 1)[0] for one, two in zip(predicted.T, truth.T, strict=True)]
    np.testing.assert_allclose(slope(truth, predicted), fitted)
    assert slope(np.full(5, 3.0), np.arange(5.0)) == 0
    assert np.isnan(slope(np.arange(5.0), np.full(5, 0.1))).all()
    assert np.isnan(slope(np.ones(1), np.ones(1))).all()
    assert np.isnan(bias(np.empty((0, 2)), np.empty((0, 2)))).all()


def test_nrmse_by_hand_and_by_scikit_learn(section):
    # errors 1, 0, 2 → √(5/3); labels 1, 2, 6 → SD √14/√3
    np.testing.assert_allclose(nrmse(np.array([1.0, 2, 6]), np.array([0.0, 2, 8])), np.sqrt(5 / 14))
    truth, predicted = (values[:, 14:].astype(np.float64) for values in section[:2])
    expected = np.sqrt(mean_squared_error(truth, predicted, multioutput="raw_values")) / truth.std(axis=0)
    np.testing.assert_allclose(nrmse(truth, predicted), expected)
    np.testing.assert_allclose(nrmse(truth, np.broadcast_to(truth.mean(axis=0), truth.shape)), 1)
    assert np.isnan(nrmse(np.full(5, 0.1), np.arange(5.0))).all()
    assert np.isnan(nrmse(np.empty((0, 2)), np.empty((0, 2)))).all()
    assert np.isfinite(nrmse(np.arange(5.0), np.full(5, 0.1))).all()


def test_pooled_correlation_equals_that_of_the_stacked_sections(section):
    truth, predicted, _ = section
    parts = [slice(0, 7), slice(7, 7), slice(7, 8), slice(8, N)]
    found = pooled_pearson([truth[part] for part in parts], [predicted[part] for part in parts])
    np.testing.assert_allclose(found, pearson(truth, predicted), atol=1e-12)


def test_levels_of_sections_make_a_pooled_correlation_alone():
    rng = np.random.default_rng(3)
    truth = [rng.normal(loc=level, size=(200, 3)) for level in (0, 10)]
    predicted = [np.full((200, 3), level) for level in (0.0, 10.0)]
    assert np.isnan(pearson(truth[0], predicted[0])).all()
    assert (pooled_pearson(truth, predicted) > 0.95).all()


def test_sections_to_pool_have_to_be_pairs_of_the_same_genes():
    ones = np.ones((3, 2))
    with pytest.raises(Img2GeneError, match="Expression of 2 sections and predictions of 1"):
        pooled_pearson([ones, ones], [ones])
    with pytest.raises(Img2GeneError, match="Expression of 0 sections"):
        pooled_pearson([], [])
    with pytest.raises(Img2GeneError, match="differ in their number of genes"):
        pooled_pearson([ones, ones[:, :1]], [ones, ones[:, :1]])


def test_structure_is_scored_alike_in_blocks_of_rows(monkeypatch):
    rng = np.random.default_rng(4)
    one, two = (gene_correlation(rng.normal(size=(30, 12))) for _ in range(2))
    two[3] = two[:, 3] = np.nan
    rows, columns = np.triu_indices(11, k=1)
    kept = np.delete(np.arange(12), 3)
    pairs = [matrix[np.ix_(kept, kept)][rows, columns] for matrix in (one, two)]
    expected = stats.pearsonr(*pairs).statistic, np.sqrt(np.mean((pairs[0] - pairs[1]) ** 2))
    np.testing.assert_allclose(structure_score(one, two), expected)
    monkeypatch.setattr(structure, "_BLOCK_PAIRS", 12)
    np.testing.assert_allclose(structure_score(one, two), expected)
