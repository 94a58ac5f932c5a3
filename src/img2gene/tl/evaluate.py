"""Score predictions gene by gene within each section, with the baselines beside the model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from img2gene import _schema, metrics
from img2gene._errors import Img2GeneError, MissingKeyError, listing, near_matches
from img2gene._sections import section_labels
from img2gene.models import Model
from img2gene.settings import settings
from img2gene.tl._scored_sections import (
    check_leakage,
    check_scorable,
    choose_sections,
    is_rule,
    patient_of,
    scored_values,
)
from img2gene.tl.predict import resolve_model

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

GENE_GROUPS: dict[str, tuple[str, int]] = {"HEG": ("mean", 50), "HVG": ("dispersion", 50), "SVG": ("moran", 50)}
METRICS = ("pcc", "spearman", "mse", "mae", "r2")
MEAN, NULL = "training mean", "permutation null"
BASELINE_ROWS = (MEAN, NULL)
GeneGroups = Mapping[str, tuple[str, int] | list[str]] | None


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
    allow_leakage: bool = False,
    inplace: bool = True,
) -> pd.DataFrame:
    """Compare predictions with measured expression.

    Every gene is scored within every section, against labels made like those of the training; beside the model stand the
    *training mean* (what a model without an image predicts) and the *permutation null* (the model's predictions against
    labels shuffled within the section, averaged over ``n_permutations``).

    Parameters
    ----------
    sdata
        Study with measured counts and predictions in ``layers[key]``.
    model
        The model that predicted: itself, its file, or its key; by default the one stored under ``key``.
    sections
        Sections to score; by default those that the model was not trained on.
    gene_groups
        Name of each group with either the genes, or a training statistic (``mean``, ``variance``, ``dispersion``,
        ``moran``) and how many genes lead it. Default: top-50 mean (HEG), top-50 dispersion (HVG) and top-50 Moran's I
        (SVG), all from the training labels.
    markers
        Genes that make one more group, ``markers``, beside those of ``gene_groups`` or the default ones.
    n_permutations
        Shuffles of the permutation null.
    seed
        Seed of the shuffles; None takes ``img2gene.settings.seed``.
    key
        Layer with the predictions.
    table_key
        Table with counts and predictions.
    allow_leakage
        Score patients or sections that the model was trained on; the result is marked.
    inplace
        If False, only the result is returned and nothing is written.

    Returns
    -------
    DataFrame, one row per model, section and gene: ``model``, ``section``, ``patient``, ``gene``, one truth value per
    gene group, ``pcc``, ``spearman``, ``mse``, ``mae``, ``r2`` (against the training mean), ``n_spots``, and ``leakage``:
    whether the section's patient was trained on, NA where patients are not recorded.
    Genes that are constant in a section have NaN correlations. Unless ``inplace=False``, ``var["pcc"]`` (mean over
    sections) and a summary in ``uns[key]["evaluation"]`` are written.

    Raises
    ------
    Img2GeneError
        No predictions, no labels, no section that the model was not trained on, or genes of a group that it does not predict.
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
    ['ridge', 'training mean', 'permutation null']
    """
    table = _schema.get_table(sdata, table_key)
    found = resolve_model(table, model, key)
    check_scorable(table, found, key, table_key)
    genes = [gene for gene in found.genes if gene in table.var_names]
    if not genes:
        raise Img2GeneError(
            f"None of the model's {len(found.genes)} genes ({listing(found.genes, 5)}) is in the table."
        )
    chosen = choose_sections(table, found, sections, table_key)
    leaked = check_leakage(table, found, chosen, table_key, allow_leakage)
    columns = table.var_names.get_indexer(genes)
    rng = np.random.default_rng(settings.seed if seed is None else seed)
    parts = []
    for name in chosen:
        rows = np.flatnonzero(section_labels(table, table_key) == name)
        truth, predicted = scored_values(table, found, rows, columns, key)
        part = _score_section(truth, predicted, found, genes, n_permutations, rng)
        parts.append(
            part.assign(section=name, patient=patient_of(table, rows), n_spots=len(truth), leakage=leaked(name))
        )
    result = _tidy(pd.concat(parts, ignore_index=True), group_members(found, genes, with_markers(gene_groups, markers)))
    if inplace:
        _write(table, result, found.name, key)
    return result


def summarize(scores: pd.DataFrame, by: str | list[str] = "model") -> pd.DataFrame:
    """Mean scores of each model over sections and genes, for every gene group.

    Parameters
    ----------
    scores
        Result of :func:`img2gene.tl.evaluate`, or several of them concatenated.
    by
        Columns that make a row, beside the gene group.

    Returns
    -------
    DataFrame with ``by``, ``genes`` (the group, ``all`` first), the mean of every metric within sections averaged over
    sections, ``n_sections``, ``n_genes``, ``n_nan`` (gene × section pairs without a correlation) and ``leakage``.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.tl.summarize(scores, by=["model", "section"])  # doctest: +SKIP
    """
    keys = [by] if isinstance(by, str) else list(by)
    scores = scores.reset_index(drop=True)
    groups = {"all": np.ones(len(scores), dtype=bool)}
    groups |= {name: (scores[name] == True).to_numpy() for name in group_columns(scores)}  # noqa: E712 - NaN is no member
    rows = []
    for names, part in scores.groupby(keys, sort=False):
        for group, members in groups.items():
            chosen = part[members[scores.index.get_indexer(part.index)]]
            rows.append(dict(zip(keys, names, strict=True)) | {"genes": group} | _means(chosen))
    return pd.DataFrame(rows).astype({"leakage": "boolean"})


def group_columns(scores: pd.DataFrame) -> list[str]:
    """Columns that say of each gene whether it is in a group."""
    fixed = {"model", "section", "patient", "gene", "n_spots", "leakage", *METRICS}
    return [name for name in scores if name not in fixed and set(scores[name].dropna().unique()) <= {True, False}]


def _means(part: pd.DataFrame) -> dict[str, float | int | bool]:
    within = part.groupby("section", sort=False)[list(METRICS)].mean()
    return {
        **within.mean().to_dict(),
        "n_sections": part["section"].nunique(),
        "n_genes": part["gene"].nunique(),
        "n_nan": int(part["pcc"].isna().sum()),
        "leakage": part["leakage"].any(skipna=False),
    }


def _score_section(
    truth: np.ndarray,
    predicted: np.ndarray,
    model: Model,
    genes: list[str],
    n_permutations: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    index = pd.Index(model.genes).get_indexer(genes)
    mean = model.statistics["mean"][index].astype(np.float64)
    constant = np.broadcast_to(mean, truth.shape)
    rows = [(model.name, _scores(truth, predicted, mean)), (MEAN, _scores(truth, constant, mean))]
    shuffled = [_scores(truth[rng.permutation(len(truth))], predicted, mean) for _ in range(n_permutations)]
    if shuffled:
        rows.append((NULL, {name: np.mean([scores[name] for scores in shuffled], axis=0) for name in METRICS}))
    return pd.concat(
        [pd.DataFrame({"model": name, "gene": genes, **scores}) for name, scores in rows], ignore_index=True
    )


def _scores(truth: np.ndarray, predicted: np.ndarray, mean: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "pcc": metrics.pearson(truth, predicted),
        "spearman": metrics.spearman(truth, predicted),
        "mse": metrics.mse(truth, predicted),
        "mae": metrics.mae(truth, predicted),
        "r2": metrics.r2(truth, predicted, mean),
    }


def group_members(
    model: Model, genes: list[str], asked: Mapping[str, tuple[str, int] | list[str]] | None
) -> dict[str, list[str]]:
    """Genes of each group; unknown ones, and names that a group cannot have, are refused."""
    groups = {}
    for name, rule in (GENE_GROUPS if asked is None else asked).items():
        if name in {"all", "model", "section", "patient", "gene", "n_spots", "leakage", *METRICS}:
            raise Img2GeneError(f"A gene group cannot be called {name!r}; choose another name.")
        ranked = is_rule(rule)
        members = model.top_genes(*rule) if ranked else [str(gene) for gene in rule]
        absent = [gene for gene in members if gene not in genes] if not ranked else []
        if absent:
            raise MissingKeyError(
                f"Gene group {name!r}: {listing(absent)} not predicted ({near_matches(absent, genes)})."
            )
        groups[name] = members
    return groups


def with_markers(
    asked: Mapping[str, tuple[str, int] | list[str]] | None, markers: Iterable[str] | None
) -> Mapping[str, tuple[str, int] | list[str]] | None:
    """The groups asked for, or the default ones, and that of the markers."""
    if markers is None:
        return asked
    groups: dict[str, tuple[str, int] | list[str]] = dict(GENE_GROUPS if asked is None else asked)
    if "markers" in groups:
        raise Img2GeneError("Both `markers` and `gene_groups` name the group 'markers'; give it one of them.")
    return groups | {"markers": [markers] if isinstance(markers, str) else list(markers)}


def _tidy(result: pd.DataFrame, groups: dict[str, list[str]]) -> pd.DataFrame:
    for name, members in groups.items():
        result[name] = result["gene"].isin(members)
    result["leakage"] = result["leakage"].astype("boolean")
    columns = ["model", "section", "patient", "gene", *groups, *METRICS, "n_spots", "leakage"]
    return result[columns]


def _write(table: AnnData, result: pd.DataFrame, name: str, key: str) -> None:
    own = result[result["model"] == name]
    table.var["pcc"] = own.groupby("gene")["pcc"].mean().reindex(table.var_names)
    summary = summarize(result).to_json(orient="records")
    container = dict(table.uns.get(key, {"format": _schema.FORMAT}))
    container["evaluation"] = summary
    table.uns[key] = container
    logger.info("wrote var['pcc'] and uns[%r]['evaluation']", key)
