"""Check what a predictor returns, so that an error names the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from img2gene._checks import as_array, shown
from img2gene._errors import Img2GeneError
from img2gene.models.data import n_faulty
from img2gene.models.predictor import Predictor


@contextmanager
def failures(name: str, method: str) -> Iterator[None]:
    """Raise an error of a model as one of the package that names the model."""
    try:
        yield
    except (Img2GeneError, MemoryError):
        raise
    except Exception as error:
        raise Img2GeneError(f"Model `{name}`: `{method}` failed: {type(error).__name__}: {str(error)[:500]}") from error


def checked_prediction(
    predictor: Predictor, features: np.ndarray, sections: np.ndarray, extra: Mapping[str, Any], n_genes: int
) -> np.ndarray:
    """Predict labels, float32 (n_spots, n_genes); refuse what is not numeric, of another shape, or not finite."""
    with failures(predictor.name, "predict"):
        values = predictor.predict(features, sections, **extra)
    return checked_labels(values, (len(features), n_genes), predictor.name, "predictions")


def checked_labels(values: Any, shape: tuple[int, int], name: str, what: str) -> np.ndarray:
    """Convert what the model ``name`` returned to float32 of this shape.

    Examples
    --------
    >>> from img2gene.models.checked import checked_labels
    >>> checked_labels([[1, 2]], (1, 2), "mean", "predictions").dtype
    dtype('float32')
    """
    with failures(name, "predict"):
        # Masked values count as NaN.
        array = np.ma.filled(values, np.nan) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
    if array.dtype.kind not in "fiu":
        kind = type(values).__name__ if array.ndim == 0 else f"{array.dtype} values"
        raise Img2GeneError(f"Model `{name}` returned {what} as {kind}, expected an array of float32.")
    if array.shape != shape:
        raise Img2GeneError(f"Model `{name}` returned {what} of shape {array.shape}, expected {shape} (spots, genes).")
    with np.errstate(over="ignore"):
        labels = array.astype(np.float32, copy=False)
    if bad := n_faulty(labels):
        raise Img2GeneError(
            f"Model `{name}` returned {what} that are NaN or infinite in float32 for {bad} of {len(labels)} spots. "
            f"Check it with `img2gene.testing.check_predictor({name!r})`."
        )
    return labels


def checked_state(predictor: Predictor) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return configuration and arrays of a predictor; refuse what is no dictionary, and arrays without a stored form."""
    name = predictor.name
    with failures(name, "state"):
        state = predictor.state()
    pair = isinstance(state, tuple | list) and len(state) == 2 and all(isinstance(part, Mapping) for part in state)
    if not pair:
        raise Img2GeneError(
            f"Model `{name}`: `state` returned {shown(state)}, expected two dictionaries: configuration and arrays."
        )
    config, arrays = state
    return dict(config), {key: _storable_array(f"{name}.{key}", values) for key, values in arrays.items()}


def _storable_array(name: str, values: Any) -> np.ndarray:
    """Convert to numbers in the byte order of this machine, which is how they are read back."""
    array = np.ascontiguousarray(as_array(name, values))
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise Img2GeneError(
            f"`{name}` cannot be stored: it holds {array.dtype} values, expected numbers of up to 64 bits."
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)
