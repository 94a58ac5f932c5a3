"""Readers of Visium and Visium HD give the study that the files describe, whatever version wrote them."""

import gzip
import json
import logging

import numpy as np
import pandas as pd
import pytest

import img2gene as ig
from img2gene import Img2GeneError, _schema
from img2gene._study.images import open_image
from platforms import layouts


def record(sdata):
    return next(iter(_schema.read_json(sdata["table"], "sections").values()))


def check_study(sdata, written, *, scale=1.0):
    """The study holds exactly what was written."""
    table = sdata["table"]
    assert table.obs_names.tolist() == written.names
    assert table.var_names.tolist() == list(layouts.UNIQUE)
    assert table.var["gene_ids"].tolist() == list(layouts.IDS)
    np.testing.assert_array_equal(table.X.toarray(), written.counts)
    np.testing.assert_array_equal(table.obs["library_size"], written.counts.sum(axis=1))
    np.testing.assert_allclose(table.obsm["spatial"], written.xy * scale, atol=1e-6)
    assert record(sdata)["mpp"] == pytest.approx(written.mpp / scale, rel=1e-3)


@pytest.mark.parametrize("layout", layouts.SPACE_RANGER)
def test_every_version_of_space_ranger_gives_the_same_study(tmp_path, layout):
    written = layouts.visium(tmp_path, layout)
    sdata = ig.io.read_visium(tmp_path, image=written.image, section="S", patient=7)
    table = sdata["table"]
    if layout == "raw":
        assert table.obs["in_tissue"].tolist() == [1] * 32 + [0, 0]
        sdata["table"] = table = table[:32].copy()
    check_study(sdata, written)
    np.testing.assert_array_equal(open_image(sdata, "S_image").whole(), written.pixels)
    assert set(table.obs["patient"]) == {"7"} and set(table.obs["section"]) == {"S"}
    assert table.obs["array_col"].tolist()[:3] == [0, 2, 4]
    assert record(sdata)["spot_um"] == 55


def test_the_folder_outs_and_its_parent_are_the_same(tmp_path):
    written = layouts.visium(tmp_path / "A1", "2")
    for path in (tmp_path / "A1", tmp_path / "A1" / "outs", str(tmp_path / "A1")):
        sdata = ig.io.read_visium(path, image=written.pixels)
        assert list(sdata.images) == ["A1_image"]
        check_study(sdata, written)


def test_the_hires_image_stands_in_with_a_warning(tmp_path, caplog):
    written = layouts.visium(tmp_path, "2")
    sdata = ig.io.read_visium(tmp_path, section="S")
    check_study(sdata, written, scale=0.25)
    assert "2 µm per px, which is too coarse to show nuclei. Pass the full-resolution image" in caplog.text
    caplog.clear()
    ig.io.read_visium(tmp_path, image=written.image, section="S")
    assert not [item for item in caplog.records if item.levelno >= logging.WARNING]


def test_raw_counts_are_read_on_request(tmp_path):
    layouts.visium(tmp_path, "raw")
    assert ig.io.read_visium(tmp_path, section="S", counts="raw")["table"].n_obs == 34
    with pytest.raises(Img2GeneError, match=r"Looked for filtered_feature_bc_matrix.h5 or .*found .*raw_feature_bc"):
        ig.io.read_visium(tmp_path, section="S", counts="filtered")


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda path: (path / "spatial" / "scalefactors_json.json").rename(path / "scales.json"), "scalefactors_json"),
        (
            lambda path: (path / "spatial" / "tissue_positions.csv").rename(path / "spots.csv"),
            "tissue_positions.parquet",
        ),
        (lambda path: (path / "filtered_feature_bc_matrix.h5").rename(path / "counts_v5.h5"), "found counts_v5.h5"),
        (
            lambda path: (path / "spatial" / "tissue_positions.csv").write_text("barcode,x,y\nA-1,1,2\n"),
            "columns.*x, y",
        ),
        (
            lambda path: (path / "spatial" / "scalefactors_json.json").write_text("{}"),
            "scalefactors_json.json: tissue_hires_scalef is None",
        ),
        (lambda path: (path / "filtered_feature_bc_matrix.h5").write_bytes(b"cut"), "feature matrix of 10x"),
    ],
)
def test_an_unknown_layout_is_described(tmp_path, spoil, match):
    layouts.visium(tmp_path, "2")
    spoil(tmp_path / "outs")
    with pytest.raises(Img2GeneError, match=match):
        ig.io.read_visium(tmp_path, section="S", spot_um=None)


