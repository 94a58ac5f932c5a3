"""Run a cross-validation: look for leaks, choose genes fold by fold, train and score all models on all folds."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import scipy.sparse as sp

from img2gene import _schema
from img2gene import models as registry
from img2gene._cluster import run_parts
from img2gene._errors import Img2GeneError, LeakageError, listing, raise_problems
from img2gene._files.folders import ResumableFolder, fingerprint
from img2gene._leaks.find import Finding, find_leaks
from img2gene._study.expression import library_size
from img2gene._study.inputs import embedding
from img2gene._study.panel import Genes, check_genes, check_panel, choose_genes, is_named, named_genes, panel_genes
from img2gene._study.study import Study
from img2gene._versions import versions
from img2gene.settings import settings, tqdm_bar
from img2gene.tl._cross_validation.assemble import Assembly, Parts
from img2gene.tl._cross_validation.candidates import Candidate, candidate_identity
from img2gene.tl._cross_validation.checkpoint import Part, load_part, open_results, save_part
from img2gene.tl._cross_validation.folds import OuterFolds
from img2gene.tl._cross_validation.result import UNKNOWN, WITHIN, CrossValidation
from img2gene.tl._cross_validation.task import Fold, Task, TaskOptions, run_and_keep
from img2gene.tl._scoring.selection import is_rule
from img2gene.tl.evaluate import GeneGroups, group_members

if TYPE_CHECKING:
    from distributed import Client

    from img2gene.models import Predictor

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class CrossValidationRun:
    """One cross-validation: the study, how it is divided, and the models.

    Attributes
    ----------
    study
        Measured spots, without images.
    outer
        The groups that each fold holds out.
    candidates
        Arguments of ``fit`` for each label, baselines included.
    kept
        Labels of the models whose predictions are kept.
    """

    study: Study
    outer: OuterFolds
    candidates: dict[str, Candidate]
    options: TaskOptions
    kept: list[str]
    allow_leakage: bool

    def run(
        self,
        genes: Genes,
        groups: GeneGroups,
        n_jobs: int,
        folder: str | Path | None,
        client: Client | None = None,
    ) -> CrossValidation:
        """Look for leaks, choose genes fold by fold, train and score, and put the parts together."""
        leaks = self._leaks(genes)
        # All folds first, so that none is refused after hours of training on the others.
        folds = [self._fold(name, held, genes, groups) for name, held in self.outer.rows().items()]
        record = self._settings(genes, groups)
        # Digests read all arrays, which only a run that can be resumed needs.
        data = {} if folder is None else study_fingerprint(self.study, self.candidates, self.outer.names, self.options)
        # The stored record went through JSON, where tuples become lists, so this one goes through it, too.
        results = open_results(folder, json.loads(json.dumps({**record, "data": data}, default=str)))
        tasks = {
            (number, label): Task(self.study, fold, label, candidate, self.options, label in self.kept)
            for number, fold in enumerate(folds)
            for label, candidate in self.candidates.items()
        }
        parts = run_tasks(tasks, results, n_jobs, "Cross-validation", client)
        warnings = [leak.message for leak in leaks]
        if self.options.smooth:
            warnings.append(
                f"Labels were averaged over {self.options.smooth} neighbours, which removes noise and so raises scores; they do "
                "not compare with scores on raw labels."
            )
        if self.outer.scope in (WITHIN, UNKNOWN):
            logger.warning("scores are %s: see `notice` of the result", self.outer.scope)
        return self._assemble(folds, parts, record, leaks, warnings)

    def _leaks(self, genes: Genes) -> list[Finding]:
        """Look for leaks; certain ones are refused unless the user allows them."""
        leaks = find_leaks(
            self.study,
            self.outer.groups,
            layer=self.options.layer,
            identity=self._identity,
            uses_panel=genes is None or _names_panel(self.study, genes),
            seed=self.options.seed,
        )
        # A patient in several groups was judged when the folds were made.
        leaks = [leak for leak in leaks if leak.kind != "shared patient"]
        certain = [leak.message for leak in leaks if leak.severity == "error"]
        if certain and not self.allow_leakage:
            raise_problems(
                [*certain[:-1], f"{certain[-1]} (`allow_leakage=True` goes on and marks the result.)"], LeakageError
            )
        for leak in leaks:
            logger.warning(leak.message)
        return leaks

    @property
    def _identity(self) -> dict[str, Any]:
        return candidate_identity(self.study, next(iter(self.candidates.values())))

    def _fold(self, name: str, held: np.ndarray, genes: Genes, groups: GeneGroups) -> Fold:
        """Choose genes and gene groups on the training rows alone."""
        study, train = self.study, np.flatnonzero(~held)
        check_genes(study, genes)
        if genes is None:
            # Shared patients were judged when the folds were made; a panel is judged here.
            check_panel(study, held, allow_leakage=self.allow_leakage or self.outer.scope == WITHIN)
        options = self.options
        choice = choose_genes(study, study.ordered(train), genes, layer=options.layer, min_depth=options.min_depth)
        # Only named genes and panels promise certain genes; a number, or all, takes what varies in the fold.
        named = named_genes(genes) if is_named(genes) else (panel_genes(study) or []) if genes is None else []
        absent = [gene for gene in named if gene in set(choice.constant)]
        if absent:
            logger.warning("without %s, genes that do not vary: %s", name, listing(absent))
        members, lost = fold_groups(choice.genes, choice.statistics(study), groups, absent)
        return Fold(name, np.sort(choice.rows), np.flatnonzero(held), choice.genes, members, absent, lost)

    def _settings(self, genes: Genes, groups: GeneGroups) -> dict[str, Any]:
        """List what the user asked for, as it is recorded with the result."""
        return {
            "models": self.candidates,
            "groups": self.outer.groups,
            "held_out": self.outer.held_out,
            "genes": named_genes(genes) if is_named(genes) else genes,
            "gene_groups": None if groups is None else dict(groups),
            "encoder": self._identity,
            "allow_leakage": self.allow_leakage,
            **dataclasses.asdict(self.options),
            "table_key": self.study.table_key,
        }

    def _assemble(
        self, folds: list[Fold], parts: Parts, record: dict[str, Any], leaks: list[Finding], warnings: list[str]
    ) -> CrossValidation:
        assembly = Assembly(self.study, self.outer, list(self.candidates), folds, parts, self.options.layer)
        scores = assembly.scores()
        if any(leak.severity == "error" for leak in leaks):
            scores["leakage"] = True
        return CrossValidation(
            scores.astype({"leakage": "boolean"}),
            assembly.structure(),
            assembly.describe(),
            self.outer.scope,
            json.loads(json.dumps({**record, "versions": versions()}, default=str)),
            warnings,
            {label: assembly.predictions(label) for label in self.kept if label in self.candidates},
        )


def _names_panel(study: Study, genes: Genes) -> bool:
    """Whether the genes are the stored panel, passed by name."""
    if not is_named(genes) or isinstance(genes, str):
        return False
    try:
        panel = panel_genes(study)
    except Img2GeneError:
        # A column of this name can mean something else, which does not matter where genes are named.
        return False
    return panel is not None and set(named_genes(genes)) == set(panel)


def fold_groups(
    genes: list[str], statistics: dict[str, np.ndarray], groups: GeneGroups, absent: list[str]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """List the genes of each group that the fold has, and the named ones that it lacks."""
    if groups is None:
        return group_members(genes, statistics, genes, None), {}
    kept: dict[str, Any] = {
        name: rule if is_rule(rule) else [gene for gene in rule if gene not in absent] for name, rule in groups.items()
    }
    lost = {name: [gene for gene in rule if gene in absent] for name, rule in groups.items() if not is_rule(rule)}
    return group_members(genes, statistics, genes, kept), lost


def study_fingerprint(
    study: Study, candidates: Mapping[str, Candidate], groups: np.ndarray, options: TaskOptions
) -> dict[str, str]:
    """Compute digests of everything that results depend on."""
    table = study.table
    # Dense counts have no columns and row ends to compute a digest of.
    counts = sp.csr_matrix(table.X)
    arrays = {
        "counts": counts.data,
        "columns": counts.indices,
        "rows": counts.indptr,
        "layer": None if options.layer is None else np.asarray(_dense(table.layers[options.layer])),
        "library": library_size(table),
        "genes": table.var_names.to_numpy(dtype=str),
        "sections": study.sections,
        "patients": study.patients,
        "groups": groups,
        "inner": study.groups(options.inner),
        "positions": study.positions,
        "pathways": np.asarray(table.obsm[_schema.PATHWAYS]) if _schema.PATHWAYS in table.obsm else None,
    }
    for candidate in candidates.values():
        identity = candidate_identity(study, candidate)
        arrays[f"embedding {identity['name']}"] = embedding(study, identity)
    return fingerprint(**arrays)


def run_tasks(
    tasks: Mapping[Key, Task], results: ResumableFolder, n_jobs: int, title: str, client: Client | None = None
) -> dict[Key, Part]:
    """Run the tasks that the folder does not hold yet, and return the parts of all, in the order of the tasks.

    They run on the workers of ``client``, or in ``n_jobs`` processes of this computer.

    The folder is closed at the end, also after an error.
    """
    # A part that was stored without predictions does not serve a call that keeps them.
    parts = {
        key: part
        for key, task in tasks.items()
        if (part := load_part(results, task.key, task.label)) and bool(part.layers) >= task.keep
    }
    if parts:
        logger.info("took %d of %d finished parts from %s", len(parts), len(tasks), results.folder)
    todo = {key: task for key, task in tasks.items() if key not in parts}
    run = _in_processes if client is None else partial(_on_cluster, client)
    with results, tqdm_bar(total=len(todo), desc=title, unit="fit", disable=not settings.progress) as bar:
        for number, part in run(list(todo.values()), results, n_jobs):
            parts[list(todo)[number]] = part
            bar.update()
    # Stored parts came first, so the order of the tasks is restored.
    return {key: parts[key] for key in tasks}


def _in_processes(tasks: list[Task], results: ResumableFolder, n_jobs: int) -> Iterator[tuple[int, Part]]:
    """Run tasks in processes of this computer, which keep their results."""
    from joblib import Parallel, delayed

    calls = (
        # Worker processes import the package anew, so they get the settings and models of this process.
        delayed(run_and_keep)(task, results, dataclasses.replace(settings), registry.get(task.candidate["model"]))
        for task in tasks
    )
    # A generator lets the bar advance with every fit; a list would arrive at the end.
    yield from enumerate(Parallel(n_jobs=n_jobs, return_as="generator")(calls))


def _on_cluster(client: Client, tasks: list[Task], results: ResumableFolder, n_jobs: int) -> Iterator[tuple[int, Part]]:
    """Run tasks on the workers of a cluster, and keep their results here: workers need not see the folder."""
    if not tasks:
        return
    # The study is the same for all, and travels to each worker once.
    study, bare = tasks[0].study, [dataclasses.replace(task, study=None) for task in tasks]  # type: ignore[arg-type]
    kinds = {task.candidate["model"]: registry.get(task.candidate["model"]) for task in tasks}
    for number, part in run_parts(client, _run_task, (study, kinds), bare):
        save_part(results, tasks[number].key, part)
        yield number, part


def _run_task(shared: tuple[Study, dict[str, type[Predictor]]], task: Task) -> Part:
    """Run a task in a worker, which may not know a model of the user yet."""
    study, kinds = shared
    kind = kinds[task.candidate["model"]]
    if kind.name not in registry.list():
        registry.register(kind)
    return dataclasses.replace(task, study=study).run()


def _dense(values: Any) -> np.ndarray:
    return values.toarray() if hasattr(values, "toarray") else values
