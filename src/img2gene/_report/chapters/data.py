"""Chapters on what went in: the data, and what was trained on and held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._report.blocks import Chapter, Missing, Row, Table, Text, names, table
from img2gene._report.sources import ReportedStudy
from img2gene._report.subject import Subject

_MOST_SECTIONS, _MOST_FOLDS, _MOST_ABSENT = 60, 60, 12


def data_chapter(subject: Subject) -> Chapter:
    """Sections, patients, spots, counts, encoder and fields of view."""
    study = subject.study
    found = _scored_sections(subject) if study is None else _sections(study)
    blocks: list[Any] = [Row([found, _embedding(_identity(subject), study)])]
    if study is None:
        blocks.append(Missing("counts per spot and the tissue images", _WITH_STUDY))
    if study is not None and _schema.read_json(study.table, "patches") is None:
        blocks.append(Missing("size and fields of view of the patches", "img2gene.pp.extract_patches(sdata)"))
    return Chapter("data", "Data", blocks)


_WITH_STUDY = "img2gene.report(sdata, path, cv=result)"


def counted(subject: Subject) -> str:
    """How many sections, patients, spots and genes."""
    study = subject.study
    if study is None:
        result: Any = subject.result
        sections = result.scores.drop_duplicates("section")
        n = sections["patient"].dropna().nunique()
        people = f"{n} patients" if n else "patients not recorded"
        spots, genes = int(sections["n_spots"].sum()), result.scores["gene"].nunique()
        return f"{len(sections)} scored sections ({people}) with {spots:,} spots; {genes:,} genes."
    table, patients = study.table, [name for name in study.section_patients.values() if name is not None]
    people = f"{len(set(patients))} patients" if patients else "patients not recorded"
    text = f"{len(study.roles)} section{'s' if len(study.roles) > 1 else ''} ({people}) with {table.n_obs:,} spots and {table.n_vars:,} genes."
    images = study.unmeasured
    return f"{text} {len(images)} with an image only." if images else text


def _sections(study: ReportedStudy) -> Table:
    rows = []
    for name, role in study.roles.items():
        members = study.sections == name
        counts = study.library[members]
        measured = counts[counts > 0]
        facts: dict[str, Any] = {
            "section": name,
            "patient": study.section_patients[name],
            "role": role,
            "spots": int(members.sum()),
        }
        facts |= {"without counts": int((counts == 0).sum())}
        for title, share in (("median counts", 50), ("5%", 5), ("95%", 95)):
            facts[title] = float(np.percentile(measured, share).round()) if len(measured) else np.nan
        rows.append(facts)
    frame = pd.DataFrame(rows)
    counted = frame.columns[-3:]
    frame[counted] = frame[counted].round().astype("Int64")
    note = "Counts per spot over the full transcriptome: median, 5th and 95th percentile of spots with any."
    return table(frame, "Sections", limit=_MOST_SECTIONS, what="sections", note=note)


def _scored_sections(subject: Subject) -> Table:
    """What scores alone tell of the data."""
    result: Any = subject.result
    frame = result.scores.drop_duplicates("section")[["section", "patient", "n_spots"]]
    return table(frame.rename(columns={"n_spots": "spots"}), "Scored sections", limit=_MOST_SECTIONS, what="sections")


def _identity(subject: Subject) -> dict[str, Any] | None:
    """What made the embedding, as the model or the cross-validation recorded it."""
    if subject.study is not None and subject.study.model is not None:
        return subject.study.model.inputs
    if subject.cv is not None:
        found = subject.cv.settings.get("encoder")
        return found if isinstance(found, dict) else None
    known = {} if subject.study is None else _schema.read_json(subject.study.table, "encoder", default={})
    return next(iter(known.values()), None)


def _embedding(identity: dict[str, Any] | None, study: ReportedStudy | None) -> Table | Missing:
    if identity is None:
        return Missing("encoder", 'img2gene.pp.embed_patches(sdata, "default")')
    rows = [[str(name), _fact(value)] for name, value in identity.items() if value is not None]
    patches = None if study is None else _schema.read_json(study.table, "patches")
    if patches is not None:
        rows.append(["fields of view in the study (µm)", _fact(patches.get("patch_um"))])
    return Table("Encoder and fields of view", ["what", "value"], rows, folded=len(rows) > 12)


def _fact(value: Any) -> str:
    return names(value) if isinstance(value, (list, tuple)) else str(value)


def splits_chapter(subject: Subject) -> Chapter:
    """What was held out and what was trained on."""
    blocks: list[Any] = []
    if subject.cv is not None:
        blocks += [Text(subject.cv.notice, "lead" if subject.cv.scope == "between patients" else "warning")]
        blocks += [_folds(subject.cv.folds)]
    if subject.study is not None:
        blocks += _trained(subject.study)
    return Chapter("splits", "Training and held-out data", blocks)


def _folds(folds: pd.DataFrame) -> Table:
    titles = {
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
    shown = folds[[name for name in titles if name in folds]].copy()
    for name in ("sections", "patients", "absent"):
        if name in shown:
            shown[name] = [None if text is None else names(str(text).split(", "), _MOST_ABSENT) for text in shown[name]]
    shown = shown[[name for name in shown if name != "absent" or (shown[name] != "").any()]]
    return table(shown.rename(columns=titles), "Folds of the cross-validation", limit=_MOST_FOLDS, what="folds")


def _trained(study: ReportedStudy) -> list[Any]:
    if study.model is None:
        call = 'img2gene.tl.fit(sdata, validate_on=["P4"])'
        return [Missing("a trained model in the study", f"{call}; img2gene.tl.predict(sdata)")]
    rows = []
    for role in dict.fromkeys(study.roles.values()):
        chosen = study.with_role(role)
        people = list(dict.fromkeys(filter(None, (study.section_patients[name] for name in chosen))))
        spots = int(np.isin(study.sections, chosen).sum())
        rows.append([role, names(chosen), names(people) if people else "not recorded", f"{spots:,}"])
    return [_absent(study), Table("The stored model and the sections of this study", _ROLE_COLUMNS, rows)]


_ROLE_COLUMNS = ["role", "sections", "patients", "spots"]


def _absent(study: ReportedStudy) -> Text:
    """What the model was trained on, whether or not that is in this study."""
    model: Any = study.model
    report = model.report
    text = f"The stored model “{model.name}” was trained on {report.get('n_spots', 0):,} spots of "
    text += f"{len(report.get('sections', []))} sections ({names(report.get('sections', []))})"
    elsewhere = [name for name in report.get("sections", []) if name not in study.roles]
    text += f", {len(elsewhere)} of which are not in this study." if elsewhere else "."
    return Text(text)
