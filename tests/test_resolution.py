"""Images of different microns per pixel: what is read, what is warned of, and what cannot be read."""

import logging

import anndata as ad
import dask
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from shapely import Polygon
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

import img2gene as ig
from img2gene._errors import Img2GeneError
from img2gene._study.pyramids import check_pyramid
from img2gene._study.resolution import nearest_scale, section_resolutions
from img2gene._study.study import Study
from img2gene.io import build_section, concat_sections

SIDE = 512


def picture(seed=0, side=SIDE):
    """Stained tissue with detail of all sizes on white."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    field = sum(s * gaussian_filter(rng.normal(size=(side, side, 3)), (s, s, 0)) for s in (1, 3, 9, 27))
    rows, columns = np.mgrid[:side, :side]
    tissue = np.hypot(rows - side / 2, columns - side / 2)[..., None] < 0.45 * side
    stained = np.array([170, 90, 150]) + 60 * field / field.std()
    return np.where(tissue, np.clip(stained, 0, 235), 245).astype(np.uint8)


def averaged(pixels, factor):
    height, width = (length // factor * factor for length in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def section(name, pixels, mpp, *, n=6, genes=8, patient="P1"):
    """Spots on a square of ``n`` × ``n`` places that are the same in µm whatever the resolution."""
    extent = mpp * pixels.shape[0]
    at = np.linspace(0.25, 0.75, n) * extent / mpp
    xy = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)
    counts = np.random.default_rng(1).poisson(5, size=(len(xy), genes)).astype(np.float32)
    table = ad.AnnData(counts, var=pd.DataFrame(index=[f"G{i}" for i in range(genes)]))
    table.obs_names = [f"{name}_{i}" for i in range(len(xy))]
    return build_section(pixels, xy, table, section=name, patient=patient, mpp=mpp, spot_um=4 * mpp)


def embedded(sdata, encoder="tiny", **patches):
    ig.pp.extract_patches(sdata, **{"patch_um": (32.0, 64.0), "patch_px": 32, **patches})
    ig.pp.embed_patches(sdata, encoder, orientations=1)
    return np.asarray(sdata["table"].obsm[f"X_{encoder}"])


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_image_of_three_microns_per_pixel_is_named_with_what_to_do(caplog):
    ig.pp.extract_patches(section("hires", picture(), 3.0), patch_um=100)
    (text,) = messages(caplog)
    assert "`hires_image` 3 µm per pixel, 33 px" in text
    assert "full-resolution" in text
    assert "images=" in text
    assert "resolution_um=3" in text


@pytest.mark.parametrize(("mpp", "resolution_um"), [(0.5, None), (1.0, None), (3.0, 3.0), (3.0, 4.0)])
def test_fine_images_and_a_chosen_resolution_are_not_warned_of(caplog, mpp, resolution_um):
    ig.pp.extract_patches(section("S", picture(), mpp), patch_um=100, resolution_um=resolution_um)
    assert not messages(caplog)


def test_resolution_finer_than_an_image_is_not_reached_and_said(caplog):
    ig.pp.extract_patches(section("S", picture(), 0.9), patch_um=100, resolution_um=0.5)
    assert "resolution_um=0.5 is finer than the images `S_image` (0.9 µm per pixel)" in messages(caplog)[0]


def test_one_resolution_makes_a_fine_and_a_coarse_scan_of_one_slide_alike():
    pixels = picture()
    fine, coarse = (section("S", averaged(pixels, factor), 0.5 * factor) for factor in (1, 4))
    # An input as large as the windows of the fine scan keeps its detail.
    apart = np.abs(embedded(fine, patch_px=128) - embedded(coarse, patch_px=128)).max(axis=0)
    matched = np.abs(embedded(fine, resolution_um=2.0) - embedded(coarse, resolution_um=2.0)).max(axis=0)
    # The standard deviations, in the upper half, are those that lose with the detail.
    spread = np.tile([False] * 3 + [True] * 3, 2)
    assert (matched[spread] < 0.25 * apart[spread]).all()
    assert matched.max() < 4


def test_resolution_is_recorded_and_part_of_what_an_embedding_was_made_from():
    sdata = section("S", picture(), 0.5)
    embedded(sdata)
    before = dict(Study.of(sdata).patches)
    assert "resolution_um" not in before
    ig.pp.extract_patches(sdata, patch_um=(32.0, 64.0), patch_px=32, resolution_um=2.0)
    assert Study.of(sdata).patches["resolution_um"] == 2.0
    with pytest.raises(Img2GeneError, match="made from other patches"):
        ig.tl.fit(sdata, "mean", groups="section", allow_single_section=True)
    assert section_resolutions(Study.of(sdata)) == {"S": 2.0}


def test_sections_at_different_resolutions_are_not_joined_as_one_embedding():
    one, other = section("A", picture(), 0.5), section("B", picture(1), 0.5, patient="P2")
    embedded(one)
    embedded(other, resolution_um=2.0)
    with pytest.raises(Img2GeneError, match="resolution_um"):
        concat_sections([one, other])


@pytest.mark.parametrize("wrong", [0, -1, "fine", np.nan, 9.0])
def test_resolution_that_cannot_be_read_at_is_refused_and_nothing_is_written(wrong):
    sdata = section("S", picture(), 0.5)
    with pytest.raises(Img2GeneError, match="resolution_um="):
        ig.pp.extract_patches(sdata, patch_um=32.0, resolution_um=wrong)
    assert "patch_bbox" not in sdata["table"].obsm


def study(mpps, **patches):
    """Sections of one picture, averaged to some microns per pixel."""
    parts = [
        section(f"S{i}", averaged(picture(i), round(mpp / 0.5)), mpp, patient=f"P{i}") for i, mpp in enumerate(mpps)
    ]
    sdata = concat_sections(parts)
    embedded(sdata, **patches)
    return sdata


def test_fit_warns_of_sections_more_than_twofold_apart(caplog):
    sdata = study([0.5, 0.5, 1.5])
    caplog.clear()
    ig.tl.fit(sdata, "mean")
    (text,) = [text for text in messages(caplog) if "twofold" in text]
    assert "S0 0.5, S1 0.5, S2 1.5" in text
    assert "extract_patches(sdata, resolution_um=1.5)" in text


def test_cross_validation_warns_of_them_too(caplog):
    sdata = study([0.5, 0.5, 1.5])
    caplog.clear()
    ig.tl.cross_validate(sdata, ["mean"], baselines=False, n_permutations=0)
    assert sum("twofold" in text for text in messages(caplog)) == 1


@pytest.mark.parametrize("resolution_um", [1.5, 2.0])
def test_sections_read_at_one_resolution_are_not_warned_of(caplog, resolution_um):
    sdata = study([0.5, 0.5, 1.5], resolution_um=resolution_um)
    caplog.clear()
    ig.tl.fit(sdata, "mean", train_on=["P0", "P1"])
    ig.tl.predict(sdata)
    assert not [text for text in messages(caplog) if "twofold" in text]


def test_twenty_and_forty_times_are_not_warned_of(caplog):
    sdata = study([0.5, 1.0, 1.0])
    caplog.clear()
    ig.tl.fit(sdata, "mean")
    assert not [text for text in messages(caplog) if "twofold" in text]


@pytest.mark.parametrize(
    ("trained", "new", "remedy"), [(0.5, 1.5, "train again"), (1.5, 0.5, r"Read them as in the tra")]
)
def test_predict_warns_of_a_scanner_that_the_model_does_not_know(caplog, trained, new, remedy):
    sdata = study([trained, trained])
    ig.tl.fit(sdata, "mean")
    model = ig.get.model(sdata)
    assert model.report["resolution_um"] == {"S0": trained, "S1": trained}
    other = study([new])
    caplog.clear()
    ig.tl.predict(other, model)
    (text,) = [text for text in messages(caplog) if "twofold" in text]
    assert f"S0 {new:g}" in text
    assert f"trained on ({trained:g})" in text
    assert remedy in text


def test_damaged_resolution_of_a_stored_model_is_named(tmp_path):
    sdata = study([0.5, 0.5])
    ig.tl.fit(sdata, "mean")
    model = ig.get.model(sdata)
    model.report["resolution_um"] = {"S0": "fine"}
    with pytest.raises(Img2GeneError, match="report.resolution_um.S0"):
        ig.io.load_model(ig.io.save_model(model, tmp_path / "model.img2gene"))


# Scales of one image


def pyramid(levels, mpp=0.25, spot_places=((256, 256), (200, 300))):
    """A section on a multi-scale image of the given pictures."""
    sdata = section("S", levels[0], mpp, n=4)
    full = Image2DModel.parse(
        np.moveaxis(levels[0], -1, 0),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2] * (len(levels) - 1),
        transformations={"S": Identity()},
        chunks=(3, 128, 128),
    )
    for number, pixels in enumerate(levels[1:], start=1):
        node = full[f"scale{number}"]
        array = node["image"]
        assert array.shape[1:] == pixels.shape[:2]
        node["image"] = array.copy(data=da.from_array(np.moveaxis(pixels, -1, 0), chunks=(3, 128, 128)))
    del sdata.images["S_image"]
    sdata.images["S_image"] = full
    return sdata


@pytest.mark.parametrize(
    ("scales_um", "target", "expected"),
    [
        ([0.25], 3.0, 0),
        ([0.25, 0.5, 1.0], 0.446, 1),
        ([0.25, 1.0, 4.0], 3.57, 2),
        ([0.25, 1.0], 0.1, 0),
        ([1, 4], 2, 0),
    ],
)
def test_nearest_scale(scales_um, target, expected):
    assert nearest_scale(scales_um, target) == expected


def test_each_field_is_read_from_the_scale_nearest_to_the_encoders_resolution():
    # Scales differ by a few grey levels in one colour, which tells where a field came from.
    base = averaged(picture(), 1) // 2 + 60
    levels = [averaged(base, factor) for factor in (1, 2, 4)]
    marked = [level + np.array([0, 12 * number, 0], dtype=np.uint8) for number, level in enumerate(levels)]
    # 8, 16 and 64 µm in 32 px: .25, .5 and 2 µm per pixel, of which the image has .25, .5 and 1.
    fields = {"patch_um": (8.0, 16.0, 64.0)}
    plain, seen = embedded(pyramid(levels), **fields), embedded(pyramid(marked), **fields)
    green = seen[:, 1::6] - plain[:, 1::6]
    np.testing.assert_allclose(green, np.tile([0, 12, 24], (len(green), 1)), atol=1)
    coarse = embedded(pyramid(marked), **fields, resolution_um=1.0) - embedded(
        pyramid(levels), **fields, resolution_um=1.0
    )
    np.testing.assert_allclose(coarse[:, 1::6], 24, atol=1)


def test_scale_that_is_read_changes_an_embedding_by_little():
    levels = [averaged(picture(), factor) for factor in (1, 2, 4)]
    single = section("S", levels[0], 0.25, n=4)
    fields = {"patch_um": (16.0, 64.0)}
    one, other = embedded(single, **fields), embedded(pyramid(levels), **fields)
    assert np.abs(one - other)[:, [0, 1, 2, 6, 7, 8]].max() < 2


def test_scales_that_show_different_pictures_are_refused():
    levels = [averaged(picture(), factor) for factor in (1, 2, 4)]
    levels[1] = levels[1][::-1, ::-1].copy()
    levels[1][:64] = 0
    sdata = pyramid(levels)
    with pytest.raises(Img2GeneError, match="scales 0 and 1 .*show different pictures"):
        ig.pp.extract_patches(sdata, patch_um=32.0)
    assert "patch_bbox" not in sdata["table"].obsm


def test_scales_of_one_picture_agree_however_they_were_made():
    pixels = picture()
    for reduce in (lambda f: averaged(pixels, f), lambda f: pixels[::f, ::f]):
        check_pyramid(pyramid([reduce(factor) for factor in (1, 2, 4)]), "S_image")


# Pixels that cannot be read


def broken_section(lost, *, chunk=128, mpp=0.5):
    """A section one chunk of whose image (row, column) cannot be decoded."""
    pixels = picture()
    sdata = section("S", pixels, mpp)

    def read(block_info=None):
        row, column = block_info[None]["chunk-location"][1:]
        if (row, column) == lost:
            raise OSError("not enough image data")
        (a, b), (c, d) = block_info[None]["array-location"][1:]
        return np.moveaxis(pixels, -1, 0)[:, a:b, c:d]

    sizes = ((3,), (chunk,) * (SIDE // chunk), (chunk,) * (SIDE // chunk))
    array = da.map_blocks(read, chunks=sizes, dtype=np.uint8, meta=np.empty((0, 0, 0), dtype=np.uint8))
    image = Image2DModel.parse(array, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations={"S": Identity()})
    del sdata.images["S_image"]
    sdata.images["S_image"] = image
    return sdata


def test_spots_on_pixels_that_cannot_be_read_are_named_and_nan_and_the_others_as_ever(caplog):
    sdata, whole = broken_section((1, 1)), section("S", picture(), 0.5)
    features, expected = embedded(sdata), embedded(whole)
    boxes = Study.of(sdata).centers
    # The larger field has 128 px, so its window touches the chunk from 64 to 320 px.
    touched = ((boxes > 64) & (boxes < 320)).all(axis=1)
    assert 0 < touched.sum() < len(touched)
    assert np.isnan(features[touched]).all()
    np.testing.assert_array_equal(features[~touched], expected[~touched])
    np.testing.assert_array_equal(sdata["table"].obs["patch_readable"], ~touched)
    text = next(text for text in messages(caplog) if "spots cannot be read" in text)
    assert all(name in text for name in sdata["table"].obs_names[touched][:20])


def test_on_error_raise_says_which_pixels_and_writes_nothing():
    sdata = broken_section((1, 1))
    ig.pp.extract_patches(sdata, patch_um=32.0, patch_px=32)
    with pytest.raises(Img2GeneError, match=r"rows 128 to 256 .*OSError: not enough image data"):
        ig.pp.embed_patches(sdata, "tiny", on_error="raise")
    assert "X_tiny" not in sdata["table"].obsm


def test_section_without_any_readable_pixel_is_refused():
    sdata = broken_section((0, 0), chunk=SIDE)
    ig.pp.extract_patches(sdata, patch_um=32.0, patch_px=32)
    with pytest.raises(Img2GeneError, match="pixels of no spot"):
        ig.pp.embed_patches(sdata, "tiny")


def test_unreadable_spots_are_left_out_of_training_and_predictions():
    sdata = concat_sections([broken_section((1, 1)), section("T", picture(1), 0.5, patient="P2")])
    embedded(sdata)
    ig.tl.fit(sdata, "ridge")
    ig.tl.predict(sdata)
    lost = ~sdata["table"].obs["patch_readable"].to_numpy(dtype=bool)
    assert lost.any()
    assert ig.get.model(sdata).report["n_spots"] == (~lost).sum()
    predicted = np.asarray(sdata["table"].layers["img2gene"])
    assert np.isnan(predicted[lost]).all()
    assert np.isfinite(predicted[~lost]).all()


def test_mark_goes_once_all_pixels_can_be_read():
    sdata = broken_section((1, 1))
    embedded(sdata)
    repaired = section("S", picture(), 0.5)
    del sdata.images["S_image"]
    sdata.images["S_image"] = repaired["S_image"]
    assert np.isfinite(embedded(sdata)).all()
    assert "patch_readable" not in sdata["table"].obs


# Crops


def annotated(element, instances, kind):
    obs = pd.DataFrame(
        {"region": pd.Categorical(["cells"] * len(instances)), "instance": instances},
        index=[f"c{i}" for i in instances],
    )
    table = ad.AnnData(np.ones((len(instances), 2), dtype=np.float32), obs=obs)
    parsed = TableModel.parse(table, region="cells", region_key="region", instance_key="instance")
    image = Image2DModel.parse(np.moveaxis(picture(), -1, 0), dims=("c", "y", "x"), c_coords=["r", "g", "b"])
    return SpatialData(images={"image": image}, tables={"table": parsed}, **{kind: {"cells": element}})


def test_long_cells_that_a_crop_left_on_its_edge_are_kept(caplog):
    # Small cells, and a long one of which little lies in the crop.
    small = [Polygon([(x, 130), (x + 8, 130), (x + 8, 138), (x, 138)]) for x in range(120, 220, 20)]
    long = Polygon([(20, 150), (104, 150), (104, 154), (20, 154)])
    sdata = annotated(ShapesModel.parse(gpd.GeoDataFrame(geometry=[*small, long])), range(6), "shapes")
    part = sdata.query.bounding_box(
        axes=("x", "y"), min_coordinate=[100, 90], max_coordinate=[300, 300], target_coordinate_system="global"
    )
    assert part["table"].n_obs == 6
    ig.pp.extract_patches(part, patch_um=16.0, patch_px=32, mpp=0.5)
    assert "1 of 6 spots of `cells` lie outside image" in caplog.text
    inside = part["table"].obs["patch_inside"]
    assert inside["c5"] < 0.5
    assert (inside[:5] == 1).all()


def test_labelled_bins_that_a_crop_left_on_its_edge_are_kept():
    # Bins of 16 px, one pixel of the labels each.
    labels = Labels2DModel.parse(
        np.arange(1, 1025).reshape(32, 32),
        dims=("y", "x"),
        transformations={"global": Scale([16, 16], axes=("x", "y"))},
    )
    sdata = annotated(labels, np.arange(1, 1025), "labels")
    part = sdata.query.bounding_box(
        axes=("x", "y"), min_coordinate=[105, 105], max_coordinate=[300, 300], target_coordinate_system="global"
    )
    present = np.unique(part["cells"].data.compute())
    part["table"] = part["table"][part["table"].obs["instance"].isin(present)].copy()
    ig.pp.extract_patches(part, patch_um=16.0, patch_px=32, mpp=0.5)
    assert (part["table"].obs["patch_inside"] > 0).all()


def test_order_of_chunks_and_workers_does_not_change_what_is_read_from_scales():
    sdata = pyramid([averaged(picture(), factor) for factor in (1, 2, 4)])
    fields = {"patch_um": (8.0, 16.0, 64.0), "patch_px": 32}
    expected = embedded(sdata, **fields)
    for workers, batch in ((0, 3), (2, 5)):
        ig.pp.embed_patches(sdata, "tiny", orientations=1, num_workers=workers, batch_size=batch)
        np.testing.assert_allclose(sdata["table"].obsm["X_tiny"], expected, atol=1e-4)


def test_lazily_read_image_decodes_each_chunk_of_each_scale_once():
    reads = []
    levels = [averaged(picture(), factor) for factor in (1, 2)]
    sdata = pyramid(levels)
    ig.pp.extract_patches(sdata, patch_um=(8.0, 32.0), patch_px=32)
    for number, pixels in enumerate(levels):
        values = np.moveaxis(pixels, -1, 0)

        def read(number=number, values=values, block_info=None):
            (a, b), (c, d) = block_info[None]["array-location"][1:]
            reads.append((number, a, c))
            return values[:, a:b, c:d]

        sizes = ((3,), *((128,) * (length // 128) for length in values.shape[1:]))
        node = sdata["S_image"][f"scale{number}"]
        array = da.map_blocks(read, chunks=sizes, dtype=np.uint8, meta=np.empty((0, 0, 0), dtype=np.uint8))
        node["image"] = node["image"].copy(data=array)
    with dask.config.set(scheduler="synchronous"):
        ig.pp.embed_patches(sdata, "tiny", orientations=1)
    embedding = [item for item in reads if item[0] == 1]
    assert len(embedding) == len(set(embedding)) > 0
