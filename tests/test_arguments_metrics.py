"""Metrics refuse what is no array of numbers by name, and take every kind of number."""

import numpy as np
import pandas as pd
import pytest

from img2gene import Img2GeneError, metrics

POSITIONS = np.indices((5, 8)).reshape(2, -1).T.astype(float)
RNG = np.random.default_rng(0)
TRUTH, PREDICTED = RNG.normal(size=(40, 3)), RNG.normal(size=(40, 3))
GRAPH = metrics.neighbor_graph(POSITIONS)
COUNTS = RNG.poisson(5, (40, 12))
BAD = {
    "masked": np.ma.masked_array(np.ones((40, 3)), mask=np.eye(40, 3)),
    "complex": np.ones((40, 3)) * 1j,
    "object": np.full((40, 3), None),
    "text": np.full((40, 3), "a"),
    "ragged": [[1, 2], [3]],
    "nothing": None,
    "number": 3,
    "dictionary": {},
    "huge": [10**400],
    "cube": np.ones((2, 2, 2)),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["pearson", "spearman", "mse", "mae", "nrmse", "bias", "slope"])
def test_what_is_no_matrix_is_refused(name, bad):
    with pytest.raises(Img2GeneError):
        getattr(metrics, name)(BAD[bad], PREDICTED)
    with pytest.raises(Img2GeneError):
        getattr(metrics, name)(TRUTH, BAD[bad])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.pearson(TRUTH, BAD["masked"]), r"predictions: \d+ values are masked; pass `.filled"),
        (lambda: metrics.pearson(TRUTH[:5], PREDICTED), r"\(5, 3\) and predictions \(40, 3\) differ"),
        (lambda: metrics.ssim(TRUTH, PREDICTED, POSITIONS[:7]), "7 positions for 40 spots"),
        (lambda: metrics.ssim(TRUTH, PREDICTED, POSITIONS * np.nan), "NaN or infinite"),
        (lambda: metrics.neighbor_graph(POSITIONS, k="6"), "k='6': expected a whole number"),
        (lambda: metrics.neighbor_graph([1, 2, 3]), "Expected finite positions"),
        (lambda: metrics.morans_i(TRUTH, GRAPH[:5]), r"graph: expected weights \(40, 40\)"),
        (lambda: metrics.r2(TRUTH, PREDICTED, np.ones(7)), r"one value for each gene \(3,\)"),
        (lambda: metrics.mean_interval([1.0, 2.0], level=95), "level=95"),
        (lambda: metrics.mean_interval("zz"), "values: expected an array of real numbers"),
        (lambda: metrics.auroc([True, False], ["a", "b"]), "score: expected an array of real numbers"),
        (lambda: metrics.pooled_pearson("ab", [TRUTH]), "truth: expected a list"),
        (lambda: metrics.spearman_brown(0.5, factor=0), "factor=0"),
        (lambda: metrics.noise_ceiling(-COUNTS), "counts of at least 0"),
        (lambda: metrics.noise_ceiling(COUNTS * 0.5, method="thinning"), "whole numbers can be thinned"),
        (lambda: metrics.noise_ceiling(COUNTS, n_splits=10**9), "n_splits=1000000000"),
        (lambda: metrics.noise_ceiling(COUNTS, method=[]), r"method=\[\]"),
        (lambda: metrics.noise_ceiling(COUNTS, genes=[99]), "columns are 0 to 11"),
        (lambda: metrics.noise_ceiling(COUNTS, library=np.ones(3)), "Counts of 40 spots"),
        (lambda: metrics.noise_ceiling(COUNTS, sections=["a", None] * 20), "20 spots have no name"),
        (lambda: metrics.spatial_correlation_test(TRUTH, PREDICTED, POSITIONS, seed=-1), "seed=-1"),
        (lambda: metrics.spatial_correlation_test(TRUTH, PREDICTED, POSITIONS, ["a"]), r"\(40,\), got shape \(1,\)"),
    ],
)
def test_messages_name_the_culprit(call, message):
    with pytest.raises(Img2GeneError, match=message):
        call()


def test_a_mask_of_genes_is_no_list_of_columns():
    mask = np.zeros(12, dtype=bool)
    mask[[3, 7]] = True
    np.testing.assert_array_equal(
        metrics.noise_ceiling(COUNTS, genes=mask, method="thinning"),
        metrics.noise_ceiling(COUNTS, genes=[3, 7], method="thinning"),
    )


@pytest.mark.parametrize("kind", [np.float16, np.uint8, np.int64, bool])
def test_counts_of_every_type_give_the_same_ceiling(kind):
    counts = (COUNTS > 4).astype(kind) if kind is bool else COUNTS.astype(kind)
    reference = (COUNTS > 4).astype(float) if kind is bool else COUNTS.astype(float)
    ceiling = metrics.noise_ceiling(counts, method="thinning", n_splits=np.int64(2), seed=np.uint8(1))
    np.testing.assert_allclose(ceiling, metrics.noise_ceiling(reference, method="thinning", n_splits=2, seed=1))


def test_missing_and_infinite_values_are_undefined_and_never_0():
    for value in (np.nan, np.inf):
        broken = PREDICTED.copy()
        broken[0, 1] = value
        for name in ("pearson", "ssim", "r2"):
            extra = {"ssim": (POSITIONS,), "r2": (0.0,)}.get(name, ())
            scores = getattr(metrics, name)(TRUTH, broken, *extra)
            assert not np.isfinite(scores[1]) or name == "ssim"
            assert scores[1] != 0


def test_frames_lists_and_numpy_scalars_are_numbers():
    expected = metrics.pearson(TRUTH, PREDICTED)
    np.testing.assert_array_equal(metrics.pearson(pd.DataFrame(TRUTH), PREDICTED.tolist()), expected)
    assert metrics.mean_interval(pd.Series([1.0, 2.0, 3.0]), level=np.float32(0.5))[0] == 2
    assert metrics.neighbor_graph(POSITIONS, k=np.int64(2)).nnz == 80
