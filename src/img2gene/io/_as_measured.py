"""Find the raw counts of an AnnData as people have them, and name its genes."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._study.expression import are_counts, row_sums
from img2gene.io._measured import name_genes, symbols_of

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

_LAYERS = ("counts", "raw_counts")


def as_measured(adata: AnnData) -> AnnData:
    """Return an AnnData with raw counts in X, unique symbols, and library sizes over everything measured.

    The AnnData of the user stays as it is; without anything to change, it is returned itself.
    """
    if not adata.n_obs or adata.X is None or not adata.obs_names.is_unique:
        return adata
    duplicated = not adata.var_names.is_unique
    if are_counts(adata.X):
        sizes = _sizes_of_raw(adata)
        if sizes is None and not duplicated and symbols_of(adata) is None:
            return adata
        table = _own(adata)
        if sizes is not None:
            table.obs[_schema.LIBRARY_SIZE] = sizes
    else:
        table = _with_counts(adata)
        if table is None:
            return adata
    name_genes(table)
    return table


def _own(adata: AnnData) -> AnnData:
    with warnings.catch_warnings():
        # Symbols that several genes share are numbered later.
        warnings.filterwarnings("ignore", "Variable names are not unique")
        return adata.to_memory() if adata.isbacked else adata.copy()


def _sizes_of_raw(adata: AnnData) -> np.ndarray | None:
    """Sum the counts of all genes in ``raw``, if X holds some of them; None otherwise."""
    raw = adata.raw
    if raw is None or _schema.LIBRARY_SIZE in adata.obs or raw.shape[1] <= adata.n_vars or not are_counts(raw.X):
        return None
    sizes = row_sums(raw.X)
    if (sizes < row_sums(adata.X)).any():
        return None
    logger.info("library sizes are sums over the %d genes of `adata.raw`", raw.shape[1])
    return sizes


def _with_counts(adata: AnnData) -> AnnData | None:
    """Build a table whose X holds the counts of a layer or of ``raw``; None if there are none."""
    key = next((name for name in _LAYERS if name in adata.layers and are_counts(adata.layers[name])), None)
    if key is not None:
        logger.warning("X holds no counts, so raw counts are taken from `adata.layers['%s']`", key)
        table = _own(adata)
        table.X = table.layers.pop(key)
        sizes = _sizes_of_raw(table)
        if sizes is not None:
            table.obs[_schema.LIBRARY_SIZE] = sizes
        return table
    if adata.raw is None or not are_counts(adata.raw.X):
        return None
    logger.warning("X holds no counts, so raw counts of %d genes are taken from `adata.raw`", adata.raw.shape[1])
    parts: dict[str, Any] = {"obsm": dict(adata.obsm), "uns": dict(adata.uns)}
    table = type(adata)(adata.raw.X.copy(), obs=adata.obs.copy(), **parts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique")
        table.var = adata.raw.var.copy()
    return table
