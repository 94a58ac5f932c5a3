"""Predict spatially resolved gene expression from H&E images."""

from __future__ import annotations

import importlib
import warnings
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

# squidpy 1.8.2 gives these whenever it is imported, in its worker processes, too; later releases do not:
# https://github.com/scverse/squidpy/issues/1230
for _argument in ("n_jobs", "show_progress_bar"):
    warnings.filterwarnings("ignore", f"'{_argument}' is not a valid key!", SyntaxWarning)
# tqdm's advice in notebooks without ipywidgets, where bars of text do as well.
warnings.filterwarnings("ignore", "IProgress not found")


def __getattr__(name: str) -> object:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"img2gene.{name}")
    if name == "report":
        return importlib.import_module("img2gene._report").report
    raise AttributeError(f"module 'img2gene' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
