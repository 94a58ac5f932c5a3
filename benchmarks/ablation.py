"""Measure what each part of img2gene contributes on real sections, compared with the ridge on the same embeddings.

``python benchmarks/ablation.py`` trains every variant on every split of two cohorts, with three seeds, and writes one row per
variant, split and seed; rows that are there already are not computed again. ``--cohorts lung_organoid_visium`` takes another
folder of the data.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _report import DATA
from spatialdata import SpatialData

import img2gene as ig
from img2gene.models import Model

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
from cohorts import Split, recognise

Run = Callable[[SpatialData, Split, str, int, str], list[dict[str, object]]]
METRICS = ("pcc", "r2", "mse", "slope", "coverage")
GROUPS = {"HEG-250": ("mean", 250), "HVG-50": ("variance", 50)}
SMALL = {"n_models": 2, "n_validations": 1, "retrieval": False}
VARIANTS: dict[str, dict[str, object]] = {
    "ridge-plain": {"model": "ridge-plain"},
    "ridge": {"model": "ridge"},
    "full": SMALL,
    "full, with retrieval": {**SMALL, "retrieval": True},
    "with effect TE": {**SMALL, "effect": "TE"},
    "without pathways": {**SMALL, "pathways": False},
    "without coherence": {**SMALL, "coherence": 0.0, "pathway_coherence": 0.0},
    "without neighbourhood": {**SMALL, "neighborhood": False},
    "without section view": {**SMALL, "section_view": False},
    "without ridge": {**SMALL, "ridge": "none"},
    "on the ridge's residual": {**SMALL, "ridge": "residual"},
    "as published for her2st, NIE": {"preset": "her2st"},
    "as published for cSCC, TE": {"preset": "cscc"},
    "default": {},
    "ridge, stain": {"model": "ridge", "debias": "stain"},
    "ridge, depth": {"model": "ridge", "debias": "depth"},
    "ridge, level": {"model": "ridge", "debias": "level"},
    "default, stain": {"debias": "stain"},
    "default without retrieval": {"retrieval": False},
}


def read(folder: Path, name: str, tokens: int | None = None, orientations: int = 2) -> tuple[SpatialData, list[Split]]:
    """An embedded cohort with its pathway scores, and its splits."""
    cohort = recognise(folder / name)
    sdata = cohort.read()
    ig.pp.extract_patches(sdata)
    ig.pp.embed_patches(sdata, restained=40, tokens=tokens, orientations=orientations)
    ig.pp.score_pathways(sdata, "tissue")
    return sdata, [split for split in cohort.splits if len(split.test) == 1]


def fit(sdata: SpatialData, split: Split, seed: int, parameters: dict[str, object]) -> tuple[Model, float]:
    """A model trained on one split, and the seconds that took."""
    start = time.perf_counter()
    model = ig.tl.fit(
        sdata,
        genes=1000,
        groups="section",
        train_on=split.train,
        validate_on=split.test,
        allow_leakage=True,
        seed=seed,
        inplace=False,
        **parameters,
    )
    return model, time.perf_counter() - start


def alone(model: Model, part: str, **changes: object) -> Model:
    """A copy of a mixture in which one part predicts alone."""
    copied, predictor = copy.copy(model), copy.copy(model.predictor)
    weights = np.array([float(name == part) for name in model.report["fit"]["weights"]])
    predictor.fitted = dataclasses.replace(predictor.fitted, weights=weights, **changes)
    copied.predictor = predictor
    return copied


def outputs(model: Model, variant: str) -> dict[str, Model]:
    """The model, and the parts of the default mixture alone, by name."""
    models = {variant: model}
    if variant == "default":
        fitted = model.predictor.fitted
        everywhere = dataclasses.replace(fitted.validated, near=1e6, far=2e6)
        # Retrieval without a weight keeps no training spots.
        absent = {"retrieval"} if fitted.retrieval is None else set()
        parts = [part for part in model.report["fit"]["weights"] if part not in absent]
        models |= {f"{variant}: {part}": alone(model, part, validated=everywhere) for part in parts}
    return models


def run(sdata: SpatialData, split: Split, variant: str, seed: int, cohort: str) -> list[dict[str, object]]:
    """Scores of one variant on one split, and of the parts of the default."""
    model, seconds = fit(sdata, split, seed, VARIANTS[variant])
    facts = {"protocol": split.protocol, "test": split.test[0], "seed": seed}
    return [
        {"variant": name, **facts, **score(sdata, part, split), "seconds": seconds}
        for name, part in outputs(model, variant).items()
    ]


def score(sdata: SpatialData, model: Model, split: Split) -> dict[str, float]:
    """Mean scores of each group of genes."""
    ig.tl.predict(sdata, model)
    scores = ig.tl.evaluate(sdata, model, sections=split.test, gene_groups=GROUPS, n_permutations=0)
    summary = ig.tl.summarize(scores[scores["model"] == model.name]).set_index("genes")
    return {f"{metric} {group}": summary.loc[group, metric] for metric in METRICS for group in GROUPS}


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over test sections, then mean and SD over seeds."""
    columns = [name for name in rows if name.startswith((*METRICS, "structure"))]
    by_seed = rows.groupby(["protocol", "variant", "seed"], sort=False)[columns].mean()
    groups = by_seed.groupby(["protocol", "variant"], sort=False)
    table = groups.mean().round(3).astype(str)
    for name in columns:
        table[name] += " ± " + groups[name].std().round(3).astype(str)
    table["seeds"] = groups.size()
    return table.reset_index()


def repeat(description: str, variants: Iterable[str], run: Run, out: Path) -> None:
    """Run every variant on every split with every seed, unless its row is in the file already, and print the means."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cohorts", nargs="+", default=["her2st", "mob_st"])
    parser.add_argument("--variants", nargs="+", default=list(variants))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, help="tokens of each patch that networks attend to; none by default")
    parser.add_argument("--orientations", type=int, default=2, help="of each patch, over which features are averaged")
    parser.add_argument("--out", type=Path, default=out)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    ig.settings.progress = False
    rows = pd.read_csv(arguments.out).to_dict("records") if arguments.out.is_file() else []
    for name in arguments.cohorts:
        sdata, splits = read(arguments.data, name, arguments.tokens, arguments.orientations)
        for seed, variant, split in itertools.product(arguments.seeds, arguments.variants, splits):
            key = (variant, split.protocol, split.test[0], seed)
            if any((row["variant"].split(":")[0], row["protocol"], row["test"], row["seed"]) == key for row in rows):
                continue
            scores = run(sdata, split, variant, seed, name)
            rows += scores
            pd.DataFrame(rows).to_csv(arguments.out, index=False)
            for row in scores:
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    print(summarise(pd.DataFrame(rows)).to_markdown(index=False))


if __name__ == "__main__":
    repeat(__doc__, VARIANTS, run, Path(__file__).parent / "results" / "ablation.csv")
