"""Write the results as tables: scores of every gene, a summary, and a page that says what can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from img2gene import metrics
from img2gene._files.folders import write_bytes
from img2gene._files.tables import write_csv
from img2gene.benchmark.references import PublishedScores, published
from img2gene.benchmark.runner import Outcome

if TYPE_CHECKING:
    from img2gene.tl import CrossValidation

N_BEST = 50
BEST = f"HPG-{N_BEST}"
_HEADER = """# Benchmark

PCC is Pearson's correlation of each gene within each section, averaged over genes, then over sections, then over
patients. With several seeds, tables show mean ± SD over seeds. Brackets hold the 95 % confidence interval of the mean
over patients, or over sections if these are the unit; seeds are averaged first. {best} is the mean over the {n} genes
with the highest achieved correlation. It is optimistic by construction and shown only because publications report it.
A restricted run lacks sections of its cohort. Do not compare its scores with other runs.
"""


def summary(outcome: Outcome) -> pd.DataFrame:
    """Tabulate all scores with one row per seed, gene group and model, and state the scope of each score."""
    protocol, inventory = outcome.protocol, outcome.inventory
    facts = {"cohort": inventory.cohort.name, "protocol": protocol.name, "restricted": outcome.restricted}
    facts |= {"missing": ", ".join(inventory.missing(protocol.sections)), "smooth": protocol.smooth}
    parts = [
        pd.concat([result.summary(), best_predicted(result)], ignore_index=True).assign(**facts, seed=seed)
        for seed, result in outcome.results.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    first = ["cohort", "protocol", "restricted", "scope", "seed", "genes", "model"]
    return table[[*first, *(name for name in table if name not in first)]]


def best_predicted(result: CrossValidation) -> pd.DataFrame:
    """Average the correlation of the genes that each model predicts best, if there are more than :data:`N_BEST`."""
    rows = []
    for model in result.models:
        genes = result.genes(model)["pcc"].dropna()
        if len(genes) > N_BEST:
            rows.append({"genes": BEST, "model": model, "pcc": genes.iloc[:N_BEST].mean(), "scope": result.scope})
    return pd.DataFrame(rows)


def write(outcomes: list[Outcome], notes: Iterable[str], out: Path) -> pd.DataFrame:
    """Write ``<cohort>-<protocol>.csv`` of the latest outcome, ``summary.csv`` and ``summary.md``; return the summary.

    ``notes`` say which protocols did not run.
    """
    out.mkdir(parents=True, exist_ok=True)
    latest = outcomes[-1]
    write_csv(latest.scores, out / f"{latest.name}.csv")
    tables = [summary(outcome) for outcome in outcomes]
    table = pd.concat(tables, ignore_index=True)
    write_csv(table, out / "summary.csv")
    write_bytes(out / "summary.md", page(outcomes, tables, notes).encode(errors="replace"))
    return table


def page(outcomes: list[Outcome], tables: list[pd.DataFrame], notes: Iterable[str]) -> str:
    """Write all outcomes, and the ``notes`` on protocols that did not run, as one Markdown page."""
    parts = [_HEADER.format(best=BEST, n=N_BEST)]
    parts += [section(outcome, table) for outcome, table in zip(outcomes, tables, strict=True)]
    lines = [f"- {note}" for note in notes]
    return "\n".join([*parts, *(["## Not run", "", *lines, ""] if lines else [])])


def section(outcome: Outcome, table: pd.DataFrame) -> str:
    """Write the part on one protocol and cohort: scope, sections, genes, scores, and published scores."""
    protocol, inventory = outcome.protocol, outcome.inventory
    result = next(iter(outcome.results.values()))
    mark = " (restricted)" if outcome.restricted else ""
    lines = [f"## {inventory.cohort.name}, {protocol.name}{mark}", ""]
    lines += [f"{inventory.cohort.title}: {protocol.title}. Seeds: {', '.join(map(str, outcome.results))}.", ""]
    lines += [f"- **Scope: {result.scope}.** {result.notice}"]
    lines += [
        f"- Sections: {'**restricted run**, ' if outcome.restricted else ''}{inventory.describe(protocol.sections)}"
    ]
    lines += [f"- {_genes(outcome)}"]
    lines += [f"- {protocol.differs}"] * bool(protocol.differs)
    lines += [f"- {message}" for message in result.warnings]
    lines += ["", models(table, intervals(outcome)).to_markdown(disable_numparse=True), ""]
    scores = published(inventory.cohort.name, protocol.name)
    obstacles = ["restricted run"] * outcome.restricted + ["other genes"] * outcome.other_genes
    return "\n".join(lines + (_published(scores, obstacles) if scores else []))


def _genes(outcome: Outcome) -> str:
    """Say how many genes were predicted, and whether the protocol names other genes."""
    text = f"Genes: {outcome.n_genes}."
    if not outcome.other_genes:
        return text
    expected = outcome.protocol.genes or "the gene list of the task"
    return f"{text} **The protocol uses other genes** ({expected})."


def intervals(outcome: Outcome) -> dict[str, tuple[float, float]]:
    """Compute the 95 % confidence interval of each model's mean over patients (or sections), after averaging seeds."""
    parts = [result.by_unit().rename(columns={result.unit: "unit"}) for result in outcome.results.values()]
    units = pd.concat(parts).groupby(["model", "unit"], sort=False)["pcc"].mean()
    return {
        str(model): metrics.mean_interval(part.to_numpy())[1:]
        for model, part in units.groupby(level="model", sort=False)
    }


