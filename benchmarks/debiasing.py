"""Measure each kind of debiasing on data with known truth: the stain predicts expression in the training patients only.

In the synthetic training patients the eosin field drives one gene in five (``confounding=1``); in the held-out patient it
does not, so whoever reads expression off the eosin is wrong there. Control: the same cohort without confounding, whose images
and truth are identical. Networks stand alone (``ridge="none"``, never replaced by the ridge), as it is their own
debiasing that is asked about, except in rows that say "with ridge". Each seed draws a cohort and seeds the models.

Scores are means over genes on the held-out patient. PCC: with the noise-free truth ``layers["truth"]``. MSE: against the
label that this truth leads to on average, by simulation, as the mean of log1p of few counts lies below the log1p of their mean.
MSE of rates: against ``layers["truth"]`` itself, which models of labels miss by that bias.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from _report import markdown
from scipy.stats import t as student
from spatialdata import SpatialData

import img2gene as ig
from img2gene.datasets._counts import LIBRARY_SD, draw_counts
from img2gene.metrics import pearson
from img2gene.models.img2gene.fitted import PARTS

N_PATIENTS = 4
HELD_OUT = f"P{N_PATIENTS}"
DEPTH, DROPOUT = 100.0, 0.1
RARE = 0.1
N_DRAWS = 200
N_BALANCED = 1
GENE_SETS = ("all", "confounded", "other", "rare")
METRICS = ("PCC", "MSE", "MSE of rates")
BASE = "network, effect none"
EFFECTS = ("TE", "TDE", "TIE", "NDE", "NIE")
PATIENT, MIXTURE = "effect TDE, not stopped early", "effect none, with ridge"
DENSITY = "label weighting by density"
OTHERS: dict[str, dict[str, Any]] = {
    PATIENT: {"effect": "TDE", "patience": 1_000},
    "backdoor, 8 centroids": {"n_confounders": 8},
    DENSITY: {"weighting": "density"},
    "Balanced MSE": {"objective": "balanced"},
    "negative binomial": {"objective": "negative_binomial"},
    MIXTURE: {"ridge": "mixture"},
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is computed."""

    n_spots: int = 120
    n_genes: int = 150
    n_models: int = 3
    max_epochs: int = 40


QUICK = Size(n_spots=40, n_genes=60, n_models=1, max_epochs=3)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the table."""

    cohort: str
    center: str
    label: str
    model: str
    params: dict[str, Any]


def entries(size: Size, seed: int) -> Iterator[Entry]:
    """All rows; the control has those only that show what confounding costs."""
    small = {"n_models": size.n_models, "n_validations": 1, "max_epochs": size.max_epochs, "ridge": "none"}
    # Whether effects debias is asked of the network; labels that are looked up have confounding of their own.
    small |= {"retrieval": False}
    for cohort, center in (
        ("control", "none"),
        ("control", "section"),
        ("confounded", "none"),
        ("confounded", "section"),
    ):
        if center == "none":
            yield Entry(cohort, "–", "training mean", "mean", {})
        yield Entry(cohort, center, "ridge-plain", "ridge-plain", {"center": center})
        if (cohort, center) != ("control", "section"):
            yield Entry(cohort, center, BASE, "img2gene", {**small, "center": center})
        if cohort == "control":
            continue
        for effect in EFFECTS if center == "none" else ("TE",):
            yield Entry(cohort, center, f"effect {effect}", "img2gene", {**small, "center": center, "effect": effect})
        for label, params in OTHERS.items():
            # Balanced MSE takes six times as long as the others.
            asked = {
                "Balanced MSE": center == "none" and seed < N_BALANCED,
                PATIENT: center == "none",
                DENSITY: center == "none",
                MIXTURE: center != "none",
            }
            if asked.get(label, True):
                yield Entry(cohort, center, label, "img2gene", {**small, "center": center, **params})


def make_cohort(seed: int, size: Size, confounding: float) -> SpatialData:
    """A cohort with colour and texture of every spot's patch."""
    sdata = ig.datasets.synthetic_cohort(
        N_PATIENTS,
        1,
        size.n_spots,
        size.n_genes,
        seed=seed,
        confounding=confounding,
        depth=DEPTH,
        dropout=DROPOUT,
        mpp=1.0,
    )
    ig.pp.extract_patches(sdata, patch_um=112)
    ig.pp.embed_patches(sdata, "color-texture", orientations=1)
    return sdata


