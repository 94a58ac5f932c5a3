"""AnnData objects as people have them that would give other places, counts or sizes: they are read right, or named."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from tests.platforms import layouts
from tests.platforms.test_misleading_inputs import messages, visium_table

import img2gene as ig
from img2gene._errors import Img2GeneError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def mirrored(caplog):
    found = any("mirrored on the image" in message for message in messages(caplog))
    caplog.clear()
    return found


def test_swapped_and_mirrored_places_of_a_visium_array_are_named_and_turned_ones_are_not(caplog):
    table, _ = visium_table()
    right = table.obsm["spatial"].copy()
    middle = np.array([800.0, 800.0])
    for edit, is_named in [
        (lambda xy: xy, False),
        (lambda xy: 2 * middle - xy, False),
        (lambda xy: np.column_stack([xy[:, 1], 2 * middle[1] - xy[:, 0]]), False),
        (lambda xy: xy[:, ::-1], True),
        (lambda xy: np.column_stack([2 * middle[0] - xy[:, 0], xy[:, 1]]), True),
    ]:
        table.obsm["spatial"] = edit(right).copy()
        ig.io.from_anndata(table)
        assert mirrored(caplog) == is_named


def test_swapped_columns_of_space_ranger_are_named_unless_cytassist_mirrored_them(tmp_path, caplog):
    written = layouts.visium(tmp_path / "run", "1")
    (positions,) = (tmp_path / "run").rglob("tissue_positions*")
    ig.io.read_visium(tmp_path / "run", image=written.image)
    assert not mirrored(caplog)
    table = pd.read_csv(positions, header=None)
    table[[4, 5]] = table[[5, 4]].to_numpy()
    table.to_csv(positions, header=False, index=False)
    pixels = np.full((1920, 1920, 3), written.pixels[:1, :1], dtype=np.uint8)
    for name in ("tissue_hires_image.png", "tissue_lowres_image.png"):
        (positions.parent / name).unlink(missing_ok=True)
    ig.io.read_visium(tmp_path / "run", image=pixels)
    assert mirrored(caplog)
    (positions.parent / "cytassist_image.tiff").touch()
    ig.io.read_visium(tmp_path / "run", image=pixels)
    assert not mirrored(caplog)


def test_two_libraries_of_which_one_has_an_image_are_refused():
    table, _ = visium_table()
    other = table.copy()
    other.obs_names = [f"{name}_b" for name in other.obs_names]
    joined = ad.concat([table, other], uns_merge="first")
    with pytest.raises(Img2GeneError, match=r"library `A` have the same `array_row` and `array_col`"):
        ig.io.from_anndata(joined)
    joined.obs["library_id"] = ["A"] * table.n_obs + ["B"] * table.n_obs
    with pytest.raises(Img2GeneError, match=r"obs\['library_id'\]` names several libraries \(A, B\)"):
        ig.io.from_anndata(joined)
    assert ig.io.from_anndata(joined[: table.n_obs].copy())["table"].n_obs == table.n_obs


@pytest.mark.parametrize("factor", [0.3, 0.6, 0.69])
def test_positions_in_pixels_of_a_large_hires_image_are_refused(factor):
    table, _ = visium_table()
    entry = table.uns["spatial"]["A"]
    entry["images"]["hires"] = layouts.draw(1200, 1200)
    entry["scalefactors"]["tissue_hires_scalef"] = factor
    right = table.obsm["spatial"].copy()
    assert ig.io.from_anndata(table)["table"].n_obs == table.n_obs
    table.obsm["spatial"] = right * factor
    with pytest.raises(Img2GeneError, match=r"look like pixels of its image `hires`"):
        ig.io.from_anndata(table)


def test_a_diameter_that_contradicts_the_visium_lattice_is_refused():
    table, _ = visium_table()
    with pytest.raises(Img2GeneError, match=r"spot_um=100, but .* Visium lattice, whose spots have 55 µm"):
        ig.io.from_anndata(table, spot_um=100)
    for spot_um in (55, 65):
        sdata = ig.io.from_anndata(table, spot_um=spot_um)
        # 200 px are 100 µm, on an image of a quarter.
        np.testing.assert_allclose(sdata["A_spots"]["radius"] * 2 * 2.0, spot_um)


def test_symbols_that_only_var_knows_name_the_genes_of_raw(caplog):
    table, counts = visium_table()
    table.var_names = [f"ENSG{number:011d}" for number in range(6)]
    table.raw = ad.AnnData(table.X, var=table.var.copy())
    table.var["feature_name"] = [f"GENE{number}" for number in range(6)]
    table = table[:, :4].copy()
    table.X = sp.csr_matrix(np.log1p(table.X.toarray() / 7))
    read = ig.io.from_anndata(table)["table"]
    assert read.var_names.tolist() == ["GENE0", "GENE1", "GENE2", "GENE3", "ENSG00000000004", "ENSG00000000005"]
    np.testing.assert_array_equal(read.X.toarray(), counts)


def test_library_sizes_of_a_part_of_the_genes_are_named(caplog):
    table, counts = visium_table()
    table.layers["counts"] = table.X.copy()
    table.X = sp.csr_matrix(np.log1p(table.X.toarray() / 7))
    table.raw = table.copy()
    part = table[:, :2].copy()
    read = ig.io.from_anndata(part)["table"]
    np.testing.assert_array_equal(read.obs["library_size"], counts[:, :2].sum(axis=1))
    assert any("sums over the 2 genes of X, but `adata.raw` has 6" in message for message in messages(caplog))
    caplog.clear()
    part.obs["library_size"] = counts.sum(axis=1)
    read = ig.io.from_anndata(part)["table"]
    np.testing.assert_array_equal(read.obs["library_size"], counts.sum(axis=1))
    assert not any("sums over" in message for message in messages(caplog))


def test_without_any_counts_a_warning_says_so(caplog):
    table, _ = visium_table()
    table.X = sp.csr_matrix(np.log1p(table.X.toarray() / 7))
    ig.io.from_anndata(table)
    assert any("X holds no raw counts, and neither do `layers` nor `raw`" in message for message in messages(caplog))


def test_counts_of_a_layer_take_the_place_of_a_missing_x(caplog):
    caplog.set_level(logging.WARNING)
    table, counts = visium_table()
    without = ad.AnnData(obs=table.obs, var=table.var, layers={"counts": table.X}, obsm=dict(table.obsm))
    without.uns["spatial"] = table.uns["spatial"]
    np.testing.assert_array_equal(ig.io.from_anndata(without)["table"].X.toarray(), counts)


def test_patches_of_cells_do_not_hinder_those_of_pseudo_spots():
    sdata = ig.datasets.synthetic_cohort(n_patients=1, n_sections=1, n_spots=24, n_genes=60)
    ig.pp.extract_patches(sdata, patch_um=100)
    coarse = ig.pp.bin_to(sdata, 500)
    assert not {"patch_inside", "patch_tissue"} & set(coarse["table"].obs)
    ig.pp.extract_patches(coarse, patch_um=500)
    assert (coarse["table"].obs["patch_inside"] == 1).any()


def test_squares_that_divide_bins_unevenly_are_named(tmp_path, caplog):
    layouts.visium_hd(tmp_path / "run")
    sdata = ig.io.read_visium_hd(tmp_path / "run", bin_um=8, image=layouts.draw(520, 560))
    ig.pp.bin_to(sdata, 16)
    assert not any("different numbers of bins" in message for message in messages(caplog))
    ig.pp.bin_to(sdata, 20)
    assert any("squares of 20 µm hold different numbers of bins of 8 µm" in message for message in messages(caplog))


def test_bins_are_named_after_their_run_from_whichever_folder_they_are_read(tmp_path):
    layouts.visium_hd(tmp_path / "run")
    bins = tmp_path / "run" / "outs" / "binned_outputs"
    for folder in (tmp_path / "run", bins, bins / "square_008um"):
        sdata = ig.io.read_visium_hd(folder, bin_um=8, image=layouts.draw(520, 560))
        assert sdata["table"].obs["section"].unique().tolist() == ["run"]


def test_numbers_of_cells_that_one_file_has_as_floats_are_the_same_cells(tmp_path):
    run = layouts.cosmx(tmp_path / "cosmx")
    arguments = {"image": run.written.image, "alignment": run.matrix}
    expected = ig.io.read_cosmx(run.written.path, **arguments)["table"]
    (counts,) = run.written.path.glob("*exprMat_file.csv")
    table = pd.read_csv(counts)
    table.astype({"fov": float, "cell_ID": float}).to_csv(counts, index=False)
    found = ig.io.read_cosmx(run.written.path, **arguments)["table"]
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())


def test_without_an_alignment_the_message_says_how_to_make_one(tmp_path):
    for read in (ig.io.read_cosmx, ig.io.read_merscope):
        with pytest.raises(Img2GeneError, match=r"alignment=None.*fixedX, fixedY.*alignmentX, alignmentY"):
            read(tmp_path, image=layouts.draw(60, 60), alignment=None)


def test_counts_of_raw_keep_all_genes_where_only_var_has_kinds_of_features():
    table, counts = visium_table()
    part = table[:, :3].copy()
    part.var["feature_types"] = "Gene Expression"
    part.var["highly_variable"] = True
    part.X = sp.csr_matrix(np.log1p(part.X.toarray() / 7))
    part.raw = ad.AnnData(table.X.copy(), obs=table.obs, var=pd.DataFrame(index=table.var_names))
    read = ig.io.from_anndata(part)["table"]
    np.testing.assert_array_equal(read.X.toarray(), counts)
    np.testing.assert_array_equal(read.obs["library_size"], counts.sum(axis=1))
    assert "highly_variable" not in read.var


def test_counts_of_raw_take_the_place_of_a_missing_x():
    table, counts = visium_table()
    table.raw = table.copy()
    table.X = None
    np.testing.assert_array_equal(ig.io.from_anndata(table)["table"].X.toarray(), counts)


def test_control_probes_of_raw_are_no_genes_that_library_sizes_miss(caplog):
    table, counts = visium_table()
    table.raw = ad.AnnData(
        sp.csr_matrix(np.log1p(np.column_stack([counts, counts[:, :2]]))),
        obs=table.obs,
        var=pd.DataFrame(index=[*table.var_names, "NegPrb1", "NegPrb2"]),
    )
    ig.io.from_anndata(table)
    assert not any("library sizes are sums" in message for message in messages(caplog))


@pytest.mark.parametrize("column", ["leiden", "pathology", "section"])
def test_columns_that_share_a_word_with_the_library_name_no_libraries(column):
    table, _ = visium_table()
    half = table.n_obs // 2
    table.obs[column] = pd.Categorical(["A"] * half + ["B"] * (table.n_obs - half))
    assert ig.io.from_anndata(table)["table"].n_obs == table.n_obs


def test_cells_that_carry_the_place_of_their_bin_and_cores_of_a_microarray_are_read():
    table, _ = visium_table()
    number = np.arange(table.n_obs)
    for grid in (np.column_stack([number // 2, number // 3]), np.full((table.n_obs, 2), 3)):
        table.obs[["array_row", "array_col"]] = grid
        assert ig.io.from_anndata(table, spot_um=65)["table"].n_obs == table.n_obs


def test_two_sections_under_one_name_are_refused_also_with_a_column_of_libraries():
    table, _ = visium_table()
    joined = ad.concat([table, table.copy()], index_unique="-", uns_merge="first")
    joined.obs["library"] = "A"
    with pytest.raises(Img2GeneError, match="same `array_row` and `array_col`"):
        ig.io.from_anndata(joined, library_key="library")


def test_the_diameter_of_space_ranger_is_no_contradiction():
    table, _ = visium_table()
    assert ig.io.from_anndata(table, spot_um=69.8)["A_spots"]["radius"].iloc[0] * 2 * 2.0 == pytest.approx(69.8)
