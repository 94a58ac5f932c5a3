"""Retrieval, regression and their mixture: accuracy against gene–gene structure, on real sections.

``python benchmarks/cmrcnet.py`` trains CMRCNet with and without the ridge, and its networks alone with and without their losses,
on every split of two cohorts, with three seeds; and BLEEP, feature k-NN and both ridges for comparison. What retrieval and
regression say is taken from the same fit as the mixture. One row per variant, split and seed; rows that are there already are
not computed again.
"""

from __future__ import annotations

from pathlib import Path

from ablation import GROUPS, Split, alone, fit, repeat
from spatialdata import SpatialData

import img2gene as ig
from img2gene.models import Model
from img2gene.models.cmrcnet.fitted import PARTS

# From the literature on each tissue, before any of these sections was scored.
MARKERS = {
    "her2st": "ERBB2 GRB7 KRT7 KRT8 KRT18 KRT19 EPCAM COL1A1 COL1A2 COL3A1 SPARC FN1 IGKC CD74 CD3E CD8A MS4A1 PTPRC".split(),
    "mob_st": "Penk Doc2g Gpsm1 Kctd12 Apod Ptgds Fabp7 Cdhr1 Th Slc17a7 Tbr1 Gad1 Calb2 Meis2 Sv2b Nrsn1".split(),
}
SMALL = {"n_models": 2, "n_validations": 1}
VARIANTS: dict[str, dict[str, object]] = {
    "ridge-plain": {"model": "ridge-plain"},
    "ridge": {"model": "ridge"},
    "feature k-NN": {"model": "knn"},
    "BLEEP": {"model": "bleep", **SMALL},
    "CMRCNet": {"model": "cmrcnet", **SMALL},
    "CMRCNet without ridge": {"model": "cmrcnet", **SMALL, "ridge": False},
    "CMRCNet as published": {"model": "cmrcnet", "preset": "paper"},
    # Parts are removed from the networks alone, where the ridge cannot stand in for them.
    "CMRCNet without reconstruction": {"model": "cmrcnet", **SMALL, "ridge": False, "reconstruction": 0.0},
    "CMRCNet without contrast": {"model": "cmrcnet", **SMALL, "ridge": False, "contrast": 0.0},
    "CMRCNet with equal weights": {
        "model": "cmrcnet",
        **SMALL,
        "ridge": False,
        "contrast": 1.0,
        "reconstruction": 1.0,
        "temperature": 1.0,
    },
}


def outputs(model: Model) -> dict[str, Model]:
    """Return the model, and for a mixture also its retrieval and its regression alone."""
    parameters = getattr(model.predictor, "parameters", None)
    if getattr(parameters, "output", None) != "mixture":
        return {"": model}
    # A network without the loss of a part has no such part.
    absent = set() if parameters.regression > 0 else {"regression"}
    parts = {": mixture": model}
    return parts | {f": {name}": alone(model, name) for name in PARTS[1:] if name not in absent}


def run(sdata: SpatialData, split: Split, variant: str, seed: int, cohort: str) -> list[dict[str, object]]:
    """Score one variant, and its parts, on one split."""
    model, seconds = fit(sdata, split, seed, VARIANTS[variant])
    facts = {"protocol": split.protocol, "test": split.test[0], "seed": seed}
    return [
        {"variant": variant + suffix, **facts, **score(sdata, part, split, cohort), "seconds": seconds}
        for suffix, part in outputs(model).items()
    ]


def score(sdata: SpatialData, model: Model, split: Split, cohort: str) -> dict[str, float]:
    """Compute the mean PCC of each group of genes, and how well gene–gene correlations are preserved."""
    ig.tl.predict(sdata, model)
    markers = [gene for gene in MARKERS[cohort] if gene in model.genes]
    scores = ig.tl.evaluate(sdata, model, sections=split.test, gene_groups=GROUPS, markers=markers, n_permutations=0)
    summary = ig.tl.summarize(scores[scores["model"] == model.name]).set_index("genes")
    values = {f"pcc {group}": summary.loc[group, "pcc"] for group in (*GROUPS, "markers")}
    for name, rule in GROUPS.items():
        structure = ig.tl.gene_correlation(
            sdata, model=model, genes=rule, sections=split.test, n_modules=1, inplace=False
        )
        values[f"structure {name}"] = structure.overall["pcc"]
    return values


if __name__ == "__main__":
    repeat(__doc__, VARIANTS, run, Path(__file__).parent / "results" / "cmrcnet.csv")
