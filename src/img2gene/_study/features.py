"""Take any matrix as features: one in obsm, or a table with a row for each spot, as LazySlide writes them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing, raise_problems
from img2gene._study.geometry import locate_region, recorded
from img2gene._study.matrices import in_memory
from img2gene._study.microns import resolve_mpp
from img2gene._study.study import Study

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

# Positions of spots and patches in obsm.
_NO_FEATURES = (_schema.PATCH_BBOX, _schema.POSITIONS, "spatial")
# Entries in which two records of features can differ, and their names in messages.
_FACTS = {
    "revision": "encoder revision",
    "patch_um": "fields of view (µm)",
    "input_px": "input size (px)",
    "orientations": "orientations",
    "width": "width",
}
# Revision of features from a source that records none, such as LazySlide.
UNKNOWN_REVISION = "unknown"
# What the digest of numbered columns in another order begins with.
_MOVED = "numbers moved: "


def with_features(study: Study, features: str) -> Study:
    """Return the study with the matrix ``features`` in ``obsm``, as numbers in the order of its rows.

    Without patches, positions in µm are added, too, if they can be found.
    """
    obsm = dict(study.table.obsm) | {features: _matrix(study, features)}
    return with_positions(Study(study.sdata, study.table_key, _with_obsm(study.table, obsm)))


def with_positions(study: Study) -> Study:
    """Return a study without patches with the positions of its spots in µm, if they can be found; others as they are."""
    obsm = study.table.obsm
    if _schema.PATCH_BBOX in obsm or _schema.POSITIONS in obsm:
        return study
    positions = _positions(study)
    if positions is None:
        return study
    return Study(study.sdata, study.table_key, _with_obsm(study.table, {**obsm, _schema.POSITIONS: positions}))


def features_identity(study: Study, features: str) -> dict[str, Any]:
    """Return what is recorded about a matrix that :func:`with_features` has added.

    An embedding of this package keeps the record of its encoder, so both names of it mean the same input.
    """
    for name, identity in study.record("encoder", {}).items():
        if _schema.embedding_key(name) == features:
            return identity
    width = int(study.table.obsm[features].shape[1])
    known = study.record(_schema.FEATURES, {}).get(features, {})
    columns = _columns(study, features)
    named = {"columns": columns} if columns else {}
    if known and known["width"] != width:
        raise Img2GeneError(
            f"`{features}` has {width} columns, its record in `{study.name}` says {known['width']}. Describe it again: "
            f"`img2gene.pp.describe_features(sdata, {features!r}, …{study.table_argument})`."
        )
    return {"name": _name(study, features), **known, "matrix": features, "width": width, **named}


def is_described(identity: Mapping[str, Any]) -> bool:
    """Whether it is known which encoder computed the features."""
    return "revision" in identity or "input_px" in identity


def differences(trained: Mapping[str, Any], stored: Mapping[str, Any], where: str) -> list[str]:
    """List what is known to differ between the features of the training and those of an object."""
    both = is_described(trained) and is_described(stored)
    names = {"name": "encoder", **_FACTS} if both else _FACTS
    pairs = {label: (trained.get(fact), stored.get(fact)) for fact, label in names.items()}
    messages = [
        f"The model was trained with {label} {one}, {where} has {other}."
        for label, (one, other) in pairs.items()
        if one is not None and other is not None and one != other
    ]
    if both and "orientations" in trained and "orientations" in stored:
        # Embeddings of this package without these entries have no augmentation, and images as they were scanned.
        messages += [
            f"The model was trained with {label} {trained.get(fact)}, {where} has {stored.get(fact)}."
            for fact, label in (("augment", "augmentation"), ("normalized", "stain normalisation"))
            if trained.get(fact) != stored.get(fact)
        ]
    columns = [facts.get("columns") for facts in (trained, stored)]
    # Where only one matrix has names, nothing can be compared. Numbers out of order show that columns were moved.
    are_moved = any(str(names).startswith(_MOVED) for names in columns)
    if not messages and (all(columns) or are_moved) and columns[0] != columns[1]:
        messages.append(
            f"The columns of {where} have other names, or another order, than those of the training's `{trained['matrix']}`. A "
            "model takes features by their place: bring the columns into the order of the training."
        )
    return messages


def trained_features(study: Study, trained: dict[str, Any], features: str | None) -> tuple[Study, dict[str, Any]]:
    """Find the features that a model takes; refuse those of another encoder, revision or width.

    ``features`` names the matrix; None takes the one that has the name of the training's.
    """
    key = trained.get("matrix") if features is None else features
    if key is None:
        raise Img2GeneError("The model was trained on an embedding; name the matrix to take in its place.")
    study = with_features(study, key)
    stored = features_identity(study, key)
    raise_problems(differences(trained, stored, f"`{key}` of `{study.name}`"))
    if is_described(trained) and not is_described(stored):
        logger.warning(
            "it is not recorded which encoder computed `%s` of `%s`; it is taken to be %s at revision %s, as in the training. Say so "
            "with `img2gene.pp.describe_features`",
            *(key, study.name, trained["name"], trained.get("revision")),
        )
    return study, stored


def matrices(study: Study) -> list[str]:
    """Name the matrices of a study that can be features: in obsm, and tables of the same regions."""
    obsm = [
        name
        for name, values in study.table.obsm.items()
        if name not in _NO_FEATURES and len(getattr(values, "shape", ())) == 2
    ]
    tables = [
        name
        for name, table in study.sdata.tables.items()
        if name != study.table_key and set(_keys(table)) & set(_keys(study.table, _instance_key(table)))
    ]
    return [*obsm, *(f"tables[{name!r}]" for name in tables)]


def _columns(study: Study, features: str) -> str | None:
    """Compute a digest of the names of the columns in their order; None for columns without names, or with the numbers 0, 1, …"""
    table, tables = study.stored_table, study.sdata.tables
    if features in table.obsm:
        names = getattr(table.obsm[features], "columns", ())
    else:
        names = tables[features].var_names if features in tables else ()
    names = [str(name) for name in names]
    numbers = [str(place) for place in range(len(names))]
    if names == numbers:
        return None
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    return f"{_MOVED}{digest}" if set(names) == set(numbers) else digest


def _matrix(study: Study, features: str) -> Any:
    """Read a matrix as numbers (n_obs, width); arrays in a store stay there."""
    table, tables = study.table, study.sdata.tables
    if features in _NO_FEATURES:
        raise Img2GeneError(
            f"`{study.name}.obsm[{features!r}]` holds positions, not features of the image. Choose among {listing(matrices(study))}."
        )
    if features in table.obsm:
        return _numbers(table.obsm[features], f"`{study.name}.obsm['{features}']`")
    if features in tables and features != study.table_key:
        rows = _rows_in(study, features)
        return _numbers(tables[features].X, f"`sdata.tables['{features}']`")[rows]
    hint = (
        f"Name a matrix of `obsm`, or a table with a row for each spot of `{study.name}`. Embed patches here with "
        "`img2gene.pp.embed_patches`."
    )
    raise MissingKeyError(missing(features, f"{study.name}.obsm and sdata.tables", matrices(study), hint))


def _numbers(values: Any, name: str) -> Any:
    """Convert a matrix to a dense array of real numbers; name what is none."""
    if isinstance(values, pd.DataFrame):
        text = [
            str(column)
            for column, dtype in values.dtypes.items()
            if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype)
        ]
        if text:
            raise Img2GeneError(f"{name} has columns that are no numbers ({listing(text, 5)}); leave them out.")
        values = values.to_numpy(dtype=np.float32, na_value=np.nan)
    if values is None or len(getattr(values, "shape", ())) != 2 or not values.shape[1]:
        raise Img2GeneError(
            f"{name} has shape {getattr(values, 'shape', None)}; features are a matrix (n_spots, width)."
        )
    if not hasattr(values, "compute"):
        values = in_memory(values)
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise Img2GeneError(f"{name} masks {int(np.ma.getmaskarray(values).sum())} values; fill them.")
    if values.dtype.kind not in "iuf":
        raise Img2GeneError(f"{name} holds {values.dtype} values, not numbers.")
    return values.toarray() if sp.issparse(values) else values


def _rows_in(study: Study, features: str) -> np.ndarray:
    """Find the row of each spot in a table of features; refuse a table of other spots."""
    other = study.sdata.tables[features]
    spots, described = pd.Index(_keys(study.table, _instance_key(other))), pd.Index(_keys(other))
    what = f"`sdata.tables['{features}']`"
    if not described.is_unique:
        raise Img2GeneError(f"{what} names {int(described.duplicated().sum())} spots twice; each needs one row.")
    rows = described.get_indexer(spots)
    if (rows >= 0).all():
        return rows
    regions = [sorted({region for region, _ in keys}) for keys in (spots, described)]
    absent = spots[rows < 0]
    raise Img2GeneError(
        f"{what} holds features of other spots or tiles: {len(absent)} of {len(spots)} spots of `{study.name}` have no row in it "
        f"({listing((f'{region} {spot}' for region, spot in absent), 3)}). `{study.name}` annotates {listing(regions[0], 5)}, the "
        f"table of features {listing(regions[1], 5) if len(described) else 'nothing'}. Extract features of the same spots, or choose "
        f"among {listing(matrices(study))}."
    )


def _keys(table: AnnData, instance_key: str | None = None) -> list[tuple[str, str]]:
    """Name the region and the instance of each row; empty for a table that annotates nothing.

    A table that has the column ``instance_key`` of another one names its rows as that one does: tiles of LazySlide have
    numbers, which need not be those of their squares.
    """
    attrs = table.uns.get("spatialdata_attrs")
    if not isinstance(attrs, Mapping) or not {attrs.get("region_key"), attrs.get("instance_key")} <= {*table.obs}:
        return []
    instance = instance_key if instance_key in table.obs else attrs["instance_key"]
    columns = [table.obs[key].astype(str).tolist() for key in (attrs["region_key"], instance)]
    return list(zip(*columns, strict=True))


def _instance_key(table: AnnData) -> str | None:
    """Return the column of a table that names its instances."""
    attrs = table.uns.get("spatialdata_attrs")
    return attrs.get("instance_key") if isinstance(attrs, Mapping) else None


def _name(study: Study, features: str) -> str:
    """Name the encoder of a matrix by its key: `X_uni2` in obsm and LazySlide's table `uni2_tiles` are `uni2`."""
    for region in study.regions:
        features = features.removesuffix(f"_{region}")
    return features.removeprefix("X_") or features


def _positions(study: Study) -> np.ndarray | None:
    """Find row and column of each spot in µm without patches, float64 (n_obs, 2); None if microns are not known."""
    positions = np.full((study.n_obs, 2), np.nan)
    spatial = study.table.obsm.get("spatial")
    for region, rows in study.regions.items():
        mpp = recorded(study.table, region).get("mpp")
        if mpp and spatial is not None:
            positions[rows] = np.asarray(spatial, dtype=float)[rows, 1::-1] * float(mpp)
            continue
        try:
            geometry = locate_region(study, region, rows, None)
            positions[rows] = geometry.centers * resolve_mpp(study, [geometry], mpp=None, spot_um=None)[region]
        except Img2GeneError as error:
            logger.info("positions of %s in µm are not known: %s", region, error)
            return None
    return positions if np.isfinite(positions).all() else None


def _with_obsm(table: AnnData, obsm: dict[str, Any]) -> AnnData:
    """Return a table with another obsm, which shares everything else."""
    import anndata as ad

    layers = {name: values for name, values in table.layers.items() if name is not None}
    return ad.AnnData(table.X, obs=table.obs, var=table.var, obsm=obsm, layers=layers, uns=dict(table.uns))
