"""Find the raw counts of an AnnData as people have them, and name its genes."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._errors import listing
from img2gene._study.expression import are_counts, row_sums
from img2gene.io._measured import GENE_IDS, SYMBOLS, is_control, name_genes, symbols_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger(__name__)

_LAYERS = ("counts", "raw_counts")
_KINDS, _GENES, _TOTAL = "feature_types", "Gene Expression", "total_counts"


def as_measured(adata: AnnData) -> AnnData:
    """Return an AnnData with raw counts in X, unique symbols, and library sizes over everything measured.

    The AnnData of the user stays as it is; without anything to change, it is returned itself.
    """
    if not adata.n_obs or not adata.obs_names.is_unique:
        return adata
    if adata.X is None:
        table = _with_counts(adata)
        return adata if table is None else as_measured(table)
    is_gene = _are_genes(adata.var)
    if not is_gene.all():
        adata = _genes_only(adata, is_gene)
    duplicated = not adata.var_names.is_unique
    if are_counts(adata.X):
        sizes = _sizes_of_all(adata)
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


def _layer_of_counts(adata: AnnData) -> str | None:
    return next((name for name in _LAYERS if name in adata.layers and are_counts(adata.layers[name])), None)


def _are_genes(var: pd.DataFrame) -> np.ndarray:
    """Mark genes among the features, bool (n_features,): no control probes, antibodies or other kinds of features."""
    are_genes = np.array([not is_control(name) for name in var.index], dtype=bool)
    if _KINDS in var and (var[_KINDS] == _GENES).any():
        are_genes &= (var[_KINDS] == _GENES).to_numpy(dtype=bool)
    return are_genes


def _genes_only(adata: AnnData, is_gene: np.ndarray) -> AnnData:
    """Leave out what measures no gene, and sums that counted it."""
    others = adata.var_names[~is_gene]
    logger.warning("left out %d features that measure no gene (%s)", len(others), listing(others, 3))
    table = _own(adata[:, is_gene])
    table.obs = table.obs.drop(columns=[_TOTAL], errors="ignore")
    return table


def _own(adata: AnnData) -> AnnData:
    with warnings.catch_warnings():
        # Symbols that several genes share are numbered later.
        warnings.filterwarnings("ignore", "Variable names are not unique")
        return adata.to_memory() if adata.isbacked else adata.copy()


def _sizes_of_all(adata: AnnData) -> np.ndarray | None:
    """Find the library sizes over all genes, if X holds counts of some of them; None otherwise."""
    if _schema.LIBRARY_SIZE in adata.obs:
        return None
    counted, raw = row_sums(adata.X), adata.raw
    sizes: np.ndarray | None
    if raw is not None and raw.shape[1] > adata.n_vars and are_counts(raw.X):
        measured = _are_genes(raw.var)
        sizes = row_sums(raw.X[:, measured])
        if not (sizes < counted).any():
            logger.info("library sizes are sums over the %d genes of `adata.raw`", measured.sum())
            return sizes
    sizes = _sizes_of_scanpy(adata, counted)
    n_measured = 0 if raw is None else int(_are_genes(raw.var).sum())
    if sizes is None and n_measured > adata.n_vars:
        logger.warning(
            "library sizes are sums over the %d genes of X, but `adata.raw` has %d: normalised expression would be too high. Set "
            "`adata.obs['%s']` to the sums over all genes",
            adata.n_vars,
            n_measured,
            _schema.LIBRARY_SIZE,
        )
    return sizes


def _sizes_of_scanpy(adata: AnnData, counted: np.ndarray) -> np.ndarray | None:
    """Take the sums that ``scanpy.pp.calculate_qc_metrics`` wrote while the table had more genes; None without any."""
    if _TOTAL not in adata.obs or adata.obs[_TOTAL].dtype.kind not in "uif":
        return None
    sizes = adata.obs[_TOTAL].to_numpy(dtype=np.float64)
    # Sums of normalised expression are no whole numbers; those of other spots are less than the counts of some.
    if not are_counts(sizes[:, None]) or (sizes < counted).any() or (sizes == counted).all():
        return None
    logger.info("library sizes are those of `obs['%s']`, as X holds only a part of what was counted", _TOTAL)
    return sizes


def _with_counts(adata: AnnData) -> AnnData | None:
    """Build a table whose X holds the counts of a layer or of ``raw``; None if there are none."""
    key = _layer_of_counts(adata)
    if key is not None:
        logger.warning("X holds no counts, so raw counts are taken from `adata.layers['%s']`", key)
        table = _own(adata)
        table.X = table.layers.pop(key)
        sizes = _sizes_of_all(table)
        if sizes is not None:
            table.obs[_schema.LIBRARY_SIZE] = sizes
        return table
    if adata.raw is None or not are_counts(adata.raw.X):
        if adata.n_vars:
            logger.warning(
                "X holds no raw counts, and neither do `layers` nor `raw` (layers: %s). Models need them: put them into X before "
                "training or scoring",
                listing(adata.layers) or "none",
            )
        return None
    logger.warning("X holds no counts, so raw counts of %d genes are taken from `adata.raw`", adata.raw.shape[1])
    parts: dict[str, Any] = {"obsm": dict(adata.obsm), "uns": dict(adata.uns)}
    table = type(adata)(adata.raw.X.copy(), obs=adata.obs.copy(), **parts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique")
        table.var = _described(adata.raw.var, adata.var)
    is_gene = _are_genes(table.var)
    table = table if is_gene.all() else _genes_only(table, is_gene)
    sizes = _sizes_of_all(table)
    if sizes is not None:
        table.obs[_schema.LIBRARY_SIZE] = sizes
    return table


def _described(raw: pd.DataFrame, var: pd.DataFrame) -> pd.DataFrame:
    """Add the symbols and identifiers that ``var`` has for the genes of ``raw``; other genes have none."""
    known = [name for name in (*SYMBOLS, GENE_IDS) if name in var and name not in raw]
    return raw.join(var[known]) if known and var.index.is_unique else raw.copy()
