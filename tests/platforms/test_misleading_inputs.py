"""Inputs that would give wrong places, counts or microns without a word: they are refused, or named in a warning."""

import json
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tifffile
from tests.platforms import layouts

import img2gene as ig
from img2gene._errors import Img2GeneError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("turn", "name"),
    [
        (lambda pixels: pixels[::-1, ::-1], "turned by 180°"),
        (lambda pixels: pixels[:, ::-1], "mirrored left to right"),
    ],
)
def test_an_image_turned_against_the_hires_image_is_refused(tmp_path, turn, name):
    written = layouts.visium(tmp_path / "run")
    with pytest.raises(Img2GeneError, match=name):
        ig.io.read_visium(tmp_path / "run", image=np.ascontiguousarray(turn(written.pixels)))


def test_an_image_of_another_section_is_named(tmp_path, caplog):
    written = layouts.visium(tmp_path / "run")
    ig.io.read_visium(tmp_path / "run", image=written.pixels)
    assert not messages(caplog)
    ig.io.read_visium(tmp_path / "run", image=layouts.draw(*written.pixels.shape[:2], seed=9))
    assert any("does not look like" in message for message in messages(caplog))


def test_one_counted_spot_has_the_microns_of_the_whole_array(tmp_path):
    written = layouts.visium(tmp_path / "run")
    matrix = tmp_path / "run" / "outs" / "filtered_feature_bc_matrix.h5"
    layouts.write_matrix(matrix, written.counts[:1], written.names[:1])
    sdata = ig.io.read_visium(tmp_path / "run", image=written.image)
    np.testing.assert_allclose(sdata["run_spots"]["radius"] * written.mpp, 55 / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda places: places * layouts.HIRES, "130 px .* but lie 50 px apart"),
        (lambda places: places.astype(str) + "px", r"no numbers \(.*px"),
    ],
)
def test_positions_in_other_units_are_refused(tmp_path, edit, message):
    written = layouts.visium(tmp_path / "run")
    path = tmp_path / "run" / "outs" / "spatial" / "tissue_positions.csv"
    frame = pd.read_csv(path)
    columns = ["pxl_row_in_fullres", "pxl_col_in_fullres"]
    frame[columns] = edit(frame[columns])
    frame.to_csv(path, index=False)
    with pytest.raises(Img2GeneError, match=message):
        ig.io.read_visium(tmp_path / "run", image=written.image)


def test_a_matrix_from_the_run_to_the_image_is_refused(tmp_path):
    run = layouts.xenium(tmp_path / "run")
    with pytest.raises(Img2GeneError, match=r"0% of the cells on it, and its inverse 100%.*np.linalg.inv"):
        ig.io.read_xenium(tmp_path / "run", image=run.written.image, alignment=np.linalg.inv(run.matrix))


def test_other_microns_than_those_of_the_image_file_are_named(tmp_path, caplog):
    run = layouts.merscope(tmp_path / "run")
    for um, is_named in ((0.5, False), (0.25, True)):
        file = tmp_path / f"{um}.ome.tif"
        tifffile.imwrite(
            file,
            run.written.pixels,
            photometric="rgb",
            metadata={"axes": "YXS", "PhysicalSizeX": um, "PhysicalSizeY": um},
        )
        ig.io.read_merscope(tmp_path / "run", image=file, alignment=run.matrix)
        assert any("give 0.5 µm per px, but" in message for message in messages(caplog)) == is_named


def test_cells_of_merscope_may_come_in_any_order(tmp_path):
    run = layouts.merscope(tmp_path / "run")
    path = tmp_path / "run" / "cell_metadata.csv"
    pd.read_csv(path, dtype={0: str}).iloc[::-1].to_csv(path, index=False)
    table = ig.io.read_merscope(tmp_path / "run", image=run.written.image, alignment=run.matrix)["table"]
    assert table.obs_names.tolist() == run.written.names
    np.testing.assert_allclose(table.obsm["spatial"], run.written.xy)
    np.testing.assert_array_equal(table.X.toarray(), run.written.counts)


