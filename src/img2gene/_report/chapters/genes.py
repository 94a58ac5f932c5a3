"""Chapter on single genes: the best and the worst, and their maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from img2gene._errors import MissingKeyError, listing, near_matches
from img2gene._report.blocks import CALIBRATED, Chapter, Missing, Row, Table, Text, number, table
from img2gene._report.chapters.scores import title
from img2gene._report.maps import Panel, gene_maps, panels
from img2gene._report.sources import Values
from img2gene._report.subject import Subject, better_is, marks
from img2gene.metrics.catalog import goodness

_LISTED, _MOST_SPOTS = 15, 2000
_EXTRA = ("coverage", "error_correlation")


@dataclass(frozen=True)
class Choice:
    """Which genes and sections are mapped: those named, else the ``n_genes`` best and worst and ``n_sections``."""

    genes: Sequence[str] | None
    sections: Sequence[str] | None
    n_genes: int
    n_sections: int


def genes_chapter(subject: Subject, choice: Choice) -> Chapter:
    """Best and worst genes, and maps of held-out sections."""
    blocks: list[Any] = []
    if subject.result is not None:
        blocks += _ranking(subject)
    blocks += _maps(subject, choice) + _image_only(subject, choice)
    return Chapter("genes", "Genes and maps", blocks)


def ranked(subject: Subject) -> pd.DataFrame:
    """Genes of the model with a defined score, best first; the highest first where it is not known what is better."""
    result: Any = subject.result
    metric = _gene_metric(subject)
    found = result.genes(subject.label, metric=metric)
    known = found[found[metric].notna()]
    return known.loc[
        goodness(known[metric], metric, result.settings.get("level")).sort_values(ascending=False, kind="stable").index
    ]


def _gene_metric(subject: Subject) -> str:
    return subject.metric if subject.result is not None and subject.metric in subject.result.scores else "pcc"


def _ranking(subject: Subject) -> list[Any]:
    result: Any = subject.result
    metric, known = _gene_metric(subject), ranked(subject)
    n_all = result.scores.loc[result.scores["model"] == subject.label, "gene"].nunique()
    lead = f"“{subject.label}”: {len(known):,} of {n_all:,} genes have a score"
    if len(known):
        middle = known[metric].median()
        lead += f"; median {title(metric)} {number(middle)}, from {number(known[metric].min())} to {number(known[metric].max())}"
    own = result.scores[result.scores["model"] == subject.label]
    extra = [name for name in _EXTRA if name != metric and name in own and own[name].notna().any()]
    known = known.join(own.groupby("gene")[extra].mean()) if extra else known
    first, last = (f"{end.capitalize()} genes" for end in _ends_of(subject))
    ends = {first: known.head(_LISTED), last: known.tail(_LISTED)[::-1]}
    tables = [_ends(caption, part, len(known), subject) for caption, part in ends.items()]
    note = "Picked by the score that they achieved, so the best flatter the model; name genes of your own with the argument genes."
    return [Text(f"{lead}.", "lead"), Text(note), Row(tables)]


def _ends_of(subject: Subject) -> tuple[str, str]:
    """What the first and the last genes of the ranking are."""
    result: Any = subject.result
    return ("best", "worst") if better_is(result, _gene_metric(subject)) else ("highest", "lowest")


def _ends(caption: str, part: pd.DataFrame, n: int, subject: Subject) -> Table:
    shown = part.rename_axis("gene").reset_index()
    shown = shown.drop(columns="n_nan") if not shown["n_nan"].any() else shown
    names = {"sd": "SD over sections", "n_sections": "sections", "n_nan": "undefined in"}
    shown = shown.rename(columns=names).rename(columns=title)
    return table(shown, caption, note=f"{len(shown)} of {n:,} genes.", marks=marks(subject.result))


def _maps(subject: Subject, choice: Choice) -> list[Any]:
    values = subject.values
    if values is None:
        return [_no_maps(subject)] if subject.result is not None or not _new_images(subject) else []
    genes, why = _genes(subject, values, choice)
    shown = _sections(values, choice)
    found = panels(subject.study, values, shown, subject.unlike)
    if not found:
        return [Missing("maps: where the spots lie is not recorded with the predictions", _WITH_STUDY)]
    text = (
        f"Maps of {subject.values_of}, beside what was measured; both on one scale of colours (1st to 99th percentile)."
    )
    if "std" not in values.layers:
        rest = [Missing("maps of the uncertainty: there are no predicted standard deviations", CALIBRATED)]
    else:
        rest = []
    figures = [gene_maps(gene, found, values, subject.values_marks, kind) for gene, kind in genes.items()]
    return [Text(f"{text}{why}"), Row(figures), *rest]


_WITH_STUDY = "img2gene.report(sdata, path, cv=result)"


def _no_maps(subject: Subject) -> Missing:
    if subject.cv is not None:
        label = subject.label if subject.label in subject.cv.settings.get("models", {}) else ""
        asked = f"[{label!r}]" if label else "True"
        return Missing("maps: no predictions were kept", f"img2gene.tl.cross_validate(sdata, keep_predictions={asked})")
    if subject.study is not None and subject.study.has_predictions and subject.no_score:
        text = f"maps of held-out sections: {subject.no_score} Maps of training sections would show fits"
        return Missing(text, 'img2gene.tl.fit(sdata, validate_on=["P4"]); img2gene.tl.predict(sdata)')
    return Missing("maps of held-out sections", "img2gene.tl.predict(sdata)")


def _genes(subject: Subject, values: Values, choice: Choice) -> tuple[dict[str, str], str]:
    """The genes asked for, else the best and the worst, with what each is; and why others, where none has a score."""
    known = values.genes
    if choice.genes is not None:
        absent = [gene for gene in choice.genes if gene not in known]
        if absent:
            raise MissingKeyError(f"genes: {listing(absent)} not predicted ({near_matches(absent, known)}).")
        return dict.fromkeys(choice.genes, ""), ""
    members = set(known)
    order = [gene for gene in ranked(subject).index if gene in members]
    if not order:
        leading, what = _leading(subject, values)
        return dict.fromkeys(leading[: choice.n_genes], ""), f" No gene has a score, so these are genes {what}."
    first, last = _ends_of(subject)
    ends = dict.fromkeys(order[len(order) - choice.n_genes :], f" ({last})")
    # A gene at both ends is named once, as the best, and the best come first.
    best = dict.fromkeys(order[: choice.n_genes], f" ({first})")
    return best | {gene: kind for gene, kind in ends.items() if gene not in best}, ""


def _leading(subject: Subject, values: Values) -> tuple[list[str], str]:
    """Genes to look at where none has a score, and which these are."""
    known, model = values.genes, None if subject.study is None else subject.study.model
    if model is not None and set(known) & set(model.genes):
        order = [gene for gene in model.top_genes("moran", len(model.genes)) if gene in set(known)]
        return order, "that varied most over the tissue in training"
    if values.study is not None or "measured" not in values.layers:
        return known, "in the order of the table"
    some = np.linspace(0, len(values.rows) - 1, min(len(values.rows), _MOST_SPOTS)).astype(int)
    mean = np.nan_to_num(values.read("measured", known, some)).mean(axis=0)  # type: ignore[arg-type]
    return [known[i] for i in np.argsort(-mean, kind="stable")], "with the highest mean"


def _sections(values: Values, choice: Choice) -> list[str]:
    """The sections asked for, else the first ones, of different patients if possible."""
    present = list(dict.fromkeys(values.sections.tolist()))
    if choice.sections is not None:
        absent = [name for name in choice.sections if name not in present]
        if absent:
            raise MissingKeyError(f"No held-out section named {listing(absent)} (available: {listing(present)}).")
        return list(choice.sections)
    people = values.table.obs["patient"].astype(str).to_numpy()[values.rows] if "patient" in values.table.obs else None
    if people is None:
        return present[: choice.n_sections]
    first = {str(people[values.sections == name][0]): name for name in reversed(present)}
    return sorted(present, key=lambda name: name not in first.values())[: choice.n_sections]


def _new_images(subject: Subject) -> list[str]:
    study = subject.study
    return study.unmeasured if study is not None and study.has_predictions else []


def _image_only(subject: Subject, choice: Choice) -> list[Any]:
    """Predictions where nothing was measured."""
    new, study = _new_images(subject), subject.study
    if study is None or not new:
        return []
    values = Values.of_study(study, new)
    genes = _prominent(subject, values, choice)
    shown = [name for name in new if choice.sections is None or name in choice.sections][: choice.n_sections]
    found = [Panel(panel.canvas, panel.rows, measured=False) for panel in panels(study, values, shown)]
    many = "sections have" if len(new) > 1 else "section has"
    text = f"{len(new)} {many} an image only. Predictions without scores, {_why(subject, values, choice)}:"
    return [Text(text), Row([gene_maps(gene, found, values, ["no score"]) for gene in genes])]


def _why(subject: Subject, values: Values, choice: Choice) -> str:
    """How the genes of :func:`_prominent` were chosen."""
    if choice.genes is not None:
        return "of the genes asked for"
    if subject.result is not None and len(ranked(subject)):
        return f"of the genes with the {_ends_of(subject)[0]} score elsewhere"
    return f"of genes {_leading(subject, values)[1]}"


def _prominent(subject: Subject, values: Values, choice: Choice) -> list[str]:
    """Genes asked for, else the best scored, else those with the highest Moran's I in training."""
    known = set(values.genes)
    if choice.genes is not None:
        return [gene for gene in choice.genes if gene in known]
    order = [] if subject.result is None else list(ranked(subject).index)
    return [gene for gene in order or _leading(subject, values)[0] if gene in known][: choice.n_genes]
