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
