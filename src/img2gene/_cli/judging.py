"""``img2gene evaluate``, ``report``, ``card`` and ``benchmark``: how far a model can be trusted."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from img2gene._cli.options import Json, Key, ModelFile, Out, Overwrite, Seed, Set, Study, TableKey, further
from img2gene._cli.output import finish
from img2gene._cli.stores import check_target, open_store
from img2gene._errors import Img2GeneError

_SHOWN = ("model", "genes", "pcc", "spearman", "mse", "ssim")


def evaluate(
    study: Study,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="CSV file for the scores of every gene.", show_default=False)
    ] = None,
    model: ModelFile = None,
    sections: Annotated[
        list[str] | None, typer.Option("--section", help="Section to score; by default those not trained on.")
    ] = None,
    key: Key = "img2gene",
    seed: Seed = None,
    table_key: TableKey = "table",
    more: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score predictions against measured expression, beside three baselines."""
    import img2gene as ig
    from img2gene._files.tables import write_csv
    from img2gene._study.scored import stated_facts

    taken = ("model", "sections", "key", "seed", "table_key")
    arguments = further(ig.tl.evaluate, more, taken)
    target = None if out is None else check_target(out, overwrite, ".csv")
    chosen: dict[str, Any] = {"sections": sections or None, "key": key, "seed": seed, "table_key": table_key}
    scores = ig.tl.evaluate(open_store(study), model, inplace=False, **chosen, **arguments)
    if target is not None:
        # So that a card is refused the scores of another model, and of sections that were trained on.
        write_csv(scores.assign(**stated_facts(scores)), target)
    summary = ig.tl.summarize(scores)
    # Whether a patient leaks is unknown (NA) where patients are not recorded.
    leakage = bool(scores["leakage"].fillna(False).astype(bool).any())
    facts = {"sections": list(dict.fromkeys(scores["section"].astype(str))), "leakage": leakage}
    if not as_json:
        summary = summary[[name for name in _SHOWN if name in summary]]
    finish(({} if target is None else {"out": str(target)}) | facts, as_json, summary)


def report(
    study: Study,
    *,
    out: Out,
    model: ModelFile = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    key: Key = "img2gene",
    seed: Seed = None,
    table_key: TableKey = "table",
    more: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write one HTML page: data, splits, scores with baselines, maps, uncertainty, warnings."""
    import img2gene as ig

    taken = ("data", "cv", "model", "title", "key", "seed", "table_key", "overwrite")
    arguments, target = further(ig.report, more, taken), check_target(out, overwrite, ".html")
    arguments |= {} if title is None else {"title": title}
    page = ig.report(
        open_store(study),
        target,
        model=model,
        key=key,
        seed=seed,
        table_key=table_key,
        overwrite=overwrite,
        **arguments,
    )
    finish({"out": str(page)}, as_json)


def card(
    model: Annotated[Path, typer.Argument(help="File of the model.", show_default=False)],
    *,
    out: Out,
    scores: Annotated[
        Path | None, typer.Option(help="Scores that evaluate wrote; by default those stored with the model.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the model.")] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the card.")] = None,
    limit: Annotated[list[str] | None, typer.Option(help="A known limit that the report cannot know.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the card of a model in Markdown: training data, splits, scores, limits."""
    import img2gene as ig

    target = check_target(out, overwrite, ".md")
    trained = ig.io.load_model(model)
    if scores is None and not trained.report.get("evaluation"):
        raise Img2GeneError(
            f"{model} holds no scores on held-out sections, and no model is offered without them. Pass `--scores scores.csv`, which "
            f"`img2gene evaluate STUDY --model {model} --out scores.csv` writes."
        )
    summary = None if scores is None else ig.tl.summarize(ig.io.read_csv(scores))
    ig.io.model_card(trained, target, title=title, licence=licence, limits=limit or (), scores=summary)
    finish({"out": str(target)}, as_json)


def benchmark(context: typer.Context) -> None:
    """Score models on published protocols; takes the options of `python -m img2gene.benchmark`."""
    import pandas as pd

    from img2gene.benchmark.__main__ import listed, main, parser

    as_json = "--json" in context.args
    arguments = [text for text in context.args if text != "--json"]
    if as_json and (asked := parser().parse_args(arguments)).list:
        finish(listed(asked.data), as_json)
        return
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        status = main(arguments)
    if status:
        # The command has printed what is wrong; 2 is kept for command lines that cannot be parsed.
        raise typer.Exit(1)
    if as_json:
        out = parser().parse_args(arguments).out
        finish({"out": str(out)}, as_json, pd.read_csv(out / "summary.csv"))
