"""Slides, predictions, pictures and scores that would be mixed up are refused, renewed or named."""

import numpy as np
import pytest
import scipy.sparse as sp
from spatialdata.models import Image2DModel
from spatialdata.transformations import Translation, get_transformation, set_transformation

import img2gene as ig
from img2gene._errors import Img2GeneError, LeakageError

CALLS = {
    "extract_patches": lambda sdata: ig.pp.extract_patches(sdata, patch_um=60),
    "embed_patches": lambda sdata: ig.pp.embed_patches(sdata, "tiny"),
    "select_genes": lambda sdata: ig.pp.select_genes(sdata, 3),
    "fit": lambda sdata: ig.tl.fit(sdata, "ridge"),
    "predict": lambda sdata: ig.tl.predict(sdata),
    "evaluate": lambda sdata: ig.tl.evaluate(sdata),
    "to_anndata": ig.io.to_anndata,
}


@pytest.fixture
def trained(trained_study, copy_of):
    return copy_of(trained_study)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_slides_of_one_name_are_refused_everywhere(trained, call):
    # Slides are often numbered within each patient.
    trained["table"].obs["section"] = [name[1:] for name in trained["table"].obs["section"].astype(str)]
    with pytest.raises(Img2GeneError, match=r"Spots of several slides have one name in .*\(1\)"):
        call(trained)


def test_two_regions_on_one_slide_can_be_one_section(make_section):
    sdata = make_section("A1", "A")
    table, shapes = sdata["table"], sdata.shapes["A1_spots"]
    half = len(shapes) // 2
    sdata.shapes["left"], sdata.shapes["right"] = shapes.iloc[:half], shapes.iloc[half:]
    table.obs["region"] = np.where(np.isin(table.obs["spot_id"], shapes.index[:half]), "left", "right")
    table.uns["spatialdata_attrs"]["region"] = ["left", "right"]
    ig.pp.extract_patches(sdata, patch_um=60)
    assert ig.pp.select_genes(sdata, 3, inplace=False) is not None


def test_predictions_of_other_regions_are_not_replaced(trained):
    tables = trained.tables
    for key, image in (("one", "A1_image"), ("two", "B1_image")):
        ig.pp.tile_slide(trained, image, tile_um=60, patch_um=60, patch_px=32, min_tissue=0, key_added=key)
        ig.pp.embed_patches(trained, "tiny", table_key=key)
    ig.tl.predict(trained, table_key="one")
    before = tables["img2gene"]
    with pytest.raises(Img2GeneError, match=r"holds predictions of other regions \(one_squares\), which would be lost"):
        ig.tl.predict(trained, table_key="two")
    assert tables["img2gene"] is before
    # Predictions of spots are a layer, which takes nothing from the tiles.
    ig.tl.predict(trained)
    assert tables["img2gene"] is before
    ig.tl.predict(trained, "img2gene", table_key="two", key_added="other")
    ig.tl.predict(trained, table_key="one")
    assert set(tables) >= {"img2gene", "other"}


def test_counts_that_were_taken_away_are_named(trained, caplog):
    table = trained["table"]
    assert "counted_genes" in table.uns["img2gene"]["sections"]
    ig.tl.evaluate(trained)
    trained.tables["table"] = table[:, :6].copy()
    ig.tl.evaluate(trained)
    assert "X holds fewer counts" not in caplog.text
    trained.tables["table"] = table
    table.X = sp.csr_matrix(np.random.default_rng(0).binomial(table.X.toarray().astype(int), 0.3).astype(np.float32))
    ig.tl.evaluate(trained)
    assert "X holds fewer counts than when obs['library_size'] was counted, in A1_spots" in caplog.text


def seen(table, section):
    """The picture under each spot, as squidpy finds it."""
    library = table.uns["spatial"][section]
    rows = (table.obs["section"] == section).to_numpy()
    places = table.obsm["spatial"][rows] * library["scalefactors"]["tissue_hires_scalef"]
    x, y = np.rint(places).astype(int).T
    return library["images"]["hires"][y.clip(0), x.clip(0)]


def test_a_thumbnail_follows_its_image_and_its_place(make_section):
    sdata = make_section("A1", "A")
    ig.pp.extract_patches(sdata, patch_um=60)
    table = sdata["table"]
    table.uns["spatial"]["A1"]["images"]["lowres"] = "of the user"
    image = sdata.images["A1_image"]
    places = get_transformation(image, get_all=True)
    sdata.images["A1_image"] = Image2DModel.parse(255 - image.data, dims=("c", "y", "x"), transformations=places)
    before = seen(table, "A1")
    ig.pp.extract_patches(sdata, patch_um=60)
    np.testing.assert_array_equal(seen(table, "A1"), 255 - before)
    set_transformation(sdata.shapes["A1_spots"], Translation([8, 0], axes=("x", "y")), to_coordinate_system="A1")
    ig.pp.extract_patches(sdata, patch_um=60)
    windows = table.obsm["patch_bbox"]
    x = (windows[:, 1] + windows[:, 3]) // 2
    y = (windows[:, 0] + windows[:, 2]) // 2
    pixels = np.moveaxis(np.asarray(sdata.images["A1_image"].data), 0, -1)[y, x]
    assert np.abs(seen(table, "A1").astype(int) - pixels).mean() < 3
    assert table.uns["spatial"]["A1"]["images"]["lowres"] == "of the user"


def test_a_thumbnail_of_the_user_stays(make_section):
    sdata = make_section("A1", "A")
    mine = np.zeros((20, 20, 3), np.uint8)
    sdata["table"].uns["spatial"] = {"A1": {"images": {"hires": mine}, "scalefactors": {}}}
    ig.pp.extract_patches(sdata, patch_um=60)
    ig.pp.extract_patches(sdata, patch_um=80)
    assert sdata["table"].uns["spatial"]["A1"]["images"]["hires"] is mine


def test_a_patient_is_recognised_under_another_name(trained):
    ig.tl.fit(trained, "ridge", groups="section", validate_on=["A2"], allow_leakage=True)
    ig.tl.predict(trained)
    obs = trained["table"].obs
    obs["patient"] = obs["patient"].astype(str).map({"A": "one", "B": "two", "C": "three"})
    scores = ig.tl.evaluate(trained, sections=["A2"])
    assert scores["leakage"].all()


def test_a_panel_of_sections_with_other_names_is_named(study, caplog):
    ig.pp.select_genes(study, 3)
    with pytest.raises(LeakageError, match="chosen on the held-out sections"):
        ig.tl.fit(study, "ridge", validate_on=["C"])
    study["table"].obs["section"] = ["new " + name for name in study["table"].obs["section"].astype(str)]
    ig.tl.fit(study, "ridge", validate_on=["C"])
    assert "the gene panel was chosen on the sections A1" in caplog.text


def test_spots_without_a_prediction_are_not_scored_in_silence(trained):
    table = trained["table"]
    table.obs["in_tissue"] = (np.arange(table.n_obs) % 5 > 0).astype(int)
    ig.tl.predict(trained)
    ig.tl.evaluate(trained)
    table.obs["in_tissue"] = 1
    with pytest.raises(
        Img2GeneError, match=r"Predictions 'img2gene' are missing in \d+ of \d+ measured spots of section C1"
    ):
        ig.tl.evaluate(trained)
