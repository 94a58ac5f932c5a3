"""Warn of sections whose library sizes would be summed over some of the genes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from img2gene import _schema
from img2gene._errors import listing
from img2gene._study.expression import count_problems, row_sums
from img2gene.io._concat_entrance import regions_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

# Sums over the same genes agree up to rounding, and a panel of genes misses much more than this.
_LEAST_RATIO = 1.01


def warn_of_filtered_genes(parts: list[SpatialData], key: str) -> None:
    """Warn of tables ``key`` without library sizes that have fewer genes than the other tables, or than their sizes count."""
    # Tables of tiles have no genes, and tables of predictions may have no counts.
    tables = {
        f"sections[{number}]['{key}']": part.tables[key]
        for number, part in enumerate(parts)
        if key in part.tables and part.tables[key].n_vars and part.tables[key].X is not None
    }
    n_genes = len({name for table in tables.values() for name in table.var_names})
    for name, table in tables.items():
        if _schema.LIBRARY_SIZE in table.obs:
            continue
        if table.n_vars < n_genes:
            reason = f"all sections together have {n_genes:,} genes"
        elif any(_counts_more_genes(other) for other in tables.values() if other.n_vars == n_genes):
            reason = "library sizes of other sections count more genes than their tables hold"
        else:
            continue
        if not count_problems(table.X, ""):
            _warn(name, table, reason)


def _counts_more_genes(table: AnnData) -> bool:
    """Check whether the library sizes of a table are larger than its counts, because genes were left out."""
    if _schema.LIBRARY_SIZE not in table.obs or not table.n_obs or count_problems(table.X, ""):
        return False
    sizes = table.obs[_schema.LIBRARY_SIZE].to_numpy(dtype=np.float64)
    return bool(np.median(sizes) > _LEAST_RATIO * np.median(row_sums(table.X)))


def _warn(name: str, table: AnnData, reason: str) -> None:
    logger.warning(
        "`%s` (%s) has no obs['library_size'], so its counts are normalised by their sum over its %s genes, but %s. If genes "
        "of this section were filtered, its expression is on another scale than that of the others: store the sums over all "
        "genes in obs['library_size'] before filtering, and join again",
        name,
        listing(regions_of(table), 3),
        f"{table.n_vars:,}",
        reason,
    )
