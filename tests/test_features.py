"""Any matrix as features: the same predictions whatever holds it, and refusals that say what is wrong."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from spatialdata.models import TableModel
from torch import nn

import img2gene as ig
from img2gene._errors import Img2GeneError, MissingKeyError


def matrix(sdata):
    return np.asarray(sdata["table"].obsm["X_tiny"])


def without_patches(sdata):
    table = sdata["table"]
    for key in ("X_tiny", "patch_bbox"):
        del table.obsm[key]
    record = dict(table.uns["img2gene"])
    table.uns["img2gene"] = {key: value for key, value in record.items() if key not in ("patches", "encoder")}
    return sdata


def features_table(sdata, rows=None, region_suffix=""):
    """A table as LazySlide writes it: features in X, and the tile that each row belongs to."""
    table = sdata["table"]
    attrs = table.uns["spatialdata_attrs"]
    rows = np.arange(table.n_obs) if rows is None else rows
    regions = table.obs[attrs["region_key"]].astype(str).to_numpy()[rows] + region_suffix
    obs = pd.DataFrame(
        {"library_id": pd.Categorical(regions), "tile_id": table.obs[attrs["instance_key"]].to_numpy()[rows]}
    )
    obs.index = obs.index.astype(str)
    part = ad.AnnData(matrix(sdata)[rows].copy(), obs=obs)
    return TableModel.parse(part, region=sorted(set(regions)), region_key="library_id", instance_key="tile_id")


def fitted(sdata, **options):
    return ig.tl.fit(sdata, "ridge", validate_on=["C"], inplace=False, **options)


def predicted(sdata, model, **options):
    return ig.tl.predict(sdata, model, inplace=False, **options).X


def test_the_same_features_give_the_same_predictions_whatever_holds_them(study):
    table = study["table"]
    ours = predicted(study, fitted(study))
    order = np.random.default_rng(0).permutation(table.n_obs)
    study.tables["mine_tiles"] = features_table(study, order)
    table.obsm["X_array"] = matrix(study).astype(np.float64)
    table.obsm["X_frame"] = pd.DataFrame(matrix(study), index=table.obs_names)
    table.obsm["X_sparse"] = sp.csr_matrix(matrix(study))
    for name in ("X_array", "X_frame", "X_sparse", "mine_tiles"):
        model = fitted(study, features=name)
        np.testing.assert_array_equal(predicted(study, model), ours)
        assert model.inputs["matrix"] == name


def test_an_embedding_of_this_package_is_the_same_under_both_names(study):
    assert fitted(study, features="X_tiny").fingerprint == fitted(study, encoder="tiny").fingerprint


def test_patches_are_not_needed(study):
    table = study["table"]
    table.obsm["X_mine"] = matrix(study)
    model = fitted(study, features="X_mine")
    expected = predicted(study, model)
    bare = without_patches(study)
    again = fitted(bare, features="X_mine")
    np.testing.assert_allclose(predicted(bare, again), expected, atol=1e-5)
    ig.tl.predict(bare, again)
    scores = ig.tl.evaluate(bare, again, sections=["C1"])
    assert scores["pcc"].notna().any()


def test_scores_of_genes_and_places_need_no_patches(study):
    table = study["table"]
    table.obsm["X_mine"] = matrix(study)
    ig.tl.fit(study, "knn", features="X_mine", validate_on=["C"])
    ig.tl.predict(study)
    expected = ig.tl.predictability(study, n_permutations=19), ig.tl.retrieve(study, spots=table.obs_names[:3])
    bare = without_patches(study)
    pd.testing.assert_frame_equal(ig.tl.predictability(bare, n_permutations=19), expected[0])
    pd.testing.assert_frame_equal(ig.tl.retrieve(bare, spots=table.obs_names[:3]), expected[1])


def test_pathways_are_chosen_by_a_matrix_as_by_the_embedding(study):
    genes = study["table"].var_names
    sets = {f"set {first}": list(genes[first : first + 5]) for first in range(0, 15, 3)}
    options = {"gene_sets": sets, "n_top": 2, "min_genes": 3, "inplace": False}
    ours = ig.pp.score_pathways(study, encoder="tiny", **options)
    study["table"].obsm["X_mine"] = matrix(study)
    bare = without_patches(study)
    mine = ig.pp.score_pathways(bare, features="X_mine", **options)
    assert mine["uns"]["pathways"] == ours["uns"]["pathways"]
    # Features that say nothing about the genes rank the sets otherwise.
    bare["table"].obsm["X_noise"] = np.random.default_rng(0).normal(size=bare["table"].obsm["X_mine"].shape)
    other = ig.pp.score_pathways(bare, features="X_noise", **options)["uns"]["pathways"]
    assert other["enrichment"] != ours["uns"]["pathways"]["enrichment"]
    with pytest.raises(Img2GeneError, match="contradict each other"):
        ig.pp.score_pathways(bare, features="X_mine", encoder="tiny", **options)
    with pytest.raises(MissingKeyError, match="X_absent"):
        ig.pp.score_pathways(bare, features="X_absent", **options)


def test_cross_validation_and_learning_curve_train_on_a_matrix(study):
    study["table"].obsm["X_mine"] = matrix(study)
    options = {"baselines": False, "n_permutations": 2}
    ours = ig.tl.cross_validate(study, "ridge", encoder="tiny", **options)
    mine = ig.tl.cross_validate(study, "ridge", features="X_mine", **options)
    pd.testing.assert_series_equal(mine.scores["pcc"], ours.scores["pcc"])
    assert mine.settings["encoder"]["matrix"] == "X_mine"
    curve = ig.tl.learning_curve(study, "ridge", features="X_mine", fractions=(1,), n_repeats=1)
    np.testing.assert_allclose(curve["pcc"], ig.tl.learning_curve(study, "ridge", fractions=(1,), n_repeats=1)["pcc"])
    assert len(ig.tl.check_leaks(study, features="X_mine")) == len(ig.tl.check_leaks(study))


def test_another_matrix_can_be_predicted_from(study, caplog):
    model = fitted(study)
    study["table"].obsm["X_mine"] = matrix(study)
    np.testing.assert_array_equal(predicted(study, model, features="X_mine"), predicted(study, model))
    assert "not recorded which encoder computed `X_mine`" in caplog.text


def test_features_of_another_encoder_or_revision_are_refused(study):
    table = study["table"]
    table.obsm["X_uni2"] = matrix(study)
    ig.pp.describe_features(study, "X_uni2", encoder="uni2-h", revision="a", patch_um=112, licence="CC-BY-NC-ND-4.0")
    model = fitted(study, features="X_uni2")
    assert model.inputs == {
        "name": "uni2-h", "revision": "a", "width": 6, "patch_um": [112.0], "licence": "CC-BY-NC-ND-4.0", "matrix": "X_uni2",
    }  # fmt: skip
    predicted(study, model)
    ig.pp.describe_features(study, "X_uni2", encoder="uni2-h", revision="b", patch_um=112)
    with pytest.raises(Img2GeneError, match=r"encoder revision a, `X_uni2` of .* has b"):
        predicted(study, model)
    ig.pp.describe_features(study, "X_uni2", encoder="virchow2", revision="a", patch_um=224)
    with pytest.raises(Img2GeneError, match=r"(?s)encoder uni2-h, .* has virchow2.*fields of view .*112.* has \[224"):
        predicted(study, model)
    # the model knows its features after it was stored, too
    with pytest.raises(Img2GeneError, match="width 6, `X_wide` of .* has 7"):
        table.obsm["X_wide"] = np.ones((table.n_obs, 7))
        predicted(study, model, features="X_wide")


def test_the_description_is_stored_with_the_model(study, tmp_path):
    study["table"].obsm["X_uni2"] = matrix(study)
    ig.pp.describe_features(study, "X_uni2", encoder="uni2-h", revision="a")
    path = ig.io.save_model(fitted(study, features="X_uni2"), tmp_path / "model")
    assert ig.io.load_model(path).inputs["revision"] == "a"


FAULTS = {
    "NaN": (
        lambda x: x.__setitem__((3, 0), np.nan),
        "is NaN or infinite in 1 rows: fill them or leave out these spots",
    ),
    "infinite": (lambda x: x.__setitem__((3, 0), np.inf), "is NaN or infinite in 1 rows"),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
def test_faulty_values_are_refused(study, change, message):
    values = matrix(study).copy()
    change(values)
    study["table"].obsm["X_mine"] = values
    with pytest.raises(Img2GeneError, match=message):
        fitted(study, features="X_mine")


def test_what_is_no_matrix_of_numbers_is_refused(study):
    table = study["table"]
    table.obsm["X_text"] = pd.DataFrame({"a": ["x"] * table.n_obs, "b": 1.0}, index=table.obs_names)
    table.obsm["X_cube"] = np.ones((table.n_obs, 2, 2))
    table.obsm["X_flags"] = np.ones((table.n_obs, 2), dtype=bool)
    for name, message in {
        "X_text": r"columns that are no numbers \(a\)",
        "X_cube": "features are a matrix",
        "X_flags": "holds bool values, not numbers",
    }.items():
        with pytest.raises(Img2GeneError, match=message):
            fitted(study, features=name)
    with pytest.raises(Img2GeneError, match="expected the name of a matrix; store it first"):
        fitted(study, features=matrix(study))
    with pytest.raises(MissingKeyError, match=r"`X_uni` not found .*available: .*X_tiny"):
        fitted(study, features="X_uni")
    with pytest.raises(Img2GeneError, match="contradict each other: pass one"):
        fitted(study, features="X_tiny", encoder="tiny")


def test_a_table_of_other_tiles_is_refused(study):
    study.tables["other_tiles"] = features_table(study, region_suffix="_tiles")
    with pytest.raises(
        Img2GeneError, match=r"features of other spots or tiles: .* have no row .*A1_spots.*A1_spots_tiles"
    ):
        fitted(study, features="other_tiles")
    study.tables["short_tiles"] = features_table(study, np.arange(10))
    with pytest.raises(Img2GeneError, match=rf"{study['table'].n_obs - 10} of {study['table'].n_obs} spots"):
        fitted(study, features="short_tiles")
    twice = features_table(study)
    tiles = twice.obs["tile_id"].to_numpy().copy()
    tiles[0] = tiles[1]
    twice.obs["tile_id"] = tiles
    study.tables["twice_tiles"] = twice
    with pytest.raises(Img2GeneError, match="names 1 spots twice"):
        fitted(study, features="twice_tiles")


def test_what_a_matrix_does_not_have_is_said(study):
    study["table"].obsm["X_mine"] = matrix(study)
    model = fitted(study, features="X_mine")
    with pytest.raises(Img2GeneError, match="nothing is known of the encoder of the matrix 'X_mine'"):
        ig.tl.predict(study, model, resolution_um=40)
    with pytest.raises(Img2GeneError, match="restained patches belong to an embedding"):
        fitted(study, features="X_mine", debias="stain")


def test_joined_sections_keep_the_description_and_refuse_a_contradiction(make_section):
    first, second = make_section("S1", "P1"), make_section("S2", "P2", seed=1)
    for sdata in (first, second):
        sdata["table"].obsm["X_uni2"] = np.ones((sdata["table"].n_obs, 3))
        ig.pp.describe_features(sdata, "X_uni2", encoder="uni2-h", revision="a")
    joined = ig.io.concat_sections([first, second])
    record = ig.pp.describe_features(joined, "X_uni2", encoder="x", revision="a", inplace=False)
    assert record["uns"]["features"]["X_uni2"]["name"] == "x"
    assert ig._schema.read_json(joined["table"], "features") == {
        "X_uni2": {"name": "uni2-h", "revision": "a", "width": 3}
    }
    ig.pp.describe_features(second, "X_uni2", encoder="uni2-h", revision="b")
    with pytest.raises(Img2GeneError, match=r"Features `obsm\['X_uni2'\]` .*described differently: revision 'a'"):
        ig.io.concat_sections([first, second])


def test_named_columns_in_another_order_are_refused(study):
    table = study["table"]
    values, names = matrix(study), [f"feature {place}" for place in range(matrix(study).shape[1])]
    table.obsm["X_named"] = pd.DataFrame(values, index=table.obs_names, columns=names)
    model = fitted(study, features="X_named")
    expected = predicted(study, model)
    table.obsm["X_named"] = table.obsm["X_named"][names[::-1]]
    with pytest.raises(
        Img2GeneError, match="`X_named` of .* other names, or another order, than those of the training's"
    ):
        predicted(study, model)
    # Columns without names are taken by their place, as those of an array are.
    table.obsm["X_named"] = values
    np.testing.assert_array_equal(predicted(study, model), expected)


@pytest.mark.parametrize("encoder", [nn.Flatten(), "timm:resnet18"])
def test_an_encoder_in_place_of_its_features_is_sent_to_the_embedding(study, encoder):
    with pytest.raises(Img2GeneError, match="is an encoder, not a matrix.*`img2gene.pp.embed_patches"):
        fitted(study, features=encoder)


def test_numbered_columns_in_another_order_are_refused(study):
    table = study["table"]
    numbered = pd.DataFrame(matrix(study), index=table.obs_names)
    table.obsm["X_numbered"] = numbered.set_axis(numbered.columns.astype(str), axis=1)
    model = fitted(study, features="X_numbered")
    table.obsm["X_numbered"] = table.obsm["X_numbered"].iloc[:, ::-1]
    with pytest.raises(Img2GeneError, match="`X_numbered` of .* another order, than those of the training's"):
        predicted(study, model)


def test_an_augmented_embedding_is_another_one_when_it_is_named_too(study):
    ig.pp.embed_patches(study, "tiny", augment="stain")
    model = fitted(study)
    ig.pp.embed_patches(study, "tiny")
    with pytest.raises(Img2GeneError, match="trained with augmentation stain, `X_tiny` of .* has None"):
        predicted(study, model, features="X_tiny")


def test_an_embedding_of_this_package_is_not_described_anew(study):
    with pytest.raises(Img2GeneError, match="`X_tiny` is recorded already as an embedding by `tiny`, revision 1"):
        ig.pp.describe_features(study, "X_tiny", encoder="tiny", revision="2")


def test_a_matrix_in_place_of_its_name_is_the_only_problem(study):
    del study["table"].obsm["X_tiny"]
    with pytest.raises(
        Img2GeneError, match=r"(?s)^features=array.*expected the name of a matrix; store it first"
    ) as error:
        fitted(study, features=np.ones((3, 2)))
    assert "embed_patches" not in str(error.value)


def test_places_are_no_features(study):
    with pytest.raises(Img2GeneError, match=r"obsm\['spatial'\]` holds positions.*Choose among X_tiny"):
        ig.tl.fit(study, "ridge", features="spatial", validate_on=["C"], inplace=False)
