"""Checks of arguments that several functions take; each returns what is wrong, for one error with all of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def whole_problems(name: str, value: Any, least: int, *, optional: bool = False) -> list[str]:
    """An argument that is no whole number, or below its least value.

    Examples
    --------
    >>> from img2gene.tl._arguments import whole_problems
    >>> whole_problems("n_folds", 2.0, 2)
    ['n_folds=2.0: expected a whole number, 2 or more.']
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if (optional and value is None) or (whole and value >= least):
        return []
    return [f"{name}={value!r}: expected {'' if whole else 'a whole number, '}{least} or more."]


def genes_problems(genes: object) -> list[str]:
    """Genes that are neither names nor their number."""
    if genes is None or isinstance(genes, (int, np.integer, Iterable)):
        return []
    return [f"genes={genes!r}: expected names of genes, a whole number of them, or None."]
