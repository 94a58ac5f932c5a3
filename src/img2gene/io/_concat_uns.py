"""Merge the unstructured annotations of joined tables, so that each record describes the rows it belongs to."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._study.localization import score_column
from img2gene.io._concat_checks import LOCALIZATION, PREDICTION, record, sections_of
from img2gene.io._concat_entrance import ATTRS, regions_of

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

_SPATIAL = "spatial"


def _has_embedding(table: AnnData, name: str) -> bool:
    return _schema.embedding_key(name) in table.obsm


def _has_features(table: AnnData, name: str) -> bool:
    return name in table.obsm


def _has_prediction(table: AnnData, name: str) -> bool:
    return name in table.layers or PREDICTION in table.uns[_schema.UNS]


def _has_localization(table: AnnData, name: str) -> bool:
    return any(score_column(name, tissue) in table.obs for tissue in record(table, LOCALIZATION)[name]["markers"])


_BY_NAME = {
    _schema.FEATURES: _has_features,
    "encoder": _has_embedding,
    LOCALIZATION: _has_localization,
    _schema.PREDICTED_BY: _has_prediction,
    _schema.UNCERTAINTY: _has_prediction,
}
_RECORDS = ("patches", "sections", _schema.PANEL, _schema.RASTERS, *_BY_NAME)


def merge_uns(tables: list[AnnData]) -> dict[str, Any]:
    """Merge ``uns``; a later value that contradicts is kept under ``<key>-<its first region>``."""
    merged: dict[str, Any] = {}
    for number, table in enumerate(tables):
        for key, value in _annotations(table, tables).items():
            conflict = _merge_package(merged, key, value) if _is_package(value) else _merge_value(merged, key, value)
            if conflict is not None:
                other = _free_key(merged, f"{key}-{[*regions_of(table), str(number)][0]}")
                merged[other] = conflict
                logger.info("uns[%r] differs between sections; the later value is kept as uns[%r]", key, other)
    return merged


def _annotations(table: AnnData, tables: list[AnnData]) -> dict[str, Any]:
    """Copy ``uns`` of a table, with the records of its own rows only."""
    annotations = copy.deepcopy({key: value for key, value in table.uns.items() if key != ATTRS})
    if isinstance(annotations.get(_SPATIAL), Mapping):
        # A subset keeps the thumbnails of dropped sections, which may since have changed in another part.
        elsewhere = {name for other in tables if other is not table for name in sections_of(other)} - sections_of(table)
        pictures = annotations[_SPATIAL].items()
        annotations[_SPATIAL] = {name: item for name, item in pictures if name not in elsewhere}
    if isinstance(annotations.get(_schema.UNS), Mapping):
        records = {key: json.dumps(value) for key, value in _own_records(table).items()}
        annotations[_schema.UNS] = {
            key: records.get(key, value)
            for key, value in annotations[_schema.UNS].items()
            if key in records or key not in _RECORDS
        }
    return annotations


def _own_records(table: AnnData) -> dict[str, Any]:
    """Read the records by region or by name, without entries whose rows or arrays are gone."""
    present = set(regions_of(table))
    records: dict[str, Any] = {}
    patches = record(table, "patches")
    if patches and _schema.PATCH_BBOX in table.obsm:
        records["patches"] = {**patches, "regions": _within(patches.get("regions", {}), present)}
    entries = record(table, "sections")
    records["sections"] = {name: item for name, item in entries.items() if item.get("region", None) in present}
    # A leak check needs all sections by which any part chose its genes.
    records[_schema.PANEL] = record(table, _schema.PANEL)
    records[_schema.RASTERS] = record(table, _schema.RASTERS)
    for key, is_stored in _BY_NAME.items():
        records[key] = {name: item for name, item in record(table, key).items() if is_stored(table, name)}
    return {key: value for key, value in records.items() if value}


def _within(regions: dict[str, Any], present: set[str]) -> dict[str, Any]:
    return {name: item for name, item in regions.items() if name in present}


def _is_package(value: Any) -> bool:
    """Check whether a value is a container of this package: a model, or the records."""
    return isinstance(value, Mapping) and "format" in value


def _merge_package(merged: dict[str, Any], key: str, value: Mapping[str, Any]) -> dict[str, Any] | None:
    """Merge a container of this package: records by region and name, and everything else as a whole."""
    container = merged.setdefault(key, {})
    if not isinstance(container, dict):
        return dict(value)
    conflicts = {}
    for name, item in value.items():
        if name in _RECORDS and name in container:
            container[name] = _join_records(name, container[name], item)
        elif name not in container:
            container[name] = item
        elif not _same(container[name], item):
            conflicts[name] = item
    return {"format": value["format"], **conflicts} if conflicts else None


def _join_records(name: str, first: str, second: str) -> str:
    """Join two records; checks before have made sure that they do not contradict each other."""
    one, two = json.loads(first), json.loads(second)
    if name == "encoder":
        two = {key: _join_identities(one.get(key, {}), item) for key, item in two.items()}
    if name == "patches":
        two = {**two, "regions": {**one["regions"], **two["regions"]}}
    if name == LOCALIZATION:
        two = {key: _join_localizations(one[key], item) if key in one else item for key, item in two.items()}
    if name == _schema.PANEL:
        two = {**two, "sections": sorted({*one.get("sections", []), *two.get("sections", [])})}
    return json.dumps({**one, **two})


def _join_localizations(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Join the sections of two localisations that were made alike, and their thresholds by tissue and section."""
    limits = {
        tissue: {**one["thresholds"].get(tissue, {}), **by_section} for tissue, by_section in two["thresholds"].items()
    }
    return {
        **two,
        "sections": list(dict.fromkeys([*(one.get("sections") or []), *(two.get("sections") or [])])),
        "thresholds": limits,
    }


def _join_identities(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Join what two sections record about one embedding; an entry for tokens stays if one of them has it."""
    joined = {**one, **two}
    if "regions" in one and "regions" in two:
        joined["regions"] = {**one["regions"], **two["regions"]}
    return joined


def _free_key(merged: Mapping[str, Any], key: str) -> str:
    number = 2
    name = key
    while name in merged:
        name, number = f"{key}-{number}", number + 1
    return name


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


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, (pd.DataFrame, pd.Series)):
        return type(one) is type(two) and one.equals(two)
    return bool(np.array_equal(np.asarray(one), np.asarray(two)))
