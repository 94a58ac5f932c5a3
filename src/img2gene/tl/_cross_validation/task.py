"""Training and scoring one model on one fold of a cross-validation, in this process or in another."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from img2gene import metrics, models
from img2gene._errors import Img2GeneError
from img2gene._study.expression import labels
from img2gene._study.inputs import positions
from img2gene._study.sections import section_labels, section_names
from img2gene._study.subsets import subset
from img2gene.metrics import neighbor_graph
from img2gene.settings import Settings, settings
from img2gene.tl._cross_validation.checkpoint import Part, ResultsFolder, part_key
from img2gene.tl._scoring.selection import patient_of, scored_values
from img2gene.tl.evaluate import evaluate
from img2gene.tl.fit import fit
from img2gene.tl.predict import predict

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

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
        Those of them that were named as members of each gene group.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    genes: list[str]
    groups: dict[str, list[str]]
    absent: list[str]
    absent_groups: dict[str, list[str]]


@dataclass(frozen=True)
class Options:
    """What all tasks of a cross-validation share."""

    inner: str
    layer: str | None
    smooth: int
    seed: int
    n_permutations: int
    level: float
    n_threads: int
    table_key: str


@dataclass(frozen=True)
class Task:
    """One model on one fold."""

    study: SpatialData
    fold: Fold
    label: str
    given: dict[str, Any]
    options: Options
    keep: bool

    @property
    def key(self) -> str:
        """Name of what is kept of it in a folder."""
        return part_key(self.fold.name, self.label)

    def run(self) -> Part:
        """Train on the fold's training rows and score on the others."""
        with limited_threads(self.options.n_threads):
            start = time.perf_counter()
            train = self._part(self.fold.train)
            with located(self.fold.name, self.label):
                model = cast("Model", self._fit(train))
                seconds = time.perf_counter() - start
                return self._score(model, seconds)

    def _fit(self, train: SpatialData) -> Model | None:
        options = self.options
        return fit(
            train,
            genes=self.fold.genes,
            groups=options.inner,
            layer=SMOOTHED if options.smooth else options.layer,
            level=options.level,
            seed=options.seed,
            table_key=options.table_key,
            allow_single_section=True,
            inplace=False,
            **with_own_folder(self.given, self.key),
        )

    def _score(self, model: Model, seconds: float) -> Part:
        test, options = self._part(self.fold.test), self.options
        predict(test, model, table_key=options.table_key, key_added=KEY)
        table = test.tables[options.table_key]
        scores = evaluate(
            test,
            model,
            sections=section_names(table, np.arange(table.n_obs), options.table_key),
            gene_groups=self.fold.groups,
            n_permutations=options.n_permutations,
            seed=options.seed,
            key=KEY,
            table_key=options.table_key,
            # Splits were checked before, and the result is marked.
            allow_leakage=True,
            inplace=False,
        )
        scores["model"] = scores["model"].replace(model.name, self.label)
        layers = kept_layers(table, model, self.fold.absent) if self.keep else {}
        return Part(scores, self._structure(table, model), layers, seconds)

    def _structure(self, table: AnnData, model: Model) -> pd.DataFrame:
        """Agreement of gene–gene correlations, for every section and gene group."""
        sections = section_labels(table, self.options.table_key)
        groups = {"all": self.fold.genes, **self.fold.groups}
        found = []
        for name in dict.fromkeys(sections.tolist()):
            rows = np.flatnonzero(sections == name)
            for group, genes in groups.items():
                if not 2 < len(genes) <= _MOST_STRUCTURE_GENES:
                    continue
                pair = scored_values(table, model, rows, table.var_names.get_indexer(genes), KEY)
                scores = metrics.structure_score(*(metrics.gene_correlation(values) for values in pair))
                facts = {"model": self.label, "section": name, "patient": patient_of(table, rows), "genes": group}
                found.append(
                    facts | dict(zip(("structure", "structure_rmse"), scores, strict=True), n_genes=len(genes))
                )
        columns = ["model", "section", "patient", "genes", "structure", "structure_rmse", "n_genes"]
        return pd.DataFrame(found, columns=columns)

    def _part(self, rows: np.ndarray) -> SpatialData:
        """The study of some rows, with smoothed labels if they are wanted."""
        layer, key = self.options.layer, self.options.table_key
        part = subset(self.study, rows, layer=layer, table_key=key)
        if self.options.smooth:
            table = part.tables[key]
            table.layers[SMOOTHED] = smoothed_labels(table, self.options.smooth, layer, key)
        return part


def smoothed_labels(table: AnnData, n_neighbors: int, layer: str | None, table_key: str) -> np.ndarray:
    """Labels averaged over each spot and its nearest ones of the same section, float32 (n_obs, n_vars)."""
    values = labels(table, np.arange(table.n_obs), np.arange(table.n_vars), layer=layer)
    places, sections = positions(table, table_key), section_labels(table, table_key)
    out = np.empty_like(values)
    for name in np.unique(sections):
        rows = np.flatnonzero(sections == name)
        k = min(n_neighbors, len(rows) - 1)
        out[rows] = (values[rows] + k * (neighbor_graph(places[rows], k) @ values[rows])) / (k + 1)
    return out


def kept_layers(table: AnnData, model: Model, absent: list[str]) -> dict[str, np.ndarray]:
    """Predictions, what was measured (of ``absent`` genes, too, at the end), and all that belongs to the predictions."""
    columns = table.var_names.get_indexer(model.genes)
    measured = table.var_names.get_indexer([*model.genes, *absent])
    found = {"X": np.asarray(table.layers[KEY])[:, columns]}
    found["measured"] = labels(table, np.arange(table.n_obs), measured, layer=model.labels["layer"])
    for name in table.layers:
        if name is not None and name.startswith(f"{KEY}_"):
            found[name.removeprefix(f"{KEY}_")] = np.asarray(table.layers[name])[:, columns]
    for name in table.obs:
        if str(name).startswith(f"{KEY}_"):
            found[str(name).removeprefix(f"{KEY}_")] = table.obs[name].to_numpy()
    return found


def run_and_keep(task: Task, folder: ResultsFolder, given: Settings, kind: type[Predictor]) -> Part:
    """Run a task and keep what it brought; settings and models of this process hold in that of a worker, too."""
    for name, value in asdict(given).items():
        setattr(settings, name, value)
    settings.progress = False
    if kind.name not in models.list():
        models.register(kind)
    try:
        part = task.run()
    finally:
        settings.progress = given.progress
    folder.save(task.key, part)
    return part


@contextmanager
def located(fold: str, label: str) -> Iterator[None]:
    """Say of errors in which fold, and of which model, they arose; those of foreign code keep their kind."""
    try:
        yield
    except Img2GeneError as error:
        raise type(error)(f"Without {fold}, {label!r}: {error}") from error
    except Exception as error:
        error.add_note(f"This was the model {label!r}, trained without {fold}.")
        raise


def with_own_folder(given: dict[str, Any], key: str) -> dict[str, Any]:
    """Arguments of a fit whose ``checkpoint_dir``, if there is one, is a folder for this fit alone."""
    folder = given.get("checkpoint_dir")
    return given if folder is None else {**given, "checkpoint_dir": str(Path(folder) / key)}


@contextmanager
def limited_threads(n_threads: int) -> Iterator[None]:
    """Compute with so many threads: sums of more have another order, and other last digits."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with threadpool_limits(n_threads):
            yield
    finally:
        torch.set_num_threads(before)