def test_cut_counts_are_refused_with_the_cell(tmp_path):
    run = layouts.cosmx(tmp_path / "run")
    path = tmp_path / "run" / "Run_exprMat_file.csv"
    frame = pd.read_csv(path).astype(float, errors="ignore").astype({"fov": int, "cell_ID": int})
    frame.loc[3, "EPCAM"] = np.nan
    frame.to_csv(path, index=False)
    with pytest.raises(Img2GeneError, match=r"1 NaN values.*\(3_1\)"):
        ig.io.read_cosmx(tmp_path / "run", image=run.written.image, alignment=run.matrix)


def test_columns_of_cosmx_that_differ_in_case_are_renamed(tmp_path, caplog):
    run = layouts.cosmx(tmp_path / "run")
    path = tmp_path / "run" / "Run_metadata_file.csv"
    pd.read_csv(path).assign(cell_id="c", **{"Max.CD3 (a)": 1}).to_csv(path, index=False)
    table = ig.io.read_cosmx(tmp_path / "run", image=run.written.image, alignment=run.matrix)["table"]
    assert {"cell_ID", "cell_id_1", "Max.CD3__a_"} <= set(table.obs)
    assert any("obs['cell_id'] to 'cell_id_1'" in message for message in messages(caplog))


def visium_table(n_genes=6):
    """A table as scanpy reads it, with 18 spots and a hires image of a quarter."""
    grid = np.array([(row, column) for row in range(6) for column in range(row % 2, 6, 2)])
    counts = np.random.default_rng(0).poisson(5, (len(grid), n_genes)).astype(np.float32)
    obs = pd.DataFrame(grid, columns=["array_row", "array_col"], index=[f"S{i}" for i in range(len(grid))])
    table = ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)]))
    table.obsm["spatial"] = 200 + grid[:, ::-1] * [100.0, 100 * np.sqrt(3)]
    factors = {"tissue_hires_scalef": 0.25, "spot_diameter_fullres": 130.0}
    table.uns["spatial"] = {"A": {"images": {"hires": layouts.draw(400, 400)}, "scalefactors": factors}}
    return table, counts


def test_antibodies_and_controls_of_an_anndata_are_no_genes(caplog):
    table, counts = visium_table()
    table.var["feature_types"] = ["Gene Expression"] * 5 + ["Antibody Capture"]
    table.var_names = ["Blank-1", *table.var_names[1:]]
    table.obs["total_counts"] = counts.sum(axis=1)
    read = ig.io.from_anndata(table)["table"]
    assert read.var_names.tolist() == ["G1", "G2", "G3", "G4"]
    np.testing.assert_array_equal(read.obs["library_size"], counts[:, 1:5].sum(axis=1))
    assert any("left out 2 features" in message for message in messages(caplog))


def test_sums_of_scanpy_are_the_library_sizes_of_variable_genes():
    table, counts = visium_table()
    table.obs["total_counts"] = counts.sum(axis=1)
    read = ig.io.from_anndata(table[:, :3])["table"]
    np.testing.assert_array_equal(read.obs["library_size"], counts.sum(axis=1))
    table.obs["total_counts"] = np.log1p(counts.sum(axis=1))
    read = ig.io.from_anndata(table[:, :3])["table"]
    np.testing.assert_array_equal(read.obs["library_size"], counts[:, :3].sum(axis=1))


def test_names_that_cannot_be_stored_are_changed_and_ours_stay(caplog):
    table, counts = visium_table()
    table.obs["cell type"], table.obs["Library_Size"], table.obs["Patient"], table.obs["donor"] = "T", 1.0, "x", "D1"
    read = ig.io.from_anndata(table, patient_key="donor")["table"]
    assert set(read.obs["patient"]) == {"D1"} and set(read.obs["cell_type"]) == {"T"}
    np.testing.assert_array_equal(read.obs["library_size"], counts.sum(axis=1))
    assert any("obs['cell type'] to 'cell_type'" in message for message in messages(caplog))


