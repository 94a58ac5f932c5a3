"""What all chapters read: the study, the scores on held-out sections, and the predictions to draw."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene._errors import MissingKeyError, near
from img2gene._report.agreement import check_same_study, unlike_sections
from img2gene._report.sources import HELD_OUT, NEW, TRAINED, ReportedStudy, readable
from img2gene.metrics.catalog import direction
from img2gene.pl._predictions import OOD_THRESHOLD, Predictions

if TYPE_CHECKING:
    from img2gene.tl import CrossValidation

# The first that was run is compared with, from the strongest to the weakest.
_REFERENCES = ("ridge", "ridge-plain", "ridge, not centred", "feature k-NN", "permutation null")
FOLD = "held out"


@dataclass(frozen=True)
class Subject:
    """What a report describes.

    Attributes
    ----------
    study, cv
        A study, a cross-validation, or both.
    held_out
        Scores of the stored model on sections that it was not trained on, as a cross-validation of one fold.
    no_score
        Why ``held_out`` is None.
    label
        Model of :attr:`result` whose genes, maps and calibration are shown.
    metric
        Score that models and genes are compared by.
    seed
        Seed of permutations and samples.
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
        """Score the stored model; ``label`` and ``metric`` must be in the result."""
        if study is not None and cv is not None:
            check_same_study(study, cv)
        held_out, why = (None, "") if study is None else _evaluate(study, seed)
        result = cv if cv is not None else held_out
        if result is None:
            return cls(study, cv, held_out, why, "", metric, seed)
        if label is not None and label not in result.models:
            raise MissingKeyError(f"No model labelled {label!r} in the scores ({near(label, result.models)}).")
        if metric not in result.by_unit():
            scores = [name for name in result.by_unit() if name not in ("model", result.unit)]
            raise MissingKeyError(f"metric={metric!r} is not a score of the result ({near(metric, scores)}).")
        # Maps and calibration need predictions, so a model that kept them is shown by default.
        first = next((name for name in result.models if name in result.predictions), result.models[0])
        return cls(study, cv, held_out, why, label or first, metric, seed)

    @property
    def result(self) -> CrossValidation | None:
        """The cross-validation if there is one, else the scores of the stored model."""
        return self.cv if self.cv is not None else self.held_out

    @property
    def marks(self) -> list[str]:
        """Reasons why the scores are no honest estimates for new patients."""
        return [] if self.result is None else self.result.marks

    @property
    def reference(self) -> str | None:
        """The strongest baseline that was run, other than the model itself."""
        models = [] if self.result is None else self.result.models
        return next((name for name in _REFERENCES if name in models and name != self.label), None)

    @property
    def gene_metric(self) -> str:
        """Score that genes are compared by: the metric if it has a value for each gene, else the PCC."""
        return self.metric if self.result is not None and self.metric in self.result.scores else "pcc"

    def better(self, metric: str) -> str | None:
        """Say what a better score is; None if that is unknown, such as for coverage without a recorded level."""
        level = None if self.result is None else self.result.settings.get("level")
        if metric == "coverage" and level is not None:
            return f"nearer to {level:.0%}"
        best = direction(metric)
        return {"zero": "nearer to 0", "one": "nearer to 1"}.get(str(best), best)

    @property
    def gene_group(self) -> str:
        """The group that maps and matrices of genes come from: HVG, else the first one."""
        groups = [] if self.result is None else self.result.groups
        return "HVG" if "HVG" in groups else next(iter(groups[1:]), "all")

    @property
    def keeps_predictions(self) -> bool:
        """Whether the cross-validation kept the model's held-out predictions."""
        return self.cv is not None and self.label in self.cv.predictions

    @cached_property
    def predictions(self) -> Predictions | None:
        """Held-out predictions of the model: kept ones of the cross-validation, else the stored model's."""
        if self.cv is not None and self.keeps_predictions:
            return Predictions.of_kept(self.cv.predictions[self.label], self.level, self.threshold)
        return None if self.study is None or self.held_out is None else self.study.predictions

    @cached_property
    def sections(self) -> list[str]:
        """Held-out sections with predictions."""
        if self.predictions is None:
            return []
        if self.keeps_predictions or self.held_out is None:
            return self.predictions.section_names
        return list(dict.fromkeys(self.held_out.scores["section"]))

    @cached_property
    def distances(self) -> Predictions | None:
        """Predictions with distances from the training data: all of the study's, else the kept ones."""
        for source in (None if self.study is None else self.study.predictions, self.predictions):
            if source is not None and source.ood is not None:
                return source
        return None

    @cached_property
    def unlike(self) -> frozenset[str]:
        """Sections in which the cross-validation kept other measured expression than the study has."""
        if self.study is None or self.cv is None or self.predictions is None or not self.keeps_predictions:
            return frozenset()
        return unlike_sections(self.study, self.cv, self.predictions)

    @property
    def predictions_name(self) -> str:
        """What the shown predictions are called in captions."""
        if self.keeps_predictions or self.cv is None:
            return f"held-out predictions of “{self.label}”"
        return "predictions of the stored model on sections that it was not trained on (the cross-validation kept none)"

    @property
    def predictions_marks(self) -> list[str]:
        """Marks of everything that is drawn from :attr:`predictions`."""
        return self.marks if self.keeps_predictions or self.held_out is None else self.held_out.marks

    @property
    def level(self) -> float:
        """Nominal coverage of the intervals; NaN if it is not recorded."""
        level = np.nan if self.study is None else self.study.predictions.level
        return float(self.cv.settings.get("level", level)) if self.cv is not None and self.keeps_predictions else level

    @property
    def threshold(self) -> float:
        """Percentile beyond which a spot is out-of-distribution."""
        return OOD_THRESHOLD if self.study is None else self.study.predictions.threshold


