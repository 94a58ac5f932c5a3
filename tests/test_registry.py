"""The registry of models: what is asked for is imported, and nothing else."""

import subprocess
import sys

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
