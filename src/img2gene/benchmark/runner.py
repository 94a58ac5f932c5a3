"""Run protocols on cohorts, going on from what earlier runs finished."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene._errors import listing
from img2gene.benchmark.cohorts import Inventory
from img2gene.benchmark.embeddings import Embeddings
from img2gene.benchmark.protocols import LOG_COUNTS, Protocol

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from img2gene.tl import CrossValidation

# What of a protocol does not change its scores.
_WORDS = ("title", "cohorts", "differs")


@dataclass(frozen=True)
class Request:
    """What is run, whatever the cohort.

    Attributes
    ----------
    models
        Arguments of :func:`img2gene.tl.fit` for each label.
    out
        Folder of results.
    encoder
        Registered encoder.
    seeds
        One run each.
    jobs
        Processes.
    genes
        Number of genes instead of the protocol's; None for those.
    """

    models: dict[str, dict[str, Any]]
    out: Path
    encoder: str
    seeds: tuple[int, ...] = (0,)
    jobs: int = 1
    genes: int | None = None


@dataclass(frozen=True)
class Outcome:
    """Results of a protocol on a cohort, for each seed."""

    inventory: Inventory
    protocol: Protocol
    results: dict[int, CrossValidation]

    @property
    def name(self) -> str:
        """Stem of its files."""
        return f"{self.inventory.cohort.name.replace(':', '-')}-{self.protocol.name}"

    @property
    def restricted(self) -> bool:
        """Whether sections of the cohort, or those of the protocol, are absent."""
        return self.inventory.restricted(self.protocol.sections)

    @property
    def n_genes(self) -> int:
        """Genes that were asked for."""
        asked = next(iter(self.results.values())).settings["genes"]
        return asked if isinstance(asked, int) else len(asked)

    @property
    def other_genes(self) -> bool:
        """Whether these are not those of the protocol."""
        own = self.protocol.genes
        return self.n_genes != (len(self.inventory.panel()) if own is None else own)

    @property
    def scores(self) -> pd.DataFrame:
        """Scores of every seed, model, section and gene."""
        return pd.concat([result.scores.assign(seed=seed) for seed, result in self.results.items()], ignore_index=True)


def run(
    inventory: Inventory, protocol: Protocol, request: Request, embeddings: Embeddings, say: Callable[[str], None]
) -> Outcome:
    """Read and embed the present sections of a cohort, and cross-validate all models with every seed."""
    study = read_study(inventory, protocol, embeddings, say)
    candidates = _candidates(request.models)
    outcome = Outcome(inventory, protocol, {})
    parts = {}
    # Pathways become part of the study, and so of what a run goes on from, when the first model asks for them: models that
    # do not have to come before, whichever others there are.
    for label in sorted(candidates, key=lambda name: _uses_pathways(candidates[name])):
        for seed in request.seeds:
            say(f"{outcome.name}: {label}, seed {seed}")
            parts[seed, label] = _cross_validate(study, outcome, {label: candidates[label]}, request, seed)
    for seed in request.seeds:
        outcome.results[seed] = _joined([parts[seed, label] for label in candidates])
    return outcome


def read_study(
    inventory: Inventory, protocol: Protocol, embeddings: Embeddings, say: Callable[[str], None]
) -> SpatialData:
    """The present sections with their embeddings, without images."""
    from img2gene import io

    used = inventory.used(protocol.sections)
    say(f"{inventory.cohort.name}: sections {listing(used, 100)}")
    study = io.concat_sections(embeddings.read(inventory, name, protocol.patch_um) for name in used)
    if protocol.layer == LOG_COUNTS:
        study["table"].layers[LOG_COUNTS] = study["table"].X.log1p()
    return study


def _candidates(asked: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The models asked for, and the baselines that are not among them."""
    from img2gene.tl.cross_validate import BASELINES

    present = list(asked.values())
    return asked | {label: given for label, given in BASELINES.items() if given not in present}


def _uses_pathways(given: dict[str, Any]) -> bool:
    from img2gene import models

    predictor = models.create(given["model"], **{key: value for key, value in given.items() if key != "model"})
    return isinstance(predictor, models.UsesPathways) and predictor.uses_pathways


def _cross_validate(
    study: SpatialData, outcome: Outcome, model: dict[str, dict[str, Any]], request: Request, seed: int
) -> CrossValidation:
    """One model with one seed, in a folder of its own: adding a model later computes that one only."""
    from img2gene import pp, tl

    protocol = outcome.protocol
    ((label, given),) = model.items()
    if _uses_pathways(given) and "pathways" not in study["table"].obsm:
        pp.score_pathways(study, encoder=request.encoder)
    genes = request.genes or protocol.genes or outcome.inventory.panel()
    facts = {name: value for name, value in dataclasses.asdict(protocol).items() if name not in _WORDS}
    facts |= {"model": given, "encoder": request.encoder, "genes": genes}
    facts |= {"sections": outcome.inventory.used(protocol.sections)}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:8]
    slug = re.sub(r"[^A-Za-z0-9.=-]+", "_", label)
    return tl.cross_validate(
        study,
        model,
        groups=protocol.groups,
        n_folds=_n_folds(study, protocol),
        test_on=protocol.test_on or None,
        genes=genes if isinstance(genes, list) else min(genes, study["table"].n_vars),
        gene_groups=protocol.gene_groups,
        layer=protocol.layer,
        smooth=protocol.smooth,
        encoder=request.encoder,
        baselines=False,
        seed=seed,
        n_jobs=request.jobs,
        folder=request.out / "runs" / outcome.name / f"{slug}-{digest}-seed{seed}",
        allow_leakage=protocol.within,
    )


def _n_folds(study: SpatialData, protocol: Protocol) -> int | None:
    """Folds of the protocol, as far as there are groups for them."""
    from img2gene._study.study import Study

    n_groups = len(np.unique(Study.of(study).groups(protocol.groups)))
    return None if protocol.n_folds is None or n_groups < 2 else min(protocol.n_folds, n_groups)


def _joined(parts: list[CrossValidation]) -> CrossValidation:
    """Cross-validations of one model each as one of all; rows that need no model are those of the first."""
    from img2gene.tl.evaluate import BASELINE_ROWS

    first = parts[0]
    shared = {name: first.scores["model"] == name for name in BASELINE_ROWS}
    own = [part.scores[~part.scores["model"].isin(BASELINE_ROWS)] for part in parts]
    scores = pd.concat([*own, *(first.scores[rows] for rows in shared.values())], ignore_index=True)
    structure = pd.concat([part.structure for part in parts], ignore_index=True)
    folds = first.folds
    for part in parts[1:]:
        folds = folds.assign(**{name: part.folds[name] for name in part.folds if name not in folds})
    warnings = list(dict.fromkeys(message for part in parts for message in part.warnings))
    return dataclasses.replace(first, scores=scores, structure=structure, folds=folds, warnings=warnings)
