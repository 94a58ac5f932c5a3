"""Cells of imaging platforms lie on their place in the H&E image, however it is turned."""

import json

import numpy as np
import pandas as pd
import pytest

import img2gene as ig
from img2gene import Img2GeneError, _schema
from platforms import layouts


def check_cells(sdata, written, *, atol=1e-4):
    table = sdata["table"]
    assert table.obs_names.tolist() == written.names
    assert table.var_names.tolist() == list(layouts.UNIQUE)
    np.testing.assert_array_equal(table.X.toarray(), written.counts)
    np.testing.assert_array_equal(table.obs["library_size"], written.counts.sum(axis=1))
    np.testing.assert_allclose(table.obsm["spatial"], written.xy, atol=atol)
    assert next(iter(_schema.read_json(table, "sections").values()))["mpp"] == pytest.approx(written.mpp, rel=1e-4)
    assert set(table.obs["patient"]) == {"P"}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return layouts.xenium(folder)


@pytest.mark.parametrize("version", ["1.0.2", "1.4.0", "2.0.0", "4.0.0"])
@pytest.mark.parametrize("by", ["matrix", "file", "keypoints"])
def test_cells_of_every_version_lie_on_the_turned_image(tmp_path, version, by):
    folder = tmp_path / "run"
    folder.mkdir()
    run = layouts.xenium(folder, version)
    pd.DataFrame(run.matrix).to_csv(tmp_path / "matrix.csv", header=False, index=False)
    alignment = {"matrix": run.matrix, "file": tmp_path / "matrix.csv", "keypoints": run.keypoints}[by]
    sdata = ig.io.read_xenium(folder, image=run.written.image, alignment=alignment, section="S", patient="P")
    check_cells(sdata, run.written)
    assert sdata["table"].var["gene_ids"].tolist() == list(layouts.IDS)
    # Octagons of 5 µm from the centre to a corner have 4 · sin(45°) · 25 µm².
    area = 2 * 2**0.5 * 25 / run.written.mpp**2
    np.testing.assert_allclose(sdata["S_spots"].area, area, rtol=1e-3)


def test_files_in_the_folder_need_no_argument(run):
    folder = run.written.path
    run.written.image.rename(folder / "Run_A_he_image.ome.tif")
    pd.DataFrame(run.matrix).to_csv(folder / "Run_A_he_imagealignment.csv", header=False, index=False)
    check_cells(ig.io.read_xenium(folder, patient="P"), run.written)


def test_circles_have_the_median_area_of_the_cells(run):
    sdata = ig.io.read_xenium(
        run.written.path, image=run.written.pixels, alignment=run.matrix, section="S", patient="P", outlines=False
    )
    check_cells(sdata, run.written)
    np.testing.assert_allclose(np.pi * sdata["S_spots"]["radius"] ** 2 * run.written.mpp**2, 80.0, rtol=1e-4)


def test_cells_become_pseudo_spots_whose_counts_are_sums(run):
    sdata = ig.io.read_xenium(run.written.path, image=run.written.image, alignment=run.matrix, section="S", patient="P")
    table = ig.pp.bin_to(sdata, 55)["table"]
    np.testing.assert_array_equal(np.asarray(table.X.sum(axis=0)).ravel(), run.written.counts.sum(axis=0))
    squares = np.floor(run.written.xy * run.written.mpp / 55)
    assert table.n_obs == len(np.unique(squares, axis=0))


def test_without_an_alignment_the_message_says_how_to_align(run):
    with pytest.raises(Img2GeneError, match=r"(?s)looked for <run>_he_imagealignment.csv.*Xenium Explorer.*alignment="):
        ig.io.read_xenium(run.written.path, image=run.written.image)
    with pytest.raises(Img2GeneError, match=r"(?s)no H&E image.*fluorescence.*`image=`"):
        ig.io.read_xenium(run.written.path)


@pytest.mark.parametrize(
    ("name", "looked_for"),
    [
        ("experiment.xenium", "experiment.xenium"),
        ("cells.parquet", "cells.parquet or cells.csv.gz or cells.csv"),
        ("cell_feature_matrix.h5", "cell_feature_matrix.h5"),
    ],
)
def test_an_unknown_xenium_layout_is_described(run, name, looked_for):
    (run.written.path / name).unlink()
    with pytest.raises(Img2GeneError, match=f"Looked for {looked_for}, and found "):
        ig.io.read_xenium(run.written.path, image=run.written.image, alignment=run.matrix)


