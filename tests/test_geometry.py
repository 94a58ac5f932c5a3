"""Where patches lie: microns per pixel, transformations, regions of every kind, and what is refused."""

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, Translation, set_transformation

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError
from img2gene._study.patches import field_boxes

# Sections of the fixture: 7 × 7 spots, 20 px apart from (20, 20) on, 11 px wide, 160 × 160 px of 5 µm.


@pytest.fixture
def section(make_section):
    return make_section("S1", "P1")


def boxes(sdata, **options):
    ig.pp.extract_patches(sdata, patch_px=32, **({"patch_um": 60} | options))
    return sdata["table"].obsm["patch_bbox"]


def side(sdata, **options):
    found = boxes(sdata, **options)
    lengths = np.unique(found[:, 2:] - found[:, :2])
    assert len(lengths) == 1
    return int(lengths[0])


def forget_reader(sdata):
    del sdata["table"].uns["img2gene"]
    return sdata


def replace_region(sdata, element):
    del sdata.shapes["S1_spots"]
    kind = sdata.labels if hasattr(element, "dims") else sdata.shapes
    kind["S1_spots"] = element


def squares(centers, width):
    frame = gpd.GeoDataFrame(
        geometry=[shapely.box(x - width / 2, y - width / 2, x + width / 2, y + width / 2) for x, y in centers]
    )
    return ShapesModel.parse(frame, transformations={"S1": Identity()})


def affine(rows):
    return Affine(np.vstack([rows, [0, 0, 1]]), input_axes=("x", "y"), output_axes=("x", "y"))


@given(
    st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), min_size=1, max_size=5),
    st.lists(st.integers(1, 999), min_size=1, max_size=3),
)
@settings(deadline=None)
def test_boxes_have_whole_sides_and_lie_within_half_a_pixel_of_their_centre(centers, sides):
    centers = np.array(centers)
    found = field_boxes(centers, sides)
    lengths = found[..., 2:] - found[..., :2]
    assert (lengths == np.array(sides)[None, :, None]).all()
    middle = (found[..., :2] + found[..., 2:]) / 2
    assert (np.abs(middle - centers[:, None]) <= 0.5 + 1e-9).all()


def test_the_readers_microns_give_the_windows_by_hand(section):
    found = boxes(section)
    assert found.dtype == np.int64
    # 60 µm at 5 µm/px are 12 px; the first spots lie at row 20, columns 20 and 40
    np.testing.assert_array_equal(found[:2], [[14, 14, 26, 26], [14, 34, 26, 46]])
    np.testing.assert_array_equal(found[7], [34, 14, 46, 26])


def test_several_fields_share_the_centre_and_are_recorded(section):
    found = boxes(section, patch_um=(60, 100))
    np.testing.assert_array_equal(found[0], [14, 14, 26, 26])
    stored = _schema.read_json(section["table"], "patches")
    assert (stored["patch_um"], stored["patch_px"], list(stored["regions"])) == ([60.0, 100.0], 32, ["S1_spots"])
    entry = stored["regions"]["S1_spots"]
    assert len(entry.pop("content")) == len(entry.pop("digest")) == 32
    assert entry == {
        "image": "S1_image",
        "mpp": 5.0,
        "spot_width": 11.0,
        "side_px": [12, 20],
        "size": [160, 160],
        "matrix": [[1, 0, 0], [0, 1, 0]],
        "embedded": {},
    }
    pixels = np.moveaxis(section["S1_image"].values, 0, -1)
    np.testing.assert_array_equal(ig.get.patches(section, [0], field=1)[0], pixels[10:30, 10:30])


def test_explicit_microns_win_over_the_record(section):
    assert side(section, mpp=2.5) == 24
    assert side(section, mpp={"S1_spots": 10}) == 6
    # the circles are 11 px wide
    assert side(section, spot_um=110) == 6


