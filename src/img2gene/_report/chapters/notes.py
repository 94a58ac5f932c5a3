"""The chapters on warnings, and on settings and versions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema, metrics
from img2gene._leaks.find import find_leaks
from img2gene._report.agreement import disagreements
from img2gene._report.blocks import Chapter, Details, Missing, Table, Text, names
from img2gene._report.chapters.ood import ood_shares
from img2gene._report.sources import ReportedStudy, readable
from img2gene._report.subject import Subject
from img2gene._versions import versions

if TYPE_CHECKING:
    from img2gene.tl import CrossValidation

# With 4 units the t quantile alone makes intervals 1.6 times as wide as with many units.
_FAR_SHARE, _FEW_UNITS, _MAX_NAMES = 0.2, 5, 12


def warnings_chapter(texts: list[str]) -> Chapter:
    """List all warnings."""
    blocks = [Text(text, "warning") for text in texts] or [Text("Nothing was noticed.")]
    return Chapter("warnings", "Warnings", blocks)


def warnings_of(subject: Subject) -> list[str]:
    """Collect leaks, smoothing, few patients, unbeaten baselines, and sections far from the training data."""
    texts = [] if subject.result is None else _score_warnings(subject, subject.result)
    if subject.study is not None:
        texts += _study_warnings(subject.study)
        texts += [] if subject.cv is None else disagreements(subject.study, subject.cv)
    if subject.unlike:
        text = (
            f"The cross-validation used other data: in {names(sorted(subject.unlike))} its measured expression differs "
        )
        texts.append(f"{text}from the study at spots with the same names. Its maps are not drawn on that tissue.")
    return list(dict.fromkeys(texts + _far_sections(subject)))


def _score_warnings(subject: Subject, result: CrossValidation) -> list[str]:
    texts = [*([] if result.scope == "between patients" else [result.notice]), *result.warnings]
    leaked = result.scores.loc[result.scores["leakage"].fillna(False).astype(bool), "section"].unique()
    if len(leaked):
        texts.append(f"Leakage: models were trained on patients of the scored sections {names(list(leaked))}.")
    n = result.scores[result.unit].nunique()
    if n < _FEW_UNITS:
        few = "Intervals over so few are wide." if n > 1 else "There is no interval."
        texts.append(f"Scores rest on {n} {result.unit}{'s' if n > 1 else ''}. {few}")
    if subject.reference not in (None, "permutation null") and subject.better(subject.metric):
        gains = result.gains(subject.label, subject.reference, metric=subject.metric).to_numpy()
        if len(gains) and not metrics.mean_interval(gains)[1] > 0:
            text = (
                f"“{subject.label}” is not shown to be better than “{subject.reference}”, which uses the same features."
            )
            texts.append(text)
    return texts + _undefined(result.scores[result.scores["model"] == subject.label])


def _undefined(scores: pd.DataFrame) -> list[str]:
    """Count undefined correlations of a model, by their cause."""
    undefined = scores["pcc"].isna()
    n = int(undefined.sum())
    if not n:
        return []
    why = "because the gene or its prediction is constant there"
    if "nrmse" in scores:
        # A gene that is constant has no SD, so its NRMSE is undefined, too.
        constant = int((undefined & scores["nrmse"].isna()).sum())
        causes = {
            "because the gene is constant there": constant,
            "because its prediction is constant there": n - constant,
        }
        why = " or ".join(f"{text} ({k:,})" if 0 < k < n else text for text, k in causes.items() if k)
    text = f"{n:,} of {len(scores):,} gene × section pairs have no correlation, {why}."
    return [f"{text} Means leave these pairs out; they do not count as 0."]


def _study_warnings(study: ReportedStudy) -> list[str]:
    texts, leaked = [], [] if study.model is None else study.model.report.get("leakage", [])
    if leaked is None:
        texts.append("Patients are not recorded, so it cannot be checked that training and held-out patients differ.")
    elif leaked:
        text = f"The stored model was trained on other sections of held-out patients: {names(leaked)}."
        texts.append(f"{text} Its scores on these patients are optimistic.")
    empty = int((~study.measured & ~np.isin(study.sections, study.unmeasured)).sum())
    if empty > 0:
        texts.append(f"{empty:,} spots of measured sections have no count; they are not scored.")
    return texts + _leaks(study)


def _leaks(study: ReportedStudy) -> list[str]:
    """Search the data for leaks. The panel was judged when the model was trained."""
    model = study.model
    if model is None or len(study.roles) - len(study.unmeasured) < 2:
        return []
    groups = _schema.PATIENT if _schema.PATIENT in study.table.obs else _schema.SECTION
    options: dict[str, Any] = {"layer": model.labels["layer"], "seed": model.report.get("seed", 0)}
    leaks, why = readable(find_leaks, study, groups, uses_panel=False, **options)
    return [f"Leaks were not searched for: {why}"] if why else [leak.message for leak in leaks]


def _far_sections(subject: Subject) -> list[str]:
    frame = ood_shares(subject)
    far = pd.DataFrame() if frame is None else frame[frame["share beyond"] > _FAR_SHARE]
    if not len(far):
        return []
    shares = [f"{name} ({share:.0%})" for name, share in zip(far["section"], far["share beyond"], strict=True)]
    text = (
        f"Sections with many spots beyond the {subject.threshold:g}th percentile of distances from the training data: "
    )
    return [
        f"{text}{names(shares, _MAX_NAMES)}. Stain, scanner or tissue may differ, so other scores do not apply to them."
    ]


def settings_chapter(subject: Subject, options: dict[str, Any]) -> Chapter:
    """List versions, seeds and all parameters."""
    model = None if subject.study is None else subject.study.model
    rows = {**versions(), "seed of this report": subject.seed}
    if model is not None:
        rows["model: trained with img2gene"] = model.report.get("img2gene", "unknown")
        rows["model: seed"] = model.report.get("seed", "unknown")
    if subject.cv is not None:
        rows["cross-validation: seed"] = subject.cv.settings.get("seed", "unknown")
    cells = [[name, str(value)] for name, value in rows.items()]
    blocks: list[Any] = [Table("Versions and seeds of this report", ["what", "value"], cells)]
    if subject.cv is not None:
        blocks.append(Details("Parameters of the cross-validation", _json(subject.cv.settings)))
    elif model is None:
        blocks.append(Missing("parameters of a model or a cross-validation", "img2gene.tl.fit(sdata)"))
    if model is not None:
        blocks.append(Details("The stored model", model.describe()))
    blocks.append(Details("Parameters of this report", _json(options)))
    return Chapter("settings", "Settings and versions", blocks)


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, default=str, ensure_ascii=False)
