"""The tiny study that all trials use, and tiny models of every registered family."""

from __future__ import annotations

import functools
import logging
import warnings
from typing import Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

import img2gene as ig

ENCODER = "color-texture"
TRAINING, HELD_OUT = ["P1_S1", "P2_S1"], "P3"
N_GENES = 20
NETWORK = {"n_models": 1, "max_epochs": 1, "n_components": 4, "dim": 8, "heads": 1, "n_validations": 0}
# Parameters that keep the models of each family small; a family without an entry takes its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "ridge": {"n_components": 4},
    "knn": {"k": 2},
    "img2gene": NETWORK,
    "cmrcnet": NETWORK | {"k": 3},
    "bleep": NETWORK | {"k": 3},
}


def quieten() -> None:
    """Silence progress bars, log lines and warnings, and keep all work in the calling thread."""
    import dask
    import torch

    # Threads do not survive a fork.
    dask.config.set(scheduler="synchronous")
    warnings.simplefilter("ignore")
    logging.getLogger("img2gene").setLevel(logging.CRITICAL)
    logging.getLogger("lightning").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    ig.settings.progress, ig.settings.num_workers, ig.settings.device = False, 0, "cpu"


def copy_of(sdata: SpatialData) -> SpatialData:
    """Copy a study: tables anew, elements shared."""
    elements = {kind: dict(getattr(sdata, kind)) for kind in ("images", "labels", "points", "shapes")}
    return SpatialData(**elements, tables={key: table.copy() for key, table in sdata.tables.items()})


@functools.cache
def cohort() -> SpatialData:
    """Draw three patients with one section of ten spots each; not to be changed."""
    return ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=10, n_genes=N_GENES, mpp=2.0)


@functools.cache
def embedded() -> SpatialData:
    """Add patches and embeddings to the cohort; not to be changed."""
    sdata = copy_of(cohort())
    ig.pp.extract_patches(sdata, patch_um=112, patch_px=32)
    ig.pp.embed_patches(sdata, ENCODER)
    return sdata


@functools.cache
def complete() -> SpatialData:
    """Add everything that the package can store in a study; not to be changed."""
    sdata = copy_of(embedded())
    genes = list(map(str, sdata["table"].var_names))
    ig.pp.select_genes(sdata, n_genes=10, sections=TRAINING)
    ig.pp.score_pathways(sdata, {"first": genes[:8], "second": genes[5:15]}, sections=TRAINING, seed=0)
    ig.tl.fit(sdata, "ridge", validate_on=[HELD_OUT])
    ig.tl.fit(sdata, "img2gene", validate_on=[HELD_OUT], key_added="network", pathways=True, **NETWORK)
    ig.tl.fit(sdata, "cmrcnet", validate_on=[HELD_OUT], key_added="retriever", **SMALL["cmrcnet"])
    ig.tl.predict(sdata)
    ig.tl.evaluate(sdata, n_permutations=3)
    ig.tl.predictability(sdata, n_permutations=9)
    ig.tl.localize(sdata, {"marked": panel(sdata)[:3]}, annotation="domain", positive=a_domain(sdata))
    return sdata


def panel(sdata: SpatialData) -> list[str]:
    """List the genes that the stored model predicts."""
    return list(ig.get.model(sdata).genes)


def a_domain(sdata: SpatialData) -> str:
    """Name a domain that the held-out section holds."""
    table = sdata["table"]
    return str(table.obs["domain"][(table.obs["patient"] == HELD_OUT).to_numpy()].mode()[0])


@functools.cache
def trained(name: str) -> ig.models.Model:
    """Train a tiny model of a registered family."""
    return ig.tl.fit(copy_of(embedded()), name, validate_on=[HELD_OUT], genes=6, inplace=False, **SMALL.get(name, {}))


@functools.cache
def visium_like() -> AnnData:
    """Convert the cohort to one AnnData, as `from_anndata` reads it."""
    return ig.io.to_anndata(cohort())


def model_inputs(n_spots: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, sections and positions of the first spots."""
    table = embedded()["table"]
    rows = slice(0, n_spots)
    sections = table.obs["section"].to_numpy(dtype=str)[rows]
    positions = np.asarray(table.obsm["spatial"], dtype=float)[rows, ::-1]
    return np.asarray(table.obsm[f"X_{ENCODER}"])[rows], sections, positions
