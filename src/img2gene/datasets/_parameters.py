"""Arguments of the synthetic cohort, checked all at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from img2gene._errors import listing, raise_problems
from img2gene.datasets._genes import SYMBOLS

SPOT_UM = 55.0
PITCH_UM = 100.0

_INTEGERS = {"n_patients": (1, 1000), "n_sections": (1, 100), "n_spots": (10, 5000), "seed": (0, 2**63 - 1)}
_NUMBERS = {
    "signal": (0, 5),
    "dropout": (0, 0.95),
    "depth": (10, 1e6),
    "batch": (0, 2),
    "confounding": (0, 1),
    "mpp": (0.25, 2),
}


@dataclass(frozen=True, kw_only=True)
class CohortParameters:
    """Holds the arguments of :func:`img2gene.datasets.synthetic_cohort` and checks all of them at once."""

    n_patients: int
    n_sections: int
    n_spots: int
    n_genes: int
    seed: int
    signal: float
    dropout: float
    depth: float
    batch: float
    confounding: float
    confounded_patients: Sequence[str] | None
    mpp: float

    def __post_init__(self) -> None:
        limits = {**_INTEGERS, "n_genes": (10, len(SYMBOLS))}
        problems = [_integer_problem(name, getattr(self, name), *limits[name]) for name in limits]
        problems += [_number_problem(name, getattr(self, name), *_NUMBERS[name]) for name in _NUMBERS]
        # Without a usable number of patients their names cannot be checked.
        known = None if problems[0] else self.patients
        problems.append(_patient_problem(self.confounded_patients, known))
        raise_problems([problem for problem in problems if problem])

    @property
    def patients(self) -> list[str]:
        """Names of the patients, ``P1`` to ``P<n_patients>``."""
        return [f"P{i + 1}" for i in range(self.n_patients)]

    @property
    def confounded(self) -> list[str]:
        """Patients in which the stain drives expression. By default all but the last."""
        return (
            self.patients[:-1] if self.confounded_patients is None else [str(name) for name in self.confounded_patients]
        )


def _integer_problem(name: str, value: object, low: int, high: int) -> str:
    # Python counts True and False as integers.
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and low <= value <= high:
        return ""
    return f"{name}={value!r}: expected a whole number from {low} to {high}."


def _number_problem(name: str, value: object, low: float, high: float) -> str:
    if (
        isinstance(value, int | float | np.integer | np.floating)
        and not isinstance(value, bool)
        and low <= value <= high
    ):
        return ""
    return f"{name}={value!r}: expected a number from {low:g} to {high:g}."


def _patient_problem(names: object, patients: list[str] | None) -> str:
    if names is None:
        return ""
    if isinstance(names, str) or not isinstance(names, Iterable):
        return f"confounded_patients={names!r}: expected a list of names, such as ['P1']."
    unknown = [] if patients is None else [name for name in names if name not in patients]
    return (
        f"confounded_patients: no patient {listing(unknown)} (available: {listing(patients or [])})." if unknown else ""
    )
