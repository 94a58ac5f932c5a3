"""One cross-validation: leaks, genes of every fold, training and scoring of all models on all folds."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import scipy.sparse as sp

from img2gene import _schema
from img2gene import models as registry
from img2gene._errors import LeakageError, listing, raise_problems
from img2gene._leaks.find import Finding, find_leaks
from img2gene._study.expression import labels, library_size
from img2gene._study.inputs import choose_encoder, embedding, positions
from img2gene._study.sections import group_labels, patient_labels, section_labels
from img2gene._versions import versions
from img2gene.models.networks.checkpoints import fingerprint
from img2gene.settings import settings
from img2gene.tl._cross_validation.assemble import Assembly, Parts
from img2gene.tl._cross_validation.checkpoint import ResultsFolder
from img2gene.tl._cross_validation.folds import OuterFolds
from img2gene.tl._cross_validation.result import UNKNOWN, WITHIN, CrossValidation
from img2gene.tl._cross_validation.task import Fold, Options, Task, run_and_keep
from img2gene.tl._scoring.selection import is_rule
from img2gene.tl.evaluate import GeneGroups, group_members
from img2gene.tl.fit import Genes, fit

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from img2gene.models import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """One cross-validation."""

    study: SpatialData
    outer: OuterFolds
    candidates: dict[str, dict[str, Any]]
    options: Options
    kept: list[str]
    allow_leakage: bool

    @property
    def table(self) -> AnnData:
        return self.study.tables[self.options.table_key]

    def run(self, genes: Genes, groups: GeneGroups, n_jobs: int, folder: str | Path | None) -> CrossValidation:
        """Look for leaks, choose genes fold by fold, train and score, and put the parts together."""
        leaks = self._leaks(genes)
        # All folds first, so that none is refused after hours of training on the others.
        folds = [self._fold(name, held, genes, groups) for name, held in self.outer.rows().items()]
        asked = self._settings(genes, groups)
        data = {} if folder is None else self._fingerprint()
        results = ResultsFolder.open(folder, json.loads(json.dumps({**asked, "data": data}, default=str)))
        parts = self._run_all(folds, results, n_jobs)
        warnings = [leak.message for leak in leaks]
        if self.options.smooth:
            warnings.append(
                f"Labels were averaged over {self.options.smooth} neighbours, which removes noise and so raises scores; they do "
                "not compare with scores on raw labels."
            )
        if self.outer.scope in (WITHIN, UNKNOWN):
            logger.warning("scores are %s: see `notice` of the result", self.outer.scope)
        return self._assemble(folds, parts, asked, leaks, warnings)

    def _leaks(self, genes: Genes) -> list[Finding]:
        """What looks like a leak; certain ones are refused unless that is allowed."""
        key = self.options.table_key
        found = find_leaks(
            self.table,
            self.outer.groups,
            layer=self.options.layer,
            identity=self._identity,
            uses_panel=genes is None or self._names_panel(genes),
            table_key=key,
            seed=self.options.seed,
        )
        # A patient in several groups was judged when the folds were made.
        found = [leak for leak in found if leak.kind != "shared patient"]
        certain = [leak.message for leak in found if leak.severity == "error"]
        if certain and not self.allow_leakage:
            raise_problems(
                [*certain[:-1], f"{certain[-1]} (`allow_leakage=True` goes on and marks the result.)"], LeakageError
            )
        for leak in found:
            logger.warning(leak.message)
        return found

    @property
    def _identity(self) -> dict[str, Any]:
        first = next(iter(self.candidates.values()))["encoder"]
        return choose_encoder(self.table, first, self.options.table_key)

    def _fold(self, name: str, held: np.ndarray, genes: Genes, groups: GeneGroups) -> Fold:
        """Choose genes and gene groups on the training rows, by a fit that checks study and split, too."""
        key, layer = self.options.table_key, self.options.layer
        train = np.flatnonzero(~held)
        asked, varying = self._asked(genes, train)
        held_groups = self.outer.held_out[name]
        first = next(iter(self.candidates.values()))["encoder"]
        whole = cast(
            "Model",
            fit(
                self.study,
                "mean",
                genes=genes if asked is None or genes is None else varying,
                layer=layer,
                groups=self.outer.groups,
                train_on=[str(group) for group in np.unique(self.outer.names) if group not in held_groups],
                validate_on=held_groups,
                encoder=first,
                seed=self.options.seed,
                table_key=key,
                # Shared patients were judged when the folds were made; a panel is judged here.
                allow_leakage=self.allow_leakage or self.outer.scope == WITHIN,
                allow_single_section=True,
                inplace=False,
            ),
        )
        absent = [] if asked is None else [gene for gene in asked if gene not in whole.genes]
        if absent:
            logger.warning("without %s, genes that do not vary: %s", name, listing(absent))
        members, lost = self._members(whole, groups, absent)
        return Fold(name, train, np.flatnonzero(held), whole.genes, members, absent, lost)

    def _names_panel(self, genes: Genes) -> bool:
        """Whether the genes are the panel, handed over by name."""
        if isinstance(genes, (str, int, np.integer)) or genes is None or _schema.PANEL not in self.table.var:
            return False
        return set(genes) == set(self.table.var_names[self.table.var[_schema.PANEL].to_numpy(dtype=bool)])

    def _asked(self, genes: Genes, train: np.ndarray) -> tuple[list[str] | None, list[str]]:
        """Genes asked for, by name or as the panel, and those of them that vary in the training rows."""
        if isinstance(genes, (int, np.integer)) or (genes is None and _schema.PANEL not in self.table.var):
            return None, []
        if genes is None:
            return self.table.var_names[self.table.var[_schema.PANEL].to_numpy(dtype=bool)].tolist(), []
        names = [genes] if isinstance(genes, str) else list(genes)
        columns = self.table.var_names.get_indexer(names)
        if (columns < 0).any():
            return names, names
        values = labels(self.table, train, columns, layer=self.options.layer)
        varies = values.max(axis=0) > values.min(axis=0)
        return names, [name for name, kept in zip(names, varies, strict=True) if kept] or names

    @staticmethod
    def _members(
        whole: Model, groups: GeneGroups, absent: list[str]
    ) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Genes of each group that the fold has, and those named that it lacks."""
        if groups is None:
            return group_members(whole, whole.genes, None), {}
        kept: dict[str, Any] = {
            name: rule if is_rule(rule) else [gene for gene in rule if gene not in absent]
            for name, rule in groups.items()
        }
        lost = {name: [gene for gene in rule if gene in absent] for name, rule in groups.items() if not is_rule(rule)}
        return group_members(whole, whole.genes, kept), lost

    def _settings(self, genes: Genes, groups: GeneGroups) -> dict[str, Any]:
        """What was asked for, as it is recorded."""
        shared = dataclasses.asdict(self.options)
        names = [genes] if isinstance(genes, str) else genes
        return {
            "models": self.candidates,
            "groups": self.outer.groups,
            "held_out": self.outer.held_out,
            "genes": names if names is None or isinstance(names, (int, np.integer)) else list(names),
            "gene_groups": None if groups is None else dict(groups),
            "encoder": self._identity,
            "allow_leakage": self.allow_leakage,
            **shared,
        }

    def _fingerprint(self) -> dict[str, str]:
        """Digests of everything that results depend on."""
        table, key = self.table, self.options.table_key
        counts = sp.csr_matrix(table.X)
        identities = {given["encoder"] for given in self.candidates.values()}
        arrays = {
            "counts": counts.data,
            "columns": counts.indices,
            "rows": counts.indptr,
            "layer": None if self.options.layer is None else np.asarray(_dense(table.layers[self.options.layer])),
            "library": library_size(table),
            "genes": table.var_names.to_numpy(dtype=str),
            "sections": section_labels(table, key),
            "patients": patient_labels(table),
            "groups": self.outer.names,
            "inner": group_labels(table, self.options.inner, key),
            "positions": positions(table, key),
            "pathways": np.asarray(table.obsm[_schema.PATHWAYS]) if _schema.PATHWAYS in table.obsm else None,
        }
        for name in identities:
            identity = choose_encoder(table, name, key)
            arrays[f"embedding {identity['name']}"] = embedding(table, identity, key)
        return fingerprint(**arrays)

    def _run_all(self, folds: list[Fold], results: ResultsFolder, n_jobs: int) -> Parts:
        """Parts of all folds and models, from the folder as far as they are there."""
        from joblib import Parallel, delayed
        from tqdm.auto import tqdm

        tasks = {
            (number, label): Task(self.study, fold, label, given, self.options, label in self.kept)
            for number, fold in enumerate(folds)
            for label, given in self.candidates.items()
        }
        found = {
            at: part
            for at, task in tasks.items()
            if (part := results.load(task.key, task.label)) and bool(part.layers) >= task.keep
        }
        if found:
            logger.info("took %d of %d finished parts from %s", len(found), len(tasks), results.folder)
        todo = {at: task for at, task in tasks.items() if at not in found}
        calls = (
            delayed(run_and_keep)(task, results, dataclasses.replace(settings), registry.get(task.given["model"]))
            for task in todo.values()
        )
        run = Parallel(n_jobs=n_jobs, return_as="generator")(calls)
        with tqdm(total=len(todo), desc="Cross-validation", unit="fit", disable=not settings.progress) as bar:
            for at, part in zip(todo, run, strict=True):
                found[at] = part
                bar.update()
        return found

    def _assemble(
        self, folds: list[Fold], parts: Parts, asked: dict[str, Any], leaks: list[Finding], warnings: list[str]
    ) -> CrossValidation:
        both = Assembly(self.table, self.options.table_key, self.outer, list(self.candidates), folds, parts)
        scores = both.scores()
        if any(leak.severity == "error" for leak in leaks):
            scores["leakage"] = True
        return CrossValidation(
            scores.astype({"leakage": "boolean"}),
            both.structure(),
            both.describe(),
            self.outer.scope,
            json.loads(json.dumps({**asked, "versions": versions()}, default=str)),
            warnings,
            {label: both.predictions(label) for label in self.kept if label in self.candidates},
        )


def _dense(values: Any) -> np.ndarray:
    return values.toarray() if hasattr(values, "toarray") else values
