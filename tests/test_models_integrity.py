"""Stored models are what was trained: every change is refused by name, and older formats stay readable."""

import json
import re
import threading
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from safetensors.numpy import load, save

import img2gene as ig
from img2gene import Img2GeneError, _schema
from img2gene.io.model_store import read_model, write_model
from img2gene.models import Model, TrainingData
from img2gene.models.stored import as_json, digests

OLD = Path(__file__).parent / "data" / "models_format_1"
FAMILIES = ("bleep", "cmrcnet", "coordinates", "img2gene", "knn", "mean", "ridge")


@pytest.fixture(scope="module")
def expected():
    with np.load(OLD / "expected.npz") as stored:
        return dict(stored)


def predicted(model, expected):
    return model.predict(expected["features"], expected["sections"], positions=expected["positions"])


def parts(name="ridge"):
    """Configuration and arrays of a model in the current format."""
    config, arrays = ig.io.load_model(OLD / f"{name}.img2gene").state()
    return json.loads(json.dumps(config)), load(save(arrays))


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_format_1_stay_readable_and_are_stored_anew(name, expected, tmp_path):
    model = ig.io.load_model(OLD / f"{name}.img2gene")
    np.testing.assert_allclose(predicted(model, expected), expected[f"predicted_{name}"], rtol=1e-4, atol=1e-5)
    again = ig.io.load_model(ig.io.save_model(model, tmp_path / name))
    config = again.state()[0]
    assert config["format"] == 2
    assert again.fingerprint == model.fingerprint
    assert predicted(again, expected).tobytes() == predicted(model, expected).tobytes()
    assert "checkpoint_dir" not in json.dumps(config)


def test_a_model_without_digests_is_named_in_a_warning(tmp_path, caplog):
    model = ig.io.load_model(OLD / "ridge.img2gene")
    assert re.search(r"ridge\.img2gene was written by an early version, without digests.*save_model", caplog.text)
    caplog.clear()
    # Nobody can see that the genes were reversed, so the reader has to be told that nothing was compared.
    config, arrays = model.state()
    config = {name: value for name, value in config.items() if name != "digest"} | {"format": 1}
    Model.from_state(config | {"genes": config["genes"][::-1]}, arrays)
    assert "The model `ridge` was written by an early version" in caplog.text
    caplog.clear()
    ig.io.load_model(ig.io.save_model(model, tmp_path / "new"))
    assert caplog.text == ""


def test_models_of_format_1_are_checked_without_a_digest():
    content = (OLD / "knn.img2gene").read_bytes()
    length = int.from_bytes(content[:8], "little")
    config = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["img2gene"])
    arrays = load(content)
    scale = np.zeros_like(arrays["predictor.components.scale"])
    with pytest.raises(Img2GeneError, match=r"`knn`.*`components.scale` holds numbers that are not positive"):
        Model.from_state(config, arrays | {"predictor.components.scale": scale})
    codes = arrays["predictor.bank.section"] + 99
    with pytest.raises(Img2GeneError, match="holds numbers that belong to none of its 3 names"):
        Model.from_state(config, arrays | {"predictor.bank.section": codes})


@pytest.mark.parametrize("name", FAMILIES)
def test_no_flipped_bit_of_an_array_is_accepted(name):
    config, arrays = parts(name)
    rng = np.random.default_rng(0)
    for key in (key for key in arrays if arrays[key].size):
        changed = bytearray(arrays[key].tobytes())
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
        values = np.frombuffer(bytes(changed), arrays[key].dtype).reshape(arrays[key].shape)
        short = key.removeprefix("predictor.")
        with pytest.raises(Img2GeneError, match=f"`{name}`(?s:.*){short}"):
            Model.from_state(config, arrays | {key: values})


