"""Training and scoring one model on one fold of a cross-validation, in this process or in another."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd

from img2gene import _schema, metrics, models
from img2gene._errors import Img2GeneError
from img2gene._files.folders import ResumableFolder
from img2gene._study.expression import labels
from img2gene._study.resolution import resolution_warned
from img2gene._study.study import Study
from img2gene._study.subsets import subset
from img2gene.metrics import neighbor_graph
from img2gene.settings import Settings, settings
from img2gene.tl._cross_validation.candidates import Candidate
from img2gene.tl._cross_validation.checkpoint import Part, part_key, save_part
from img2gene.tl._scoring.selection import scored_values
from img2gene.tl.evaluate import evaluate
from img2gene.tl.fit import fit
from img2gene.tl.predict import predict

if TYPE_CHECKING:
    from anndata import AnnData

    from img2gene.models import Model, Predictor

KEY = "img2gene"
SMOOTHED = "smoothed"
# Correlations of all pairs of more genes take minutes and gigabytes.
_MOST_STRUCTURE_GENES = 1000


@dataclass(frozen=True)
class Fold:
    """One fold, and everything that was chosen inside it.

    Attributes
    ----------
    name
        The group that is held out, or the number of the fold.
    train, test
        int: rows of the study.
    genes
        The gene panel, chosen in the training rows.
    groups
        Genes of each gene group, from the training labels.
    absent
        Genes asked for that do not vary in the training rows.
    absent_groups
        Absent genes that were named as members of each gene group.
    sample
        Name of the sample of the training rows, if only a part of them is trained on.
    statistics
        Statistics of the genes on all training rows, if the model is trained on a sample: R² refers to their mean.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    genes: list[str]
    groups: dict[str, list[str]]
    absent: list[str]
    absent_groups: dict[str, list[str]]
    sample: str = ""
    statistics: dict[str, np.ndarray] | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What names the fold's files in a folder."""
        return (self.name, self.sample) if self.sample else (self.name,)


@dataclass(frozen=True)
class TaskOptions:
    """The options that all tasks of a cross-validation share; ``level=None`` trains without uncertainty."""

    inner: str
    layer: str | None
    smooth: int
    seed: int
    n_permutations: int
    level: float | None
    n_threads: int
    min_depth: float


@dataclass(frozen=True)
class Task:
    """One model on one fold."""

    study: Study
    fold: Fold
    label: str
    candidate: Candidate
    options: TaskOptions
    keep: bool
    compares_structure: bool = True

    @property
    def key(self) -> str:
        """Name of what is kept of it in a folder."""
        return part_key(*self.fold.key, self.label)

    def run(self) -> Part:
        """Train on the fold's training rows and score on the others."""
        with limited_threads(self.options.n_threads):
            start = time.perf_counter()
            train = self._part(self.fold.train)
            with located(self.fold.name, self.label), resolution_warned():
                model = cast("Model", self._fit(train))
                seconds = time.perf_counter() - start
                return self._score(model, seconds)

    def _fit(self, train: Study) -> Model | None:
        options = self.options
        certainty = {"uncertainty": False} if options.level is None else {"level": options.level}
        return fit(
            train.sdata,
            genes=self.fold.genes,
            groups=options.inner,
            layer=SMOOTHED if options.smooth else options.layer,
            seed=options.seed,
            table_key=train.table_key,
            # The fold holds sections that are deep enough.
            min_depth=0,
            # A fold may leave one section to train on; whether anything can be held out was checked for the study.
            allow_single_section=True,
            inplace=False,
            **certainty,
            **with_own_folder(self.candidate, self.key),
        )

    def _score(self, model: Model, seconds: float) -> Part:
        test, options = self._part(self.fold.test), self.options
        if self.fold.statistics is not None:
            # Samples of all sizes refer to one mean, or R² would change with the sample.
            model = replace(model, statistics=self.fold.statistics)
        predict(test.sdata, model, table_key=test.table_key, key_added=KEY)
        scores = evaluate(
            test.sdata,
            model,
            sections=test.section_names(),
            gene_groups=self.fold.groups,
            n_permutations=options.n_permutations,
            seed=options.seed,
            key=KEY,
            table_key=test.table_key,
            # Splits were checked before, and the result is marked.
            allow_leakage=True,
            inplace=False,
        )
        # The scores of a fold are not those of a model that is kept.
        scores.attrs.clear()
        # Several labels can stand for one kind of model, so the label replaces its name.
        scores["model"] = scores["model"].replace(model.name, self.label)
        layers = kept_layers(test.table, model, self.fold.absent) if self.keep else {}
        return Part(scores, self._structure(test, model), layers, seconds)

    def _structure(self, test: Study, model: Model) -> pd.DataFrame:
        """Agreement of gene–gene correlations, for every section and gene group."""
        table, pairs = test.table, []
        groups = {"all": self.fold.genes, **self.fold.groups}
        for name in test.section_names():
            rows = test.ordered(test.section_rows(name))
            for group, genes in groups.items() if self.compares_structure else ():
                # Three genes make three pairs, and with fewer the agreement is undefined.
                if not 2 < len(genes) <= _MOST_STRUCTURE_GENES:
                    continue
                pair = scored_values(test, model, rows, table.var_names.get_indexer(genes), KEY)
                scores = metrics.structure_score(*(metrics.gene_correlation(values) for values in pair))
                facts = {"model": self.label, "section": name, "patient": test.patient_of(rows), "genes": group}
                pairs.append(
                    facts | dict(zip(("structure", "structure_rmse"), scores, strict=True), n_genes=len(genes))
                )
        columns = ["model", "section", "patient", "genes", "structure", "structure_rmse", "n_genes"]
        return pd.DataFrame(pairs, columns=columns)

    def _part(self, rows: np.ndarray) -> Study:
        """Take some rows of the study, and smooth their labels if the options say so."""
        part = subset(self.study, rows, layer=self.options.layer)
        # Labels are smoothed after the split, so that no training label contains a held-out spot.
        if self.options.smooth:
            part.table.layers[SMOOTHED] = smoothed_labels(part, self.options.smooth, self.options.layer)
        return part


