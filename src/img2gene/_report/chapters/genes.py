"""The chapter on single genes: the best and the worst, and their maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from img2gene._errors import MissingKeyError, listing, near_matches
from img2gene._report.blocks import CALIBRATED, WITH_STUDY, Chapter, Missing, Row, Text, number, table
from img2gene._report.chapters.scores import title
from img2gene._report.maps import gene_maps, section_canvases
from img2gene._report.subject import Subject
from img2gene.pl._predictions import Predictions

_LISTED, _MAX_SPOTS = 15, 2000
_EXTRA = ("coverage", "error_correlation")


@dataclass(frozen=True)
class Choice:
    """Which genes and sections are mapped: named ones, else the ``n_genes`` best and worst and ``n_sections``."""

    genes: Sequence[str] | None
    sections: Sequence[str] | None
    n_genes: int
    n_sections: int


def genes_chapter(subject: Subject, choice: Choice) -> Chapter:
    """List the best and the worst genes, and draw maps of held-out sections."""
    ranking = [] if subject.result is None else _ranking(subject)
    blocks = [*ranking, *_held_out_maps(subject, choice), *_image_only_maps(subject, choice)]
    return Chapter("genes", "Genes and maps", blocks)


def _ranked(subject: Subject) -> pd.DataFrame:
    """Genes of the model with a defined score, best first, or highest first if it is unknown what is better."""
    metric = subject.gene_metric
    return (
        pd.DataFrame()
        if subject.result is None
        else subject.result.genes(subject.label, metric=metric).dropna(subset=[metric])
    )


def _ends(subject: Subject) -> tuple[str, str]:
    """What the first and the last genes of the ranking are called."""
    return ("best", "worst") if subject.better(subject.gene_metric) else ("highest", "lowest")


def _ranking(subject: Subject) -> list[Any]:
    result: Any = subject.result
    metric, genes = subject.gene_metric, _ranked(subject)
    if not len(genes):
        return [Missing(f"genes ranked by {title(metric)}, because no gene has a defined score")]
    text = f"“{subject.label}”: median {title(metric)} over {len(genes):,} genes {number(genes[metric].median())}"
    if metric == "pcc":
        text += f"; {(genes['pcc'] > 0.3).mean():.0%} of genes lie above 0.3"
    scores = result.scores[result.scores["model"] == subject.label]
    extra = [name for name in _EXTRA if name != metric and name in scores and scores[name].notna().any()]
    genes = genes.join(scores.groupby("gene")[extra].mean()) if extra else genes
    genes = genes.drop(columns=[] if genes["n_nan"].any() else "n_nan")
    genes = genes.rename(columns={"sd": "SD over sections", "n_sections": "sections", "n_nan": "undefined in"})
    tables = []
    for end, part in zip(_ends(subject), (genes.head(_LISTED), genes.tail(_LISTED)[::-1]), strict=True):
        frame = part.rename(columns=title).rename_axis("gene").reset_index()
        note = f"{len(part)} of {len(genes):,} genes."
        tables.append(table(frame, f"{end.capitalize()} genes", note=note, marks=subject.marks))
    advice = Text("The best genes flatter the model: their scores chose them. The argument genes chooses others.")
    return [Text(f"{text}.", "lead"), advice, Row(tables)]


def _held_out_maps(subject: Subject, choice: Choice) -> list[Any]:
    predictions = subject.predictions
    if predictions is None:
        return [_no_maps(subject)] if subject.result is not None or not _new_images(subject) else []
    absent = [gene for gene in choice.genes or [] if gene not in predictions.genes]
    if absent:
        raise MissingKeyError(f"genes: {listing(absent)} not predicted ({near_matches(absent, predictions.genes)}).")
    genes, which = _drawn_genes(subject, predictions, choice)
    shown = section_canvases(subject, predictions, _drawn_sections(subject, predictions, choice))
    if not shown:
        return [Missing("maps, because positions of spots are not stored with the predictions", WITH_STUDY)]
    text = f"Maps of {subject.predictions_name}. Measured and predicted expression share their colours (1st to 99th "
    text += "percentile). Predictions that should not be trusted are faint."
    if choice.genes is None and not len(_ranked(subject)):
        text += f" No gene has a score, so these are genes {which}."
    figures = [gene_maps(gene, predictions, shown, subject.predictions_marks, kind) for gene, kind in genes.items()]
    no_sd = Missing("maps of the uncertainty, because there are no predicted standard deviations", CALIBRATED)
    return [Text(text), Row(figures), *([] if "std" in predictions.parts else [no_sd])]


def _no_maps(subject: Subject) -> Missing:
    if subject.cv is not None:
        models = f"[{subject.label!r}]" if subject.label in subject.cv.settings.get("models", {}) else "True"
        call = f"img2gene.tl.cross_validate(sdata, keep_predictions={models})"
        return Missing("maps, because no predictions were kept", call)
    if subject.study is not None and subject.study.has_predictions and subject.no_score:
        text = (
            f"maps of held-out sections. {subject.no_score} Maps of training sections would look better than new ones"
        )
        return Missing(text, 'img2gene.tl.fit(sdata, validate_on=["P4"]); img2gene.tl.predict(sdata)')
    return Missing("maps of held-out sections", "img2gene.tl.predict(sdata)")


def _drawn_genes(subject: Subject, predictions: Predictions, choice: Choice) -> tuple[dict[str, str], str]:
    """Choose genes, with what the caption adds to each name, and say which genes these are."""
    predicted = set(predictions.genes)
    if choice.genes is not None:
        return dict.fromkeys((gene for gene in choice.genes if gene in predicted), ""), "that were named"
    # The stored model can know fewer genes than the cross-validation scored.
    order = [gene for gene in _ranked(subject).index if gene in predicted]
    if not order:
        leading, which = _leading(subject, predictions)
        return dict.fromkeys(leading[: choice.n_genes], ""), which
    first, last = _ends(subject)
    best = dict.fromkeys(order[: choice.n_genes], f" ({first})")
    # With few genes, one that is at both ends counts as the best.
    worst = dict.fromkeys([gene for gene in order[-choice.n_genes :] if gene not in best], f" ({last})")
    return best | worst, f"with the {first} scores in other sections"


def _leading(subject: Subject, predictions: Predictions) -> tuple[list[str], str]:
    """Order the genes if none has a score, and say how."""
    genes, model = predictions.genes, None if subject.study is None else subject.study.model
    predicted = set(genes)
    if model is not None and predicted & set(model.genes):
        order = [gene for gene in model.top_genes("moran", len(model.genes)) if gene in predicted]
        return order, "that varied most over the tissue in training"
    if predictions.study is not None or "measured" not in predictions.parts:
        return genes, "in the order of the table"
    n = predictions.table.n_obs
    rows = np.linspace(0, n - 1, min(n, _MAX_SPOTS)).astype(int)
    mean = np.nan_to_num(predictions.read("measured", genes, rows)).mean(axis=0)  # type: ignore[arg-type]
    return [genes[i] for i in np.argsort(-mean, kind="stable")], "with the highest mean"


def _drawn_sections(subject: Subject, predictions: Predictions, choice: Choice) -> list[str]:
    """Choose the named sections, else the first ones, of different patients if possible."""
    names = subject.sections
    if choice.sections is not None:
        absent = [name for name in choice.sections if name not in names]
        if absent:
            raise MissingKeyError(f"No held-out section named {listing(absent)} (available: {listing(names)}).")
        return list(choice.sections)
    # Sections of one patient look alike, so different patients show more.
    obs = predictions.table.obs
    if "patient" not in obs:
        return names[: choice.n_sections]
    first = {str(obs["patient"].iloc[predictions.rows(name)[0]]): name for name in reversed(names)}
    return sorted(names, key=lambda name: name not in first.values())[: choice.n_sections]


def _new_images(subject: Subject) -> list[str]:
    study = subject.study
    return study.unmeasured if study is not None and study.has_predictions else []


def _image_only_maps(subject: Subject, choice: Choice) -> list[Any]:
    """Draw predictions of sections without measured expression."""
    names, study = _new_images(subject), subject.study
    if study is None or not names:
        return []
    genes, which = _drawn_genes(subject, study.predictions, choice)
    sections = [name for name in names if choice.sections is None or name in choice.sections][: choice.n_sections]
    shown = section_canvases(subject, study.predictions, sections)
    text = f"{len(names)} section{'s have' if len(names) > 1 else ' has'} only an image. Maps show predictions without "
    text += f"scores, of genes {which}."
    # Nothing is scored here, so only the best genes of other sections are worth a map.
    drawn = list(genes)[: None if choice.genes is not None else choice.n_genes] if shown else []
    return [Text(text), Row([gene_maps(gene, study.predictions, shown, ["no score"]) for gene in drawn])]
