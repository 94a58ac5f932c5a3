"""Predictions that are written chunk by chunk into a store."""

import errno
import warnings
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from spatialdata import read_zarr

import img2gene as ig
from img2gene._study.predictions import predicted_values
from img2gene._study.study import Study
from img2gene.io import table_store
from img2gene.models import prepared
from img2gene.models.row_blocks import PredictsBlocks

SMALL = {
    "img2gene": {"n_models": 2, "max_epochs": 1, "n_components": 4, "dim": 8, "heads": 1, "n_validations": 1},
    "cmrcnet": {"n_models": 1, "max_epochs": 1, "n_components": 4, "dim": 8, "heads": 1, "n_validations": 0, "k": 3},
}


class LastSpotKNN:
    """A model of another package, which predicts all spots at once."""

    name = "mean-of-section"
    shapes = {"weights": ("width", "genes")}

    def fit(self, data, *, seed):
        self.weights = np.linalg.lstsq(data.features, data.labels, rcond=None)[0].astype(np.float32)

    def predict(self, features, sections):
        out = features @ self.weights
        for name in np.unique(sections):
            out[sections == name] -= out[sections == name].mean(axis=0)
        return out

    def state(self):
        return {}, {"weights": self.weights}

    @classmethod
    def from_state(cls, config, arrays):
        model = cls()
        model.weights = arrays["weights"]
        return model

    def summary(self):
        return {}


@pytest.fixture
def few_rows(monkeypatch):
    """Parts of 30 rows, so that they cross the sections of 49 spots."""
    monkeypatch.setattr(table_store, "_MOST_ROWS", 30)


@pytest.fixture
def shuffled(study):
    """The study with its spots in random order, some of them off the tissue."""
    table = study["table"]
    study.tables["table"] = table[np.random.default_rng(0).permutation(table.n_obs)].copy()
    study["table"].obs["in_tissue"] = (np.arange(table.n_obs) % 9 > 0).astype(int)
    return study


def matrices(table, key):
    layers = {name: table.layers[name] for name in table.layers if name is not None and name.startswith(key)}
    values = {key: table.X} | {name: layers[name] for name in layers if name != key}
    return {name: np.asarray(x.compute() if hasattr(x, "compute") else x) for name, x in values.items()}


@pytest.mark.parametrize("name", ["ridge", "ridge-plain", "knn", "mean", "cmrcnet", "img2gene", "another"])
def test_a_store_holds_what_the_study_would(name, shuffled, tmp_path, few_rows, monkeypatch):
    model = name
    if name == "another":
        ig.models.register(LastSpotKNN)
        model = LastSpotKNN.name
    ig.tl.fit(shuffled, model, validate_on=["C"], **SMALL.get(name, {}))
    expected = ig.tl.predict(shuffled, inplace=False)
    ig.tl.predict(shuffled, out=tmp_path / "predicted.zarr")
    found = shuffled["img2gene"]
    assert found.obs_names.equals(expected.obs_names) and found.var_names.equals(expected.var_names)
    assert found.obs["img2gene_ood"].equals(expected.obs["img2gene_ood"])
    values, written = matrices(expected, "img2gene"), matrices(found, "img2gene")
    assert written.keys() == values.keys() == {"img2gene", "img2gene_std", "img2gene_lower", "img2gene_upper"}
    for key, array in written.items():
        np.testing.assert_allclose(array, values[key], rtol=0, atol=1e-5, equal_nan=True)
    assert np.isnan(written["img2gene"]).any(axis=1).tolist() == (shuffled["table"].obs["in_tissue"] == 0).tolist()


@pytest.mark.parametrize("depth", [500.0, "unlimited"])
def test_depth_is_that_of_the_call(depth, trained_study, copy_of, tmp_path, few_rows):
    sdata = copy_of(trained_study)
    expected = ig.tl.predict(sdata, depth=depth, inplace=False)
    found = ig.tl.predict(sdata, depth=depth, inplace=False, out=tmp_path / "out.zarr")
    for key, array in matrices(found, "img2gene").items():
        np.testing.assert_allclose(array, matrices(expected, "img2gene")[key], atol=1e-5)


def test_models_of_the_package_predict_blocks_and_an_overriding_subclass_does_not():
    known = [ig.models.get(name) for name in ("ridge", "ridge-plain", "knn", "mean", "img2gene", "cmrcnet", "bleep")]
    assert all(issubclass(kind, PredictsBlocks) and prepared._prepares(kind) for kind in known)

    class Doubled(ig.models.get("ridge")):
        def predict(self, features, sections):
            return 2 * super().predict(features, sections)

    assert not prepared._prepares(Doubled)


