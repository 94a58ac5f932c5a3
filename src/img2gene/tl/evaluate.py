"""Score predictions gene by gene within each section, together with the baselines."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing, near_matches
from img2gene._study.entrance import open_study
from img2gene._study.replaced import PCC, foreign_scores, scored_by
from img2gene._study.scored import facts_of_scores, stated_facts
from img2gene.metrics.catalog import METRICS
from img2gene.models import Model
from img2gene.models.genes import top_genes
from img2gene.tl._arguments import (
    MOST_PERMUTATIONS,
    check_flags,
    check_gene_groups,
    check_model,
    check_seed,
    check_store,
)
from img2gene.tl._prediction.values import resolve_model
from img2gene.tl._scoring.depth import MeasuredDepth
from img2gene.tl._scoring.section import MEAN, NULL, ORACLE, SectionValues, pool
from img2gene.tl._scoring.selection import (
    check_leakage,
    check_scorable,
    is_rule,
    measured_genes,
    measured_sections,
    report_unlabelled,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

# Genes are ranked on training labels, so that held-out labels do not choose what is scored.
GENE_GROUPS: dict[str, tuple[str, int]] = {"HEG": ("mean", 50), "HVG": ("dispersion", 50), "SVG": ("moran", 50)}
GeneGroups = Mapping[str, tuple[str, int] | list[str]] | None
BASELINE_ROWS = (MEAN, ORACLE, NULL)
# Columns of score tables that are neither metrics nor gene groups; cross-validation adds the fold and scope, files the last two.
_FIXED_COLUMNS = (
    "model",
    "section",
    "patient",
    "gene",
    "n_spots",
    "leakage",
    "fold",
    "scope",
    _schema.FINGERPRINT,
    _schema.TRAINED_ON,
)
_NEEDED = ("section", "gene", "pcc", "leakage")
__all__ = [
    "BASELINE_ROWS",
    "GENE_GROUPS",
    "MEAN",
    "METRICS",
    "NULL",
    "ORACLE",
    "GeneGroups",
    "evaluate",
    "group_columns",
    "group_members",
    "summarize",
    "with_markers",
]


@fill_parameters
def evaluate(
    sdata: SpatialData,
    model: Model | str | Path | None = None,
    *,
    sections: Iterable[str] | None = None,
    gene_groups: Mapping[str, tuple[str, int] | list[str]] | None = None,
    markers: Iterable[str] | None = None,
    n_permutations: int = 20,
    seed: int | None = None,
    key: str = "img2gene",
    table_key: str = "table",
    at_measured_depth: bool | None = None,
    allow_leakage: bool = False,
    inplace: bool = True,
) -> pd.DataFrame:
    """Compare predictions with measured expression.

    Every gene is scored within every section, against expression normalised as in the training. Three baselines are scored too: the
    *training mean* (what a model without an image predicts), the *section mean (oracle)* (the mean of the gene in the tested
    section, which no model knows: how much is won by the level alone) and the *permutation null* (the model's predictions
    against labels shuffled within the section, averaged over ``n_permutations``).

    Parameters
    ----------
    sdata
        Study with measured counts and predictions in ``layers[key]``; where they are known, predictive standard deviations in
        ``layers[key + "_std"]`` and intervals in ``layers[key + "_lower"]`` and ``layers[key + "_upper"]``.
    %(model_predicted)s
    sections
        Sections to score; by default those that training neither used nor left out as too shallow. Those without any label, such
        as sections with an image only, are left out.
    gene_groups
        Name of each group with either the genes, or a training statistic (``mean``, ``variance``, ``dispersion``,
        ``moran``) and how many genes lead it. Default: top-50 mean (HEG), top-50 dispersion (HVG) and top-50 Moran's I
        (SVG), all from the training labels.
    markers
        Genes of one more group, ``markers``, in addition to ``gene_groups`` or the default groups.
    n_permutations
        Shuffles of the permutation null. Its SSIM and Moran's I come from the first shuffle.
    seed
        Seed of the shuffles; None takes ``img2gene.settings.seed``.
    %(key_prediction)s
    %(table_key_predictions)s
    at_measured_depth
        Convert predictions, their intervals and the training mean to the library sizes of each scored section first:
        expected normalised expression depends on depth, which no image shows. None does so where a depth was stated when
        predicting (:func:`img2gene.tl.predict`); False never does.
    %(allow_leakage)s
    %(inplace_result)s

    Returns
    -------
    DataFrame, one row per model, section and gene: ``model``, ``section``, ``patient``, ``gene``, one truth value per
    gene group, the scores, ``n_spots``, and ``leakage``: whether the section's patient was trained on, NA where patients are not
    recorded. The scores, of the gene in the section unless stated otherwise, are

    - ``pcc``, ``spearman``, ``mse``, ``mae``, ``nrmse``: as in ``img2gene.metrics``; ``r2``: against the training mean;
    - ``bias``: mean prediction minus mean label; ``slope``: of labels on predictions, 1 where differences between spots are
      as large as predicted;
    - ``ssim``: similarity of the maps; ``moran``: Moran's I of the prediction minus that of the labels (six nearest spots). NaN
      where no patches are recorded;
    - ``pcc_pooled``: over the spots of all scored sections together, the same in each of them;
    - ``coverage``, ``width`` of the intervals and ``error_correlation``, of absolute errors with predicted standard deviations:
      NaN for the baselines and where layers are absent.

    Genes that are constant in a section have NaN correlations. Unless ``inplace=False``, ``var["pcc"]`` (mean over
    sections) and a summary in ``uns[key]["evaluation"]`` are written.

    Raises
    ------
    Img2GeneError
        No predictions, predictions of another model, no labels in any of the sections, no section that the model was not
        trained on, a group without genes, or with genes that it does not predict, a column ``var["pcc"]`` of your own.
    LeakageError
        A patient of the scored sections was trained on.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "ridge", validate_on=["P3"])
    >>> ig.tl.predict(sdata)
    >>> scores = ig.tl.evaluate(sdata)
    >>> list(ig.tl.summarize(scores)["model"].unique())
    ['ridge', 'training mean', 'section mean (oracle)', 'permutation null']
    """
    check = Arguments()
    key, seed = check.text("key", key), check_seed(check, seed)
    model, sections = check_model(check, model), check.labels("sections", sections)
    groups = with_markers(check, gene_groups, markers)
    n_permutations = check.whole("n_permutations", n_permutations, 0, MOST_PERMUTATIONS)
    check_flags(check, allow_leakage=allow_leakage, inplace=inplace)
    if at_measured_depth is not None:
        at_measured_depth = check.flag("at_measured_depth", at_measured_depth)
    check.raise_all()
    study = open_study(check, sdata, table_key)
    if inplace:
        check_store(check, study.stored_table, "key", key)
        check.messages += foreign_scores(study.table, [PCC])
    check.raise_all()
    evaluated = resolve_model(study, model, key)
    check_scorable(study, evaluated, key)
    genes = measured_genes(study, evaluated)
    members = group_members(evaluated.genes, evaluated.statistics, genes, groups)
    chosen = measured_sections(study, evaluated, sections)
    leaked = check_leakage(study, evaluated, chosen, allow_leakage)
    report_unlabelled(study, evaluated, chosen)
    columns = study.table.var_names.get_indexer(genes)
    depth = MeasuredDepth.of(study, evaluated, genes, key, at_measured_depth)
    mean = evaluated.statistics["mean"][pd.Index(evaluated.genes).get_indexer(genes)].astype(np.float64)
    parts, moments = [], []
    for name in chosen:
        rows = study.ordered(study.section_rows(name))
        values = SectionValues.read(study, evaluated, rows, columns, key, depth)
        level = depth.mean(mean, values.rows)
        scores, sums = values.score(evaluated.name, genes, level, n_permutations, _section_rng(seed, name))
        facts = {"patient": study.patient_of(rows), "n_spots": len(values.truth), "leakage": leaked(name)}
        parts.append(scores.assign(section=name, **facts))
        moments.append(sums)
    result = pd.concat(parts, ignore_index=True)
    # This relies on the order of rows: every section has the same models, each with the same genes.
    result["pcc_pooled"] = np.tile(np.concatenate(list(pool(moments).values())), len(chosen))
    result = _tidy(result, members, facts_of_scores(evaluated.fingerprint, leaked.trained_on))
    if inplace:
        _write(study.stored_table, result, evaluated, key)
    return result


def _section_rng(seed: int, section: str) -> np.random.Generator:
    """Random numbers of a section that do not depend on which sections come before it."""
    # `hash` of a text differs from process to process, so it cannot seed.
    return np.random.default_rng([seed, zlib.crc32(section.encode())])


def summarize(scores: pd.DataFrame, by: str | list[str] = "model") -> pd.DataFrame:
    """Mean scores of each model over sections and genes, for every gene group.

    Parameters
    ----------
    scores
        Result of :func:`img2gene.tl.evaluate`, or several of them concatenated. Of the metrics those are summarised that it has.
    by
        Columns that identify a row, in addition to the gene group.

    Returns
    -------
    DataFrame with ``by``, ``genes`` (the group, ``all`` first), the mean of every metric within sections averaged over
    sections, ``n_sections``, ``n_genes``, ``n_nan`` (gene × section pairs without a correlation) and ``leakage``.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.tl.summarize(scores, by=["model", "section"])  # doctest: +SKIP
    """
    keys = _summary_keys(scores, by)
    # Results that were concatenated repeat their row numbers.
    scores = scores.reset_index(drop=True)
    groups = {"all": np.ones(len(scores), dtype=bool)}
    groups |= {name: (scores[name] == True).to_numpy() for name in group_columns(scores)}  # noqa: E712 - NaN is no member
    rows = []
    for names, part in scores.groupby(keys, sort=False):
        for group, members in groups.items():
            chosen = part[members[scores.index.get_indexer(part.index)]]
            rows.append(dict(zip(keys, names, strict=True)) | {"genes": group} | _means(chosen))
    summary = pd.DataFrame(rows).astype({"leakage": "boolean"})
    summary.attrs = stated_facts(scores)
    return summary


def _summary_keys(scores: Any, by: Any) -> list[str]:
    """Check the arguments of :func:`summarize`, and list the columns that identify a row."""
    if not isinstance(scores, pd.DataFrame):
        hint = " Pass its `scores`, or call its `summary()`." * hasattr(scores, "scores")
        raise Img2GeneError(
            f"scores: expected the DataFrame that `img2gene.tl.evaluate` returns, got {type(scores).__name__}.{hint}"
        )
    check = Arguments()
    keys = check.names("by", by)
    check.raise_all()
    absent = [name for name in dict.fromkeys((*_NEEDED, *keys)) if name not in scores]
    if absent:
        raise MissingKeyError(missing(listing(absent), "scores", scores.columns))
    if not len(scores):
        raise Img2GeneError("scores: the DataFrame has no rows, so there is nothing to summarise.")
    return keys


def group_columns(scores: pd.DataFrame) -> list[str]:
    """Columns that say of each gene whether it is in a group."""
    fixed = {*_FIXED_COLUMNS, *METRICS}
    return [name for name in scores if name not in fixed and set(scores[name].dropna().unique()) <= {True, False}]


def _means(part: pd.DataFrame) -> dict[str, float | int | bool]:
    within = part.groupby("section", sort=False)[[name for name in METRICS if name in part]].mean()
    return {
        **within.mean().to_dict(),
        "n_sections": part["section"].nunique(),
        "n_genes": part["gene"].nunique(),
        "n_nan": int(part["pcc"].isna().sum()),
        "leakage": part["leakage"].any(skipna=False),
    }


def group_members(
    genes: list[str], statistics: dict[str, np.ndarray], scored: list[str], groups: GeneGroups
) -> dict[str, list[str]]:
    """List the genes of each group, from training statistics or by name.

    Parameters
    ----------
    genes, statistics
        Genes of the model and their training statistics.
    scored
        The genes that are scored; named groups must consist of these.
    groups
        As in :func:`evaluate`.
    """
    members = {}
    for name, rule in (GENE_GROUPS if groups is None else groups).items():
        if name in {"all", *_FIXED_COLUMNS, *METRICS}:
            raise Img2GeneError(f"A gene group cannot be called {name!r}; choose another name.")
        if is_rule(rule):
            members[name] = top_genes(genes, statistics, *rule)
            continue
        members[name] = [str(gene) for gene in rule]
        absent = [gene for gene in members[name] if gene not in scored]
        if absent:
            raise MissingKeyError(
                f"Gene group {name!r}: {listing(absent)} not predicted ({near_matches(absent, scored)})."
            )
    return members


def with_markers(check: Arguments, gene_groups: Any, markers: Any) -> GeneGroups:
    """Add the group of the markers to the named groups, or to the default ones."""
    named = check_gene_groups(check, gene_groups)
    members = check.names("markers", markers, optional=True, empty=True)
    groups: dict[str, tuple[str, int] | list[str]] = dict(GENE_GROUPS if named is None else named)
    if isinstance(members, list):
        if "markers" in groups:
            check.messages.append("Both `markers` and `gene_groups` name the group 'markers'; give it one of them.")
        groups["markers"] = members
    empty = [name for name, genes in groups.items() if not len(genes)]
    if empty:
        check.messages.append(f"Gene group {listing(empty)} has no gene: name some, or leave it out.")
    return named if markers is None else groups


def _tidy(result: pd.DataFrame, groups: dict[str, list[str]], facts: dict[str, str]) -> pd.DataFrame:
    for name, members in groups.items():
        result[name] = result["gene"].isin(members)
    result["leakage"] = result["leakage"].astype("boolean")
    columns = ["model", "section", "patient", "gene", *groups, *METRICS, "n_spots", "leakage"]
    result = result[columns]
    result.attrs = facts
    return result


def _write(table: AnnData, result: pd.DataFrame, model: Model, key: str) -> None:
    scores = result[result["model"] == model.name]
    pcc = scores.groupby("gene")["pcc"].mean().reindex(table.var_names)
    summary = summarize(result)
    # JSON keeps columns, not attributes; the fingerprint is stored beside it.
    summary = summary.assign(**{n: text for n, text in summary.attrs.items() if n == _schema.TRAINED_ON})
    container = dict(table.uns.get(key, {"format": _schema.FORMAT})) | {"evaluation": summary.to_json(orient="records")}
    with _schema.all_or_nothing(table):
        table.uns[key] = container
        _schema.apply(table, {"var": {PCC: pcc}, "uns": scored_by(key, model.fingerprint)})
    logger.info("wrote uns[%r]['evaluation']", key)
