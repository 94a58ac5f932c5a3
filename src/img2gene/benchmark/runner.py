"""Run protocols on cohorts, and reuse the results of earlier runs."""

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

from img2gene._errors import Img2GeneError, listing
from img2gene._files.locks import FolderLock, remove_stale
from img2gene.benchmark.cohorts import Inventory
from img2gene.benchmark.embeddings import Embeddings
from img2gene.benchmark.protocols import LOG_COUNTS, Protocol

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from img2gene.tl import CrossValidation

# Fields of a protocol that do not change its scores: stored results stay valid when they change.
_DESCRIPTIVE = ("title", "cohorts", "differs")


@dataclass(frozen=True)
class RunOptions:
    """Holds the options that all cohorts and protocols of a call share.

    Attributes
    ----------
    models
        Arguments of :func:`img2gene.tl.fit` for each label.
    out
        Folder for the results.
    encoder
        Registered name of the encoder.
    seeds
        Seeds. Every model runs with each.
    jobs
        Number of processes.
    genes
        Number of genes, or None for the genes of the protocol.
    """

    models: dict[str, dict[str, Any]]
    out: Path
    encoder: str
    seeds: tuple[int, ...] = (0,)
    jobs: int = 1
    genes: int | None = None


@dataclass(frozen=True)
class Outcome:
    """Holds the results of a protocol on a cohort, for each seed."""

    inventory: Inventory
    protocol: Protocol
    results: dict[int, CrossValidation]

    @property
    def name(self) -> str:
        """Start of the names of its files."""
        return f"{self.inventory.cohort.name.replace(':', '-')}-{self.protocol.name}"

    @property
    def restricted(self) -> bool:
        """Whether sections of the protocol are absent."""
        return self.inventory.restricted(self.protocol.sections)

    @property
    def n_genes(self) -> int:
        """Number of predicted genes."""
        genes = next(iter(self.results.values())).settings["genes"]
        return genes if isinstance(genes, int) else len(genes)

    @property
    def other_genes(self) -> bool:
        """Whether the protocol uses other genes."""
        expected = self.protocol.genes
        return self.n_genes != (len(self.inventory.panel()) if expected is None else expected)

    @property
    def scores(self) -> pd.DataFrame:
        """Table of the scores of every seed, model, section and gene."""
        return pd.concat([result.scores.assign(seed=seed) for seed, result in self.results.items()], ignore_index=True)


def run(
    inventory: Inventory, protocol: Protocol, options: RunOptions, embeddings: Embeddings, say: Callable[[str], None]
) -> Outcome:
    """Read and embed the present sections of a cohort, and cross-validate all models with every seed.

    ``say`` receives a line about each step.
    """
    study = read_study(inventory, protocol, embeddings, say)
    candidates = _candidates(options.models)
    outcome = Outcome(inventory, protocol, {})
    parts = {}
    # A stored run continues only on an unchanged study, and pathway scores change the study. Models without pathways
    # run first, so that their runs do not depend on which other models are in the call.
    for label in sorted(candidates, key=lambda name: _uses_pathways(candidates[name])):
        for seed in options.seeds:
            say(f"{outcome.name}: {label}, seed {seed}")
            parts[seed, label] = _cross_validate(study, outcome, {label: candidates[label]}, options, seed)
    for seed in options.seeds:
        outcome.results[seed] = _joined([parts[seed, label] for label in candidates])
    return outcome


