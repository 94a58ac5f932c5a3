"""Test (a) of `bias.md`: depth. Train on thinned counts and on full ones, and compare predictions of the same tissue.

``python benchmarks/bias.py`` thins her2st C2–C6 to the depth of B4, leaves each section out, and writes one row per model and
scale: levels and differential expression between models of thinned and of full counts, whose truth is 0, and scores against
counts of the other depth.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from _her2st import DEEP, embedded
from _report import DATA, report
from scipy import stats
from spatialdata import SpatialData

import img2gene as ig
from img2gene.models import Model

# Median counts per spot of section B4.
DEPTH = 648
FULL = "full"
SCALES = {"as predicted": None, "depth stated": "unlimited"}
FDR = 0.05


class Counts:
    """The counts of a cohort at full depth, and thinned with several seeds."""

    def __init__(self, sdata: SpatialData, seeds: list[int]) -> None:
        self.table = sdata["table"]
        self.section = self.table.obs["section"].astype(str).to_numpy()
        library = self.table.obs["library_size"].to_numpy(dtype=float)
        counts = sp.csr_matrix(self.table.X)
        self.versions = {FULL: (counts, library)} | {str(seed): self._thinned(counts, library, seed) for seed in seeds}

    def _thinned(self, counts: sp.csr_matrix, library: np.ndarray, seed: int) -> tuple[sp.csr_matrix, np.ndarray]:
        rng, share = np.random.default_rng(seed), np.ones(len(library))
        for name in DEEP:
            rows = self.section == name
            share[rows] = DEPTH / np.median(library[rows])
        thin = counts.copy()
        thin.data = rng.binomial(counts.data.astype(int), np.repeat(share, np.diff(counts.indptr))).astype(np.float32)
        thin.eliminate_zeros()
        # Counts of genes that the table lacks are thinned as well.
        rest = library - np.asarray(counts.sum(axis=1)).ravel()
        return thin, np.asarray(thin.sum(axis=1)).ravel() + rng.binomial(rest.astype(int), share)

    def use(self, version: str) -> None:
        """Put the counts of one version into the table."""
        self.table.X, self.table.obs["library_size"] = self.versions[version]


def fit(sdata: SpatialData, model: str, held_out: str, genes: list[str] | int) -> Model:
    """Fit a model without one section, and without calibration."""
    train = [name for name in DEEP if name != held_out]
    options = {"train_on": train, "genes": genes, "groups": "section", "allow_leakage": True, "uncertainty": False}
    return ig.tl.fit(sdata, model, inplace=False, **options)


def predicted(sdata: SpatialData, model: Model, section: str, depth: str | None) -> np.ndarray:
    """Predictions of one section."""
    values = ig.tl.predict(sdata, model, depth=depth, uncertainty=False, inplace=False)
    return values[values.obs["section"] == section].X


def different(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Mean absolute difference of levels, and share of genes with a significant one."""
    p = stats.ttest_ind(one, other, equal_var=False).pvalue
    significant = stats.false_discovery_control(np.nan_to_num(p, nan=1)) < FDR
    return {"level": float(np.abs(one.mean(axis=0) - other.mean(axis=0)).mean()), "DE": float(significant.mean())}


def quintiles(scores: pd.DataFrame, mean: pd.Series) -> dict[str, float]:
    """Median slope of the genes with the lowest and the highest expression."""
    order = mean.sort_values().index
    parts = np.array_split(order, 5)
    slope = scores.set_index("gene")["slope"]
    return {"slope, lowest fifth": slope[parts[0]].median(), "slope, highest fifth": slope[parts[-1]].median()}


def scored(
    sdata: SpatialData, counts: Counts, model: Model, section: str, version: str, wanted: bool
) -> dict[str, float]:
    """Scores of a model on the counts of one version."""
    counts.use(version)
    ig.tl.predict(sdata, model, key_added="p", uncertainty=False)
    options = {"sections": [section], "key": "p", "n_permutations": 0, "allow_leakage": True, "inplace": False}
    scores = ig.tl.evaluate(sdata, model, at_measured_depth=wanted, **options)
    scores = scores[scores["model"] == model.name]
    row = {"PCC": scores["pcc"].mean(), "R²": scores["r2"].mean(), "level": scores["bias"].abs().mean()}
    return row | quintiles(scores, pd.Series(model.statistics["mean"], model.genes))


def run(sdata: SpatialData, counts: Counts, name: str, section: str) -> list[dict[str, object]]:
    """All comparisons for one section that was left out."""
    counts.use(FULL)
    models = {FULL: fit(sdata, name, section, 1000)}
    for version in counts.versions:
        if version != FULL:
            counts.use(version)
            models[version] = fit(sdata, name, section, models[FULL].genes)
    thinned = [version for version in models if version != FULL]
    rows: list[dict[str, object]] = []
    for scale, depth in SCALES.items():
        facts = {"model": name, "scale": scale, "section": section}
        counts.use(FULL)
        values = {version: predicted(sdata, model, section, depth) for version, model in models.items()}
        pairs = [("thinned and full", version, FULL) for version in thinned]
        pairs += [("two thinnings", *pair) for pair in itertools.combinations(thinned, 2)]
        rows += [{**facts, "comparison": kind, **different(values[one], values[other])} for kind, one, other in pairs]
        for version in thinned:
            for kind, model, counted in (("thinned → full", version, FULL), ("full → thinned", FULL, version)):
                row = scored(sdata, counts, models[model], section, counted, depth is not None)
                rows.append({**facts, "comparison": kind, **row})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--models", nargs="+", default=["ridge-plain", "ridge"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sections", nargs="+", default=DEEP)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    sdata = embedded(arguments.data)
    counts = Counts(sdata, arguments.seeds)
    rows = [
        row for name in arguments.models for section in arguments.sections for row in run(sdata, counts, name, section)
    ]
    table = pd.DataFrame(rows).drop(columns="section").groupby(["model", "comparison", "scale"], sort=False).mean()
    report(table.reset_index().to_dict("records"), arguments.out)


if __name__ == "__main__":
    main()
