"""Pseudo-spots sum what lies in them, wherever the bins or cells come from."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import img2gene as ig
from img2gene import Img2GeneError, _schema
from platforms import layouts


@pytest.fixture
def hd(tmp_path):
    written = layouts.visium_hd(tmp_path)
    read = {
        um: ig.io.read_visium_hd(tmp_path, bin_um=um, image=written[um].image, section="S", patient="P")
        for um in (2, 8, 16)
    }
    return written, read


@pytest.mark.parametrize("um", [2, 8])
def test_small_bins_join_to_those_that_space_ranger_makes(hd, um):
    written, read = hd
    joined = ig.pp.bin_to(read[um], 16)
    table = joined["table"]
    np.testing.assert_array_equal(table.X.toarray(), written[16].counts)
    np.testing.assert_array_equal(table.obs["library_size"], written[16].counts.sum(axis=1))
    np.testing.assert_allclose(table.obsm["spatial"], written[16].xy, atol=1e-6)
    assert set(table.obs["n_joined"]) == {(16 // um) ** 2}
    assert set(table.obs["patient"]) == {"P"} and set(table.obs["section"]) == {"S"}
    assert table.var["gene_ids"].tolist() == list(layouts.IDS)


def test_pseudo_spots_see_the_same_patches_as_bins_of_their_size(hd):
    _, read = hd
    joined = ig.pp.bin_to(read[8], 16)
    for sdata in (joined, read[16]):
        ig.pp.extract_patches(sdata, patch_um=56)
        ig.pp.embed_patches(sdata, "color-texture")
    np.testing.assert_array_equal(joined["table"].obsm["patch_bbox"], read[16]["table"].obsm["patch_bbox"])
    np.testing.assert_allclose(joined["table"].obsm["X_color-texture"], read[16]["table"].obsm["X_color-texture"])


def test_library_sizes_stay_those_of_everything_measured(hd):
    written, read = hd
    sdata = read[8]
    sdata["table"] = sdata["table"][:, ["EPCAM"]].copy()
    table = ig.pp.bin_to(sdata, 16)["table"]
    np.testing.assert_array_equal(table.obs["library_size"], written[16].counts.sum(axis=1))
    np.testing.assert_array_equal(table.X.toarray()[:, 0], written[16].counts[:, 0])


def test_bins_off_the_tissue_and_sparse_squares_are_left_out(hd):
    _, read = hd
    table = read[8]["table"]
    table.obs.loc[table.obs_names[1:], "in_tissue"] = [0] * 20 + [1] * (table.n_obs - 21)
    joined = ig.pp.bin_to(read[8], 16)["table"]
    assert joined.X.sum() == table.X[(table.obs["in_tissue"] == 1).to_numpy()].sum()
    assert joined.obs["n_joined"].min() < 4
    full = ig.pp.bin_to(read[8], 16, min_joined=4)["table"]
    assert set(full.obs["n_joined"]) == {4}
    with pytest.raises(Img2GeneError, match="No square of 16 µm has min_joined=5"):
        ig.pp.bin_to(read[8], 16, min_joined=5)


def _cells(order):
    xy = np.array([[5.0, 5.0], [15.0, 5.0], [99.0, 5.0], [101.0, 5.0]])
    counts = np.array([[1, 0], [2, 0], [4, 1], [8, 0]], dtype=np.float32)
    table = AnnData(sp.csr_matrix(counts[order]), obs=pd.DataFrame(index=[f"c{i}" for i in order]))
    image = np.full((120, 200, 3), 200, np.uint8)
    return ig.io.build_section(image, xy[order], table, section="S", patient="P", mpp=0.5, spot_um=4.0)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_cells_are_joined_on_squares_from_the_corner_of_the_image(order):
    """Squares of 50 µm are 100 px wide, so the last cell lies alone, whatever the order of the cells."""
    joined = ig.pp.bin_to(_cells(order), 50)
    table = joined["table"]
    np.testing.assert_array_equal(table.X.toarray(), [[7, 1], [8, 0]])
    np.testing.assert_array_equal(table.obsm["spatial"], [[50, 50], [150, 50]])
    assert table.obs["n_joined"].tolist() == [3, 1]
    assert _schema.read_json(table, "sections")["S"]["spot_um"] == 50
    np.testing.assert_allclose(joined["S_spots_50um"]["radius"], 50)


def test_several_sections_stay_apart_and_the_study_stays_as_it_was(study):
    before = study["table"].copy()
    joined = ig.pp.bin_to(study, 300)["table"]
    assert set(joined.obs["section"]) == set(before.obs["section"])
    for name in set(before.obs["section"]):
        one, other = (table[table.obs["section"] == name] for table in (joined, before))
        np.testing.assert_allclose(one.X.sum(axis=0), other.X.sum(axis=0))
        assert set(one.obs["patient"]) == set(other.obs["patient"])
    assert list(study.tables) == ["table"] and study["table"].obs.equals(before.obs)


def test_what_cannot_be_joined_is_refused(hd):
    _, read = hd
    with pytest.raises(Img2GeneError, match=r"um=4 is smaller than the bins or cells of `S_spots` \(8 µm\)"):
        ig.pp.bin_to(read[8], 4)
    read[8]["table"].X = read[8]["table"].X * 0.5
    with pytest.raises(Img2GeneError, match="(?s)um=-1.*fractions"):
        ig.pp.bin_to(read[8], -1)
