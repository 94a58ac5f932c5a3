"""Read the pathways stored with a table, and select and score them within one fold of a study."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing
from img2gene._study.expression import TARGET_SUM, library_size
from img2gene._study.study import Study
from img2gene.pathways.context import PathwayContext, choose_pathways, score_spots

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger(__name__)
_RUN = "Run `img2gene.pp.score_pathways` again."


def stored_pathways(study: Study, key: str = _schema.PATHWAYS) -> dict[str, Any] | None:
    """Read the record of :func:`img2gene.pp.score_pathways`, or None; refuse one that does not fit the table."""
    table, record = study.table, study.record(key)
    if record is None:
        return None
    if key not in table.obsm or np.shape(table.obsm[key])[1:] != (len(record["names"]),):
        raise Img2GeneError(f"`obsm['{key}']` does not hold the {len(record['names'])} pathways of its record. {_RUN}")
    unknown = sorted(set(study.section_names()) - set(record["scored"]))
    if unknown:
        # Joining keeps the columns of all parts, but only the record of the first.
        raise Img2GeneError(f"Sections {listing(unknown)} were joined after pathways were scored. {_RUN}")
    genes = dict.fromkeys(gene for names in record["gene_sets"].values() for gene in names)
    absent = [gene for gene in genes if gene not in table.var_names]
    if absent:
        raise Img2GeneError(
            f"{len(absent)} genes of the pathways are no longer in the table: {listing(absent, 5)}. {_RUN}"
        )
    return record


def required_pathways(study: Study, key: str = _schema.PATHWAYS) -> dict[str, Any]:
    """Read the record; if it is missing, the error names the next call."""
    record = stored_pathways(study, key)
    if record is None:
        hint = "Run `img2gene.pp.score_pathways` first."
        raise MissingKeyError(missing(key, f"{study.name}.obsm", study.table.obsm, hint))
    return record


def enrichment_table(study: Study, key: str = _schema.PATHWAYS) -> pd.DataFrame:
    """Read the enrichment of every matched set, by falling NES; raise if all sets were taken without selection."""
    record = required_pathways(study, key)
    if record["enrichment"] is None:
        raise Img2GeneError(
            f"All {len(record['names'])} pathways were taken (n_top={record['n_top']}), so no enrichment was computed. "
            f"Run `img2gene.pp.score_pathways(…, n_top=…)` with fewer than {len(record['gene_sets'])}."
        )
    return from_columns(record["enrichment"])


def to_columns(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Convert a data frame to lists that JSON can hold: NaN becomes None."""
    return {str(name): [_plain(value) for value in column.tolist()] for name, column in table.items()}


def from_columns(columns: Mapping[str, list[Any]]) -> pd.DataFrame:
    """Restore the data frame; None among numbers becomes NaN."""
    import pandas as pd

    frame = pd.DataFrame(dict(columns))
    numbers = [name for name in ("es", "nes", "pval", "fdr") if name in frame]
    return frame.astype(dict.fromkeys(numbers, float))


def _plain(value: Any) -> Any:
    """Replace NaN and infinity by None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def log_counts(table: AnnData, rows: np.ndarray) -> sp.csr_matrix:
    """Compute ``log1p(1e4 · counts / library size)`` of all genes, sparse float32 (len(rows), n_vars).

    Spots without counts are zeros.
    """
    size = library_size(table)[rows]
    scale = np.divide(TARGET_SUM, size, out=np.zeros_like(size), where=size > 0)
    return (sp.diags(scale) @ sp.csr_matrix(table.X[rows])).astype(np.float32).log1p()


def context_facts(context: PathwayContext) -> dict[str, Any]:
    """Collect what a model stores about its pathways, as values that JSON can hold."""
    return {
        "names": context.names,
        "gene_sets": context.gene_sets,
        "method": context.method,
        "enrichment": None if context.enrichment is None else to_columns(context.enrichment),
    }


def set_columns(table: AnnData, gene_sets: Mapping[str, list[str]]) -> dict[str, np.ndarray]:
    """Find the columns of the genes in each set."""
    return {name: table.var_names.get_indexer(genes) for name, genes in gene_sets.items()}


def fold_context(
    study: Study,
    rows: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    features: np.ndarray | None,
    sections: np.ndarray,
    positions: np.ndarray,
    seed: int,
    key: str = _schema.PATHWAYS,
) -> PathwayContext | None:
    """Select and score pathways on the training rows alone.

    The stored collection is ranked again on these rows, and the z-score uses their mean and SD. No other row has an
    influence, whichever sections :func:`img2gene.pp.score_pathways` used.

    Parameters
    ----------
    study
        Study with raw counts in X.
    rows
        Training rows, integers (n,).
    labels
        float32 (n, n_vars) labels of all genes in these rows, by which genes are ranked; by default the normalised
        counts.
    features, sections, positions
        Embedding (n, width) or None, section (n,) and position (n, 2) of these rows.
    seed
        Seed of components and permutations.
    key
        Name the pathways are stored under.

    Returns
    -------
    The context with scores float32 (n, P), or None if the table has no pathways.
    """
    record = stored_pathways(study, key)
    if record is None:
        return None
    table, rows = study.table, np.asarray(rows)
    if labels is not None and labels.shape != (len(rows), table.n_vars):
        raise Img2GeneError(
            f"Pathways of `{study.name}` are selected among all genes: labels have shape {labels.shape}, expected "
            f"{(len(rows), table.n_vars)}."
        )
    normalised = log_counts(table, rows)
    names, enrichment = list(record["gene_sets"]), None
    if len(names) > record["n_top"]:
        ranked = normalised if labels is None else labels
        known = np.flatnonzero(library_size(table)[rows] > 0 if labels is None else np.isfinite(labels).all(axis=1))
        names, enrichment = choose_pathways(
            ranked[known],
            list(table.var_names),
            record["gene_sets"],
            record["n_top"],
            sections=np.asarray(sections)[known],
            positions=np.asarray(positions)[known],
            features=None if features is None else features[known],
            seed=seed,
        )
    chosen = {name: record["gene_sets"][name] for name in names}
    scores = score_spots(record["method"], table.X[rows], normalised, set_columns(table, chosen), genes=table.var_names)
    return _defined(PathwayContext(names, chosen, record["method"], scores, enrichment))


def _defined(context: PathwayContext) -> PathwayContext:
    """Drop pathways without a score in any spot: with z-scores, pathways whose genes do not vary."""
    known = np.isfinite(context.scores).any(axis=0)
    if known.all() or not known.any():
        return context
    lost = [name for name, kept in zip(context.names, known, strict=True) if not kept]
    logger.warning("left out pathways whose genes do not vary in the training spots: %s", listing(lost))
    names = [name for name in context.names if name not in lost]
    sets = {name: context.gene_sets[name] for name in names}
    return replace(context, names=names, gene_sets=sets, scores=context.scores[:, known])
