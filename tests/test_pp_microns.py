"""Microns per pixel are measured, recorded or asked for, and never guessed; spots on the edge of a crop are kept."""

import logging

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import shapely
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale, Translation, set_transformation

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError
from img2gene._study.lattices import hexagonal_pitch
from img2gene._study.microns import image_mpp

BIN_PX = 16


def table_of(region, index, **columns):
    obs = pd.DataFrame({"region": pd.Categorical([region] * len(index)), "instance": index, **columns})
    obs.index = [f"s_{name}" for name in index]
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(1, (len(index), 20)).astype(np.float32))
    return TableModel.parse(ad.AnnData(counts, obs=obs), region=region, region_key="region", instance_key="instance")


def squares(rows, columns, region="hd_square_008um"):
    """Visium HD: bins of 8 µm and 16 px, so .5 µm per pixel."""
    x, y = 20 + columns * BIN_PX, 20 + rows * BIN_PX
    image = np.random.default_rng(0).integers(0, 255, (3, 540, 540), dtype=np.uint8)
    shapes = ShapesModel.parse(gpd.GeoDataFrame(geometry=shapely.box(x, y, x + BIN_PX, y + BIN_PX)))
    table = table_of(region, np.arange(len(rows)), in_tissue=1, array_row=rows, array_col=columns)
    return SpatialData(
        images={"hd_image": Image2DModel.parse(image, dims=("c", "y", "x"))},
        shapes={region: shapes},
        tables={"t": table},
    )


def full_grid():
    return np.divmod(np.arange(900), 30)


def visium(pitch_px=200.0, diameter_um=65.0):
    """Visium spots 100 µm apart, with the diameter of Space Ranger."""
    rows, columns = np.array([(i, j) for i in range(6) for j in range(i % 2, 12, 2)]).T
    xy = 150 + pitch_px * np.column_stack([columns / 2, rows * np.sqrt(3) / 2])
    image = np.random.default_rng(0).integers(0, 255, (3, 1300, 1500), dtype=np.uint8)
    radius = diameter_um / 100 * pitch_px / 2
    return SpatialData(
        images={"he": Image2DModel.parse(image, dims=("c", "y", "x"))},
        shapes={"spots": ShapesModel.parse(xy, geometry=0, radius=radius)},
        tables={"t": table_of("spots", np.arange(len(xy)), in_tissue=1, array_row=rows, array_col=columns)},
    )


def mpp(sdata, table_key="t", **options):
    ig.pp.extract_patches(sdata, patch_um=16, table_key=table_key, **options)
    (entry,) = _schema.read_json(sdata[table_key], "patches")["regions"].values()
    return entry["mpp"]


@pytest.mark.parametrize(
    "keep",
    [
        lambda rows, columns: rows >= 0,
        lambda rows, columns: (rows % 2 == 0) & (columns % 2 == 0),
        lambda rows, columns: (rows + columns) % 2 == 0,
        lambda rows, columns: (rows % 2 == 1) & (columns % 2 == 0),
    ],
)
def test_thinned_squares_are_no_hexagonal_lattice(keep):
    rows, columns = full_grid()
    kept = keep(rows, columns)
    assert mpp(squares(rows[kept], columns[kept])) == pytest.approx(0.5)
    assert mpp(squares(rows[kept], columns[kept], region="bins"), spot_um=8) == pytest.approx(0.5)
    with pytest.raises(Img2GeneError, match="(?s)`bins`.* are not known. Pass `mpp=`.* or `spot_um=`"):
        mpp(squares(rows[kept], columns[kept], region="bins"))


@pytest.mark.parametrize("angle", [0.5, 10, 45])
def test_squares_may_be_turned(angle):
    sdata = squares(*full_grid())
    region = sdata["hd_square_008um"]
    region.geometry = region.rotate(angle, origin=(260, 260))
    sdata["t"].obs = sdata["t"].obs.drop(columns=["array_row", "array_col"])
    inside = region.centroid.x.between(10, 530) & region.centroid.y.between(10, 530)
    sdata.tables["t"] = sdata["t"][inside.to_numpy()].copy()
    assert mpp(sdata) == pytest.approx(0.5, rel=1e-3)


