"""The registry of models: what is asked for is imported, and nothing else."""

import subprocess
import sys

import numpy as np
import pytest

from img2gene import models
from img2gene._errors import Img2GeneError
from img2gene.models import registry
from img2gene.models.ridge import Ridge

LIGHT = """
import sys
import img2gene as ig

assert {"img2gene", "mean", "ridge"} <= set(ig.models.list())
ig.models.create("ridge", center="none")
heavy = [name for name in ("torch", "lightning") if name in sys.modules]
assert not heavy, heavy
ig.models.create("img2gene")
assert "torch" in sys.modules
assert "lightning" not in sys.modules
"""


def test_a_ridge_takes_neither_torch_nor_lightning():
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


def test_built_in_models_are_what_they_are_called():
    for name in registry._BUILT_IN:
        assert models.get(name).name == name
        assert models.register(models.get(name)) is models.get(name)


def test_a_built_in_name_is_taken_even_before_it_is_imported(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", {})
    other = type("Other", (Ridge,), {"name": "img2gene"})
    with pytest.raises(Img2GeneError, match="A model named `img2gene` is registered already"):
        models.register(other)


class NoFit:
    name = "no-fit"
    shapes: dict = {}
    state = from_state = predict = summary = lambda self: None


def changed(**changes):
    return type("Changed", (Ridge,), {"name": "changed", **changes})


@pytest.mark.parametrize(
    ("predictor", "message"),
    [
        (Ridge(), "is no class; register the class of a model"),
        ("ridge", "is no class"),
        (None, "is no class"),
        (NoFit, "NoFit cannot be registered as a model. Methods fit are missing"),
        (int, "(?s)`name` is None.*Methods fit, predict, state, from_state, summary are missing.*`shapes` must map"),
        (changed(name=5), "`name` is 5, expected a string"),
        (changed(name=[]), "`name` is "),
        (changed(name=""), "`name` is ''"),
        (changed(shapes=None), "`shapes` must map"),
        (changed(shapes={"a": "genes"}), "`shapes` must map"),
        (changed(inputs="tokens"), "`inputs` is 'tokens', expected a tuple"),
        (changed(inputs=(5,)), "`inputs` is "),
        (changed(fit=None), "Methods fit are missing"),
    ],
)
def test_what_is_no_model_is_refused(predictor, message):
    with pytest.raises(Img2GeneError, match=message):
        models.register(predictor)


@pytest.mark.parametrize("name", [None, 5, [], ["ridge"], {}, np.array(["ridge"])])
def test_a_name_that_is_no_string_is_refused(name):
    for call in (models.get, models.create):
        with pytest.raises(Img2GeneError, match="expected a name"):
            call(name)


class Entry:
    def __init__(self, name, load):
        self.name, self.load = name, load


def broken(error):
    def load():
        raise error

    return load


def test_broken_plugins_are_warned_about_and_do_not_hide_the_others(monkeypatch, caplog):
    good = type("Good", (Ridge,), {"name": "good-plugin"})
    entries = [
        Entry("absent", broken(ImportError("needs libfoo"))),
        Entry("exits", broken(SystemExit(1))),
        Entry("instance", lambda: Ridge()),
        Entry("good", lambda: good),
    ]
    monkeypatch.setattr(registry, "_REGISTRY", {})
    monkeypatch.setattr(registry, "_loaded", [])
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    for _ in range(2):
        assert "good-plugin" in models.list()
        assert models.get("good-plugin") is good
    for name in ("absent", "exits", "instance"):
        assert caplog.text.count(f"the model '{name}' of an installed package is left out") == 1
    assert "needs libfoo" in caplog.text
