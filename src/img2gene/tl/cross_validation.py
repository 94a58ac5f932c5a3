"""The result of a cross-validation: scores by gene, section and model, and what they say about new patients."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import metrics
from img2gene._errors import MissingKeyError, listing, near
from img2gene.tl.evaluate import METRICS, group_columns

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

# What a score says something about.
BETWEEN, WITHIN, UNKNOWN = "between patients", "within patient", "patients unknown"
_NOTICE = {
    BETWEEN: "Every patient is scored by models that saw no section of that patient.",
    WITHIN: "Within-patient estimate: models were trained on other sections of the very patients that they are scored on. "
    "It says nothing about new patients, for whom scores are usually much lower.",
    UNKNOWN: "Patients are not recorded, so these may be within-patient estimates, which say nothing about new patients.",
}
_TABLES = ("scores", "structure", "folds")
STRUCTURE = ("structure", "structure_rmse")


@dataclass(frozen=True, eq=False, repr=False)
class CrossValidation:
    """Scores of models on sections that each was trained without; made by :func:`img2gene.tl.cross_validate`.

    Attributes
    ----------
    scores
        One row per model, section and gene: ``model``, ``fold``, ``section``, ``patient``, ``gene``, one truth value per
        gene group, every metric of :func:`img2gene.tl.evaluate`, ``n_spots``, ``leakage`` and ``scope``.
    structure
        One row per model, section and gene group (``genes``): agreement of gene–gene correlations, ``structure`` and
        ``structure_rmse`` (:func:`img2gene.metrics.structure_score`), and ``n_genes``.
    folds
        One row per fold: ``fold``, ``sections`` and ``patients`` that were held out, ``n_train_spots``,
        ``n_train_sections``, ``n_train_groups``, ``n_genes``, and ``absent``: genes asked for that do not vary in the
        training fold.
    scope
        What the scores say something about: ``"between patients"``, ``"within patient"`` or ``"patients unknown"``.
    settings
        Everything that was asked for, and versions (JSON).
    warnings
        What was noticed about the study: likely leaks, smoothing.
    predictions
        For each model whose predictions were kept: predictions of all sections by the models that were trained without
        them (X), what was measured (``layers["measured"]``), and further layers of :func:`img2gene.tl.predict`.

    Examples
    --------
    >>> import img2gene as ig
    >>> result = ig.tl.cross_validate(sdata, ["ridge", "img2gene"])  # doctest: +SKIP
    >>> result.summary("HVG")  # doctest: +SKIP
    >>> result.compare(reference="ridge")  # doctest: +SKIP
    """

    scores: pd.DataFrame
    structure: pd.DataFrame
    folds: pd.DataFrame
    scope: str
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    predictions: dict[str, AnnData] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """Models and baselines, in the order of the table."""
        return list(dict.fromkeys(self.scores["model"]))

    @property
    def groups(self) -> list[str]:
        """Gene groups, ``all`` first."""
        return ["all", *group_columns(self.scores)]

    @property
    def unit(self) -> str:
        """Column of what is independent, ``patient``, or ``section`` within one patient or where no patient is recorded."""
        return "patient" if self.scope == BETWEEN else "section"

    @property
    def notice(self) -> str:
        """What the scores mean, in a sentence."""
        return _NOTICE[self.scope]

    def by_unit(self, genes: str = "all") -> pd.DataFrame:
        """Mean scores of each model for each patient (or section, see :attr:`unit`).

        Parameters
        ----------
        genes
            Gene group.

        Returns
        -------
        DataFrame with ``model``, the unit, and all metrics: mean over genes within a section, then over its sections.
        """
        chosen = self._members(genes)
        columns = [name for name in METRICS if name in chosen]
        sections = chosen.groupby(["model", self.unit, "section"], sort=False)[columns].mean()
        if len(self.structure):
            pairs = self.structure[self.structure["genes"] == genes]
            sections = sections.join(pairs.set_index(["model", self.unit, "section"])[list(STRUCTURE)])
        return sections.groupby(["model", self.unit], sort=False).mean().reset_index()

    def summary(self, genes: str | None = None, *, metric: str = "pcc", level: float = 0.95) -> pd.DataFrame:
        """Mean scores of all models with a confidence interval over patients.

        Parameters
        ----------
        genes
            Gene group; by default all of them, one after another.
        metric
            The score with the interval.
        level
            Coverage of the interval (:func:`img2gene.metrics.mean_interval`); NaN where there is one unit only.

        Returns
        -------
        DataFrame with one row per gene group and model: ``genes``, ``model``, the metric with ``low`` and ``high``, the
        other metrics, ``n_patients`` (or ``n_sections`` alone, where patients are not the unit), ``n_sections``,
        ``n_genes``, ``n_nan`` (gene × section pairs without a correlation), ``leakage`` and ``scope``.
        """
        names = self.groups if genes is None else [genes]
        parts = [self._summary(name, metric, level) for name in names]
        return pd.concat(parts, ignore_index=True).astype({"leakage": "boolean"})

    def _summary(self, genes: str, metric: str, level: float) -> pd.DataFrame:
        units, members = self.by_unit(genes), self._members(genes)
        self._check(metric, units.columns, "metric")
        rows = []
        for model, part in units.groupby("model", sort=False):
            own = members[members["model"] == model]
            mean, low, high = metrics.mean_interval(part[metric].to_numpy(), level)
            others = part.drop(columns=["model", self.unit, metric]).mean()
            facts = {f"n_{self.unit}s": part[self.unit].nunique(), "n_sections": own["section"].nunique()}
            facts |= {"n_genes": own["gene"].nunique(), "n_nan": int(own["pcc"].isna().sum())}
            leakage = own["leakage"].any(skipna=False)
            row = {"genes": genes, "model": model, metric: mean, "low": low, "high": high, **others.to_dict(), **facts}
            rows.append(row | {"leakage": leakage, "scope": self.scope})
        return pd.DataFrame(rows)

    def compare(
        self, reference: str | None = None, genes: str = "all", *, metric: str = "pcc", level: float = 0.95
    ) -> pd.DataFrame:
        """Compare every model with a reference, pair by pair.

        Parameters
        ----------
        reference
            Model to compare with; by default ``"ridge"`` where it is in the table, else the first.
        genes
            Gene group.
        metric
            Score to compare.
        level
            Coverage of the interval over units.

        Returns
        -------
        DataFrame with one row per other model: ``model``, ``reference``, ``genes``, ``metric``, ``difference`` (model −
        reference, mean over patients) with ``low`` and ``high``, ``n_patients`` and ``p_patients`` (Wilcoxon's signed-rank
        test over patients, or over sections where these are the unit), ``n_better``: patients in which the model has the
        higher value, ``n_genes`` and ``p_genes`` (the same test over genes).

        Notes
        -----
        Genes are correlated, so the test over genes takes small differences for certain ones; it tells whether most genes
        agree, not whether new patients will. The smallest p-value that n patients can give is 2 / 2ⁿ.
        """
        reference = self._reference(reference)
        units, members = self.by_unit(genes), self._members(genes)
        self._check(metric, units.columns, "metric")
        per_unit = units.pivot_table(metric, self.unit, "model", sort=False, dropna=False)
        per_gene = members.pivot_table(metric, "gene", "model", sort=False, dropna=False) if metric in members else None
        rows = []
        for model in self.models:
            if model == reference or not per_unit.get(model, pd.Series(dtype=float)).notna().any():
                continue
            over_units = (per_unit[model] - per_unit[reference]).to_numpy()
            mean, low, high = metrics.mean_interval(over_units, level)
            row: dict[str, Any] = {"model": model, "reference": reference, "genes": genes, "metric": metric}
            row |= {"difference": mean, "low": low, "high": high}
            row |= {f"n_{self.unit}s": int(np.isfinite(over_units).sum()), "n_better": int((over_units > 0).sum())}
            row |= {f"p_{self.unit}s": metrics.signed_rank_pvalue(over_units)}
            if per_gene is not None:
                over_genes = (per_gene[model] - per_gene[reference]).to_numpy()
                row |= {"n_genes": int(np.isfinite(over_genes).sum())}
                row |= {"p_genes": metrics.signed_rank_pvalue(over_genes)}
            rows.append(row | {"scope": self.scope})
        return pd.DataFrame(rows)

    def genes(self, model: str | None = None, *, metric: str = "pcc") -> pd.DataFrame:
        """Score of each gene, averaged over sections, best first.

        Parameters
        ----------
        model
            Which model; by default the first.
        metric
            Score to average and to sort by.

        Returns
        -------
        DataFrame indexed by gene: the mean score, ``sd`` over sections, ``n_sections`` with a score, ``n_nan`` without.
        """
        model = self.models[0] if model is None else model
        self._check(model, self.models, "model")
        own = self.scores[self.scores["model"] == model]
        self._check(metric, own.columns, "metric")
        grouped = own.groupby("gene", sort=False)[metric]
        table = pd.DataFrame({metric: grouped.mean(), "sd": grouped.std(), "n_sections": grouped.count()})
        table["n_nan"] = grouped.size() - table["n_sections"]
        return table.sort_values(metric, ascending=False)

    def to_csv(self, path: str | Path, table: str = "scores") -> None:
        """Write one of the tables.

        Parameters
        ----------
        path
            File to write.
        table
            ``"scores"``, ``"structure"``, ``"folds"`` or ``"summary"``.
        """
        self._check(table, [*_TABLES, "summary"], "table")
        found = self.summary() if table == "summary" else getattr(self, table)
        found.to_csv(path, index=False)

    def to_markdown(self, genes: str | None = None) -> str:
        """The summary as a Markdown table, below a line that says what it means."""
        table = self.summary(genes)
        shown = [name for name in table if table[name].notna().any() and name not in ("scope", "leakage")]
        return f"{self.notice}\n\n" + table[shown].to_markdown(index=False, floatfmt=".3f")

    def plot(self, metric: str = "pcc", genes: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the scores of all models by patient: :func:`img2gene.pl.cross_validation`."""
        from img2gene import pl

        return pl.cross_validation(self, metric=metric, genes=genes, ax=ax)

    def _members(self, genes: str) -> pd.DataFrame:
        """Rows of the genes of a group."""
        self._check(genes, self.groups, "gene group")
        if genes == "all":
            return self.scores
        return self.scores[(self.scores[genes] == True).to_numpy(dtype=bool)]  # noqa: E712 - NaN is no member

    def _reference(self, reference: str | None) -> str:
        if reference is None:
            return "ridge" if "ridge" in self.models else self.models[0]
        self._check(reference, self.models, "model")
        return reference

    def _check(self, name: str, known: Any, what: str) -> None:
        if name not in list(known):
            raise MissingKeyError(f"No {what} {name!r} in this cross-validation ({near(name, known)}).")

    def __repr__(self) -> str:
        n_units = self.scores[self.unit].nunique()
        return (
            f"CrossValidation({len(self.folds)} folds, {n_units} {self.unit}s, {self.scope}, "
            f"models: {listing(self.models, 12)})"
        )

    def _repr_html_(self) -> str:
        notice = [self.notice, *self.warnings]
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in notice)
        tables = [self.summary(name).dropna(axis=1, how="all").round(3) for name in self.groups]
        return f"<p><b>{html.escape(repr(self))}</b></p>{lines}" + "".join(t.to_html(index=False) for t in tables)
