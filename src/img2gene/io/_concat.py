"""Join sections into one study without losing images, regions, obs or uns."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import SparseEfficiencyWarning

from img2gene import _schema
from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene._study.expression import library_size

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

_KINDS = ("images", "labels", "points", "shapes")
_BY_SECTION = ("sections", "patches")


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
        not measured. In both cases ``obs["library_size"]`` counts all genes of the section.

    Returns
    -------
    A new SpatialData that shares the pixels of ``sections``. Tables of the same key are joined. If two sections have
    different values under one ``uns`` key, the later value is kept under ``<key>-<its first region>``.

    Raises
    ------
    Img2GeneError
        ``sections`` is empty or holds something else, element names occur twice, tables name their regions in different
        columns, embeddings have different widths, or the tables share no gene.

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

    parts = list(sections.values() if isinstance(sections, Mapping) else sections)
    if genes not in ("intersection", "union"):
        raise Img2GeneError(f"genes={genes!r}: choose 'intersection' or 'union'.")
    raise_problems(_part_problems(parts))
    elements = {kind: _merge_elements(parts, kind) for kind in _KINDS}
    keys = list(dict.fromkeys(key for part in parts for key in part.tables))
    tables = {key: _join_tables([part.tables[key] for part in parts if key in part.tables], key, genes) for key in keys}
    attrs: dict[str, Any] = {}
    for part in parts:
        attrs = {**part.attrs, **attrs}
    return SpatialData(**elements, tables=tables, attrs=attrs)


def _part_problems(parts: list[SpatialData]) -> list[str]:
    if not parts:
        return ["Nothing to join: `sections` is empty."]
    wrong = [type(part).__name__ for part in parts if not hasattr(part, "tables")]
    if wrong:
        return [f"Expected SpatialData objects, got {listing(wrong)}."]
    problems = []
    for kind in _KINDS:
        names = pd.Index([name for part in parts for name in getattr(part, kind)])
        twice = names[names.duplicated()].unique()
        if len(twice):
            problems.append(
                f"{kind} with the same name in two sections: {listing(twice)}. Read them with distinct section names "
                "(`section=`, or `dataset_id=` of spatialdata_io)."
            )
    return problems


def _merge_elements(parts: list[SpatialData], kind: str) -> dict[str, Any]:
    return {name: element for part in parts for name, element in getattr(part, kind).items()}


def _join_tables(tables: list[AnnData], key: str, genes: str) -> AnnData:
    import anndata as ad
    from spatialdata.models import TableModel

    if len(tables) == 1:
        return tables[0].copy()
    region_key, instance_key = _shared_keys(tables, key)
    regions = [_regions(table) for table in tables]
    prepared = _prepare(tables, key, genes)
    names = pd.Index([name for table in prepared for name in table.obs_names])
    with warnings.catch_warnings():
        # scipy warns that NaN make the matrix less sparse. A union needs them for genes that were not measured.
        warnings.simplefilter("ignore", SparseEfficiencyWarning)
        joined = ad.concat(
            prepared,
            join="outer",
            merge="unique",
            fill_value=np.nan,
            keys=[region[0] for region in regions] if names.has_duplicates else None,
            index_unique="-" if names.has_duplicates else None,
        )
    # Filling with NaN may turn float32 into float64, which doubles the memory.
    joined.X = joined.X.astype(np.result_type(*(table.X.dtype for table in prepared)))
    joined.obs = _storable(joined.obs, prepared)
    joined.uns = _merge_uns(tables, regions)
    return TableModel.parse(
        joined, region=[name for group in regions for name in group], region_key=region_key, instance_key=instance_key
    )


def _prepare(tables: list[AnnData], key: str, genes: str) -> list[AnnData]:
    """Copy the tables with their library sizes, and keep only shared genes for an intersection."""
    shared = tables[0].var_names
    for table in tables[1:]:
        shared = shared.intersection(table.var_names, sort=False)
    if genes == "intersection" and not len(shared):
        raise Img2GeneError(
            f"The tables `{key}` have no gene in common (first genes: "
            f"{'; '.join(listing(table.var_names, 3) for table in tables)}). Symbols in one and Ensembl ids in another?"
        )
    _check_widths(tables, key)
    deep = {name: table.obsm[name] for table in tables for name in table.obsm if len(table.obsm[name].shape) > 2}
    prepared = []
    for table in tables:
        # Before genes are dropped, because the library size belongs to the full transcriptome.
        sizes = library_size(table)
        table = table.copy() if genes == "union" else table[:, shared].copy()
        table.obs[_schema.LIBRARY_SIZE] = sizes
        for name in deep.keys() - set(table.obsm):
            # anndata fills missing arrays only if they have two dimensions; tokens have three.
            kind = np.result_type(deep[name].dtype, np.float16)
            table.obsm[name] = np.full((table.n_obs, *deep[name].shape[1:]), np.nan, dtype=kind)
        prepared.append(table)
    return prepared


def _check_widths(tables: list[AnnData], key: str) -> None:
    problems = []
    for name in {name for table in tables for name in table.obsm}:
        widths = {" × ".join(map(str, table.obsm[name].shape[1:])) for table in tables if name in table.obsm}
        if len(widths) > 1:
            problems.append(
                f"`obsm['{name}']` of `{key}` has different widths ({listing(sorted(widths))}). Run "
                "`img2gene.pp.embed_patches` on each section with the same arguments."
            )
    raise_problems(problems)


def _shared_keys(tables: list[AnnData], key: str) -> tuple[str, str]:
    pairs = {
        (table.uns["spatialdata_attrs"]["region_key"], table.uns["spatialdata_attrs"]["instance_key"])
        for table in tables
    }
    if len(pairs) > 1:
        raise Img2GeneError(
            f"The tables `{key}` name their regions and instances in different columns: {listing(sorted(pairs))}. "
            "Rename the columns in one of them."
        )
    return pairs.pop()


def _regions(table: AnnData) -> list[str]:
    column = table.obs[table.uns["spatialdata_attrs"]["region_key"]]
    return [str(name) for name in pd.unique(column)]


def _storable(obs: pd.DataFrame, parts: list[AnnData]) -> pd.DataFrame:
    """Give joined columns a dtype that can be written."""
    # Concatenation turns differing categories, and booleans with gaps, into objects.
    obs = obs.copy()
    for column in obs:
        dtypes = [part.obs[column].dtype for part in parts if column in part.obs]
        if all(isinstance(dtype, pd.CategoricalDtype) for dtype in dtypes):
            obs[column] = obs[column].astype("category")
        elif obs[column].dtype == object and all(pd.api.types.is_bool_dtype(dtype) for dtype in dtypes):
            obs[column] = obs[column].astype("boolean")
    return obs


def _merge_uns(tables: list[AnnData], regions: list[list[str]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for table, names in zip(tables, regions, strict=True):
        for key, value in copy.deepcopy(dict(table.uns)).items():
            if key == "spatialdata_attrs":
                continue
            conflict = _merge_package(merged, value) if key == _schema.UNS else _merge_value(merged, key, value)
            if conflict is not None:
                other = f"{key}-{names[0]}"
                merged[other] = conflict
                logger.info("uns[%r] differs between sections; the later value is kept as uns[%r]", key, other)
    return merged


def _merge_value(merged: dict[str, Any], key: str, value: Any) -> Any:
    """Merge ``value`` into ``merged[key]`` and return the part that conflicts with present values, or None."""
    if key not in merged:
        merged[key] = value
        return None
    if isinstance(value, Mapping) and isinstance(merged[key], Mapping):
        present = merged[key] = dict(merged[key])
        conflicts = {
            name: rest for name, item in value.items() if (rest := _merge_value(present, name, item)) is not None
        }
        return conflicts or None
    return None if _same(merged[key], value) else value


def _merge_package(merged: dict[str, Any], value: Mapping[str, Any]) -> dict[str, Any] | None:
    """Merge the records of this package: per-section JSON by section, and everything else as a whole."""
    container = merged.setdefault(_schema.UNS, {})
    conflicts = {}
    for key, item in value.items():
        if key in _BY_SECTION and key in container:
            joined, rest = _merge_json(container[key], item)
            container[key] = joined
        elif key in container and not _same(container[key], item):
            rest = item
        else:
            container.setdefault(key, item)
            rest = None
        if rest is not None:
            conflicts[key] = rest
    return {"format": value.get("format", _schema.FORMAT), **conflicts} if conflicts else None


def _merge_json(first: str, second: str) -> tuple[str, str | None]:
    """Join two JSON objects. If their values conflict, return both unchanged."""
    one, two = json.loads(str(first)), json.loads(str(second))
    conflict = _json_conflict(one, two)
    return (first, second) if conflict else (json.dumps(_json_union(one, two)), None)


def _json_conflict(one: dict, two: dict) -> bool:
    return any(
        _json_conflict(one[key], two[key])
        if isinstance(one[key], dict) and isinstance(two[key], dict)
        else one[key] != two[key]
        for key in one.keys() & two.keys()
    )


def _json_union(one: dict, two: dict) -> dict:
    out = dict(one)
    for key, value in two.items():
        out[key] = _json_union(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, (pd.DataFrame, pd.Series)):
        return type(one) is type(two) and one.equals(two)
    return bool(np.array_equal(np.asarray(one), np.asarray(two)))
