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
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale, Translation, set_transformation

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError
from img2gene._study.microns import hexagonal_pitch, image_mpp

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
    assert _schema.read_json(sdata["tiles"], "sections")["hd"]["mpp"] == pytest.approx(0.5)


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