@pytest.mark.parametrize("ending", [".parquet", ".csv.gz", ".csv"])
def test_a_run_that_was_downloaded_in_parts_is_read_as_the_whole_one(run, ending):
    arguments = {"image": run.written.image, "alignment": run.matrix, "section": "S", "patient": "P"}
    whole = ig.io.read_xenium(run.written.path, outlines=False, **arguments)
    (run.written.path / "cells.zarr.zip").unlink()
    cells = pd.read_parquet(run.written.path / "cells.parquet")
    if ending != ".parquet":
        (run.written.path / "cells.parquet").unlink()
        # The order of the cells says nothing.
        cells.sample(frac=1, random_state=0).to_csv(run.written.path / f"cells{ending}", index=False)
    parts = ig.io.read_xenium(run.written.path, **arguments)
    assert parts["table"].obs_names.tolist() == whole["table"].obs_names.tolist()
    assert parts["table"].var_names.tolist() == whole["table"].var_names.tolist()
    np.testing.assert_array_equal(parts["table"].X.toarray(), whole["table"].X.toarray())
    np.testing.assert_allclose(parts["table"].obsm["spatial"], whole["table"].obsm["spatial"])
    np.testing.assert_allclose(parts["S_spots"]["radius"], whole["S_spots"]["radius"])


def test_a_cell_without_an_outline_is_a_circle_and_the_others_keep_theirs(run, caplog):
    arguments = {"image": run.written.image, "alignment": run.matrix, "section": "S"}
    whole = ig.io.read_xenium(run.written.path, **arguments)["S_spots"]
    vertices = pd.read_parquet(run.written.path / "cell_boundaries.parquet")
    absent = vertices["cell_id"].iloc[0]
    vertices[vertices["cell_id"] != absent].to_parquet(run.written.path / "cell_boundaries.parquet", index=False)
    found = ig.io.read_xenium(run.written.path, **arguments)["S_spots"]
    assert set(found.geom_type) == {"Polygon"}
    area = found.geometry.area.to_numpy() * run.written.mpp**2
    # A circle of 80 µm² in 64 corners, and octagons as they were.
    np.testing.assert_allclose(area[0], 80.0, rtol=0.01)
    np.testing.assert_allclose(area[1:], whole.geometry.area.to_numpy()[1:] * run.written.mpp**2, rtol=1e-6)
    assert any("1 cells have no outline" in record.getMessage() for record in caplog.records)


def test_a_crop_at_the_corner_of_a_run_is_no_matrix_in_microns(run):
    cells = pd.read_parquet(run.written.path / "cells.parquet")
    # Most cells lie beyond the crop, and would be drawn into it by another unit.
    inside = np.arange(len(cells)) < 3
    cells["x_centroid"] = np.where(inside, 20 + 10.0 * np.arange(len(cells)), 130 + 10.0 * np.arange(len(cells)))
    cells["y_centroid"] = np.where(inside, 30.0, 140.0)
    cells.to_parquet(run.written.path / "cells.parquet", index=False)
    scale = 0.5 / layouts.XENIUM_UM
    arguments = {"alignment": np.diag([scale, scale, 1.0]), "section": "S", "outlines": False}
    sdata = ig.io.read_xenium(run.written.path, image=run.written.pixels[:200, :200], **arguments)
    assert sdata["table"].n_obs == 3


def test_keypoints_with_exchanged_axes_and_a_matrix_to_microns_are_named(run, caplog, tmp_path):
    arguments = {"image": run.written.image, "section": "S"}
    ig.io.read_xenium(run.written.path, alignment=run.matrix, **arguments)
    assert not any("mirrors" in record.getMessage() for record in caplog.records)
    points = pd.read_csv(run.keypoints).rename(columns={"alignmentX": "alignmentY", "alignmentY": "alignmentX"})
    points.to_csv(tmp_path / "points.csv", index=False)
    ig.io.read_xenium(run.written.path, alignment=tmp_path / "points.csv", **arguments)
    assert any("mirrors" in record.getMessage() for record in caplog.records)
    to_microns = np.diag([layouts.XENIUM_UM, layouts.XENIUM_UM, 1.0]) @ run.matrix
    with pytest.raises(Img2GeneError, match=r"if it leads to µm.*np.diag"):
        ig.io.read_xenium(run.written.path, alignment=to_microns, **arguments)


@pytest.mark.parametrize(
    ("alignment", "match"),
    [
        (np.eye(2), "no affine matrix"),
        (np.diag([1.0, 1.5, 1.0]), "stretches the image unevenly"),
        (np.diag([1.0, 0.0, 1.0]), "stretches the image unevenly"),
        (np.array([[1, 0, 1e6], [0, 1, 0], [0, 0, 1.0]]), "nothing that was measured lies on the image"),
    ],
)
def test_a_wrong_matrix_is_refused(run, alignment, match):
    with pytest.raises(Img2GeneError, match=match):
        ig.io.read_xenium(run.written.path, image=run.written.image, alignment=alignment)


def test_keypoints_are_checked(run, tmp_path, caplog):
    points = pd.read_csv(run.keypoints)
    arguments = {"path": run.written.path, "image": run.written.image, "alignment": tmp_path / "points.csv"}
    points.iloc[:2].to_csv(tmp_path / "points.csv", index=False)
    with pytest.raises(Img2GeneError, match="three keypoints that do not lie in one line are needed; it has 2"):
        ig.io.read_xenium(**arguments)
    points.drop(columns="fixedY").to_csv(tmp_path / "points.csv", index=False)
    with pytest.raises(Img2GeneError, match="columns fixedY not found"):
        ig.io.read_xenium(**arguments)
    points.loc[1, "fixedX"] += 5000
    points.to_csv(tmp_path / "points.csv", index=False)
    with pytest.raises(Img2GeneError, match="stretches"):
        ig.io.read_xenium(**arguments)
    points.loc[1, "fixedX"] -= 4800
    points.to_csv(tmp_path / "points.csv", index=False)
    ig.io.read_xenium(**arguments)
    assert "keypoint 2 is" in caplog.text