def lock_results(out: Path) -> FolderLock:
    """Make the folder of the results, refuse it while another benchmark writes to it, and clean it after a kill."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Img2GeneError(f"--out={str(out)!r} cannot be made ({error.strerror}); name another folder.") from error
    lock = FolderLock(out, "--out")
    remove_stale(out)
    return lock


def read_study(
    inventory: Inventory, protocol: Protocol, embeddings: Embeddings, say: Callable[[str], None]
) -> SpatialData:
    """Read the present sections with their embeddings and without images."""
    from img2gene import io

    used = inventory.used(protocol.sections)
    say(f"{inventory.cohort.name}: sections {listing(used, 100)}")
    study = io.concat_sections(embeddings.read(inventory, name, protocol.patch_um) for name in used)
    if protocol.layer == LOG_COUNTS:
        study["table"].layers[LOG_COUNTS] = study["table"].X.log1p()
    return study


def _candidates(models: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add the baselines to the models of the call, unless a model equals a baseline."""
    from img2gene.tl.cross_validate import BASELINES

    present = list(models.values())
    return models | {label: arguments for label, arguments in BASELINES.items() if arguments not in present}


def _uses_pathways(arguments: dict[str, Any]) -> bool:
    from img2gene import models

    predictor = models.create(arguments["model"], **{key: arguments[key] for key in arguments if key != "model"})
    return isinstance(predictor, models.UsesPathways) and predictor.uses_pathways


def _cross_validate(
    study: SpatialData, outcome: Outcome, model: dict[str, dict[str, Any]], options: RunOptions, seed: int
) -> CrossValidation:
    """Cross-validate one model with one seed."""
    from img2gene import pp, tl

    protocol = outcome.protocol
    ((label, arguments),) = model.items()
    if _uses_pathways(arguments) and "pathways" not in study["table"].obsm:
        pp.score_pathways(study, encoder=options.encoder)
    genes = options.genes or protocol.genes or outcome.inventory.panel()
    # The folder's name depends on everything that changes scores, so that other settings get another folder.
    facts = {name: value for name, value in dataclasses.asdict(protocol).items() if name not in _DESCRIPTIVE}
    facts |= {"model": arguments, "encoder": options.encoder, "genes": genes}
    facts |= {"sections": outcome.inventory.used(protocol.sections)}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:8]
    slug = re.sub(r"[^A-Za-z0-9.=-]+", "_", label)
    # Each model has a folder of its own, so that a later call with one more model computes only that one.
    return tl.cross_validate(
        study,
        model,
        groups=protocol.groups,
        n_folds=_n_folds(study, protocol),
        test_on=protocol.test_on or None,
        # The synthetic cohort has fewer genes than most protocols take.
        genes=genes if isinstance(genes, list) else min(genes, study["table"].n_vars),
        gene_groups=protocol.gene_groups,
        layer=protocol.layer,
        smooth=protocol.smooth,
        encoder=options.encoder,
        # Baselines are among the models of the call, so that each has a stored run.
        baselines=False,
        seed=seed,
        n_jobs=options.jobs,
        folder=options.out / "runs" / outcome.name / f"{slug}-{digest}-seed{seed}",
        allow_leakage=protocol.within,
    )


def _n_folds(study: SpatialData, protocol: Protocol) -> int | None:
    """Return the number of folds of the protocol, at most one per group."""
    from img2gene._study.study import Study

    n_groups = len(np.unique(Study.of(study).groups(protocol.groups)))
    return None if protocol.n_folds is None or n_groups < 2 else min(protocol.n_folds, n_groups)


def _joined(parts: list[CrossValidation]) -> CrossValidation:
    """Join cross-validations of one model each. Rows that need no model are taken from the first."""
    from img2gene.tl.evaluate import BASELINE_ROWS

    first = parts[0]
    shared = {name: first.scores["model"] == name for name in BASELINE_ROWS}
    rows = [part.scores[~part.scores["model"].isin(BASELINE_ROWS)] for part in parts]
    scores = pd.concat([*rows, *(first.scores[mask] for mask in shared.values())], ignore_index=True)
    structure = pd.concat([part.structure for part in parts], ignore_index=True)
    folds = first.folds
    for part in parts[1:]:
        folds = folds.assign(**{name: part.folds[name] for name in part.folds if name not in folds})
    warnings = list(dict.fromkeys(message for part in parts for message in part.warnings))
    return dataclasses.replace(first, scores=scores, structure=structure, folds=folds, warnings=warnings)
