"""Trained models are data: they survive every way of storage, and damage is noticed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from safetensors.numpy import load, save
from spatialdata import SpatialData, read_zarr

import img2gene as ig
from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene.models import Model
from img2gene.models.stored import digests
from img2gene.testing import assert_models_equal

LOADING = """
import sys
import numpy as np
import img2gene as ig

model = ig.io.load_model(sys.argv[1])
features = np.load(sys.argv[2])
names = np.load(sys.argv[3])
np.save(sys.argv[4], model.predict(features, names))
"""


@pytest.fixture(scope="module")
def model(trained_study):
    return ig.get.model(trained_study)


def inputs(sdata):
    return sdata["table"].obsm["X_tiny"], sdata["table"].obs["section"].to_numpy(dtype=str)


def assert_same_model(found, expected, sdata):
    assert_models_equal(expected, found)
    assert found.predict(*inputs(sdata)).tobytes() == expected.predict(*inputs(sdata)).tobytes()


def test_a_file_gives_the_same_model_back(model, trained_study, tmp_path):
    path = ig.io.save_model(model, tmp_path / "ridge")
    assert path == tmp_path / "ridge.img2gene"
    assert list(tmp_path.iterdir()) == [path]
    assert_same_model(ig.io.load_model(path), model, trained_study)


def test_the_model_of_a_study_is_saved_by_its_key(model, trained_study, copy_of, tmp_path):
    study = copy_of(trained_study)
    ig.tl.fit(study, "ridge", genes=2, key_added="small")
    assert ig.io.load_model(ig.io.save_model(study, tmp_path / "a")).genes == model.genes
    assert len(ig.io.load_model(ig.io.save_model(study, tmp_path / "b", key="small")).genes) == 2
    assert ig.get.model(study, "small").name == "ridge"


def test_another_process_predicts_the_same_bytes(model, trained_study, tmp_path):
    path = ig.io.save_model(model, tmp_path / "ridge")
    features, names = inputs(trained_study)
    np.save(tmp_path / "features.npy", features)
    np.save(tmp_path / "names.npy", names)
    files = [str(path), *(str(tmp_path / f"{name}.npy") for name in ("features", "names", "found"))]
    subprocess.run([sys.executable, "-c", LOADING, *files], check=True)
    assert np.load(tmp_path / "found.npy").tobytes() == model.predict(features, names).tobytes()


def test_a_file_predicts_a_study(model, trained_study, copy_of, tmp_path):
    path, study = ig.io.save_model(model, tmp_path / "ridge"), copy_of(trained_study)
    for source in (path, str(path)):
        ig.tl.predict(study, source, key_added="from_file")
        np.testing.assert_array_equal(study["table"].layers["from_file"], study["table"].layers["img2gene"])


def test_a_file_is_found_in_the_home_folder_and_without_its_suffix(
    model, trained_study, copy_of, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ig.io.save_model(model, "~/ridge") == tmp_path / "ridge.img2gene"
    with os.scandir(os.fsencode(tmp_path)) as entries:
        entry = next(entries)
    for name in ("~/ridge", "~/ridge.img2gene", Path("~/ridge"), tmp_path / "ridge", entry):
        assert_models_equal(ig.io.load_model(name), model)
        study = copy_of(trained_study)
        ig.tl.predict(study, name, key_added="from_file")
        np.testing.assert_array_equal(study["table"].layers["from_file"], study["table"].layers["img2gene"])
    with pytest.raises(MissingKeyError, match="`knn` not found in .*ridge.img2gene"):
        ig.io.load_model("~/knn")
    with pytest.raises(MissingKeyError, match="`~/knn` is neither a trained model .* nor a file"):
        ig.tl.predict(study, "~/knn")


def test_a_file_of_the_exact_name_comes_before_the_one_with_a_suffix(model, tmp_path):
    ig.io.save_model(model, tmp_path / "ridge.img2gene")
    (tmp_path / "ridge").write_bytes(b"not a model")
    with pytest.raises(Img2GeneError, match="ridge is not a model written by"):
        ig.io.load_model(tmp_path / "ridge")


def test_a_stored_study_keeps_its_model(model, trained_study, tmp_path):
    trained_study.write(tmp_path / "study.zarr", update_sdata_path=False)
    assert_same_model(ig.get.model(read_zarr(tmp_path / "study.zarr")), model, trained_study)


def test_an_h5ad_file_keeps_the_model(model, trained_study, tmp_path):
    trained_study["table"].write_h5ad(tmp_path / "table.h5ad")
    table = ad.read_h5ad(tmp_path / "table.h5ad")
    # h5ad turns the list of regions into an array, which spatialdata does not take
    table.uns["spatialdata_attrs"]["region"] = list(table.uns["spatialdata_attrs"]["region"])
    again = SpatialData(shapes=dict(trained_study.shapes), tables={"table": table})
    assert_same_model(ig.get.model(again), model, trained_study)


def test_subsets_of_spots_genes_and_elements_keep_the_model(model, trained_study):
    subset = trained_study.subset(["C1_image", "C1_spots"])
    assert subset["table"].n_obs == 49
    assert_same_model(ig.get.model(subset), model, trained_study)
    cut = SpatialData(shapes=dict(trained_study.shapes), tables={"table": trained_study["table"][:, :3].copy()})
    assert_same_model(ig.get.model(cut), model, trained_study)


def test_training_again_keeps_what_else_is_stored(trained_study, copy_of):
    study = copy_of(trained_study)
    before = dict(study["table"].uns["img2gene"])
    ig.tl.fit(study, "ridge", genes=3)
    after = study["table"].uns["img2gene"]
    assert before.keys() <= after.keys()
    assert {key: after[key] for key in ("sections", "patches", "encoder")} == {
        key: before[key] for key in ("sections", "patches", "encoder")
    }


def test_a_file_is_replaced_on_request_only(model, tmp_path):
    path = tmp_path / "ridge.img2gene"
    path.write_bytes(b"precious")
    with pytest.raises(Img2GeneError, match="ridge.img2gene exists; pass `overwrite=True`"):
        ig.io.save_model(model, path)
    assert path.read_bytes() == b"precious"
    ig.io.save_model(model, path, overwrite=True)
    assert ig.io.load_model(path).genes == model.genes
    with pytest.raises(Img2GeneError, match="Folder .* does not exist"):
        ig.io.save_model(model, tmp_path / "nowhere" / "ridge")


def test_files_that_are_no_models_are_refused(model, tmp_path):
    ig.io.save_model(model, tmp_path / "near")
    with pytest.raises(MissingKeyError, match=r"`far.img2gene` not found in .* \(available: .*near.img2gene\)"):
        ig.io.load_model(tmp_path / "far.img2gene")
    foreign = {"text": b"not a model", "empty": b"", "weights": save({"a": np.zeros(3)})}
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Img2GeneError, match="is not a model written by `img2gene.io.save_model`"):
            ig.io.load_model(tmp_path / name)


def test_a_truncated_file_is_noticed(model, tmp_path):
    path = ig.io.save_model(model, tmp_path / "ridge")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Img2GeneError, match="The weights in .*ridge.img2gene are damaged"):
        ig.io.load_model(path)


def test_a_truncated_model_in_a_study_is_noticed(trained_study, copy_of):
    study = copy_of(trained_study)
    stored = study["table"].uns["img2gene"]["model"]
    stored["weights"] = stored["weights"][:-100]
    with pytest.raises(Img2GeneError, match=r"The weights in uns\['img2gene'\] are damaged"):
        ig.tl.predict(study)


def drop(arrays):
    del arrays["predictor.coefficients"]


def add(arrays):
    arrays["predictor.code"] = np.zeros(3)


def cut(arrays):
    arrays["predictor.label_mean"] = arrays["predictor.label_mean"][:-1]
    arrays["predictor.scale"] = np.zeros((2, 2), np.float32)


def spoil(arrays):
    arrays["predictor.components"] = np.full_like(arrays["predictor.components"], np.nan)


def short_statistics(arrays):
    arrays["statistics.mean"] = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "Array `coefficients` is missing"),
        (add, "Array `code` is not part of this model"),
        (cut, r"(?s)2 problems.*`scale` has shape \(2, 2\), expected \(6.*`label_mean` has shape \(11,\), expected \(12,\)"),
        (spoil, "Array `components` holds NaN or infinite values"),
        (short_statistics, r"`statistics.mean` has shape \(3,\), expected \(12,\)"),
    ],
)  # fmt: skip
def test_arrays_are_checked_against_the_declared_architecture(model, change, message):
    config, arrays = model.state()
    change(arrays)
    with pytest.raises(Img2GeneError, match=message):
        Model.from_state(json.loads(json.dumps(config)), load(save(arrays)))


def test_other_formats_and_unknown_models_are_refused(model):
    config, arrays = model.state()
    with pytest.raises(
        Img2GeneError, match="The model has format 99; this version of img2gene reads format 2 and older ones"
    ):
        Model.from_state(config | {"format": 99}, arrays)
    with pytest.raises(Img2GeneError, match="The model has format None"):
        Model.from_state({}, arrays)
    with pytest.raises(MissingKeyError, match="`forest` not found in `img2gene.models`"):
        Model.from_state(signed(config | {"model": "forest"}, arrays), arrays)


def signed(config, arrays):
    """A configuration that was stored as it is now."""
    return config | {"digest": digests(config, arrays)}


def test_no_model_under_a_key_lists_those_that_are_there(trained_study):
    with pytest.raises(MissingKeyError, match=r"`other` not found in .* \(available: img2gene\)"):
        ig.get.model(trained_study, "other")
