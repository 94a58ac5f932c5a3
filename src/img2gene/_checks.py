"""Check arguments that several functions take; each check lists its problems, so that one error can name them all."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from img2gene._errors import listing

_WHOLE, _NUMBER = (int, np.integer), (int, float, np.number)


def choice_problems(parameters: object, options: Mapping[str, Iterable[str]]) -> list[str]:
    """List parameters whose value is not one of their options."""
    return [
        f"{name}={getattr(parameters, name)!r}: choose one of {listing(known)}."
        for name, known in options.items()
        if getattr(parameters, name) not in known
    ]


def bound_problems(parameters: object, least: Mapping[str, float]) -> list[str]:
    """List parameters that are not numbers, not whole if declared as int, or below their minimum; None is skipped."""
    declared = inspect.signature(type(parameters)).parameters
    problems = []
    for name, bound in least.items():
        value = getattr(parameters, name)
        whole = name in declared and str(declared[name].annotation).startswith("int")
        fits = isinstance(value, _WHOLE if whole else _NUMBER)
        if value is None or (fits and value >= bound):
            continue
        kind = "" if fits else "a whole number, " if whole else "a number, "
        problems.append(f"{name}={value!r}: expected {kind}at least {bound}.")
    return problems


def share_problems(parameters: object, names: Iterable[str]) -> list[str]:
    """List parameters that are not numbers from 0 to 1."""
    values = {name: getattr(parameters, name) for name in names}
    return [
        f"{name}={value!r}: expected 0 to 1."
        for name, value in values.items()
        if not (isinstance(value, _NUMBER) and 0 <= value <= 1)
    ]


def positive_problems(parameters: object, names: Iterable[str]) -> list[str]:
    """List parameters that are not positive numbers."""
    values = {name: getattr(parameters, name) for name in names}
    return [
        f"{name}={value!r}: expected a positive number."
        for name, value in values.items()
        if not (isinstance(value, _NUMBER) and value > 0)
    ]


def whole_problems(name: str, value: Any, least: int, *, optional: bool = False) -> list[str]:
    """Check that an argument is a whole number and at least ``least``.

    Examples
    --------
    >>> from img2gene._checks import whole_problems
    >>> whole_problems("n_folds", 2.0, 2)
    ['n_folds=2.0: expected a whole number, 2 or more.']
    """
    # Python counts `True` as an int.
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if (optional and value is None) or (whole and value >= least):
        return []
    return [f"{name}={value!r}: expected {'' if whole else 'a whole number, '}{least} or more."]


def genes_problems(genes: object) -> list[str]:
    """Check that ``genes`` holds names, a number of genes, or None."""
    if genes is None or isinstance(genes, (int, np.integer, Iterable)):
        return []
    return [f"genes={genes!r}: expected names of genes, a whole number of them, or None."]


def jobs_problems(n_jobs: Any) -> list[str]:
    """Check that joblib accepts ``n_jobs``."""
    if isinstance(n_jobs, _WHOLE) and not isinstance(n_jobs, bool) and n_jobs != 0:
        return []
    return [f"n_jobs={n_jobs!r}: expected a number of processes, or -1 for one per core."]