def test_the_record_is_in_units_of_the_region_not_of_a_downscaled_image(section):
    half = section["S1_image"].values[:, ::2, ::2]
    section.images["S1_image"] = Image2DModel.parse(
        half, dims=("c", "y", "x"), transformations={"S1": Scale([2, 2], axes=("x", "y"))}
    )
    found = boxes(section)
    # 10 µm per image pixel: 6 px around (10, 10)
    np.testing.assert_array_equal(found[0], [7, 7, 13, 13])
    assert _schema.read_json(section["table"], "patches")["regions"]["S1_spots"]["mpp"] == pytest.approx(10)


def test_translation_and_quarter_turns_move_the_windows(section):
    set_transformation(section["S1_spots"], Translation([3, -4], axes=("x", "y")), "S1")
    np.testing.assert_array_equal(boxes(section)[1], [14 - 4, 34 + 3, 26 - 4, 46 + 3])
    # x and y swapped, then mirrored within the image
    set_transformation(section["S1_spots"], affine([[0, 1, 0], [-1, 0, 160]]), "S1")
    np.testing.assert_array_equal(boxes(section)[1], [160 - 40 - 6, 14, 160 - 40 + 6, 26])


def test_order_of_the_shapes_does_not_matter(section):
    expected = boxes(section).copy()
    order = np.random.default_rng(0).permutation(49)
    shuffled = section["S1_spots"].iloc[order]
    del section.shapes["S1_spots"]
    section.shapes["S1_spots"] = shuffled
    np.testing.assert_array_equal(boxes(section), expected)


def test_order_of_the_rows_moves_windows_with_their_spots(section):
    expected = pd.DataFrame(boxes(section).copy(), index=section["table"].obs_names)
    order = np.random.default_rng(0).permutation(49)
    del section["table"].obsm["patch_bbox"]
    section.tables["shuffled"] = section["table"][order].copy()
    ig.pp.extract_patches(section, patch_um=60, table_key="shuffled")
    found = section["shuffled"]
    np.testing.assert_array_equal(found.obsm["patch_bbox"], expected.loc[found.obs_names])


def test_polygons_have_the_windows_and_the_diameter_of_circles(section):
    circles = section["S1_spots"]
    expected = boxes(section).copy()
    replace_region(section, squares(np.column_stack([circles.geometry.x, circles.geometry.y]), 11))
    np.testing.assert_array_equal(boxes(section), expected)
    assert side(section, spot_um=110) == 6


def test_labels_have_the_windows_of_their_centroids_but_no_diameter(section):
    image = np.zeros((160, 160), dtype=np.int32)
    for label, (row, column) in enumerate([(20, 20), (20, 40), (60, 100)], start=1):
        image[row - 5 : row + 5, column - 5 : column + 5] = label
    labels = Labels2DModel.parse(image, dims=("y", "x"), transformations={"S1": Identity()})
    section.tables["table"] = section["table"][:3].copy()
    section["table"].obs["spot_id"] = [3, 1, 2]
    replace_region(section, labels)
    np.testing.assert_array_equal(boxes(section), [[54, 94, 66, 106], [14, 14, 26, 26], [14, 34, 26, 46]])
    with pytest.raises(Img2GeneError, match="`S1_spots` has no spot diameter; pass `mpp=` instead of `spot_um=`"):
        boxes(section, spot_um=55)


def test_bin_size_of_visium_hd_is_read_from_the_name(section):
    centers = np.stack(np.meshgrid(np.arange(7.0), np.arange(7.0)), axis=-1).reshape(-1, 2) * 8 + 20
    table = forget_reader(section)["table"].copy()
    table.obs["region"] = pd.Categorical(["S1_square_016um"] * 49)
    table.uns["spatialdata_attrs"] = {**table.uns["spatialdata_attrs"], "region": "S1_square_016um"}
    sdata = SpatialData(
        images={"S1_image": section["S1_image"]},
        shapes={"S1_square_016um": squares(centers, 8)},
        tables={"table": table},
    )
    # 16 µm in 8 px
    assert side(sdata) == 30


