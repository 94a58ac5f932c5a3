"""Conversion to and from squidpy's layout: spots lie on their place, and columns of the user stay."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Scale

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError

YX = np.array([(y, x) for y in range(60, 560, 50) for x in range(60, 760, 50)], dtype=float)


def painted(seed=0):
    """An image (620, 820) with a square of its own colour at each spot, and the colours."""
    colours = np.random.default_rng(seed).integers(0, 200, (len(YX), 3))
    image = np.full((620, 820, 3), 255, np.uint8)
    for (y, x), colour in zip(YX.astype(int), colours, strict=True):
        image[y - 12 : y + 12, x - 12 : x + 12] = colour
    return image, colours


def study_of(image, *, spatial=True, sections=None, factor=1.0, channels=("r", "g", "b")):
    """One region on one image; its own units are ``factor`` pixels."""
    n = len(YX)
    obs = pd.DataFrame({"region": pd.Categorical(["S"] * n), "iid": np.arange(n)}, index=[f"c{i}" for i in range(n)])
    if sections is not None:
        obs["section"] = sections
    table = ad.AnnData(sp.csr_matrix(np.random.default_rng(0).poisson(3, (n, 20)).astype(np.float32)), obs=obs)
    if spatial:
        table.obsm["spatial"] = YX[:, ::-1] / factor
    shapes = ShapesModel.parse(
        YX[:, ::-1] / factor,
        geometry=0,
        radius=12 / factor,
        transformations={"global": Scale([factor] * 2, ("x", "y"))},
    )
    picture = Image2DModel.parse(np.moveaxis(image, -1, 0), dims=("c", "y", "x"), c_coords=list(channels))
    table = TableModel.parse(table, region="S", region_key="region", instance_key="iid")
    return SpatialData(images={"S_full_image": picture}, shapes={"S": shapes}, tables={"table": table})


def crop(sdata):
    return sdata.query.bounding_box(
        axes=("x", "y"),
        min_coordinate=[233.5, 187.5],
        max_coordinate=[633.5, 487.5],
        target_coordinate_system="global",
    )


def seen(adata):
    """The colour that squidpy draws under each spot."""
    out = np.full((adata.n_obs, 3), -1)
    for name, library in adata.uns["spatial"].items():
        rows = np.flatnonzero(adata.obs["section"] == name)
        picture = library["images"]["hires"]
        xy = np.asarray(adata.obsm["spatial"])[rows] * library["scalefactors"]["tissue_hires_scalef"]
        assert ((xy >= 0) & (xy < picture.shape[1::-1])).all()
        out[rows] = picture[xy[:, 1].astype(int), xy[:, 0].astype(int)]
    return out


@pytest.mark.parametrize("factor", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("extract", [False, True])
def test_spots_lie_on_their_place_after_a_crop_and_are_read_back(extract, factor):
    image, colours = painted()
    cropped = crop(study_of(image, factor=factor))
    if extract:
        ig.pp.extract_patches(cropped, patch_um=16, mpp=1.0)
    adata = ig.io.to_anndata(cropped)
    expected = colours[cropped["table"].obs["iid"]]
    assert 0 < adata.n_obs < len(YX)
    np.testing.assert_array_equal(seen(adata), expected)
    assert adata.uns["spatial"]["S"]["scalefactors"]["spot_diameter_fullres"] == pytest.approx(24 / factor)
    back = ig.io.from_anndata(adata, spot_um=24)
    ig.pp.extract_patches(back, patch_um=16)
    np.testing.assert_array_equal(ig.get.patches(back, np.arange(adata.n_obs))[:, 8, 8], expected)
    assert _schema.read_json(back["table"], "patches")["regions"]["S_spots"]["mpp"] == pytest.approx(1)


def test_stale_positions_and_thumbnails_are_replaced():
    image, colours = painted()
    study = study_of(image)
    study["table"].obsm["spatial"] += 37
    study["table"].uns["spatial"] = {
        "S": {
            "images": {"hires": np.zeros((9, 9, 3), np.uint8), "lowres": np.zeros((2, 2, 3), np.uint8)},
            "scalefactors": {"tissue_hires_scalef": 9.0},
            "metadata": {"chemistry": "v1"},
        },
        "gone": {},
    }
    adata = ig.io.to_anndata(study)
    np.testing.assert_array_equal(adata.obsm["spatial"], YX[:, ::-1])
    assert set(adata.uns["spatial"]) == {"S"}
    assert adata.uns["spatial"]["S"]["metadata"] == {"chemistry": "v1"}
    assert set(adata.uns["spatial"]["S"]["images"]) == {"hires"}
    np.testing.assert_array_equal(seen(adata)[::7], colours[::7])


def test_channels_are_drawn_by_their_names():
    image, colours = painted()
    adata = ig.io.to_anndata(study_of(image[..., ::-1], channels=("b", "g", "r")))
    np.testing.assert_array_equal(seen(adata), colours)


def test_every_core_of_a_microarray_has_a_picture_and_is_read_back():
    image, colours = painted()
    cores = np.where(YX[:, 1] < 300, "core1", np.where(YX[:, 1] < 500, "core2", "core3"))
    study = study_of(image, sections=cores)
    study["table"].obs["patient"] = pd.Series(cores, index=study["table"].obs_names).str.replace("core", "P")
    adata = ig.io.to_anndata(study)
    assert sorted(adata.uns["spatial"]) == ["core1", "core2", "core3"]
    np.testing.assert_array_equal(seen(adata), colours)
    # As one library with three cores, and as three libraries.
    single = adata.copy()
    single.uns["spatial"] = {"slide": adata.uns["spatial"]["core1"]}
    for source, key in ((single, None), (adata, "section")):
        back = ig.io.from_anndata(source, spot_um=24, library_key=key, patient_key="patient")["table"]
        order = back.obs_names.get_indexer(adata.obs_names)
        assert back.obs["section"].astype(str).to_numpy()[order].tolist() == cores.tolist()
        assert len(set(back.obs["patient"])) == 3


def test_a_section_on_two_images_is_refused(make_study):
    study = make_study([("A1", "A"), ("B1", "B")], embed=False)
    study["table"].obs["section"] = "both"
    with pytest.raises(Img2GeneError, match=r"Spots of several slides have one name .*obs\['section'\]. \(both\)"):
        ig.io.to_anndata(study)


def test_without_an_image_stored_thumbnails_stay_and_bad_ones_are_left_out(make_section, caplog):
    study = make_section("S1", "P1")
    expected = study["table"].uns["spatial"]["S1"]["images"]["hires"]
    del study.images["S1_image"]
    adata = ig.io.to_anndata(study)
    np.testing.assert_array_equal(adata.uns["spatial"]["S1"]["images"]["hires"], expected)
    study["table"].obsm["spatial"] += 200
    with caplog.at_level("WARNING", logger="img2gene"):
        assert ig.io.to_anndata(study).uns["spatial"] == {}
    assert "section S1: spots lie outside its stored thumbnail" in caplog.text
    del study["table"].obsm["spatial"]
    with pytest.raises(MissingKeyError, match=r"`spatial` not found in .*obsm.*image of each region"):
        ig.io.to_anndata(study)


def test_regions_of_labels_and_numbered_sections_are_converted():
    image, colours = painted()
    study = study_of(image, spatial=False, sections=np.ones(len(YX), int))
    labels = np.zeros((620, 820), int)
    for number, (y, x) in enumerate(YX.astype(int)):
        labels[y - 12 : y + 12, x - 12 : x + 12] = number + 1
    del study.shapes["S"]
    study["table"].obs["iid"] += 1
    study.labels["S"] = Labels2DModel.parse(labels, dims=("y", "x"))
    adata = ig.io.to_anndata(study)
    assert adata.obs["section"].unique().tolist() == ["1"]
    assert list(adata.uns["spatial"]) == ["1"]
    np.testing.assert_array_equal(seen(adata), colours)


@pytest.mark.parametrize(
    "options", [{"table_key": ["table"]}, {"table_key": None}, {"images": 3}, {"images": {"S": 1}}, {"images": "nope"}]
)
def test_to_anndata_refuses_arguments_it_cannot_use(options):
    with pytest.raises(Img2GeneError, match=r"table_key=|images=|images\['S'\]=|`nope` not found"):
        ig.io.to_anndata(study_of(painted()[0]), **options)
    with pytest.raises(Img2GeneError, match="Expected a SpatialData"):
        ig.io.to_anndata({})


# from_anndata


@pytest.fixture
def adata():
    image, _ = painted()
    return ig.io.to_anndata(study_of(image))


def test_library_sizes_and_columns_of_the_user_stay(adata):
    adata.obs["library_size"] = 1000.0 + np.arange(adata.n_obs)
    adata.obs["region"] = "cortex"
    adata.obs["spot_id"] = "x"
    adata.obs["patient"] = 7
    before = adata.obs.copy()
    study = ig.io.from_anndata(adata[:, :5].copy(), spot_um=24)
    table = study["table"]
    for name in ("library_size", "region", "spot_id", "patient"):
        assert table.obs[name].astype(str).tolist() == before[name].astype(str).tolist()
    attrs = table.uns["spatialdata_attrs"]
    assert (attrs["region_key"], attrs["instance_key"]) == ("img2gene_region", "img2gene_spot_id")
    ig.pp.extract_patches(study, patch_um=16)
    again = ig.io.from_anndata(ig.io.to_anndata(study), spot_um=24)["table"]
    assert again.obs["region"].tolist() == ["cortex"] * len(YX)
    assert again.uns["spatialdata_attrs"]["region_key"] == "img2gene_region"


def test_names_of_spots_of_a_subset_stay(adata):
    study = ig.io.from_anndata(adata, spot_um=24)
    part = ig.io.to_anndata(study)[[5, 3, 9]].copy()
    back = ig.io.from_anndata(part, spot_um=24)
    assert back["table"].obs["spot_id"].tolist() == [5, 3, 9]
    assert back["S_spots"].index.tolist() == [5, 3, 9]
    np.testing.assert_allclose(back["table"].obsm["spatial"], part.obsm["spatial"] * 1.0 * _scale(part))


def _scale(adata):
    return adata.uns["spatial"]["S"]["scalefactors"]["tissue_hires_scalef"]


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ("many", "library_size.*not counts"),
        (True, "library_size.*bool"),
        (np.inf, "library_size.*infinite"),
        (np.nan, "library_size.*NaN"),
        (-1.0, "library_size.*smaller"),
        (1, "library_size.*smaller than the counts"),
    ],
)
def test_library_sizes_that_cannot_be_right_are_refused(adata, sizes, match):
    adata.obs["library_size"] = sizes
    with pytest.raises(Img2GeneError, match=match):
        ig.io.from_anndata(adata, spot_um=24)


def test_normalised_expression_gets_no_library_size(adata):
    adata.X = adata.X.astype(np.float32) * 0.5
    assert "library_size" not in ig.io.from_anndata(adata, spot_um=24)["table"].obs


def test_models_stay_and_records_of_the_old_images_go(trained_study):
    adata = ig.io.to_anndata(trained_study)
    back = ig.io.from_anndata(adata, spot_um=55, library_key="section", patient_key="patient")
    assert ig.get.model(back).fingerprint == ig.get.model(trained_study).fingerprint
    assert "patch_bbox" not in back["table"].obsm
    assert _schema.read_json(back["table"], "patches") is None
    np.testing.assert_array_equal(back["table"].layers["img2gene"], trained_study["table"].layers["img2gene"])


def test_a_backed_anndata_gives_the_same_study(adata, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    expected = ig.io.from_anndata(adata, spot_um=24)
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    study = ig.io.from_anndata(backed, spot_um=24)
    np.testing.assert_array_equal(study["table"].X.toarray(), expected["table"].X.toarray())
    np.testing.assert_array_equal(study["S_image"].values, expected["S_image"].values)
    part = ig.io.from_anndata(backed[10:20], spot_um=24)
    np.testing.assert_array_equal(part["table"].X.toarray(), expected["table"].X.toarray()[10:20])
    assert backed.isbacked


def test_views_are_read_and_not_changed(adata):
    view = adata[5:20, ["3", "1"]]
    study = ig.io.from_anndata(view, spot_um=24)
    assert view.is_view
    np.testing.assert_array_equal(study["table"].X.toarray(), adata.X.toarray()[5:20][:, [3, 1]])


@pytest.mark.parametrize("flag", [True, np.bool_(True), np.array(True)])
def test_the_flag_of_cellxgene_is_no_library(adata, flag):
    adata.uns["spatial"] = {"is_single": flag, **adata.uns["spatial"]}
    assert list(ig.io.from_anndata(adata, spot_um=24).images) == ["S_image"]


def test_the_full_resolution_image_needs_no_factor(adata):
    library = adata.uns["spatial"]["S"]
    library["images"]["fullres"] = painted()[0]
    study = ig.io.from_anndata(adata, spot_um=24, image="fullres")
    assert study["S_image"].shape == (3, 620, 820)
    np.testing.assert_array_equal(study["table"].obsm["spatial"], YX[:, ::-1])


def test_the_visium_lattice_is_preferred_to_the_diameter():
    """Spots 200 px apart are 100 µm apart, so a pixel is .5 µm; the reported diameter is that of a 65 µm spot."""
    rows, columns = np.array([(i, j) for i in range(6) for j in range(i % 2, 12, 2)]).T
    table = ad.AnnData(
        sp.csr_matrix(np.ones((len(rows), 4), np.float32)),
        obs=pd.DataFrame({"array_row": rows, "array_col": columns}, index=[f"b{i}" for i in range(len(rows))]),
    )
    table.obsm["spatial"] = np.column_stack([150 + columns * 100, 150 + rows * 200 * 3**0.5 / 2])
    factors = {"tissue_hires_scalef": 0.25, "spot_diameter_fullres": 130.0}
    table.uns["spatial"] = {"S": {"images": {"hires": np.full((325, 350, 3), 9, np.uint8)}, "scalefactors": factors}}
    for spoil in (lambda: None, lambda: factors.pop("spot_diameter_fullres")):
        spoil()
        for options in ({"spot_um": 55}, {}):
            record = _schema.read_json(ig.io.from_anndata(table, **options)["table"], "sections")["S"]
            # Four pixels of the full resolution are one of the image.
            assert record["mpp"] == pytest.approx(2.0, rel=1e-3)
            assert record["spot_um"] == 55


HD = {"microns_per_pixel": 1 / 3, "bin_size_um": 8.0}


@pytest.mark.parametrize("names", [["microns_per_pixel"], ["bin_size_um"], list(HD)], ids="+".join)
def test_space_ranger_states_the_size_of_hd_bins(adata, names):
    adata.uns["spatial"]["S"]["scalefactors"].update({name: HD[name] for name in names})
    for options in ({}, {"spot_um": 8}):
        record = _schema.read_json(ig.io.from_anndata(adata, **options)["table"], "sections")["S"]
        # A bin is 24 pixels of the full resolution wide.
        assert record["mpp"] == pytest.approx(1 / 3 / _scale(adata))
        assert record["spot_um"] == pytest.approx(8)
    with pytest.raises(Img2GeneError, match=r"contradictory: 8 µm by scalefactors.*55 µm by spot_um=55"):
        ig.io.from_anndata(adata, spot_um=55)


def test_the_size_of_spots_is_asked_for_where_nothing_states_it(adata):
    with pytest.raises(Img2GeneError, match="neither a Visium lattice nor `scalefactors`.* Pass `spot_um=`"):
        ig.io.from_anndata(adata)
    adata.uns["spatial"]["S"]["scalefactors"].update(microns_per_pixel=1 / 3, bin_size_um=16.0)
    with pytest.raises(Img2GeneError, match="contradictory: 8 µm.*16 µm by scalefactors"):
        ig.io.from_anndata(adata)


def with_factor(name, value):
    return lambda a: a.uns["spatial"]["S"]["scalefactors"].__setitem__(name, value)


BAD_NUMBERS = [0, -1.0, np.nan, np.inf, "30", None, True, [1.0, 2.0], {}]


@pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
@pytest.mark.parametrize("name", ["tissue_hires_scalef", "spot_diameter_fullres"])
def test_factors_that_are_no_positive_number_are_named(adata, name, value):
    with_factor(name, value)(adata)
    with pytest.raises(Img2GeneError, match=rf"uns\['spatial'\]\['S'\]\['scalefactors'\]\['{name}'\]"):
        ig.io.from_anndata(adata, spot_um=24)


@pytest.mark.parametrize("value", [np.float32(24), np.array([24.0]), np.array(24), np.int64(24), 24])
def test_factors_from_files_are_numbers(adata, value):
    with_factor("spot_diameter_fullres", value)(adata)
    record = _schema.read_json(ig.io.from_anndata(adata, spot_um=24)["table"], "sections")["S"]
    assert record["mpp"] == pytest.approx(1 / _scale(adata))


def spatial_of(value):
    return lambda a: a.obsm.__setitem__("spatial", value)


def uns_of(value):
    return lambda a: a.uns.__setitem__("spatial", value)


def entry_of(name, value):
    return lambda a: a.uns["spatial"]["S"].__setitem__(name, value)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda a: a.obsm.pop("spatial"), r"positions in `obsm\[\"spatial\"\]`"),
        (spatial_of(np.zeros((140, 3))), r"obsm\['spatial'\]` has shape \(140, 3\)"),
        (spatial_of(np.full((140, 2), np.nan)), "NaN or infinite positions in 140 rows"),
        (spatial_of(np.full((140, 2), "x")), "not numbers"),
        (spatial_of(np.full((140, 2), 1j)), "not numbers"),
        (spatial_of(YX + 1e6), "No spot of library `S` lies on its image"),
        (lambda a: a.uns.pop("spatial"), r"images in `uns\[\"spatial\"\]`"),
        (uns_of({}), r"images in `uns\[\"spatial\"\]`"),
        (uns_of({"is_single": False}), r"uns\['spatial'\] holds is_single"),
        (uns_of(np.zeros(3)), r"images in `uns\[\"spatial\"\]`"),
        (uns_of({"a b": {"images": {"hires": np.zeros((9, 9, 3), np.uint8)}}}), "library='a b' cannot be stored"),
        (entry_of("images", {}), r"`hires` not found in `uns\['spatial'\]\['S'\]\['images'\]`"),
        (entry_of("images", None), "`hires` not found"),
        (entry_of("images", {"hires": "S.png"}), "is no picture"),
        (entry_of("images", {"hires": np.zeros((9, 9), np.uint8)}), r"grey images are refused"),
        (entry_of("images", {"hires": np.zeros((0, 9, 3), np.uint8)}), "is no picture"),
        (entry_of("scalefactors", None), "2 problems.*tissue_hires_scalef.*spot_diameter_fullres"),
        (lambda a: a.uns["spatial"]["S"].pop("scalefactors"), "2 problems.*scalefactors.*spot_diameter_fullres"),
        (lambda a: a.obs.__setitem__("section", [None, *["a"] * 139]), r"obs\['section'\]` is missing in 1 rows"),
        (lambda a: a.__setattr__("X", None), "has no counts"),
    ],
)
def test_what_is_missing_or_cannot_be_used_is_named(adata, spoil, match):
    spoil(adata)
    with pytest.raises(Img2GeneError, match=f"(?s){match}"):
        ig.io.from_anndata(adata, spot_um=24)


def test_an_empty_anndata_is_refused(adata):
    with pytest.raises(Img2GeneError, match="has no counts"):
        ig.io.from_anndata(adata[:0].copy(), spot_um=24)


@pytest.mark.parametrize(
    "options",
    [
        {"spot_um": 0},
        {"spot_um": "55"},
        {"spot_um": np.nan},
        {"spot_um": None},
        {"spot_um": True},
        {"library_key": ["a"]},
        {"library_key": 3},
        {"library_key": ""},
        {"patient_key": {}},
        {"image": None},
        {"image": ["hires"]},
    ],
    ids=str,
)
def test_arguments_are_checked_first(adata, options):
    with pytest.raises(Img2GeneError, match=f"{next(iter(options))}="):
        ig.io.from_anndata(adata, **{"spot_um": 24, **options})


@pytest.mark.parametrize("adata", [{}, None, 1, "a.h5ad", np.ones((2, 2))], ids=str)
def test_what_is_no_anndata_is_refused(adata):
    with pytest.raises(Img2GeneError, match="expected an AnnData"):
        ig.io.from_anndata(adata, spot_um=24)


def test_sections_that_join_libraries_and_other_patients_are_refused(make_study):
    adata = ig.io.to_anndata(make_study([("A1", "A"), ("B1", "B")], embed=False))
    adata.obs["slide"] = adata.obs["section"]
    adata.obs["section"] = "one"
    with pytest.raises(Img2GeneError, match=r"several libraries one name \(one\).*rename the column"):
        ig.io.from_anndata(adata, spot_um=55, library_key="slide")
    del adata.obs["section"]
    adata.obs["donor"] = adata.obs["slide"]
    with pytest.raises(Img2GeneError, match=r"`obs\['patient'\]` and `obs\['donor'\]` differ"):
        ig.io.from_anndata(adata, spot_um=55, library_key="slide", patient_key="donor")


def test_columns_of_every_reserved_name_stay(adata):
    names = ["region", "spot_id", "img2gene_region", "img2gene_spot_id"]
    for name in names:
        adata.obs[name] = "mine"
    table = ig.io.from_anndata(adata, spot_um=100, library_key="section")["table"]
    assert (table.obs[names] == "mine").all(axis=None)
    attrs = table.uns["spatialdata_attrs"]
    assert (attrs["region_key"], attrs["instance_key"]) == ("img2gene_region_2", "img2gene_spot_id_2")


def test_embeddings_of_the_old_images_may_be_replaced(make_study):
    study = make_study([("A1", "A"), ("B1", "B")])
    back = ig.io.from_anndata(ig.io.to_anndata(study), spot_um=55, library_key="section", patient_key="patient")
    assert "X_tiny" in back["table"].obsm
    ig.pp.extract_patches(back, patch_um=60, patch_px=32)
    ig.pp.embed_patches(back, "tiny")
    assert set(_schema.read_json(back["table"], "encoder")) == {"tiny"}


def test_pixels_in_place_of_the_key_of_a_picture_are_refused_with_where_to_put_them(shared_study):
    adata = ig.io.to_anndata(shared_study)
    with pytest.raises(Img2GeneError, match=r"(?s)image=array.*expected the key of a picture in .*`image=\"fullres\"`"):
        ig.io.from_anndata(adata, image=np.zeros((8, 8, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "names", [("y", "x"), ("array_row", "array_col"), ("pxl_row_in_fullres", "pxl_col_in_fullres")]
)
def test_positions_whose_names_say_row_first_are_refused(shared_study, names):
    adata = ig.io.to_anndata(shared_study)
    xy = adata.obsm["spatial"]
    adata.obsm["spatial"] = pd.DataFrame(xy[:, ::-1], index=adata.obs_names, columns=list(names))
    with pytest.raises(Img2GeneError, match=f"has the columns {names[0]}, {names[1]}; expected x .*exchange them"):
        ig.io.from_anndata(adata, spot_um=55)
    adata.obsm["spatial"] = pd.DataFrame(xy, index=adata.obs_names, columns=["x", "y"])
    np.testing.assert_allclose(ig.io.from_anndata(adata, spot_um=55)["table"].obsm["spatial"], xy)
