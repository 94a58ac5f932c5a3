"""Raise an AssertionError for a broken rule."""

from __future__ import annotations

import json
from typing import Any

import numpy as np


def demand(holds: bool, message: str) -> None:
    """Raise an AssertionError with the message unless the rule holds."""
    if not holds:
        raise AssertionError(message)


def demand_json(value: Any, what: str) -> None:
    """Demand that a value can be written as JSON without NaN."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{what} is not JSON: {error}.") from error


def close(one: np.ndarray, other: np.ndarray, atol: float, rtol: float = 0.0) -> bool:
    """Whether two arrays have the same shape and equal values within a tolerance; NaN is never equal."""
    return one.shape == other.shape and np.allclose(one, other, rtol=rtol, atol=atol)
