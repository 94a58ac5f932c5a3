"""Check that sections can be joined: distinct names, tables that fit, and results that were made alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError, Problems, listing
from img2gene._study.inputs import without_tokens
from img2gene._study.localization import score_column
from img2gene._study.sections import column_texts
from img2gene.io._concat_entrance import ATTRS, entrance_problems, is_annotated, regions_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

KINDS = ("images", "labels", "points", "shapes")
# The record of a table that holds nothing but a prediction.
PREDICTION = "prediction"
LOCALIZATION = "localization"
# Entries of a localisation that are joined, as they describe single sections.
_OF_SECTIONS = ("sections", "thresholds")


def read_parts(sections: Any) -> list[SpatialData]:
    """Convert the argument ``sections`` to a list of SpatialData objects."""
    from spatialdata import SpatialData

    if isinstance(sections, SpatialData) or not isinstance(sections, Iterable) or isinstance(sections, str | bytes):
        raise Img2GeneError(
            f"sections is a {type(sections).__name__}; expected a list (or another iterable, or a mapping) of "
            "SpatialData objects."
        )
    parts = list(sections.values() if isinstance(sections, Mapping) else sections)
    if not parts:
        raise Img2GeneError("Nothing to join: `sections` is empty.")
    wrong = [type(part).__name__ for part in parts if not isinstance(part, SpatialData)]
    if wrong:
        raise Img2GeneError(f"Expected SpatialData objects, got {listing(wrong)}.")
    return parts


def name_problems(parts: list[SpatialData]) -> list[str]:
    """List names that several elements of the joined study would have."""
    problems = []
    kinds = {kind: [name for part in parts for name in getattr(part, kind)] for kind in KINDS}
    for kind, names in kinds.items():
        twice = pd.Index(names)[pd.Index(names).duplicated()].unique()
        if len(twice):
            problems.append(
                f"{kind} with the same name in two sections: {listing(twice)}. Read them with distinct section names "
                "(`section=`, or `dataset_id=` of spatialdata_io)."
            )
    kinds["tables"] = list(dict.fromkeys(name for part in parts for name in part.tables))
    # spatialdata also refuses names that differ only in case, because some file systems do not tell them apart.
    folded = pd.Index([name.casefold() for names in kinds.values() for name in dict.fromkeys(names)])
    clashes = folded[folded.duplicated()].unique()
    if len(clashes):
        problems.append(
            f"Elements or tables of different kinds, or that differ only in case, share the names {listing(clashes)}. "
            "Rename them in one of the sections."
        )
    return problems


def table_problems(parts: list[SpatialData], key: str, genes: str) -> list[str]:
    """List why the tables ``key`` of several sections cannot be joined."""
    tables = [part.tables[key] for part in parts if key in part.tables]
    names = [f"sections[{number}]['{key}']" for number, part in enumerate(parts) if key in part.tables]
    problems = [text for table, name in zip(tables, names, strict=True) for text in entrance_problems(table, name, key)]
    if problems:
        return problems
    if len(tables) < 2:
        return _absent_problems(parts, tables, key)
    problems = [*_key_problems(tables, key), *_gene_problems(tables, key, genes), *_array_problems(tables, key)]
    if problems:
        return problems
    return [*_region_problems(parts, tables, key), *_width_problems(tables, key), *_record_problems(tables, key)]


def _array_problems(tables: list[AnnData], key: str) -> list[str]:
    """List arrays that only some tables have, or have in another form, so that they cannot be joined."""
    problems = []
    if len({table.X is None for table in tables}) > 1:
        without = listing([name for table in tables if table.X is None for name in regions_of(table)], 3)
        problems.append(f"`{key}` of {without} has no X, others do. Set `table.X`, or leave out this section.")
    for name in sorted({name for table in tables for name in table.obsm}):
        arrays = [table.obsm[name] for table in tables if name in table.obsm]
        kinds = {isinstance(values, pd.DataFrame) for values in arrays}
        if len(kinds) > 1:
            problems.append(
                f"`obsm['{name}']` of `{key}` is a DataFrame in some sections and an array in others. Convert it: "
                f"`table.obsm['{name}'] = table.obsm['{name}'].to_numpy()`."
            )
    return problems


def sections_of(table: AnnData) -> set[str]:
    """List what the sections of a table may be called: ``obs["section"]`` and the regions."""
    names = column_texts(table.obs[_schema.SECTION]) if _schema.SECTION in table.obs else []
    return {*names, *regions_of(table)}


def record(table: AnnData, key: str) -> dict[str, Any]:
    """Read a record of the package as a dict; empty if it is absent."""
    try:
        value = _schema.read_json(table, key, default={})
    except Img2GeneError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Img2GeneError(
            f"`uns['{_schema.UNS}']['{key}']` of a section that names {listing(regions_of(table), 3)} is damaged. Delete "
            "it, and run the function that wrote it again."
        )
    return value


def _key_problems(tables: list[AnnData], key: str) -> list[str]:
    annotated = [table for table in tables if is_annotated(table)]
    if not annotated:
        return []
    if len(annotated) < len(tables):
        return [f"Some tables `{key}` annotate no region, others do. Parse them with `TableModel.parse` alike."]
    attrs = [table.uns[ATTRS] for table in tables]
    pairs = {(item["region_key"], item["instance_key"]) for item in attrs}
    if len(pairs) > 1:
        return [
            f"The tables `{key}` name their regions and instances in different columns: {listing(sorted(pairs))}. "
            "Rename the columns in one of them."
        ]
    column = attrs[0]["instance_key"]
    kinds = {"numbers" if pd.api.types.is_numeric_dtype(table.obs[column]) else "text" for table in tables}
    return [
        f"`obs['{column}']` of `{key}` names instances by numbers in some sections and by text in others. Convert it "
        "in one of them, together with the index of its region."
    ] * (len(kinds) > 1)


def _gene_problems(tables: list[AnnData], key: str, genes: str) -> list[str]:
    problems = []
    if genes == "intersection" and all(table.n_vars for table in tables) and not len(shared_genes(tables)):
        problems.append(
            f"The tables `{key}` have no gene in common (first genes: "
            f"{'; '.join(listing(table.var_names, 3) for table in tables)}). Symbols in one and Ensembl ids in another?"
        )
    return problems


def shared_genes(tables: list[AnnData]) -> pd.Index:
    """List the genes that all tables have, in the order of the first table."""
    shared = tables[0].var_names
    for table in tables[1:]:
        shared = shared.intersection(table.var_names, sort=False)
    return shared


def _section_labels(table: AnnData) -> set[str]:
    return set(column_texts(table.obs[_schema.SECTION].dropna())) if _schema.SECTION in table.obs else set()


def _region_problems(parts: list[SpatialData], tables: list[AnnData], key: str) -> list[str]:
    names = pd.Index([name for table in tables for name in regions_of(table)])
    problems = []
    twice = names[names.duplicated()].unique()
    if len(twice):
        problems.append(
            f"Rows of several tables `{key}` name the regions {listing(twice)}, so their spots would be counted twice. "
            "Keep only the rows of each section's own regions; `sdata.subset(…)` does so with `filter_tables=True`."
        )
    labels = [_section_labels(table) for table in tables]
    shared = sorted(name for name in set().union(*labels) if sum(name in names for names in labels) > 1)
    if shared:
        problems.append(
            f"Several tables `{key}` call a section {listing(shared)}, so spots of different slides would be taken for one "
            f"section. Give each its own name: `sdata['{key}'].obs['{_schema.SECTION}'] = …`."
        )
    return problems + _absent_problems(parts, tables, key)


def _absent_problems(parts: list[SpatialData], tables: list[AnnData], key: str) -> list[str]:
    """List regions that rows name and no section has; parts without any region have lost all of them on purpose."""
    names = dict.fromkeys(name for table in tables for name in regions_of(table))
    present = {name for part in parts for kind in ("shapes", "labels", "points") for name in getattr(part, kind)}
    absent = [name for name in names if name not in present]
    if not absent or not present:
        return []
    return [
        f"Rows of `{key}` name the regions {listing(absent)}, which no section has (available: "
        f"{listing(sorted(present))}). Leave out these rows, or add the regions."
    ]


def _width_problems(tables: list[AnnData], key: str) -> list[str]:
    problems = []
    for name in sorted({name for table in tables for name in table.obsm}):
        widths = {" × ".join(map(str, np.shape(table.obsm[name])[1:])) for table in tables if name in table.obsm}
        if len(widths) > 1:
            problems.append(
                f"`obsm['{name}']` of `{key}` has different widths ({listing(sorted(widths))}). {_again(name)}"
            )
    return problems


def _again(name: str) -> str:
    """Say how an array of ``obsm`` is made alike in all sections."""
    if name == _schema.PATHWAYS:
        return f"Delete it (`del table.obsm['{name}']`), and run `img2gene.pp.score_pathways` on the joined study."
    return "Run `img2gene.pp.embed_patches` on each section with the same arguments."


def _record_problems(tables: list[AnnData], key: str) -> list[str]:
    check = Problems()
    with check.collect():
        check.messages += _patch_problems(tables, key)
        check.messages += _embedding_problems(tables, key)
        check.messages += _features_problems(tables, key)
        check.messages += _prediction_problems(tables, key)
        check.messages += _localization_problems(tables, key)
    return check.messages


def _patch_problems(tables: list[AnnData], key: str) -> list[str]:
    """List settings of the patches that differ between sections."""
    stored = [(table, record(table, "patches")) for table in tables if _schema.PATCH_BBOX in table.obsm]
    settings = [(table, {name: v for name, v in item.items() if name != "regions"}) for table, item in stored]
    return [
        f"Patches of `{key}` were extracted with different settings: {difference}. Run `img2gene.pp.extract_patches` on "
        "each section with the same arguments, and embed again."
        for difference in differences(settings)
    ]


def _embedding_problems(tables: list[AnnData], key: str) -> list[str]:
    """List embeddings of one name that were made with different settings, or of which some have no record."""
    known = [record(table, "encoder") for table in tables]
    problems = []
    for name in sorted({name for item in known for name in item}):
        column, tokens = _schema.embedding_key(name), _schema.tokens_key(name)
        stored = [(table, item.get(name)) for table, item in zip(tables, known, strict=True) if column in table.obsm]
        with_tokens = all(tokens in table.obsm for table, _ in stored)
        settings = [(table, _settings(identity, with_tokens)) for table, identity in stored]
        problems += [
            f"`obsm['{column}']` of `{key}` was made with different settings: {difference}. {_again(column)}"
            for difference in differences(settings)
        ]
    return problems


def _features_problems(tables: list[AnnData], key: str) -> list[str]:
    """List matrices of features that were described as different, or of which some are not described."""
    known = [record(table, _schema.FEATURES) for table in tables]
    return [
        f"Features `obsm['{name}']` of `{key}` are described differently: {difference}. Correct it with "
        f"`img2gene.pp.describe_features(sdata, {name!r}, …)` in each section."
        for name in sorted({name for item in known for name in item})
        for difference in differences(
            [(table, item.get(name)) for table, item in zip(tables, known, strict=True) if name in table.obsm]
        )
    ]


def _settings(identity: Any, with_tokens: bool) -> dict[str, Any] | None:
    """Take what has to agree between embeddings: nothing that describes single regions."""
    if not isinstance(identity, dict):
        return None
    # Sections with and without tokens can be joined: the tokens of the others are NaN, which models refuse.
    facts = identity if with_tokens else without_tokens(identity)
    return {name: value for name, value in facts.items() if name != "regions"}


def _prediction_problems(tables: list[AnnData], key: str) -> list[str]:
    """List predictions of one name that different models made, or whose intervals have different levels."""
    problems = []
    again = "Delete them in each section, and run `img2gene.tl.predict` on the joined study."
    for kind in (_schema.PREDICTED_BY, _schema.UNCERTAINTY):
        known = [record(table, kind) for table in tables]
        for name in sorted({name for item in known for name in item}):
            stored = [
                (table, item.get(name)) for table, item in zip(tables, known, strict=True) if name in table.layers
            ]
            if kind == _schema.UNCERTAINTY:
                # A prediction without intervals has NaN there once it is joined.
                stored = [(table, item) for table, item in stored if item is not None]
            problems += [
                f"Predictions `layers['{name}']` of `{key}` differ: {difference}. {again}"
                for difference in differences(stored)
            ]
    made = [(table, item) for table in tables if (item := record(table, PREDICTION))]
    return problems + [f"Predictions in the tables `{key}` differ: {text}. {again}" for text in differences(made)]


def _localization_problems(tables: list[AnnData], key: str) -> list[str]:
    """List localisations of one name that were made with different markers, models or other settings."""
    known = [record(table, LOCALIZATION) for table in tables]
    problems = []
    for name in sorted({name for item in known for name in item}):
        tissues = {tissue for item in known for tissue in item.get(name, {}).get("markers", {})}
        stored = [
            (table, _without(item.get(name), _OF_SECTIONS))
            for table, item in zip(tables, known, strict=True)
            if any(score_column(name, tissue) in table.obs for tissue in tissues)
        ]
        problems += [
            f"Localisations {name!r} of `{key}` differ: {difference}. Delete their columns in each section, and run "
            "`img2gene.tl.localize` on the joined study."
            for difference in differences(stored)
        ]
    return problems


def _without(record: dict[str, Any] | None, names: tuple[str, ...]) -> dict[str, Any] | None:
    return None if record is None else {name: value for name, value in record.items() if name not in names}


def differences(settings: Sequence[tuple[AnnData, dict[str, Any] | None]]) -> list[str]:
    """Describe how the settings of several tables differ, with the regions of the first two that do; at most one text."""
    if not settings:
        return []
    first, one = settings[0]
    for table, other in settings[1:]:
        if one == other:
            continue
        where = f"({listing(regions_of(first), 3)})", f"({listing(regions_of(table), 3)})"
        if not isinstance(one, dict) or not isinstance(other, dict):
            return [
                f"they are recorded for {where[0 if other is None else 1]}, not for {where[1 if other is None else 0]}"
            ]
        names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
        return [
            "; ".join(f"{name} {one.get(name)!r} {where[0]} and {other.get(name)!r} {where[1]}" for name in names[:5])
        ]
    return []