def test_no_flipped_bit_of_a_file_gives_another_model(tmp_path, expected):
    path = tmp_path / "ridge.img2gene"
    content = ig.io.save_model(ig.io.load_model(OLD / "ridge.img2gene"), path).read_bytes()
    whole, refused = predicted(ig.io.load_model(path), expected).tobytes(), 0
    for place in np.random.default_rng(1).integers(8 * len(content), size=150):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << int(place % 8)
        path.write_bytes(changed)
        try:
            model = ig.io.load_model(path)
        except Img2GeneError:
            refused += 1
        else:
            assert predicted(model, expected).tobytes() == whole
    assert refused > 140


def swap(arrays):
    one, other = "predictor.feature_mean", "predictor.scale"
    arrays[one], arrays[other] = arrays[other], arrays[one]


def to_bool(arrays):
    arrays["predictor.label_mean"] = arrays["predictor.label_mean"] > 0


def reinterpret(arrays):
    arrays["predictor.label_mean"] = arrays["predictor.label_mean"].view(np.int32)


def zero_scale(arrays):
    arrays["predictor.scale"] = np.zeros_like(arrays["predictor.scale"])


def infinite(arrays):
    arrays["predictor.coefficients"] = arrays["predictor.coefficients"] + np.inf


def foreign(arrays):
    arrays["other"] = np.zeros(3, np.float32)


ARRAY_CHANGES = [swap, to_bool, reinterpret, zero_scale, infinite, foreign]


@pytest.mark.parametrize("change", ARRAY_CHANGES, ids=lambda change: change.__name__)
def test_changed_arrays_are_refused_by_name(change):
    config, arrays = parts()
    change(arrays)
    with pytest.raises(Img2GeneError, match="(?s)`ridge`.*(label_mean|scale|coefficients|other)"):
        Model.from_state(config, arrays)


@pytest.mark.parametrize("change", [to_bool, reinterpret, zero_scale, infinite, foreign], ids=lambda f: f.__name__)
def test_values_that_no_ridge_has_are_refused_even_with_a_digest(change):
    config, arrays = parts()
    change(arrays)
    with pytest.raises(Img2GeneError, match="(label_mean|scale|coefficients|other)"):
        Model.from_state(config | {"digest": digests(config, arrays)}, arrays)


BROKEN = ["null", "[]", "5", '"x"', "{", "", "[" * 100_000, '{"format": NaN}', '{"format": ' + "9" * 5000 + "}", "\x00"]


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_broken_json_is_refused_by_the_name_of_the_model(text):
    table = ad.AnnData(np.ones((1, 1)))
    write_model(table, ig.io.load_model(OLD / "mean.img2gene"), "tumour")
    table.uns["tumour"]["model"]["config"] = text
    with pytest.raises(Img2GeneError, match=r"uns\['tumour'\]"):
        read_model(table, "tumour")


@pytest.mark.parametrize("stored", [None, 5, "x", [], {}, {"config": "{}"}, {"config": "{}", "weights": None}])
def test_a_container_without_a_model_is_refused_by_name(stored):
    table = ad.AnnData(np.ones((1, 1)))
    table.uns["tumour"] = {"format": "1", "model": stored}
    with pytest.raises(Img2GeneError, match="tumour"):
        read_model(table, "tumour")


@pytest.mark.parametrize("name", FAMILIES)
def test_no_entry_of_a_configuration_can_be_missing_foreign_or_of_another_type(name):
    config, arrays = parts(name)

    def signed(changed):
        return changed | {"digest": digests(changed, arrays)}

    Model.from_state(signed(config), arrays)
    free = {"digest", "report", "encoder"}
    for where in (config, config["predictor"]):
        for key in [key for key in where if key not in free]:
            value = where[key]
            for other in (None, "x", -1, [], {"x": 1}, 10**30, 0.5):
                if type(other) is type(value) or (isinstance(value, float) and other == 10**30):
                    continue
                where[key] = other
                if other is None and key in ("ridge", "bank", "k"):
                    continue
                with pytest.raises(Img2GeneError):
                    Model.from_state(signed(config), arrays)
            del where[key]
            # Models of earlier versions lack these parameters of the ridge.
            if key not in ("n_responses", "depth_weights"):
                with pytest.raises(Img2GeneError):
                    Model.from_state(signed(config), arrays)
            where[key] = value
    with pytest.raises(Img2GeneError, match="`configuration.extra` is not part of this model"):
        Model.from_state(signed(config | {"extra": 1}), arrays)