def test_a_diameter_against_the_name_of_the_squares_is_refused():
    with pytest.raises(
        Img2GeneError, match="3.438 by spot_um=55, but 0.5 by the name `hd_square_008um`. Pass .*`mpp=`"
    ):
        mpp(squares(*full_grid()), spot_um=55)


def test_the_visium_lattice_wins_over_a_spot_diameter(caplog):
    assert mpp(visium()) == pytest.approx(0.5)
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        assert mpp(visium(), spot_um=55) == pytest.approx(0.5)
    (message,) = caplog.messages
    assert "are 0.4231 by spot_um=55, but 0.5 by the Visium lattice" in message
    assert "`mpp=`" in message
    assert mpp(visium(), mpp=0.4) == 0.4
    assert mpp(visium(), spot_um=65) == pytest.approx(0.5)


def test_a_lattice_that_no_diameter_explains_is_refused():
    with pytest.raises(
        Img2GeneError, match="1.538 by spot_um=200, but 0.5 by the Visium lattice .* Pass the right value"
    ):
        mpp(visium(), spot_um=200)


def test_a_record_made_from_a_spot_diameter_yields_to_the_lattice(caplog):
    sdata = visium()
    _schema.write_json(
        sdata["t"], "sections", {"S": {"mpp": 55 / 130, "spot_um": 55, "image": "he", "region": "spots"}}
    )
    with caplog.at_level(logging.WARNING):
        assert mpp(sdata) == pytest.approx(0.5)
    assert "0.4231 by the reader's record" in caplog.text
    _schema.write_json(sdata["t"], "sections", {"S": {"mpp": 0.505, "image": "he", "region": "spots"}})
    assert mpp(sdata) == 0.505


def test_circles_without_a_lattice_need_a_size():
    sdata = visium()
    del sdata["t"].obs["array_row"]
    with pytest.raises(Img2GeneError, match="are not known"):
        mpp(sdata)
    assert mpp(sdata, spot_um=65) == pytest.approx(0.5)


@pytest.mark.parametrize(("stretch", "expected"), [((1, 1), 10), ((1, 1.02), 10.1), ((1, 0.8), None), ((0.5, 1), None)])
def test_a_lattice_is_hexagonal_only_if_its_steps_are(stretch, expected):
    rows, columns = np.array([(i, j) for i in range(9) for j in range(i % 2, 16, 2)]).T
    centers = 10 * np.column_stack([rows * np.sqrt(3) / 2, columns / 2]) * stretch
    pitch = hexagonal_pitch(np.column_stack([rows, columns]).astype(float), centers)
    assert pitch == (None if expected is None else pytest.approx(expected))


def test_a_lattice_may_be_turned_but_not_skewed_or_shuffled():
    rows, columns = np.array([(i, j) for i in range(9) for j in range(i % 2, 16, 2)]).T
    grid, centers = (
        np.column_stack([rows, columns]).astype(float),
        np.column_stack([rows * np.sqrt(3) / 2, columns / 2]),
    )
    turned = centers @ np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    assert hexagonal_pitch(grid, turned) == pytest.approx(1)
    assert hexagonal_pitch(grid, centers @ np.array([[1, 0.3], [0, 1]])) is None
    assert hexagonal_pitch(grid, np.random.default_rng(0).permutation(centers)) is None
    assert hexagonal_pitch(grid[:2], centers[:2]) is None


def with_cells(sdata):
    centers = np.random.default_rng(1).uniform(60, 460, (40, 2))
    index = [f"cell_{i}" for i in range(40)]
    sdata.shapes["cells"] = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=[shapely.Point(*center).buffer(9) for center in centers], index=index)
    )
    sdata.tables["cells_table"] = table_of("cells", index)
    return sdata


