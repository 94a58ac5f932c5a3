"""Divide spots into the folds of a cross-validation, and record whether the scores hold for new patients."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError, LeakageError, listing
from img2gene._study.splits import named_groups
from img2gene._study.study import Study
from img2gene.models.uncertainty.inner_folds import deal
from img2gene.tl._cross_validation.result import BETWEEN, UNKNOWN, WITHIN

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OuterFolds:
    """Groups that are held out together, fold by fold.

    Attributes
    ----------
    groups
        Column whose values are held out; ``"section"`` if the study has one patient only.
    names
        str (n_obs,): the group of each spot.
    held_out
        Name of each fold, and the groups that it holds out.
    scope
        Whether the scores are between patients, within patients, or unknown.
    """

    groups: str
    names: np.ndarray
    held_out: dict[str, list[str]]
    scope: str

    @classmethod
    def divide(
        cls,
        study: Study,
        groups: str,
        *,
        n_folds: int | None,
        test_on: Iterable[str] | None,
        seed: int,
        allow_leakage: bool,
        uncounted: list[str],
    ) -> OuterFolds:
        """Leave out each group, or deal the groups into ``n_folds``.

        Raises an error if nothing can be held out, or if patients would leak.
        ``uncounted`` groups have no counts and are not in the table; messages name them.
        """
        names = study.groups(groups)
        others = f"; {groups} without counts: {listing(uncounted)}" if uncounted else ""
        # A single name is wrapped, because iterating over "P1" would give "P" and "1".
        named = None if test_on is None else [test_on] if isinstance(test_on, str) else [str(name) for name in test_on]
        # The study holds measured spots only, so `named_groups` would call these groups unknown.
        blank = [name for name in named or [] if name in uncounted]
        if blank:
            raise Img2GeneError(
                f"test_on: no spot of {groups} {listing(blank)} has a count, so there is nothing to score against (available: "
                f"{listing(np.unique(names))})."
            )
        single = groups == _schema.PATIENT and len(np.unique(names)) == 1
        if single:
            # An estimate between sections of the only patient is better than none, as long as it says what it is.
            logger.warning(
                "one patient only (%s%s): sections are left out instead, a within-patient estimate", names[0], others
            )
            groups, names = _schema.SECTION, study.sections
        known = np.unique(names).tolist()
        if len(known) < 2:
            raise Img2GeneError(
                f"obs[{groups!r}] has one value only ({listing(known)}{others}), so nothing can be held out. Join more sections with "
                "`img2gene.io.concat_sections`."
            )
        tested = known if named is None else named_groups(named, names, "test_on", groups)
        # The scope is not final yet, because it depends on patients that are on both sides of these folds.
        folds = cls(groups, names, _dealt(tested, n_folds, seed), BETWEEN)
        shared = {name: study.shared_patients(~rows, rows) for name, rows in folds.rows().items()}
        leaked = {name: patients for name, patients in shared.items() if patients}
        if leaked and not (single or allow_leakage):
            patients = sorted({patient for names in leaked.values() for patient in names})
            raise LeakageError(
                f"Patients {listing(patients)} are on both sides of folds by {groups}. Sections of one patient are not "
                'independent: hold out whole patients (`groups="patient"`), or pass `allow_leakage=True`, which marks the result '
                "as a within-patient estimate."
            )
        # Without recorded patients nothing shows a leak, so such folds are not called honest.
        scope = UNKNOWN if study.patients is None else WITHIN if leaked else BETWEEN
        return cls(groups, names, folds.held_out, scope)

    def rows(self) -> dict[str, np.ndarray]:
        """Mask (n_obs,) of the spots that each fold holds out."""
        return {name: np.isin(self.names, groups) for name, groups in self.held_out.items()}

    def divides_sections(self, study: Study) -> bool:
        """Whether spots of one section are on both sides of a fold."""
        return any(set(study.section_names(rows)) & set(study.section_names(~rows)) for rows in self.rows().values())


def _dealt(groups: list[str], n_folds: int | None, seed: int) -> dict[str, list[str]]:
    if n_folds is None:
        return {name: [name] for name in groups}
    if not 2 <= n_folds <= len(groups):
        raise Img2GeneError(f"n_folds={n_folds}: there are {len(groups)} groups to deal, {listing(groups)}.")
    parts = deal(groups, n_folds, seed)
    return {f"fold{number}": sorted(part.tolist()) for number, part in enumerate(parts, start=1)}
