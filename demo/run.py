"""The main job from end to end: train, predict sections that were left out, print the scores, write figures and a store.

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
BASELINES = ("training mean", "permutation null")
SCORES = {"pcc": "PCC", "spearman": "Spearman", "r2": "R²", "mse": "MSE", "n_nan": "undefined"}


def run_split(sdata: SpatialData, split: Split, models: list[str]) -> pd.DataFrame:
    """Fit every model on the training sections, then predict and score the test sections."""
    return pd.concat([run_model(sdata, split, model) for model in models], ignore_index=True)


def run_model(sdata: SpatialData, split: Split, model: str) -> pd.DataFrame:
    """Fit one model, with the default parameters of ``tl.fit``, and score its predictions."""
    # Sections of one patient on both sides are part of some published protocols; the result says so.
    ig.tl.fit(
        sdata,
        model=model,
        genes=min(N_GENES, sdata["table"].n_vars),
        groups="section",
        train_on=split.train,
        validate_on=split.test,
        allow_leakage=True,
        key_added=model,
    )
    ig.tl.predict(sdata, key_added=model)
    scores = ig.tl.evaluate(sdata, sections=split.test, gene_groups=GROUPS, key=model)
    return scores.assign(protocol=split.protocol)


def with_baselines(scores: pd.DataFrame, models: list[str]) -> pd.DataFrame:
    """Keep the baselines and the models, each once; the permutation null is that of the first model."""
    rows = scores[scores["model"].isin([*BASELINES, *models])]
    rows = rows.drop_duplicates(["protocol", "model", "section", "gene"])
    order = pd.Categorical(rows["model"], [*BASELINES, *models], ordered=True)
    return rows.assign(model=order).sort_values("model", kind="stable").astype({"model": str})


def score_table(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per protocol, gene group and model."""
    summary = ig.tl.summarize(scores, by=["protocol", "model"])
    summary = summary[summary["genes"] != "all"].sort_values(["protocol", "genes"], kind="stable")
    leakage = summary["leakage"].map({True: "yes", False: "no"}).fillna("unknown")
    table = summary[["protocol", "genes", "model", *SCORES]].rename(columns=SCORES)
    return table.assign(**{"same patient in training": leakage})


def write_figures(sdata: SpatialData, cohort: Cohort, scores: pd.DataFrame, models: list[str], out: Path) -> None:
    """Scores of all models, maps of the last test section for each model, and patches."""
    measured = sdata["table"].var_names
    predicted = set(ig.get.model(sdata, key=models[-1]).genes)
    genes = [gene for gene in cohort.genes if gene in measured and gene in predicted] or sorted(predicted)[:3]
    for model in models:
        figure = ig.pl.prediction(sdata, genes, sections=cohort.splits[-1].test[0], key=model)
        figure.savefig(out / f"prediction_{model}.png", dpi=110)
    ax = ig.pl.scores(scores[scores["protocol"] == cohort.splits[0].protocol], genes="HEG-250")
    ax.figure.savefig(out / "scores.png", dpi=130)
    ig.pl.patches(sdata, n=16).savefig(out / "patches.png", dpi=110)


def write_results(sdata: SpatialData, cohort: Cohort, scores: pd.DataFrame, models: list[str], out: Path) -> None:
    """Scores as CSV, figures as PNG, the last model, and the sections that it predicted as a SpatialData store."""
    out.mkdir(parents=True, exist_ok=True)
    scores.to_csv(out / "scores.csv", index=False)
    score_table(scores).to_csv(out / "table.csv", index=False)
    write_figures(sdata, cohort, scores, models, out)
    ig.io.save_model(sdata, out / "model.img2gene", key=models[-1], overwrite=True)
    test = cohort.splits[-1].test
    shown = [system for system in sdata.coordinate_systems if system in test]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata.filter_by_coordinate_system(shown).write(out / "predicted.zarr", overwrite=True)


def prepare(cohort: Cohort, models: list[str]) -> SpatialData:
    """Read the sections, embed their patches, and score the pathways that Img2Gene takes as context."""
    sdata = cohort.read()
    ig.pp.extract_patches(sdata)
    ig.pp.embed_patches(sdata)
    if "img2gene" in models:
        ig.pp.score_pathways(sdata)
    return sdata


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with real sections; default: the synthetic cohort")
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    parser.add_argument(
        "--model",
        default="img2gene",
        choices=["img2gene", "ridge"],
        help="img2gene is trained in addition to the ridge and takes a minute or more per split; ridge is trained alone",
    )
    return parser.parse_args()


def main() -> None:
    """Run every split of the cohort with the ridge and the chosen model."""
    options = arguments()
    models = list(dict.fromkeys(["ridge", options.model]))
    warnings.simplefilter("ignore", DeprecationWarning)
    start = time.perf_counter()
    cohort = recognise(options.data)
    sdata = prepare(cohort, models)
    prepared = time.perf_counter()
    splits = [run_split(sdata, split, models) for split in cohort.splits]
    scores = with_baselines(pd.concat(splits, ignore_index=True), models)
    fitted = time.perf_counter()
    write_results(sdata, cohort, scores, models, options.out)
    print(f"\n{cohort.name}: scores per gene within section, raw expression, means over genes and test sections\n")
    print(score_table(scores).round(3).to_string(index=False))
    print(
        f"\nread and embedded in {prepared - start:.0f} s; {len(cohort.splits)} split(s) with {' and '.join(models)} in "
        f"{fitted - prepared:.0f} s\nfigures, scores, the model and the predicted store: {options.out}/"
    )


if __name__ == "__main__":
    main()