def test_the_table_opens_without_its_matrices_in_other_programs_and_with_the_study(trained_study, copy_of, tmp_path):
    sdata = copy_of(trained_study)
    path = tmp_path / "predicted.zarr"
    ig.tl.predict(sdata, out=path)
    whole, opened = ad.read_zarr(path), ig.io.open_table(path)
    assert hasattr(opened.X, "compute") and all(hasattr(opened.layers[name], "compute") for name in opened.layers)
    np.testing.assert_array_equal(opened.X.compute(), whole.X)
    sdata.write(tmp_path / "study.zarr")
    again = read_zarr(tmp_path / "study.zarr")
    np.testing.assert_array_equal(again["img2gene"].X, whole.X)
    assert ad.experimental.read_lazy(path).shape == whole.shape
    assert sorted(file.name for file in tmp_path.iterdir()) == ["predicted.zarr", "study.zarr"]


def test_other_functions_read_the_genes_that_they_need_from_the_store(trained_study, copy_of, tmp_path):
    in_store, in_study = copy_of(trained_study), copy_of(trained_study)
    ig.tl.predict(in_store, out=tmp_path / "out.zarr")
    assert "img2gene" not in in_store["table"].layers
    studies = [Study.of(sdata) for sdata in (in_store, in_study)]
    values = [predicted_values(study, ["G07", "G01"], "img2gene") for study in studies]
    np.testing.assert_allclose(*values, atol=1e-5)
    assert values[0].shape == (196, 2)


def test_half_precision_keeps_three_digits_and_half_the_store(trained_study, copy_of, tmp_path):
    sdata = copy_of(trained_study)
    single, half = (
        ig.tl.predict(sdata, out=tmp_path / dtype, dtype=dtype, inplace=False) for dtype in ("float32", "float16")
    )
    assert half.X.dtype == np.float16 and half.X.nbytes * 2 == single.X.nbytes
    np.testing.assert_allclose(half.X.compute(), single.X.compute(), rtol=1e-3)


def test_numbers_beyond_half_precision_are_refused(study, tmp_path, snapshot):
    study["table"].layers["large"] = np.log1p(study["table"].X.toarray()) * 1e5
    ig.tl.fit(study, "mean", layer="large", validate_on=["C"])
    before = snapshot(study["table"])
    with pytest.raises(ig.Img2GeneError, match=r'holds numbers up to 65504.*Pass dtype="float32"'):
        ig.tl.predict(study, out=tmp_path / "out.zarr", dtype="float16")
    assert snapshot(study["table"]) == before and "img2gene" not in study.tables


def counted(monkeypatch):
    """Count the blocks that are predicted."""
    calls = []
    plain = prepared.PreparedPrediction.__call__
    monkeypatch.setattr(
        prepared.PreparedPrediction, "__call__", lambda self, rows: calls.append(rows) or plain(self, rows)
    )
    return calls


def interrupt(monkeypatch, after):
    """Interrupt the call after some parts."""
    plain = table_store.TableWriter.write

    def write(self, number, values):
        if number == after:
            raise KeyboardInterrupt
        plain(self, number, values)

    monkeypatch.setattr(table_store.TableWriter, "write", write)


def test_an_interrupted_call_goes_on_where_it_was(trained_study, copy_of, tmp_path, few_rows, snapshot):
    sdata, path = copy_of(trained_study), tmp_path / "out.zarr"
    expected = ig.tl.predict(sdata, inplace=False)
    before = snapshot(sdata["table"])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 3)
        ig.tl.predict(sdata, out=path)
    assert snapshot(sdata["table"]) == before and not path.exists()
    with pytest.raises(ig.Img2GeneError, match=r"no such store.*make the call again"):
        ig.io.open_table(path)
    with pytest.MonkeyPatch.context() as patch:
        calls = counted(patch)
        ig.tl.predict(sdata, out=path)
        # Seven parts of 30 rows hold 196 spots.
        assert [rows.start for rows in calls] == [90, 120, 150, 180]
        ig.tl.predict(sdata, out=path)
        assert len(calls) == 4
    np.testing.assert_allclose(sdata["img2gene"].X.compute(), expected.X, atol=1e-5)


def test_a_part_that_changed_on_disk_is_predicted_again(trained_study, copy_of, tmp_path, few_rows):
    sdata, path = copy_of(trained_study), tmp_path / "out.zarr"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 3)
        ig.tl.predict(sdata, out=path)
    chunk = next((tmp_path / "out.zarr.unfinished/table.zarr/X/c/1").iterdir())
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    ig.tl.predict(sdata, out=path)
    expected = ig.tl.predict(sdata, inplace=False)
    np.testing.assert_allclose(sdata["img2gene"].X.compute(), expected.X, atol=1e-5)


