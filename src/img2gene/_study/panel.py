"""Choose which genes to predict: the one place that turns ``genes=`` into columns of a table."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real

import numpy as np

from img2gene import _schema
from img2gene._checks import genes_problems
from img2gene._errors import Img2GeneError, LeakageError, listing, raise_problems
from img2gene._study.depth import MIN_DEPTH, deep_enough
from img2gene._study.expression import gene_statistics, labels
from img2gene._study.study import Study

logger = logging.getLogger(__name__)

# Names of genes, how many of the highest mean, or None for the stored panel (all genes without one).
Genes = Iterable[str] | int | None


@dataclass(frozen=True)
class GeneChoice:
    """Genes chosen on training spots, with their training labels.

    Attributes
    ----------
    genes
        Names of the genes, sorted, so that no result depends on the order of a table's columns.
    rows
        int (n_spots,): the training rows that have counts, of sections that are deep enough, in the order they were passed.
    values
        float32 (n_spots, n_genes): training labels.
    n_empty
        Number of rows left out because they have no count.
    constant
        Names of candidate genes left out because they do not vary in these rows.
    """

    genes: list[str]
    rows: np.ndarray
    values: np.ndarray
    n_empty: int
    constant: list[str]

    def statistics(self, study: Study) -> dict[str, np.ndarray]:
        """Compute the statistics of each gene on the training rows."""
        return gene_statistics(self.values, study.sections[self.rows], study.positions[self.rows])


def is_named(genes: Genes) -> bool:
    """Whether ``genes`` names genes, rather than their number or the stored panel."""
    return genes is not None and not isinstance(genes, (int, np.integer))


def named_genes(genes: Genes) -> list[str]:
    """List the names in ``genes``; a single name counts as a list of one."""
    return [genes] if isinstance(genes, str) else list(genes)  # type: ignore[arg-type]


def panel_genes(study: Study) -> list[str] | None:
    """List the genes of the stored panel, sorted; None if there is no panel.

    A gene without a value is not in the panel: joining gives no value to genes that one of the sections lacks.
    """
    var = study.table.var
    if _schema.PANEL not in var:
        return None
    values, missing = var[_schema.PANEL].astype(object), var[_schema.PANEL].isna().to_numpy()
    is_truth = values.map(
        lambda value: isinstance(value, bool | np.bool_) or (isinstance(value, Real) and value in (0, 1))
    )
    wrong = values[~(missing | is_truth)]
    if len(wrong):
        raise Img2GeneError(
            f"`{study.name}.var['{_schema.PANEL}']` holds {listing(wrong.map(repr).unique(), 3)}, but only True and False say "
            "which genes are in the panel. Convert the column, or rename it if it means something else."
        )
    genes = sorted(study.table.var_names[values.where(~missing, False).to_numpy(dtype=bool)].astype(str))
    if not genes:
        raise Img2GeneError(
            f"`{study.name}.var['{_schema.PANEL}']` marks no gene. Run `img2gene.pp.select_genes`, or delete the column to "
            "predict all genes that vary."
        )
    return genes


def check_genes(study: Study, genes: Genes) -> None:
    """Refuse names that the table lacks or that occur twice, an empty list or panel, and a number out of range."""
    names = study.table.var_names
    if genes is None:
        panel_genes(study)
        return
    if isinstance(genes, (int, np.integer)):
        if not 1 <= genes <= len(names):
            raise Img2GeneError(
                f"genes={genes}: expected a whole number from 1 to {len(names)}, the genes of the table."
            )
        return
    if not isinstance(genes, Iterable):
        raise_problems(genes_problems(genes))
        return
    chosen = named_genes(genes)
    absent = [name for name in chosen if name not in names]
    twice = sorted(name for name, times in Counter(chosen).items() if times > 1)
    raise_problems(
        [f"Genes {listing(absent)} not found in `{study.name}.var_names` (available: {listing(names)})."] * bool(absent)
        + [f"Genes named twice: {listing(twice)}."] * bool(twice)
        + ["`genes` is empty."] * (not chosen)
    )


def check_panel(study: Study, held_out: np.ndarray, *, allow_leakage: bool) -> None:
    """Refuse a stored panel that held-out sections helped to choose."""
    chosen_on = study.record("panel", {}).get("sections", [])
    seen = [name for name in study.section_names(held_out) if name in chosen_on]
    if _schema.PANEL in study.table.var and chosen_on and not set(chosen_on) & set(study.section_names()):
        logger.warning(
            "the gene panel was chosen on the sections %s, none of which has this name here: whether held-out sections helped "
            "to choose it cannot be checked",
            listing(chosen_on),
        )
    if _schema.PANEL in study.table.var and seen and not allow_leakage:
        raise LeakageError(
            f"The gene panel was chosen on the held-out sections {listing(seen)} too. Choose it on the training sections "
            "(`img2gene.pp.select_genes(…, sections=…)`), or let `fit` choose with `genes=<number>`."
        )


def choose_genes(
    study: Study, rows: np.ndarray, genes: Genes, *, layer: str | None = None, min_depth: float = MIN_DEPTH
) -> GeneChoice:
    """Choose genes on training rows.

    Parameters
    ----------
    study
        Study with counts, or with labels in ``layer``.
    rows
        int (n_rows,): training rows; no other row has an influence.
    genes
        Names; a number for that many genes of the highest mean; None for the stored panel, or all genes without one.
    layer
        Layer with labels on the user's own scale; None normalises the counts.
    min_depth
        Least depth of a section, see :func:`img2gene._study.depth.deep_enough`.

    Returns
    -------
    The genes that vary in these rows. Of equal means, the first names are taken.

    Raises
    ------
    Img2GeneError
        No row has a count, or no gene varies.
    """
    names = np.array(sorted(_candidates(study, genes)), dtype=str)
    values = labels(study.table, rows, study.table.var_names.get_indexer(names), layer=layer)
    complete = np.isfinite(values).all(axis=1)
    if not complete.any():
        raise Img2GeneError("No training spot has a count, or none lies on tissue (`obs['in_tissue']`).")
    rows = np.asarray(rows)[complete]
    deep = deep_enough(study, rows, layer=layer, min_depth=min_depth)
    rows, values = rows[deep], values[np.flatnonzero(complete)[deep]]
    varies = values.max(axis=0) > values.min(axis=0)
    if not varies.any():
        refuse_constant(names.tolist())
    kept = np.flatnonzero(varies)
    if isinstance(genes, (int, np.integer)):
        means = values[:, kept].mean(axis=0, dtype=np.float64)
        # Names are sorted, so ascending columns put the chosen genes in order of their names again.
        kept = np.sort(kept[np.argsort(-means, kind="stable")[: int(genes)]])
    return GeneChoice(
        names[kept].tolist(),
        rows,
        np.ascontiguousarray(values[:, kept]),
        int((~complete).sum()),
        names[~varies].tolist(),
    )


def refuse_constant(genes: list[str]) -> None:
    """Raise for genes that do not vary in the training sections."""
    raise Img2GeneError(
        f"{len(genes)} genes do not vary in the training sections, so a model cannot learn them: {listing(genes)}. "
        "Leave them out of `genes`."
    )


def _candidates(study: Study, genes: Genes) -> list[str]:
    """List the genes to choose from: the named ones, the stored panel, or all."""
    if is_named(genes):
        return named_genes(genes)
    panel = panel_genes(study) if genes is None else None
    return study.table.var_names.astype(str).tolist() if panel is None else panel