@pytest.mark.parametrize("extracted", [True, False])
def test_cells_take_the_microns_of_the_squares_on_their_image(extracted):
    sdata = with_cells(squares(*full_grid()))
    if extracted:
        mpp(sdata)
    assert mpp(sdata, "cells_table") == pytest.approx(0.5)
    assert image_mpp(sdata, "hd_image") == pytest.approx(0.5)
    ig.pp.tile_slide(sdata, "hd_image", tile_um=50, patch_um=16, min_tissue=0)
    assert _schema.read_json(sdata["slide_tiles"], "sections")["hd"]["mpp"] == pytest.approx(0.5)


def test_cells_take_the_microns_of_spots_and_of_a_reader():
    sdata = with_cells(visium())
    assert mpp(sdata, "cells_table") == pytest.approx(0.5)
    sdata = with_cells(squares(*full_grid(), region="bins"))
    with pytest.raises(Img2GeneError, match="are not known"):
        mpp(sdata, "cells_table")
    _schema.write_json(sdata["t"], "sections", {"S": {"mpp": 0.7, "image": "hd_image", "region": "bins"}})
    assert mpp(sdata, "cells_table") == pytest.approx(0.7)


def test_recorded_microns_follow_an_image_of_another_resolution():
    sdata = with_cells(squares(*full_grid(), region="bins"))
    mpp(sdata, mpp=0.5)
    half = sdata["hd_image"].values[:, ::2, ::2]
    del sdata.images["hd_image"]
    sdata.images["hd_image"] = Image2DModel.parse(
        half, dims=("c", "y", "x"), transformations={"global": Scale([2, 2], axes=("x", "y"))}
    )
    assert mpp(sdata, "cells_table") == pytest.approx(1)


def test_contradictory_microns_of_one_image_are_refused():
    sdata = with_cells(squares(*full_grid(), region="bins"))
    other = table_of("cells", sdata["cells_table"].obs["instance"].tolist())
    sdata.tables["other"] = other
    mpp(sdata, mpp=0.5)
    mpp(sdata, "other", mpp=0.25)
    sdata.shapes["more"], sdata.tables["more_table"] = sdata["cells"].copy(), table_of("more", sdata["cells"].index)
    with pytest.raises(
        Img2GeneError, match="Microns per pixel of `hd_image` are contradictory: .*0.5 by .*0.25 by .*`mpp=`"
    ):
        mpp(sdata, "more_table")


def test_squares_that_a_crop_left_on_its_edge_are_kept_and_named(caplog):
    box = {"min_coordinate": [101.5, 99.25], "max_coordinate": [300.3, 301.9]}
    part = squares(*full_grid()).query.bounding_box(axes=("x", "y"), target_coordinate_system="global", **box)
    with caplog.at_level(logging.WARNING):
        assert mpp(part) == pytest.approx(0.5)
    assert "13 of 182 spots of `hd_square_008um` lie outside image `hd_image`" in caplog.text
    assert "s_125, s_126" in caplog.text
    assert "patch_inside" in caplog.text
    inside = part["t"].obs["patch_inside"]
    assert (inside[["s_125", "s_126"]] < 0.5).all()
    assert (inside > 0).all()


def test_spots_beyond_the_edge_are_refused_with_their_names():
    sdata = squares(*full_grid())
    set_transformation(sdata["hd_square_008um"], Translation([-40, 0], axes=("x", "y")), "global")
    with pytest.raises(
        Img2GeneError, match=r"30 of 900 spots .*: s_0, s_30, s_60, .*leave these rows out: `sdata\['t'\] ="
    ):
        mpp(sdata)


@pytest.mark.parametrize("factor", [0.2, 0.9, 0.99, 1.01, 1.9, 2.5])
def test_systems_that_place_spots_differently_are_refused(make_section, factor):
    sdata = make_section("S1", "P1")
    set_transformation(sdata["S1_image"], Identity(), "other")
    set_transformation(sdata["S1_spots"], Scale([factor, factor], axes=("x", "y")), "other")
    with pytest.raises(Img2GeneError, match="aligned differently in S1, other: places differ by up to .* px"):
        ig.pp.extract_patches(sdata, patch_um=60)


