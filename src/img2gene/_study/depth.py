"""Compare library sizes and expression with the counts they belong to, and with those that a model was trained on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._errors import listing
from img2gene._study.expression import in_tissue, labels, library_size, row_sums
from img2gene._study.study import Study
from img2gene.models.depth import DEEPEST_SPOT, median_depths, shallow_sections

if TYPE_CHECKING:
    from img2gene.models import Model

logger = logging.getLogger(__name__)

# Sections below this share of the depth of the median section are not trained on.
MIN_DEPTH = 0.2
# A table with a few rare genes can hold less than a hundredth of a spot's counts.
_LARGEST_RATIO = 1000
# Beyond these, filtered genes are likelier than sections of another depth.
_LEAST_GENES, _LARGEST_CHANGE = 0.9, 3.0
# The scale of a layer shows in few spots and genes.
_SPOTS, _GENES = 2_000, 200
# Other patients change the standard deviation of the median gene by less than a factor of 2.
_LARGEST_SPREAD = 4.0
_NEGATIVE = 0.01


def training_depth(study: Study, rows: np.ndarray) -> dict[str, Any]:
    """Record library sizes of the training spots and the genes in the table; warn if the sizes cannot be right."""
    table = study.table
    report_changed_counts(study)
    median, counted = (float(np.median(values[rows])) for values in (library_size(table), row_sums(table.X)))
    if median > _LARGEST_RATIO * counted:
        logger.warning(
            "obs['library_size'] is %.3g in the median training spot, but X holds only %.3g counts of it: expression normalised "
            "by such sizes is close to 0. Check that the column holds the counts of each spot over all genes",
            median,
            counted,
        )
    _report_odd_sizes(study, rows, library_size(table)[rows])
    share = counted / median if median > 0 else 1.0
    return {"median_library_size": median, "n_genes_in_table": table.n_vars, "share_in_table": round(share, 4)}


def _report_odd_sizes(study: Study, rows: np.ndarray, size: np.ndarray) -> None:
    """Warn of spots whose library size is far above the median of their section, which may be a wrong entry."""
    sections = study.sections[rows]
    odd = np.zeros(len(rows), dtype=bool)
    for name in np.unique(sections):
        members = sections == name
        odd[members] = size[members] > DEEPEST_SPOT * np.median(size[members])
    if odd.any():
        logger.warning(
            "the library sizes of %s are more than %d times the median of their section. Check obs['library_size'], or leave such "
            "spots out: they weigh most in the fit",
            listing(study.table.obs_names[rows[odd]]),
            DEEPEST_SPOT,
        )


def deep_enough(study: Study, rows: np.ndarray, *, layer: str | None, min_depth: float) -> np.ndarray:
    """Mark the rows of sections that are deep enough to be trained on together, bool (n_rows,), and name the others.

    A section that is much shallower than the others can make a model worse for them, as its labels are mostly zeros and noise.
    ``min_depth`` is the least median library size of a section, as a share of that of the median section. Expression in a
    layer has no library size, so all its rows are kept.
    """
    if layer is not None:
        return np.ones(len(rows), dtype=bool)
    sections, size = study.sections[rows], library_size(study.table)[rows]
    shallow = shallow_sections(size, sections, min_depth)
    if shallow:
        logger.warning(
            "left out the sections %s: they have fewer counts per spot than %.3g × those of the median section, and so shallow a "
            "section can make a model worse for the others (`min_depth` of img2gene.tl.fit)",
            listing(f"{name} (median {median:.0f})" for name, median in shallow.items()),
            min_depth,
        )
    kept = ~np.isin(sections, list(shallow))
    _report_shallow_majority(size[kept], sections[kept], min_depth)
    return kept


def _report_shallow_majority(size: np.ndarray, sections: np.ndarray, min_depth: float) -> None:
    """Warn if shallow sections are trained on because half of the sections, or more, are shallow."""
    medians = median_depths(size, sections)
    deepest = max(medians, key=lambda name: medians[name])
    shallow = [
        f"{name} (median {median:.0f})" for name, median in medians.items() if median < min_depth * medians[deepest]
    ]
    if shallow:
        logger.warning(
            "the sections %s have fewer counts per spot than %.3g × those of %s (median %.0f). At least half "
            "of the sections are shallow, so they are trained on. They can make the model worse for deep sections. Compare it with "
            "a model of the deep sections alone (`train_on=`)",
            listing(shallow),
            min_depth,
            deepest,
            medians[deepest],
        )


def report_changed_counts(study: Study) -> None:
    """Warn if X holds fewer counts than a reader of the package counted, although no gene is missing."""
    table = study.table
    if _schema.LIBRARY_SIZE not in table.obs:
        return
    size, counted = library_size(table), row_sums(table.X)
    records = _schema.read_json(table, "sections", default={}).values()
    changed = []
    for record in records:
        rows = study.regions.get(record.get("region"), np.empty(0, dtype=int))
        is_whole = table.n_vars >= record.get("counted_genes", np.inf)
        if is_whole and len(rows) and np.median(counted[rows]) < _LEAST_GENES * np.median(size[rows]):
            changed.append(
                f"{record['region']} (median {np.median(counted[rows]):.0f}, not {np.median(size[rows]):.0f})"
            )
    if changed:
        logger.warning(
            "X holds fewer counts than when obs['library_size'] was counted, in %s, although no gene is missing: expression would "
            "be too low. Delete the column to have it recomputed, or restore the counts",
            listing(changed),
        )


def report_other_scale(study: Study, model: Model) -> None:
    """Warn if measured expression is not on the scale that a model was trained on."""
    if model.labels["layer"] is None:
        report_changed_counts(study)
        _report_other_depth(study, model.report.get("depth"))
    else:
        _report_other_layer(study, model)


def _report_other_layer(study: Study, model: Model) -> None:
    """Warn if the values of a layer have turned negative, or their spread has changed, since the training."""
    table, layer = study.table, model.labels["layer"]
    columns = table.var_names.get_indexer(model.genes)
    genes = np.flatnonzero(columns >= 0)[:_GENES]
    rows = np.flatnonzero(in_tissue(table))
    rows = rows[:: max(1, len(rows) // _SPOTS)]
    if len(rows) < 2 or not len(genes):
        return
    values = labels(table, rows, columns[genes], layer=layer)
    before = np.sqrt(model.statistics["variance"][genes])
    ratio = float(np.nanmedian(np.where(before > 0, values.std(axis=0) / np.where(before > 0, before, 1), np.nan)))
    was_positive = bool((model.statistics["mean"][genes] > 0).all())
    negative = float((values < 0).mean())
    turned = was_positive and negative > _NEGATIVE
    if turned or not 1 / _LARGEST_SPREAD <= ratio <= _LARGEST_SPREAD:
        logger.warning(
            "%s.layers['%s'] has another scale than in the training, so scores of levels and errors mean nothing: %.0f %% of the "
            "values are negative, and the standard deviation of the median gene is %.2g times that of the training. Restore "
            "the values that the model was trained on",
            study.name,
            layer,
            100 * negative,
            ratio,
        )


def _report_other_depth(study: Study, trained: Any) -> None:
    """Warn if the sums over the genes of this table cannot stand for the library sizes of the training."""
    table = study.table
    if not isinstance(trained, dict) or _schema.LIBRARY_SIZE in table.obs or not table.n_obs:
        # Models of earlier versions, and those of other labels than counts, have no record.
        return
    n_genes, before = trained.get("n_genes_in_table", 0), trained.get("median_library_size", 0)
    median = float(np.median(library_size(table)))
    changed = before > 0 and not 1 / _LARGEST_CHANGE <= median / before <= _LARGEST_CHANGE
    # Sums over the genes of the table are another measure than library sizes over all genes.
    changed = changed or trained.get("share_in_table", 1) < _LEAST_GENES
    if table.n_vars < _LEAST_GENES * n_genes or changed:
        logger.warning(
            "`%s.obs` has no 'library_size', so counts are normalised by their sum over the %d genes of the table (median %.3g); "
            "the model was trained with %d genes and a median of %.3g. If genes were filtered, measured expression is on another "
            "scale than the predictions: store the sums over all genes in obs['library_size'] before filtering",
            study.name,
            table.n_vars,
            median,
            n_genes,
            before,
        )
