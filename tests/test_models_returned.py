"""What a registered model returns is checked before it is stored or written, and the genes of a model stay in order."""

import copy
import dataclasses
import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import img2gene as ig
from img2gene import Img2GeneError
from img2gene.models import registry
from img2gene.testing import assert_models_equal


class Profile:
    """Predicts the mean expression of the training spots."""

    name = "profile"
    shapes = {"mean": ("genes",)}

    def fit(self, data, *, seed):
        self.mean = data.labels.mean(axis=0)

    def predict(self, features, sections):
        return np.tile(self.mean, (len(features), 1))

    def state(self):
        return {}, {"mean": self.mean}

    @classmethod
    def from_state(cls, config, arrays):
        model = cls()
        model.mean = arrays["mean"]
        return model

    def summary(self):
        return {}


@pytest.fixture
def fit(study, monkeypatch):
    """Fit a profile with one method changed: ``fit(uncertainty=…, state=…)``; return the study."""

    def run(*, uncertainty=False, **methods):
        monkeypatch.setitem(registry._REGISTRY, "profile", type("Changed", (Profile,), methods))
        ig.tl.fit(study, "profile", uncertainty=uncertainty, key_added="own", validate_on=["C"])
        return study

    return run


STATES = {
    "NaN": (lambda self: ({}, {"mean": self.mean * np.nan}), "`profile` cannot be stored: Array `mean` holds NaN"),
    "undeclared": (lambda self: ({}, {"mean": self.mean, "z": self.mean}), "Array `z` is not part of this model"),
    "absent": (lambda self: ({}, {}), "Array `mean` is missing"),
    "shape": (lambda self: ({}, {"mean": self.mean[:-1]}), r"shape \(11,\), expected \(12,\)"),
    "objects": (
        lambda self: ({}, {"mean": self.mean.astype(object)}),
        "`profile.mean` cannot be stored: it holds object",
    ),
    "128 bits": (lambda self: ({}, {"mean": self.mean.astype(np.longdouble)}), "`profile.mean` cannot be stored"),
    "ragged": (lambda self: ({}, {"mean": [[1], [1, 2]]}), "profile.mean=.*expected an array"),
    "nothing": (lambda self: None, "`state` returned None, expected two dictionaries"),
    "a list": (lambda self: ({}, [self.mean]), "expected two dictionaries"),
    "no facts": (lambda self: (None, {"mean": self.mean}), "expected two dictionaries"),
    "failing": (lambda self: 1 / 0, "`state` failed: ZeroDivisionError"),
    "a set": (lambda self: ({"a": {1}}, {"mean": self.mean}), "`profile.predictor.a` cannot be stored"),
}


@pytest.mark.parametrize(("state", "message"), STATES.values(), ids=STATES)
def test_a_model_that_cannot_be_read_back_is_refused_by_fit(fit, study, snapshot, state, message):
    before = snapshot(study["table"])
    with pytest.raises(Img2GeneError, match=f"(?s){message}"):
        fit(state=state)
    assert snapshot(study["table"]) == before


def test_a_model_that_cannot_be_restored_is_neither_stored_nor_saved(fit, monkeypatch, tmp_path):
    model = ig.get.model(fit(), "own")

    def forgets(cls, config, arrays):
        return config["facts"]

    broken = type("Broken", (Profile,), {"from_state": classmethod(forgets)})
    monkeypatch.setitem(registry._REGISTRY, "profile", broken)
    with pytest.raises(Img2GeneError, match="The model `profile` cannot be stored: the entry 'facts' is missing"):
        ig.io.save_model(model, tmp_path / "own")
    assert not list(tmp_path.iterdir())


def test_restoring_a_model_before_it_is_stored_does_not_change_it(fit):
    def from_state(cls, config, arrays):
        arrays["mean"][:] = 0
        return Profile.from_state(config, arrays)

    study = fit(from_state=classmethod(from_state))
    assert ig.get.model(study, "own").state()[1]["predictor.mean"].tolist() == [0] * 12
    stored = study["table"].uns["own"]["model"]["weights"].tobytes()
    assert ig.get.model(study, "own").statistics["mean"].tobytes() in stored
    assert ig.io.model_store._arrays(stored, "own")["predictor.mean"].min() > 0


