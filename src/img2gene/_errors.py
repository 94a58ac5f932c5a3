"""Errors that name the culprit, list what is available and give the next call."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Img2GeneError(ValueError):
    """Raised for an input that cannot be used; the message lists all of its problems."""


class LeakageError(Img2GeneError):
    """Raised for a split that puts one patient, or data derived from the test side, on both sides."""


class MissingKeyError(Img2GeneError, KeyError):
    """Raised for a key that is not in the object."""

    def __str__(self) -> str:
        return ValueError.__str__(self)


def listing(names: Iterable[object], limit: int = 10) -> str:
    """Join names for a message, at most ``limit`` of them; ``none`` if there are none."""
    # anndata 0.13 lists X among the layers, under the name None.
    items = [str(name) for name in names if name is not None]
    if not items:
        return "none"
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown}, … ({len(items)} in all)"


def near(name: str, known: Iterable[str]) -> str:
    """List the ``known`` names that resemble ``name``, ignoring case; all of them if none does."""
    return near_matches([name], known)


def near_matches(names: Iterable[str], known: Iterable[str]) -> str:
    """List names that resemble several absent ones: ``near A: A1, A2; near B: B1``."""
    absent, present = [str(name) for name in names], [str(name) for name in known]
    folded = {name.casefold(): name for name in present}
    # Comparing one name with a whole transcriptome takes about 0.1 s.
    close = {name: difflib.get_close_matches(name.casefold(), folded, n=5) for name in absent[:10]}
    suggestions = {name: listing(folded[other] for other in others) for name, others in close.items() if others}
    if not suggestions:
        return f"available: {listing(present)}"
    return "; ".join(
        f"near {name}: {others}" if len(absent) > 1 else f"near: {others}" for name, others in suggestions.items()
    )


def missing(name: str, where: str, available: Iterable[object], hint: str = "") -> str:
    """Say that ``name`` is not in ``where``, what is there, and the next call."""
    text = f"`{name}` not found in `{where}` (available: {listing(available)})."
    return f"{text} {hint}" if hint else text


def no_such(what: str, absent: Iterable[object], known: Iterable[object], limit: int = 10) -> str:
    """Say which names are unknown, or that none is named, and list the known ones."""
    names = [str(name) for name in absent]
    problem = f"No {what} named {listing(names)}" if names else f"Name at least one {what}"
    return f"{problem} (available: {listing(known, limit)})."


def raise_problems(problems: list[str], kind: type[Img2GeneError] = Img2GeneError) -> None:
    """Raise one error that lists all ``problems``; do nothing when there are none."""
    if len(problems) == 1:
        raise kind(problems[0])
    if problems:
        raise kind(f"{len(problems)} problems:\n" + "\n".join(f"- {problem}" for problem in problems))


class Problems:
    """Collect all problems of one input, so that one error names them all.

    Examples
    --------
    >>> from img2gene._errors import Problems
    >>> problems = Problems()
    >>> with problems.collect():
    ...     number = int("1")
    >>> problems.raise_all()
    """

    def __init__(self, messages: Iterable[str] = ()) -> None:
        self.messages = list(messages)
        self.kind: type[Img2GeneError] = Img2GeneError

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep an :class:`Img2GeneError` for later instead of raising it."""
        try:
            yield
        except Img2GeneError as error:
            # Several checks may read the same faulty column.
            if str(error) not in self.messages:
                self.kind = type(error) if not self.messages else Img2GeneError
                self.messages.append(str(error))

    def raise_all(self) -> None:
        """Raise one error with all problems; a single problem keeps its own kind."""
        raise_problems(self.messages, self.kind if len(self.messages) == 1 else Img2GeneError)