def test_parts_of_another_model_or_of_other_spots_are_never_mixed(study, tmp_path):
    ig.tl.fit(study, "mean", validate_on=["C"])
    path = tmp_path / "out.zarr"
    ig.tl.predict(study, out=path, inplace=False)
    ig.tl.fit(study, "ridge", validate_on=["C"])
    with pytest.raises(ig.Img2GeneError, match="holds a prediction with other model"):
        ig.tl.predict(study, out=path)
    with pytest.raises(ig.Img2GeneError, match="with other depth, model"):
        ig.tl.predict(study, out=path, depth=100)
    study["table"].obsm["X_tiny"][0] += 1
    ig.tl.predict(study, out=tmp_path / "other.zarr", inplace=False)
    study["table"].obsm["X_tiny"][0] -= 1
    with pytest.raises(ig.Img2GeneError, match="with other data"):
        ig.tl.predict(study, out=tmp_path / "other.zarr")


@pytest.mark.parametrize("kind", ["file", "folder", "study"])
def test_what_else_is_there_is_never_replaced(kind, trained_study, copy_of, tmp_path):
    sdata, path = copy_of(trained_study), tmp_path / "out.zarr"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
        (path / "mine").write_text("mine")
    else:
        sdata.write(path)
    with pytest.raises(ig.Img2GeneError, match="exists and holds no prediction"):
        ig.tl.predict(sdata, out=path)
    assert "img2gene" not in sdata.tables


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_named_and_the_study_stays(
    code, trained_study, copy_of, tmp_path, few_rows, snapshot
):
    sdata, path = copy_of(trained_study), tmp_path / "out.zarr"
    before = snapshot(sdata["table"])

    def fails(files):
        raise OSError(code, "Disk trouble")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_store, "_flush", fails)
        with pytest.raises(ig.Img2GeneError, match=r"cannot be written \(Disk trouble\).*make the same call again"):
            ig.tl.predict(sdata, out=path)
    assert snapshot(sdata["table"]) == before and "img2gene" not in sdata.tables
    ig.tl.predict(sdata, out=path)
    assert sdata["img2gene"].n_obs == 196


def test_a_folder_below_a_file_is_refused(trained_study, copy_of, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ig.Img2GeneError, match="out="):
        ig.tl.predict(copy_of(trained_study), out=tmp_path / "file" / "out.zarr")


def test_half_precision_needs_a_store(trained_study, copy_of):
    with pytest.raises(ig.Img2GeneError, match="needs `out=`"):
        ig.tl.predict(copy_of(trained_study), dtype="float16")


def test_a_store_of_something_else_is_no_table(tmp_path, trained_study, copy_of):
    copy_of(trained_study).write(tmp_path / "study.zarr")
    with pytest.raises(ig.Img2GeneError, match="holds no table of AnnData"):
        ig.io.open_table(tmp_path / "study.zarr")


def test_rows_outside_the_study_are_refused():
    whole = prepared.PreparedPrediction(lambda rows: (np.zeros((rows.stop, 1)), None), 3, 1)
    with pytest.raises(ig.Img2GeneError, match="outside 0 to 3"):
        whole(slice(0, 4))
    assert SimpleNamespace(**whole(slice(0, 3))).values.shape == (3, 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_predictions_in_a_store_are_scored_like_those_of_the_study(dtype, trained_study, copy_of, tmp_path):
    sdata = copy_of(trained_study)
    ig.tl.predict(sdata)
    expected = ig.tl.evaluate(sdata, n_permutations=0, inplace=False)
    ig.tl.predict(sdata, out=tmp_path / "predicted.zarr", dtype=dtype)
    assert "img2gene" not in sdata["table"].layers
    scores = ig.tl.evaluate(sdata, n_permutations=0)
    # Half precision may move one of 49 spots over the bound of its interval.
    atol = 1e-5 if dtype == "float32" else 1.01 / 49
    pd.testing.assert_frame_equal(scores, expected, rtol=1e-5 if dtype == "float32" else 0.02, atol=atol)
    assert np.isfinite(sdata["table"].var["pcc"]).any()


def test_a_store_of_other_rows_is_not_scored(trained_study, copy_of, tmp_path):
    sdata = copy_of(trained_study)
    ig.tl.predict(sdata, out=tmp_path / "predicted.zarr")
    sdata.tables["img2gene"] = sdata["img2gene"][::-1].copy()
    with pytest.raises(ig.MissingKeyError, match="the table `img2gene` predicts other rows"):
        ig.tl.evaluate(sdata)


def test_a_store_is_written_without_warnings_of_libraries(trained_study, copy_of, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ig.tl.predict(copy_of(trained_study), out=tmp_path / "p.zarr")
    assert not [str(one.message) for one in caught if "autosharding" in str(one.message)]