def test_files_of_two_sections_are_refused(tmp_path):
    written = layouts.visium(tmp_path, "1")
    layouts.write_matrix(tmp_path / "filtered_feature_bc_matrix.h5", written.counts[:2], ["X-1", "Y-1"])
    with pytest.raises(Img2GeneError, match="belong to different sections"):
        ig.io.read_visium(tmp_path, section="S")


@pytest.mark.parametrize(
    ("change", "match"), [(lambda p: p[::2, ::2], "one of about 1920 × 1280"), (lambda p: p.swapaxes(0, 1), "turned")]
)
def test_another_image_than_the_positions_refer_to_is_refused(tmp_path, change, match):
    written = layouts.visium(tmp_path, "2")
    with pytest.raises(Img2GeneError, match=match):
        ig.io.read_visium(tmp_path, image=np.ascontiguousarray(change(written.pixels)), section="S")


def test_all_wrong_arguments_are_named(tmp_path):
    with pytest.raises(Img2GeneError, match=r"(?s)no such folder.*section=.a b.*image=3.*counts=.all."):
        ig.io.read_visium(tmp_path / "none", image=3, section="a b", counts="all")
    layouts.visium(tmp_path, "2")
    with pytest.raises(Img2GeneError, match="no such file"):
        ig.io.read_visium(tmp_path, image="none.tif", section="S")


@pytest.mark.parametrize("bin_um", [2, 8, 16])
def test_bins_of_each_side_are_read(tmp_path, bin_um):
    written = layouts.visium_hd(tmp_path)[bin_um]
    sdata = ig.io.read_visium_hd(tmp_path, bin_um=bin_um, image=written.image, section="S", patient="P")
    check_study(sdata, written)
    assert record(sdata)["spot_um"] == pytest.approx(bin_um)
    assert sdata["S_spots"]["radius"].iloc[0] == pytest.approx(bin_um)


def test_segmented_cells_keep_their_outlines(tmp_path):
    written = layouts.visium_hd(tmp_path)["cells"]
    sdata = ig.io.read_visium_hd(tmp_path, cells=True, image=written.image, section="S")
    check_study(sdata, written)
    np.testing.assert_allclose(sdata["S_spots"].area, 400)
    # Squares of 20 px are 10 µm wide.
    assert record(sdata)["spot_um"] == pytest.approx(10)
    ig.pp.extract_patches(sdata, patch_um=56)
    boxes = sdata["table"].obsm["patch_bbox"]
    np.testing.assert_allclose((boxes[:, :2] + boxes[:, 2:])[:, ::-1] / 2, written.xy, atol=1)
    coarse = ig.io.read_visium_hd(tmp_path, cells=True, section="S")
    np.testing.assert_allclose(coarse["S_spots"].area, 25)


def test_bins_and_cells_that_do_not_exist_are_named(tmp_path):
    layouts.visium_hd(tmp_path, with_cells=False)
    with pytest.raises(Img2GeneError, match=r"no bins of 24 µm \(available: 2, 8, 16\).*bin_to\(sdata, 24\)"):
        ig.io.read_visium_hd(tmp_path, bin_um=24, section="S")
    with pytest.raises(Img2GeneError, match="Looked for segmented_outputs, and found binned_outputs/.*from version 4"):
        ig.io.read_visium_hd(tmp_path, cells=True, section="S")
    with pytest.raises(Img2GeneError, match="read either bins or cells"):
        ig.io.read_visium_hd(tmp_path, bin_um=8, cells=True, section="S")
    with pytest.raises(Img2GeneError, match="read_visium_hd"):
        ig.io.read_visium(tmp_path, section="S")
    layouts.visium(tmp_path / "spots")
    with pytest.raises(Img2GeneError, match="square_008um.*read_visium`"):
        ig.io.read_visium_hd(tmp_path / "spots", section="S")


def test_cells_without_an_outline_are_named(tmp_path):
    layouts.visium_hd(tmp_path)
    path = tmp_path / "outs" / "segmented_outputs" / "cell_segmentations.geojson"
    content = json.loads(path.read_text())
    content["features"] = content["features"][1:]
    path.write_text(json.dumps(content))
    with pytest.raises(Img2GeneError, match=r"no outline of 1 of 4 counted cells \(cellid_000000001-1"):
        ig.io.read_visium_hd(tmp_path, cells=True, section="S")


