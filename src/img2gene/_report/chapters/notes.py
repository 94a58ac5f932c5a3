"""Chapters on what to be careful about, and on how all of it was made."""

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
from img2gene._report.subject import Subject, better_is, uncertainty_facts
from img2gene._versions import versions

if TYPE_CHECKING:
    from img2gene.tl import CrossValidation

_FAR_SHARE, _FEW_UNITS, _MOST_FAR = 0.2, 5, 12


def warnings_chapter(found: list[str]) -> Chapter:
    """Everything that was noticed."""
    blocks = [Text(text, "warning") for text in found] or [Text("Nothing was noticed.")]
    return Chapter("warnings", "Warnings", blocks)


def warnings_of(subject: Subject) -> list[str]:
    """Leaks, smoothing, few patients, models that do not beat a baseline, sections far from the training data."""
    found: list[str] = []
    if subject.result is not None:
        found += _of_scores(subject, subject.result)
    if subject.study is not None:
        found += _of_study(subject.study)
        found += [] if subject.cv is None else disagreements(subject.study, subject.cv)
    if subject.unlike:
        text = f"The cross-validation is of other data: in {names(sorted(subject.unlike))} the labels that were kept differ from"
        found.append(f"{text} those of the study at spots of the same names, so its maps are not drawn on that tissue.")
    found += _far_sections(subject)
    return list(dict.fromkeys(found))


def _of_scores(subject: Subject, result: CrossValidation) -> list[str]:
    found = [] if result.scope == "between patients" else [result.notice]
    found += result.warnings
    leaked = result.scores.loc[result.scores["leakage"].fillna(False).astype(bool), "section"].unique()
    if len(leaked):
        found.append(f"Leakage: models were trained on patients of the scored sections {names(list(leaked))}.")
    n = result.scores[result.unit].nunique()
    if n < _FEW_UNITS:
        text = f"Scores rest on {n} {result.unit}{'s' if n > 1 else ''}"
        found.append(f"{text}: {'intervals over so few are wide.' if n > 1 else 'there is no interval.'}")
    if subject.reference not in (None, "permutation null"):
        better = result.gains(subject.label, subject.reference, metric=subject.metric).to_numpy()
        # Where it is not known what is better, nobody is shown to be.
        if len(better) and better_is(result, subject.metric) and not metrics.mean_interval(better)[1] > 0:
            found.append(
                f"“{subject.label}” is not shown to be better than “{subject.reference}” on the same features."
            )
    return found + _undefined(result.scores[result.scores["model"] == subject.label])


def _undefined(scores: pd.DataFrame) -> list[str]:
    """How many correlations a model lacks, and why."""
    lacking = scores["pcc"].isna()
    if not lacking.any():
        return []
    # Labels that are constant leave no ratio of errors to them, either.
    if "nrmse" not in scores:
        why = "as the gene or its prediction is constant there"
    else:
        constant = int((lacking & scores["nrmse"].isna()).sum())
        rest = int(lacking.sum()) - constant
        parts = {"as the gene is constant there": constant, "as its prediction is constant there": rest}
        why = " or ".join(f"{text} ({n:,})" if constant and rest else text for text, n in parts.items() if n)
    text = f"{int(lacking.sum()):,} of {len(scores):,} gene × section pairs have no correlation, {why}"
    return [f"{text}; they are left out of means, not counted as 0."]


def _of_study(study: ReportedStudy) -> list[str]:
    found = []
    model = study.model
    if model is not None and model.report.get("leakage"):
        text = f"The stored model was trained with patients on both sides: {names(model.report['leakage'])}"
        found.append(f"{text}; its scores on them are optimistic.")
    if model is not None and model.report.get("leakage", []) is None:
        found.append("Patients are not recorded, so whether the split is honest cannot be checked.")
    empty = int((~study.measured & ~np.isin(study.sections, study.unmeasured)).sum())
    if empty > 0:
        found.append(f"{empty:,} spots of measured sections have no count; they are not scored.")
    return found + _leaks(study)


def _leaks(study: ReportedStudy) -> list[str]:
    """What looks like a leak in the data themselves."""
    model, table = study.model, study.table
    if model is None or len(study.roles) - len(study.unmeasured) < 2:
        return []
    groups = _schema.PATIENT if _schema.PATIENT in table.obs else _schema.SECTION
    given = {"layer": model.labels["layer"], "seed": model.report.get("seed", 0)}
    # A panel was judged when the model was trained.
    found, why = readable(find_leaks, study, groups, uses_panel=False, **given)
    return [f"Leaks were not looked for: {why}"] if why else [leak.message for leak in found]


def _far_sections(subject: Subject) -> list[str]:
    frame = ood_shares(subject)
    if frame is None:
        return []
    far = frame[frame["share beyond"] > _FAR_SHARE]
    if not len(far):
        return []
    parts = [f"{name} ({share:.0%})" for name, share in zip(far["section"], far["share beyond"], strict=True)]
    text = f"Sections far from the training sections, with the share of spots beyond the {uncertainty_facts(subject)[1]:g}th "
    return [
        f"{text}percentile: {names(parts, _MOST_FAR)}. Another stain, scanner or tissue; scores elsewhere do not carry over."
    ]


def settings_chapter(subject: Subject, asked: dict[str, Any]) -> Chapter:
    """Versions, seed and all parameters."""
    rows = [list(found) for found in versions().items()]
    rows += [["seed of this report", str(subject.seed)]]
    model = None if subject.study is None else subject.study.model
    if model is not None:
        rows += [["model: trained with img2gene", str(model.report.get("img2gene", "unknown"))]]
        rows += [["model: seed", str(model.report.get("seed", "unknown"))]]
    if subject.cv is not None:
        rows += [["cross-validation: seed", str(subject.cv.settings.get("seed", "unknown"))]]
    blocks: list[Any] = [Table("Versions and seeds, where this report was made", ["what", "value"], rows)]
    if subject.cv is not None:
        blocks.append(Details("Parameters of the cross-validation", _json(subject.cv.settings)))
    elif model is None:
        blocks.append(Missing("parameters of a model or a cross-validation", "img2gene.tl.fit(sdata)"))
    if model is not None:
        blocks.append(Details("The stored model", model.describe()))
    blocks.append(Details("Parameters of this report", _json(asked)))
    return Chapter("settings", "Settings and versions", blocks)


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, default=str, ensure_ascii=False)
