"""Arguments of the synthetic cohort, checked all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from img2gene._checks import Arguments, shown
from img2gene._errors import listing
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
        check = Arguments()
        limits = {**_INTEGERS, "n_genes": (10, len(SYMBOLS))}
        values = {name: check.whole(name, getattr(self, name), *limits[name]) for name in limits}
        values |= {name: check.number(name, getattr(self, name), *_NUMBERS[name]) for name in _NUMBERS}
        least, most = limits["n_patients"]
        known = isinstance(values["n_patients"], int) and least <= values["n_patients"] <= most
        values["confounded_patients"] = self._patients(check, known)
        check.raise_all()
        for name, value in values.items():
            # numpy's scalars become numbers of Python, which the record of the arguments can hold.
            object.__setattr__(self, name, value)

    def _patients(self, check: Arguments, known: bool) -> list[str] | None:
        names = self.confounded_patients
        if isinstance(names, str):
            check.messages.append(f"confounded_patients={shown(names)}: expected a list of names, such as ['P1'].")
            return None
        names = check.names("confounded_patients", names, optional=True, empty=True)
        # Without a usable number of patients their names cannot be checked.
        if known and isinstance(names, list) and all(isinstance(name, str) for name in names):
            unknown = [name for name in names if name not in self.patients]
            if unknown:
                available = listing(self.patients)
                check.messages.append(f"confounded_patients: no patient {listing(unknown)} (available: {available}).")
        return names

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