@pytest.mark.parametrize("convert", [list, lambda mean: mean.astype(">f4"), lambda mean: mean.astype(np.float16)])
def test_arrays_of_every_storable_form_are_read_back(fit, convert):
    study = fit(state=lambda self: ({}, {"mean": convert(self.mean)}))
    ig.tl.predict(study, key_added="own")
    expected = ig.get.model(study, "own").statistics["mean"]
    np.testing.assert_allclose(study["table"].layers["own"][0], expected, rtol=1e-3)


def predictions(self, features, *, n_genes=12, n_lost=0):
    return np.tile(self.mean[:n_genes], (len(features) - n_lost, 1))


def with_gap(self, features, sections, value=np.nan):
    values = predictions(self, features)
    values[0, 3] = value
    return values


PREDICTIONS = {
    "width": (lambda self, x, sections: predictions(self, x, n_genes=1), r"shape \(\d+, 1\), expected \(\d+, 12\)"),
    "rows": (lambda self, x, sections: predictions(self, x, n_lost=1), r"of shape \(\d+, 12\), expected"),
    "axes": (lambda self, x, sections: self.mean, r"of shape \(12,\), expected"),
    "NaN": (with_gap, "NaN or infinite in float32 for 1 of"),
    "infinite": (lambda *args: with_gap(*args, value=-np.inf), "NaN or infinite in float32 for 1 of"),
    "overflow": (lambda self, x, sections: predictions(self, x).astype(float) * 1e300, "NaN or infinite in float32"),
    "masked": (lambda self, x, sections: np.ma.masked_less(predictions(self, x), 99), "NaN or infinite in float32"),
    "sparse": (lambda self, x, sections: sp.csr_matrix(predictions(self, x)), "predictions as csr_matrix"),
    "nothing": (lambda self, x, sections: None, "predictions as NoneType"),
    "text": (lambda self, x, sections: predictions(self, x).astype(str), "predictions as <U32 values"),
    "complex": (lambda self, x, sections: predictions(self, x) * 1j, "predictions as complex64 values"),
    "ragged": (lambda self, x, sections: [[1], [1, 2]], "`predict` failed: ValueError"),
    "failing": (lambda self, x, sections: 1 / 0, "`predict` failed: ZeroDivisionError"),
}


@pytest.mark.parametrize("uncertainty", [False, True])
@pytest.mark.parametrize(("predict", "message"), PREDICTIONS.values(), ids=PREDICTIONS)
def test_a_model_with_unusable_predictions_of_its_training_spots_is_refused_and_not_stored(
    study, fit, snapshot, predict, message, uncertainty
):
    before = snapshot(study["table"])
    with pytest.raises(Img2GeneError, match=f"Model `profile`.*{message}"):
        fit(uncertainty=uncertainty, predict=predict)
    assert snapshot(study["table"]) == before


def test_unusable_predictions_of_new_spots_are_refused_before_they_are_written(fit, snapshot):
    study = fit(predict=lambda self, x, sections: predictions(self, x, n_genes=1 if "C1" in sections else 12))
    before = snapshot(study["table"])
    with pytest.raises(Img2GeneError, match=r"Model `profile` returned predictions of shape \(49, 1\)"):
        ig.tl.predict(study, key_added="own")
    assert snapshot(study["table"]) == before


@pytest.mark.parametrize("convert", [np.ndarray.tolist, pd.DataFrame, lambda values: values.astype(np.float64)])
def test_predictions_are_converted_to_float32(fit, convert):
    study = fit(predict=lambda self, features, sections: convert(predictions(self, features)))
    ig.tl.predict(study, key_added="own")
    layer = study["table"].layers["own"]
    assert layer.dtype == np.float32
    expected = np.tile(ig.get.model(study, "own").statistics["mean"], (len(layer), 1))
    np.testing.assert_allclose(layer, expected, rtol=1e-5)


