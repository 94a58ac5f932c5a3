"""What training, prediction and evaluation share: which embedding, which sections, which patients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing
from img2gene._patches import centers_of, specification
from img2gene._sections import group_labels, regions, section_labels
from img2gene.models.base import n_faulty

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


@dataclass(frozen=True)
class Split:
    """Which rows train and which are held out.

    Attributes
    ----------
    train, held_out
        bool (n_obs,).
    leakage
        Patients on both sides; empty for an honest split, None if patients are not known.
    """

    train: np.ndarray
    held_out: np.ndarray
    leakage: list[str] | None


@dataclass(frozen=True)
class Inputs:
    """What predictors look at for every patch, and what made it.

    Attributes
    ----------
    identity
        What made the embedding, as in :attr:`img2gene.models.Model.inputs`.
    features
        float32 (n_obs, width).
    tokens
        float16 (n_obs, m, token_width), for predictors that look at them.
    weights
        Weights of the encoder that fine-tuning changed.
    report
        What the fine-tuning was like.
    """

    identity: dict[str, Any]
    features: np.ndarray
    tokens: np.ndarray | None
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    report: dict[str, Any] | None = None


def choose_encoder(table: AnnData, encoder: str | None, table_key: str) -> dict[str, Any]:
    """Identity of the embedding to use: the one named, else the only one there is."""
    known = _schema.read_json(table, "encoder", default={})
    usable = [name for name in known if _schema.embedding_key(name) in table.obsm]
    hint = "Run `img2gene.pp.embed_patches` first."
    if encoder is not None:
        from img2gene import encoders

        name = encoders.get(encoder).name
        if name not in usable:
            raise MissingKeyError(missing(_schema.embedding_key(name), f"sdata['{table_key}'].obsm", table.obsm, hint))
        return known[name]
    if not usable:
        raise MissingKeyError(missing("X_<encoder>", f"sdata['{table_key}'].obsm", table.obsm, hint))
    if len(usable) > 1:
        raise Img2GeneError(f"Several embeddings are stored ({listing(usable)}); say which with `encoder=`.")
    return known[usable[0]]


def embedding(table: AnnData, identity: dict[str, Any], table_key: str) -> np.ndarray:
    """The stored embedding, float32 (n_obs, width); incomplete or foreign ones are refused."""
    key = _schema.embedding_key(identity["name"])
    values = np.asarray(table.obsm[key])
    if values.ndim != 2 or values.shape[1] != identity["width"]:
        raise Img2GeneError(
            f"`sdata['{table_key}'].obsm['{key}']` has shape {values.shape}, its record says width {identity['width']}. "
            "Run `img2gene.pp.embed_patches` again."
        )
    bad = n_faulty(values)
    if bad:
        raise Img2GeneError(f"`obsm['{key}']` is NaN in {bad} rows: run `img2gene.pp.embed_patches` again.")
    return values.astype(np.float32, copy=False)


def tokens(table: AnnData, identity: dict[str, Any], table_key: str) -> np.ndarray | None:
    """The stored tokens, float16 (n_obs, m, width), or None where the embedding was made without; faulty ones raise."""
    if not identity.get("tokens"):
        return None
    key = _schema.tokens_key(identity["name"])
    hint = f"Run `img2gene.pp.embed_patches(sdata, {identity['name']!r}, tokens={identity['tokens']})` again."
    if key not in table.obsm:
        raise MissingKeyError(missing(key, f"sdata['{table_key}'].obsm", table.obsm, hint))
    values = np.asarray(table.obsm[key])
    expected = (table.n_obs, identity["tokens"], identity["token_width"])
    if values.shape != expected:
        raise Img2GeneError(
            f"`sdata['{table_key}'].obsm['{key}']` has shape {values.shape}, its record says {expected}. {hint}"
        )
    bad = n_faulty(values)
    if bad:
        raise Img2GeneError(f"`obsm['{key}']` is NaN or infinite in {bad} rows. {hint}")
    return values.astype(np.float16, copy=False)


def without_tokens(identity: dict[str, Any]) -> dict[str, Any]:
    """Identity for a model that does not look at the tokens: it takes the embedding with or without them."""
    return {key: value for key, value in identity.items() if key not in ("tokens", "token_width")}


def split(
    table: AnnData,
    groups: str,
    *,
    train_on: Iterable[str] | None,
    validate_on: Iterable[str] | None,
    table_key: str,
) -> Split:
    """Divide the rows by the values of ``groups``; names that do not occur are listed with those that do."""
    labels = group_labels(table, groups, table_key)
    held_out = np.isin(labels, named_groups(validate_on, labels, "validate_on", groups))
    chosen = ~held_out if train_on is None else np.isin(labels, named_groups(train_on, labels, "train_on", groups))
    both = np.unique(labels[chosen & held_out])
    if len(both):
        raise Img2GeneError(f"{listing(both)}: named in both `train_on` and `validate_on`.")
    if not chosen.any():
        raise Img2GeneError("Nothing is left to train on: `validate_on` names every group.")
    return Split(chosen, held_out, shared_patients(table, chosen, held_out))


def named_groups(names: Iterable[str] | None, labels: np.ndarray, argument: str, groups: str) -> list[str]:
    """Groups that an argument names, none for None; those that do not occur are listed with those that do."""
    if names is None:
        return []
    wanted = [str(name) for name in ([names] if isinstance(names, str) else names)]
    unknown = [name for name in wanted if name not in labels]
    if unknown or not wanted:
        raise MissingKeyError(
            f"{argument}={wanted}: no {groups} named {listing(unknown)} (available: {listing(np.unique(labels))})."
        )
    return wanted


def patient_labels(table: AnnData) -> np.ndarray | None:
    """Patient of each row, or None where patients are not recorded."""
    return group_labels(table, _schema.PATIENT) if _schema.PATIENT in table.obs else None


def shared_patients(table: AnnData, one: np.ndarray, other: np.ndarray) -> list[str] | None:
    """Patients with rows on both sides; None if patients are not recorded."""
    patients = patient_labels(table)
    if patients is None:
        return None
    return sorted(set(patients[one].tolist()) & set(patients[other].tolist()))


def positions(table: AnnData, table_key: str = "table") -> np.ndarray:
    """Row and column of each spot in µm from the top left corner of its image, float64 (n_obs, 2): patches' centres."""
    recorded = specification(table, table_key)["regions"]
    members = regions(table, table_key)
    unknown = [name for name in members if not (recorded[name].get("mpp") or 0) > 0]
    if unknown:
        raise Img2GeneError(
            f"Microns per pixel of the regions {listing(unknown)} are not recorded in `uns['{_schema.UNS}']['patches']`: "
            "run `img2gene.pp.extract_patches` again."
        )
    found = np.empty((table.n_obs, 2))
    for name, rows in members.items():
        found[rows] = centers_of(table, rows) * recorded[name]["mpp"]
    return found