def expected_labels(table: ad.AnnData, rows: np.ndarray, seed: int) -> np.ndarray:
    """Mean over simulated counts of log1p(1e4 · counts / library size), (n, G): what a perfect model of labels says."""
    rng = np.random.default_rng(seed)
    shares = np.expm1(table.layers["truth"][rows].astype(np.float64)) / 1e4
    total = np.zeros(shares.shape)
    for _ in range(N_DRAWS):
        library = DEPTH * np.exp(LIBRARY_SD * rng.standard_normal((len(shares), 1)))
        counts = draw_counts(rng, library * shares, table.var["dispersion"].to_numpy(), DROPOUT).toarray()
        total += np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    return total / N_DRAWS


def predicted(sdata: SpatialData, entry: Entry, seed: int) -> tuple[dict[str, ad.AnnData], dict[str, Any]]:
    """What a model of the other patients predicts, and its full network alone; and what its fit chose."""
    model = ig.tl.fit(sdata, entry.model, validate_on=[HELD_OUT], seed=seed, inplace=False, **entry.params)
    alone = entry.params.get("ridge") == "none"
    if alone:
        fitted = model.predictor.fitted
    summary = model.predictor.summary()
    weights = summary.get("weights", {})
    facts = {
        "epochs": summary.get("epochs"),
        "weight_own": weights.get("own view"),
        "weight_network": weights.get("network"),
    }
    found = {"as fitted": ig.tl.predict(sdata, model, inplace=False)}
    if alone:
        fitted.weights = np.array([float(part == "network") for part in PARTS])
        found["full network"] = ig.tl.predict(sdata, model, inplace=False)
    return found, facts


def scores(sdata: SpatialData, found: ad.AnnData, expected: np.ndarray) -> Iterator[dict[str, Any]]:
    """Scores of a prediction for each set of genes."""
    table = sdata["table"]
    held = (table.obs["patient"] == HELD_OUT).to_numpy()
    genes = table.var_names.get_indexer(found.var_names)
    detected = np.asarray((table.X[~held] > 0).mean(axis=0)).ravel()[genes]
    confounded = table.var["confounded"].to_numpy()[genes]
    values, truth = np.asarray(found.X)[held], table.layers["truth"][held][:, genes]
    with np.errstate(invalid="ignore"):
        per_gene = {"PCC": pearson(truth, values)}
    per_gene["MSE"] = np.square(values - expected[:, genes]).mean(axis=0)
    per_gene["MSE of rates"] = np.square(values - truth).mean(axis=0)
    chosen = {"all": detected >= 0, "confounded": confounded, "other": ~confounded, "rare": detected < RARE}
    for genes_of, mask in chosen.items():
        for metric, each in per_gene.items():
            known = each[mask & np.isfinite(each)]
            facts = {"genes": genes_of, "n_genes": int(mask.sum()), "n_scored": len(known), "metric": metric}
            yield facts | {"value": float(known.mean()) if len(known) else np.nan}


