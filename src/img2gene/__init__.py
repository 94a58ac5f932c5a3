"""Predict spatially resolved gene expression from H&E images."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING

from img2gene._errors import Img2GeneError, LeakageError, MissingKeyError
from img2gene.settings import Settings, settings

if TYPE_CHECKING:
    from img2gene import (
        benchmark,
        datasets,
        encoders,
        get,
        io,
        lazyslide,
        metrics,
        models,
        pathways,
        pl,
        pp,
        testing,
        tl,
    )
    from img2gene._report import report

_SUBPACKAGES = [
    "benchmark",
    "datasets",
    "encoders",
    "get",
    "io",
    "lazyslide",
    "metrics",
    "models",
    "pathways",
    "pl",
    "pp",
    "testing",
    "tl",
]
_OWN = ["Img2GeneError", "LeakageError", "MissingKeyError", "Settings", "__version__", "report", "settings"]
__all__ = [*_OWN, *_SUBPACKAGES]
__version__ = version("img2gene")


def __getattr__(name: str) -> object:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"img2gene.{name}")
    if name == "report":
        return importlib.import_module("img2gene._report").report
    raise AttributeError(f"module 'img2gene' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
