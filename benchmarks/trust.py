"""Coverage of intervals, unlike spots, noise ceilings and planted leaks on synthetic cohorts, whose truth is known.

Frozen colour-and-texture features; every patient is held out in turn. Nothing depends on real sections or on a network.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
from _report import markdown
from scipy.ndimage import gaussian_filter
from spatialdata import SpatialData

import img2gene as ig
from img2gene import metrics

ENCODER = "color-texture"
# Colours of haematoxylin and eosin in the cohort, and in another laboratory.
USUAL = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
OTHER = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
CEILINGS = {
    "default: depth 3,000, dropout 0.1": {},
    "depth 500": {"depth": 500},
    "depth 20,000": {"depth": 20_000},
    "no dropout": {"dropout": 0.0},
    "dropout 0.3": {"dropout": 0.3},
    "signal 0.3": {"signal": 0.3},
    "one patient": {"n_patients": 1},
    "one section of 150 spots": {"n_patients": 1, "n_sections": 1},
    "100 genes": {"n_genes": 100},
    "40 genes": {"n_genes": 40},
}


def embedded(sdata: SpatialData) -> SpatialData:
    """The cohort with patches of 112 µm and their features."""
    ig.pp.extract_patches(sdata, patch_um=112)
    ig.pp.embed_patches(sdata, ENCODER)
    return sdata


def coverage(seeds: list[int]) -> Iterator[dict[str, object]]:
    """Share of held-out labels within intervals of 90 %, mean over genes, sections and patients."""
    for n_patients in (3, 4, 6):
        for seed in seeds:
            study = embedded(ig.datasets.synthetic_cohort(n_patients=n_patients, seed=seed))
            found = ig.tl.cross_validate(
                study, ["ridge-plain", "ridge", "knn", "mean"], baselines=False, n_permutations=0
            )
            for model, part in found.scores.groupby("model", sort=False):
                patients = part.groupby("patient")["coverage"].mean()
                if patients.notna().any():
                    facts = {"model": model, "patients": n_patients, "seed": seed, "coverage": patients.mean()}
                    yield facts | {"lowest patient": patients.min(), "highest patient": patients.max()}


def blurred(pixels: np.ndarray) -> np.ndarray:
    return np.stack([gaussian_filter(channel.astype(float), 2) for channel in pixels]).astype(np.uint8)


def stained(pixels: np.ndarray, colours: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """The same tissue in dyes of other colours or amounts."""
    density = -np.log(np.clip(pixels.astype(float), 1, None) / 245)
    dyes = np.linalg.lstsq(USUAL.T, density.reshape(3, -1), rcond=None)[0] * strength[:, None]
    return np.clip(245 * np.exp(-(colours.T @ dyes)), 0, 255).reshape(pixels.shape).astype(np.uint8)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "blurred (σ 1.3 µm)": blurred,
    "other dyes": lambda pixels: stained(pixels, OTHER, np.ones(2)),
    "1.8 × haematoxylin, 0.5 × eosin": lambda pixels: stained(pixels, USUAL, np.array([1.8, 0.5])),
}


def novelty(seeds: list[int]) -> Iterator[dict[str, object]]:
    """AUROC of the percentile for the spots of a held-out patient, changed against as they are."""
    for n_patients in (4, 6):
        for seed in seeds:
            study = embedded(ig.datasets.synthetic_cohort(n_patients=n_patients, seed=seed))
            held_out = f"P{n_patients}"
            model = ig.tl.fit(study, "ridge", validate_on=[held_out], inplace=False)
            ordinary = percentiles(study, model, held_out)
            for name, change in CHANGES.items():
                strange = percentiles(seen_through(study, held_out, change), model, held_out)
                truth = np.repeat([False, True], [len(ordinary), len(strange)])
                auroc = metrics.auroc(truth, np.concatenate([ordinary, strange]))
                yield {"change": name, "training patients": n_patients - 1, "seed": seed, "AUROC": auroc}


def seen_through(study: SpatialData, patient: str, change: Callable[[np.ndarray], np.ndarray]) -> SpatialData:
    """The sections of one patient, with other pixels."""
    images, shapes = (
        {name: element for name, element in part.items() if name.startswith(patient)}
        for part in (study.images, study.shapes)
    )
    images = {
        name: image.copy(data=da.from_array(change(np.asarray(image.data)), chunks=image.data.chunks))
        for name, image in images.items()
    }
    table = study["table"][(study["table"].obs["patient"] == patient).to_numpy()].copy()
    table.uns["spatialdata_attrs"] = {**table.uns["spatialdata_attrs"], "region": sorted(shapes)}
    return embedded(SpatialData(images=images, shapes=shapes, tables={"table": table}))


def percentiles(study: SpatialData, model: ig.models.Model, patient: str) -> np.ndarray:
    obs = ig.tl.predict(study, model, inplace=False).obs
    return obs.loc[obs["patient"] == patient, "img2gene_ood"].to_numpy()


def ceilings(seeds: list[int]) -> Iterator[dict[str, object]]:
    """Estimated against true noise ceilings: the correlation of the labels with the noise-free expression."""
    for name, given in CEILINGS.items():
        for seed in seeds:
            table = ig.datasets.synthetic_cohort(**given, seed=seed)["table"]
            counts, truth, sections = (
                table.X,
                np.asarray(table.layers["truth"]),
                table.obs["section"].to_numpy(dtype=str),
            )
            library = table.obs["library_size"].to_numpy()
            labels = np.log1p(1e4 * counts.toarray() / library[:, None])
            members = [sections == section for section in np.unique(sections)]
            true = np.nanmean([metrics.pearson(labels[rows], truth[rows]) for rows in members], axis=0)
            found, bound = (
                metrics.noise_ceiling(counts, library, sections=sections, method=method)
                for method in ("genes", "thinning")
            )
            facts = {"cohort": name, "seed": seed, "true": np.nanmean(true), "genes": np.nanmean(found)}
            yield facts | {"within 0.03": np.mean(np.abs(found - true) < 0.03), "thinning": np.nanmean(bound)}


def leaks(seeds: list[int]) -> Iterator[dict[str, object]]:
    """Whether a section under another patient's name is found, and what is found in honest cohorts."""
    for seed in seeds:
        study = embedded(ig.datasets.synthetic_cohort(seed=seed))
        honest = ig.tl.check_leaks(study)
        obs = study["table"].obs
        obs["patient"] = obs["patient"].astype(str).where(obs["section"] != "P1_S2", "new")
        renamed = ig.tl.check_leaks(study)
        yield {"seed": seed, "honest findings": len(honest), "renamed section found": bool(len(renamed))}


PARTS = {"coverage": coverage, "novelty": novelty, "ceilings": ceilings, "leaks": leaks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    ig.settings.progress = False
    for name in arguments.parts:
        rows = pd.DataFrame(PARTS[name](arguments.seeds))
        rows.to_csv(arguments.out / f"trust_{name}.csv", index=False, float_format="%.4f")
        keys = [key for key in rows if rows[key].dtype == object or key in ("patients", "training patients")]
        shown = rows.drop(columns="seed").groupby(keys, sort=False).mean().reset_index() if keys else rows
        print(f"\n## {name}\n\n{markdown(shown.to_dict('records'))}", flush=True)


if __name__ == "__main__":
    main()