def test_systems_that_differ_by_rounding_are_accepted(make_section):
    sdata = make_section("S1", "P1")
    set_transformation(sdata["S1_image"], Scale([0.0333333, 0.0333333], axes=("x", "y")), "small")
    set_transformation(sdata["S1_spots"], Scale([1 / 30, 1 / 30], axes=("x", "y")), "small")
    ig.pp.extract_patches(sdata, patch_um=60)


def test_a_transformation_that_maps_to_a_point_is_refused(make_section):
    sdata = make_section("S1", "P1")
    set_transformation(sdata["S1_image"], Scale([0, 0], axes=("x", "y")), "S1")
    with pytest.raises(Img2GeneError, match="maps all places to a line or a point"):
        ig.pp.extract_patches(sdata, patch_um=60)


@pytest.mark.parametrize(
    ("in_table", "in_region", "message"),
    [
        (str, int, r"the table has str, `S1_spots` has int64.*\.astype\('int64'\)"),
        (int, str, r"the table has int64, `S1_spots` has str .*\.astype\('str'\)"),
    ],
)
def test_instances_of_another_type_are_named_with_their_types(make_section, in_table, in_region, message):
    sdata = make_section("S1", "P1")
    sdata["table"].obs["spot_id"] = [in_table(i) for i in range(49)]
    sdata["S1_spots"].index = [in_region(i) for i in range(49)]
    with pytest.raises(Img2GeneError, match=message):
        ig.pp.extract_patches(sdata, patch_um=60)


NO_ARRAY = ["array_row", "array_col"]


def without_array(sdata, table_key="t"):
    sdata[table_key].obs = sdata[table_key].obs.drop(columns=NO_ARRAY)
    return sdata


def cells_named(region, n=60, width=16):
    """Cells of 16 px at random places, in a region that is named like bins."""
    sdata = squares(*full_grid(), region=region)
    centers = np.random.default_rng(1).uniform(40, 500, (n, 2))
    shapes = gpd.GeoDataFrame(geometry=[shapely.Point(*center).buffer(width / 2) for center in centers])
    sdata.shapes[region], sdata.tables["t"] = ShapesModel.parse(shapes), table_of(region, np.arange(n))
    return sdata


NOT_BINS = "(?s)are not known. Pass `mpp=`.*named like Visium HD bins of 8 µm, but .* so the name is not used"


