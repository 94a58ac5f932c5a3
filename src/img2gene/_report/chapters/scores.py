"""The chapter on scores: all models with intervals, patients, paired comparisons, distributions over genes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from img2gene._report.blocks import (
    WITH_STUDY,
    Chapter,
    Figure,
    Missing,
    Row,
    Table,
    Text,
    interval,
    number,
    signed,
    table,
)
from img2gene._report.figures import canvas, vector
from img2gene._report.subject import Subject
from img2gene.pl.scores import METRIC_LABELS

if TYPE_CHECKING:
    from img2gene.tl import CrossValidation

# Shorter than in figures, so that tables stand side by side.
_TITLES = {
    **METRIC_LABELS,
    "moran": "Moran’s I difference",
    "pcc_pooled": "PCC, pooled",
    "structure": "structure PCC",
    "structure_rmse": "structure RMSE",
    "width": "interval width",
    "error_correlation": "|error| with SD",
    "n_nan": "undefined",
}
_HOW = "A score is the mean over genes within each section, then over the sections of a patient, then over patients."
_FIXED = {"training mean", "section mean (oracle)", "permutation null"}
_MAX_VIOLINS = 8


def title(metric: str) -> str:
    """Name of a metric or of another column in tables."""
    return _TITLES.get(metric, metric)


def scores_chapter(subject: Subject) -> Chapter:
    """Compare all models and baselines."""
    result = subject.result
    if result is None:
        return Chapter("scores", "Scores", [Text(subject.no_score, "warning"), _no_scores(subject)])
    groups = list(dict.fromkeys(["all", subject.gene_group]))
    blocks: list[Any] = [Text(f"{_HOW} {result.notice}")]
    blocks += [_overview(result, subject, f"Mean {title(subject.metric)} of every gene group")]
    blocks += [Row([_by_unit(result, subject, group) for group in groups]), _distribution(result, subject)]
    blocks += _comparison(result, subject)
    blocks += [_all_metrics(result, subject, group) for group in result.groups]
    if subject.cv is not None and subject.held_out is not None:
        blocks.append(_overview(subject.held_out, subject, "The stored model on sections that it was not trained on"))
    if subject.cv is None:
        call = f'img2gene.tl.cross_validate(sdata, ["img2gene", "ridge"]), then {WITH_STUDY}'
        blocks.append(Missing("scores of every patient, with all baselines", call))
    return Chapter("scores", "Scores", blocks)


def _no_scores(subject: Subject) -> Missing:
    """Give the call that adds scores."""
    study = subject.study
    if study is not None and study.model is not None and not study.has_predictions:
        return Missing("predictions and scores", f"img2gene.tl.predict(sdata, key_added={study.key!r})")
    call = 'img2gene.tl.fit(sdata, validate_on=["P4"]); img2gene.tl.predict(sdata) — or '
    return Missing("scores on held-out patients", f"{call}img2gene.tl.cross_validate(sdata), then {WITH_STUDY}")


def verdict(subject: Subject) -> str:
    """Summarise the scores in two sentences."""
    result: Any = subject.result
    means = result.summary("all", metric=subject.metric).set_index("model").loc[subject.label]
    # An interval over genes would be narrow and say nothing about new patients, so only units count.
    n_units = int(means[f"n_{result.unit}s"])
    units = f"{n_units} {result.unit}{'s' if n_units != 1 else ''}"
    text = f"“{subject.label}”: mean {title(subject.metric)} {number(means[subject.metric])} over {units}"
    known = math.isfinite(means["low"])
    text += f" (95% interval {number(means['low'])} to {number(means['high'])})." if known else "."
    if n_units == 1:
        text += f" One {result.unit} gives no interval."
    return text if subject.reference is None else f"{text} {_against(result, subject, units)}"


def _against(result: CrossValidation, subject: Subject, units: str) -> str:
    rows = result.compare(subject.reference, metric=subject.metric)
    rows = rows[rows["model"] == subject.label] if len(rows) else rows
    if not len(rows) or not math.isfinite(rows["difference"].iloc[0]):
        return f"Its difference from “{subject.reference}” is undefined."
    row = rows.iloc[0]
    text = f"Compared with “{subject.reference}”: {signed(row['difference'])}, "
    text += f"{subject.better(subject.metric) or 'higher'} in {row['n_better']} of {units}"
    if not math.isfinite(row["low"]):
        return f"{text}."
    includes = row["low"] <= 0 <= row["high"]
    meaning = "the interval includes 0, so no difference is shown" if includes else "the interval does not include 0"
    return f"{text} (95% interval {signed(row['low'])} to {signed(row['high'])}; {meaning})."


def _overview(result: CrossValidation, subject: Subject, caption: str) -> Table:
    """Tabulate models in rows and gene groups in columns."""
    cells: dict[str, dict[str, str]] = {}
    columns = ["model"]
    for group in result.groups:
        means = result.summary(group, metric=subject.metric)
        columns.append(f"{_named(group)} ({number(int(means['n_genes'].max()))})")
        for row in means.to_dict("records"):
            cells.setdefault(row["model"], {})[columns[-1]] = interval(row[subject.metric], row["low"], row["high"])
    frame = pd.DataFrame([{"model": model, **values} for model, values in cells.items()], columns=columns)
    note = f"Mean [95% interval over {result.unit}s]; the number of genes in brackets. – is undefined, such as the "
    note += "correlation of a constant prediction."
    return table(frame, caption, note=note, marks=result.marks, right=columns[1:], **_style(frame, subject))


def _named(group: str) -> str:
    return "all genes" if group == "all" else group


def _style(frame: pd.DataFrame, subject: Subject) -> dict[str, Any]:
    """Emphasise the reported model, and mute baselines that do not look at the image."""
    models = frame["model"].tolist()
    strong = frozenset(i for i, name in enumerate(models) if name == subject.label)
    return {"strong": strong, "muted": frozenset(i for i, name in enumerate(models) if name in _FIXED)}


def _by_unit(result: CrossValidation, subject: Subject, group: str) -> Figure:
    from img2gene import pl

    drawing = canvas(6.6, 1.2 + 0.42 * len(result.models))
    pl.cross_validation(result, metric=subject.metric, genes=group, ax=drawing.add_subplot())
    alt = f"Mean {title(subject.metric)} of {_named(group)} for each model and {result.unit}"
    caption = f"{alt}. Dots are {result.unit}s, at the same height in every row. The diamond and its line are the mean "
    return vector(drawing, alt, f"{caption}and its 95% interval.", result.marks)


def _distribution(result: CrossValidation, subject: Subject) -> Figure:
    from img2gene import pl

    metric = subject.gene_metric
    # A model without a defined score, such as the training mean, would be an empty violin.
    defined = result.scores.groupby("model")[metric].count()
    shown = [name for name in result.models if defined[name]]
    # The reported model comes first, so that it is never cut off.
    order = sorted(shown, key=lambda name: name != subject.label)[:_MAX_VIOLINS]
    drawing = canvas(1.4 + 1.35 * max(len(order), 2), 3.4)
    pl.scores(result.scores[result.scores["model"].isin(order)], metric=metric, ax=drawing.add_subplot())
    alt = f"Distribution of {title(metric)} over genes"
    return vector(drawing, alt, f"{alt}. Each gene is averaged over sections; the line is the mean.", result.marks)


def _comparison(result: CrossValidation, subject: Subject) -> list[Any]:
    if subject.reference is None:
        return []
    parts = [result.compare(subject.reference, group, metric=subject.metric) for group in result.groups]
    frame = pd.concat(parts, ignore_index=True)
    if not len(frame):
        return []
    unit = f"{result.unit}s"
    differences = frame[["difference", "low", "high"]].itertuples(index=False, name=None)
    pairs = zip(frame["n_better"], frame[f"n_{unit}"], strict=True)
    shown = pd.DataFrame({"model": frame["model"], "genes": [_named(group) for group in frame["genes"]]})
    shown["difference"] = [interval(*values) for values in differences]
    shown[f"{subject.better(subject.metric) or 'higher'} in {unit}"] = [f"{better} of {n}" for better, n in pairs]
    shown[f"p over {unit}"] = frame[f"p_{unit}"]
    note = f"Signed-rank tests. With n {unit} the smallest possible p over {unit} is 2 / 2ⁿ."
    if "p_genes" in frame:
        shown["p over genes"] = ["< 0.001" if value < 0.001 else number(value) for value in frame["p_genes"]]
        note += " Genes are correlated, so p-values over genes are too small."
    caption = f"Paired difference in {title(subject.metric)} from “{subject.reference}”"
    style = {"marks": result.marks, "strong": _style(shown, subject)["strong"]}
    return [table(shown, caption, note=note, right=("difference", "p over genes"), **style)]


def _all_metrics(result: CrossValidation, subject: Subject, group: str) -> Table:
    frame = result.summary(group, metric=subject.metric).dropna(axis=1, how="all")
    frame = frame.drop(columns=["genes", "low", "high", "scope", "leakage"], errors="ignore")
    style = _style(frame, subject)
    return table(frame.rename(columns=title), f"All metrics, {_named(group)}", marks=result.marks, folded=True, **style)
