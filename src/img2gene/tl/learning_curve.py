"""Score models trained on parts of the training data."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene._checks import Arguments, several, shown
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene._files.folders import fingerprint
from img2gene._study.depth import MIN_DEPTH
from img2gene._study.entrance import open_study, report_off_tissue
from img2gene._study.expression import in_tissue, labels, layer_problems
from img2gene._study.panel import (
    Genes,
    check_genes,
    check_panel,
    choose_genes,
    is_named,
    named_genes,
    refuse_constant,
)
from img2gene._study.splits import named_groups, split
from img2gene._study.study import Study
from img2gene._study.subsets import UNITS, nested_samples, sample_problems, subset
from img2gene.metrics.catalog import METRICS
from img2gene.tl._arguments import (
    MOST_REPEATS,
    check_flags,
    check_gene_choice,
    check_gene_groups,
    check_seed,
    check_workers,
    checked_features,
    later_step,
    open_features,
)
from img2gene.tl._cross_validation.candidates import Candidate, ModelsGiven, model_candidates
from img2gene.tl._cross_validation.checkpoint import Part, open_results
from img2gene.tl._cross_validation.run import run_tasks, study_fingerprint
from img2gene.tl._cross_validation.task import Fold, Task, TaskOptions
from img2gene.tl.evaluate import GeneGroups, group_members, summarize
from img2gene.tl.fit import check_split

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

# Rows to train on, by fraction and repeat.
Samples = dict[tuple[float, int], np.ndarray]

COLUMNS = (
    *("test_group", "model", "fraction", "repeat", "n_spots", "n_groups", "genes", "n_genes"),
    *METRICS,
    *("n_nan", "seconds", "leakage"),
)


@fill_parameters
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
    features: str | None = None,
    seed: int | None = None,
    n_jobs: int = 1,
    n_threads: int = 1,
    folder: str | Path | None = None,
    table_key: str = "table",
    allow_leakage: bool = False,
    min_depth: float = MIN_DEPTH,
) -> pd.DataFrame:
    """Score models that are trained on parts of the training data.

    Each group is held out in turn. The others are the training fold. Every model is trained on the same nested samples of it:
    in one repeat, a smaller sample is part of the larger ones. The held-out group is always scored whole.

    Gene panel, gene groups and the mean that R² refers to come from the whole training fold, never from the held-out group.
    So all points of a curve score the same genes on the same scale.

    Parameters
    ----------
    %(sdata_embedded)s
    models
        Registered models (see :func:`img2gene.models.list`); or for each label one of them, or a dict with the ``"model"``, its
        parameters and, where it is not ``encoder``, its ``"encoder"``: ``{"10 components": {"model": "ridge", "n_components": 10}}``.
    fractions
        Parts of the training fold, in (0, 1]; numbers of groups and spots are rounded.
    by
        What a sample leaves out. ``"groups"``: whole patients with all their sections; at least one stays. ``"spots"``: area.
        Every training section keeps the spots nearest to a random one. A random subset of spots would still show nearly
        the whole section, but no neighbourhoods.
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
    %(encoder)s
    %(features)s
    seed
        Seed of samples and models; None takes ``img2gene.settings.seed``. Repeats differ by their samples alone.
    n_jobs
        Processes that train at the same time; -1 for one per core. Results do not depend on it.
    n_threads
        Threads of each process.
    folder
        Keep finished fits in this folder, and continue from it after an interruption.
    %(table_key_embedding)s
    allow_leakage
        Hold out groups of a patient who is trained on, too; the result is marked.
    %(min_depth)s

    Returns
    -------
    DataFrame with one row per held-out group, model, fraction, repeat and gene group: ``test_group``, ``model`` (its label),
    ``fraction``, ``repeat``, ``n_spots`` and ``n_groups`` trained on, ``genes`` (the gene group, ``all`` first), ``n_genes``,
    the mean of every metric within sections averaged over sections (see :func:`img2gene.tl.evaluate`),
    ``n_nan`` (gene × section pairs without a correlation), ``seconds`` of training, and ``leakage``. The same sample is
    trained on once: all repeats of fraction 1 hold the same numbers. Nothing is written.

    Raises
    ------
    Img2GeneError
        A fraction outside (0, 1] or too small, too few groups, a section in several groups, or genes chosen by name
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
    check = Arguments()
    fractions, by = _fractions(check, fractions), check.choice("by", by, UNITS)
    groups, tested_groups = check.text("groups", groups), check.labels("test_on", test_on)
    layer, encoder = check.text("layer", layer, optional=True), check.text("encoder", encoder, optional=True)
    features = checked_features(check, features, encoder=encoder)
    genes, gene_sets = check_gene_choice(check, genes), check_gene_groups(check, gene_groups)
    n_repeats, seed = check.whole("n_repeats", n_repeats, 1, MOST_REPEATS), check_seed(check, seed)
    n_jobs, n_threads = check_workers(check, n_jobs, n_threads)
    folder = check.path("folder", folder, optional=True)
    min_depth = check.number("min_depth", min_depth, 0, 1)
    check_flags(check, allow_leakage=allow_leakage)
    whole = open_features(check, open_study(check, sdata, table_key), features)
    with later_step(check):
        check.messages += layer_problems(whole.table, layer, whole.name)
    with later_step(check):
        candidates = model_candidates(models, encoder, whole, features)
    with later_step(check):
        tested = _tested(whole, tested_groups, groups)
    with later_step(check):
        _ = whole.positions
    with later_step(check):
        check_genes(whole, genes)
    check.raise_all()
    options = TaskOptions(groups, layer, 0, seed, 0, None, n_threads, min_depth)
    on_tissue = in_tissue(whole.table)
    report_off_tissue(whole)
    study = subset(whole, np.flatnonzero(on_tissue), layer=layer)
    curve = _Curve(study, by, fractions, n_repeats, options, allow_leakage)
    # All folds first, so that none is refused after hours of training on the others.
    folds = [curve.fold(name, genes, gene_sets) for name in tested]
    return curve.run(folds, candidates, curve.record(folds, candidates, genes, gene_sets), n_jobs, folder)


