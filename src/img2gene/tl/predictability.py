"""Which genes a model predicts, and how well any model could."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from img2gene import _schema, metrics
from img2gene._checks import Arguments
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError
from img2gene._study.entrance import open_study
from img2gene._study.expression import count_problems, library_size
from img2gene._study.features import with_positions
from img2gene._study.replaced import PCC, foreign_scores, scored_by
from img2gene.metrics.reliability import MIN_GENES, method_problems
from img2gene.models import Model
from img2gene.tl._arguments import (
    MOST_PERMUTATIONS,
    check_between,
    check_flags,
    check_model,
    check_seed,
)
from img2gene.tl._prediction.values import resolve_model
from img2gene.tl._scoring.selection import (
    check_leakage,
    check_scorable,
    has_label,
    measured_genes,
    measured_sections,
    report_unlabelled,
    scored_values,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
COLUMNS = (PCC, "pcc_ceiling", "pcc_pvalue", "pcc_fdr", _schema.PREDICTABLE)


@fill_parameters
def predictability(
    sdata: SpatialData,
    model: Model | str | Path | None = None,
    *,
    sections: Iterable[str] | None = None,
    method: str = "genes",
    n_permutations: int = 999,
    fdr: float = 0.05,
    seed: int | None = None,
    key: str = "img2gene",
    table_key: str = "table",
    allow_leakage: bool = False,
    inplace: bool = True,
) -> pd.DataFrame:
    """Compare the accuracy of each gene with what noise in its expression allows, and call the genes that are predictable.

    The *ceiling* is the PCC that a perfect model would reach (:func:`img2gene.metrics.noise_ceiling`). A gene is
    *predictable* if its PCC is above that of labels drawn anew with the same spatial autocorrelation
    (:func:`img2gene.metrics.spatial_correlation_test`) at a false discovery rate of ``fdr`` (Benjamini–Hochberg over the
    genes) and, with several patients, if its mean PCC stays above 0 whichever patient is left out.

    Parameters
    ----------
    %(sdata_predictions)s
    %(model_predicted)s
    %(sections_held_out)s
    method
        How the ceiling is estimated: ``"genes"`` counts as predictable what a gene shares with other genes; ``"thinning"`` counts
        everything but sampling noise, an upper bound.
    n_permutations
        Draws of labels under the null.
    fdr
        Largest expected share of genes that are called predictable and are not, between 0 and 1.
    seed
        Seed of draws and splits; None takes ``img2gene.settings.seed``.
    %(key_prediction)s
    %(table_key_predictions)s
    allow_leakage
        Score patients or sections that the model was trained on.
    %(inplace_result)s

    Returns
    -------
    DataFrame indexed by gene: ``pcc`` (mean within sections, as :func:`img2gene.tl.evaluate` has it), ``pcc_ceiling``,
    ``pcc_pvalue``, ``pcc_fdr`` (the q-value) and ``predictable`` (nullable boolean). Genes that are constant, in the labels
    or in the predictions, of every section are NaN, or NA. So is the ceiling of a predictable gene that shares no variation
    with other genes: ``method="genes"`` finds a ceiling of 0 there, which its PCC refutes. A PCC above the ceiling means
    the same in part; ``method="thinning"`` gives an upper bound. Unless ``inplace=False`` the same columns are written to ``var``,
    and to ``uns["img2gene"]["predictability"]`` which prediction they judge: plots and reports use them for no other one.

    Raises
    ------
    Img2GeneError
        No predictions, no labels in any of the sections, ``method="thinning"`` for labels that are no counts, or arguments
        out of range, or columns of these names of your own in ``var``.
    LeakageError
        A patient of the scored sections was trained on.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=40, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "ridge", validate_on=["P3"])
    >>> ig.tl.predict(sdata)
    >>> ig.tl.predictability(sdata).columns.tolist()
    ['pcc', 'pcc_ceiling', 'pcc_pvalue', 'pcc_fdr', 'predictable']
    """
    check = Arguments()
    key, seed = check.text("key", key), check_seed(check, seed)
    model, sections = check_model(check, model), check.labels("sections", sections)
    check.messages += method_problems(method) if isinstance(method, str) else []
    method = check.text("method", method)
    n_permutations = check.whole("n_permutations", n_permutations, 1, MOST_PERMUTATIONS)
    fdr = check_between(check, "fdr", fdr)
    check_flags(check, allow_leakage=allow_leakage, inplace=inplace)
    study = open_study(check, sdata, table_key)
    if inplace is not False:
        check.messages += foreign_scores(study.table, COLUMNS)
    check.raise_all()
    study = with_positions(study)
    judged = resolve_model(study, model, key)
    check_scorable(study, judged, key)
    _check_thinning(judged, method)
    genes = measured_genes(study, judged)
    chosen = measured_sections(study, judged, sections)
    check_leakage(study, judged, chosen, allow_leakage)
    report_unlabelled(study, judged, chosen)
    table = study.table
    rows = study.ordered(np.isin(study.sections, chosen) & has_label(study, judged))
    columns, names = table.var_names.get_indexer(genes), study.sections[rows]
    truth, predicted = scored_values(study, judged, rows, columns, key)
    pcc, pvalue = metrics.spatial_correlation_test(
        truth, predicted, study.positions[rows], names, n_permutations=n_permutations, seed=seed
    )
    ceiling = _ceiling(table, rows, columns, names, truth, method, seed)
    patients = {name: study.patient_of(rows[names == name]) for name in chosen}
    result = pd.DataFrame(
        {"pcc": pcc, "pcc_ceiling": ceiling, "pcc_pvalue": pvalue}, index=pd.Index(genes, name="gene")
    )
    result = _called(result, fdr, _without_any_patient(truth, predicted, names, patients))
    _report(result, fdr)
    if inplace:
        record = {"key": key, "model": judged.name, "fingerprint": judged.fingerprint}
        uns = {_schema.PREDICTABILITY: record} | scored_by(key, judged.fingerprint)
        _schema.apply(study.stored_table, {"var": dict(result.reindex(table.var_names).items()), "uns": uns})
    return result


def _called(result: pd.DataFrame, fdr: float, lasting: np.ndarray) -> pd.DataFrame:
    """Add the false discovery rate, and which genes are predictable; ``lasting`` marks those of all patients."""
    result["pcc_fdr"] = _qvalues(result["pcc_pvalue"].to_numpy())
    called = (result["pcc_fdr"] <= fdr) & lasting
    # A ceiling of 0 says that nothing can be predicted, which a significant correlation refutes.
    result["pcc_ceiling"] = result["pcc_ceiling"].mask(called & (result["pcc_ceiling"] <= 0))
    # Comparisons with NaN are False, but a gene that was not tested is not called unpredictable.
    result["predictable"] = called.astype("boolean").mask(result["pcc_fdr"].isna())
    return result


def _check_thinning(model: Model, method: str) -> None:
    if method == "thinning" and model.labels["layer"] is not None:
        raise Img2GeneError(
            f"Labels of `layers['{model.labels['layer']}']` are no counts and cannot be thinned: pass `method='genes'`, or "
            "train on counts (`img2gene.tl.fit` without `layer=`)."
        )


def _ceiling(
    table: AnnData,
    rows: np.ndarray,
    columns: np.ndarray,
    sections: np.ndarray,
    labels: np.ndarray,
    method: str,
    seed: int,
) -> np.ndarray:
    """Ceiling of each gene; NaN with a warning where X holds no counts."""
    problems = count_problems(table.X, "X")
    if problems:
        logger.warning("no ceiling: put raw counts in `table.X` and call again. %s", problems[0])
        return np.full(len(columns), np.nan)
    # Genes by name, as the draws of the ceiling follow the order of the genes.
    order = np.argsort(table.var_names.to_numpy(dtype=str), kind="stable")
    place = np.empty(table.n_vars, dtype=np.intp)
    place[order] = np.arange(table.n_vars)
    ceiling = metrics.noise_ceiling(
        table.X[rows][:, order],
        library_size(table)[rows],
        sections,
        genes=place[columns],
        labels=labels if method == "genes" else None,
        method=method,
        seed=seed,
    )
    if not np.isfinite(ceiling).any():
        logger.warning("no ceiling: fewer than %d genes vary in the table; try `method='thinning'`", MIN_GENES)
    return ceiling


def _qvalues(pvalues: np.ndarray) -> np.ndarray:
    """Benjamini–Hochberg over those that are known."""
    from scipy.stats import false_discovery_control

    # scipy refuses NaN among p-values.
    known = np.isfinite(pvalues)
    result = np.full(len(pvalues), np.nan)
    if known.any():
        result[known] = false_discovery_control(pvalues[known])
    return result


def _without_any_patient(
    truth: np.ndarray, predicted: np.ndarray, sections: np.ndarray, patients: dict[str, str | None]
) -> np.ndarray:
    """Whether the mean PCC stays above 0 whichever patient is left out; True for all genes of a single patient."""
    scores = pd.DataFrame(
        {name: metrics.pearson(truth[sections == name], predicted[sections == name]) for name in patients}
    )
    of = pd.Series(patients)
    if of.nunique() < 2:
        return np.ones(len(scores), dtype=bool)
    rest = [scores.loc[:, (of != patient).to_numpy()].mean(axis=1) for patient in of.dropna().unique()]
    # A gene that only one patient can score is judged on that one.
    return np.all([(mean > 0) | mean.isna() for mean in rest], axis=0)


def _report(result: pd.DataFrame, fdr: float) -> None:
    known = result["predictable"].notna()
    logger.info(
        "%d of %d genes are predictable at FDR %g; mean PCC %.3f of a ceiling of %.3f",
        result["predictable"].sum(),
        known.sum(),
        fdr,
        result["pcc"].mean(),
        result["pcc_ceiling"].mean(),
    )
    above = int((result["pcc"] > result["pcc_ceiling"]).sum())
    if above:
        logger.info("%d genes have a PCC above the ceiling: they vary in a way that no other gene shares", above)
    for column, what in (("pcc", "PCC"), ("pcc_ceiling", "ceiling")):
        if result[column].isna().any():
            logger.info("%d genes have no %s", result[column].isna().sum(), what)
