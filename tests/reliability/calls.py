"""Call every public function with one hostile argument at a time."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from img2gene import Img2GeneError
from reliability import functions, studies
from reliability.content import content, differences
from reliability.forked import Hang, Limit, run_all
from reliability.hostile import VALUES
from reliability.tally import Outcome, describe

# Processes that are started import their libraries, which takes longer than the limit where cores are busy.
_SEVERAL_PROCESSES = ("-1", "3", "np.int64(2)")
# Tiles that are as small as pixels are valid, and take minutes.
_TINY_TILES = ("1.5", "3", "np.int64(2)")
_ENDLESS_TRAINING = ("None", "3", "2**40", "2**70", "10**400", "np.int64(2)")


@dataclass(frozen=True)
class Call:
    """One hostile call: the function, the argument that is replaced, and the name of the value."""

    function: str
    argument: str
    value: str


def all_calls() -> list[Call]:
    """List every function with every argument and every value."""
    calls = [
        Call(target, argument, value)
        for target in functions.targets()
        for argument in functions.parameters_of(target)
        for value in VALUES
    ]
    # Any positive number of epochs is valid, and a large one takes as long as it says.
    slow = {"max_epochs": _ENDLESS_TRAINING, "n_jobs": _SEVERAL_PROCESSES}
    calls = [call for call in calls if call.value not in slow.get(call.argument, ())]
    tiny = ("tl.predict", "resolution_um")
    return [call for call in calls if (call.function, call.argument) != tiny or call.value not in _TINY_TILES]


def sample(n: int | None, seed: int) -> list[Call]:
    """Draw calls without replacement, sorted by function; None takes all."""
    calls = all_calls()
    chosen = np.sort(np.random.default_rng(seed).permutation(len(calls))[:n])
    return [calls[i] for i in chosen]


def prepare() -> None:
    """Build what the calls share, before the children are forked."""
    # Scanpy lays spots out by code that numba compiles for longer than a call may take.
    importlib.import_module("img2gene.pl.umap")._layout = lambda features, n_neighbors, seed: features[:, :2]  # type: ignore[attr-defined]
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("agg")
    # Drawing takes most of the time of a report, and says nothing about its arguments.
    Figure.savefig = _save_nothing  # type: ignore[method-assign]
    studies.quieten()
    studies.complete()
    studies.visium_like()
    studies.trained("mean"), studies.trained("ridge")


def run(calls: list[Call]) -> Iterator[Outcome]:
    """Make the calls, one child per function, and yield their outcomes."""
    for name, group in groupby(calls, key=lambda call: call.function):
        with tempfile.TemporaryDirectory() as folder:
            yield from run_all(list(group), _Caller(name, Path(folder)), _lost)


def _lost(call: Call, result: str) -> Outcome:
    return Outcome(call.function, call.argument, call.value, result)


@dataclass
class _Caller:
    """Calls one function again and again; its valid arguments are made anew after each success."""

    name: str
    root: Path
    arguments: dict[str, Any] = field(default_factory=dict)
    state: dict[str, str] = field(default_factory=dict)

    def __call__(self, call: Call) -> Outcome:
        if not self.arguments:
            self._renew()
        value = VALUES[call.value](self.root / "files")
        before = files_of(self.root)
        result, error = self._outcome({**self.arguments, call.argument: value})
        if result == "refused" and (changed := self._changes(before)):
            result, error = "changed", ", ".join(changed[:4])
        if result != "refused":
            self.arguments = {}
        return Outcome(call.function, call.argument, call.value, result, error)

    def _renew(self) -> None:
        for name in ("files", "here"):
            (self.root / name).mkdir(exist_ok=True)
        os.chdir(self.root / "here")
        self.arguments = functions.valid_arguments(self.name, self.root / "files")
        self.state = content(_comparable(self.arguments))

    def _changes(self, files: dict[str, int]) -> list[str]:
        after = files_of(self.root)
        changed = [name for name in {*files, *after} if files.get(name) != after.get(name)]
        return changed + differences(self.state, content(_comparable(self.arguments)))

    def _outcome(self, arguments: dict[str, Any]) -> tuple[str, str]:
        function = functions.public_functions()[self.name.split("[")[0]]
        subject = [arguments.pop("self")] if "self" in arguments else []
        allowed = (Img2GeneError, AssertionError) if self.name.startswith("testing.") else (Img2GeneError,)
        try:
            with Limit():
                function(*subject, **arguments)
        except allowed:
            return "refused", ""
        except Hang as error:
            return "hang", describe(error)
        # Any other exception is what the trial looks for.
        except BaseException as error:  # noqa: BLE001
            return "raw error", describe(error)
        finally:
            _close_figures()
        return "succeeded", ""


def _comparable(arguments: dict[str, Any]) -> dict[str, Any]:
    """Leave out arguments whose text says nothing of their content."""
    kinds = (SpatialData, AnnData, np.ndarray, dict, list, str, int, float)
    return {name: value for name, value in arguments.items() if isinstance(value, kinds)}


def files_of(root: Path) -> dict[str, int]:
    """List the files below a folder with their sizes."""
    return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}


def _save_nothing(figure: Any, target: Any, **_: Any) -> None:
    target.write(b"<svg></svg>")


def _close_figures() -> None:
    import matplotlib.pyplot as plt

    plt.close("all")
