"""Predictions on tiles that are smaller than spots."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import shapely
from spatialdata.models import ShapesModel

import img2gene as ig
from img2gene._study.fine_tiles import FineTiles
from img2gene._study.study import Study
from img2gene.tl._prediction.finer import preserved

MPP, SPOT_UM = 5.0, 55.0


@pytest.fixture(scope="module")
def fitted(shared_study, copy_of):
    sdata = copy_of(shared_study)
    ig.tl.fit(sdata, "ridge", validate_on=["C"])
    return sdata


def tiles(inside, places=((0.0, 0.0), (0.0, 10.0)), centers=None):
    centers = np.zeros((len(inside), 2)) if centers is None else np.asarray(centers, dtype=float)
    return FineTiles("r", "i", centers, 1.0, 1.0, np.arange(len(places)), np.asarray(inside), np.asarray(places))


def test_shares_of_the_tiles_of_a_spot_have_the_mean_of_the_spot_by_hand():
    fine = np.log1p([[1.0], [3.0], [2.0], [2.0]])
    known = np.log1p([[6.0], [1.0]])
    found = np.expm1(preserved(fine, known, tiles([0, 0, 1, 1]), linear=True))
    # The mean of 1 and 3 is 2, so both are multiplied by 3; those of the second spot are halved.
    np.testing.assert_allclose(found[:, 0], [3, 9, 1, 1], rtol=1e-6)


def test_tiles_that_show_nothing_get_what_is_known_evenly_and_a_spot_of_zeros_stays_zero():
    fine, known = np.zeros((4, 1)), np.log1p([[6.0], [0.0]])
    found = np.expm1(preserved(fine, known, tiles([0, 0, 1, 1]), linear=True))
    np.testing.assert_allclose(found[:, 0], [6, 6, 0, 0], rtol=1e-6)


def test_labels_of_a_layer_are_shifted():
    found = preserved(np.array([[-1.0], [3.0], [0.0]]), np.array([[2.0], [-4.0]]), tiles([0, 0, 1]), linear=False)
    np.testing.assert_allclose(found[:, 0], [0, 4, -4])


def test_between_spots_the_correction_of_the_spots_around_is_followed():
    fine, known = np.log1p(np.full((3, 1), 2.0)), np.log1p([[4.0], [4.0]])
    found = np.expm1(preserved(fine, known, tiles([0, 1, -1]), linear=True))
    np.testing.assert_allclose(found[:, 0], [4, 4, 4], rtol=1e-6)


@pytest.mark.parametrize("totals", ["predicted", "measured"])
def test_tiles_add_up_to_their_spots(fitted, copy_of, totals):
    sdata = copy_of(fitted)
    coarse = ig.tl.predict(sdata, inplace=False)
    ig.tl.predict(sdata, resolution_um=18.0, totals=totals)
    fine = sdata["img2gene_18um"]
    shares, spots = np.expm1(fine.X.astype(float)), fine.obs["spot"].to_numpy()
    found = np.array([shares[spots == name].mean(axis=0) for name in coarse.obs_names])
    if totals == "predicted":
        expected = np.expm1(np.maximum(coarse.X, 0))
    else:
        counts = sdata["table"][:, fine.var_names].X.toarray()
        library = np.asarray(sdata["table"].X.sum(axis=1)).reshape(-1, 1)
        expected = 1e4 * counts / library
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    assert np.isfinite(fine.X).all() and "img2gene" not in sdata["table"].layers


def test_tiles_lie_where_they_say_and_are_replaced_by_a_second_call(fitted, copy_of, tmp_path):
    sdata = copy_of(fitted)
    for _ in range(2):
        ig.tl.predict(sdata, resolution_um=25.0)
    fine = sdata["img2gene_25um"]
    squares = sdata.shapes["img2gene_25um_A1_spots_squares"]
    # 25 µm are 5 pixels.
    np.testing.assert_allclose(squares.geometry.area, 25)
    rows = (fine.obs["region"] == "img2gene_25um_A1_spots_squares").to_numpy()
    np.testing.assert_allclose(fine.obsm["spatial"][rows], shapely.get_coordinates(squares.geometry.centroid))
    owned = rows & (fine.obs["spot"] != "").to_numpy()
    spots = sdata["table"].obs.index.get_indexer(fine.obs["spot"][owned])
    distances = np.linalg.norm(fine.obsm["spatial"][owned] - sdata["table"].obsm["spatial"][spots], axis=1)
    assert distances.max() <= SPOT_UM / 2 / MPP + 1e-6
    assert set(fine.obs["section"]) == {"A1", "A2", "B1", "C1"} and set(fine.obs["patient"]) == {"A", "B", "C"}
    sdata.write(tmp_path / "study.zarr")


def test_square_bins_are_divided_evenly(make_section):
    sdata = make_section("S1", "P1", n_side=3)
    xy = np.asarray(sdata["table"].obsm["spatial"])
    boxes = shapely.box(*(xy - 10).T, *(xy + 10).T)
    frame = sdata.shapes["S1_spots"]
    import geopandas as gpd
    from spatialdata.transformations import get_transformation

    squares = gpd.GeoDataFrame(geometry=boxes, index=frame.index)
    sdata.shapes["S1_spots"] = ShapesModel.parse(squares, transformations=dict(get_transformation(frame, get_all=True)))
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32, mpp=MPP)
    found = FineTiles.of(Study.of(sdata), "S1_spots", np.ones(9, dtype=bool), 25.0)
    # Bins of 20 pixels hold 4 × 4 tiles of 5.
    assert np.bincount(found.inside).tolist() == [16] * 9 and len(found.inside) == 144


def test_a_layer_adds_up_as_it_is(fitted, copy_of):
    sdata = copy_of(fitted)
    sdata["table"].layers["own"] = np.log1p(sdata["table"].X.toarray()) - 1
    ig.tl.fit(sdata, "ridge", layer="own", validate_on=["C"], key_added="own")
    coarse = ig.tl.predict(sdata, key_added="own", inplace=False)
    fine = ig.tl.predict(sdata, key_added="own", resolution_um=25.0, inplace=False)
    spots = fine.obs["spot"].to_numpy()
    found = np.array([fine.X[spots == name].mean(axis=0) for name in coarse.obs_names])
    np.testing.assert_allclose(found, coarse.X, atol=1e-4)


def test_spots_off_the_tissue_get_no_tiles(fitted, copy_of):
    sdata = copy_of(fitted)
    sdata["table"].obs["in_tissue"] = (np.arange(196) >= 49).astype(int)
    fine = ig.tl.predict(sdata, resolution_um=25.0, inplace=False)
    assert set(fine.obs["section"]) == {"A2", "B1", "C1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution_um": 90.0}, r"hold the centre of no tile, as spots are about .* wide. Pass at most"),
        ({"resolution_um": 0}, "resolution_um=0"),
        ({"resolution_um": 0.001}, "at most 2,000,000"),
        ({"totals": "measured"}, "needs `resolution_um=`"),
        ({"resolution_um": 20.0, "totals": "mine"}, "totals='mine'"),
        ({"resolution_um": 20.0, "out": "x.zarr"}, "Leave one out"),
    ],
)
def test_what_cannot_be_done_is_refused_and_the_study_stays(fitted, copy_of, snapshot, arguments, message):
    sdata = copy_of(fitted)
    before = snapshot(sdata["table"]), sorted(sdata.shapes), sorted(sdata.tables)
    with pytest.raises(ig.Img2GeneError, match=message):
        ig.tl.predict(sdata, **arguments)
    assert (snapshot(sdata["table"]), sorted(sdata.shapes), sorted(sdata.tables)) == before


def test_a_table_of_the_user_is_never_replaced(fitted, copy_of):
    sdata = copy_of(fitted)
    other = ad.AnnData(sp.csr_matrix((3, 2)), obs=pd.DataFrame(index=list("abc")))
    sdata.tables["img2gene_25um"] = other
    with pytest.raises(ig.Img2GeneError, match="exists in the object already"):
        ig.tl.predict(sdata, resolution_um=25.0)
