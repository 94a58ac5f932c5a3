"""Predict spatially resolved gene expression from H&E images."""

from __future__ import annotations

import importlib
import logging
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from img2gene import datasets, encoders, get, io, metrics, models, pl, pp, tl
    from img2gene.settings import settings

__all__ = ["__version__", "datasets", "encoders", "get", "io", "metrics", "models", "pl", "pp", "settings", "tl"]
__version__ = version("img2gene")

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name == "settings":
        from img2gene.settings import settings

        return settings
    if name in __all__:
        return importlib.import_module(f"img2gene.{name}")
    raise AttributeError(f"module 'img2gene' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
