"""Results follow the predictions that they describe, and never replace what the package did not write."""

import json

import numpy as np
import pandas as pd
import pytest

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError

FIRST, SECOND = [f"G{i:02d}" for i in range(8)], ["G00", "G03", "G06"]


@pytest.fixture
def trained(trained_study, copy_of):
    return copy_of(trained_study)


def train_again(sdata):
    ig.tl.fit(sdata, "ridge", validate_on=["A"], genes=FIRST)


def test_a_table_of_predictions_goes_with_the_prediction_that_replaces_it(trained):
    model = ig.get.model(trained)
    trained.tables["table"] = trained["table"][:, :10].copy()
    ig.tl.predict(trained, model)
    assert "img2gene" in trained.tables
    train_again(trained)
    ig.tl.predict(trained)
    assert "img2gene" not in trained.tables
    with pytest.raises(MissingKeyError, match="G11"):
        ig.pl.prediction(trained, genes="G11")


def test_a_layer_goes_when_the_next_model_predicts_none_of_the_genes(trained):
    other = ig.get.model(trained)
    trained["table"].var_names = [f"{name}-renamed" for name in trained["table"].var_names]
    ig.tl.predict(trained, other)
    assert set(trained["table"].layers) - {None} == set()
    assert trained["img2gene"].layers["img2gene_std"].shape == (196, 12)


def test_predictions_of_tiles_stay_when_spots_are_predicted(trained):
    ig.pp.tile_slide(trained, "A1_image", tile_um=100, mpp=5, patch_um=60, patch_px=32, min_tissue=0)
    ig.pp.embed_patches(trained, "tiny", table_key="slide_tiles")
    ig.tl.predict(trained, table_key="slide_tiles")
    tiles = trained["img2gene"].X.copy()
    ig.tl.predict(trained)
    np.testing.assert_array_equal(trained["img2gene"].X, tiles)


def test_a_table_of_another_model_is_not_read_beside_a_newer_layer(trained):
    model = ig.get.model(trained)
    trained.tables["table"] = trained["table"][:, :10].copy()
    ig.tl.predict(trained, model)
    kept = trained["img2gene"]
    train_again(trained)
    ig.tl.predict(trained)
    trained.tables["img2gene"] = kept
    with pytest.raises(MissingKeyError, match="G11"):
        ig.pl.prediction(trained, genes="G11")


def test_scores_go_with_the_predictions_of_another_model(trained):
    ig.tl.evaluate(trained)
    ig.tl.predict(trained)
    assert "pcc" in trained["table"].var
    assert json.loads(trained["table"].uns["img2gene"]["evaluation"])
    train_again(trained)
    ig.tl.predict(trained)
    assert "pcc" not in trained["table"].var
    assert not {"evaluation", "scored_by"} & set(trained["table"].uns["img2gene"])
    ig.tl.evaluate(trained, sections=["A1"])
    by = _schema.read_json(trained["table"], "scored_by")
    assert by == {"key": "img2gene", "fingerprint": ig.get.model(trained).fingerprint}


def test_fitting_another_model_removes_the_evaluation_stored_with_the_first(trained):
    ig.tl.evaluate(trained)
    ig.tl.fit(trained, "ridge", validate_on=["C"])
    assert "evaluation" in trained["table"].uns["img2gene"]
    train_again(trained)
    assert "evaluation" not in trained["table"].uns["img2gene"]
    assert "pcc" not in trained["table"].var


def test_scores_of_another_key_stay(trained):
    ig.tl.evaluate(trained)
    expected = trained["table"].var["pcc"].copy()
    ig.tl.fit(trained, "ridge", validate_on=["A"], key_added="second")
    ig.tl.predict(trained, key_added="second")
    pd.testing.assert_series_equal(trained["table"].var["pcc"], expected)
    assert "evaluation" in trained["table"].uns["img2gene"]