@pytest.mark.parametrize("with_array", [True, False])
def test_cells_named_like_bins_are_asked_for(with_array):
    sdata = cells_named("hd_square_008um")
    if with_array:
        centers = sdata["hd_square_008um"].centroid
        # Cells carry the array position of the bin they lie in.
        for column, place in zip(NO_ARRAY, (centers.y, centers.x), strict=True):
            sdata["t"].obs[column] = (place // BIN_PX).astype(int).to_numpy()
    with pytest.raises(Img2GeneError, match=NOT_BINS):
        mpp(sdata)
    assert mpp(sdata, spot_um=8) == pytest.approx(0.5, rel=0.01)
    assert mpp(sdata, mpp=0.4) == 0.4


def test_visium_spots_named_like_bins_follow_the_lattice_alone():
    sdata = visium()
    sdata.shapes["square_008um"], table = sdata["spots"], sdata["t"]
    sdata.tables["t"] = table_of("square_008um", np.arange(table.n_obs), **dict(table.obs[NO_ARRAY]))
    assert mpp(sdata) == pytest.approx(0.5)
    with pytest.raises(Img2GeneError, match=NOT_BINS):
        mpp(without_array(sdata))


@pytest.mark.parametrize("with_array", [True, False])
@pytest.mark.parametrize("every", [2, 3])
def test_squares_further_apart_than_their_side_are_not_the_bins_of_their_name(every, with_array):
    rows, columns = full_grid()
    kept = (rows % every == 0) & (columns % every == 0)
    sdata = squares(rows[kept], columns[kept])
    # Renumbered, so that neighbours differ by 1.
    for column, place in zip(NO_ARRAY, (rows, columns), strict=True):
        sdata["t"].obs[column] = place[kept] // every
    with pytest.raises(Img2GeneError, match=NOT_BINS):
        mpp(sdata if with_array else without_array(sdata))


@pytest.mark.parametrize("angle", [0, 0.7, 30])
@pytest.mark.parametrize("with_array", [True, False])
@pytest.mark.parametrize(("name", "bin_um"), [("square_002um", 2), ("x_square_016um", 16), ("square_8um", 8)])
def test_bins_of_every_size_thinned_at_random_and_turned(name, bin_um, with_array, angle):
    sdata = squares(*full_grid(), region=name)
    region = sdata[name]
    region.geometry = region.rotate(angle, origin=(260, 260))
    inside = region.centroid.x.between(10, 530) & region.centroid.y.between(10, 530)
    kept = inside.to_numpy() & (np.random.default_rng(0).random(900) < 0.4)
    sdata.tables["t"] = sdata["t"][kept].copy()
    assert mpp(sdata if with_array else without_array(sdata)) == pytest.approx(bin_um / BIN_PX, rel=1e-3)


def test_bins_at_whole_pixels_are_a_square_array():
    rows, columns = full_grid()
    sdata = without_array(squares(rows, columns))
    x, y = (np.rint(20 + 7.3 * place) for place in (columns, rows))
    sdata.shapes["hd_square_008um"] = ShapesModel.parse(np.column_stack([x, y]), geometry=0, radius=7.3 / 2)
    assert mpp(sdata) == pytest.approx(8 / 7.3, rel=0.01)


@pytest.mark.parametrize(
    "name", ["square_um", "square_000um", "square_002um_of_square_008um", "square_" + "9" * 400 + "um"]
)
def test_a_name_without_one_size_is_not_used(name):
    with pytest.raises(Img2GeneError, match=r"are not known.*spots\)\.$"):
        mpp(squares(*full_grid(), region=name))


def test_one_row_of_squares_does_not_show_a_square_array():
    rows, columns = full_grid()
    sdata = squares(rows[:20], columns[:20])
    with pytest.raises(Img2GeneError, match=NOT_BINS):
        mpp(sdata)
    with pytest.raises(Img2GeneError, match=NOT_BINS):
        mpp(without_array(sdata))
    assert mpp(sdata, spot_um=8) == pytest.approx(0.5)


def test_bins_as_labels_are_measured_by_their_array():
    rows, columns = np.divmod(np.arange(64), 8)
    labels = np.zeros((200, 200), dtype=np.int64)
    for number, (row, column) in enumerate(zip(rows, columns, strict=True)):
        labels[20 + 16 * row : 36 + 16 * row, 20 + 16 * column : 36 + 16 * column] = number + 1
    image = np.random.default_rng(0).integers(0, 255, (3, 200, 200), dtype=np.uint8)
    sdata = SpatialData(
        images={"he": Image2DModel.parse(image, dims=("c", "y", "x"))},
        labels={"square_008um": Labels2DModel.parse(labels, dims=("y", "x"))},
        tables={"t": table_of("square_008um", np.arange(1, 65), array_row=rows, array_col=columns)},
    )
    assert mpp(sdata) == pytest.approx(0.5)
    with pytest.raises(Img2GeneError, match="neither a width nor the `array_row`"):
        mpp(without_array(sdata))


def test_names_of_bins_on_one_image_that_contradict_each_other_are_refused():
    sdata = squares(*full_grid())
    sdata.shapes["square_002um"] = sdata["hd_square_008um"].copy()
    sdata.tables["other"] = table_of("square_002um", np.arange(900))
    with pytest.raises(Img2GeneError, match="contradictory: 0.5 by the name `hd_square_008um`, 0.125 by the name"):
        mpp(sdata)
    assert mpp(sdata, mpp=0.5) == 0.5


def test_microns_of_a_copy_in_another_resolution_follow_its_size():
    sdata = with_cells(squares(*full_grid()))
    small = sdata["hd_image"].values[:, ::4, ::4]
    sdata.images["hires"] = Image2DModel.parse(
        small, dims=("c", "y", "x"), transformations={"global": Scale([4, 4], axes=("x", "y"))}
    )
    assert image_mpp(sdata, "hd_image") == pytest.approx(0.5)
    assert image_mpp(sdata, "hires") == pytest.approx(2)


def test_bins_of_another_slide_in_the_same_coordinate_system_give_nothing():
    sdata = with_cells(squares(*full_grid()))
    mpp(sdata)
    other = np.random.default_rng(0).integers(0, 255, (3, 700, 800), dtype=np.uint8)
    sdata.images["slide_2"] = Image2DModel.parse(other, dims=("c", "y", "x"))
    assert image_mpp(sdata, "slide_2") is None
    with pytest.raises(Img2GeneError, match="Microns per pixel of `slide_2` .* are not known"):
        mpp(sdata, "cells_table", images="slide_2")
    assert mpp(sdata, "cells_table", images="hd_image") == pytest.approx(0.5)


def visium_part(keep, diameter_um=65.0, with_array=True):
    sdata = visium(diameter_um=diameter_um)
    kept = keep(sdata["t"].obs["array_row"].to_numpy(), sdata["t"].obs["array_col"].to_numpy())
    sdata.tables["t"] = sdata["t"][kept].copy()
    return sdata if with_array else without_array(sdata)


LINES = {
    "row": lambda rows, columns: rows == 2,
    "column": lambda rows, columns: columns == 4,
    "diagonal": lambda rows, columns: rows == columns,
    "two spots": lambda rows, columns: (rows == 0) & (columns < 3),
}


@pytest.mark.parametrize("with_array", [True, False])
@pytest.mark.parametrize("keep", LINES.values(), ids=LINES)
def test_visium_spots_in_a_line_are_asked_for(keep, with_array):
    with pytest.raises(
        Img2GeneError, match="spot_um=55 gives 0.4231 µm per pixel, but .* 100 µm apart, it is 0.5: .*`mpp=`"
    ):
        mpp(visium_part(keep, with_array=with_array), spot_um=55)
    assert mpp(visium_part(keep, with_array=with_array), spot_um=65) == pytest.approx(0.5)
    assert mpp(visium_part(keep, 55, with_array=with_array), spot_um=55) == pytest.approx(0.5)


def test_one_visium_spot_is_asked_for():
    one = visium_part(lambda rows, columns: (rows == 0) & (columns == 2))
    with pytest.raises(
        Img2GeneError, match="0.4231 µm per pixel, which 1 spots are too few to check.*about 65 µm.*`mpp=`"
    ):
        mpp(one, spot_um=55)
    assert mpp(one, spot_um=65) == pytest.approx(0.5)
    assert mpp(one, mpp=0.5) == 0.5


def test_hexagonal_spots_without_an_array_are_asked_for_and_square_ones_are_not():
    everything = lambda rows, columns: rows >= 0
    with pytest.raises(Img2GeneError, match="100 µm apart, it is 0.5"):
        mpp(visium_part(everything, with_array=False), spot_um=55)
    assert mpp(visium_part(everything, 55, with_array=False), spot_um=55) == pytest.approx(0.5)
    rows, columns = full_grid()
    assert mpp(squares(rows, columns, region="spots"), spot_um=55) == pytest.approx(55 / BIN_PX)
    assert mpp(without_array(squares(rows, columns, region="spots")), spot_um=55) == pytest.approx(55 / BIN_PX)


SPOILT_COLUMNS = {
    "swapped": lambda rows, columns: (columns, rows),
    "numbered one by one": lambda rows, columns: (rows, columns // 2),
    "shuffled": lambda rows, columns: (rows, np.random.default_rng(1).permutation(columns)),
}


@pytest.mark.parametrize("spoil", SPOILT_COLUMNS.values(), ids=SPOILT_COLUMNS)
@pytest.mark.parametrize("keep", [lambda rows, columns: rows >= 0, lambda rows, columns: rows == 2], ids=["all", "row"])
def test_visium_spots_with_columns_that_do_not_fit_are_asked_for(spoil, keep):
    rows, columns = np.array([(i, j) for i in range(6) for j in range(i % 2, 12, 2)]).T
    kept = keep(rows, columns)
    sdata = visium_part(keep)
    table = sdata["t"]
    table.obs["array_row"], table.obs["array_col"] = spoil(rows[kept], columns[kept])
    with pytest.raises(Img2GeneError, match="100 µm apart, it is 0.5: .* that fit their places"):
        mpp(sdata, spot_um=55)
    assert mpp(sdata, spot_um=65) == pytest.approx(0.5)


@pytest.mark.parametrize("rows", [[0], [3, 17]])
def test_single_spots_far_away_do_not_void_the_lattice(rows):
    sdata = visium()
    sdata["spots"].loc[rows, "geometry"] = [shapely.Point(1400 - 40 * i, 20) for i in range(len(rows))]
    assert mpp(sdata, spot_um=55) == pytest.approx(0.5)
    with pytest.raises(Img2GeneError, match="100 µm apart, it is 0.5"):
        mpp(without_array(sdata), spot_um=55)


def in_microns(sdata, elements):
    """Transform a section of 5 µm per pixel to a coordinate system in µm."""
    for name in elements:
        set_transformation(sdata[name], Scale([5, 5], axes=("x", "y")), "um")
    return sdata.transform_to_coordinate_system("um")


def test_spots_in_other_units_than_their_reader_recorded_are_refused(make_section):
    sdata = in_microns(make_section("S1", "P1"), ["S1_image", "S1_spots"])
    with pytest.raises(
        Img2GeneError, match="recorded 5 µm per unit and spots of 55 µm, .* 11 units wide, but .* 55 units"
    ):
        mpp(sdata, "table")
    assert mpp(sdata, "table", mpp=1.0) == 1.0
    assert mpp(sdata, "table", spot_um=55) == pytest.approx(1.0)


def test_microns_recorded_in_other_units_are_no_source_for_an_image(make_section):
    section = make_section("S1", "P1")
    ig.pp.extract_patches(section, patch_um=60)
    sdata = in_microns(section, ["S1_image", "S1_spots"])
    assert image_mpp(sdata, "S1_image") is None
    assert image_mpp(section, "S1_image") == pytest.approx(5.0)


def test_a_lattice_in_other_units_than_recorded_decides():
    sdata = visium()
    _schema.write_json(sdata["t"], "sections", {"S": {"mpp": 0.5, "spot_um": 65, "image": "he", "region": "spots"}})
    for name in ("he", "spots"):
        set_transformation(sdata[name], Scale([0.5, 0.5], axes=("x", "y")), "um")
    assert mpp(sdata.transform_to_coordinate_system("um")) == pytest.approx(1.0)


def test_microns_that_contradict_what_is_known_are_used_with_a_warning(make_section, caplog):
    calls = (
        lambda: mpp(visium(), mpp=2.0),
        lambda: mpp(make_section("S1", "P1"), "table", mpp=2.0),
        lambda: ig.pp.tile_slide(make_section("S1", "P1"), "S1_image", mpp=2.0, tile_um=40, patch_um=20, min_tissue=0),
    )
    for call, known in zip(calls, ("0.5", "5", "5"), strict=True):
        caplog.clear()
        call()
        (message,) = [text for text in caplog.messages if text.startswith("mpp=2 ")]
        assert f"gives {known} µm per pixel" in message
    caplog.clear()
    assert mpp(visium(), mpp=0.505) == 0.505
    assert not caplog.messages
