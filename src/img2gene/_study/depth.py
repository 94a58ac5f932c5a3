"""Compare library sizes with the counts they belong to, and with those that a model was trained on."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from img2gene import _schema
from img2gene._study.expression import library_size, row_sums
from img2gene._study.study import Study

logger = logging.getLogger(__name__)

# A table with a few rare genes can hold less than a hundredth of a spot's counts.
_LARGEST_RATIO = 1000
# Beyond these, filtered genes are likelier than sections of another depth.
_LEAST_GENES, _LARGEST_CHANGE = 0.9, 3.0


def training_depth(study: Study, rows: np.ndarray) -> dict[str, Any]:
    """Record library sizes of the training spots and the genes in the table; warn if the sizes cannot be right."""
    table = study.table
    median, counted = (float(np.median(values[rows])) for values in (library_size(table), row_sums(table.X)))
    if median > _LARGEST_RATIO * counted:
        logger.warning(
            "obs['library_size'] is %.3g in the median training spot, but X holds only %.3g counts of it: expression normalised "
            "by such sizes is close to 0. Check that the column holds the counts of each spot over all genes",
            median,
            counted,
        )
    return {"median_library_size": median, "n_genes_in_table": table.n_vars}


def report_other_depth(study: Study, trained: Any) -> None:
    """Warn if sums over the genes of this table are no library sizes as in the training."""
    table = study.table
    if not isinstance(trained, dict) or _schema.LIBRARY_SIZE in table.obs or not table.n_obs:
        # Models of earlier versions, and those of other labels than counts, have no record.
        return
    n_genes, before = trained.get("n_genes_in_table", 0), trained.get("median_library_size", 0)
    median = float(np.median(library_size(table)))
    changed = before > 0 and not 1 / _LARGEST_CHANGE <= median / before <= _LARGEST_CHANGE
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