def predicted_values(
    sdata: SpatialData, genes: list[str], key: str, table_key: str = "table", *, part: str | None = None
) -> np.ndarray:
    """Predictions (n_obs, n_genes) from the layer ``key``, or from the table ``key`` of the same rows, which may know more genes.

    ``part`` is ``"std"``, ``"lower"`` or ``"upper"`` for what stands beside them.
    """
    table, own = _schema.get_table(sdata, table_key), sdata.tables.get(key)
    layer = key if part is None else _schema.uncertainty_keys(key)[part]
    found = {}
    if layer in table.layers:
        found[f"sdata['{table_key}'].var_names"] = (table.var_names, table.layers[layer])
    if own is not None and own.obs_names.equals(table.obs_names) and (part is None or layer in own.layers):
        found[f"sdata['{key}'].var_names"] = (own.var_names, own.X if part is None else own.layers[layer])
    if not found:
        fitted = "" if part is None else ", with a model that was fitted with `uncertainty=True`"
        hint = f"Run `img2gene.tl.predict` first{fitted}."
        raise MissingKeyError(missing(layer, f"sdata['{table_key}'].layers", table.layers, hint))
    for names, values in found.values():
        if genes and names.isin(genes).sum() == len(set(genes)):
            return np.asarray(values[:, names.get_indexer(genes)], dtype=float)
    where, (names, _) = next(iter(found.items()))
    raise MissingKeyError(missing(listing(gene for gene in genes if gene not in names), where, names))


def section_names(table: AnnData, rows: np.ndarray, table_key: str) -> list[str]:
    """Sections among ``rows``, in order of appearance."""
    return list(dict.fromkeys(section_labels(table, table_key)[rows].tolist()))
