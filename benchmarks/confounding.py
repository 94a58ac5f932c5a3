"""Test (b) of bias.md: what a part of the debiasing gives where the stain predicts expression in the training patients only.

``python benchmarks/confounding.py`` draws 20 cohorts with and without confounding, trains each model with and without the
part, and writes one row for each. Seeds that are in the file already are not run again.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from _report import markdown
from debiasing import HELD_OUT, Size, interval, make_cohort
from spatialdata import SpatialData

import img2gene as ig
from img2gene.metrics import pearson

SETS = ("all", "confounded", "other")
COHORTS = {"confounded": 1.0, "control": 0.0}


def scored(sdata: SpatialData, model: str, debias: str | None, seed: int) -> dict[str, float]:
    """PCC with the noise-free truth on the held-out patient, for each set of genes."""
    table = sdata["table"]
    fitted = ig.tl.fit(sdata, model, validate_on=[HELD_OUT], debias=debias, seed=seed, uncertainty=False, inplace=False)
    found = ig.tl.predict(sdata, fitted, inplace=False)
    held = (table.obs["patient"] == HELD_OUT).to_numpy()
    genes = table.var_names.get_indexer(found.var_names)
    with np.errstate(invalid="ignore"):
        each = pearson(table.layers["truth"][held][:, genes], np.asarray(found.X)[held])
    confounded = table.var["confounded"].to_numpy()[genes]
    masks = {"all": np.ones(len(genes), dtype=bool), "confounded": confounded, "other": ~confounded}
    return {name: float(np.nanmean(each[mask])) for name, mask in masks.items()}


def rows_of(seed: int, models: list[str], part: str) -> Iterator[dict[str, object]]:
    """All rows of one seed."""
    for cohort, confounding in COHORTS.items():
        sdata = make_cohort(seed, Size(), confounding)
        ig.pp.embed_patches(sdata, "color-texture", orientations=1, restained=40)
        for model in models:
            for debias in (None, part):
                facts = {"seed": seed, "cohort": cohort, "model": model, "part": debias or "nothing"}
                yield facts | scored(sdata, model, debias, seed)


def table_of(rows: pd.DataFrame, part: str) -> list[dict[str, str]]:
    """Means without and with the part, and the paired difference with its 95 % confidence interval."""
    out = []
    for (cohort, model), group in rows.groupby(["cohort", "model"], sort=False):
        line = {"cohort": str(cohort), "model": str(model)}
        for name in SETS:
            wide = group.pivot_table(index="seed", columns="part", values=name)
            mean, half = interval((wide[part] - wide["nothing"]).to_numpy())
            line[name] = f"{wide['nothing'].mean():.3f} → {wide[part].mean():.3f} ({mean:+.4f} ± {half:.4f})"
        out.append(line)
    return out


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--models", nargs="+", default=["ridge-plain", "ridge"])
    parser.add_argument("--part", default="stain")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "confounding.csv")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    ig.settings.progress = False
    rows = pd.read_csv(arguments.out).to_dict("records") if arguments.out.is_file() else []
    for seed in range(arguments.seeds):
        known = {row["model"] for row in rows if row["seed"] == seed and row["part"] == arguments.part}
        if missing := [model for model in arguments.models if model not in known]:
            rows += rows_of(seed, missing, arguments.part)
            pd.DataFrame(rows).to_csv(arguments.out, index=False)
    chosen = pd.DataFrame(rows)
    print(markdown(table_of(chosen[chosen["part"].isin(["nothing", arguments.part])], arguments.part)))


if __name__ == "__main__":
    main()
