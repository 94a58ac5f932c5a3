"""Errors that name the culprit, list what is available and give the next call."""

from __future__ import annotations

from collections.abc import Iterable


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
    items = [str(name) for name in names]
    if not items:
        return "none"
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown}, … ({len(items)} in all)"


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