def test_the_pixel_size_must_be_known(run):
    (run.written.path / "experiment.xenium").write_text(json.dumps({"analysis_sw_version": "xenium-2.0.0"}))
    with pytest.raises(Img2GeneError, match="holds no pixel_size"):
        ig.io.read_xenium(run.written.path, image=run.written.image, alignment=run.matrix)


@pytest.mark.parametrize(
    ("write", "read"), [(layouts.cosmx, ig.io.read_cosmx), (layouts.merscope, ig.io.read_merscope)]
)
def test_cells_of_cosmx_and_merscope_lie_on_the_aligned_image(tmp_path, write, read):
    run = write(tmp_path / "run")
    sdata = read(tmp_path / "run", image=run.written.image, alignment=run.matrix, section="S", patient="P")
    check_cells(sdata, run.written)
    np.testing.assert_allclose(sdata["S_spots"]["radius"] * run.written.mpp, 5)
    np.testing.assert_array_equal(ig.pp.bin_to(sdata, 55)["table"].X.sum(axis=0), sdata["table"].X.sum(axis=0))


@pytest.mark.parametrize(
    ("write", "read", "name"),
    [
        (layouts.cosmx, ig.io.read_cosmx, "Run_exprMat_file.csv"),
        (layouts.cosmx, ig.io.read_cosmx, "Run_metadata_file.csv"),
        (layouts.merscope, ig.io.read_merscope, "cell_by_gene.csv"),
        (layouts.merscope, ig.io.read_merscope, "cell_metadata.csv"),
    ],
)
def test_an_unknown_layout_of_cosmx_or_merscope_is_described(tmp_path, write, read, name):
    run = write(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.raises(Img2GeneError, match=f"Looked for {name.removeprefix('Run_')}.*and found "):
        read(tmp_path / "run", image=run.written.image, alignment=run.matrix)


def test_a_section_of_hest_has_its_slide_and_patient(tmp_path):
    written = layouts.hest(tmp_path)
    sdata = ig.io.read_hest(tmp_path, "X1")
    assert set(sdata["table"].obs["patient"]) == {"Study 3"}
    check_cells(ig.io.read_hest(tmp_path, "X1", patient="P"), written)
    with pytest.raises(Img2GeneError, match="Looked for st/X2.h5ad or wsis/X2.tif or metadata/X2.json, and found "):
        ig.io.read_hest(tmp_path, "X2")
    (tmp_path / "metadata" / "X1.json").write_text("{}")
    with pytest.raises(Img2GeneError, match="gives no pixel_size_um_estimated"):
        ig.io.read_hest(tmp_path, "X1")


@pytest.mark.parametrize(
    ("technology", "spot_um"), [("Spatial Transcriptomics", 30), ("Visium", 55), ("Xenium", 50), ("Visium HD", 50)]
)
def test_spots_of_hest_have_the_size_of_their_technology(tmp_path, technology, spot_um):
    # Spots lie 50 µm apart, and the metadata record 30 µm.
    layouts.hest(tmp_path, technology=technology)
    region = ig.io.read_hest(tmp_path, "X1").shapes["X1_spots"]
    np.testing.assert_allclose(region["radius"], spot_um / 2 / 0.5)


def test_an_unknown_size_of_spots_of_hest_is_asked_for(tmp_path):
    layouts.hest(tmp_path)
    about = json.loads((tmp_path / "metadata" / "X1.json").read_text())
    (tmp_path / "metadata" / "X1.json").write_text(json.dumps(about | {"spot_diameter": None}))
    with pytest.raises(Img2GeneError, match="does not give the size of the spots .*Pass `spot_um=`"):
        ig.io.read_hest(tmp_path, "X1")
    region = ig.io.read_hest(tmp_path, "X1", spot_um=100).shapes["X1_spots"]
    np.testing.assert_allclose(region["radius"], 100)


def test_control_probes_of_hest_are_no_genes(tmp_path):
    import anndata as ad

    written = layouts.hest(tmp_path, technology="Xenium")
    path = tmp_path / "st" / "X1.h5ad"
    stored = ad.read_h5ad(path)
    names = ["NegControlProbe_00042", "BLANK_0069", "antisense_PROKR2"]
    controls = ad.AnnData(
        np.full((stored.n_obs, 3), 9, dtype=np.float32), obs=stored.obs, var=pd.DataFrame(index=names)
    )
    ad.concat([stored, controls], axis=1, merge="first").write_h5ad(path)
    table = ig.io.read_hest(tmp_path, "X1")["table"]
    assert list(table.var_names) == list(layouts.UNIQUE)
    np.testing.assert_array_equal(table.obs["library_size"], written.counts.sum(axis=1))