def test_numpy_scalars_are_stored_as_numbers_and_other_keys_are_refused():
    assert as_json({"k": np.int64(5), "x": (np.float32(0.5),)}, "a") == {"k": 5, "x": [0.5]}
    with pytest.raises(Img2GeneError, match="`a` cannot be stored: the key 1 is not a string"):
        as_json({1: 2}, "a")
    with pytest.raises(Img2GeneError, match="`a.x` cannot be stored: nan is not finite"):
        as_json({"x": np.nan}, "a")
    assert as_json([np.inf], "a", undefined=True) == [None]


FOREIGN = ["x", [1], None, {"format": "99"}, {"patches": "{}"}]


@pytest.mark.parametrize("value", FOREIGN, ids=str)
def test_foreign_uns_is_refused_and_not_rewritten(value):
    table = ad.AnnData(np.ones((1, 1)))
    table.uns["img2gene"] = value
    for call in (
        lambda: _schema.read_json(table, "patches"),
        lambda: _schema.write_json(table, "patches", {}),
        lambda: _schema.apply(table, {"uns": {"patches": {}}}),
    ):
        with pytest.raises(Img2GeneError, match=r"uns\['img2gene'\]"):
            call()
    assert table.uns["img2gene"] == value


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "NaN"], ids=["cut", "deep", "nan"])
def test_broken_records_are_named(text):
    table = ad.AnnData(np.ones((1, 1)))
    table.uns["img2gene"] = {"format": "1", "patches": text}
    with pytest.raises(Img2GeneError, match=r"uns\['img2gene'\]\['patches'\] is damaged"):
        _schema.read_json(table, "patches")


@pytest.mark.parametrize("path", [5, None, b"x", "a\0b", "", "x" * 300])
def test_paths_that_name_no_file_are_refused(path):
    model = ig.io.load_model(OLD / "mean.img2gene")
    for call in (lambda: ig.io.load_model(path), lambda: ig.io.save_model(model, path)):
        with pytest.raises(Img2GeneError):
            call()


def test_folders_and_foreign_files_are_refused(tmp_path):
    model = ig.io.load_model(OLD / "mean.img2gene")
    for folder in (tmp_path, "."):
        with pytest.raises(Img2GeneError, match="is a folder; name a"):
            ig.io.load_model(folder)
        with pytest.raises(Img2GeneError, match="is a folder; name a file in it"):
            ig.io.save_model(model, folder, overwrite=True)
    (tmp_path / "other").write_bytes(save({"a": np.zeros(2)}, metadata={"format": "pt"}))
    with pytest.raises(Img2GeneError, match="is not a model written by"):
        ig.io.load_model(tmp_path / "other")


def test_one_network_model_predicts_in_several_threads(expected):
    config, arrays = parts("cmrcnet")
    config["predictor"]["ridge"] = None
    arrays = {name: value for name, value in arrays.items() if ".ridge." not in name}
    arrays["predictor.weights"] = np.array([0.0, 0.5, 0.5])
    config["predictor"]["parameters"]["ridge"] = False
    model = Model.from_state(config | {"digest": digests(config, arrays)}, arrays)
    whole, results = predicted(model, expected), []

    def run():
        try:
            results.extend(predicted(model, expected) for _ in range(5))
        except RuntimeError as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 30
    assert all(np.array_equal(values, whole) for values in results)


