"""Chapter on scores: overview with intervals, patients, paired comparisons, distributions over genes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from img2gene._report.blocks import Chapter, Figure, Missing, Row, Table, Text, interval, number, signed, table
from img2gene._report.figures import canvas, vector
from img2gene._report.subject import Subject, better_is, marks
from img2gene.pl.scores import METRIC_LABELS

if TYPE_CHECKING:
    from img2gene.tl import CrossValidation

_LABELS = {
    **METRIC_LABELS,
    "nrmse": "RMSE / SD",
    "ssim": "SSIM",
    "moran": "Moran’s I difference",
    "pcc_pooled": "PCC, pooled",
    "structure": "structure PCC",
    "structure_rmse": "structure RMSE",
    "coverage": "coverage",
    "width": "interval width",
    "error_correlation": "|error| with SD",
    "n_nan": "undefined",
}
_HOW = "A score is the mean over genes within each section, then over the sections of a patient, then over patients."
_MOST_VIOLINS = 8


def title(metric: str) -> str:
    """A metric as it is written in tables."""
    return _LABELS.get(metric, metric)


def scores_chapter(subject: Subject) -> Chapter:
    """Scores of all models, with the baselines."""
    result = subject.result
    if result is None:
        return Chapter("scores", "Scores", [Text(subject.no_score, "warning"), no_scores(subject)])
    blocks: list[Any] = [Text(f"{_HOW} {result.notice}")]
    blocks += _tables(result, subject)
    if subject.cv is not None and subject.held_out is not None:
        blocks.append(_overview(subject.held_out, subject, "The stored model on sections that it was not trained on"))
    if subject.cv is None:
        call = 'img2gene.tl.cross_validate(sdata, ["img2gene", "ridge"])'
        blocks.append(Missing("scores of every patient, with all baselines", f"{call}, then {_WITH}"))
    return Chapter("scores", "Scores", blocks)


_WITH = "img2gene.report(sdata, path, cv=result)"


def no_scores(subject: Subject) -> Missing:
    """How scores are added where there are none."""
    study = subject.study
    if study is not None and study.model is not None and not study.has_predictions:
        return Missing("predictions and scores", f"img2gene.tl.predict(sdata, key_added={study.key!r})")
    return Missing(
        "scores on held-out patients",
        f'img2gene.tl.fit(sdata, validate_on=["P4"]); img2gene.tl.predict(sdata) — or img2gene.tl.cross_validate(sdata), then {_WITH}',
    )


def verdict(subject: Subject) -> str:
    """What the scores come to, in two sentences."""
    result: Any = subject.result
    means = result.summary("all", metric=subject.metric).set_index("model")
    own = means.loc[subject.label]
    n_units = int(own[f"n_{result.unit}s"])
    units = f"{n_units} {result.unit}{'s' if n_units != 1 else ''}"
    text = f"“{subject.label}”: mean {title(subject.metric)} {number(own[subject.metric])} over {units}"
    known = math.isfinite(own["low"])
    text += f" (95% interval {number(own['low'])} to {number(own['high'])})." if known else "."
    if n_units == 1:
        text += f" One {result.unit} gives no interval."
    if subject.reference is None:
        return text
    return f"{text} {_against(result, subject, units)}"


def _against(result: CrossValidation, subject: Subject, units: str) -> str:
    rows = result.compare(subject.reference, metric=subject.metric)
    rows = rows[rows["model"] == subject.label] if len(rows) else rows
    if not len(rows) or not math.isfinite(rows["difference"].iloc[0]):
        return f"Its difference from “{subject.reference}” is undefined."
    row = rows.iloc[0]
    text = f"Against “{subject.reference}”: {signed(row['difference'])}, "
    text += f"{_better(result, subject)} in {row['n_better']} of {units}"
    if not math.isfinite(row["low"]):
        return f"{text}."
    inside = row["low"] <= 0 <= row["high"]
    seen = "the interval includes 0, so no difference is shown" if inside else "the interval does not include 0"
    return f"{text} (95% interval {signed(row['low'])} to {signed(row['high'])}; {seen})."


def _better(result: CrossValidation, subject: Subject) -> str:
    return better_is(result, subject.metric) or "higher"


def _tables(result: CrossValidation, subject: Subject) -> list[Any]:
    overview = _overview(result, subject, f"{title(subject.metric)} of every gene group")
    groups = list(dict.fromkeys(["all", subject.gene_group]))
    figures: list[Any] = [Row([_by_unit(result, subject, group) for group in groups]), _distribution(result, subject)]
    details = [_all_metrics(result, subject, group) for group in result.groups]
    return [overview, *figures, *_comparison(result, subject), *details]


def _overview(result: CrossValidation, subject: Subject, caption: str) -> Table:
    """Models in rows, gene groups in columns."""
    cells: dict[str, dict[str, str]] = {}
    counts = {}
    for group in result.groups:
        means = result.summary(group, metric=subject.metric)
        heading = "all genes" if group == "all" else group
        counts[heading] = int(means["n_genes"].max())
        for row in means.to_dict("records"):
            cells.setdefault(row["model"], {})[heading] = interval(row[subject.metric], row["low"], row["high"])
    columns = ["model", *(f"{heading} ({number(n)})" for heading, n in counts.items())]
    rows = [[model, *(found.get(heading, "–") for heading in counts)] for model, found in cells.items()]
    note = f"Mean [95% interval over {result.unit}s]; in brackets the number of genes. – : undefined, such as any correlation "
    note += "of a constant prediction."
    numeric = [name != "model" for name in columns]
    return Table(
        caption, columns, rows, marks(result), note, numeric=numeric, **_style([row[0] for row in rows], subject)
    )


def _style(models: list[str], subject: Subject) -> dict[str, Any]:
    """The model that is reported on stands out, baselines stand back."""
    fixed = {"training mean", "section mean (oracle)", "permutation null"}
    strong = frozenset(i for i, name in enumerate(models) if name == subject.label)
    return {"strong": strong, "muted": frozenset(i for i, name in enumerate(models) if name in fixed)}


def _by_unit(result: CrossValidation, subject: Subject, group: str) -> Figure:
    from img2gene import pl

    drawing = canvas(6.6, 1.2 + 0.42 * len(result.models))
    pl.cross_validation(result, metric=subject.metric, genes=group, ax=drawing.add_subplot())
    what = "all genes" if group == "all" else f"the genes {group}"
    alt = f"{title(subject.metric)} of {what} for each model and {result.unit}"
    caption = f"{alt}. Dots: {result.unit}s, at the same height in every row; diamond and line: mean and 95% interval."
    return vector(drawing, alt, caption, marks(result))


def _distribution(result: CrossValidation, subject: Subject) -> Figure:
    from img2gene import pl

    metric = subject.metric if subject.metric in result.scores else "pcc"
    defined = result.scores.groupby("model")[metric].count()
    shown = [name for name in result.models if defined[name]]
    order = sorted(shown, key=lambda name: name != subject.label)[:_MOST_VIOLINS]
    chosen = result.scores[result.scores["model"].isin(order)]
    drawing = canvas(1.4 + 1.35 * max(len(order), 2), 3.4)
    pl.scores(chosen, metric=metric, ax=drawing.add_subplot())
    caption = f"Distribution of {title(metric)} over genes, each averaged over sections; the line is the mean."
    return vector(drawing, f"Distribution of {title(metric)} over genes", caption, marks(result))


def _comparison(result: CrossValidation, subject: Subject) -> list[Any]:
    if subject.reference is None:
        return []
    parts = [result.compare(subject.reference, group, metric=subject.metric) for group in result.groups]
    frame = pd.concat(parts, ignore_index=True)
    if not len(frame):
        return []
    unit = f"{result.unit}s"
    shown = pd.DataFrame({"model": frame["model"], "genes": frame["genes"].replace("all", "all genes")})
    shown["difference"] = [
        interval(*values) for values in frame[["difference", "low", "high"]].itertuples(index=False, name=None)
    ]
    pairs = zip(frame["n_better"], frame[f"n_{unit}"], strict=True)
    shown[f"{_better(result, subject)} in {unit}"] = [f"{better} of {number}" for better, number in pairs]
    shown[f"p over {unit}"] = frame[f"p_{unit}"]
    if "p_genes" in frame:
        shown["p over genes"] = [_small(value) for value in frame["p_genes"]]
    note = (
        f"Signed-rank tests. Genes are correlated, so the test over genes takes small differences for certain ones; with n "
        f"{unit} the smallest possible p over {unit} is 2 / 2ⁿ."
    )
    caption = f"{title(subject.metric)}: difference from “{subject.reference}”, pair by pair"
    strong = frozenset(i for i, name in enumerate(shown["model"]) if name == subject.label)
    return [table(shown, caption, note=note, marks=marks(result), strong=strong, right=("difference", "p over genes"))]


def _small(value: float) -> str:
    return number(None) if pd.isna(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _all_metrics(result: CrossValidation, subject: Subject, group: str) -> Table:
    frame = result.summary(group, metric=subject.metric).dropna(axis=1, how="all")
    hidden = ["genes", "low", "high", "scope", "leakage"]
    frame = frame[[name for name in frame if name not in hidden]].rename(columns=title)
    what = "all genes" if group == "all" else group
    style = _style(frame["model"].tolist(), subject)
    return table(frame, f"All metrics, {what}", marks=marks(result), folded=True, **style)
