"""Which genes vary together, measured and predicted."""

from __future__ import annotations

import html
import json
import logging
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema, metrics
from img2gene._checks import Arguments, shown
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, MissingKeyError, listing, near, raise_problems
from img2gene._study.entrance import open_study
from img2gene.models import Model
from img2gene.tl._arguments import check_flags, check_model, check_store, gene_rule
from img2gene.tl._gene_modules import cluster_genes, module_table
from img2gene.tl._prediction.values import resolve_model
from img2gene.tl._scoring.selection import (
    check_leakage,
    check_scorable,
    is_rule,
    measured_sections,
    report_unlabelled,
    scored_values,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

GENES = ("mean", 50)


@dataclass(frozen=True, eq=False, repr=False)
class GeneCorrelation:
    """How genes vary together, measured and predicted; made by :func:`img2gene.tl.gene_correlation`.

    Attributes
    ----------
    model
        Name of the model that predicted.
    key
        Layer of the predictions.
    genes
        Names of the genes, in the order of rows and columns of the matrices.
    true, predicted
        float64 (n_genes, n_genes): Pearson correlations within sections, averaged over sections. A pair that is undefined in
        one of the two matrices of a section is left out of both; NaN where that leaves none.
    scores
        One row per section: ``section``, ``patient``, ``pcc`` and ``rmse`` (:func:`img2gene.metrics.structure_score` of its
        own matrices), ``n_genes`` with a correlation, ``n_constant`` genes without, ``n_spots``, ``leakage``.
    order
        int (n_genes,): indices of the genes as the clustering of the measured correlations puts them side by side; genes
        without a correlation come last.
    modules
        One row per module, in this order: ``module`` (1, 2, …), ``n_genes``, ``genes``, mean correlation of its pairs
        ``true`` and ``predicted``, ``pcc`` and ``rmse`` of its pairs alone.

    Examples
    --------
    >>> import img2gene as ig
    >>> result = ig.tl.gene_correlation(sdata, genes=("moran", 100))  # doctest: +SKIP
    >>> result.least_preserved(5)  # doctest: +SKIP
    """

    model: str
    key: str
    genes: list[str]
    true: np.ndarray
    predicted: np.ndarray
    scores: pd.DataFrame
    order: np.ndarray
    modules: pd.DataFrame

    @property
    def overall(self) -> dict[str, Any]:
        """``pcc`` and ``rmse`` of the averaged matrices, with ``n_genes``, ``n_constant``, ``n_sections`` and ``leakage``."""
        leakage = self.scores["leakage"].any(skipna=False)
        return {
            **_scores(self.true, self.predicted),
            "n_sections": len(self.scores),
            "leakage": None if pd.isna(leakage) else bool(leakage),
        }

    @property
    def pairs(self) -> pd.DataFrame:
        """A row per pair of genes, ``gene_a``, ``gene_b``, ``true``, ``predicted`` and ``difference`` (predicted − true)."""
        one, two = np.triu_indices(len(self.genes), k=1)
        names = np.array(self.genes, dtype=object)
        true, predicted = self.true[one, two], self.predicted[one, two]
        values = {"true": true, "predicted": predicted, "difference": predicted - true}
        return pd.DataFrame({"gene_a": names[one], "gene_b": names[two], **values})

    def most_preserved(self, n: int = 10, *, share: float = 0.1) -> pd.DataFrame:
        """The ``n`` pairs that are predicted best, among the ``share`` of pairs with the strongest measured correlation.

        Most pairs are hardly correlated, measured or predicted, and would come first otherwise.
        """
        check = Arguments()
        n, share = check.whole("n", n, 1), check.number("share", share, above=0, most=1)
        check.raise_all()
        known = self.pairs.dropna()
        strong = known["true"].abs().nlargest(max(n, math.ceil(share * len(known)))).index
        error = known.loc[strong, "difference"].abs()
        return known.loc[error.nsmallest(n).index].reset_index(drop=True)

    def least_preserved(self, n: int = 10) -> pd.DataFrame:
        """The ``n`` pairs whose predicted correlation is farthest from the measured one."""
        check = Arguments()
        n = check.whole("n", n, 1)
        check.raise_all()
        known = self.pairs.dropna()
        return known.loc[known["difference"].abs().nlargest(n).index].reset_index(drop=True)

    def __repr__(self) -> str:
        facts = self.overall
        return (
            f"GeneCorrelation({self.key}: {self.model}, {facts['n_genes']} genes ({facts['n_constant']} more without a "
            f"correlation), {len(self.scores)} sections, structure PCC {facts['pcc']:.3f}, RMSE {facts['rmse']:.3f})"
        )

    def _repr_html_(self) -> str:
        tables = [table.round(3).to_html(index=False) for table in (self.scores, self.modules)]
        return f"<p>{html.escape(repr(self))}</p>{''.join(tables)}"


@fill_parameters
def gene_correlation(
    sdata: SpatialData,
    *,
    model: Model | str | Path | None = None,
    genes: tuple[str, int] | Sequence[str] | None = None,
    sections: Iterable[str] | None = None,
    n_modules: int | None = None,
    key: str = "img2gene",
    table_key: str = "table",
    allow_leakage: bool = False,
    inplace: bool = True,
) -> GeneCorrelation:
    """Compare which genes vary together in the predictions and in the measurement.

    Within each section the genes are correlated over spots, measured and predicted; both matrices are averaged over sections.
    Modules of genes that vary together come from the measured matrix, by average linkage on 1 − r.

    Parameters
    ----------
    %(sdata_predictions)s
    %(model_predicted)s
    genes
        Names, or a training statistic (``mean``, ``variance``, ``dispersion``, ``moran``) and how many genes lead it; by
        default the 50 with the highest mean of the training labels.
    sections
        Sections to correlate in; by default those that the model was not trained on.
    n_modules
        Number of modules, at most; by default that from 2 to 10 with the highest silhouette.
    %(key_prediction)s
    %(table_key_predictions)s
    %(allow_leakage)s
    %(inplace_result)s

    Returns
    -------
    :class:`img2gene.tl.GeneCorrelation`. Unless ``inplace=False``, its scores (no matrix) are written to
    ``uns[key]["gene_correlation"]``.

    Raises
    ------
    MissingKeyError
        No predictions, no such section, or genes that are not predicted; similar names are listed.
    Img2GeneError
        No labels, fewer than two genes, or no section that the model was not trained on.
    LeakageError
        A patient of the sections was trained on.

    Warns
    -----
    UserWarning
        Genes that are constant in a section, measured or predicted. They have no correlation there and are left out of it.

    Notes
    -----
    Noise in counts draws measured correlations towards 0, while predictions are smooth and correlate more. So the RMSE is well
    above 0 even for a model that predicts the true expression. Compare models by the Pearson correlation.

    Sections are averaged as plain means. Fisher's z would remove a bias that is negligible beyond some 50 spots, and let one
    section with a correlation near 1, as smooth predictions have, decide alone.

    References
    ----------
    Gorsuch and Lehmann, "Correlation coefficients: mean bias and confidence interval distortions", Journal of Methods and
    Measurement in the Social Sciences 2010.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "ridge", validate_on=["P3"])
    >>> ig.tl.predict(sdata)
    >>> result = ig.tl.gene_correlation(sdata, genes=("moran", 20))
    >>> result.true.shape, len(result.pairs)
    ((20, 20), 190)
    """
    check = Arguments()
    key, model = check.text("key", key), check_model(check, model)
    sections, n_modules = (
        check.labels("sections", sections),
        check.whole("n_modules", n_modules, 1, optional=True),
    )
    check_flags(check, allow_leakage=allow_leakage, inplace=inplace)
    rule = None if genes is None else gene_rule(genes)
    if genes is not None and rule is None:
        check.messages.append(
            f"genes={shown(genes)}: pass names of genes, or a statistic and how many genes lead it, such as {GENES!r}."
        )
    study = open_study(check, sdata, table_key)
    if inplace is not False:
        check_store(check, study.stored_table, "key", key)
    check.raise_all()
    table, predictor = study.table, resolve_model(study, model, key)
    check_scorable(study, predictor, key)
    names = _chosen_genes(table, predictor, GENES if rule is None else rule)
    chosen = measured_sections(study, predictor, sections)
    leaked = check_leakage(study, predictor, chosen, allow_leakage)
    n_modules = None if n_modules is None else min(n_modules, len(names))
    report_unlabelled(study, predictor, chosen)
    columns = table.var_names.get_indexer(names)
    members = {name: study.ordered(study.section_rows(name)) for name in chosen}
    facts = ({"section": name, "patient": study.patient_of(rows)} for name, rows in members.items())
    marks = ({"leakage": leaked(name)} for name in chosen)
    # A generator keeps the values of only one section in memory.
    values = (scored_values(study, predictor, rows, columns, key) for rows in members.values())
    result, constant = correlate(predictor.name, key, names, zip(facts, values, marks, strict=True), n_modules)
    _warn(constant)
    if inplace:
        _write(study.stored_table, result)
    return result


def correlate(
    model: str,
    key: str,
    genes: list[str],
    sections: Iterable[tuple[dict[str, Any], tuple[np.ndarray, np.ndarray], dict[str, Any]]],
    n_modules: int | None = None,
) -> tuple[GeneCorrelation, list[str]]:
    """Correlate labels and predictions (n_spots, n_genes) of each section, and say which genes are constant where.

    ``sections`` holds, for each, what stands before and after its scores in the table, and its labels and predictions.
    """
    matrices, rows, constant = [], [], []
    for facts, values, marks in sections:
        pair = [metrics.gene_correlation(part) for part in values]
        constant += _constant(facts["section"], genes, pair)
        matrices.append(_defined_in_both(pair))
        rows.append({**facts, **_scores(*matrices[-1]), "n_spots": len(values[0]), **marks})
    scores = pd.DataFrame(rows).astype({"leakage": "boolean"})
    return _result(model, key, genes, matrices, scores, n_modules), constant


def _chosen_genes(table: AnnData, model: Model, rule: tuple[str, int] | list[str]) -> list[str]:
    """List the chosen genes, each once; an unknown gene is refused with similar names."""
    predicted = [gene for gene in model.genes if gene in table.var_names]
    if is_rule(rule):
        statistic, number = rule
        names = [gene for gene in model.top_genes(str(statistic), int(number)) if gene in table.var_names]
    else:
        names = list(dict.fromkeys(map(str, rule)))
        absent = [gene for gene in names if gene not in predicted]
        raise_problems([f"`{gene}` is not predicted ({near(gene, predicted)})." for gene in absent], MissingKeyError)
    if len(names) < 2:
        raise Img2GeneError(f"genes={rule!r} gives {listing(names)}; correlations need at least two genes.")
    return names


def _constant(section: str, genes: list[str], pair: list[np.ndarray]) -> list[str]:
    """Describe which genes have no correlation in a section."""
    descriptions = []
    for where, matrix in zip(("measured", "predicted"), pair, strict=True):
        constant = [gene for gene, known in zip(genes, np.isfinite(np.diag(matrix)), strict=True) if not known]
        if constant:
            descriptions.append(f"{listing(constant)} ({where}, section {section})")
    return descriptions


def _warn(constant: list[str]) -> None:
    if constant:
        # Level 3 is the user's call of `gene_correlation`.
        warnings.warn(
            f"Constant genes have no correlation and are left out: {'; '.join(constant)}.", UserWarning, stacklevel=3
        )


def _defined_in_both(pair: list[np.ndarray]) -> list[np.ndarray]:
    """Both matrices, with NaN where either has it, so that means over sections compare the same sections."""
    known = np.isfinite(pair[0]) & np.isfinite(pair[1])
    return [np.where(known, matrix, np.nan) for matrix in pair]


def _scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    pcc, rmse = metrics.structure_score(true, predicted)
    n_genes = int(np.isfinite(np.diag(true)).sum())
    return {"pcc": pcc, "rmse": rmse, "n_genes": n_genes, "n_constant": len(true) - n_genes}


def _result(
    model: str,
    key: str,
    genes: list[str],
    matrices: list[list[np.ndarray]],
    scores: pd.DataFrame,
    n_modules: int | None,
) -> GeneCorrelation:
    # `nanmean` would warn of pairs that are undefined in every section.
    true, predicted = (
        np.ma.masked_invalid(sections).mean(axis=0).filled(np.nan) for sections in zip(*matrices, strict=True)
    )
    order, modules = cluster_genes(true, n_modules)
    table = module_table(genes, true, predicted, order, modules)
    return GeneCorrelation(model, key, genes, true, predicted, scores, order, table)


def _write(table: AnnData, result: GeneCorrelation) -> None:
    # pandas writes NaN as null; plain JSON has no NaN.
    overall = json.loads(pd.Series(result.overall, dtype=object).to_json())
    sections = json.loads(result.scores.to_json(orient="records"))
    _schema.write_json(table, "gene_correlation", {"overall": overall, "sections": sections}, uns=result.key)
    logger.info("wrote uns[%r]['gene_correlation']", result.key)
