"""Every metric and every pathway score is the same whatever the order of spots, genes, sections and gene sets."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from img2gene import metrics, pathways
from img2gene._errors import Img2GeneError
from img2gene.metrics.spatial import nearest_spots
from img2gene.models.data import float_array

SIDE, N_GENES = 9, 24
NAMES = np.array([f"G{i:02d}" for i in range(N_GENES)])
SETS = {f"set{i}": NAMES[np.random.default_rng(i).permutation(N_GENES)[: 4 + i]].tolist() for i in range(5)}


@dataclass(frozen=True)
class Spots:
    """Counts, predictions and deviations (n_spots, n_genes) of two sections on square lattices, where distances tie.

    ``rows`` and ``columns`` say which spots and genes these are.
    """

    counts: np.ndarray
    predicted: np.ndarray
    sd: np.ndarray
    features: np.ndarray
    positions: np.ndarray
    sections: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @property
    def truth(self):
        return np.log1p(self.counts)

    @property
    def names(self):
        return NAMES[self.columns]

    @property
    def sets(self):
        return {name: np.flatnonzero(np.isin(self.names, genes)) for name, genes in SETS.items()}

    def one(self, section="b"):
        """The spots of one section."""
        return self.take(np.flatnonzero(self.sections == section), np.arange(len(self.columns)))

    def take(self, rows, columns):
        matrices = {name: getattr(self, name)[rows][:, columns] for name in ("counts", "predicted", "sd")}
        vectors = {name: getattr(self, name)[rows] for name in ("features", "positions", "sections", "rows")}
        return replace(self, **matrices, **vectors, columns=self.columns[columns])

    def shuffled(self, seed):
        rng = np.random.default_rng(seed)
        return self.take(rng.permutation(len(self.rows)), rng.permutation(len(self.columns)))


def draw(seed):
    rng = np.random.default_rng(seed)
    lattice = 100.1 * np.indices((SIDE, SIDE)).reshape(2, -1).T
    n = 2 * len(lattice)
    field = np.sin(lattice / 200).sum(axis=1)[:, None] * rng.normal(size=N_GENES)
    counts = rng.poisson(3 * np.exp(0.5 * np.tile(field, (2, 1)))).astype(np.float64)
    # Two genes with the same values, mirrored: every criterion that ranks genes ties.
    counts[:, 1] = counts.max() - counts[:, 0]
    predicted = np.log1p(counts) + rng.normal(size=counts.shape)
    sd = rng.uniform(0.2, 2, counts.shape)
    features = rng.normal(size=(n, 400))
    features[:, :2] += np.tile(field[:, :2], (2, 1))
    sections = np.repeat(["b", "a"], len(lattice))
    return Spots(counts, predicted, sd, features, np.tile(lattice, (2, 1)), sections, np.arange(n), np.arange(N_GENES))


def inside(spots):
    return spots.counts[:, list(spots.columns).index(3)] > 2


def score(spots):
    return spots.predicted[:, list(spots.columns).index(3)].round(1)


def pooled(spots):
    parts = [spots.one(name) for name in dict.fromkeys(spots.sections)]
    return metrics.pooled_pearson([part.truth for part in parts], [part.predicted for part in parts])


def graph(spots):
    return metrics.neighbor_graph(spots.one().positions)


def ceiling(spots, **options):
    return metrics.noise_ceiling(sp.csr_matrix(spots.counts), sections=spots.sections, **options)


def structure(spots):
    return metrics.structure_score(*(metrics.gene_correlation(values) for values in (spots.truth, spots.predicted)))


def raster(spots):
    """The map with the genes first, whose pixels do not follow the rows."""
    return np.moveaxis(metrics.rasterize(spots.one().truth, spots.one().positions), -1, 0)


def correlation_test(spots):
    # Deviations know nothing of the counts, so that the draws decide on the p-value.
    results = metrics.spatial_correlation_test(
        spots.truth, spots.sd, spots.positions, spots.sections, n_permutations=30, seed=1
    )
    return np.column_stack(results)


def enrichment(spots):
    rng = np.random.default_rng(5)
    values = rng.integers(0, 9, N_GENES).astype(float)[spots.columns]
    names = [list(SETS)[i] for i in np.random.default_rng(spots.rows[0]).permutation(len(SETS))]
    sets = {name: SETS[name][:: 1 if spots.rows[0] else -1] for name in names}
    return pathways.enrich(pd.Series(values, index=spots.names), sets, seed=0, n_permutations=100)


def selection(spots):
    return pathways.select_pathways(enrichment(spots).sample(frac=1, random_state=int(spots.rows[0])), 3)


def ranking(spots):
    return pathways.rank_genes(spots.counts, spots.sections, spots.positions, spots.features)


# Results per gene, per spot, both or neither: their axes are put into the order of the original spots and genes.
GENES, SPOTS, NEITHER = "genes", "spots", "neither"
METRICS = {
    "auprc": (NEITHER, lambda s: metrics.auprc(inside(s), score(s))),
    "auroc": (NEITHER, lambda s: metrics.auroc(inside(s), score(s))),
    "bias": (GENES, lambda s: metrics.bias(s.truth, s.predicted)),
    "coverage": (GENES, lambda s: metrics.coverage(s.truth, s.predicted - s.sd, s.predicted + s.sd)),
    "dice": (NEITHER, lambda s: metrics.dice(inside(s), score(s) > 1)),
    "error_correlation": (GENES, lambda s: metrics.error_correlation(s.truth, s.predicted, s.sd)),
    "gene_correlation": (GENES, lambda s: metrics.gene_correlation(s.truth)[:, np.argsort(s.columns)]),
    "interval_width": (GENES, lambda s: metrics.interval_width(s.predicted - s.sd, s.predicted + s.sd)),
    "mae": (GENES, lambda s: metrics.mae(s.truth, s.predicted)),
    "mean_interval": (NEITHER, lambda s: metrics.mean_interval(s.sd[:, list(s.columns).index(0)])),
    "moran_agreement": (NEITHER, lambda s: metrics.moran_agreement(s.one().truth, s.one().predicted, graph(s))),
    "morans_i": (GENES, lambda s: metrics.morans_i(s.one().truth, graph(s))),
    "mse": (GENES, lambda s: metrics.mse(s.truth, s.predicted)),
    "neighbor_graph": (NEITHER, lambda s: graph(s).toarray()[np.ix_(*[np.argsort(s.one().rows)] * 2)]),
    "noise_ceiling": (GENES, ceiling),
    "noise_ceiling, library": (GENES, lambda s: ceiling(s, library=s.counts.sum(axis=1) + s.positions[:, 0].round())),
    "noise_ceiling, thinning": (GENES, lambda s: ceiling(s, method="thinning")),
    "nrmse": (GENES, lambda s: metrics.nrmse(s.truth, s.predicted)),
    "pearson": (GENES, lambda s: metrics.pearson(s.truth, s.predicted)),
    "pooled_pearson": (GENES, pooled),
    "r2": (GENES, lambda s: metrics.r2(s.truth, s.predicted, 0.3)),
    "rasterize": (GENES, raster),
    "signed_rank_pvalue": (
        NEITHER,
        lambda s: metrics.signed_rank_pvalue((s.truth - s.predicted).mean(axis=0).round(2)),
    ),
    "slope": (GENES, lambda s: metrics.slope(s.truth, s.predicted)),
    "spatial_correlation_test": (GENES, correlation_test),
    "spearman": (GENES, lambda s: metrics.spearman(s.truth, s.predicted)),
    "spearman_brown": (GENES, lambda s: metrics.spearman_brown(metrics.pearson(s.truth, s.predicted))),
    "ssim": (GENES, lambda s: metrics.ssim(s.one().truth, s.one().predicted, s.one().positions)),
    "structure_score": (NEITHER, structure),
}
PATHWAYS = {
    "aucell": (SPOTS, lambda s: pathways.aucell(s.counts, s.sets, genes=s.names, n_up=8)),
    "aucell, sparse": (SPOTS, lambda s: pathways.aucell(sp.csr_matrix(s.counts), s.sets, genes=s.names, n_up=8)),
    "enrich": (NEITHER, enrichment),
    "rank_genes": (GENES, ranking),
    "rank_genes, positions": (GENES, lambda s: pathways.rank_genes(s.counts, s.sections, s.positions)),
    "select_pathways": (NEITHER, selection),
    "ssgsea": (SPOTS, lambda s: pathways.ssgsea(s.counts, s.sets, genes=s.names)),
    "zscore": (SPOTS, lambda s: pathways.zscore(s.truth, s.sets)),
}
# What is read or looked up, and not computed from spots
NO_SCORES = {"PathwayContext", "match_gene_sets", "read_gene_sets"}
CASES = METRICS | PATHWAYS


def test_every_public_score_has_a_case():
    assert {name.split(",")[0] for name in METRICS} == set(metrics.__all__)
    assert {name.split(",")[0] for name in PATHWAYS} == set(pathways.__all__) - NO_SCORES


def in_order(name, spots):
    """The result of a case with its first axis in the original order of genes or spots."""
    axis, function = CASES[name]
    result = function(spots)
    if axis == NEITHER:
        return result
    return np.asarray(result)[np.argsort(spots.columns if axis == GENES else spots.rows)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_order_of_spots_and_genes_leaves_every_score(name, seed):
    spots = draw(seed)
    expected, result = in_order(name, spots), in_order(name, spots.shuffled(seed + 10))
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(result, expected, atol=1e-5, rtol=0)
    elif isinstance(expected, list):
        assert result == expected
    else:
        assert np.isfinite(np.asarray(expected, dtype=float)).any()
        np.testing.assert_allclose(result, expected, atol=1e-5, rtol=0)


LATTICES = {
    "square": np.indices((12, 10)).reshape(2, -1).T * 55.3 + 7.7,
    "hexagonal": np.array([[86.60254037844386 * i, 100 * j + 50 * (i % 2)] for i in range(11) for j in range(9)]),
    "scattered": 1e5 * np.random.default_rng(0).uniform(size=(120, 2)),
}


@pytest.mark.parametrize("lattice", LATTICES)
@pytest.mark.parametrize("k", [1, 3, 6, 12, 40, 500])
def test_equally_near_spots_are_taken_by_row_and_column(lattice, k):
    positions = LATTICES[lattice]
    row, column = positions.round(6).T
    neighbors = nearest_spots(positions, k)
    assert neighbors.shape == (len(positions), min(k, len(positions) - 1))
    for spot, nearest in enumerate(neighbors):
        distance = np.linalg.norm(positions - positions[spot], axis=1).round(6)
        order = np.lexsort((column, row, distance))
        np.testing.assert_array_equal(nearest, order[order != spot][: len(nearest)])


def test_neighbours_of_a_lattice_do_not_depend_on_its_origin():
    # Models get positions through this conversion; in single precision, rounding would tell equal distances apart.
    moved = float_array("positions", LATTICES["hexagonal"] + [1e5 + 0.1, 0.1])
    np.testing.assert_array_equal(nearest_spots(moved, 8), nearest_spots(LATTICES["hexagonal"], 8))


def test_ties_beyond_the_first_candidates_are_all_compared():
    # 60 spots on a circle are equally near to its centre.
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    positions = np.vstack([[[0.0, 0.0]], 100 * np.column_stack([np.cos(angles), np.sin(angles)])])
    highest = positions[nearest_spots(positions, 3)[0]]
    expected = positions[np.lexsort((positions[:, 1].round(6), positions[:, 0].round(6)))[:3]]
    np.testing.assert_allclose(highest, expected)


@pytest.mark.parametrize("k", [2, 6, 25])
def test_coincident_spots_are_neighbours_of_each_other_but_not_of_themselves(k):
    positions = np.repeat(LATTICES["square"][:20], 30, axis=0)
    order = np.random.default_rng(0).permutation(len(positions))
    neighbors = nearest_spots(positions, k)
    assert (neighbors != np.arange(len(positions))[:, None]).all()
    assert all(len(set(row)) == k for row in neighbors)
    assert (positions[neighbors] == positions[:, None]).all()
    np.testing.assert_array_equal(positions[order][nearest_spots(positions[order], k)], positions[neighbors][order])


def test_draws_of_coincident_spots_follow_their_values():
    spots = replace(draw(0), positions=np.zeros((2 * SIDE**2, 2)))
    # All spots of the second section share one place.
    spots.positions[: SIDE**2] = LATTICES["scattered"][: SIDE**2]
    other = spots.shuffled(3)
    np.testing.assert_allclose(
        correlation_test(other)[np.argsort(other.columns)], correlation_test(spots), atol=1e-5, rtol=0
    )


def test_the_spots_that_are_drawn_from_a_large_section_do_not_depend_on_their_order(monkeypatch):
    monkeypatch.setattr("img2gene.metrics.surrogates._MAX_SPOTS", 40)
    spots = draw(0)
    other = spots.shuffled(4)
    np.testing.assert_allclose(
        correlation_test(other)[np.argsort(other.columns)], correlation_test(spots), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("function", [pathways.aucell, pathways.ssgsea])
def test_names_sort_genes_before_ties_are_broken(function):
    spots = draw(0).shuffled(1)
    by_name = draw(0).take(spots.rows, np.arange(N_GENES))
    np.testing.assert_array_equal(
        function(spots.counts, spots.sets, genes=spots.names), function(by_name.counts, by_name.sets)
    )
    with pytest.raises(Img2GeneError, match="3 names for 24 columns"):
        function(spots.counts, spots.sets, genes=["a", "b", "c"])