@pytest.mark.real
def test_real_folders_are_read(data, caplog):
    study = ig.io.read_visium(data / "lung_organoid_visium" / "V19D02-088_A1", patient="donor")
    assert study["table"].shape == (416, 33538)
    assert study["table"].var_names.is_unique
    assert study["table"].var["gene_ids"].str.match(r"ENSG\d{11}$").all()
    assert ig.io.read_visium(data / "formats" / "visium")["table"].shape == (2695, 100)
    bins = ig.io.read_visium_hd(data / "formats" / "visium_hd", bin_um=8)
    assert record(bins)["mpp"] == pytest.approx(0.27376126715315274 / 0.25404352, rel=1e-6)
    # These small files list positions outside their image.
    assert "left out 372 of 2695" in caplog.text
    assert ig.io.read_visium_hd(data / "formats" / "visium_hd", bin_um=16)["table"].n_obs > 0


@pytest.mark.parametrize("tile", [(256, 256), None])
def test_a_large_tiff_stays_on_disk_and_gives_the_same_pixels(tmp_path, monkeypatch, tile):
    import tifffile

    written = layouts.visium(tmp_path)
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(written.pixels, tile=tile, photometric="rgb", subifds=1)
        file.write(written.pixels[::2, ::2], tile=tile, photometric="rgb", subfiletype=1)
    monkeypatch.setattr("img2gene.io._pictures._LARGE_PX", 1000)
    sdata = ig.io.read_visium(tmp_path, image=path, section="S")
    assert any("from-zarr" in str(key) for key in sdata["S_image"].data.dask)
    np.testing.assert_array_equal(open_image(sdata, "S_image").whole(), written.pixels)
    np.testing.assert_array_equal(sdata["table"].uns["spatial"]["S"]["images"]["hires"], written.pixels[::4, ::4])


def test_the_section_is_named_after_its_folder_in_characters_that_can_be_stored(tmp_path):
    written = layouts.visium(tmp_path / "Größe" / "my run (2)", "2")
    assert list(ig.io.read_visium(written.path, image=written.pixels).images) == ["my_run_2_image"]


def test_files_that_an_archive_gzipped_are_read(tmp_path):
    written = layouts.visium(tmp_path / "run", "1")
    archive = tmp_path / "GEO"
    archive.mkdir()
    (written.path / "filtered_feature_bc_matrix.h5").rename(archive / "GSM1_filtered_feature_bc_matrix.h5")
    for name in ("tissue_positions_list.csv", "scalefactors_json.json", "tissue_hires_image.png"):
        content = (written.path / "spatial" / name).read_bytes()
        (archive / f"GSM1_{name}.gz").write_bytes(gzip.compress(content))
    check_study(ig.io.read_visium(archive, image=written.image), written)
    hires = ig.io.read_visium(archive)
    check_study(hires, written, scale=0.25)
    np.testing.assert_array_equal(open_image(hires, "GEO_image").whole(), written.pixels[::4, ::4])


def test_what_is_packed_or_unpacked_is_named_with_what_to_do(tmp_path):
    written = layouts.visium(tmp_path / "A", "2")
    counts = tmp_path / "A" / "outs" / "filtered_feature_bc_matrix.h5"
    with pytest.raises(Img2GeneError, match="is a file. Pass the folder it lies in"):
        ig.io.read_visium(counts)
    counts.with_name(counts.name + ".gz").write_bytes(gzip.compress(counts.read_bytes()))
    counts.unlink()
    with pytest.raises(Img2GeneError, match="Unpack filtered_feature_bc_matrix.h5.gz with gunzip"):
        ig.io.read_visium(written.path, image=written.pixels)
    written = layouts.visium(tmp_path / "B", "text")
    matrix = tmp_path / "B" / "filtered_feature_bc_matrix"
    for path in list(matrix.glob("*.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    with pytest.raises(Img2GeneError, match="expected to be gzipped: gzip "):
        ig.io.read_visium(written.path, image=written.pixels)


def test_spots_without_a_position_are_named(tmp_path):
    written = layouts.visium(tmp_path, "2")
    place = tmp_path / "outs" / "spatial" / "tissue_positions.csv"
    frame = pd.read_csv(place).astype({"pxl_row_in_fullres": float})
    frame.loc[frame["barcode"] == written.names[3], "pxl_row_in_fullres"] = np.nan
    frame.to_csv(place, index=False)
    with pytest.raises(Img2GeneError, match=f"1 of 32 spots or cells have no position .{written.names[3]}"):
        ig.io.read_visium(tmp_path, section="S", image=written.pixels)
