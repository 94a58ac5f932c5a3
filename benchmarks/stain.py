"""Measure what normalising the stain, or augmenting against it, gives for predictions of sections in another stain.

``python benchmarks/stain.py`` trains the ridge on each treatment of the images: on her2st with patient C predicting patient B
and the reverse, and on synthetic cohorts whose eosin follows one gene in five in the training patients only (and their control).
One field of view of 112 µm, one orientation. It writes one row per score; rows that are there already are not computed again.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _her2st import DEEP, SHALLOW, her2st
from _report import DATA, markdown
from confounding import COHORTS
from debiasing import DEPTH, DROPOUT, HELD_OUT, N_PATIENTS, Size, interval
from spatialdata import SpatialData

import img2gene as ig
from img2gene.metrics import pearson

FIELD_UM = 112
NORMALISED = ("macenko", "reinhard", "vahadane")
NOTHING = "nothing"
TREATMENTS: dict[str, dict[str, Any]] = {
    NOTHING: {},
    "augment": {"augment": "stain"},
    "debias": {"restained": 40},
    **{method: {} for method in NORMALISED},
}
DIRECTIONS = {"C2–C6 → B4": (DEEP, [SHALLOW]), "B4 → C2–C6": ([SHALLOW], DEEP)}
GROUPS = {"HEG-250": ("mean", 250), "HVG-50": ("variance", 50)}
Row = dict[str, Any]


def embed(sdata: SpatialData, treatment: str, encoder: str, reference: str) -> None:
    """Extract and embed the patches of one treatment; the stain of ``reference`` is what images are brought to."""
    images = None
    if treatment in NORMALISED:
        if f"{reference}_{treatment}" not in sdata.images:
            ig.pp.normalize_stain(sdata, reference, method=treatment, key_added=treatment)
        regions = sdata["table"].obs["region"].astype(str).unique()
        images = {region: f"{region.removesuffix('_spots')}_image_{treatment}" for region in regions}
    ig.pp.extract_patches(sdata, patch_um=FIELD_UM, images=images)
    ig.pp.embed_patches(sdata, encoder, orientations=1, **TREATMENTS[treatment])


def debias(treatment: str) -> str | None:
    """The argument of the fit."""
    return "stain" if treatment == "debias" else None


def on_her2st(sdata: SpatialData, treatment: str, encoder: str) -> Iterator[Row]:
    """PCC of the ridge from one patient to the other, mean over sections."""
    embed(sdata, treatment, encoder, f"{DEEP[0]}_image")
    for direction, (train, test) in DIRECTIONS.items():
        model = ig.tl.fit(
            sdata,
            "ridge",
            genes=1000,
            train_on=train,
            validate_on=test,
            groups="section",
            uncertainty=False,
            allow_single_section=True,
            debias=debias(treatment),
            inplace=False,
        )
        ig.tl.predict(sdata, model)
        scores = ig.tl.evaluate(sdata, model, sections=test, gene_groups=GROUPS, n_permutations=0)
        summary = ig.tl.summarize(scores[scores["model"] == model.name]).set_index("genes")
        for group in GROUPS:
            yield {"data": direction, "seed": 0, "genes": group, "pcc": summary.loc[group, "pcc"]}


def on_synthetic(sdata: SpatialData, cohort: str, seed: int, treatment: str, encoder: str) -> Iterator[Row]:
    """PCC of the ridge with the noise-free truth of the patient that was left out."""
    embed(sdata, treatment, encoder, "P1_S1_image")
    model = ig.tl.fit(
        sdata,
        "ridge",
        validate_on=[HELD_OUT],
        debias=debias(treatment),
        seed=seed,
        uncertainty=False,
        inplace=False,
    )
    found, table = ig.tl.predict(sdata, model, inplace=False), sdata["table"]
    held, genes = (table.obs["patient"] == HELD_OUT).to_numpy(), table.var_names.get_indexer(found.var_names)
    with np.errstate(invalid="ignore"):
        each = pearson(table.layers["truth"][held][:, genes], np.asarray(found.X)[held])
    confounded = table.var["confounded"].to_numpy()[genes]
    for name, mask in (("confounded", confounded), ("other", ~confounded)):
        yield {"data": f"synthetic, {cohort}", "seed": seed, "genes": name, "pcc": float(np.nanmean(each[mask]))}


def draw(cohort: str, seed: int) -> SpatialData:
    """Draw a synthetic cohort as the other tests of bias do."""
    size = Size()
    return ig.datasets.synthetic_cohort(
        N_PATIENTS,
        1,
        size.n_spots,
        size.n_genes,
        seed=seed,
        confounding=COHORTS[cohort],
        depth=DEPTH,
        dropout=DROPOUT,
        mpp=1.0,
    )


def table_of(rows: pd.DataFrame) -> list[Row]:
    """PCC without treatment, and the difference that each makes; with several seeds its 95 % confidence interval."""
    out = []
    for (data, encoder, genes), group in rows.groupby(["data", "encoder", "genes"], sort=False):
        wide = group.pivot_table(index="seed", columns="treatment", values="pcc")
        line = {"data": data, "encoder": encoder, "genes": genes, NOTHING: f"{wide[NOTHING].mean():.3f}"}
        for treatment in TREATMENTS:
            if treatment in wide and treatment != NOTHING:
                change = (wide[treatment] - wide[NOTHING]).dropna().to_numpy()
                mean, half = interval(change) if len(change) > 1 else (change.mean(), np.nan)
                line[treatment] = f"{mean:+.3f}" + (f" ± {half:.3f}" if np.isfinite(half) else "")
        out.append(line)
    return out


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--encoders", nargs="+", default=["color-texture", "default"])
    parser.add_argument("--treatments", nargs="+", default=list(TREATMENTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "stain.csv")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ig.settings.progress = False
    rows: list[Row] = pd.read_csv(arguments.out).to_dict("records") if arguments.out.is_file() else []

    def add(found: Iterator[Row], treatment: str, encoder: str) -> None:
        start = time.perf_counter()
        rows.extend({"treatment": treatment, "encoder": encoder, **row} for row in found)
        pd.DataFrame(rows).to_csv(arguments.out, index=False)
        print(rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)

    def missing(data: str, seed: int, encoder: str) -> list[str]:
        key = (data, seed, encoder)
        known = {row["treatment"] for row in rows if (row["data"], row["seed"], row["encoder"]) == key}
        return [treatment for treatment in arguments.treatments if treatment not in known]

    for encoder in arguments.encoders:
        # Networks take a minute for each synthetic cohort.
        for seed in range(arguments.seeds if encoder == "color-texture" else 0):
            for cohort in COHORTS:
                if todo := missing(f"synthetic, {cohort}", seed, encoder):
                    sdata = draw(cohort, seed)
                    for treatment in todo:
                        add(on_synthetic(sdata, cohort, seed, treatment, encoder), treatment, encoder)
        if todo := missing(next(reversed(DIRECTIONS)), 0, encoder):
            sdata = her2st(arguments.data / "her2st").read()
            for treatment in todo:
                add(on_her2st(sdata, treatment, encoder), treatment, encoder)
    print(markdown(table_of(pd.DataFrame(rows))))


if __name__ == "__main__":
    main()