PARAMETERS = [
    ("ridge", "penalty", (True, np.nan, np.inf, "x", [], [[1]], None, {})),
    ("ridge", "n_components", (True, 0, 1.5, "5", np.nan, [], None)),
    ("ridge", "center", (["none"], None, {}, 5)),
    ("knn", "k", (True, 0, 2.5, "x", np.inf, [])),
    ("knn", "weighting", (["uniform"], None, {})),
    ("coordinates", "k", (True, 0, None, "x", np.nan, [])),
    ("cmrcnet", "keys", (["image"], None, {}, np.array(["image", "both"]))),
    ("cmrcnet", "temperature", (0, True, np.nan, np.inf, "x", None, [])),
    ("cmrcnet", "regression", (-1, True, np.nan, np.array([1.0, 2.0]))),
    ("bleep", "n_gene_tokens", (0, True, 10**12)),
    ("img2gene", "effect", (["TE"], None, {})),
    ("img2gene", "pathways", (1, "yes", None, [])),
    ("img2gene", "n_models", (0, True, 10**9, 1.5, None)),
    ("img2gene", "devices", (0, True, -2, [], None, {}, [0, "x"])),
    ("img2gene", "accelerator", (None, [], 5)),
    ("img2gene", "precision", (True, [], None, "x")),
    ("img2gene", "checkpoint_dir", (5, "", "a\0b", [])),
]


@pytest.mark.parametrize(("name", "parameter", "values"), PARAMETERS, ids=[f"{a}-{b}" for a, b, _ in PARAMETERS])
def test_parameters_are_checked_before_anything_is_trained(name, parameter, values):
    for value in values:
        with pytest.raises(Img2GeneError, match=parameter):
            ig.models.create(name, **{parameter: value})


def test_numpy_scalars_are_parameters_and_are_stored():
    names = np.repeat(["A", "B"], 6)
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(12, 4)).astype("f4"), rng.normal(size=(12, 2)).astype("f4")
    data = TrainingData(features, labels, names, names, rng.normal(size=(12, 2)))
    model = ig.models.create("knn", k=np.int64(2), n_components=np.int32(3))
    model.fit(data, seed=0)
    assert json.loads(json.dumps(model.state()[0]))["settings"]["k"] == 2
    network = ig.models.create("img2gene", n_models=np.int64(2), dropout=np.float32(0.5), refit=np.bool_(True))
    assert (network.parameters.n_models, network.parameters.dropout, network.parameters.refit) == (2, 0.5, True)
    assert [type(getattr(network.parameters, name)) for name in ("n_models", "dropout", "refit")] == [int, float, bool]


@pytest.mark.parametrize("name", ["features", "labels"])
def test_values_beyond_single_precision_are_refused_before_training(name):
    names = np.array(["A", "A", "B"])
    arrays = {"features": np.ones((3, 2)), "labels": np.ones((3, 2))}
    arrays[name] = arrays[name] * 1e60
    with pytest.raises(Img2GeneError, match=rf"3 of 3 training spots have {name} above 1e\+15"):
        TrainingData(**arrays, sections=names, groups=names, positions=np.zeros((3, 2)))


def test_extreme_features_are_refused_at_prediction(expected):
    model = ig.io.load_model(OLD / "ridge.img2gene")
    for factor, message in ((1e30, "above 1e\\+15"), (1e60, "NaN or infinite")):
        with pytest.raises(Img2GeneError, match=message):
            model.predict(expected["features"].astype(float) * factor, expected["sections"])


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"name": None}, "inputs.name=None"),
        ({"name": []}, "inputs.name"),
        ({"width": None}, "inputs.width=None"),
        ({"patch_um": None}, "inputs.patch_um"),
        ({"patch_um": 5}, "inputs.patch_um"),
        ({"patch_um": []}, "inputs.patch_um"),
        ({"revision": None}, "inputs.revision=None"),
        ({"finetuned": True}, "inputs.finetuned=True"),
    ],
)
def test_a_foreign_identity_of_the_embedding_is_refused(inputs, named, expected):
    model = ig.io.load_model(OLD / "ridge.img2gene")
    model.inputs = model.inputs | inputs
    with pytest.raises(Img2GeneError, match=named):
        model.predict(expected["features"], expected["sections"])
