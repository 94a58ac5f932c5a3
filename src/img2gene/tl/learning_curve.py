"""How accuracy grows with the amount of training data, for several models."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._checks import genes_problems, whole_problems
from img2gene._errors import Img2GeneError, Problems, listing, raise_problems
from img2gene._study.expression import labels, library_size
from img2gene._study.inputs import positions
from img2gene._study.sections import group_labels, section_labels
from img2gene._study.splits import named_groups
from img2gene._study.subsets import UNITS, nested_samples, sample_problems, subset
from img2gene.models.networks.checkpoints import fingerprint
from img2gene.settings import settings
from img2gene.tl._cross_validation.candidates import ModelsGiven, model_candidates
from img2gene.tl._cross_validation.checkpoint import part_key
from img2gene.tl._cross_validation.task import located, with_own_folder
from img2gene.tl.evaluate import METRICS, GeneGroups, evaluate, group_members, summarize
from img2gene.tl.fit import Genes, fit
from img2gene.tl.predict import predict

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from img2gene.models import Model

logger = logging.getLogger(__name__)

# By what, which fractions, how many repeats.
Draw = tuple[str, list[float], int]
# Rows to train on, by fraction and repeat.
Samples = dict[tuple[float, int], np.ndarray]

_KEY = "img2gene"
COLUMNS = (
    *("test_group", "model", "fraction", "repeat", "n_spots", "n_groups", "genes", "n_genes"),
    *METRICS,
    *("n_nan", "seconds", "leakage"),
)


def learning_curve(
    sdata: SpatialData,
    models: ModelsGiven = ("ridge",),
    *,
    fractions: Sequence[float] = (0.1, 0.25, 0.5, 1.0),
    by: str = "groups",
    groups: str = "patient",
    test_on: Iterable[str] | None = None,
    n_repeats: int = 3,
    genes: Genes = None,
    gene_groups: GeneGroups = None,
    layer: str | None = None,
    encoder: str | None = None,
    seed: int | None = None,
    table_key: str = "table",
    allow_leakage: bool = False,
) -> pd.DataFrame:
    """Score models that were trained on parts of the training data.

    Each group is held out in turn. The others are the training fold, of which every model is trained on the same nested
    samples: in one repeat, a smaller sample is part of the larger ones. The held-out group is always scored whole.

    Gene panel, gene groups and the mean that R² refers to come from the whole training fold, so that all points of a curve
    are scores of the same genes on the same scale. The held-out group has no part in them.

    Parameters
    ----------
    sdata
        Study on which :func:`img2gene.pp.embed_patches` was run.
    models
        Registered models (see :func:`img2gene.models.list`); or for each label one of them, or a dict with the ``"model"``, its
        parameters and, where it is not ``encoder``, its ``"encoder"``: ``{"10 components": {"model": "ridge", "n_components": 10}}``.
    fractions
        Parts of the training fold, in (0, 1]; numbers of groups and spots are rounded.
    by
        What there is less of. ``"groups"``: patients, at least one, with all their sections; differences between patients
        are what a model has to get over. ``"spots"``: area. Of every training section the spots nearest to one drawn at
        random are kept: spots at random would keep nearly all that a section shows, and no neighbourhoods.
    groups
        Column of obs that is held out, and sampled by: ``"patient"``, or ``"section"``.
    test_on
        Values of ``groups`` to hold out; by default each.
    n_repeats
        Samples for each fraction.
    genes
        As in :func:`img2gene.tl.fit`; a number means those with the highest mean in the whole training fold. Genes that do
        not vary in the smallest sample are left out.
    gene_groups
        As in :func:`img2gene.tl.evaluate`.
    layer
        Layer with labels on a scale of your own, as in :func:`img2gene.tl.fit`.
    encoder
        Which embedding, if several are stored.
    seed
        Seed of samples and models; None takes ``img2gene.settings.seed``. Repeats differ by their samples alone.
    table_key
        Table with counts and embedding.
    allow_leakage
        Hold out groups of a patient who is trained on, too; the result is marked.

    Returns
    -------
    DataFrame with one row per held-out group, model, fraction, repeat and gene group: ``test_group``, ``model`` (its label),
    ``fraction``, ``repeat``, ``n_spots`` and ``n_groups`` trained on, ``genes`` (the gene group, ``all`` first), ``n_genes``,
    the mean of every metric within sections averaged over sections (those of :func:`img2gene.tl.evaluate`),
    ``n_nan`` (gene × section pairs without a correlation), ``seconds`` of training, and ``leakage``. The same sample is
    trained on once: all repeats of fraction 1 hold the same numbers. Nothing is written.

    Raises
    ------
    Img2GeneError
        A fraction outside (0, 1] or too small, too few groups, a section in several groups, or genes asked for by name
        that do not vary in the smallest sample; and what :func:`img2gene.tl.fit` raises.
    MissingKeyError
        No such model, group, column or table.
    LeakageError
        A patient, or a gene panel chosen on held-out sections, is on both sides of the split.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> curve = ig.tl.learning_curve(sdata, ["mean", "ridge"], fractions=(0.5, 1), n_repeats=1)
    >>> curve.query("genes == 'all'").groupby(["model", "n_groups"]).size().to_dict()
    {('mean', 1): 3, ('mean', 2): 3, ('ridge', 1): 3, ('ridge', 2): 3}
    """
    table = _schema.get_table(sdata, table_key)
    problems = Problems(_option_problems(fractions, by, n_repeats) + genes_problems(genes))
    with problems.collect():
        candidates = model_candidates(models, encoder, table, table_key)
    with problems.collect():
        named = group_labels(table, groups, table_key)
        tested = _tested(table, named, test_on, groups, table_key)
    problems.raise_all()
    plan = _Plan(sdata, table_key, groups, layer, settings.seed if seed is None else seed, allow_leakage)
    draw = (by, sorted({float(fraction) for fraction in fractions}), n_repeats)
    reference = next(iter(candidates.values()))["encoder"]
    # All folds first, so that none is refused after hours of training on the others.
    folds = [plan.fold(name, draw, genes, gene_groups, reference) for name in tested]
    return plan.run(folds, candidates)


def _option_problems(fractions: Sequence[float], by: str, n_repeats: int) -> list[str]:
    if not isinstance(fractions, Iterable) or not all(isinstance(fraction, Real) for fraction in fractions):
        problems = [f"fractions={fractions!r}: expected several numbers in (0, 1], such as (0.5, 1.0)."]
    else:
        outside = [fraction for fraction in fractions if not 0 < fraction <= 1]
        problems = [f"fractions: {listing(outside)} outside (0, 1]."] * bool(outside)
        problems += ["`fractions` is empty."] * (not len(fractions))
    problems += [f"by={by!r}: the training data are divided by {listing(UNITS)}."] * (by not in UNITS)
    return problems + whole_problems("n_repeats", n_repeats, 1)


def _tested(table: AnnData, named: np.ndarray, test_on: Iterable[str] | None, groups: str, table_key: str) -> list[str]:
    """Groups to hold out, each of which is made of whole sections."""
    known = np.unique(named).tolist()
    if len(known) < 2:
        raise Img2GeneError(
            f"obs[{groups!r}] has one value only ({listing(known)}), so nothing can be held out. Join more sections with "
            "`img2gene.io.concat_sections`."
        )
    pairs = pd.DataFrame({"section": section_labels(table, table_key), "group": named}).drop_duplicates()
    divided = pairs["section"][pairs["section"].duplicated()].unique()
    if len(divided):
        raise Img2GeneError(f"obs[{groups!r}] divides the sections {listing(divided)}: hold out whole sections.")
    return known if test_on is None else named_groups(test_on, named, "test_on", groups)


@dataclass(frozen=True)
class _Fold:
    """One group held out.

    Attributes
    ----------
    name
        The group.
    samples
        Rows to train on, by fraction and repeat.
    genes
        What is predicted, chosen on the whole training fold.
    statistics
        Statistics of these genes on the whole training fold.
    groups
        Genes of each gene group, from these statistics.
    """

    name: str
    samples: Samples
    genes: list[str]
    statistics: dict[str, np.ndarray]
    groups: dict[str, list[str]]

    def distinct(self) -> list[np.ndarray]:
        """Each sample once."""
        return list({rows.tobytes(): rows for rows in self.samples.values()}.values())


@dataclass(frozen=True)
class _Plan:
    """What all points of the curves share."""

    sdata: SpatialData
    table_key: str
    groups: str
    layer: str | None
    seed: int
    allow_leakage: bool

    @property
    def table(self) -> AnnData:
        return self.sdata.tables[self.table_key]

    @property
    def named(self) -> np.ndarray:
        return group_labels(self.table, self.groups, self.table_key)

    def fold(self, name: str, draw: Draw, genes: Genes, gene_groups: GeneGroups, encoder: str | None) -> _Fold:
        """Choose genes on the whole training fold, by a fit that checks study and split, too."""
        options = {"encoder": encoder, "validate_on": [name], "allow_leakage": self.allow_leakage}
        whole = self._fit(self.sdata, model="mean", genes=genes, **options)
        samples = self._samples(name, *draw)
        smallest = min(fraction for fraction, _ in samples)
        varies = self._varies(whole.genes, [rows for (fraction, _), rows in samples.items() if fraction == smallest])
        kept, constant = (np.array(whole.genes)[chosen].tolist() for chosen in (varies, ~varies))
        asked_for = genes is not None and not isinstance(genes, (int, np.integer))
        if constant and (asked_for or not kept):
            raise Img2GeneError(
                f"Without {name}, {len(constant)} genes do not vary in a sample of fraction {smallest:g}: "
                f"{listing(constant)}. Leave them out of `genes`, or take larger fractions."
            )
        if constant:
            logger.info("without %s: left out %d genes that do not vary in the smallest sample", name, len(constant))
        statistics = {key: values[varies] for key, values in whole.statistics.items()}
        known = replace(whole, genes=kept, statistics=statistics)
        return _Fold(name, samples, kept, statistics, group_members(known, kept, gene_groups))

    def _samples(self, name: str, by: str, fractions: list[float], n_repeats: int) -> Samples:
        """Draw what is trained on without a group, among the spots that have labels."""
        table, named = self.table, self.named
        labelled = library_size(table) > 0 if self.layer is None else np.ones(len(named), dtype=bool)
        rows = np.flatnonzero((named != name) & labelled)
        sections = section_labels(table, self.table_key)[rows]
        raise_problems(sample_problems(by, fractions, named[rows], sections))
        places = positions(table, self.table_key)[rows]
        # Counted among all groups, so that samples do not depend on which ones are held out.
        number = int(np.flatnonzero(np.unique(named) == name)[0])
        found: Samples = {}
        for repeat in range(n_repeats):
            rng = np.random.default_rng([self.seed, number, repeat])
            drawn = nested_samples(by, fractions, groups=named[rows], sections=sections, positions=places, rng=rng)
            found |= {(fraction, repeat): rows[mask] for fraction, mask in zip(fractions, drawn, strict=True)}
        return found

    def _fit(self, study: SpatialData, **options: Any) -> Model:
        shared: dict[str, Any] = {"groups": self.groups, "layer": self.layer, "seed": self.seed, "uncertainty": False}
        return cast("Model", fit(study, **shared, table_key=self.table_key, inplace=False, **options))

    def _varies(self, genes: list[str], samples: list[np.ndarray]) -> np.ndarray:
        """Which genes vary in every one of some samples, and hence in the larger ones."""
        columns = self.table.var_names.get_indexer(genes)
        values = [labels(self.table, rows, columns, layer=self.layer) for rows in samples]
        return np.all([part.max(axis=0) > part.min(axis=0) for part in values], axis=0)

    def run(self, folds: list[_Fold], candidates: dict[str, dict[str, Any]]) -> pd.DataFrame:
        """Train and score every model on every sample."""
        from tqdm.auto import tqdm

        parts = []
        total = len(candidates) * sum(len(fold.distinct()) for fold in folds)
        with tqdm(total=total, desc="Learning curve", unit="fit", disable=not settings.progress) as bar:
            for fold in folds:
                test = self._study(np.flatnonzero(self.named == fold.name), fold.genes)
                scores = {}
                for rows in fold.distinct():
                    sample = self._study(rows)
                    for label, given in candidates.items():
                        own = with_own_folder(given, part_key(fold.name, label, fingerprint(rows=rows)["rows"]))
                        with located(fold.name, label):
                            scores[label, rows.tobytes()] = self._point(sample, test, fold, own)
                        bar.update()
                parts += [
                    scores[label, rows.tobytes()].assign(
                        test_group=fold.name, model=label, fraction=fraction, repeat=repeat
                    )
                    for label in candidates
                    for (fraction, repeat), rows in fold.samples.items()
                ]
        return pd.concat(parts, ignore_index=True)[list(COLUMNS)]

    def _point(self, sample: SpatialData, test: SpatialData, fold: _Fold, given: dict[str, Any]) -> pd.DataFrame:
        """Train a model on a sample and score it on the held-out group."""
        start = time.perf_counter()
        model = self._fit(sample, genes=fold.genes, allow_single_section=True, **given)
        seconds = time.perf_counter() - start
        # R² refers to the mean of the whole training fold.
        model = replace(model, statistics=fold.statistics)
        predict(test, model, table_key=self.table_key, key_added=_KEY)
        scores = evaluate(
            test,
            model,
            gene_groups=fold.groups,
            n_permutations=0,
            key=_KEY,
            table_key=self.table_key,
            allow_leakage=self.allow_leakage,
            inplace=False,
        )
        n_groups = len(np.unique(group_labels(sample.tables[self.table_key], self.groups, self.table_key)))
        summary = summarize(scores[scores["model"] == model.name])
        return summary.assign(n_spots=model.report["n_spots"], n_groups=n_groups, seconds=seconds)

    def _study(self, rows: np.ndarray, genes: list[str] | None = None) -> SpatialData:
        return subset(self.sdata, rows, genes, layer=self.layer, table_key=self.table_key)
