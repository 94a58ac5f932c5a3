"""Noise ceilings against the truth of synthetic sections, and which genes are called predictable."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.ndimage import gaussian_filter
from scipy.stats import false_discovery_control
from spatialdata import read_zarr

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError, LeakageError, MissingKeyError
from img2gene.datasets import _counts
from img2gene.metrics import noise_ceiling, pearson, spatial_correlation_test, spearman_brown
from img2gene.metrics.reliability import normalise, split_counts

COLUMNS = ["pcc", "pcc_ceiling", "pcc_pvalue", "pcc_fdr", "predictable"]
N_SIDE, N_SECTIONS = 12, 6


@pytest.fixture
def study(trained_study, copy_of):
    """A copy of the study with model and predictions."""
    return copy_of(trained_study)


def smooth_maps(rng, n_maps, length=1.5, n_side=N_SIDE):
    """Maps of unit SD over a square lattice, (n_side², n_maps); white noise for length 0."""
    margin = 4 * int(np.ceil(length)) + 1
    side = n_side + 2 * margin
    maps = gaussian_filter(rng.standard_normal((n_maps, side, side)), (0, length, length))
    maps = maps[:, margin:-margin, margin:-margin].reshape(n_maps, -1).T
    return (maps - maps.mean(axis=0)) / maps.std(axis=0)


def lattice(n_side=N_SIDE):
    return np.column_stack([axis.ravel() for axis in np.indices((n_side, n_side))]).astype(float)


@pytest.fixture(scope="module")
def drawn():
    """Counts of six sections with dropout and overdispersion, drawn as the synthetic cohort draws them, and the truth."""
    rng = np.random.default_rng(3)
    effects = _counts.draw_effects(rng)
    counts, truth = [], []
    for _ in range(N_SECTIONS):
        weight = np.exp(2.5 * smooth_maps(rng, 6))
        hypoxia = 1 / (1 + np.exp(-smooth_maps(rng, 1)[:, 0]))
        rate = _counts.log_rate(effects, weight / weight.sum(axis=1, keepdims=True), hypoxia, 1.0)
        library = 3000 * np.exp(0.35 * rng.standard_normal(len(rate)))
        share = _counts.shares_of(rate)
        counts.append(_counts.draw_counts(rng, library[:, None] * share, effects.dispersion, 0.1))
        truth.append(np.log1p(1e4 * share))
    return sp.vstack(counts).tocsr(), np.vstack(truth), np.repeat(np.arange(N_SECTIONS), N_SIDE**2)


def true_ceiling(counts, truth, sections):
    labels = np.log1p(1e4 * counts.toarray() / counts.sum(axis=1).A1[:, None])
    return np.mean([pearson(labels[sections == s], truth[sections == s]) for s in np.unique(sections)], axis=0)


def test_spearman_brown_by_hand_and_undone_by_half_the_length():
    assert spearman_brown(0.5) == pytest.approx(2 / 3)
    np.testing.assert_allclose(spearman_brown([0.0, 1.0, -0.2]), [0, 1, -0.5])
    np.testing.assert_allclose(spearman_brown(spearman_brown(0.37), 0.5), 0.37)


def test_thinning_keeps_every_molecule_and_halves_them():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(5, (200, 30)).astype(np.float32))
    library = np.asarray(counts.sum(axis=1)).ravel() + 40.0
    (one, size_one), (two, size_two) = split_counts(counts, library, rng)
    np.testing.assert_array_equal((one + two).toarray(), counts.toarray())
    np.testing.assert_array_equal(size_one + size_two, library)
    assert min(one.data.min(), two.data.min()) >= 0
    # 30,000 molecules, so a share of 0.5 ± 0.003
    assert one.sum() / counts.sum() == pytest.approx(0.5, abs=0.015)
    assert ((size_one >= np.asarray(one.sum(axis=1)).ravel()) & (size_two >= np.asarray(two.sum(axis=1)).ravel())).all()


def test_halves_of_poisson_counts_are_independent_given_the_rate():
    rng = np.random.default_rng(1)
    counts = sp.csr_matrix(rng.poisson(4, (20_000, 1)))
    (one, _), (two, _) = split_counts(counts, np.full(20_000, 100.0), rng)
    assert abs(np.corrcoef(one.toarray()[:, 0], two.toarray()[:, 0])[0, 1]) < 5 / np.sqrt(20_000)


def test_ceiling_is_within_003_of_the_truth_on_average_and_for_most_genes(drawn):
    counts, truth, sections = drawn
    ceiling, expected = noise_ceiling(counts, sections=sections), true_ceiling(*drawn)
    assert abs(ceiling.mean() - expected.mean()) < 0.03
    error = np.abs(ceiling - expected)
    assert np.mean(error < 0.03) > 0.75
    assert np.mean(error[expected > 0.3] < 0.03) > 0.9


def test_thinning_sees_neither_lost_counts_nor_overdispersion_and_is_an_upper_bound(drawn):
    counts, _, sections = drawn
    bound, ceiling = (noise_ceiling(counts, sections=sections, method=method) for method in ("thinning", "genes"))
    assert bound.mean() > ceiling.mean() + 0.2
    assert np.mean(bound >= ceiling) > 0.98


def test_thinning_meets_the_truth_of_counts_with_sampling_noise_only():
    rng = np.random.default_rng(2)
    # 576 spots: with 144, the error of the noisiest gene exceeds the bound for about every second seed.
    share = _counts.shares_of(0.6 * smooth_maps(rng, 3, n_side=24)[:, rng.integers(0, 3, 40)] + rng.normal(size=40))
    counts = sp.csr_matrix(rng.poisson(4000 * share))
    expected = true_ceiling(counts, np.log1p(1e4 * share), np.zeros(len(share)))
    assert np.abs(noise_ceiling(counts, method="thinning", n_splits=10) - expected).max() < 0.05
    assert noise_ceiling(counts, method="thinning").mean() == pytest.approx(expected.mean(), abs=0.02)


@pytest.mark.parametrize("method", ["genes", "thinning"])
def test_counts_without_noise_have_a_ceiling_near_1_and_pure_noise_one_near_0(method):
    rng = np.random.default_rng(4)
    maps = smooth_maps(rng, 2)
    share = _counts.shares_of(0.5 * maps[:, np.arange(40) % 2] * rng.choice([-1, 1], 40))
    assert noise_ceiling(np.rint(1e8 * share), method=method).min() > 0.93
    nothing = noise_ceiling(rng.poisson(20, share.shape), method=method)
    assert np.median(nothing) < 0.2


def test_ceiling_ignores_the_order_of_spots_and_the_storage(drawn):
    counts, _, sections = drawn
    genes = np.arange(0, 298, 3)
    expected = noise_ceiling(counts, sections=sections, genes=genes)
    order = np.random.default_rng(0).permutation(counts.shape[0])
    np.testing.assert_allclose(noise_ceiling(counts[order], sections=sections[order], genes=genes), expected, atol=1e-8)
    np.testing.assert_allclose(noise_ceiling(counts.toarray(), sections=sections, genes=genes), expected, atol=1e-8)


def test_own_labels_in_place_of_those_from_counts(drawn):
    counts, _, sections = drawn
    labels = normalise(counts, counts.sum(axis=1).A1)
    expected = noise_ceiling(counts, sections=sections)
    np.testing.assert_allclose(noise_ceiling(counts, sections=sections, labels=3 * labels - 1), expected, atol=1e-8)


def test_genes_and_spots_without_counts(drawn):
    counts, _, sections = drawn
    emptied = counts[:, :60].toarray()
    emptied[:, 5] = 0
    # constant in one section only: the ceiling is that of the others
    emptied[sections == 0, 7] = 0
    for method in ("genes", "thinning"):
        ceiling = noise_ceiling(emptied, sections=sections, method=method)
        assert np.flatnonzero(np.isnan(ceiling)).tolist() == [5]
        elsewhere = noise_ceiling(emptied[sections > 0], sections=sections[sections > 0], method=method)
        assert ceiling[7] == pytest.approx(elsewhere[7], abs=0.06)
        with_empty = np.vstack([emptied, np.zeros((3, 60))])
        padded = noise_ceiling(with_empty, sections=np.r_[sections, 0, 1, 1], method=method)
        np.testing.assert_allclose(padded, ceiling, atol=1e-8)
    assert np.isnan(noise_ceiling(emptied[:, :6])).all()


def test_wrong_arguments_are_named():
    counts = np.ones((10, 9))
    with pytest.raises(Img2GeneError, match="'genes' or 'thinning'"):
        noise_ceiling(counts, method="halves")
    with pytest.raises(Img2GeneError, match="library sizes of 3"):
        noise_ceiling(counts, np.ones(3))
    with pytest.raises(Img2GeneError, match="Only counts can be thinned"):
        noise_ceiling(counts, labels=counts, method="thinning")
    with pytest.raises(Img2GeneError, match="not one per spot and gene"):
        noise_ceiling(counts, labels=counts[:, :2])
    with pytest.raises(Img2GeneError, match="4 positions for 10 spots"):
        spatial_correlation_test(counts, counts, np.ones((4, 2)))


@pytest.mark.parametrize("length", [0, 1.5, 4])
def test_pvalues_of_unrelated_maps_are_calibrated_however_smooth_they_are(length):
    rng = np.random.default_rng(5)
    n = 1500
    truth, predicted = smooth_maps(rng, n, length), smooth_maps(rng, n, 1.5)
    pcc, pvalue = spatial_correlation_test(truth, predicted, lattice())
    np.testing.assert_allclose(pcc, pearson(truth, predicted))
    for level in (0.05, 0.01):
        assert np.mean(pvalue <= level) < level + 3.5 * np.sqrt(level * (1 - level) / n)
    assert 0.02 < np.mean(pvalue <= 0.05)


def test_shuffling_would_have_called_every_fourth_of_them():
    rng = np.random.default_rng(6)
    r = pearson(smooth_maps(rng, 1000, 4), smooth_maps(rng, 1000, 1.5))
    assert np.mean(r * np.sqrt(N_SIDE**2 - 1) > 1.645) > 0.15


def test_pvalues_go_below_one_in_the_number_of_draws():
    rng = np.random.default_rng(7)
    truth = smooth_maps(rng, 3, 0)
    _, pvalue = spatial_correlation_test(truth, truth + 0.3 * rng.normal(size=truth.shape), lattice(), n_permutations=9)
    assert pvalue.max() < 1e-8


def test_pvalues_ignore_the_order_of_spots_and_undefined_sections():
    rng = np.random.default_rng(8)
    positions = rng.uniform(size=(200, 2))
    truth, sections = rng.normal(size=(200, 4)), np.repeat(["a", "b"], 100)
    predicted = truth + 5 * rng.normal(size=truth.shape)
    predicted[:, 3] = 1.0
    predicted[:100, 2] = 1.0
    pcc, pvalue = spatial_correlation_test(truth, predicted, positions, sections)
    assert np.isnan([pcc[3], pvalue[3]]).all()
    alone = spatial_correlation_test(truth[100:, 2:3], predicted[100:, 2:3], positions[100:])
    assert pcc[2] == pytest.approx(alone[0][0])
    assert pvalue[2] == pytest.approx(alone[1][0], abs=0.05)
    order = rng.permutation(200)
    again = spatial_correlation_test(truth[order], predicted[order], positions[order], sections[order])
    np.testing.assert_allclose(again[0], pcc)
    np.testing.assert_allclose(again[1], pvalue, atol=1e-8)


def planted(seed, signal=1.0):
    """Labels of 100 genes that follow the tissue, 60 with smooth maps of their own and 60 without any; predictions."""
    rng = np.random.default_rng(seed)
    truth, predicted = [], []
    loadings = rng.normal(size=(4, 220))
    for _ in range(2):
        tissue = smooth_maps(rng, 4)
        own = np.hstack([smooth_maps(rng, 60, rng.uniform(1, 4)), np.zeros((N_SIDE**2, 60))])
        rate = np.hstack([signal * 0.5 * tissue @ loadings[:, :100], own])
        counts = rng.poisson(5 * np.exp(rate) * rng.gamma(8, 1 / 8, rate.shape))
        truth.append(np.log1p(counts))
        predicted.append((tissue + 0.5 * smooth_maps(rng, 4)) @ loadings)
    q = false_discovery_control(
        spatial_correlation_test(
            np.vstack(truth), np.vstack(predicted), np.tile(lattice(), (2, 1)), np.repeat([0, 1], N_SIDE**2)
        )[1]
    )
    return q[:100] <= 0.05, q[100:] <= 0.05


def test_of_the_genes_called_at_most_one_in_twenty_is_a_planted_null_and_most_others_are_found():
    found = [planted(seed) for seed in range(10)]
    assert np.mean([null.sum() / max(null.sum() + real.sum(), 1) for real, null in found]) <= 0.05
    assert np.mean([real.mean() for real, _ in found]) > 0.85


def test_hardly_any_gene_is_called_where_expression_ignores_the_tissue():
    assert sum(real.sum() + null.sum() for real, null in (planted(seed, signal=0.0) for seed in range(5))) <= 3


def test_columns_are_those_of_the_evaluation_and_of_the_metrics(study):
    result = ig.tl.predictability(study)
    assert list(result.columns) == COLUMNS
    assert list(result.index) == list(study["table"].var_names)
    scores = ig.tl.evaluate(study, inplace=False)
    expected = scores[scores["model"] == "ridge"].set_index("gene")["pcc"]
    np.testing.assert_allclose(result["pcc"], expected[result.index], rtol=1e-6)
    np.testing.assert_allclose(result["pcc_fdr"], false_discovery_control(result["pcc_pvalue"]))
    assert result["predictable"].tolist() == (result["pcc_fdr"] <= 0.05).tolist()
    table = study["table"]
    rows = (table.obs["section"] == "C1").to_numpy()
    ceiling = noise_ceiling(table.X[rows], table.obs["library_size"].to_numpy()[rows])
    np.testing.assert_allclose(result["pcc_ceiling"], ceiling, atol=1e-4)
    assert result["predictable"][["G00", "G01", "G03", "G04"]].all()


def test_written_columns_survive_storage_and_nothing_else_changes(study, snapshot, tmp_path):
    table = study["table"]
    before = snapshot(table)
    result = ig.tl.predictability(study, inplace=False)
    assert snapshot(table) == before
    ig.tl.predictability(study)
    after = snapshot(table)
    changed = {f"var/{name}" for name in COLUMNS} | {"uns"}
    assert {name for name in after if after[name] != before.get(name)} == changed
    table.var.loc["G03", "predictable"] = pd.NA
    study.write(tmp_path / "study.zarr")
    stored = read_zarr(tmp_path / "study.zarr")["table"]
    var = stored.var
    assert _schema.judges(stored, "img2gene") and not _schema.judges(stored, "other")
    assert var["predictable"].dtype == "boolean"
    assert var["predictable"].isna().sum() == 1
    pd.testing.assert_frame_equal(var[COLUMNS[:-1]], result[COLUMNS[:-1]], check_names=False)


def test_genes_that_cannot_be_scored_are_na_and_take_no_part_in_the_fdr(study):
    table = study["table"]
    table.layers["img2gene"][:, 3] = np.nan
    counts = table.X.toarray()
    counts[:, 4] = 0
    table.X = sp.csr_matrix(counts)
    result = ig.tl.predictability(study)
    assert result.index[result["predictable"].isna()].tolist() == ["G03", "G04"]
    assert result["pcc_pvalue"].isna().sum() == 2
    assert np.isfinite(result.loc["G03", "pcc_ceiling"])
    assert np.isnan(result.loc["G04", "pcc_ceiling"])
    assert table.var["predictable"].isna().sum() == 2


def test_a_gene_is_not_called_on_one_patient_alone(shared_study, copy_of):
    sdata = copy_of(shared_study)
    ig.tl.fit(sdata, "ridge", validate_on=["B", "C"])
    ig.tl.predict(sdata)
    assert ig.tl.predictability(sdata, inplace=False)["predictable"]["G00"]
    table = sdata["table"]
    of_c = (table.obs["section"] == "C1").to_numpy()
    labels = np.log1p(1e4 * table.X.toarray() / table.obs["library_size"].to_numpy()[:, None])
    predicted = table.layers["img2gene"].copy()
    predicted[~of_c] = labels[~of_c]
    predicted[of_c] = -0.1 * labels[of_c] + np.random.default_rng(0).normal(size=labels[of_c].shape)
    table.layers["img2gene"] = predicted
    result = ig.tl.predictability(sdata, inplace=False)
    r = pearson(labels[of_c], predicted[of_c])
    significant = (result["pcc_fdr"] <= 0.05).to_numpy()
    assert (significant & (r < 0)).any()
    np.testing.assert_array_equal(result["predictable"].to_numpy(dtype=bool), significant & (r > 0))


def test_labels_of_a_layer_have_a_ceiling_from_the_counts_but_cannot_be_thinned(shared_study, copy_of, caplog):
    sdata = copy_of(shared_study)
    table = sdata["table"]
    table.layers["log"] = np.log1p(table.X.toarray())
    ig.tl.fit(sdata, "ridge", layer="log", validate_on=["C"])
    ig.tl.predict(sdata)
    assert ig.tl.predictability(sdata)["pcc_ceiling"].notna().all()
    with pytest.raises(Img2GeneError, match=r"`layers\['log'\]` are no counts .*method='genes'"):
        ig.tl.predictability(sdata, method="thinning")
    table.X = table.X * 0.3
    result = ig.tl.predictability(sdata)
    assert result["pcc_ceiling"].isna().all()
    assert result["predictable"].notna().all()
    assert "put raw counts in `table.X`" in caplog.text


def test_wrong_requests_leave_the_study_as_it_was(study, snapshot):
    before = snapshot(study["table"])
    with pytest.raises(Img2GeneError, match=r"(?s)3 problems.*method='x'.*n_permutations=0.*fdr=2"):
        ig.tl.predictability(study, method="x", n_permutations=0, fdr=2)
    with pytest.raises(LeakageError, match="A1"):
        ig.tl.predictability(study, sections=["A1"])
    with pytest.raises(MissingKeyError, match=r"img2gene.tl.predict"):
        ig.tl.predictability(study, "img2gene", key="other")
    assert snapshot(study["table"]) == before


def test_plot_has_every_gene_the_diagonal_and_the_share_of_the_ceiling(study):
    import matplotlib.pyplot as plt

    result = ig.tl.predictability(study)
    result.loc["G07", "pcc"] = np.nan
    figure = ig.pl.predictability(result, n_labels=1)
    scatter, histogram = figure.axes
    drawn = np.vstack([points.get_offsets() for points in scatter.collections])
    known = result.dropna()
    np.testing.assert_allclose(np.sort(drawn[:, 1]), np.sort(known["pcc"]))
    assert scatter.get_title() == "11 genes, 1 undefined"
    assert len(scatter.texts) == 2
    called = known[known["predictable"]]
    assert sum(bar.get_height() for bar in histogram.patches) == len(called)
    assert f"{(called['pcc'] / called['pcc_ceiling']).median():.2f}" in histogram.get_title()
    ig.pl.predictability(study["table"].var)
    assert ig.pl.predictability(study).axes[0].get_title() == "12 genes"
    with pytest.raises(MissingKeyError, match=r"pcc_ceiling.*img2gene.tl.predictability"):
        ig.pl.predictability(result.drop(columns="pcc_ceiling"))
    with pytest.raises(Img2GeneError, match="No gene has both"):
        ig.pl.predictability(result.assign(pcc=np.nan))
    plt.close("all")
