"""What scanpy and squidpy compute as well: the same genes, and the same values."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pytest

import img2gene as ig
from img2gene.metrics import morans_i, neighbor_graph


@pytest.fixture(scope="module")
def sdata():
    return ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=60, n_genes=80, mpp=1.0)


@pytest.mark.parametrize("sections", [None, ["P1_S1"]])
def test_highly_variable_genes_are_those_of_scanpy(sdata, sections):
    import scanpy as sc

    table = sdata["table"].copy()
    rows = table.obs["section"].isin(sections or ["P1_S1", "P2_S1"])
    table = table[rows, np.asarray((table[rows].X > 0).mean(axis=0)).ravel() >= 0.1].copy()
    sc.pp.normalize_total(table, target_sum=1e4)
    sc.pp.log1p(table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.highly_variable_genes(table, n_top_genes=15, batch_key=None if sections else "section")
    update = ig.pp.select_genes(sdata, 15, by="highly_variable", sections=sections, inplace=False)
    chosen = sdata["table"].var_names[update["var"]["panel"]]
    assert set(chosen) == set(table.var_names[table.var["highly_variable"]])
    assert update["uns"]["panel"]["by"] == "highly_variable"


def test_genes_that_scanpy_cannot_rank_are_counted_and_a_layer_is_refused(sdata):
    with pytest.raises(ig.Img2GeneError, match=r"n_genes=80: \d+ of 80 genes"):
        ig.pp.select_genes(sdata, 80, by="highly_variable", min_detection=0.9)
    with pytest.raises(ig.Img2GeneError, match="leave out `layer`"):
        ig.pp.select_genes(sdata, 5, by="highly_variable", layer="truth")


@pytest.mark.filterwarnings("ignore")
def test_graph_and_morans_i_are_those_of_squidpy_where_no_distances_tie():
    import squidpy as sq

    rng = np.random.default_rng(0)
    positions, values = rng.uniform(0, 100, (200, 2)), rng.poisson(3, (200, 20)).astype(float)
    table = ad.AnnData(values, obsm={"spatial": positions})
    sq.gr.spatial_neighbors(table, coord_type="generic", n_neighs=6)
    graph = neighbor_graph(positions, k=6)
    assert ((graph > 0) != (table.obsp["spatial_connectivities"] > 0)).nnz == 0
    sq.gr.spatial_autocorr(table, mode="moran", n_perms=None, n_jobs=1, show_progress_bar=False)
    theirs = table.uns["moranI"].loc[table.var_names, "I"].to_numpy(dtype=float)
    assert np.allclose(morans_i(values, graph), theirs, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_ties_of_a_lattice_are_ours_because_squidpy_follows_the_order_of_the_spots():
    """The reason for a graph of our own: six of the eight spots around a spot of a square lattice are its neighbours."""
    import squidpy as sq

    square = np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0)), axis=-1).reshape(-1, 2)
    order = np.random.default_rng(1).permutation(len(square))

    def edges(positions: np.ndarray, of) -> set:
        matrix = of(positions).tocoo()
        return {(*positions[i], *positions[j]) for i, j in zip(matrix.row, matrix.col, strict=True)}

    def theirs(positions: np.ndarray):
        table = ad.AnnData(np.zeros((len(positions), 1)), obsm={"spatial": positions})
        sq.gr.spatial_neighbors(table, coord_type="generic", n_neighs=6)
        return table.obsp["spatial_connectivities"]

    assert edges(square, neighbor_graph) == edges(square[order], neighbor_graph)
    assert edges(square, theirs) != edges(square[order], theirs)
