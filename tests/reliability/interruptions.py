"""Interrupt functions at random lines of the package, and compare the object with what it was and what it would be."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from reliability import functions, studies
from reliability.content import content, differences
from reliability.tally import Outcome, describe, is_package_file, last_line

Place = tuple[str, int]
# Other calls of functions that write, with what leaves more or less of the object standing.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "other fields of view": ("pp.extract_patches", {"patch_um": 60.0}),
    "other section": ("pp.tile_slide", {"image_key": "P1_S1_image", "key_added": "more"}),
    "other genes": ("pp.select_genes", {"n_genes": 3, "by": "variable"}),
    "other model": ("tl.predict", {"model": "retriever"}),
    "without intervals": ("tl.predict", {"uncertainty": False}),
    "thinning": ("tl.predictability", {"method": "thinning"}),
    "with annotation": ("tl.localize", {"annotation": "domain", "positive": {"again": ["stroma"]}}),
    "knn": ("tl.fit", {"model": "knn", "k": 2}),
    "network": ("tl.fit", {"model": "img2gene", "key_added": "network", **studies.NETWORK}),
}
READERS = ("tl.check_leaks", "tl.pathway_contributions", "tl.retrieve", "get.pathways", "io.to_anndata")
WRITERS = ("pp.", "tl.")
# These write into no object, and spend their time in the functions that are interrupted on their own.
NO_WRITERS = ("tl.cross_validate", "tl.learning_curve")


@dataclass
class Lines:
    """Counts executed lines of the package, and interrupts at one of them.

    Attributes
    ----------
    at
        Number of the line to interrupt at; 0 only counts.
    places
        File and number of each executed line, in order.
    """

    at: int = 0
    places: list[Place] = field(default_factory=list)
    known: dict[str, bool] = field(default_factory=dict)
    before: Any = field(default=None, init=False)

    def __enter__(self) -> Lines:
        # A measurement of coverage traces lines, too, and must go on afterwards.
        self.before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def _call(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        filename = frame.f_code.co_filename
        if filename not in self.known:
            self.known[filename] = is_package_file(filename)
        return self._line if self.known[filename] else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        if event == "line":
            self.places.append((frame.f_code.co_filename, frame.f_lineno))
            if len(self.places) == self.at:
                raise KeyboardInterrupt
        return self._line


@dataclass
class Interrupted:
    """A function that is interrupted again and again, each time on a copy of the same object."""

    name: str
    function: str
    changes: dict[str, Any]

    def arguments(self, folder: Path) -> dict[str, Any]:
        """Return arguments of its own for one call."""
        return functions.valid_arguments(self.function, folder) | self.changes

    def prepare(self, folder: Path) -> list[Place]:
        """Run to the end twice: the first run imports and fills caches, the second counts lines."""
        self._complete(folder)
        lines = Lines()
        arguments = self.arguments(folder)
        self.before = content(_objects(arguments))
        with lines:
            functions.public_functions()[self.function](**arguments)
        self.after = content(_objects(arguments))
        return lines.places

    def _complete(self, folder: Path) -> dict[str, str]:
        arguments = self.arguments(folder)
        functions.public_functions()[self.function](**arguments)
        return content(_objects(arguments))

    def interrupt(self, folder: Path, at: int) -> Outcome:
        """Interrupt at the line with this number, and compare."""
        arguments, lines = self.arguments(folder), Lines(at)
        place, error = "", ""
        try:
            with lines:
                functions.public_functions()[self.function](**arguments)
        except KeyboardInterrupt as interruption:
            place = last_line(interruption.__traceback__)
        # An error that replaces the interruption is a failure of its own.
        except BaseException as other:  # noqa: BLE001
            place, error = "swallowed", describe(other)
        result, changed = self._compare(content(_objects(arguments)))
        result = "raw error" if error else result
        return Outcome(self.name, place, f"line {at} of {len(lines.places)}", result, error or ", ".join(changed[:6]))

    def _compare(self, state: dict[str, str]) -> tuple[str, list[str]]:
        if not (changed := differences(self.before, state)):
            return "unchanged", []
        return ("half-written", changed) if differences(self.after, state) else ("complete", [])

    def still_works(self, folder: Path) -> Outcome:
        """Run to the end after all interruptions; the result must be the same as before them."""
        changed = differences(self.after, self._complete(folder))
        return Outcome(self.name, "next call", "", "half-written" if changed else "equal", ", ".join(changed[:6]))


def _objects(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if hasattr(value, "tables") or hasattr(value, "obsm")}


def subjects() -> list[Interrupted]:
    """List all functions that take a study, and further calls of those that write."""
    writers = [name for name in functions.STUDY if name.startswith(WRITERS) and name not in NO_WRITERS]
    names = dict.fromkeys([*writers, *READERS])
    plain = [Interrupted(name, name, {}) for name in names]
    return plain + [Interrupted(f"{name}: {what}", name, changes) for what, (name, changes) in VARIANTS.items()]


def draw(places: list[Place], n: int, rng: np.random.Generator) -> list[int]:
    """Draw line numbers: every second one from all executed lines, the others so that each line of source is as likely."""
    occurrences: dict[Place, list[int]] = {}
    for number, place in enumerate(places, start=1):
        occurrences.setdefault(place, []).append(number)
    distinct = list(occurrences.values())
    rare = [int(rng.choice(distinct[rng.integers(len(distinct))])) for _ in range(n - n // 2)]
    return [*rare, *map(int, rng.integers(1, len(places) + 1, size=n // 2))]


def run(n_each: int, seed: int, chosen: Iterable[Interrupted] | None = None) -> Iterator[Outcome]:
    """Interrupt each function ``n_each`` times."""
    for subject in subjects() if chosen is None else chosen:
        rng = np.random.default_rng([seed, *subject.name.encode()])
        with tempfile.TemporaryDirectory() as folder:
            places = subject.prepare(Path(folder))
            yield from (subject.interrupt(Path(folder), at) for at in draw(places, n_each, rng))
            yield subject.still_works(Path(folder))