def test_held_out_predictions_of_a_model_are_checked(fit):
    def fit_held_out(self, data, *, seed):
        self.fit(data, seed=seed)
        return ig.models.HeldOut(np.arange(9), np.full((9, 12), np.nan), "group", np.array(["A"] * 9))

    with pytest.raises(Img2GeneError, match="`profile` returned held-out predictions that are NaN or infinite"):
        fit(uncertainty=True, fit_held_out=fit_held_out)


CHANGES = {
    "reverse": lambda genes: genes.reverse(),
    "sort": lambda genes: genes.sort(),
    "append": lambda genes: genes.append("new"),
    "extend": lambda genes: genes.extend(["new"]),
    "insert": lambda genes: genes.insert(0, "new"),
    "remove": lambda genes: genes.remove("G00"),
    "pop": lambda genes: genes.pop(),
    "clear": lambda genes: genes.clear(),
    "item": lambda genes: genes.__setitem__(0, "new"),
    "slice": lambda genes: genes.__setitem__(slice(None), ["new"]),
    "delete": lambda genes: genes.__delitem__(0),
    "add in place": lambda genes: genes.__iadd__(["new"]),
    "repeat in place": lambda genes: genes.__imul__(2),
    "shuffle": lambda genes: np.random.default_rng(0).shuffle(genes),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_genes_of_a_model_cannot_be_changed(trained_study, change):
    model = ig.get.model(trained_study)
    with pytest.raises(Img2GeneError, match=r"cannot be changed.*`list\(model.genes\)`"):
        change(model.genes)
    assert model.genes == list(trained_study["table"].var_names)


@pytest.mark.parametrize("genes", [None, ["G00"], 5, "G00"])
def test_other_genes_cannot_be_assigned_to_a_model(trained_study, genes):
    model = ig.get.model(trained_study)
    with pytest.raises(Img2GeneError, match="cannot be changed"):
        model.genes = genes
    assert len(model.genes) == 12


@pytest.mark.parametrize("genes", [None, [], [5], ["G00", "G00"], np.array(5)])
def test_a_model_is_not_made_with_genes_that_are_no_names(trained_study, genes):
    with pytest.raises(Img2GeneError, match="genes"):
        dataclasses.replace(ig.get.model(trained_study), genes=genes)


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Index, pd.Series])
def test_genes_of_every_kind_of_list_make_the_same_model(trained_study, kind):
    model = ig.get.model(trained_study)
    assert_models_equal(model, dataclasses.replace(model, genes=kind(list(model.genes))))


def test_genes_choose_columns_as_a_list_does(trained_study):
    genes, table = ig.get.model(trained_study).genes, trained_study["table"]
    assert isinstance(genes, list)
    assert table[:, genes].shape == table.to_df()[genes].shape == table.shape


def test_a_model_with_other_genes_is_another_model(trained_study, copy_of):
    model = ig.get.model(trained_study)
    assert dataclasses.replace(model, genes=model.genes[::-1]).fingerprint != model.fingerprint
    longer = dataclasses.replace(model, genes=[*model.genes, "new"])
    with pytest.raises(Img2GeneError, match=r"Model `ridge` returned predictions of shape .*, 12\), expected .*, 13\)"):
        ig.tl.predict(copy_of(trained_study), longer)


def test_the_fingerprint_follows_what_predictions_depend_on(trained_study):
    model = ig.get.model(trained_study)
    before = model.fingerprint
    model.labels = {"layer": "own", "target_sum": None}
    assert model.fingerprint != before


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copied_and_pickled_models_are_the_same_model(trained_study, again):
    model = ig.get.model(trained_study)
    other = again(model)
    assert_models_equal(model, other)
    assert other.fingerprint == model.fingerprint
    with pytest.raises(Img2GeneError, match="cannot be changed"):
        other.genes.reverse()
