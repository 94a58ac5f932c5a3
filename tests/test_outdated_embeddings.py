"""Training and prediction refuse embeddings that no longer describe the images, places and settings of a study."""

import anndata as ad
import numpy as np
import pytest
import spatialdata as sd
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, TableModel
from spatialdata.transformations import Translation, get_transformation, set_transformation

import img2gene as ig
from img2gene._errors import Img2GeneError

CALLS = {
    "fit": lambda sdata: ig.tl.fit(sdata, "ridge", validate_on=["C"]),
    "predict": lambda sdata: ig.tl.predict(sdata),
    "cross_validate": lambda sdata: ig.tl.cross_validate(sdata, "ridge", baselines=False, n_permutations=2),
    "learning_curve": lambda sdata: ig.tl.learning_curve(sdata, "ridge", fractions=(1,), n_repeats=1),
    "check_leaks": lambda sdata: ig.tl.check_leaks(sdata),
}


def replace_image(sdata, name, pixels, **options):
    transformations = dict(get_transformation(sdata[name], get_all=True))
    del sdata.images[name]
    sdata.images[name] = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=transformations, **options)


@pytest.fixture
def trained(trained_study, copy_of):
    return copy_of(trained_study)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_embedding_of_other_pixels_is_refused(trained, call):
    replace_image(trained, "A1_image", 255 - np.asarray(trained["A1_image"].data))
    with pytest.raises(
        Img2GeneError, match=r"`A1_spots` no longer belong to image `A1_image`: its pixels have changed"
    ):
        call(trained)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_embedding_from_before_a_registration_is_refused(make_study, trained_study, call):
    # Shapes hold their transformation, and copies of the shared study share its shapes.
    sdata = make_study()
    sdata["table"].uns.update({key: value for key, value in trained_study["table"].uns.items() if key == "img2gene"})
    set_transformation(sdata["A1_spots"], Translation([20, 0], ("x", "y")), "A1")
    with pytest.raises(Img2GeneError, match=r"`A1_spots` no longer belong to image `A1_image`.*up to 20 px"):
        call(sdata)


def test_a_cropped_study_says_how_to_keep_its_embeddings(trained):
    box = {"min_coordinate": [30, 30], "max_coordinate": [120, 120]}
    part = sd.bounding_box_query(trained, axes=("x", "y"), target_coordinate_system="A1", **box)
    expected = trained["table"].to_df("img2gene").loc[part["table"].obs_names].to_numpy()
    with pytest.raises(Img2GeneError, match=r"only cropped .* remove it instead: `del sdata.images\['A1_image'\]`"):
        ig.tl.predict(part)
    del part.images["A1_image"]
    ig.tl.predict(part)
    assert part["table"].layers["img2gene"].shape == expected.shape


def test_rows_scales_and_images_may_change_where_embeddings_stay_right(trained):
    expected = trained["table"].to_df("img2gene")
    order = np.random.default_rng(0).permutation(trained["table"].n_obs)
    trained.tables["table"] = trained["table"][order].copy()
    replace_image(trained, "A1_image", trained["A1_image"].data, scale_factors=[2])
    del trained.images["B1_image"]
    ig.tl.predict(trained)
    result = trained["table"].to_df("img2gene").loc[expected.index]
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_predicting_from_embeddings_needs_no_windows(trained):
    del trained["table"].obsm["patch_bbox"]
    ig.tl.predict(trained)


def joined_by_anndata(make_study, **second):
    """Join two studies with anndata alone, which keeps the records of the first."""
    parts = [make_study([("A1", "A")]), make_study([("B1", "B")], embed=False)]
    ig.pp.extract_patches(parts[1], patch_um=second.get("patch_um", 60), patch_px=32)
    ig.pp.embed_patches(parts[1], "tiny", orientations=second.get("orientations", 2))
    table = ad.concat([part["table"] for part in parts], uns_merge="first", merge="same")
    del table.uns["spatialdata_attrs"]
    keys = {"region_key": "region", "instance_key": "spot_id"}
    table = TableModel.parse(table, region=["A1_spots", "B1_spots"], **keys)
    images, shapes = ({**getattr(parts[0], kind), **getattr(parts[1], kind)} for kind in ("images", "shapes"))
    return SpatialData(images=images, shapes=shapes, tables={"table": table})


@pytest.mark.parametrize("second", [{"orientations": 8}, {"patch_um": 80}])
def test_regions_whose_embedding_has_no_record_are_refused(make_study, trained_study, second):
    sdata, model = joined_by_anndata(make_study, **second), ig.get.model(trained_study)
    with pytest.raises(Img2GeneError, match=r"obsm\['X_tiny'\]` has no record for B1_spots"):
        ig.tl.predict(sdata, model)
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32, mpp=5)
    ig.pp.embed_patches(sdata, "tiny")
    ig.tl.predict(sdata, model)
