"""The chapters on the data, and on what was trained on and held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from img2gene._report.blocks import WITH_STUDY, Chapter, Missing, Row, Table, Text, names, table
from img2gene._report.sources import ReportedStudy
from img2gene._report.subject import Subject

_MAX_SECTIONS, _MAX_FOLDS, _MAX_ABSENT = 60, 60, 12
_FOLD_TITLES = {
    "fold": "fold",
    "sections": "held-out sections",
    "patients": "held-out patients",
    "n_test_spots": "held-out spots",
    "n_train_spots": "training spots",
    "n_train_sections": "training sections",
    "n_train_groups": "training groups",
    "n_genes": "genes",
    "absent": "genes that do not vary in training",
}


def data_chapter(subject: Subject) -> Chapter:
    """Describe sections, patients, spots, counts, encoder and fields of view."""
    study = subject.study
    sections = _scored_sections(subject) if study is None else _sections(study)
    blocks: list[Any] = [Row([sections, _embedding(_identity(subject), study)])]
    if study is None:
        blocks.append(Missing("counts per spot and the tissue images", WITH_STUDY))
    elif study.record("patches") is None:
        blocks.append(Missing("size and fields of view of the patches", "img2gene.pp.extract_patches(sdata)"))
    return Chapter("data", "Data", blocks)


def counted(subject: Subject) -> str:
    """Count sections, patients, spots and genes."""
    study, result = subject.study, subject.result
    if study is not None:
        patients = {name for name in study.section_patients.values() if name is not None}
        text = f"{len(study.roles)} section{'s' if len(study.roles) > 1 else ''} ({_patients(len(patients))}) with "
        text += f"{study.n_obs:,} spots and {study.table.n_vars:,} genes."
        return f"{text} {len(study.unmeasured)} with an image only." if study.unmeasured else text
    scores: pd.DataFrame = result.scores  # type: ignore[union-attr]
    sections = scores.drop_duplicates("section")
    text = f"{len(sections)} scored sections ({_patients(sections['patient'].dropna().nunique())}) with "
    return f"{text}{int(sections['n_spots'].sum()):,} spots; {scores['gene'].nunique():,} genes."


def _patients(n: int) -> str:
    return f"{n} patient{'s' if n > 1 else ''}" if n else "patients not recorded"


def _sections(study: ReportedStudy) -> Table:
    rows = []
    for name, role in study.roles.items():
        counts = study.library[study.section_rows(name)]
        facts = {"section": name, "patient": study.section_patients[name], "role": role, "spots": len(counts)}
        facts["without counts"] = int((counts == 0).sum())
        for title, share in (("median counts", 50), ("5%", 5), ("95%", 95)):
            facts[title] = round(np.percentile(counts[counts > 0], share)) if (counts > 0).any() else pd.NA
        rows.append(facts)
    # Columns are nullable, because sections without counts have no percentiles.
    frame = pd.DataFrame(rows).astype(dict.fromkeys(("median counts", "5%", "95%"), "Int64"))
    note = "Counts per spot over the full transcriptome: median, 5th and 95th percentile of spots with any count."
    return table(frame, "Sections", limit=_MAX_SECTIONS, what="sections", note=note)


def _scored_sections(subject: Subject) -> Table:
    result: Any = subject.result
    frame = result.scores.drop_duplicates("section")[["section", "patient", "n_spots"]]
    return table(frame.rename(columns={"n_spots": "spots"}), "Scored sections", limit=_MAX_SECTIONS, what="sections")


def _identity(subject: Subject) -> dict[str, Any] | None:
    """Look up how the embedding was made, as the model, the cross-validation or the study recorded it."""
    if subject.study is not None and subject.study.model is not None:
        return subject.study.model.inputs
    if subject.cv is not None:
        encoder = subject.cv.settings.get("encoder")
        return encoder if isinstance(encoder, dict) else None
    encoders = {} if subject.study is None else subject.study.record("encoder", default={})
    return next(iter(encoders.values()), None)


def _embedding(identity: dict[str, Any] | None, study: ReportedStudy | None) -> Table | Missing:
    if identity is None:
        return Missing("the encoder", 'img2gene.pp.embed_patches(sdata, "default")')
    facts = {name: value for name, value in identity.items() if value is not None}
    patches = None if study is None else study.record("patches")
    if patches is not None:
        facts["fields of view in the study (µm)"] = patches.get("patch_um")
    rows = [[name, names(v) if isinstance(v, (list, tuple)) else str(v)] for name, v in facts.items()]
    return Table("Encoder and fields of view", ["what", "value"], rows, folded=len(rows) > 12)


def splits_chapter(subject: Subject) -> Chapter:
    """Describe what was held out and what was trained on."""
    blocks: list[Any] = []
    if subject.cv is not None:
        blocks += [Text(subject.cv.notice, "lead" if subject.cv.scope == "between patients" else "warning")]
        blocks += [_folds(subject.cv.folds)]
    if subject.study is not None:
        blocks += _trained(subject.study)
    return Chapter("splits", "Training and held-out data", blocks)


def _folds(folds: pd.DataFrame) -> Table:
    shown = folds[[name for name in _FOLD_TITLES if name in folds]].copy()
    for name in ("sections", "patients", "absent"):
        if name in shown:
            # A panel of thousands of genes can be absent from one fold.
            shown[name] = [None if text is None else names(str(text).split(", "), _MAX_ABSENT) for text in shown[name]]
    if "absent" in shown and not (shown["absent"] != "").any():
        shown = shown.drop(columns="absent")
    return table(shown.rename(columns=_FOLD_TITLES), "Folds of the cross-validation", limit=_MAX_FOLDS, what="folds")


def _trained(study: ReportedStudy) -> list[Any]:
    if study.model is None:
        call = 'img2gene.tl.fit(sdata, validate_on=["P4"]); img2gene.tl.predict(sdata)'
        return [Missing("a trained model in the study", call)]
    report, rows = study.model.report, []
    for role in dict.fromkeys(study.roles.values()):
        sections = study.with_role(role)
        patients = list(dict.fromkeys(filter(None, (study.section_patients[name] for name in sections))))
        spots = int(np.isin(study.sections, sections).sum())
        rows.append([role, names(sections), names(patients) if patients else "not recorded", f"{spots:,}"])
    trained = report.get("sections", [])
    text = f"The stored model “{study.model.name}” was trained on {report.get('n_spots', 0):,} spots of {len(trained)} "
    text += f"sections ({names(trained)})"
    elsewhere = [name for name in trained if name not in study.roles]
    text += f"; {len(elsewhere)} of these sections are not in this study." if elsewhere else "."
    columns = ["role", "sections", "patients", "spots"]
    return [Text(text), Table("The stored model and the sections of this study", columns, rows)]
