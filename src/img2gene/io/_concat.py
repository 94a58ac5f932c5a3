"""Join sections into one study without losing images, regions, obs or uns."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import SparseEfficiencyWarning

from img2gene import _schema
from img2gene._checks import Arguments, name_text
from img2gene._errors import listing, raise_problems
from img2gene._study.expression import count_problems, row_sums
from img2gene.io._concat_checks import KINDS, name_problems, read_parts, shared_genes, table_problems
from img2gene.io._concat_depth import warn_of_filtered_genes
from img2gene.io._concat_entrance import ATTRS, element_problems, regions_of
from img2gene.io._concat_uns import merge_uns

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)


def concat_sections(
    sections: Iterable[SpatialData] | Mapping[str, SpatialData], *, genes: str = "intersection"
) -> SpatialData:
    """Join sections (or studies) into one study.

    :func:`spatialdata.concatenate` drops ``uns``. This function keeps it, with patch specifications and thumbnails.

    Parameters
    ----------
    sections
        SpatialData objects with distinct element names. Of a mapping, only the values are used.
    genes
        ``"intersection"`` keeps the genes that all tables share. ``"union"`` keeps all genes, with NaN where a gene was
        not measured. In both cases ``obs["library_size"]`` counts all genes of the section. A table without this column
        gets the sums over its genes, with a warning if another table shows that genes were left out.

    Returns
    -------
    A new SpatialData that shares the pixels of ``sections``. Tables of the same key are joined. If two sections have
    different values under one ``uns`` key, the later value is kept under ``<key>-<its first region>``.

    Raises
    ------
    Img2GeneError
        ``sections`` is empty or holds something else, element names occur twice, a table or region cannot be read
        (duplicate genes or spots, rows without a spot, positions or counts that are no numbers, wrong library sizes), rows
        name regions that are absent or that several tables describe, tables name their regions in different columns, the
        tables share no gene, or patches, embeddings or predictions of one name were made with different settings. The
        message lists all problems, before anything is joined.

    Examples
    --------
    >>> import img2gene as ig
    >>> one = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> two = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60).subset(
    ...     ["P3_S1_image", "P3_S1_spots"]
    ... )
    >>> sorted(ig.io.concat_sections([one, two]).images)
    ['P1_S1_image', 'P2_S1_image', 'P3_S1_image']
    """
    from spatialdata import SpatialData

    parts = read_parts(sections)
    check = Arguments(name_problems(parts))
    genes = check.choice("genes", genes, ("intersection", "union"))
    check.raise_all()
    keys = list(dict.fromkeys(key for part in parts for key in part.tables))
    raise_problems(element_problems(parts) + [text for key in keys for text in table_problems(parts, key, genes)])
    for key in keys:
        warn_of_filtered_genes(parts, key)
    elements = {kind: _merge_elements(parts, kind) for kind in KINDS}
    tables = {
        key: _join_tables([_in_memory(part.tables[key]) for part in parts if key in part.tables], genes) for key in keys
    }
    return SpatialData(**elements, tables=tables, attrs=_merge_attrs(parts))


def _merge_attrs(parts: list[SpatialData]) -> dict[str, Any]:
    """Join attributes; those that hold entries, such as one for each image, get the entries of all parts."""
    attrs: dict[str, Any] = {}
    for part in parts:
        for key, value in part.attrs.items():
            both = isinstance(value, Mapping) and isinstance(attrs.get(key), Mapping)
            attrs[key] = {**value, **attrs[key]} if both else attrs.get(key, value)
    return attrs


def _merge_elements(parts: list[SpatialData], kind: str) -> dict[str, Any]:
    return {name: element for part in parts for name, element in getattr(part, kind).items()}


def _in_memory(table: AnnData) -> AnnData:
    return table.to_memory() if table.isbacked else table


def _join_tables(tables: list[AnnData], genes: str) -> AnnData:
    import anndata as ad

    if len(tables) == 1:
        return _annotate(tables[0].copy(), tables)
    prepared = _prepare(tables, genes)
    names = pd.Index([name for table in prepared for name in table.obs_names])
    labels = [[*regions_of(table), str(number)][0] for number, table in enumerate(tables)]
    with warnings.catch_warnings():
        # scipy warns that NaN make the matrix less sparse. A union needs them for genes that were not measured.
        warnings.simplefilter("ignore", SparseEfficiencyWarning)
        joined = ad.concat(
            prepared,
            join="outer",
            merge="unique",
            fill_value=np.nan,
            keys=labels if names.has_duplicates else None,
            index_unique="-" if names.has_duplicates else None,
        )
    if all(table.X is not None for table in prepared):
        # Filling with NaN may turn float32 into float64, which doubles the memory.
        joined.X = joined.X.astype(np.result_type(*(table.X.dtype for table in prepared)))
    joined.obs = _storable(joined.obs, prepared)
    joined.uns = merge_uns(tables)
    _log_lost(joined, tables)
    return _annotate(joined, tables)


def _annotate(table: AnnData, tables: list[AnnData]) -> AnnData:
    """Let a table annotate the regions that its rows name, and no others."""
    from spatialdata.models import TableModel

    attrs = tables[0].uns.get(ATTRS)
    if attrs is None:
        return TableModel.parse(table)
    regions = list(dict.fromkeys(name for part in tables for name in regions_of(part)))
    stored = table.uns.pop(ATTRS, attrs)
    if len(tables) == 1 and set(np.atleast_1d(stored["region"]).tolist()) == set(regions):
        table.uns[ATTRS] = stored
        return table
    return TableModel.parse(table, region=regions, region_key=attrs["region_key"], instance_key=attrs["instance_key"])


def _prepare(tables: list[AnnData], genes: str) -> list[AnnData]:
    """Copy the tables with their library sizes, and keep only shared genes for an intersection."""
    shared = shared_genes(tables)
    deep = {name: table.obsm[name] for table in tables for name in table.obsm if np.ndim(table.obsm[name]) > 2}
    prepared = []
    for table in tables:
        part = table.copy() if genes == "union" else table[:, shared].copy()
        if _schema.LIBRARY_SIZE not in table.obs and table.n_vars and not count_problems(table.X, "X"):
            # Row sums of the shared genes would miss the counts of the others.
            part.obs[_schema.LIBRARY_SIZE] = row_sums(table.X)
        for name in deep.keys() - set(part.obsm):
            # anndata fills missing arrays only if they have two dimensions; tokens have three.
            kind = np.result_type(deep[name].dtype, np.float16)
            part.obsm[name] = np.full((part.n_obs, *deep[name].shape[1:]), np.nan, dtype=kind)
        prepared.append(part)
    return prepared


def _storable(obs: pd.DataFrame, parts: list[AnnData]) -> pd.DataFrame:
    """Give joined columns a dtype that can be written."""
    # Concatenation turns differing categories, booleans with gaps, and text among numbers into objects.
    obs = obs.copy()
    for column in obs:
        dtypes = [part.obs[column].dtype for part in parts if column in part.obs]
        categorical = all(isinstance(dtype, pd.CategoricalDtype) for dtype in dtypes)
        if obs[column].dtype == object and all(pd.api.types.is_bool_dtype(dtype) for dtype in dtypes):
            obs[column] = obs[column].astype("boolean")
        elif categorical or obs[column].dtype == object:
            if obs[column].dropna().map(type).map(lambda kind: issubclass(kind, str)).nunique() > 1:
                logger.info("obs[%r] holds text and numbers; it is joined as text", column)
                obs[column] = obs[column].map(name_text, na_action="ignore")
                categorical = True
            obs[column] = obs[column].astype("category") if categorical else obs[column]
    return obs


def _log_lost(joined: AnnData, tables: list[AnnData]) -> None:
    """Log what a joined table no longer has, because it differs between sections or belongs to one alone."""
    lost = [
        f"{slot}[{name!r}]"
        for slot in ("var", "varm", "obsp", "varp")
        for name in dict.fromkeys(name for table in tables for name in getattr(table, slot))
        if name not in getattr(joined, slot)
    ]
    if lost:
        logger.info("not joined, because sections differ or it belongs to one section alone: %s", listing(lost, 20))