def measure(n_seeds: int, size: Size, known: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """After each seed, all so far: one row for each seed, model, set of genes and metric. Known seeds are not run again."""
    rows: list[dict[str, Any]] = known.to_dict("records")
    for seed in sorted(set(range(n_seeds)) - {row["seed"] for row in rows}):
        cohorts = {"control": make_cohort(seed, size, 0.0), "confounded": make_cohort(seed, size, 1.0)}
        table = cohorts["control"]["table"]
        expected = expected_labels(table, (table.obs["patient"] == HELD_OUT).to_numpy(), seed)
        for entry in entries(size, seed):
            start = time.perf_counter()
            found, chosen = predicted(cohorts[entry.cohort], entry, seed)
            facts = {"seed": seed, "cohort": entry.cohort, "center": entry.center, "model": entry.label, **chosen}
            facts["seconds"] = time.perf_counter() - start
            for part, table in found.items():
                rows += [facts | {"part": part} | score for score in scores(cohorts[entry.cohort], table, expected)]
            print(f"seed {seed}: {entry.cohort}, {entry.center}, {entry.label}: {facts['seconds']:.1f} s", flush=True)
        yield pd.DataFrame(rows)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half the 95 % confidence interval (Student's t)."""
    values = values[np.isfinite(values)]
    n = len(values)
    half = student.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return float(values.mean()), float(half)


def by_seed(results: pd.DataFrame, metric: str, part: str) -> pd.DataFrame:
    """Values with one column for each seed."""
    chosen = results[(results["metric"] == metric) & (results["part"] == part)]
    return chosen.pivot_table(index=["cohort", "center", "model", "genes"], columns="seed", values="value", sort=False)


def summary(results: pd.DataFrame, metric: str, of: str) -> list[dict[str, object]]:
    """Mean ± half interval over seeds for each model and set of genes, and differences to the plain network."""
    part = by_seed(results, metric, of)
    rows: list[dict[str, object]] = []
    for cohort, center, model in dict.fromkeys((*key[:3],) for key in part.index):
        row: dict[str, object] = {"cohort": cohort, "center": center, "model": model}
        for genes in GENE_SETS:
            row[genes] = _cell(part, (cohort, center, model, genes), None)
        if cohort == "confounded" and center != "–" and model != BASE:
            for genes in GENE_SETS:
                row[f"Δ {genes}"] = _cell(part, (cohort, center, model, genes), (cohort, center, BASE, genes))
        rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in columns} for row in rows]


def _cell(part: pd.DataFrame, key: tuple[str, ...], reference: tuple[str, ...] | None) -> str | None:
    if key not in part.index or (reference is not None and reference not in part.index):
        return None
    values = part.loc[key].to_numpy() - (0 if reference is None else part.loc[reference].to_numpy())
    mean, half = interval(values)
    if not np.isfinite(half):
        return f"{mean:.3f}" if reference is None else f"{mean:+.3f}"
    if reference is None:
        return f"{mean:.3f} ± {half:.3f}"
    mark = "**" if abs(mean) > half else ""
    return f"{mark}{mean:+.3f} ± {half:.3f}{mark}"


def costs(results: pd.DataFrame) -> list[dict[str, object]]:
    """What confounding costs models that were fitted to both cohorts: PCC confounded minus control, paired."""
    part = by_seed(results, "PCC", "as fitted")
    rows = []
    for center, model in (("none", "ridge-plain"), ("none", BASE), ("section", "ridge-plain")):
        row: dict[str, object] = {"center": center, "model": model}
        keys = {genes: (center, model, genes) for genes in GENE_SETS}
        row |= {f"Δ {g}": _cell(part, ("confounded", *key), ("control", *key)) for g, key in keys.items()}
        rows.append(row)
    return rows


def write(results: pd.DataFrame, size: Size, folder: Path) -> None:
    """Tables as Markdown, scores as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    results.round(6).to_csv(folder / "debiasing.csv", index=False)
    n_seeds, rare = results["seed"].nunique(), results.loc[results["genes"] == "rare", "n_genes"]
    head = (
        f"{n_seeds} seeds; {N_PATIENTS - 1} training patients and a held-out one, one section of {size.n_spots} spots each, "
        f"{size.n_genes} genes, {rare.min()} to {rare.max()} of them rare (detected in under {RARE:.0%} of training spots); "
        f"{size.n_models} networks, up to {size.max_epochs} epochs. Mean ± half the 95 % confidence interval over seeds; Δ: paired "
        "difference to the plain network (effect none) with the same centring, bold where its interval excludes 0."
    )
    text = [head, "## What confounding costs: PCC, confounded minus control", markdown(costs(results))]
    text += ["## PCC, full network alone", markdown(summary(results, "PCC", "full network"))]
    for metric in METRICS:
        text += [f"## {metric}", markdown(summary(results, metric, "as fitted"))]
    (folder / "debiasing.md").write_text("\n\n".join(text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="only shows that it runs")
    parser.add_argument("--go-on", action="store_true", help="keep the seeds that the results hold already")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    ig.settings.progress = False
    size = QUICK if args.quick else Size()
    stored = args.out / "debiasing.csv"
    known = pd.read_csv(stored) if args.go_on and stored.is_file() else pd.DataFrame()
    for results in measure(args.seeds, size, known):
        write(results, size, args.out)


if __name__ == "__main__":
    main()