def _fractions(check: Arguments, fractions: Any) -> list[float]:
    """Convert the fractions to numbers in ascending order."""
    values = several(fractions)
    numbers = Arguments()
    plain = [] if values is None else [numbers.number("fractions", value) for value in values]
    if values is None or numbers.messages:
        check.messages.append(f"fractions={shown(fractions)}: expected several numbers in (0, 1], such as (0.5, 1.0).")
        return []
    outside = [value for value in plain if not 0 < value <= 1]
    check.messages += [f"fractions: {listing(outside)} outside (0, 1]."] * bool(outside)
    check.messages += ["`fractions` is empty."] * (not plain)
    check.distinct("fractions", plain)
    return sorted(plain)


def _tested(study: Study, test_on: Iterable[str] | None, groups: str) -> list[str]:
    """List the groups to hold out; each must consist of whole sections."""
    values = study.groups(groups)
    known = np.unique(values).tolist()
    if len(known) < 2:
        raise Img2GeneError(
            f"obs[{groups!r}] has one value only ({listing(known)}), so nothing can be held out. Join more sections with "
            "`img2gene.io.concat_sections`."
        )
    pairs = pd.DataFrame({"section": study.sections, "group": values}).drop_duplicates()
    divided = pairs["section"][pairs["section"].duplicated()].unique()
    if len(divided):
        raise Img2GeneError(f"obs[{groups!r}] divides the sections {listing(divided)}: hold out whole sections.")
    return known if test_on is None else named_groups(test_on, values, "test_on", groups)


@dataclass(frozen=True)
class _CurveFold:
    """One held-out group, and the samples of the other groups.

    Attributes
    ----------
    name
        The held-out group.
    samples
        Rows to train on, by fraction and repeat.
    folds
        A fold of the cross-validation for each distinct sample, by the bytes of its rows.
    """

    name: str
    samples: Samples
    folds: dict[bytes, Fold]