def visium_grid(n=7):
    rows, columns = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    return rows.ravel(), (2 * columns + rows % 2).ravel()


def test_visium_lattice_gives_the_pitch_whatever_the_spot_diameter(section):
    rows, columns = visium_grid()
    pitch = 16.0
    xy = 20 + pitch * np.column_stack([columns / 2, rows * np.sqrt(3) / 2])
    circles = ShapesModel.parse(xy, geometry=0, radius=5.5, transformations={"S1": Identity()})
    replace_region(forget_reader(section), circles)
    section["table"].obs["array_row"], section["table"].obs["array_col"] = rows, columns
    section["table"].obs["in_tissue"] = 1
    # 100 µm in 16 px: 60 µm are 9.6 px, not the 12 px of 55 µm in 11 px
    assert side(section) == 10
    # Without the hexagonal lattice nothing is certain: the diameter may be that of the print or of the detected spot.
    section["table"].obs["array_col"] = columns - rows % 2
    with pytest.raises(Img2GeneError, match="Microns per pixel of `S1_image` .* are not known. Pass `mpp=`"):
        boxes(section)


def test_fraction_inside_the_image_by_hand(section):
    xy = np.array([[5.0, 5.0], [80, 0], [80, 80], [159, 159]])
    section.tables["table"] = section["table"][:4].copy()
    replace_region(section, ShapesModel.parse(xy, geometry=0, radius=5.5, transformations={"S1": Identity()}))
    boxes(section, patch_um=100)
    # 20 px windows: 15 · 15, 10 · 20, all, and 11 · 11 of 400
    np.testing.assert_allclose(section["table"].obs["patch_inside"], [225 / 400, 200 / 400, 1, 121 / 400])


def test_tissue_fraction_of_an_image_that_is_half_glass(section):
    image = np.full((160, 160, 3), 245, dtype=np.uint8)
    image[:, :80] = [180, 60, 140]
    section.images["S1_image"] = Image2DModel.parse(image, dims=("y", "x", "c"), transformations={"S1": Identity()})
    boxes(section, patch_um=100)
    found = pd.Series(section["table"].obs["patch_tissue"].to_numpy(), index=section["S1_spots"].geometry.x)
    assert (found[[20, 40, 60]] == 1).all()
    assert (found[[100, 120, 140]] == 0).all()
    np.testing.assert_allclose(found[80], 0.5, atol=0.1)


def test_without_inplace_nothing_is_written_and_the_update_is_what_would_be(section, snapshot):
    before = snapshot(section["table"])
    update = ig.pp.extract_patches(section, patch_um=60, inplace=False)
    assert snapshot(section["table"]) == before
    ig.pp.extract_patches(section, patch_um=60)
    np.testing.assert_array_equal(update["obsm"]["patch_bbox"], section["table"].obsm["patch_bbox"])
    assert update["uns"]["patches"] == _schema.read_json(section["table"], "patches")


def test_squidpys_thumbnail_is_added_only_where_there_is_none(section):
    marked = section["table"].uns["spatial"]["S1"]["images"]["hires"]
    boxes(section)
    np.testing.assert_array_equal(section["table"].uns["spatial"]["S1"]["images"]["hires"], marked)
    del section["table"].uns["spatial"], section["table"].obsm["spatial"]
    boxes(section)
    library = section["table"].uns["spatial"]["S1"]
    scale = library["scalefactors"]["tissue_hires_scalef"]
    assert library["images"]["hires"].shape[0] == pytest.approx(160 * scale, abs=1)
    assert library["scalefactors"]["spot_diameter_fullres"] == pytest.approx(11)
    np.testing.assert_allclose(section["table"].obsm["spatial"][1], [40, 20])


