"""Checks that the parameters of several models need; each returns what is wrong, for one error with all of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from img2gene._errors import listing


def choice_problems(parameters: object, options: Mapping[str, Iterable[str]]) -> list[str]:
    """Parameters that are none of their options."""
    return [
        f"{name}={getattr(parameters, name)!r}: choose one of {listing(known)}."
        for name, known in options.items()
        if getattr(parameters, name) not in known
    ]


def bound_problems(parameters: object, least: Mapping[str, float]) -> list[str]:
    """Parameters below their least value, or not comparable with it; None is left to others."""
    return [
        f"{name}={getattr(parameters, name)!r}: expected at least {bound}."
        for name, bound in least.items()
        if getattr(parameters, name) is not None and not getattr(parameters, name) >= bound
    ]


def share_problems(parameters: object, names: Iterable[str]) -> list[str]:
    """Parameters that are no share between 0 and 1."""
    values = {name: getattr(parameters, name) for name in names}
    return [f"{name}={value!r}: expected 0 to 1." for name, value in values.items() if not 0 <= value <= 1]


def positive_problems(parameters: object, names: Iterable[str]) -> list[str]:
    """Parameters that are not positive."""
    values = {name: getattr(parameters, name) for name in names}
    return [f"{name}={value!r}: expected a positive number." for name, value in values.items() if not value > 0]
