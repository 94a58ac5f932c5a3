"""Whole slides: files of several formats, their microns, their pyramids, and what is wrong with them."""

import logging
import pickle
from pathlib import Path

import anndata as ad
import geopandas as gpd
import numpy as np
import pytest
from shapely import box
from spatialdata import read_zarr
from spatialdata.models import ShapesModel

import img2gene as ig
from img2gene._errors import Img2GeneError
from img2gene._study.images import open_image
from img2gene._study.microns import image_mpp
from img2gene._study.tissue import slide_tissue, tissue_mask
from img2gene.io.slides import section_name

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("wsidata")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

HEIGHT, WIDTH = 1024, 1536


def picture(seed=0, height=HEIGHT, width=WIDTH):
    """Stained tissue with detail of several sizes, on a white slide."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    field = sum(s * gaussian_filter(rng.normal(size=(height, width, 3)), (s, s, 0)) for s in (2, 6, 18))
    rows, columns = np.mgrid[:height, :width]
    tissue = ((rows / height - 0.5) ** 2 + (columns / width - 0.5) ** 2)[..., None] < 0.12
    stained = np.array([170, 90, 150]) + 50 * field / field.std()
    return np.where(tissue, np.clip(stained, 0, 230), 244).astype(np.uint8)


def averaged(pixels, factor):
    height, width = (length // factor * factor for length in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


PICTURE = picture()


def levels_of(pixels, factors=(1, 4)):
    return [averaged(pixels, factor) for factor in factors]


def write_svs(path, levels, mpp=0.5, power=20):
    """Pages as Aperio writes them; OpenSlide recognises them by the description and the tiles."""
    size = f"{levels[0].shape[1]}x{levels[0].shape[0]}"
    facts = f"|AppMag = {power}" + (f"|MPP = {mpp}" if mpp else "")
    with tifffile.TiffWriter(path) as tiff:
        for number, pixels in enumerate(levels):
            text = f"Aperio Image Library v12.0.15\r\n{size} [0,0 {size}] (256x256) JPEG/RGB Q=90{facts}"
            tiff.write(
                pixels,
                photometric="rgb",
                tile=(256, 256),
                compression="deflate",
                description=text,
                subfiletype=int(number > 0),
                metadata=None,
                software=False,
            )
    return path


def write_ome(path, levels, mpp=0.5, unit="µm"):
    metadata = {"axes": "YXS"}
    if mpp:
        metadata |= {f"PhysicalSize{axis}": mpp for axis in "XY"} | {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    with tifffile.TiffWriter(path) as tiff:
        options = {"photometric": "rgb", "tile": (256, 256), "compression": "deflate"}
        tiff.write(levels[0], subifds=len(levels) - 1, metadata=metadata, **options)
        for pixels in levels[1:]:
            tiff.write(pixels, subfiletype=1, **options)
    return path


def write_tiff(path, levels, mpp=0.5):
    with tifffile.TiffWriter(path) as tiff:
        for number, pixels in enumerate(levels):
            per_cm = 1e4 / mpp * pixels.shape[1] / levels[0].shape[1] if mpp else 1
            unit = "CENTIMETER" if mpp else "NONE"
            options = {"resolution": (per_cm, per_cm), "resolutionunit": unit, "subfiletype": int(number > 0)}
            tiff.write(pixels, photometric="rgb", tile=(256, 256), compression="deflate", metadata=None, **options)
    return path


WRITERS = {"slide.svs": write_svs, "slide.ome.tiff": write_ome, "slide.tiff": write_tiff}
FORMATS = pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=WRITERS)


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@FORMATS
def test_file_becomes_a_lazy_pyramid_with_its_microns(tmp_path, name, write):
    sdata = ig.io.read_slide(write(tmp_path / name, levels_of(PICTURE)))
    assert list(sdata.images) == ["slide_image"]
    assert image_mpp(sdata, "slide_image") == pytest.approx(0.5)
    scales = [open_image(sdata, "slide_image", scale=scale) for scale in (0, 1)]
    for image, expected in zip(scales, levels_of(PICTURE), strict=True):
        np.testing.assert_array_equal(image.whole(), expected)
    assert sorted(sdata.coordinate_systems) == ["slide", "slide_um"]


def test_the_resolution_of_a_print_is_not_taken_for_that_of_a_scan(tmp_path):
    path, (pixels,) = tmp_path / "slide.tif", levels_of(PICTURE, (1,))
    options = {"photometric": "rgb", "tile": (256, 256), "resolutionunit": "INCH"}
    tifffile.imwrite(path, pixels, resolution=(72, 72), **options)
    with pytest.raises(Img2GeneError, match=r"352.8 µm per pixel \(72 dots per inch\).*Pass `mpp=`"):
        ig.io.read_slide(path)
    assert image_mpp(ig.io.read_slide(path, mpp=0.5), "slide_image") == pytest.approx(0.5)
    tifffile.imwrite(path, pixels, resolution=(50_800, 50_800), **options)
    assert image_mpp(ig.io.read_slide(path), "slide_image") == pytest.approx(0.5)


def test_a_folder_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / "level1.dcm").touch()
    with pytest.raises(Img2GeneError, match=r"is a folder \(level1.dcm\).*any of its `.dcm` files"):
        ig.io.read_slide(tmp_path)


@FORMATS
def test_slide_without_microns_is_refused_with_what_to_pass(tmp_path, name, write):
    path = write(tmp_path / name, levels_of(PICTURE), mpp=None)
    with pytest.raises(Img2GeneError, match="does not say how many microns .*Pass `mpp=`"):
        ig.io.read_slide(path)
    assert image_mpp(ig.io.read_slide(path, mpp=0.25), "slide_image") == pytest.approx(0.25)


def test_objective_suggests_microns(tmp_path):
    with pytest.raises(Img2GeneError, match="objective of 40× suggests about 0.25"):
        ig.io.read_slide(write_svs(tmp_path / "a.svs", levels_of(PICTURE), mpp=None, power=40))


def test_other_microns_than_those_of_the_file_are_used_with_a_warning(tmp_path, caplog):
    sdata = ig.io.read_slide(write_svs(tmp_path / "a.svs", levels_of(PICTURE)), mpp=0.25)
    assert image_mpp(sdata, "a_image") == pytest.approx(0.25)
    assert "mpp=0.25 is used" in messages(caplog)[0]


def test_units_of_ome_are_converted(tmp_path):
    path = write_ome(tmp_path / "a.ome.tif", levels_of(PICTURE), mpp=250.0, unit="nm")
    assert image_mpp(ig.io.read_slide(path), "a_image") == pytest.approx(0.25)


@FORMATS
def test_pyramid_whose_levels_show_different_pictures_is_refused(tmp_path, name, write):
    levels = levels_of(PICTURE)
    levels[1] = averaged(PICTURE[:, ::-1] // 2, 4)
    with pytest.raises(Img2GeneError, match="scales 0 and 1 .*show different pictures"):
        ig.io.read_slide(write(tmp_path / name, levels))


def test_pyramid_whose_levels_have_different_proportions_is_refused(tmp_path):
    levels = [PICTURE, averaged(PICTURE, 4)[:, :256]]
    with pytest.raises(Img2GeneError, match="scale 1 has 256 × 256 px.*same proportions"):
        ig.io.read_slide(write_ome(tmp_path / "a.ome.tiff", levels))


@pytest.mark.parametrize("text", [b"", b"no slide at all", b"II*\0 cut"])
def test_what_is_no_slide_is_refused_by_name(tmp_path, text):
    (tmp_path / "a.svs").write_bytes(text)
    with pytest.raises(Img2GeneError, match=r"a.svs' cannot be opened as a slide"):
        ig.io.read_slide(tmp_path / "a.svs")


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(Img2GeneError, match="no file .*none.svs"):
        ig.io.read_slide(tmp_path / "none.svs")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.svs", "a"), ("S 1.ome.tif", "S_1"), ("x.y.ndpi", "x.y"), ("(A)/b c.tiff", "b_c"), ("ä1.mrxs", "1")],
)
def test_section_is_named_after_the_file(name, expected):
    assert section_name(Path(name)) == expected


def tiled(path, **arguments):
    sdata = ig.io.read_slide(path)
    image = next(iter(sdata.images))
    ig.pp.tile_slide(sdata, image, **{"tile_um": 64.0, "patch_um": (32.0, 64.0), "patch_px": 64, **arguments})
    return sdata


def embedding(sdata, encoder="color-texture", **arguments):
    ig.pp.embed_patches(sdata, encoder, table_key="slide_tiles", orientations=1, **arguments)
    return np.asarray(sdata["slide_tiles"].obsm[f"X_{encoder}"])


@FORMATS
def test_slide_is_tiled_and_embedded_from_every_format_alike(tmp_path, name, write):
    sdata = tiled(write(tmp_path / name, levels_of(PICTURE)))
    other = tiled(write_tiff(tmp_path / "other.tiff", levels_of(PICTURE)))
    assert sdata["slide_tiles"].n_obs > 20
    np.testing.assert_allclose(embedding(sdata), embedding(other), rtol=1e-5, atol=1e-5)


def cosines(one, other):
    """Smallest cosine between the embeddings of one place."""
    return float(((one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min())


def test_scans_of_20_and_40_times_have_one_embedding_within_tolerance(tmp_path):
    """The tolerances that the guide on slides states, on a picture with more detail than tissue has."""
    forty = tiled(write_svs(tmp_path / "forty.svs", levels_of(PICTURE, (1, 4)), mpp=0.25, power=40), tile_um=64.0)
    twenty = tiled(write_svs(tmp_path / "twenty.svs", levels_of(PICTURE, (2, 8)), mpp=0.5, power=20), tile_um=64.0)
    places = [
        {tuple(place): row for row, place in enumerate(np.asarray(sdata["slide_tiles"].obsm["spatial"]) * mpp)}
        for sdata, mpp in ((forty, 0.25), (twenty, 0.5))
    ]
    # A tile with just enough tissue may be on one of the slides only.
    common = sorted(set(places[0]) & set(places[1]))
    assert len(common) > 8
    rows = [[index[place] for place in common] for index in places]
    found = []
    for resolution_um in (None, 0.5):
        for sdata in (forty, twenty):
            ig.pp.extract_patches(sdata, patch_um=(32.0, 64.0), resolution_um=resolution_um, table_key="slide_tiles")
            ig.pp.embed_patches(sdata, table_key="slide_tiles", orientations=1)
        features = [np.asarray(sdata["slide_tiles"].obsm["X_efficientnet-lite0"]) for sdata in (forty, twenty)]
        found.append(cosines(features[0][rows[0]], features[1][rows[1]]))
    assert found[0] > 0.98
    assert found[1] > 0.999


def damaged(path, page=0, tile=7):
    """Overwrite one compressed tile of a file."""
    with tifffile.TiffFile(path) as tiff:
        series = tiff.pages[page]
        start, length = series.dataoffsets[tile], series.databytecounts[tile]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * length)
    return path


@FORMATS
def test_truncated_tile_is_finished_listed_and_nan(tmp_path, caplog, name, write):
    good = tiled(write(tmp_path / f"good_{name}", levels_of(PICTURE, (1, 2))))
    bad = tiled(damaged(write(tmp_path / name, levels_of(PICTURE, (1, 2))), tile=8))
    caplog.clear()
    expected, features = embedding(good), embedding(bad)
    lost = ~bad["slide_tiles"].obs["patch_readable"].to_numpy(dtype=bool)
    assert 0 < lost.sum() < len(lost)
    assert np.isnan(features[lost]).all()
    np.testing.assert_allclose(features[~lost], expected[~lost], rtol=1e-5, atol=1e-5)
    (text,) = messages(caplog)
    assert f"{lost.sum()} of {len(lost)} spots cannot be read: {bad['slide_tiles'].obs_names[lost][0]}" in text
    with pytest.raises(Img2GeneError, match="cannot be read"):
        embedding(bad, on_error="raise")


def test_slide_can_be_cut_joined_stored_and_read_back(tmp_path):
    sdata = tiled(write_svs(tmp_path / "a.svs", levels_of(PICTURE)))
    features = embedding(sdata)
    sdata.write(tmp_path / "slide.zarr")
    back = read_zarr(tmp_path / "slide.zarr")
    assert image_mpp(back, "a_image") == pytest.approx(0.5)
    np.testing.assert_allclose(embedding(back), features, rtol=1e-6)
    part = sdata.query.bounding_box(
        axes=("x", "y"), min_coordinate=[300, 200], max_coordinate=[1200, 800], target_coordinate_system="a"
    )
    assert image_mpp(part, "a_image") == pytest.approx(0.5)


def test_lazy_image_travels_to_other_processes(tmp_path):
    sdata = ig.io.read_slide(write_svs(tmp_path / "a.svs", levels_of(PICTURE)))
    array = pickle.loads(pickle.dumps(sdata["a_image"]["scale1"]["image"].data))
    np.testing.assert_array_equal(np.moveaxis(array.compute(), 0, -1), averaged(PICTURE, 4))


def test_model_trained_on_spots_predicts_the_slide(tmp_path):
    training = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    ig.pp.extract_patches(training, patch_um=64.0)
    ig.pp.embed_patches(training, "color-texture")
    ig.tl.fit(training, "ridge")
    sdata = tiled(write_svs(tmp_path / "a.svs", levels_of(PICTURE)), patch_um=64.0, patch_px=224)
    ig.pp.embed_patches(sdata, "color-texture", table_key="slide_tiles")
    ig.tl.predict(sdata, ig.get.model(training), table_key="slide_tiles")
    assert np.isfinite(sdata["img2gene"].X).all()


# Tissue, and the tiles of LazySlide


def test_tiles_of_lazyslide_stay_and_ours_have_another_name(tmp_path):
    sdata = ig.io.read_slide(write_svs(tmp_path / "a.svs", levels_of(PICTURE)))
    theirs = ShapesModel.parse(gpd.GeoDataFrame(geometry=[box(0, 0, 256, 256)]))
    sdata.shapes["tiles"] = theirs
    ig.pp.tile_slide(sdata, "a_image", tile_um=64.0, patch_um=64.0)
    assert sdata.shapes["tiles"] is theirs
    assert {"slide_tiles", "slide_tiles_squares"} <= {*sdata.tables, *sdata.shapes}


def test_ours_leave_the_name_free_for_lazyslide(tmp_path):
    sdata = tiled(write_svs(tmp_path / "a.svs", levels_of(PICTURE)))
    sdata.shapes["tiles"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=[box(0, 0, 256, 256)]))
    assert isinstance(sdata["slide_tiles"], ad.AnnData)


def test_squidpy_finds_the_tissue_and_is_named(tmp_path, caplog):
    pytest.importorskip("squidpy")
    with caplog.at_level(logging.INFO, logger="img2gene"):
        sdata = tiled(write_svs(tmp_path / "a.svs", levels_of(PICTURE)))
    assert "found by squidpy" in caplog.text
    centers = np.asarray(sdata["slide_tiles"].obsm["spatial"])
    inside = (centers[:, 1] / HEIGHT - 0.5) ** 2 + (centers[:, 0] / WIDTH - 0.5) ** 2
    assert (inside < 0.16).all()


def test_pale_tissue_is_found_by_either_detector():
    pixels = averaged(PICTURE, 4)
    mask, detector = slide_tissue(pixels)
    assert detector.startswith("squidpy")
    assert (mask == tissue_mask(pixels)).mean() > 0.9


def test_own_threshold_takes_the_place_of_squidpy(monkeypatch):
    pixels = averaged(PICTURE, 4)
    monkeypatch.setitem(__import__("sys").modules, "squidpy.experimental.im", None)
    mask, detector = slide_tissue(pixels)
    assert detector.startswith("saturation (squidpy: ")
    np.testing.assert_array_equal(mask, tissue_mask(pixels))


def test_picture_full_of_tissue_is_tissue_everywhere():
    # Corners of stained tissue would be background to squidpy.
    pixels = averaged(PICTURE, 4)[90:160, 130:250]
    mask, detector = slide_tissue(pixels)
    assert detector.startswith("saturation (the corners")
    assert mask.mean() > 0.9


def one_page(path, pixels, **options):
    tags = {"tile": (256, 256), "resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, **{"photometric": "rgb"} | tags | options)
    return path


def macro_first(path):
    with tifffile.TiffWriter(path) as tiff:
        for pixels, um in ((PICTURE[:512, :512], 8), (PICTURE, 0.5)):
            metadata = {"axes": "YXS", "PhysicalSizeX": um, "PhysicalSizeY": um}
            tiff.write(pixels, photometric="rgb", tile=(256, 256), metadata=metadata)
    return path


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("grey.tif", lambda path: one_page(path, PICTURE[..., 0], photometric="minisblack"), "is grey"),
        ("deep.tif", lambda path: one_page(path, PICTURE.astype(np.uint16) * 16), "uint16; slides are read as 8-bit"),
        (
            "turned.tif",
            lambda path: one_page(path, PICTURE, extratags=[(274, "H", 1, 3, True)]),
            "orientation tag is 3",
        ),
        ("macro.ome.tif", macro_first, "512 × 512 px is read from it, but its largest has 1,572,864"),
    ],
)
def test_pixels_that_would_be_read_as_others_are_refused(tmp_path, name, write, message):
    with pytest.raises(Img2GeneError, match=message):
        ig.io.read_slide(write(tmp_path / name))


def test_a_dicom_slide_has_the_pixels_and_microns_of_its_source(tmp_path):
    wsidicomizer = pytest.importorskip("wsidicomizer")
    (tmp_path / "dicom").mkdir()
    source = write_svs(tmp_path / "slide.svs", levels_of(PICTURE))
    files = wsidicomizer.WsiDicomizer.convert(
        source, tmp_path / "dicom", tile_size=256, preferred_source=wsidicomizer.SourceIdentifier.OPENSLIDE
    )
    sdata = ig.io.read_slide(files[0], section="S")
    pixels = sdata.images["S_image"]["scale0"].image.data.compute().transpose(1, 2, 0)
    # JPEG changes each pixel by a few grey levels.
    assert np.abs(pixels.astype(int) - PICTURE).mean() < 3
    assert image_mpp(sdata, "S_image") == pytest.approx(0.5)


@pytest.mark.parametrize(("dots", "unit"), [(40_000, "CENTIMETER"), (72, "INCH"), (10, "CENTIMETER")])
def test_microns_of_ome_come_before_the_tags_of_a_tiff_and_a_contradiction_is_named(tmp_path, caplog, dots, unit):
    import tifffile

    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    microns = {
        "axes": "YXS",
        "PhysicalSizeX": 0.5,
        "PhysicalSizeY": 0.5,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeYUnit": "µm",
    }
    file = tmp_path / "slide.ome.tif"
    options = {"tile": (256, 256), "photometric": "rgb", "metadata": microns}
    tifffile.imwrite(file, pixels, resolution=(dots, dots), resolutionunit=unit, **options)
    sdata = ig.io.read_slide(file)
    ig.pp.tile_slide(sdata, "slide_image", tile_um=50, patch_um=50, min_tissue=0)
    assert set(np.diff(sdata["slide_tiles"].obsm["patch_bbox"][:, [0, 2]]).ravel()) == {100}
    assert any("0.5 µm per pixel in its OME metadata" in record.getMessage() for record in caplog.records)
