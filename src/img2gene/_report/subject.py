"""Everything the chapters draw from: sources, scores on held-out sections, and what keeps those from being honest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import MissingKeyError, near
from img2gene._report.agreement import check_same_study, unlike_sections
from img2gene._report.sources import HELD_OUT, NEW, TRAINED, ReportedStudy, Values, readable
from img2gene.metrics.catalog import direction

if TYPE_CHECKING:
    from img2gene.tl import CrossValidation

_REFERENCES = ("ridge", "ridge, not centred", "feature k-NN", "permutation null")
FOLD = "held out"
THRESHOLD = 99.0


@dataclass(frozen=True)
class Subject:
    """What is reported on.

    Attributes
    ----------
    study, cv
        One of them or both.
    held_out
        Scores of the study's own model on sections that it was not trained on, as a cross-validation of one fold.
    no_score
        Why there is none.
    label
        The model of :attr:`result` whose genes, maps and calibration are shown.
    metric
        Score that models and genes are compared by.
    seed
        Of permutations and samples.
    """

    study: ReportedStudy | None
    cv: CrossValidation | None
    held_out: CrossValidation | None
    no_score: str
    label: str
    metric: str
    seed: int

    @classmethod
    def of(
        cls, study: ReportedStudy | None, cv: CrossValidation | None, label: str | None, metric: str, seed: int
    ) -> Subject:
        """Score what can be scored; ``label`` and ``metric`` have to be in the result."""
        if study is not None and cv is not None:
            check_same_study(study, cv)
        held_out, why = (None, "") if study is None else _evaluate(study, seed)
        result = cv if cv is not None else held_out
        if result is None:
            return cls(study, cv, held_out, why, "", metric, seed)
        if label is not None and label not in result.models:
            raise MissingKeyError(f"No model labelled {label!r} in the scores ({near(label, result.models)}).")
        if metric not in result.by_unit():
            known = [name for name in result.by_unit() if name not in ("model", result.unit)]
            raise MissingKeyError(f"metric={metric!r} is not a score of the result ({near(metric, known)}).")
        first = next((name for name in result.models if name in result.predictions), result.models[0])
        return cls(study, cv, held_out, why, label or first, metric, seed)

    @property
    def result(self) -> CrossValidation | None:
        """The cross-validation if there is one, else the scores of the study's own model."""
        return self.cv if self.cv is not None else self.held_out

    @property
    def reference(self) -> str | None:
        """The strongest kind of baseline that was run, other than the model itself."""
        known = [] if self.result is None else self.result.models
        return next((name for name in _REFERENCES if name in known and name != self.label), None)

    @property
    def keeps_values(self) -> bool:
        """Whether the cross-validation kept the model's held-out predictions."""
        return self.cv is not None and self.label in self.cv.predictions

    @cached_property
    def values(self) -> Values | None:
        """Held-out predictions of the model: those that the cross-validation kept, else those of the study's model."""
        if self.cv is not None and self.keeps_values:
            return Values.of_predictions(self.cv.predictions[self.label])
        if self.study is None or self.held_out is None:
            return None
        return Values.of_study(self.study, list(dict.fromkeys(self.held_out.scores["section"])))

    @cached_property
    def unlike(self) -> frozenset[str]:
        """Sections whose kept predictions stand beside other labels than those of the study."""
        if self.study is None or self.cv is None or self.values is None or not self.keeps_values:
            return frozenset()
        return unlike_sections(self.study, self.cv, self.values)

    @property
    def values_of(self) -> str:
        """Which predictions these are."""
        if self.keeps_values or self.cv is None:
            return f"held-out predictions of “{self.label}”"
        return (
            "the stored model on the sections that it was not trained on, as the cross-validation kept no predictions"
        )

    @property
    def values_marks(self) -> list[str]:
        """Marks of what is made of :attr:`values`."""
        return marks(self.cv if self.keeps_values else self.held_out)

    @property
    def gene_group(self) -> str:
        """The group that maps and matrices of genes come from: HVG, else the first there is."""
        groups = [] if self.result is None else self.result.groups
        return "HVG" if "HVG" in groups else next(iter(groups[1:]), "all")


def marks(result: CrossValidation | None) -> list[str]:
    """What keeps the scores of a result, if there is one, from being honest estimates for new patients."""
    return [] if result is None else result.marks


def _evaluate(study: ReportedStudy, seed: int) -> tuple[CrossValidation | None, str]:
    """Scores on the sections with labels that the model was not trained on, or why there are none."""
    if study.model is None:
        return None, f"No model is stored under {study.key!r} (argument model names another), so nothing can be scored."
    if not study.has_predictions:
        return None, f"There are no predictions in layers[{study.key!r}]."
    fresh = study.with_role(HELD_OUT, NEW)
    if not fresh:
        trained = set(study.with_role(TRAINED)) - set(study.unmeasured)
        return None, (
            "The model was trained on every section that was measured, so no honest score is possible."
            if trained
            else "No section was measured, so there is nothing to score against."
        )
    found, why = readable(_scores, study, fresh, seed)
    return found, why


def _scores(study: ReportedStudy, fresh: list[str], seed: int) -> CrossValidation:
    from img2gene.tl import CrossValidation, evaluate
    from img2gene.tl._cross_validation.result import BETWEEN, UNKNOWN, WITHIN

    scores = evaluate(
        study.sdata,
        study.model,
        sections=fresh,
        key=study.key,
        table_key=study.table_key,
        seed=seed,
        # Sections that were trained on are not among them; those of the same patient are scored and marked.
        allow_leakage=True,
        inplace=False,
    )
    leaked = scores["leakage"]
    scope = WITHIN if leaked.fillna(False).any() else UNKNOWN if leaked.isna().any() else BETWEEN
    columns = ["model", "fold", "section", "patient", "genes", "structure", "structure_rmse", "n_genes"]
    return CrossValidation(
        scores.assign(fold=FOLD, scope=scope), pd.DataFrame(columns=columns), _fold(study, fresh), scope
    )


def _fold(study: ReportedStudy, fresh: list[str]) -> pd.DataFrame:
    model: Any = study.model
    patients = list(dict.fromkeys(filter(None, (study.section_patients[name] for name in fresh))))
    facts: dict[str, Any] = {"fold": FOLD, "sections": ", ".join(fresh), "patients": ", ".join(patients) or None}
    facts |= {"n_train_spots": model.report.get("n_spots"), "n_test_spots": int(np.isin(study.sections, fresh).sum())}
    facts |= {"n_train_sections": len(model.report.get("sections", [])), "n_genes": len(model.genes)}
    return pd.DataFrame([facts])


def better_is(result: CrossValidation, metric: str) -> str | None:
    """What a better score is, in words; None where that is not known, as of coverage without its level."""
    if metric == "coverage":
        level = result.settings.get("level")
        return None if level is None else f"nearer to {level:.0%}"
    way = direction(metric)
    return "nearer to 0" if way == "zero" else way


def uncertainty_facts(subject: Subject) -> tuple[float, float]:
    """Nominal level of the intervals, and percentile beyond which a spot is unlike the training data."""
    study = subject.study
    found = {} if study is None else _schema.read_json(study.table, "uncertainty", default={}).get(study.key, {})
    calibration = None if study is None else getattr(study.model, "calibration", None)
    level = found.get("level", getattr(calibration, "level", np.nan))
    if subject.keeps_values:
        level = subject.cv.settings.get("level", level)  # type: ignore[union-attr]
    return float(level), float(found.get("ood_threshold", getattr(calibration, "threshold", THRESHOLD)))
