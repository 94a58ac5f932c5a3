"""Cross-validate models by patient: everything is fitted inside the folds, and baselines are scored with the models."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._checks import Arguments, several, shown
from img2gene._cluster import check_client
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene._study.depth import MIN_DEPTH
from img2gene._study.entrance import open_study, report_off_tissue
from img2gene._study.expression import layer_problems, measured
from img2gene._study.panel import Genes, check_genes
from img2gene._study.resolution import warn_of_unequal_sections
from img2gene._study.study import Study
from img2gene._study.subsets import subset
from img2gene.tl._arguments import (
    MOST_PERMUTATIONS,
    check_between,
    check_flags,
    check_gene_choice,
    check_seed,
    check_workers,
    checked_features,
    later_step,
    open_features,
)
from img2gene.tl._cross_validation.candidates import Candidate, ModelsGiven, completed, model_candidates
from img2gene.tl._cross_validation.folds import OuterFolds
from img2gene.tl._cross_validation.result import CrossValidation
from img2gene.tl._cross_validation.run import CrossValidationRun
from img2gene.tl._cross_validation.task import TaskOptions
from img2gene.tl.evaluate import BASELINE_ROWS, GeneGroups, with_markers

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

BASELINES: dict[str, Candidate] = {
    "ridge": {"model": "ridge"},
    "ridge-plain": {"model": "ridge-plain"},
    # This is the probe of HEST-Benchmark: 256 components, and nothing is centred by section.
    "ridge, not centred": {"model": "ridge-plain", "center": "none", "n_components": 256},
    "feature k-NN": {"model": "knn"},
}
# It runs only where folds divide sections: without training spots in a section, coordinates say nothing about it.
_COORDINATES = {"coordinate k-NN": {"model": "coordinates"}}


@fill_parameters
def cross_validate(
    sdata: SpatialData,
    models: ModelsGiven = ("img2gene",),
    *,
    groups: str = "patient",
    inner: str | None = None,
    n_folds: int | None = None,
    test_on: Iterable[str] | None = None,
    genes: Genes = None,
    gene_groups: GeneGroups = None,
    markers: Iterable[str] | None = None,
    layer: str | None = None,
    smooth: int = 0,
    encoder: str | None = None,
    features: str | None = None,
    baselines: bool = True,
    n_permutations: int = 20,
    level: float = 0.9,
    keep_predictions: bool | Sequence[str] = False,
    seed: int | None = None,
    n_jobs: int = 1,
    n_threads: int = 1,
    folder: str | Path | None = None,
    client: Any = None,
    table_key: str = "table",
    allow_leakage: bool = False,
    min_depth: float = MIN_DEPTH,
) -> CrossValidation:
    """Score models on patients that they were trained without.

    Each patient is held out in turn (or several at once, ``n_folds``). Gene panel, gene groups, pathway selection, scaling,
    components, penalties, reference banks and early stopping see the training patients alone; inside them, models leave out
    groups once more to choose what they choose. Embeddings are those that are stored, computed once.

    The result also holds the *training mean*, the *section mean (oracle)*, the *permutation null* of the first model, the
    slide-centred ``ridge``, a ridge without centring (the linear probe of HEST-Benchmark), *feature k-NN*, and, where spots
    of a section are on both sides, *coordinate k-NN*.

    Parameters
    ----------
    %(sdata_embedded)s
    models
        Registered models (see :func:`img2gene.models.list`); or for each label one of them, or a dict with the ``"model"``, its
        parameters and, where it is not ``encoder``, its ``"encoder"``: ``{"10 components": {"model": "ridge", "n_components": 10}}``.
    groups
        Column of obs that is held out. With one patient only, sections are left out instead, and all that is returned says
        that it is a within-patient estimate.
    inner
        Column of obs that validation inside the training folds leaves out: ``"patient"``, ``"section"``; by default
        ``groups``.
    n_folds
        Number of folds into which the groups are dealt at random; None leaves out each group by itself.
    test_on
        Values of ``groups`` to hold out; by default each.
    genes
        As in :func:`img2gene.tl.fit`. A number means those with the highest mean in each training fold. Genes chosen by
        name that do not vary in a training fold have NaN scores there.
    gene_groups, markers
        As in :func:`img2gene.tl.evaluate`; statistics come from the training folds.
    layer
        Layer with labels on a scale of your own, as in :func:`img2gene.tl.fit`. Labels must not be smoothed; see ``smooth``.
    smooth
        Average labels over this number of nearest spots in the section and the spot itself, after the split: 8 is the 3 × 3
        smoothing of papers. For comparison only, as such labels are easier; recorded in the result.
    %(encoder)s
    %(features)s
    baselines
        Train the baselines, too. Training mean, oracle and null cost nothing and are always there.
    n_permutations
        Shuffles of the permutation null.
    level
        Nominal coverage of the intervals that models predict, as in :func:`img2gene.tl.fit`.
    keep_predictions
        Keep the held-out predictions of all models (True), or of those named, in ``predictions`` of the result.
    seed
        Seed of folds and models; None takes ``img2gene.settings.seed``.
    n_jobs
        Processes of this computer that work on folds and models at the same time; −1 for one per core. Each holds the study in memory. The
        result does not depend on it.
    n_threads
        Threads of each of them; their number may change last digits.
    folder
        Keep finished parts there, and go on from them when called again with the same study and arguments. What was
        computed with others, or by another version, is refused.
    %(client)s
    %(table_key_embedding)s
    allow_leakage
        Continue although a patient is on both sides of a fold, or a leak was detected (:func:`img2gene.tl.check_leaks`); the
        result is marked.
    %(min_depth)s

    Returns
    -------
    :class:`~img2gene.tl.CrossValidation`. Nothing is written to the study.

    Raises
    ------
    Img2GeneError
        Nothing can be held out, no such model, parameter, gene or column, missing groups, a folder of another run; and what
        :func:`img2gene.tl.fit` raises, with the fold and the model.
    LeakageError
        A patient is on both sides of a fold, spots are duplicated across groups, labels were smoothed, or the gene panel
        was chosen on all data.

    References
    ----------
    Sections of one patient: METHODS in the documentation. HEST-Benchmark: Jaume et al., NeurIPS 2024.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> result = ig.tl.cross_validate(sdata, "ridge", baselines=False, n_permutations=2)
    >>> result.summary("all")["model"].tolist()
    ['ridge', 'training mean', 'section mean (oracle)', 'permutation null']
    >>> result.scope
    'between patients'
    """
    check = Arguments()
    groups, inner = check.text("groups", groups), check.text("inner", inner, optional=True)
    tested, genes = check.labels("test_on", test_on), check_gene_choice(check, genes)
    layer, encoder = check.text("layer", layer, optional=True), check.text("encoder", encoder, optional=True)
    features = checked_features(check, features, encoder=encoder)
    gene_sets, level = with_markers(check, gene_groups, markers), check_between(check, "level", level)
    smooth = check.whole("smooth", smooth, 0)
    n_permutations = check.whole("n_permutations", n_permutations, 0, MOST_PERMUTATIONS)
    n_folds, seed = check.whole("n_folds", n_folds, 2, optional=True), check_seed(check, seed)
    n_jobs, n_threads = check_workers(check, n_jobs, n_threads)
    folder, min_depth = check.path("folder", folder, optional=True), check.number("min_depth", min_depth, 0, 1)
    client = check_client(check, client)
    check_flags(check, baselines=baselines, allow_leakage=allow_leakage)
    whole = open_features(check, open_study(check, sdata, table_key), features)
    with later_step(check):
        candidates = model_candidates(models, encoder, whole, features)
        raise_problems(_reserved(candidates))
    _check_table(check, whole, layer, genes, (groups, inner))
    check.raise_all()
    study = _measured(whole, layer)
    outer = OuterFolds.divide(
        study,
        groups,
        n_folds=n_folds,
        test_on=tested,
        seed=seed,
        allow_leakage=allow_leakage,
        uncounted=sorted(set(whole.groups(groups)) - set(study.groups(groups))),
    )
    warn_of_unequal_sections(study, np.arange(study.n_obs))
    labels = list(candidates)
    if baselines:
        extra = {**BASELINES, **(_COORDINATES if outer.divides_sections(study) else {})}
        candidates = _with_baselines(candidates, extra, encoder, study)
    kept = _kept(keep_predictions, labels, list(candidates))
    # Sections that are divided between training and test are all needed, for example as coordinates.
    least = 0.0 if outer.divides_sections(study) else min_depth
    options = TaskOptions(inner or outer.groups, layer, smooth, seed, n_permutations, level, n_threads, least)
    run = CrossValidationRun(study, outer, candidates, options, kept, allow_leakage)
    return run.run(genes, gene_sets, n_jobs, folder, client)


def _check_table(check: Arguments, study: Study, layer: Any, genes: Any, columns: Iterable[Any]) -> None:
    """Check that the table has the expression, the groups and the genes of a call."""
    with later_step(check):
        check.messages += layer_problems(study.table, layer, study.name)
    for column in dict.fromkeys(name for name in columns if isinstance(name, str)):
        with later_step(check):
            study.groups(column)
    with later_step(check):
        check_genes(study, genes)


def _reserved(labels: Iterable[str]) -> list[str]:
    taken = [label for label in labels if label in BASELINE_ROWS]
    return [f"models: {listing(taken)} is the label of a baseline of every result; choose another label."] * bool(taken)


def _kept(keep: bool | Sequence[str], models: list[str], known: list[str]) -> list[str]:
    """List the models whose predictions are kept; named baselines, which are among ``known``, may be some of them."""
    if isinstance(keep, bool | np.bool_):
        return models if keep else []
    names = [keep] if isinstance(keep, str) else several(keep)
    if names is None or not all(isinstance(name, str) for name in names):
        raise Img2GeneError(
            f"keep_predictions={shown(keep)}: expected True, False, or labels of models: {listing(known)}."
        )
    unknown = [name for name in names if name not in known]
    if unknown:
        raise Img2GeneError(f"keep_predictions: no model labelled {listing(unknown)} (available: {listing(known)}).")
    return list(dict.fromkeys(names))


def _with_baselines(
    candidates: dict[str, Candidate], extra: dict[str, Candidate], encoder: str | None, study: Study
) -> dict[str, Candidate]:
    """Add the baselines that are not among the models under another label; the labels of baselines are reserved."""
    # Baselines use the embedding of the first model, so that a difference is due to the model.
    first = next(iter(candidates.values()))
    inputs = {"encoder": first["encoder"] if encoder is None else encoder}
    inputs |= {"features": first["features"]} if "features" in first else {}
    added = {label: {**inputs, **one} for label, one in extra.items()}
    present = {label: completed(one, study) for label, one in candidates.items()}
    missing = {label: one for label, one in added.items() if completed(one, study) not in present.values()}
    raise_problems(
        [
            f"models[{label!r}] has the label of the baseline {extra[label]}, and is another model, or has other parameters or "
            "another embedding. Give it another label, or pass `baselines=False`."
            for label in missing
            if label in candidates
        ]
    )
    return candidates | missing


def _measured(study: Study, layer: str | None) -> Study:
    """Take the measured spots without images; sections with only an image are left out."""
    known = measured(study.table, layer)
    if not known.any():
        raise Img2GeneError(
            f"No spot of `{study.name}` has a count, or none lies on tissue (`obs['in_tissue']`), so there is nothing to score."
        )
    n_off = report_off_tissue(study)
    n_empty = int((~known).sum()) - n_off
    if n_empty:
        logger.warning("left out %d spots without a count", n_empty)
    # Worker processes get a copy of the study, so it holds nothing that models do not use.
    return subset(study, np.flatnonzero(known), layer=layer)