def _evaluate(study: ReportedStudy, seed: int) -> tuple[CrossValidation | None, str]:
    """Score the model on measured sections that it was not trained on, or say why that is impossible."""
    if study.model is None:
        return None, f"No model is stored under {study.key!r} (`model=` names another), so nothing can be scored."
    if not study.has_predictions:
        return None, f"There are no predictions in layers[{study.key!r}]."
    sections = study.with_role(HELD_OUT, NEW)
    if sections:
        return readable(_scores, study, sections, seed)
    if set(study.with_role(TRAINED)) - set(study.unmeasured):
        return None, "The model was trained on every measured section, so no honest score is possible."
    return None, "No section was measured, so there is nothing to score against."


def _scores(study: ReportedStudy, sections: list[str], seed: int) -> CrossValidation:
    from img2gene.tl import CrossValidation, evaluate
    from img2gene.tl._cross_validation.result import BETWEEN, UNKNOWN, WITHIN

    model: Any = study.model
    options: dict[str, Any] = {"key": study.key, "table_key": study.table_key, "seed": seed, "inplace": False}
    # Other sections of training patients are scored, and marked as leakage.
    scores = evaluate(study.sdata, model, sections=sections, allow_leakage=True, **options)
    leaked = scores["leakage"]
    scope = WITHIN if leaked.fillna(False).any() else UNKNOWN if leaked.isna().any() else BETWEEN
    patients = dict.fromkeys(filter(None, (study.section_patients[name] for name in sections)))
    fold = {
        "fold": FOLD,
        "sections": ", ".join(sections),
        "patients": ", ".join(patients) or None,
        "n_train_spots": model.report.get("n_spots"),
        "n_test_spots": int(np.isin(study.sections, sections).sum()),
        "n_train_sections": len(model.report.get("sections", [])),
        "n_genes": len(model.genes),
    }
    return CrossValidation(scores.assign(fold=FOLD, scope=scope), pd.DataFrame(), pd.DataFrame([fold]), scope)
