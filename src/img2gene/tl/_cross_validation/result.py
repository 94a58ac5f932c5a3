"""The result of a cross-validation: scores by gene, section and model, and what they say about new patients."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import metrics
from img2gene._checks import Arguments, shown
from img2gene._errors import MissingKeyError, listing, near
from img2gene._files.tables import write_csv
from img2gene.metrics.catalog import goodness
from img2gene.tl._arguments import check_between
from img2gene.tl.evaluate import BASELINE_ROWS, METRICS, group_columns

if TYPE_CHECKING:
    from anndata import AnnData

# What a score says something about.
BETWEEN, WITHIN, UNKNOWN = "between patients", "within patient", "patients unknown"
_NOTICE = {
    BETWEEN: "Every patient is scored by models that saw no section of that patient.",
    WITHIN: "Within-patient estimate: models were trained on other sections of the same patients that they are scored on. "
    "It says nothing about new patients, for whom scores are usually much lower.",
    UNKNOWN: "Patients are not recorded, so these may be within-patient estimates, which say nothing about new patients.",
}
_TABLES = ("scores", "structure", "folds")
STRUCTURE = ("structure", "structure_rmse")


def _coverage(level: Any) -> float:
    check = Arguments()
    level = check_between(check, "level", level)
    check.raise_all()
    return level


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
        All options of the call, and versions (JSON).
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

    @property
    def marks(self) -> list[str]:
        """What keeps the scores from being honest estimates for new patients, in a few words each."""
        marks = []
        if self.scope == WITHIN:
            marks.append("within-patient estimate")
        elif self.scope != BETWEEN:
            marks.append("patients unknown")
        # The mark of a within-patient estimate says this already.
        if self.scope != WITHIN and bool(self.scores["leakage"].fillna(False).astype(bool).any()):
            marks.append("leakage: patients trained on")
        if self.settings.get("allow_leakage") and self.warnings:
            marks.append("possible leakage allowed")
        if self.settings.get("smooth"):
            marks.append("labels smoothed")
        return marks

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
        # Where sections are the unit, both names are one column, and pandas refuses an index that names it twice.
        keys = ["model", *dict.fromkeys((self.unit, "section"))]
        sections = chosen.groupby(keys, sort=False)[columns].mean()
        if len(self.structure):
            pairs = self.structure[self.structure["genes"] == genes]
            sections = sections.join(pairs.set_index(keys)[list(STRUCTURE)])
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
        ``n_genes``, ``n_nan`` (gene × section pairs without a correlation), ``leakage``, ``scope``, and where labels were
        smoothed, ``smooth``, over how many neighbours.

        Notes
        -----
        Each model is averaged over the genes that it has a correlation for. One that predicts constants for genes that are
        hard has none there, and is spared them: look at ``n_nan``, and compare such models by :meth:`compare`.
        """
        self._check(metric, self._metrics, "metric")
        level = _coverage(level)
        names = self.groups if genes is None else [genes]
        parts = [self._summary(name, metric, level) for name in names]
        frame = pd.concat(parts, ignore_index=True).astype({"leakage": "boolean"})
        smooth = self.settings.get("smooth")
        return frame.assign(smooth=int(smooth)) if smooth else frame

    def _summary(self, genes: str, metric: str, level: float) -> pd.DataFrame:
        units, members = self.by_unit(genes), self._members(genes)
        rows = []
        for model, part in units.groupby("model", sort=False):
            scores = members[members["model"] == model]
            mean, low, high = metrics.mean_interval(part[metric].to_numpy(), level)
            others = part.drop(columns=["model", self.unit, metric]).mean()
            facts = {f"n_{self.unit}s": part[self.unit].nunique(), "n_sections": scores["section"].nunique()}
            facts |= {"n_genes": scores["gene"].nunique(), "n_nan": int(scores["pcc"].isna().sum())}
            leakage = scores["leakage"].any(skipna=False)
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
        DataFrame with one row per model that has a score where the reference has one: ``model``, ``reference``, ``genes``,
        ``metric``, ``difference`` (model − reference, mean over patients) with ``low`` and ``high``, ``n_patients`` and
        ``p_patients`` (Wilcoxon's signed-rank test over patients, or over sections where these are the unit), ``n_better``:
        patients for whom the model is better, be that higher, lower or nearer to 0 (Moran's I) or to the level asked for
        (coverage), ``n_genes`` and ``p_genes`` (the same test over genes), ``n_dropped`` and ``scope``.

        Models are compared on what both have a score of: gene by gene within each section, then averaged as in
        :meth:`by_unit`. ``n_dropped`` counts the gene × section pairs (of structure, the sections) that only one has.

        Notes
        -----
        Genes are correlated, so the test over genes takes small differences for certain ones; it shows whether most genes
        agree, not whether new patients will. The smallest p-value that n patients can give is 2 / 2ⁿ.
        """
        reference, level = self._reference(reference), _coverage(level)
        values = self._values(metric, genes)
        unit = self.unit
        columns = ["model", "reference", "genes", "metric", "difference", "low", "high"]
        columns += [f"n_{unit}s", "n_better", f"p_{unit}s", "n_dropped"]
        columns += ["n_genes", "p_genes"] * ("gene" in values.index.names) + ["scope"]
        rows = []
        for model in self.models:
            defined = np.isfinite(values[[model, reference]].to_numpy())
            if model == reference or not defined.all(axis=1).any():
                continue
            pairs = values[defined.all(axis=1)]
            row = {"model": model, "reference": reference, "genes": genes, "metric": metric, "scope": self.scope}
            row |= self._difference(pairs[model], pairs[reference], metric, level)
            rows.append(row | {"n_dropped": int((defined[:, 0] != defined[:, 1]).sum())})
        return pd.DataFrame(rows, columns=columns)

    def _difference(self, scores: pd.Series, reference: pd.Series, metric: str, level: float) -> dict[str, Any]:
        """What is to be said of two models' values of the same genes, sections and units."""
        unit, difference = self.unit, scores - reference
        over_units = self._over_units(difference).to_numpy()
        better = self._gains(scores, reference, metric).to_numpy() > 0
        comparison = dict(zip(("difference", "low", "high"), metrics.mean_interval(over_units, level), strict=True))
        comparison |= {f"n_{unit}s": len(over_units), "n_better": int(better.sum())}
        comparison |= {f"p_{unit}s": metrics.signed_rank_pvalue(over_units)}
        if "gene" in difference.index.names:
            over_genes = difference.groupby("gene", sort=False).mean().to_numpy()
            comparison |= {"n_genes": len(over_genes), "p_genes": metrics.signed_rank_pvalue(over_genes)}
        return comparison

    def gains(self, model: str, reference: str | None = None, genes: str = "all", *, metric: str = "pcc") -> pd.Series:
        """By how much a model is better than a reference, for each patient (or section, see :attr:`unit`).

        Parameters
        ----------
        model
            Which model.
        reference, genes, metric
            As in :meth:`compare`.

        Returns
        -------
        Difference of the scores that both have, by unit, positive where the model is better: of errors it is the reference
        minus the model, of Moran's I and coverage by how much nearer the model comes to 0 or to the level asked for.
        """
        reference = self._reference(reference)
        self._check(model, self.models, "model")
        pairs = self._values(metric, genes)[list(dict.fromkeys((model, reference)))].dropna()
        return self._gains(pairs[model], pairs[reference], metric)

    def _gains(self, scores: pd.Series, reference: pd.Series, metric: str) -> pd.Series:
        return self._over_units(self._goodness(scores, metric) - self._goodness(reference, metric))

    def genes(self, model: str | None = None, *, metric: str = "pcc") -> pd.DataFrame:
        """Score of each gene, averaged over sections, best first: highest, lowest or, as of Moran's I, nearest to 0.

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
        scores = self.scores[self.scores["model"] == model]
        self._check(metric, [name for name in METRICS if name in scores], "metric")
        grouped = scores.groupby("gene", sort=False)[metric]
        table = pd.DataFrame({metric: grouped.mean(), "sd": grouped.std(), "n_sections": grouped.count()})
        table["n_nan"] = grouped.size() - table["n_sections"]
        return table.sort_values(metric, key=lambda values: -self._goodness(values, metric), kind="stable")

    def to_csv(self, path: str | Path, table: str = "scores") -> None:
        """Write one of the tables; texts that begin with ``=``, ``+``, ``-`` or ``@`` get a ``'`` before them.

        :func:`img2gene.io.read_csv` reads the table back, with all names as they were.

        Parameters
        ----------
        path
            File to write.
        table
            ``"scores"``, ``"structure"``, ``"folds"`` or ``"summary"``.
        """
        self._check(table, [*_TABLES, "summary"], "table")
        write_csv(self.summary() if table == "summary" else getattr(self, table), path)

    def to_markdown(self, genes: str | None = None) -> str:
        """The summary as a Markdown table, below lines that say what it means, and what keeps it from meaning more."""
        table = self.summary(genes)
        shown = [name for name in table if table[name].notna().any() and name not in ("scope", "leakage")]
        lines = self._remarks("all" if genes is None else genes)
        return "\n\n".join([*lines, table[shown].to_markdown(index=False, floatfmt=".3f")])

    def _members(self, genes: str) -> pd.DataFrame:
        """Rows of the genes of a group."""
        self._check(genes, self.groups, "gene group")
        if genes == "all":
            return self.scores
        return self.scores[(self.scores[genes] == True).to_numpy(dtype=bool)]  # noqa: E712 - NaN is no member

    @property
    def _metrics(self) -> list[str]:
        """Scores that units have."""
        return [name for name in METRICS if name in self.scores] + list(STRUCTURE) * (len(self.structure) > 0)

    def _values(self, metric: str, genes: str) -> pd.DataFrame:
        """A score of all models (columns) by unit, section, fold and, except for structure, gene."""
        members = self._members(genes)
        self._check(metric, self._metrics, "metric")
        table = members if metric in members else self.structure[self.structure["genes"] == genes]
        # A section that is divided between folds has a score in each of them.
        keys = [name for name in dict.fromkeys((self.unit, "section", "fold", "gene")) if name in table]
        means = table.groupby([*keys, "model"], sort=False)[metric].mean().unstack("model")
        return means.reindex(columns=self.models).astype(float)

    def _over_units(self, values: pd.Series) -> pd.Series:
        """Mean within sections, then over the sections of each unit."""
        sections = values.groupby(list(dict.fromkeys((self.unit, "section"))), sort=False).mean()
        return sections.groupby(self.unit, sort=False).mean()

    def _goodness(self, values: pd.Series, metric: str) -> pd.Series:
        return goodness(values, metric, self.settings.get("level"))

    def _remarks(self, genes: str = "all") -> list[str]:
        """What has to be said wherever scores are shown."""
        lines = [self.notice, *self.warnings]
        if self.marks:
            lines.append(f"Not an honest estimate for new patients: {'; '.join(self.marks)}.")
        return lines + self._unevenness(genes)

    def _unevenness(self, genes: str) -> list[str]:
        """A line that names trained models with fewer correlations than the one that has most, if there are any."""
        scores = self._members(genes)
        undefined = scores["pcc"].isna().groupby(scores["model"], sort=False).agg(["sum", "all"])
        # Constants have no correlation at all, and no mean to be wrong about.
        trained = undefined.loc[~undefined["all"] & ~undefined.index.isin(BASELINE_ROWS), "sum"]
        spared = trained[trained > trained.min()]
        if not len(spared):
            return []
        names = listing((f"{name} ({number})" for name, number in spared.items()), 1000)
        return [
            f"Averaged over fewer genes: gene × section pairs are undefined for {names}, against {trained.min()} for the best "
            "model. `compare` uses the pairs that both models have."
        ]

    def _reference(self, reference: str | None) -> str:
        if reference is None:
            return "ridge" if "ridge" in self.models else self.models[0]
        self._check(reference, self.models, "model")
        return reference

    def _check(self, name: str, known: Any, what: str) -> None:
        if not isinstance(name, str) or name not in list(known):
            raise MissingKeyError(f"No {what} {shown(name)} in this cross-validation ({near(str(name), known)}).")

    def __repr__(self) -> str:
        n_units = self.scores[self.unit].nunique()
        about = ", ".join([*[self.scope] * (self.scope == BETWEEN), *self.marks])
        return (
            f"CrossValidation({len(self.folds)} folds, {n_units} {self.unit}s, {about}, "
            f"models: {listing(self.models, 12)})"
        )

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self._remarks())
        tables = [self.summary(name).dropna(axis=1, how="all").round(3) for name in self.groups]
        return f"<p><b>{html.escape(repr(self))}</b></p>{lines}" + "".join(t.to_html(index=False) for t in tables)
