"""Every encoder of the zoo is loaded by the real code, from small random weights of its architecture."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import img2gene as ig
from img2gene import encoders
from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene.encoders import registry
from img2gene.encoders.spec import is_commit
from img2gene.encoders.zoo.entries import SPECS
from img2gene.encoders.zoo.loading import UNPINNED

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BY_NAME = {spec.name: spec for spec in SPECS}
# Architectures that repositories name in their configuration.
TIMM = {
    "uni2-h": "vit_giant_patch14_224",
    "virchow": "vit_huge_patch14_224",
    "virchow2": "vit_huge_patch14_224",
    "h-optimus-1": "vit_giant_patch14_reg4_dinov2",
    "h0-mini": "vit_base_patch14_reg4_dinov2",
    "prov-gigapath": "vit_giant_patch14_dinov2",
}
# Their arguments in the repository, as far as they do not change the size.
ARGUMENTS = {
    "virchow": {"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", "dynamic_img_size": True},
    "virchow2": {"img_size": 224, "init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.3375, "global_pool": ""},
    "h-optimus-1": {"img_size": 224, "global_pool": "token"},
    "h0-mini": {"img_size": 224, "init_values": 1e-5, "global_pool": "", "mlp_ratio": 5.33334},
    "prov-gigapath": {"img_size": 224, "patch_size": 16, "init_values": 1e-5, "mlp_ratio": 5.33334, "global_pool": "token"},
}  # fmt: skip
SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 2}
PREFIX = {"virchow2": 5, "h-optimus-1": 5, "h0-mini": 5, "uni2-h": 9}


def _import(name):
    """Import a package; operators that a torchvision of another build lacks are declared, as encoders never call them."""
    for _ in range(20):
        try:
            return pytest.importorskip(name, exc_type=ImportError)
        except RuntimeError as error:
            lacking = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if lacking is None:
                raise
            torch.library.define(f"torchvision::{lacking[1]}", "() -> ()")
            for module in [module for module in sys.modules if module.split(".")[0] in ("torchvision", "timm")]:
                del sys.modules[module]
    raise AssertionError(name)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub's client, which asks nobody."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture
def own_registry(monkeypatch):
    encoders.list()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def stored(cache, spec, files):
    """Put files of a repository into the cache, as its commit and as what is current today."""
    commit = spec.revision if is_commit(spec.revision) else COMMIT
    repository = cache / f"models--{spec.source.removeprefix('hf-hub:').replace('/', '--')}"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for name, content in files.items():
        if isinstance(content, str):
            (folder / name).write_text(content)
        elif name.endswith(".safetensors"):
            save_file({key: value.contiguous() for key, value in content.items()}, folder / name)
        else:
            torch.save(content, folder / name)
    return commit


def smaller(spec, options, **changes):
    """The entry with a smaller network: the same code, other sizes."""
    recipe = dataclasses.replace(spec.build, options={**spec.build.options, **options})
    spec = dataclasses.replace(spec, build=recipe, **changes)
    registry._REGISTRY[spec.name] = spec
    return spec


def patches(n=3, side=64):
    return np.random.default_rng(0).integers(0, 255, (n, side, side, 3), dtype=np.uint8)


def images(spec, pixels):
    """What the network sees, computed anew."""
    from img2gene.encoders.base import resize

    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (spec.mean, spec.std))
    return (resize(pixels, spec.input_px).float() / 255 - mean) / std


def features(name):
    return encoders.load(name, device="cpu", amp=False)(patches(), BY_NAME[name].input_px)


@pytest.mark.parametrize("name", TIMM)
def test_timm_encoders_load_from_their_repository(name, cache, own_registry):
    timm = _import("timm")
    from img2gene.encoders.zoo.loading import _layers

    arguments = {**ARGUMENTS.get(name, {}), **SMALL}
    twice = BY_NAME[name].build.pooling == "class+mean"
    spec = smaller(BY_NAME[name], SMALL, width=24 * (1 + twice), token_width=24)
    network = timm.create_model(
        TIMM[name], num_classes=0, **{**arguments, **_layers(spec.build.options), **SMALL}
    ).eval()
    config = {
        "architecture": TIMM[name],
        "num_features": 24,
        "model_args": {**arguments, "num_classes": 0},
        "pretrained_cfg": {"num_classes": 0, "input_size": [3, 224, 224], "mean": spec.mean, "std": spec.std},
    }
    commit = stored(cache, spec, {"config.json": json.dumps(config), "model.safetensors": network.state_dict()})
    assert commit == (spec.revision if is_commit(spec.revision) else COMMIT)
    encoder = encoders.load(name, device="cpu", amp=False)
    with torch.inference_mode():
        unpooled = network.forward_features(images(spec, patches()))
        n = PREFIX.get(name, 1)
        assert network.num_prefix_tokens == n and unpooled.shape[1] == n + (16 if name != "prov-gigapath" else 14) ** 2
        expected = unpooled[:, 0]
        if twice:
            expected = torch.cat([expected, unpooled[:, n:].mean(dim=1)], dim=1)
    np.testing.assert_allclose(encoder(patches(), 224), expected.numpy(), atol=2e-5)
    values, tokens = encoder.tokens(patches(), 224, 4)
    np.testing.assert_allclose(values, expected.numpy(), atol=2e-5)
    if name != "prov-gigapath":
        # 16 × 16 tokens fill a grid of 4 × 4 cells evenly.
        first = unpooled[:, n:].unflatten(1, (16, 16))[:, :4, :4].mean(dim=(1, 2))
        np.testing.assert_allclose(tokens[:, 0], first.numpy(), atol=2e-5)


def test_ctranspath_has_its_convolutional_stem(cache, own_registry):
    timm = _import("timm")
    from img2gene.encoders.zoo.networks import ConvStem

    small = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
    spec = smaller(BY_NAME["ctranspath"], {}, width=32)
    architecture = "swin_tiny_patch4_window7_224"
    network = timm.create_model(architecture, num_classes=0, embed_layer=ConvStem, **small).eval()
    for name in ("proj.0.weight", "proj.1.running_mean", "proj.4.bias", "proj.6.bias", "norm.weight"):
        assert f"patch_embed.{name}" in network.state_dict()
    facts = {"num_classes": 0, "input_size": [3, 224, 224], "mean": spec.mean, "std": spec.std}
    config = {"architecture": architecture, "num_features": 32, "model_args": small, "pretrained_cfg": facts}
    stored(cache, spec, {"config.json": json.dumps(config), "model.safetensors": network.state_dict()})
    with torch.inference_mode():
        expected = network(images(spec, patches())).numpy()
    np.testing.assert_allclose(features("ctranspath"), expected, atol=2e-5)


def test_gpfm_loads_from_a_file_of_tensors(cache, own_registry):
    timm = _import("timm")
    spec = smaller(BY_NAME["gpfm"], SMALL, width=24, token_width=24)
    options = {**spec.build.options, **SMALL}
    network = timm.create_model(spec.build.architecture, num_classes=0, **options).eval()
    stored(cache, spec, {"GPFM.pth": network.state_dict()})
    with torch.inference_mode():
        expected = network.forward_features(images(spec, patches()))[:, 0].numpy()
    np.testing.assert_allclose(features("gpfm"), expected, atol=2e-5)


def test_a_file_that_could_run_code_is_refused(cache, own_registry):
    _import("timm")
    spec = smaller(BY_NAME["gpfm"], SMALL, width=24)
    stored(cache, spec, {"GPFM.pth": {"weight": torch.nn.Linear(2, 2)}})
    with pytest.raises(Img2GeneError, match=r"(?s)weights of `gpfm` .*could not be loaded: .*[Ww]eights.only"):
        features("gpfm")


def test_conch_takes_its_image_part_alone(cache, own_registry):
    timm = _import("timm")
    from img2gene.encoders.zoo.networks import ConchNetwork

    spec = smaller(BY_NAME["conch"], SMALL, width=16, token_width=24)
    trunk = timm.create_model(spec.build.architecture, num_classes=0, **{**spec.build.options, **SMALL})
    network = ConchNetwork(trunk, 16).eval()
    torch.nn.init.normal_(network.attn_pool_contrast.query)
    names = {"network": "trunk"}
    weights = {
        f"visual.{names.get(key.split('.')[0], key.split('.')[0])}.{key.partition('.')[2]}": value
        for key, value in network.state_dict().items()
    }
    others = {
        "visual.proj_contrast": torch.ones(16, 16),
        "visual.ln_caption.weight": torch.ones(3),
        "text.x": torch.ones(1),
    }
    stored(cache, spec, {"pytorch_model.bin": {**weights, **others}})
    x = images(spec, patches())
    with torch.inference_mode():
        tokens = trunk.forward_features(x)
        assert tokens.shape[1] == 1 + 28**2
        # Attention written out: each head compares the query with every token.
        pool = network.attn_pool_contrast
        keys, query = pool.ln_k(tokens), pool.ln_q(pool.query)
        parts = pool.attn.in_proj_bias.chunk(3)
        q = query @ pool.attn.q_proj_weight.T + parts[0]
        k, v = keys @ pool.attn.k_proj_weight.T + parts[1], keys @ pool.attn.v_proj_weight.T + parts[2]
        heads = []
        for h in range(8):
            columns = slice(2 * h, 2 * h + 2)
            share = torch.softmax(k[..., columns] @ q[0, columns] / 2**0.5, dim=1)
            heads.append((share[..., None] * v[..., columns]).sum(dim=1))
        expected = network.ln_contrast(pool.attn.out_proj(torch.cat(heads, dim=1)))
    np.testing.assert_allclose(features("conch"), expected.numpy(), atol=1e-4)


TRANSFORMERS = [spec.name for spec in SPECS if spec.build.kind == "transformers"]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_encoders_load_from_their_repository(name, cache, own_registry):
    transformers = _import("transformers")
    kind = getattr(transformers, BY_NAME[name].build.architecture)
    twice = BY_NAME[name].build.pooling == "class+mean"
    spec = smaller(BY_NAME[name], {}, width=24 * (1 + twice), token_width=24)
    config = kind.config_class(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        image_size=224, patch_size=16 if name == "phikon" else 14,
    )  # fmt: skip
    network = kind(config, **spec.build.options).eval()
    stored(cache, spec, {"config.json": json.dumps(config.to_dict()), "model.safetensors": network.state_dict()})
    with torch.inference_mode():
        hidden = network(pixel_values=images(spec, patches())).last_hidden_state
    n = 5 if name.startswith("hibou") else 1
    expected = torch.cat([hidden[:, 0], hidden[:, n:].mean(dim=1)], dim=1) if twice else hidden[:, 0]
    np.testing.assert_allclose(features(name), expected.numpy(), atol=2e-5)


def test_weights_that_do_not_fit_are_refused(cache, own_registry):
    transformers = _import("transformers")
    spec = smaller(BY_NAME["phikon-v2"], {}, width=24)
    config = transformers.Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2)
    weights = transformers.Dinov2Model(config).state_dict()
    weights["other.weight"] = weights.pop("layernorm.weight")
    stored(cache, spec, {"config.json": json.dumps(config.to_dict()), "model.safetensors": weights})
    with pytest.raises(
        Img2GeneError, match=r"`phikon-v2` do not fit .*layernorm.weight are missing, other.weight are left"
    ):
        features("phikon-v2")


# What the entries say


def test_entries_are_complete_and_pinned_or_say_that_they_are_not():
    expected = {
        "uni2-h", "conch", "virchow", "virchow2", "h-optimus-1", "h0-mini", "prov-gigapath", "phikon", "phikon-v2",
        "ctranspath", "hibou-b", "hibou-l", "midnight", "gpfm",
    }  # fmt: skip
    assert set(BY_NAME) == expected <= set(encoders.list().index)
    for spec in SPECS:
        assert spec.mpp and spec.licence and (is_commit(spec.revision) or spec.revision == UNPINNED)


def test_todays_commit_is_looked_up_recorded_and_kept_to(cache, caplog):
    spec = BY_NAME["phikon-v2"]
    stored(cache, spec, {"config.json": "{}"})
    found = registry.resolved(spec)
    assert (found.name, found.revision) == ("phikon-v2", COMMIT)
    assert f"hf-hub:owkin/phikon-v2@{COMMIT}" in caplog.text
    assert registry.resolved(BY_NAME["uni2-h"]) is BY_NAME["uni2-h"]


class Refused(Exception):
    response = type("Response", (), {"status_code": 401})()


def test_gated_weights_without_a_login_give_one_message(monkeypatch):
    from img2gene.encoders.timm_hub import load_failure

    wrapped = OSError("could not read config.json")
    wrapped.__cause__ = Refused("401 Client Error")
    message = str(load_failure(BY_NAME["uni2-h"], wrapped))
    assert message == (
        "The weights of `uni2-h` are gated: accept their terms (CC-BY-NC-ND-4.0) on "
        "https://huggingface.co/MahmoodLab/UNI2-h, then run `hf auth login`."
    )
    assert "no route" in str(load_failure(BY_NAME["gpfm"], OSError("no route")))


# Any timm model of the hub


def test_any_timm_model_of_the_hub_is_an_encoder(cache, own_registry):
    timm = _import("timm")
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL).eval()
    facts = {"input_size": [3, 224, 224], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "license": "mit"}
    config = {"architecture": "vit_tiny_patch16_224", "num_features": 24, "model_args": SMALL, "pretrained_cfg": facts}
    spec = dataclasses.replace(BY_NAME["gpfm"], source="hf-hub:someone/net.a1", name="any")
    stored(cache, spec, {"config.json": json.dumps(config), "model.safetensors": network.state_dict()})
    found = encoders.get("hf-hub:someone/net.a1")
    assert (found.name, found.revision, found.licence) == (f"net.a1-{COMMIT}", COMMIT, "mit")
    assert found.mean == (0.4, 0.5, 0.6) and encoders.get(found.name) is found
    with torch.inference_mode():
        expected = network(images(found, patches())).numpy()
    np.testing.assert_allclose(encoders.load(found.name, device="cpu", amp=False)(patches(), 224), expected, atol=2e-5)


def test_a_timm_model_without_statistics_is_refused(cache, own_registry):
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_features": 24,
        "pretrained_cfg": {"input_size": [3, 224, 224]},
    }
    spec = dataclasses.replace(BY_NAME["gpfm"], source="hf-hub:someone/bare", name="any")
    stored(cache, spec, {"config.json": json.dumps(config)})
    with pytest.raises(
        Img2GeneError, match=r"does not state mean, std, .*img2gene.encoders.wrap\(network, name, mean="
    ):
        encoders.get("hf-hub:someone/bare")
    with pytest.raises(MissingKeyError, match=r"No encoder loads from 'hf-hub:timm/absent' .*cannot be read"):
        encoders.get("timm:absent")


# Networks and functions at hand


def network(bias=0.0):
    layers = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 5))
    torch.manual_seed(0)
    torch.nn.init.normal_(layers[2].weight)
    torch.nn.init.constant_(layers[2].bias, bias)
    return layers


def test_a_module_is_an_encoder(own_registry, make_study):
    mean, std = (0.6, 0.5, 0.6), (0.2, 0.2, 0.2)
    spec = encoders.wrap(network(), "mine", mean=mean, std=std, input_px=32)
    assert spec.width == 5
    with torch.inference_mode():
        expected = network()(images(spec, patches())).numpy()
    np.testing.assert_allclose(encoders.load("mine", device="cpu", amp=False)(patches(), 32), expected, atol=1e-5)
    sdata = make_study([("A1", "A"), ("B1", "B")], embed=False, n_side=4)
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32)
    ig.pp.embed_patches(sdata, spec, device="cpu", orientations=1)
    model = ig.tl.fit(sdata, "ridge", validate_on=["B"], inplace=False)
    assert model.inputs["revision"] == spec.revision
    # The weights are the revision: the same encoder after a step of training is another one.
    registry._REGISTRY.pop("mine")
    ig.pp.embed_patches(
        sdata, encoders.wrap(network(1.0), "mine", mean=mean, std=std, input_px=32), device="cpu", orientations=1
    )
    with pytest.raises(Img2GeneError, match=f"encoder revision {spec.revision}"):
        ig.tl.predict(sdata, model)


def test_a_module_without_statistics_is_refused_and_those_of_timm_are_found(own_registry, make_study):
    with pytest.raises(Img2GeneError, match="comes without statistics of its training images"):
        encoders.wrap(network(), "mine")
    with pytest.raises(Img2GeneError, match="comes without statistics"):
        ig.pp.embed_patches(make_study([("A1", "A")], embed=False, n_side=3), network())
    layers = network()
    layers.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "input_size": (3, 48, 48)}
    spec = encoders.wrap(layers, "mine")
    assert (spec.mean, spec.input_px) == ((0.1, 0.2, 0.3), 48)


def test_a_function_is_an_encoder_with_a_version(own_registry):
    def colours(pixels):
        return pixels.mean(axis=(1, 2))

    with pytest.raises(Img2GeneError, match="name the version of this function"):
        encoders.wrap(colours, "colours")
    spec = encoders.wrap(colours, "colours", revision="1", input_px=16)
    assert spec.width == 3
    pixels = patches(side=16)
    np.testing.assert_allclose(encoders.load("colours")(pixels, 16), pixels.mean(axis=(1, 2)), rtol=1e-6)


def test_models_that_are_no_encoders_are_refused(own_registry):
    with pytest.raises(Img2GeneError, match="expected a torch module, or a function"):
        encoders.wrap(3, "mine", revision="1")
    with pytest.raises(Img2GeneError, match=r"returned \(2, 3, 2, 2\) for two images"):
        encoders.wrap(torch.nn.AdaptiveAvgPool2d(2), "mine", mean=(0,) * 3, std=(1,) * 3)
    with pytest.raises(Img2GeneError, match="failed on two test images of 8 px: ZeroDivisionError"):
        encoders.wrap(lambda pixels: 1 / 0, "mine", revision="1", input_px=8)
