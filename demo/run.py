"""The main job from end to end: train on sections, predict sections left out, print the scores, write figures and store.

Run it with ``make demo``, or ``make demo DATA=path/to/her2st`` for real sections.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import pandas as pd
from cohorts import Cohort, Split, recognise
from spatialdata import SpatialData

import img2gene as ig

GROUPS = {"HEG-250": ("mean", 250), "HVG-50": ("variance", 50)}
N_GENES = 1000


def run_split(sdata: SpatialData, split: Split, model: str) -> pd.DataFrame:
    """Fit on the training sections, predict and score the test sections."""
    # Sections of one patient on both sides are part of some published protocols; the result says so.
    ig.tl.fit(
        sdata,
        model=model,
        genes=min(N_GENES, sdata["table"].n_vars),
        groups="section",
        train_on=split.train,
        validate_on=split.test,
        allow_leakage=True,
    )
    ig.tl.predict(sdata)
    return ig.tl.evaluate(sdata, sections=split.test, gene_groups=GROUPS).assign(protocol=split.protocol)


def score_table(scores: pd.DataFrame, name: str) -> pd.DataFrame:
    """One row per protocol and gene group: the model's scores, and the baselines beside it."""
    summary = ig.tl.summarize(scores, by=["protocol", "model"])
    summary = summary[summary["genes"] != "all"]
    keys = ["protocol", "genes"]
    model = summary[summary["model"] == name].set_index(keys)
    null = summary[summary["model"] == "permutation null"].set_index(keys)
    mean = summary[summary["model"] == "training mean"].set_index(keys)
    return pd.DataFrame(
        {
            "PCC": model["pcc"],
            "Spearman": model["spearman"],
            "R²": model["r2"],
            "PCC of permutation null": null["pcc"],
            "MSE": model["mse"],
            "MSE of training mean": mean["mse"],
            "undefined": model["n_nan"],
            "same patient in training": model["leakage"].map({True: "yes", False: "no"}).fillna("unknown"),
        }
    ).reset_index()


def write_results(sdata: SpatialData, cohort: Cohort, scores: pd.DataFrame, table: pd.DataFrame, out: Path) -> None:
    """Scores as CSV, figures as PNG, and the last predicted sections as a SpatialData store."""
    out.mkdir(parents=True, exist_ok=True)
    scores.to_csv(out / "scores.csv", index=False)
    table.to_csv(out / "table.csv", index=False)
    last = cohort.splits[-1]
    measured = sdata["table"].var_names
    predicted = set(ig.get.model(sdata).genes)
    genes = [gene for gene in cohort.genes if gene in measured and gene in predicted] or sorted(predicted)[:3]
    figure = ig.pl.prediction(sdata, genes, sections=last.test[0])
    figure.savefig(out / "prediction.png", dpi=110)
    ax = ig.pl.scores(scores[scores["protocol"] == cohort.splits[0].protocol], genes="HEG-250")
    ax.figure.savefig(out / "scores.png", dpi=130)
    ig.pl.patches(sdata, n=16).savefig(out / "patches.png", dpi=110)
    ig.io.save_model(sdata, out / "model.img2gene", overwrite=True)
    shown = [system for system in sdata.coordinate_systems if system in last.test]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata.filter_by_coordinate_system(shown).write(out / "predicted.zarr", overwrite=True)


def main() -> None:
    """Parse the arguments and run every split of the cohort."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with real sections; default: the synthetic cohort")
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    parser.add_argument(
        "--model", default="ridge", choices=["ridge", "img2gene"], help="img2gene takes some minutes a split"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    start = time.perf_counter()
    cohort = recognise(arguments.data)
    sdata = cohort.read()
    ig.pp.extract_patches(sdata)
    ig.pp.embed_patches(sdata)
    if arguments.model == "img2gene":
        ig.pp.score_pathways(sdata)
    prepared = time.perf_counter()
    scores = pd.concat([run_split(sdata, split, arguments.model) for split in cohort.splits], ignore_index=True)
    table = score_table(scores, arguments.model)
    write_results(sdata, cohort, scores, table, arguments.out)
    print(f"\n{cohort.name}: per gene within section, raw labels, means over genes and test sections\n")
    print(table.round(3).to_string(index=False))
    print(
        f"\nread and embedded in {prepared - start:.0f} s, {len(cohort.splits)} fits in {time.perf_counter() - prepared:.0f} s"
        f"\nfigures, scores, the model and the predicted store: {arguments.out}/"
    )


if __name__ == "__main__":
    main()
