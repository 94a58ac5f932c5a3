"""Errors that name the culprit, list what is available and give the next call."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Img2GeneError(ValueError):
    """Input that cannot be used as it is; the message lists every problem found."""


class LeakageError(Img2GeneError):
    """A split that puts one patient (or data derived from the test side) on both sides."""


class MissingKeyError(Img2GeneError, KeyError):
    """A key that is not in the object."""

    def __str__(self) -> str:
        return ValueError.__str__(self)


def listing(names: Iterable[object], limit: int = 10) -> str:
    """Names joined for a message, shortened after ``limit``; ``none`` if empty."""
    # anndata 0.13 lists X among the layers, under the name None.
    items = [str(name) for name in names if name is not None]
    if not items:
        return "none"
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown}, … ({len(items)} in all)"


def near(name: str, known: Iterable[str]) -> str:
    """Those of ``known`` that ``name`` may have meant, whatever their case; all of them where nothing is close."""
    return near_matches([name], known)


def near_matches(names: Iterable[str], known: Iterable[str]) -> str:
    """As :func:`near`, for several absent names: ``near A: A1, A2; near B: B1``."""
    absent, present = [str(name) for name in names], [str(name) for name in known]
    folded = {name.casefold(): name for name in present}
    # Comparing takes some 0.1 s for each name in a whole transcriptome.
    close = {name: difflib.get_close_matches(name.casefold(), folded, n=5) for name in absent[:10]}
    found = {name: listing(folded[other] for other in others) for name, others in close.items() if others}
    if not found:
        return f"available: {listing(present)}"
    return "; ".join(
        f"near {name}: {others}" if len(absent) > 1 else f"near: {others}" for name, others in found.items()
    )


def missing(name: str, where: str, available: Iterable[object], hint: str = "") -> str:
    """``name`` not found in ``where``, with what is there and the next call."""
    text = f"`{name}` not found in `{where}` (available: {listing(available)})."
    return f"{text} {hint}" if hint else text


def raise_problems(problems: list[str], kind: type[Img2GeneError] = Img2GeneError) -> None:
    """Raise one error that lists all ``problems``; do nothing when there are none."""
    if len(problems) == 1:
        raise kind(problems[0])
    if problems:
        raise kind(f"{len(problems)} problems:\n" + "\n".join(f"- {problem}" for problem in problems))


class Problems:
    """Collects what is wrong with an input, so that the user hears of everything at once.

    Examples
    --------
    >>> from img2gene._errors import Problems
    >>> problems = Problems()
    >>> with problems.collect():
    ...     number = int("1")
    >>> problems.raise_all()
    """

    def __init__(self, found: Iterable[str] = ()) -> None:
        self.found = list(found)
        self.kind: type[Img2GeneError] = Img2GeneError

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Note an :class:`Img2GeneError` instead of raising it."""
        try:
            yield
        except Img2GeneError as error:
            self.kind = type(error) if not self.found else Img2GeneError
            self.found.append(str(error))

    def raise_all(self) -> None:
        """Raise one error for everything found; a single problem keeps its own kind."""
        raise_problems(self.found, self.kind if len(self.found) == 1 else Img2GeneError)