@dataclass(frozen=True)
class _Curve:
    """A cross-validation on nested samples of each training fold.

    Attributes
    ----------
    study
        The study without images.
    by, fractions, n_repeats
        How training folds are sampled.
    options
        Options of all fits.
    """

    study: Study
    by: str
    fractions: list[float]
    n_repeats: int
    options: TaskOptions
    allow_leakage: bool

    @property
    def groups(self) -> np.ndarray:
        return self.study.groups(self.options.inner)

    def fold(self, name: str, genes: Genes, gene_groups: GeneGroups) -> _CurveFold:
        """Check the split, choose genes on the whole training fold, and draw its samples."""
        study = self.study
        division = split(study, self.options.inner, train_on=None, validate_on=[name])
        check_split(study, division, self.options.inner, self.allow_leakage, allow_single_section=False)
        if genes is None:
            check_panel(study, division.held_out, allow_leakage=self.allow_leakage)
        options = self.options
        choice = choose_genes(
            study, study.ordered(division.train), genes, layer=options.layer, min_depth=options.min_depth
        )
        if choice.constant and is_named(genes):
            refuse_constant(choice.constant)
        samples = self._samples(name, choice.rows)
        varies = self._varying(name, choice.genes, samples, named=is_named(genes))
        kept = [gene for gene, known in zip(choice.genes, varies, strict=True) if known]
        statistics = {key: values[varies] for key, values in choice.statistics(study).items()}
        # Genes are ranked in the whole training fold: ranked in each sample, every point would score other genes.
        members = group_members(kept, statistics, kept, gene_groups)
        test = np.flatnonzero(division.held_out)
        folds = {
            # All repeats of fraction 1 draw the same rows, so one fit serves them all.
            rows.tobytes(): Fold(name, rows, test, kept, members, [], {}, fingerprint(rows=rows)["rows"], statistics)
            for rows in samples.values()
        }
        return _CurveFold(name, samples, folds)

    def _samples(self, name: str, rows: np.ndarray) -> Samples:
        """Draw the training rows of each fraction and repeat, among the rows of the other groups."""
        study, groups = self.study, self.groups
        raise_problems(sample_problems(self.by, self.fractions, groups[rows], study.sections[rows]))
        # Counted among all groups, so that samples do not depend on which ones are held out.
        number = int(np.flatnonzero(np.unique(groups) == name)[0])
        samples: Samples = {}
        for repeat in range(self.n_repeats):
            masks = nested_samples(
                self.by,
                self.fractions,
                groups=groups[rows],
                sections=study.sections[rows],
                positions=study.positions[rows],
                rng=np.random.default_rng([self.options.seed, number, repeat]),
            )
            samples |= {
                (fraction, repeat): np.sort(rows[mask]) for fraction, mask in zip(self.fractions, masks, strict=True)
            }
        return samples

    def _varying(self, name: str, genes: list[str], samples: Samples, *, named: bool) -> np.ndarray:
        """Find the genes that vary in every smallest sample, and hence in the larger ones."""
        table, smallest = self.study.table, self.fractions[0]
        columns = table.var_names.get_indexer(genes)
        parts = [
            labels(table, rows, columns, layer=self.options.layer)
            for (fraction, _), rows in samples.items()
            if fraction == smallest
        ]
        # A gene that is lost in one sample leaves all of them, so that every point scores the same genes.
        varies = np.all([part.max(axis=0) > part.min(axis=0) for part in parts], axis=0)
        constant = [gene for gene, known in zip(genes, varies, strict=True) if not known]
        if constant and (named or not varies.any()):
            raise Img2GeneError(
                f"Without {name}, {len(constant)} genes do not vary in a sample of fraction {smallest:g}: "
                f"{listing(constant)}. Leave them out of `genes`, or take larger fractions."
            )
        if constant:
            logger.info("without %s: left out %d genes that do not vary in the smallest sample", name, len(constant))
        return varies

    def record(
        self, folds: list[_CurveFold], candidates: dict[str, Candidate], genes: Genes, gene_groups: GeneGroups
    ) -> dict[str, Any]:
        """List what the user asked for, and digests of the data, as they are recorded in a folder."""
        return {
            "models": candidates,
            "by": self.by,
            "fractions": self.fractions,
            "n_repeats": self.n_repeats,
            "groups": self.options.inner,
            "held_out": [fold.name for fold in folds],
            "genes": named_genes(genes) if is_named(genes) else genes,
            "gene_groups": None if gene_groups is None else dict(gene_groups),
            "layer": self.options.layer,
            "seed": self.options.seed,
            "n_threads": self.options.n_threads,
            "data": study_fingerprint(self.study, candidates, self.groups, self.options),
        }

    def run(
        self,
        folds: list[_CurveFold],
        candidates: dict[str, Candidate],
        record: dict[str, Any],
        n_jobs: int,
        folder: str | Path | None,
    ) -> pd.DataFrame:
        """Train and score every model on every distinct sample, and tabulate all points."""
        results = open_results(folder, json.loads(json.dumps(record, default=str)), what="learning curve")
        tasks = {
            (fold.name, label, sample): Task(self.study, part, label, candidate, self.options, False, False)
            for fold in folds
            for sample, part in fold.folds.items()
            for label, candidate in candidates.items()
        }
        parts = run_tasks(tasks, results, n_jobs, "Learning curve")
        points = [
            self._point(parts[fold.name, label, rows.tobytes()], label, rows).assign(
                test_group=fold.name, model=label, fraction=fraction, repeat=repeat
            )
            for fold in folds
            for label in candidates
            for (fraction, repeat), rows in fold.samples.items()
        ]
        return pd.concat(points, ignore_index=True)[list(COLUMNS)]

    def _point(self, part: Part, label: str, rows: np.ndarray) -> pd.DataFrame:
        summary = summarize(part.scores[part.scores["model"] == label])
        facts = {"n_spots": len(rows), "n_groups": len(np.unique(self.groups[rows])), "seconds": part.seconds}
        return summary.assign(**facts)
