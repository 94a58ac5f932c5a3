"""Write what a user of a shared model has to know, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from img2gene import _schema
from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError, listing
from img2gene._files.folders import write_bytes
from img2gene._study.scored import stated_facts
from img2gene.io.model_store import scored_model

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from img2gene.models import Model

_SCORES = {
    "pcc": "correlation",
    "spearman": "rank correlation",
    "r2": "R²",
    "rmse": "RMSE",
    "coverage": "coverage of intervals",
}
_UNSTATED = "not stated"
_FEW_PATIENTS = 5


def model_card(
    model: Model | SpatialData,
    path: str | Path | None = None,
    *,
    title: str | None = None,
    licence: str | None = None,
    limits: Iterable[str] = (),
    scores: pd.DataFrame | None = None,
    key: str = "img2gene",
    table_key: str = "table",
) -> str:
    """Write the card of a model: training data, patients, split, scores with baselines, bias, known limits, licence.

    A model without a score on held-out sections gets no card. Scores of sections that were held out, but share a patient with
    the training, are marked.

    Parameters
    ----------
    model
        A model, or the study that holds it under ``key``.
    path
        File to write, ``README.md`` in a repository of the hub; an existing one is replaced. None writes none.
    title
        Heading; by default made of the model and what it was trained on.
    licence
        Licence of the model.
    limits
        Known limits that the report cannot know, a sentence each.
    scores
        What :func:`img2gene.tl.summarize` returns. None takes the scores that :func:`img2gene.io.save_model` stored with the
        model, or those of the study. Scores that do not say of which model they are, such as a summary that went through a
        CSV file, are refused.
    key, table_key
        Where in the study the model is stored.

    Returns
    -------
    The card in Markdown.

    Raises
    ------
    Img2GeneError
        The model has no scores on held-out sections, the scores are of another or an unknown model or of sections that it was
        trained on, an argument is invalid, or the file cannot be written.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "ridge", validate_on=["P3"])
    >>> ig.tl.predict(sdata)
    >>> _ = ig.tl.evaluate(sdata)
    >>> card = ig.io.model_card(sdata, licence="CC-BY-4.0", title="A synthetic ridge")
    >>> "# A synthetic ridge" in card.splitlines()
    True
    """
    from img2gene.models import Model

    check = Arguments()
    target = check.path("path", path, optional=True)
    title, licence = check.text("title", title, optional=True), check.text("licence", licence, optional=True)
    stated = check.names("limits", limits, empty=True)
    if scores is not None and not isinstance(scores, pd.DataFrame):
        check.messages.append(f"scores={shown(scores)}: expected the DataFrame of `img2gene.tl.summarize`.")
    check.raise_all()
    title, licence, stated = _one_line(title), _one_line(licence), [_one_line(limit) for limit in stated]
    trained = model if isinstance(model, Model) else scored_model(_schema.get_table(model, table_key), key)
    table = _scores(trained, scores)
    parts = [
        _front(trained, licence),
        f"# {title or _one_line(_title(trained))}",
        _summary(trained, licence),
        _use(target),
        _training(trained.report),
        _inputs(trained.inputs),
        _scored(trained, table),
        _bias(trained.report),
        _limits(trained, table, stated),
        _licence(trained, licence),
    ]
    text = "\n\n".join(parts) + "\n"
    if target is not None:
        write_bytes(target, text.encode())
    return text


def _scores(model: Model, scores: pd.DataFrame | None) -> pd.DataFrame:
    """Take the given scores, or the stored ones; refuse a model without scores on held-out sections."""
    stored = model.report.get("evaluation")
    # Scores that are stored with a model are its own.
    facts = {} if scores is None else stated_facts(scores)
    if scores is None and isinstance(stored, list) and stored:
        scores = pd.DataFrame(stored)
        facts = {**stated_facts(scores), _schema.FINGERPRINT: model.fingerprint}
    if scores is None or not {"model", "genes", "pcc"} <= set(scores) or model.name not in set(scores["model"]):
        raise Img2GeneError(
            f"The model `{model.name}` has no score on sections that were held out, and no model is offered without one. Run "
            "`img2gene.tl.predict` and `img2gene.tl.evaluate` on held-out patients, and pass the study: "
            "`img2gene.io.model_card(sdata)`."
        )
    _check_facts(model, facts)
    return scores


def _check_facts(model: Model, facts: dict[str, str]) -> None:
    """Refuse scores of another or an unknown model, and of sections that it was trained on."""
    scored, trained_on = facts.get(_schema.FINGERPRINT), facts.get(_schema.TRAINED_ON)
    if scored is None:
        raise Img2GeneError(
            "scores: nothing says of which model they are, as tables lose it in files and joined tables of several models have "
            "none. Pass what `img2gene.tl.summarize` returned for scores of this model, or the scored study: "
            "`img2gene.io.model_card(sdata)`."
        )
    if scored != model.fingerprint:
        raise Img2GeneError(
            f"These are scores of another model: their fingerprint is {scored}, that of this `{model.name}` {model.fingerprint}. Run "
            "`img2gene.tl.predict` and `img2gene.tl.evaluate` with this model."
        )
    if trained_on:
        raise Img2GeneError(
            f"These are no scores on held-out sections: the model was trained on {trained_on}. Run `img2gene.tl.evaluate(sdata)`, "
            "which scores the sections that the model was not trained on, unless `sections` names others."
        )


def _front(model: Model, licence: str | None) -> str:
    """Write what the hub reads."""
    # A string of JSON is one of YAML, whatever it holds.
    lines = ["library_name: img2gene", f"license: {json.dumps((licence or 'unknown').lower(), ensure_ascii=False)}"]
    return "\n".join(["---", *lines, "tags: [spatial-transcriptomics, histology, img2gene]", "---"])


def _title(model: Model) -> str:
    return (
        f"{model.name}: {len(model.genes)} genes from H&E, trained on {listing(model.report.get('sections') or [], 3)}"
    )


def _summary(model: Model, licence: str | None) -> str:
    rows = {
        "model": model.name,
        "genes": f"{len(model.genes)} ({listing(model.genes, 5)})",
        "encoder": f"{model.inputs['name']}, revision {model.inputs.get('revision') or 'not recorded'}",
        "labels": _labels(model.labels),
        "fingerprint": model.fingerprint,
        "img2gene": model.report.get("img2gene", "not recorded"),
        "licence": licence or _UNSTATED,
    }
    return "It predicts gene expression at spots of H&E images.\n\n" + _table(["what", "value"], rows.items())


def _labels(labels: dict[str, Any]) -> str:
    if labels.get("layer") is not None:
        return f"layer `{labels['layer']}` of the training data"
    return f"log1p({labels.get('target_sum') or 1e4:g} · counts / library size)"


def _use(path: Path | None) -> str:
    file = "model.img2gene"
    return (
        "## Use\n\n```python\nimport img2gene as ig\n\n"
        f'model = ig.io.load_model("{file}")  # or "hf://owner/name@revision"\n'
        "ig.tl.predict(sdata, model)\n```"
    )


def _training(report: dict[str, Any]) -> str:
    patients = report.get("patients")
    rows = {
        "sections": _names(report.get("sections")),
        "patients": "not recorded" if patients is None else f"{len(patients)}: {_names(patients)}",
        "spots": report.get("n_spots", "not recorded"),
        "split by": report.get("groups", "not recorded"),
        "held out": _names(report.get("held_out")) or "nothing",
        "left out as too shallow": _names(report.get("left_out")) or "nothing",
        "on both sides of the split": _names(report.get("leakage")) or "nobody",
        "µm per pixel": _pairs(report.get("resolution_um")),
        "seed": report.get("seed", "not recorded"),
    }
    return "## Training data and split\n\n" + _table(["what", "value"], rows.items())


def _inputs(inputs: dict[str, Any]) -> str:
    return "## Inputs\n\n" + _table(["what", "value"], ((name, _value(value)) for name, value in inputs.items()))


def _scored(model: Model, scores: pd.DataFrame) -> str:
    """Tabulate the scores of the model and its baselines, over all genes and the gene groups."""
    known = {name: label for name, label in _SCORES.items() if name in scores and scores[name].notna().any()}
    rows = [
        [row["model"], row["genes"], *(_number(row[name]) for name in known), *_counted(row)]
        for _, row in scores.iterrows()
    ]
    head = ["model", "genes", *known.values(), "sections", "number of genes"]
    return (
        "## Scores on held-out sections\n\nMeans over genes within a section, then over sections. The other rows are baselines: a "
        f"model that is no better than they are has learned nothing of use.\n\n{_table(head, rows)}"
    )


def _counted(row: Any) -> list[str]:
    return [str(row.get(name, "")) for name in ("n_sections", "n_genes")]


def _bias(report: dict[str, Any]) -> str:
    debias = report.get("debias") or {}
    # A fit without debiasing names no parts.
    debias = debias if debias.get("parts") else {}
    done = "Nothing was done against bias." if not debias else "Done against bias, with its effect in training:"
    rows = [(part, _value(facts)) for part, facts in debias.items()]
    return "## Bias\n\n" + done + (f"\n\n{_table(['part', 'effect'], rows)}" if rows else "")


def _limits(model: Model, scores: pd.DataFrame, stated: Iterable[str]) -> str:
    report = model.report
    patients = report.get("patients")
    known = ["For research; not for diagnosis or treatment."]
    if patients is None:
        known.append(
            "Patients of the training sections are not recorded, so it is unknown whether the scores are of new ones."
        )
    elif len(patients) < _FEW_PATIENTS:
        known.append(
            f"Trained on {len(patients)} patient{'s' * (len(patients) > 1)}: scores on others can be much lower."
        )
    if "leakage" in scores and scores["leakage"].fillna(False).astype(bool).any():
        known.append("Scored sections share a patient with the training: these scores are optimistic.")
    if model.calibration is None:
        known.append("It has no uncertainty: nothing marks spots that are unlike the training.")
    known.append(
        "Other stains, scanners, tissues and resolutions than the training's were not tested unless listed above."
    )
    return "## Known limits\n\n" + "\n".join(f"- {line}" for line in [*known, *stated])


def _licence(model: Model, licence: str | None) -> str:
    encoder = model.inputs.get("licence") or _UNSTATED
    text = f"Model: {licence or _UNSTATED}. Encoder `{model.inputs['name']}`: {encoder}; its terms hold for features and what is made of them."
    return f"## Licence\n\n{text}"


def _table(head: list[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([_one_line(str(cell)).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _one_line(text: Any) -> Any:
    """Fold the lines of a text, as a line break would begin another part of the card; None stays None."""
    return None if text is None else " ".join(str(text).split())


def _number(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:.3f}"


def _names(names: Any) -> str:
    return "" if not names else listing(names, 30)


def _pairs(values: Any) -> str:
    return listing((f"{name} {_value(value)}" for name, value in values.items()), 30) if values else "not recorded"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_value(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return listing((_value(item) for item in value), 10)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