def models(table: pd.DataFrame, bounds: Mapping[str, tuple[float, float]]) -> pd.DataFrame:
    """Tabulate correlations for each gene group, with the ``bounds`` over all genes, and other scores, by model."""
    names = list(dict.fromkeys(table["model"]))
    every = table[table["genes"] == "all"]
    columns = {}
    for group in dict.fromkeys(table["genes"]):
        rows = table[table["genes"] == group]
        # Intervals are computed over all genes only.
        shown = bounds if group == "all" else {}
        cells = {model: _cell(rows.loc[rows["model"] == model, "pcc"].dropna(), shown.get(model)) for model in names}
        columns[f"PCC {group}"] = cells
    for metric, title in (("mse", "MSE"), ("r2", "R²")):
        columns[title] = every.groupby("model")[metric].mean().map("{:.3f}".format).to_dict()
    columns["undefined"] = every.groupby("model")["n_nan"].max().astype(int).to_dict()
    # Formatting turns missing numbers into the text "nan".
    return pd.DataFrame(columns, index=pd.Index(names, name="model")).fillna("–").replace("nan", "–")


def _cell(values: pd.Series, bounds: tuple[float, float] | None) -> str:
    """Format the mean over seeds, the SD if there are several seeds, and the interval over patients if it is known."""
    if not len(values):
        return "–"
    text = f"{values.mean():.3f}"
    text += f" ± {values.std():.3f}" if len(values) > 1 else ""
    return text if bounds is None or math.isnan(bounds[0]) else f"{text} [{bounds[0]:.3f}, {bounds[1]:.3f}]"


def _published(reference: PublishedScores, obstacles: list[str]) -> list[str]:
    """Tabulate published scores, and say why they cannot be compared."""
    verdict = f"**not comparable**: {', '.join(obstacles)}" if obstacles else "see the differences above"
    rows = [
        {"published": name, "PCC all": f"{mean:.3f}", f"PCC {BEST}": "–" if best is None else f"{best:.3f}"}
        for name, (mean, best) in reference.scores.items()
    ]
    table = pd.DataFrame(rows).assign(comparable="no" if obstacles else "see above")
    return [
        f"Published scores ({reference.source}); {verdict}.",
        "",
        table.to_markdown(index=False, disable_numparse=True),
        "",
    ]
