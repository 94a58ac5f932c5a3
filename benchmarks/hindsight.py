"""Could other weights of the default's parts reach more? The best mixture in hindsight, chosen on the test section itself.

No honest model reaches it: its weights are the best of a grid of tenths for the very scores that are shown.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from ablation import GROUPS, fit, outputs, repeat
from cohorts import Split
from spatialdata import SpatialData

import img2gene as ig
from img2gene._study.expression import labels
from img2gene.models import Model

_TENTHS = 10


def run(sdata: SpatialData, split: Split, variant: str, seed: int, cohort: str) -> list[dict[str, object]]:
    """Scores of the default, its best part, and its best mixture, each for the section that was left out."""
    model, seconds = fit(sdata, split, seed, {})
    rows = np.flatnonzero((sdata["table"].obs["section"] == split.test[0]).to_numpy())
    genes = sdata["table"].var_names.get_indexer(model.genes)
    truth = _centred(labels(sdata["table"], rows, genes, layer=None))
    models = outputs(model, "default")
    parts = [_centred(_predicted(sdata, part, rows, genes)) for name, part in models.items() if name != "default"]
    mixtures = np.array([w for w in itertools.product(range(_TENTHS + 1), repeat=len(parts)) if sum(w) == _TENTHS])
    facts = {"protocol": split.protocol, "test": split.test[0], "seed": seed, "seconds": seconds}
    found = {"default": {}, "best part": {}, "best mixture": {}}
    for group, members in _groups(sdata, model, split).items():
        pccs = _pcc(mixtures / _TENTHS, [part[:, members] for part in parts], truth[:, members])
        alone = pccs[(mixtures == _TENTHS).any(axis=1)]
        own = _centred(_predicted(sdata, model, rows, genes))[:, members]
        scores = _pcc(np.ones((1, 1)), [own], truth[:, members])[0], alone.max(), pccs.max()
        for row, score in zip(found.values(), scores, strict=True):
            row[f"pcc {group}"] = float(score)
    return [{"variant": f"{variant}: {name}", **facts, **scores} for name, scores in found.items()]


def _groups(sdata: SpatialData, model: Model, split: Split) -> dict[str, np.ndarray]:
    """Positions of the genes of each group among those of the model."""
    ig.tl.predict(sdata, model)
    table = ig.tl.evaluate(sdata, model, sections=split.test, gene_groups=GROUPS, n_permutations=0)
    table = table[table["model"] == model.name].set_index("gene").loc[list(model.genes)]
    return {group: np.flatnonzero(table[group].to_numpy(dtype=bool)) for group in GROUPS}


def _predicted(sdata: SpatialData, model: Model, rows: np.ndarray, genes: np.ndarray) -> np.ndarray:
    ig.tl.predict(sdata, model)
    return np.asarray(sdata["table"].layers["img2gene"][rows][:, genes], dtype=float)


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=0)


def _pcc(weights: np.ndarray, parts: list[np.ndarray], truth: np.ndarray) -> np.ndarray:
    """Mean PCC over genes of each mixture, (n_mixtures,), of centred predictions and labels, without mixing them."""
    common = np.array([[(a * b).sum(axis=0) for b in parts] for a in parts])
    shared = np.array([(a * truth).sum(axis=0) for a in parts])
    spread = np.einsum("mp,pqg,mq->mg", weights, common, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nanmean(weights @ shared / np.sqrt(spread * (truth**2).sum(axis=0)), axis=1)


if __name__ == "__main__":
    repeat(__doc__ or "", ["hindsight"], run, Path(__file__).parent / "results" / "hindsight.csv")
