"""Pixels of chosen patches."""

import numpy as np
import pytest
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

import img2gene as ig
from img2gene._errors import Img2GeneError, MissingKeyError


@pytest.fixture
def section(make_section):
    return make_section("S1", "P1")


def boxes(sdata):
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32)
    return sdata["table"].obsm["patch_bbox"]


def test_patches_are_the_pixels_of_chosen_spots_in_the_order_asked_for(section):
    found = boxes(section)
    pixels = np.moveaxis(section["S1_image"].values, 0, -1)
    cut = [pixels[y0:y1, x0:x1] for y0, x0, y1, x1 in found]
    names = section["table"].obs_names
    for index, rows in (
        ([5, 2, 5, -1], [5, 2, 5, 48]),
        (slice(3, 6), [3, 4, 5]),
        (np.arange(49) == 7, [7]),
        ([names[9], names[1]], [9, 1]),
        (4, [4]),
    ):
        np.testing.assert_array_equal(ig.get.patches(section, index), [cut[row] for row in rows])


@pytest.mark.parametrize(
    ("index", "options", "message"),
    [
        ([99], {}, "Row 99 is out of range: the table has 49 spots"),
        (["nobody"], {}, "No spots named nobody"),
        (np.ones(3, dtype=bool), {}, "The mask has 3 values for 49 spots"),
        ([0], {"field": 1}, "field=1: fields of view are 0 to 0"),
    ],
)
def test_patches_of_no_spot_are_refused(section, index, options, message):
    boxes(section)
    with pytest.raises(Img2GeneError, match=message):
        ig.get.patches(section, index, **options)


def test_patches_have_to_be_extracted_first(section):
    with pytest.raises(MissingKeyError, match="`patch_bbox` not found .* Run `img2gene.pp.extract_patches` first"):
        ig.get.patches(section, [0])


def test_sections_of_different_resolution_are_asked_for_one_at_a_time(make_study):
    sdata = make_study([("S1", "P"), ("S2", "P")], embed=False)
    ig.pp.extract_patches(sdata, patch_um=60, mpp={"S1_spots": 5, "S2_spots": 3})
    assert ig.get.patches(sdata, [50]).shape == (1, 20, 20, 3)
    with pytest.raises(Img2GeneError, match="patches of 12, 20 px; ask for one section at a time"):
        ig.get.patches(sdata, [0, 50])


def test_pixels_outside_the_image_are_white(section):
    ig.pp.extract_patches(section, patch_um=300)
    (patch,) = ig.get.patches(section, [0])
    # 60 px around (20, 20): ten rows and columns lie outside
    assert (patch[:10] == 255).all()
    assert (patch[:, :10] == 255).all()
    pixels = np.moveaxis(section["S1_image"].values, 0, -1)
    np.testing.assert_array_equal(patch[10:, 10:], pixels[:50, :50])


def test_a_row_without_a_window_is_named(section):
    boxes(section)
    section["table"].obsm["patch_bbox"] = np.full((49, 4), np.nan)
    with pytest.raises(
        Img2GeneError, match="`obsm\\['patch_bbox'\\]` is incomplete: run `img2gene.pp.extract_patches` again"
    ):
        ig.get.patches(section, [0])


def test_a_multiscale_image_gives_the_pixels_of_its_finest_scale(study):
    plain = ig.get.patches(study, slice(0, 5))
    key = "A1_image"
    image = study.images[key]
    transformations = get_transformation(image, get_all=True)
    scaled = Image2DModel.parse(image.data, dims=("c", "y", "x"), scale_factors=[2, 2], transformations=transformations)
    del study.images[key]
    study.images[key] = scaled
    ig.pp.extract_patches(study, patch_um=60, patch_px=32)
    np.testing.assert_array_equal(ig.get.patches(study, slice(0, 5)), plain)


def replace(sdata, image):
    del sdata.images["A1_image"]
    sdata.images["A1_image"] = image
    return sdata


XARRAY = {
    "cut": lambda image: image.isel(x=slice(6, None), y=slice(6, None)),
    "turned": lambda image: image.isel(y=slice(None, None, -1)),
    "thinned out": lambda image: image.isel(x=slice(None, None, 2), y=slice(None, None, 2)),
    "padded": lambda image: image.pad(x=5, y=5),
    "without its first column": lambda image: image.isel(x=slice(1, None)),
}


@pytest.mark.parametrize("change", XARRAY.values(), ids=XARRAY)
def test_images_that_were_changed_with_xarray_are_refused(study, snapshot, change):
    replace(study, change(study["A1_image"]))
    before = snapshot(study["table"])
    calls = (
        lambda: ig.pp.extract_patches(study, patch_um=60, patch_px=32),
        lambda: ig.pp.tile_slide(study, "A1_image", mpp=5.0),
        lambda: ig.get.patches(study, slice(0, 5)),
        lambda: ig.io.to_anndata(study),
    )
    for call in calls:
        with pytest.raises(
            Img2GeneError, match="(?s)image `A1_image` have the `[xy]` coordinates .*bounding_box_query"
        ):
            call()
    assert snapshot(study["table"]) == before


def test_an_image_that_was_changed_with_xarray_is_not_stored_without_its_places(study, tmp_path):
    replace(study, study["A1_image"].isel(x=slice(6, None)))
    with pytest.raises(Img2GeneError, match="differs from the study in images\\['A1_image'\\]"):
        ig.io.write_study(study, tmp_path / "study.zarr")


@pytest.mark.parametrize("offset", [0.0, 0.5, None])
def test_images_with_places_of_pixels_or_without_are_read(study, offset):
    before = ig.get.patches(study, slice(0, 5))
    image = study["A1_image"].drop_vars(["x", "y"])
    if offset is not None:
        image = image.assign_coords({axis: np.arange(image.sizes[axis]) + offset for axis in ("x", "y")})
    replace(study, image)
    ig.pp.extract_patches(study, patch_um=60, patch_px=32)
    np.testing.assert_array_equal(ig.get.patches(study, slice(0, 5)), before)


def test_a_multiscale_image_without_its_full_resolution_is_named(study):
    image = study["A1_image"]
    transformations = get_transformation(image, get_all=True)
    scaled = Image2DModel.parse(image.data, dims=("c", "y", "x"), scale_factors=[2], transformations=transformations)
    replace(study, scaled)
    del study["A1_image"]["scale0"]
    for call in (
        lambda: ig.pp.extract_patches(study, patch_um=60, patch_px=32),
        lambda: ig.pp.tile_slide(study, "A1_image", mpp=5.0),
        lambda: ig.get.patches(study, slice(0, 5)),
        lambda: ig.io.to_anndata(study),
    ):
        with pytest.raises(Img2GeneError, match="`A1_image` has no `scale0`, .*it has scale1"):
            call()
