"""AnnData objects of scanpy, squidpy and CELLxGENE, and every way to read a folder, give the same study."""

import warnings

import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
import spatialdata_io

import img2gene as ig
from img2gene import Img2GeneError
from platforms import layouts


def by_squidpy(path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import squidpy as sq

        return sq.read.visium(path, library_id=name)


def by_spatialdata(path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return spatialdata_io.visium(path, dataset_id=name)


def embedding(sdata):
    """Names of some 300 spots, the same ones in whatever order they are, and their embeddings."""
    table = sdata["table"]
    order = np.argsort(table.obs_names)
    table = table[order[:: max(len(order) // 300, 1)]].copy()
    sdata.tables["table"] = table
    ig.pp.extract_patches(sdata, patch_um=112)
    ig.pp.embed_patches(sdata, "color-texture")
    return table.obs_names.tolist(), table.obsm["X_color-texture"]


@pytest.mark.real
@pytest.mark.parametrize("folder", ["formats/visium", *(f"lung_organoid_visium/V19D02-088_{name}1" for name in "ABCD")])
def test_every_way_to_read_a_folder_gives_the_same_embedding(data, folder, tmp_path):
    path, name = data / folder, folder.rpartition("/")[2]
    names, expected = embedding(ig.io.read_visium(path))
    # squidpy wants a lowres image, which not every folder has.
    (tmp_path / "spatial").mkdir()
    for source in (path / "filtered_feature_bc_matrix.h5", *(path / "spatial").iterdir()):
        (tmp_path / source.relative_to(path)).symlink_to(source)
    lowres = tmp_path / "spatial" / "tissue_lowres_image.png"
    if not lowres.exists():
        lowres.symlink_to(path / "spatial" / "tissue_hires_image.png")
    adata = by_squidpy(tmp_path, name)
    for sdata in (ig.io.from_anndata(adata), by_spatialdata(path, name)):
        other_names, values = embedding(sdata)
        assert other_names == names
        np.testing.assert_allclose(values, expected, atol=1e-5)


@pytest.fixture
def adata(tmp_path):
    layouts.visium(tmp_path, "1")
    (tmp_path / "spatial" / "tissue_lowres_image.png").write_bytes(
        (tmp_path / "spatial" / "tissue_hires_image.png").read_bytes()
    )
    adata = by_squidpy(tmp_path, "S")
    adata.obsm["spatial"] = adata.obsm["spatial"].astype(float)
    return adata


def test_duplicate_symbols_are_numbered_and_identifiers_kept(adata):
    assert not adata.var_names.is_unique
    table = ig.io.from_anndata(adata)["table"]
    assert table.var_names.tolist() == list(layouts.UNIQUE)
    assert table.var["gene_ids"].tolist() == list(layouts.IDS)
    assert not adata.var_names.is_unique


def test_cellxgene_has_identifiers_and_counts_in_raw(adata, caplog):
    counts = adata.X.toarray()
    adata.var = adata.var.set_index("gene_ids").assign(feature_name=list(layouts.UNIQUE))
    adata.var.index.name = None
    adata.raw = adata.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    adata = adata[:, :2].copy()
    table = ig.io.from_anndata(adata)["table"]
    assert table.var_names.tolist() == list(layouts.UNIQUE)
    assert table.var["gene_ids"].tolist() == list(layouts.IDS)
    np.testing.assert_array_equal(table.X.toarray(), counts)
    np.testing.assert_array_equal(table.obs["library_size"], counts.sum(axis=1))
    assert "counts of 5 genes are taken from `adata.raw`" in caplog.text


def test_scanpy_keeps_counts_in_a_layer(adata, caplog):
    adata.var_names_make_unique()
    counts = adata.X.toarray()
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    table = ig.io.from_anndata(adata)["table"]
    np.testing.assert_array_equal(table.X.toarray(), counts)
    assert "counts" not in table.layers and "counts" in adata.layers
    assert "taken from `adata.layers['counts']`" in caplog.text


def test_variable_genes_keep_the_library_size_of_all(adata):
    adata.var_names_make_unique()
    sizes = adata.X.toarray().sum(axis=1)
    adata.raw = adata.copy()
    part = adata[:, :2].copy()
    table = ig.io.from_anndata(part)["table"]
    assert table.n_vars == 2
    np.testing.assert_array_equal(table.obs["library_size"], sizes)


def test_positions_in_pixels_of_the_hires_image_are_refused(adata):
    """The mistake puts all spots into the top left corner, where patches show other tissue."""
    expected = ig.io.from_anndata(adata)["table"].obsm["spatial"]
    adata.obsm["spatial"] = adata.obsm["spatial"] * layouts.HIRES
    with pytest.raises(Img2GeneError, match=r"look like pixels of its image `hires`.*obsm\['spatial'\] / 0.25"):
        ig.io.from_anndata(adata)
    del adata.obs["array_row"]
    with pytest.raises(Img2GeneError, match="look like pixels of its image"):
        ig.io.from_anndata(adata, spot_um=65)
    adata.obsm["spatial"] = adata.obsm["spatial"] / 0.25
    np.testing.assert_allclose(ig.io.from_anndata(adata, spot_um=65)["table"].obsm["spatial"], expected)


def test_the_column_of_several_libraries_is_recognised(adata):
    adata.var_names_make_unique()
    adata.uns["spatial"]["T"] = adata.uns["spatial"]["S"]
    adata.obs["library_id"] = np.where(np.arange(adata.n_obs) < 16, "S", "T")
    sdata = ig.io.from_anndata(adata)
    assert set(sdata.images) == {"S_image", "T_image"}
    adata.obs["batch"] = adata.obs["library_id"].to_numpy()[::-1]
    with pytest.raises(Img2GeneError, match="several libraries"):
        ig.io.from_anndata(adata)


def test_what_is_normalised_without_counts_stays_as_it_is(adata):
    adata.var_names_make_unique()
    adata.X = sp.csr_matrix(np.log1p(adata.X.toarray()))
    table = ig.io.from_anndata(adata)["table"]
    np.testing.assert_allclose(table.X.toarray(), adata.X.toarray())
    assert "library_size" not in table.obs