def hires_coordinates(sdata, radius):
    """Spots on a tenth of their scale, on an image of 600 px."""
    xy = np.column_stack([sdata["S1_spots"].geometry.x, sdata["S1_spots"].geometry.y]) / 10
    replace_region(sdata, ShapesModel.parse(xy, geometry=0, radius=radius, transformations={"S1": Identity()}))
    image = np.full((600, 600, 3), 200, dtype=np.uint8)
    sdata.images["S1_image"] = Image2DModel.parse(image, dims=("y", "x", "c"), transformations={"S1": Identity()})


@pytest.mark.parametrize(("radius", "options"), [(0.55, {"spot_um": 55}), (5.5, {})])
def test_hires_coordinates_on_the_full_image_are_noticed(section, radius, options):
    hires_coordinates(section, radius)
    with pytest.raises(Img2GeneError, match="fill only the top left corner .* coordinates of a downscaled"):
        boxes(section, **options)


def test_a_small_piece_of_tissue_in_the_corner_is_accepted(section):
    image = np.full((600, 600, 3), 200, dtype=np.uint8)
    section.images["S1_image"] = Image2DModel.parse(image, dims=("y", "x", "c"), transformations={"S1": Identity()})
    np.testing.assert_array_equal(boxes(section)[0], [14, 14, 26, 26])


def second_image(sdata, system="S1", side=80):
    image = np.full((side, side, 3), 200, dtype=np.uint8)
    sdata.images["other"] = Image2DModel.parse(image, dims=("y", "x", "c"), transformations={system: Identity()})


def test_of_several_images_the_recorded_then_the_largest_is_taken(section):
    second_image(section, side=300)
    boxes(section)
    assert _schema.read_json(section["table"], "patches")["regions"]["S1_spots"]["image"] == "S1_image"
    boxes(forget_reader(section), mpp=5)
    assert _schema.read_json(section["table"], "patches")["regions"]["S1_spots"]["image"] == "other"
    boxes(section, mpp=5, images="S1_image")
    assert _schema.read_json(section["table"], "patches")["regions"]["S1_spots"]["image"] == "S1_image"


def outside(sdata):
    set_transformation(sdata["S1_spots"], Translation([100, 0], axes=("x", "y")), "S1")


def rename_instance(sdata):
    sdata["table"].obs["spot_id"] = sdata["table"].obs["spot_id"].replace(48, 77)


def other_system(sdata):
    set_transformation(sdata["S1_spots"], {"elsewhere": Identity()}, set_all=True)


def two_alignments(sdata):
    for element, shift in (("S1_spots", 30), ("S1_image", 0)):
        set_transformation(sdata[element], Translation([shift, 0], axes=("x", "y")), "micrometres")