def smoothed_labels(study: Study, n_neighbors: int, layer: str | None) -> np.ndarray:
    """Average the labels over each spot and its nearest spots in the section, float32 (n_obs, n_vars)."""
    table = study.table
    values = labels(table, np.arange(table.n_obs), np.arange(table.n_vars), layer=layer)
    out = np.empty_like(values)
    for name in study.section_names():
        rows = study.section_rows(name)
        k = min(n_neighbors, len(rows) - 1)
        out[rows] = (values[rows] + k * (neighbor_graph(study.positions[rows], k) @ values[rows])) / (k + 1)
    return out


def kept_layers(table: AnnData, model: Model, absent: list[str]) -> dict[str, np.ndarray]:
    """Collect predictions, their uncertainty, and measured expression, at its end also of ``absent`` genes."""
    columns = table.var_names.get_indexer(model.genes)
    measured = table.var_names.get_indexer([*model.genes, *absent])
    layers = {"X": np.asarray(table.layers[KEY])[:, columns]}
    layers["measured"] = labels(table, np.arange(table.n_obs), measured, layer=model.labels["layer"])
    # The study may hold layers and columns of the user whose names begin like these.
    for part, name in _schema.uncertainty_keys(KEY).items():
        if name in table.layers:
            layers[part] = np.asarray(table.layers[name])[:, columns]
    if _schema.ood_key(KEY) in table.obs and "std" in layers:
        layers["ood"] = table.obs[_schema.ood_key(KEY)].to_numpy()
    return layers


def run_and_keep(task: Task, folder: ResumableFolder, defaults: Settings, kind: type[Predictor]) -> Part:
    """Run a task and keep its result; a worker process gets the settings and the models of this one."""
    for name, value in asdict(defaults).items():
        setattr(settings, name, value)
    # The caller shows one bar for all tasks, which bars of single fits would break up.
    settings.progress = False
    if kind.name not in models.list():
        models.register(kind)
    try:
        part = task.run()
    finally:
        # With one job this is the caller's process, whose setting has to come back.
        settings.progress = defaults.progress
    save_part(folder, task.key, part)
    return part


@contextmanager
def located(fold: str, label: str) -> Iterator[None]:
    """Add fold and model to the message of an error; errors of other packages keep their kind."""
    try:
        yield
    except Img2GeneError as error:
        # The class is kept, so that `except LeakageError` still catches it.
        raise type(error)(f"Without {fold}, {label!r}: {error}") from error
    except Exception as error:
        # Errors of other packages can need several arguments, so they cannot be made anew with a longer message.
        error.add_note(f"This was the model {label!r}, trained without {fold}.")
        raise


def with_own_folder(candidate: Candidate, key: str) -> Candidate:
    """Give a fit with ``checkpoint_dir`` a folder of its own inside it."""
    folder = candidate.get("checkpoint_dir")
    return candidate if folder is None else {**candidate, "checkpoint_dir": str(Path(folder) / key)}


@contextmanager
def limited_threads(n_threads: int) -> Iterator[None]:
    """Compute with a fixed number of threads: with more, sums are taken in another order and differ in their last digits."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with threadpool_limits(n_threads):
            yield
    finally:
        torch.set_num_threads(before)
