"""The arrays that models are fitted to, and checks of arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from img2gene._checks import as_array
from img2gene._errors import Img2GeneError, raise_problems

# Counts of a spot are scaled to this sum before the logarithm.
TARGET_SUM = 1e4
# Squares of larger values overflow in single precision, once they are summed over features.
LARGEST = 1e15


@dataclass(frozen=True)
class TrainingData:
    """Training data of every predictor.

    Attributes
    ----------
    features
        float32 (n_spots, width), no NaN.
    labels
        float32 (n_spots, n_genes), no NaN.
    sections
        str (n_spots,): the section of each spot.
    groups
        str (n_spots,): the unit that validation inside the training data leaves out, usually the patient.
    positions
        float (n_spots, 2): row and column of the spots in µm.
    tokens
        float16 (n_spots, m, token_width): tokens of each patch, for predictors that declare them; else None.
    pathways
        float32 (n_spots, n_pathways): pathway scores; None where there are none.
    library
        float (n_spots,): library sizes; None where the labels are not made of counts.
    feature_scale
        float32 (width,): what models divide features by; None for the SD of the features within sections.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models import TrainingData
    >>> names = np.array(["S1", "S1", "S2"])
    >>> data = TrainingData(np.eye(3, dtype="f4"), np.ones((3, 2), dtype="f4"), names, names, np.zeros((3, 2)))
    >>> data.labels.shape
    (3, 2)
    >>> data.take(data.sections == "S1").sections
    array(['S1', 'S1'], dtype='<U2')
    """

    features: np.ndarray
    labels: np.ndarray
    sections: np.ndarray
    groups: np.ndarray
    positions: np.ndarray
    tokens: np.ndarray | None = None
    pathways: np.ndarray | None = None
    library: np.ndarray | None = None
    feature_scale: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Refuse features and labels that no model can be fitted to."""
        problems = []
        for name in ("features", "labels"):
            values = np.asarray(getattr(self, name))
            if values.dtype.kind in "fiu" and (large := n_extreme(values)):
                problems.append(
                    f"{large} of {len(values)} training spots have {name} above {LARGEST:g} in size, which no model can be "
                    "fitted to. Embed or normalise them again."
                )
        raise_problems(problems)

    def take(self, rows: np.ndarray) -> TrainingData:
        """Select spots by a boolean mask or indices."""
        values = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "feature_scale"}
        return replace(self, **{name: value[rows] for name, value in values.items() if value is not None})

    def canonical_order(self) -> np.ndarray:
        """Rows sorted by section, then by position: an order that does not depend on the order of the rows.

        Random draws and sums follow the order of the rows, so predictors fit to the spots in this one. Coincident spots of
        one section are sorted by the sums of their labels and features.
        """
        section = np.unique(self.sections, return_inverse=True)[1]
        sums = (values.sum(axis=1, dtype=np.float64) for values in (self.features, self.labels))
        # np.lexsort sorts by its last key first.
        return np.lexsort([*sums, self.positions[:, 1], self.positions[:, 0], section])

    def in_canonical_order(self) -> TrainingData:
        """The spots in their canonical order, without a copy where they are in it already."""
        order = self.canonical_order()
        return self if np.array_equal(order, np.arange(len(order))) else self.take(order)


class RowSource(ABC):
    """An array in a store, read a block of rows at a time; it checks what it reads.

    Attributes
    ----------
    shape, dtype, ndim
        As of an array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Read a slice of rows, or rows of ascending numbers."""


def float_array(name: str, values: Any) -> Any:
    """Convert to float32, and positions to float64; values beyond that become infinite, and are refused later."""
    if isinstance(values, RowSource):
        return values
    array = as_array(name, values)
    if array.dtype.kind not in "biuf":
        raise Img2GeneError(f"{name}: expected numbers, got {array.dtype} values.")
    with np.errstate(over="ignore"):
        # In single precision, neighbours at the same distance would be told apart by rounding.
        return array.astype(np.float64 if name == "positions" else np.float32, copy=False)


def n_faulty(values: np.ndarray) -> int:
    """Number of rows that hold NaN or infinity."""
    # Both carry through a sum, which takes no array of the size of the values.
    with np.errstate(invalid="ignore"):
        sums = values.sum(axis=tuple(range(1, values.ndim)), dtype=np.float64)
    return int((~np.isfinite(sums)).sum())


def n_extreme(values: np.ndarray) -> int:
    """Number of rows that hold values above :data:`LARGEST` in size."""
    if not values.size or max(float(values.max()), -float(values.min())) <= LARGEST:
        return 0
    return int((np.abs(values.reshape(len(values), -1)) > LARGEST).any(axis=1).sum())


def with_prefix(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays under ``prefix.``, by the rest of their names."""
    return {name.split(".", 1)[1]: value for name, value in arrays.items() if name.startswith(f"{prefix}.")}