def test_the_localisation_of_replaced_predictions_is_not_drawn(trained):
    ig.tl.localize(trained, {"T": SECOND})
    ig.pl.localization(trained, "T")
    train_again(trained)
    ig.pl.localization(trained, "T")
    ig.tl.predict(trained)
    with pytest.raises(Img2GeneError, match="another model has replaced since. Run `img2gene.tl.localize` again"):
        ig.pl.localization(trained, "T")
    ig.tl.localize(trained, {"T": SECOND}, sections=["A1"])
    ig.pl.localization(trained, "T")


def test_localisations_of_measured_expression_and_of_earlier_versions_are_drawn(trained):
    ig.tl.localize(trained, {"T": SECOND}, use="measured", key_added="measured")
    ig.tl.localize(trained, {"T": SECOND})
    records = _schema.read_json(trained["table"], "localization")
    del records["localization"]["fingerprint"]
    _schema.write_json(trained["table"], "localization", records)
    train_again(trained)
    ig.tl.predict(trained)
    ig.pl.localization(trained, "T", key_added="measured")
    ig.pl.localization(trained, "T")


@pytest.mark.parametrize("column", ["localization_T", "localization_T_inside"])
def test_a_localisation_without_its_columns_is_refused_by_name(trained, column):
    ig.tl.localize(trained, {"T": SECOND})
    del trained["table"].obs[column]
    with pytest.raises(MissingKeyError, match=f"`{column}` not found in .*`img2gene.tl.localize` again"):
        ig.pl.localization(trained, "T")


def users(table, slot, name):
    values = {"layers": np.ones(table.shape), "obs": np.arange(table.n_obs), "var": np.arange(table.n_vars)}
    getattr(table, slot)[name] = values[slot]


@pytest.mark.parametrize("uncertainty", [True, False])
@pytest.mark.parametrize(
    ("slot", "name", "key"),
    [
        ("layers", "counts", "counts"),
        ("layers", "img2gene_std", "img2gene"),
        ("layers", "img2gene_upper", "img2gene"),
        ("obs", "img2gene_ood", "img2gene"),
    ],
)
def test_predictions_do_not_replace_what_the_user_stored(study, snapshot, slot, name, key, uncertainty):
    model = ig.tl.fit(study, "ridge", validate_on=["C"], inplace=False)
    users(study["table"], slot, name)
    before = snapshot(study["table"])
    with pytest.raises(Img2GeneError, match=f"{slot}\\['{name}'\\] would be replaced, and img2gene did not write it"):
        ig.tl.predict(study, model, key_added=key, uncertainty=uncertainty)
    assert snapshot(study["table"]) == before
    assert ig.tl.predict(study, model, key_added=key, inplace=False).shape == (196, 12)
    ig.tl.predict(study, model, key_added="other")
    ig.tl.predict(study, model, key_added="other")


@pytest.mark.parametrize(
    ("call", "name"), [(ig.tl.evaluate, "pcc"), (ig.tl.predictability, "pcc"), (ig.tl.predictability, "predictable")]
)
def test_scores_do_not_replace_what_the_user_stored(trained, snapshot, call, name):
    users(trained["table"], "var", name)
    before = snapshot(trained["table"])
    with pytest.raises(Img2GeneError, match=f"var\\['{name}'\\] would be replaced, and img2gene did not write it"):
        call(trained)
    assert snapshot(trained["table"]) == before
    call(trained, inplace=False)
    del trained["table"].var[name]
    for scores in (call, ig.tl.evaluate, ig.tl.predictability, call):
        scores(trained)


def test_evaluations_of_earlier_versions_can_be_repeated(trained):
    ig.tl.evaluate(trained)
    del trained["table"].uns["img2gene"]["scored_by"]
    ig.tl.evaluate(trained)
    assert "scored_by" in trained["table"].uns["img2gene"]


def test_a_table_with_few_of_the_genes_is_named(trained, caplog):
    model = ig.get.model(trained)
    names = trained["table"].var_names.tolist()
    trained["table"].var_names = [*names[:2], *(f"{name}-renamed" for name in names[2:])]
    ig.tl.predict(trained, model)
    assert "only 2 of the model's 12 genes (not G02, G03" in caplog.text
