"""Networks and functions at hand as encoders: what their revision covers, and which are refused."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import img2gene as ig
from img2gene import encoders
from img2gene._errors import Img2GeneError
from img2gene.encoders import registry

STATISTICS = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "input_px": 16}


@pytest.fixture(autouse=True)
def own_encoders(monkeypatch):
    encoders.list()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def revision(layers, name, **changes):
    return encoders.wrap(layers, name, **STATISTICS | changes).revision


def test_the_revision_covers_layers_and_normalisation():
    mean = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    same = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    largest = nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten())
    assert revision(mean, "one") == revision(same, "two")
    # None of them has weights.
    assert revision(mean, "three") != revision(largest, "four")
    assert revision(mean, "five") != revision(mean, "six", mean=(0.6, 0.5, 0.5))
    assert revision(mean, "seven") != revision(mean, "eight", std=(0.2, 0.2, 0.3))


def test_weights_that_changed_since_are_refused():
    layers = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4))
    spec = encoders.wrap(layers, "mine", **STATISTICS)
    assert encoders.load("mine").width == 4
    with torch.no_grad():
        layers[2].weight.add_(1)
    with pytest.raises(Img2GeneError, match=f"have changed since .* revision {spec.revision}. Wrap the network again"):
        encoders.load("mine")
    assert encoders.wrap(layers, "trained", **STATISTICS).revision != spec.revision


class Means(nn.Module):
    """The mean of each channel, changed by a function."""

    def __init__(self, change=lambda means: means):
        super().__init__()
        self.change = change

    def forward(self, images):
        return self.change(images.mean((2, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x, x), "TypeError: it returned a tuple and not a tensor"),
        (lambda x: {"features": x}, "it returned a dict and not a tensor"),
        (lambda x: x * torch.nan, "returned NaN or infinity"),
        (lambda x: x[:, 0], r"returned \(2,\) for two images"),
        (lambda x: x - x.mean(0), "depend on the batch or on chance"),
        (lambda x: x + torch.rand_like(x), "depend on the batch or on chance"),
    ],
)
def test_modules_without_features_of_each_image_are_refused(change, message):
    with pytest.raises(Img2GeneError, match=message):
        encoders.wrap(Means(change), "mine", **STATISTICS)
    assert "mine" not in encoders.list().index


def test_a_module_may_keep_other_things_than_tensors():
    class Noted(Means):
        note = "a"

        def get_extra_state(self):
            return {"note": self.note}

        def set_extra_state(self, state):
            self.note = state["note"]

    first, second = Noted(), Noted()
    second.note = "b"
    assert revision(first, "one") != revision(second, "two")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (123.0, 117.0, 104.0)}, "mean=.*divide those of 0–255 by 255"),
        ({"std": (58.0, 57.0, 57.0)}, "std=.*divide those of 0–255 by 255"),
        ({"std": (0, 1, 1)}, "a standard deviation of 0"),
        ({"mean": (0.5, 0.5)}, "mean=.*expected three numbers"),
        ({"mean": 0.5}, "mean=0.5: expected three numbers"),
        ({"mean": ("a", "b", "c")}, "mean"),
        ({"mpp": -1}, "mpp=-1"),
        ({"revision": ["1"]}, "revision=.*expected text"),
        ({"input_px": 0}, "input_px=0"),
        ({"input_px": 2**40}, "input_px=1099511627776"),
    ],
)
def test_odd_numbers_are_refused(changes, message):
    with pytest.raises(Img2GeneError, match=message):
        encoders.wrap(Means(), "mine", **STATISTICS | changes)


def test_a_function_gets_pixels_of_its_own(make_study):
    def inverted(pixels):
        pixels[...] = 255 - pixels
        return pixels.mean(axis=(1, 2))

    encoders.wrap(inverted, "inverted", revision="1", input_px=8)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    before = pixels.copy()
    features = encoders.load("inverted")(pixels, 8)
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_allclose(features, 255 - before.mean(axis=(1, 2)), rtol=1e-5)


def test_a_function_that_returns_text_is_refused():
    with pytest.raises(Img2GeneError, match="expected numbers"):
        encoders.wrap(lambda pixels: np.array([["a"]] * len(pixels)), "words", revision="1", input_px=8)


def test_own_names_are_taken_before_any_encoder_was_asked_for():
    code = (
        "import img2gene as ig\n"
        "try:\n"
        "    ig.encoders.wrap(lambda x: x.mean((1, 2)), 'color-texture', revision='1', input_px=8)\n"
        "except ig.Img2GeneError as error:\n"
        "    print(error)\n"
        "print(ig.encoders.get('color-texture').width)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "`color-texture` is registered already" in said
    assert said.endswith("50\n")
    assert ig.encoders.get("color-texture").source == "img2gene"


def test_a_network_in_training_is_left_in_training(study):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(0.5))
    network.train()
    network[1].eval()
    spec = encoders.wrap(network, "half", **STATISTICS)
    ig.pp.embed_patches(study, spec, orientations=1)
    first = np.asarray(study["table"].obsm["X_half"])
    assert [layer.training for layer in network] == [True, False, True, True] and network.training
    # Dropout would give other features at each call.
    ig.pp.embed_patches(study, spec, orientations=1)
    np.testing.assert_array_equal(study["table"].obsm["X_half"], first)


class Powers(nn.Module):
    """Means of a power of each channel, with an exponent that is no weight."""

    def __init__(self, exponent, scale=1.0):
        super().__init__()
        self.exponent = exponent
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, images):
        return (images.abs() ** self.exponent).mean((2, 3)) * self.scale


def test_the_revision_covers_attributes_and_buffers_that_no_state_holds():
    assert revision(Powers(1), "one") == revision(Powers(1), "again")
    assert revision(Powers(1), "two") != revision(Powers(2), "three")
    assert revision(Powers(1), "four") != revision(Powers(1, scale=2.0), "five")
    layers = Powers(1)
    encoders.wrap(layers, "mine", **STATISTICS)
    layers.exponent = 2
    with pytest.raises(Img2GeneError, match="attributes of encoder `mine` have changed since"):
        encoders.load("mine")


def test_a_stated_revision_covers_the_normalisation():
    stated = revision(Powers(1), "one", revision="1")
    assert stated.startswith("1+") and stated == revision(Powers(1), "two", revision="1")
    assert stated != revision(Powers(1), "three", revision="1", mean=(0.6, 0.5, 0.5))


def test_the_same_network_made_anew_takes_its_name_and_another_does_not():
    encoders.wrap(Powers(1), "mine", **STATISTICS)
    assert encoders.wrap(Powers(1), "mine", **STATISTICS) == encoders.get("mine")
    with pytest.raises(Img2GeneError, match="`mine` is registered already"):
        encoders.wrap(Powers(2), "mine", **STATISTICS)


def test_models_that_need_wrapping_are_sent_there(make_study):
    sdata = make_study()
    with pytest.raises(Img2GeneError, match=r"(?s)name the version.*img2gene.encoders.wrap\(model, 'lambda', …\)"):
        ig.pp.embed_patches(sdata, lambda patches: patches.mean((1, 2)))