ROTATED = affine([[np.cos(0.2), -np.sin(0.2), 20], [np.sin(0.2), np.cos(0.2), 0]])
FAULTS = {
    "rotated": (lambda s: set_transformation(s["S1_spots"], ROTATED, "S1"), {}, "rotates, shears or stretches"),
    "stretched": (
        lambda s: set_transformation(s["S1_spots"], Scale([1, 0.9], axes=("x", "y")), "S1"),
        {},
        "rotates, shears or stretches",
    ),
    "outside": (
        outside,
        {},
        r"35 of 49 spots of `S1_spots` lie outside image `S1_image` \(160 × 160 px.*columns 120 to 240",
    ),
    "no mpp": (forget_reader, {}, r"Microns per pixel of `S1_image` \(region `S1_spots`\) are not known. Pass `mpp=`"),
    "no region's mpp": (None, {"mpp": {"other": 1}}, "`mpp` has no entry for region `S1_spots`"),
    "negative mpp": (None, {"mpp": -1}, "mpp=-1: expected a number above 0"),
    "no such image": (None, {"images": "he"}, r"`he` not found in `sdata.images` \(available: S1_image\)"),
    "no image of the region": (None, {"images": {"x": "S1_image"}}, "`S1_spots` not found in `images`"),
    "instance": (rename_instance, {}, r"1 rows of the table name an instance that `S1_spots` does not have \(77;"),
    "no common system": (other_system, {}, "S1_spots` and image `S1_image` share no coordinate system"),
    "two alignments": (two_alignments, {}, "aligned differently in S1, micrometres"),
    "patch_um": (None, {"patch_um": (60, -1)}, r"patch_um=\(60, -1\): expected one or several positive numbers"),
    "twice": (None, {"patch_um": (60, 60)}, "patch_um: 60.0 listed more than once"),
    "patch_px": (None, {"patch_px": 3.5}, "patch_px=3.5: expected a whole number from 32 to 16384"),
    "tiny field": (None, {"patch_um": 10}, "A field of 10 µm is only 2 pixels of image `S1_image`"),
    "no table": (None, {"table_key": "cells"}, r"`cells` not found in `sdata.tables` \(available: table\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_leave_the_object_untouched(section, snapshot, fault):
    spoil, options, message = FAULTS[fault]
    if spoil:
        spoil(section)
    before = snapshot(section["table"])
    with pytest.raises(Img2GeneError, match=message):
        ig.pp.extract_patches(section, **({"patch_um": 60, "patch_px": 32} | options))
    assert snapshot(section["table"]) == before


def test_all_problems_come_in_one_message(make_study, snapshot):
    sdata = make_study([("S1", "P"), ("S2", "P"), ("S3", "P")], embed=False)
    sections = _schema.read_json(sdata["table"], "sections")
    del sections["S2"]
    _schema.write_json(sdata["table"], "sections", sections)
    set_transformation(sdata["S3_spots"], Translation([200, 0], axes=("x", "y")), "S3")
    before = snapshot(sdata["table"])
    with pytest.raises(
        Img2GeneError, match=r"(?s)^2 problems:\n- .*`S2_image`.* are not known.*\n- .*`S3_spots` lie outside"
    ):
        ig.pp.extract_patches(sdata, patch_um=60)
    assert snapshot(sdata["table"]) == before


def test_ambiguous_images_of_a_study_are_refused(make_study):
    sdata = forget_reader(make_study([("S1", "P"), ("S2", "P")], embed=False))
    second_image(sdata)
    with pytest.raises(
        Img2GeneError, match=r"Several images share .* `S1_spots` \(S1_image, other\); say which with `images="
    ):
        ig.pp.extract_patches(sdata, mpp=5)
    ig.pp.extract_patches(sdata, mpp=5, images={"S1_spots": "S1_image", "S2_spots": "S2_image"})


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
@pytest.mark.filterwarnings("ignore:Converting `region_key:UserWarning")
@pytest.mark.parametrize(
    ("folder", "name"), [("lung_organoid_visium/V19D02-088_A1", "A1"), ("lung_organoid_visium/V19D02-088_D1", "D1")]
)
def test_neighbours_on_a_real_visium_array_are_100_microns_apart(data, folder, name):
    from scipy.spatial import cKDTree
    from spatialdata_io import visium

    sdata = visium(data / folder, dataset_id=name)
    positions = sdata["table"].obsm["spatial"].copy()
    ig.pp.extract_patches(sdata, patch_um=(112, 300))
    (entry,) = _schema.read_json(sdata["table"], "patches")["regions"].values()
    pitch = np.median(cKDTree(positions).query(positions, k=2)[0][:, 1])
    scale = json.loads((data / folder / "spatial" / "scalefactors_json.json").read_text())["tissue_hires_scalef"]
    assert entry["image"] == f"{name}_hires_image"
    assert entry["mpp"] * scale * pitch == pytest.approx(100, rel=0.01)
    np.testing.assert_array_equal(sdata["table"].obsm["spatial"], positions)
    assert entry["side_px"] == [round(um / entry["mpp"]) for um in (112, 300)]
