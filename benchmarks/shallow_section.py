"""Does a shallow section of another patient harm the prediction of deep ones? Scores with and without it, on the same genes.

``python benchmarks/shallow_section.py`` leaves each of her2st C2–C6 out and trains on the other four, alone and together with
B4, which has a fifteenth of their depth: as it is by default, and with ``min_depth=0``, which trains on B4.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from _her2st import DEEP, SHALLOW, embedded
from _report import DATA, report
from spatialdata import SpatialData

import img2gene as ig

GROUPS = {"HEG-250": ("mean", 250), "HVG-50": ("variance", 50)}


def fit(sdata: SpatialData, model: str, train: list[str], genes: int | list[str], **options: float) -> ig.models.Model:
    """Fit a model to some sections."""
    split = {"groups": "section", "train_on": train, "allow_leakage": True}
    return ig.tl.fit(sdata, model, genes=genes, uncertainty=False, inplace=False, **split, **options)


def scores(sdata: SpatialData, model: str, held_out: str) -> dict[str, float]:
    """Score a model on a held-out section, trained on the deep sections alone, and with the shallow one."""
    train = [name for name in DEEP if name != held_out]
    alone = fit(sdata, model, train, 1000)
    # Groups of genes are those of the deep sections in both cases.
    groups = {name: alone.top_genes(by, n) for name, (by, n) in GROUPS.items()}
    both = [*train, SHALLOW]
    models = {
        "alone": alone,
        f"with {SHALLOW}": fit(sdata, model, both, alone.genes),
        f"with {SHALLOW}, min_depth=0": fit(sdata, model, both, alone.genes, min_depth=0),
    }
    row = {}
    for label, trained in models.items():
        ig.tl.predict(sdata, trained)
        values = ig.tl.evaluate(sdata, trained, sections=[held_out], n_permutations=0, allow_leakage=True)
        pcc = values[values["model"] == trained.name].set_index("gene")["pcc"]
        row |= {f"{label}, {name}": float(np.nanmean(pcc[genes])) for name, genes in groups.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--models", nargs="+", default=["ridge-plain", "ridge", "knn"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    sdata = embedded(arguments.data)
    rows = []
    for model in arguments.models:
        parts = [scores(sdata, model, held_out) for held_out in DEEP]
        rows.append({"model": model} | {name: np.mean([part[name] for part in parts]) for name in parts[0]})
    report(rows, arguments.out)


if __name__ == "__main__":
    main()