def test_spots_beside_the_tissue_are_named(caplog):
    pixels = np.full((600, 600, 3), 245, dtype=np.uint8)
    pixels[:200] = layouts.draw(200, 600) // [1, 2, 1]
    counts = ad.AnnData(np.ones((4, 3), dtype=np.float32))
    places = np.array([[100.0, 500.0], [200.0, 500.0], [300.0, 500.0], [400.0, 500.0]])
    for xy, is_named in ((places - [0, 400], False), (places, True)):
        sdata = ig.io.build_section(pixels, xy, counts.copy(), section="S", patient=None, mpp=0.5, spot_um=50)
        ig.pp.extract_patches(sdata, patch_um=50)
        assert any("beside the tissue" in message for message in messages(caplog)) == is_named


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda xy: xy, None),
        (lambda xy: xy[:, ::-1], "x and y swapped"),
        (lambda xy: np.column_stack([xy[:, 0], 600 - xy[:, 1]]), "y counted from below"),
        (lambda xy: np.column_stack([600 - xy[:, 0], xy[:, 1]]), "x counted from the right"),
        (lambda xy: 600 - xy, "turned by 180°"),
    ],
)
def test_positions_with_other_axes_that_partly_lie_on_the_tissue_are_named(caplog, edit, named):
    # The tissue is a wide foot and a narrow leg, so every other orientation leaves some spots on glass.
    tissue = np.zeros((600, 600), dtype=bool)
    tissue[60:300, 60:540] = True
    tissue[300:560, 400:540] = True
    pixels = np.where(tissue[..., None], layouts.draw(600, 600) // [1, 2, 1], 245).astype(np.uint8)
    places = np.stack(np.meshgrid(np.arange(80, 560, 40.0), np.arange(80, 560, 40.0)), axis=-1).reshape(-1, 2)
    places = edit(places[tissue[places[:, 1].astype(int), places[:, 0].astype(int)]])
    counts = ad.AnnData(np.ones((len(places), 3), dtype=np.float32))
    sdata = ig.io.build_section(pixels, places, counts, section="S", patient=None, mpp=0.5, spot_um=10)
    ig.pp.extract_patches(sdata, patch_um=10)
    found = [message for message in messages(caplog) if "patches of region" in message]
    assert ("".join(found) == "") if named is None else (named in found[0])


def test_a_core_of_several_on_one_image_is_not_compared_with_the_others(caplog):
    # The core on the right is whole, and of the other one half is lost: mirrored places would show more tissue.
    tissue = np.zeros((600, 600), dtype=bool)
    tissue[200:400, 340:540] = True
    tissue[200:400:2, 60:260] = True
    pixels = np.where(tissue[..., None], layouts.draw(600, 600) // [1, 2, 1], 245).astype(np.uint8)
    places = np.stack(np.meshgrid(np.arange(80, 260, 30.0), np.arange(210, 400, 30.0)), axis=-1).reshape(-1, 2)
    counts = ad.AnnData(np.ones((len(places), 3), dtype=np.float32))
    sdata = ig.io.build_section(pixels, places, counts, section="S", patient=None, mpp=0.5, spot_um=10)
    ig.pp.extract_patches(sdata, patch_um=10)
    assert not [message for message in messages(caplog) if "patches of region" in message]


def test_factors_without_a_diameter_need_no_check(tmp_path):
    written = layouts.visium(tmp_path / "run")
    path = tmp_path / "run" / "outs" / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps({"tissue_hires_scalef": layouts.HIRES}))
    assert ig.io.read_visium(tmp_path / "run", image=written.image)["table"].n_obs == len(written.names)


def test_a_folder_in_place_of_the_image_is_named(tmp_path):
    layouts.visium(tmp_path / "run")
    with pytest.raises(Img2GeneError, match=r"is a folder \(slide.tif\)"):
        ig.io.read_visium(tmp_path / "run", image=tmp_path / "run" / "images")
