"""Choose and read the embedding that training, prediction and evaluation share."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing
from img2gene._study.expression import readable
from img2gene._study.features import features_identity
from img2gene._study.matrices import in_memory
from img2gene._study.origins import check_embedding
from img2gene._study.stored_rows import StoredRows
from img2gene._study.study import Study
from img2gene.models.data import LARGEST, n_extreme, n_faulty

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """The embedding of every patch, with the encoder settings that produced it.

    Attributes
    ----------
    identity
        Encoder and settings of the embedding, as in :attr:`img2gene.models.Model.inputs`.
    features
        float32 (n_obs, width), in memory or in a store.
    tokens
        float16 (n_obs, m, token_width), for predictors that use them.
    weights
        Weights of the encoder that fine-tuning changed.
    report
        Report of the fine-tuning; None without fine-tuning.
    """

    identity: dict[str, Any]
    features: Any
    tokens: np.ndarray | None
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    report: dict[str, Any] | None = None


def has_embedding(study: Study) -> bool:
    """Check whether any embedding is stored."""
    return any(_schema.embedding_key(name) in study.table.obsm for name in study.record("encoder", {}))


def choose_encoder(study: Study, encoder: str | None, features: str | None = None) -> dict[str, Any]:
    """Return the identity of the stored embedding that ``encoder`` names; with None, of the only one stored.

    ``features`` names a matrix that :func:`img2gene._study.features.with_features` has added, in place of an embedding.
    """
    if features is not None:
        return features_identity(study, features)
    known, obsm = study.record("encoder", {}), study.table.obsm
    # The record stays when a user deletes an embedding from `obsm`.
    usable = [name for name in known if _schema.embedding_key(name) in obsm]
    hint = "Run `img2gene.pp.embed_patches` first."
    if encoder is not None:
        from img2gene import encoders

        # An encoder of another session need not be registered in this one.
        name = encoder if encoder in usable else encoders.get(encoder).name
        if name not in usable:
            raise MissingKeyError(missing(_schema.embedding_key(name), f"{study.name}.obsm", obsm, hint))
        return known[name]
    if not usable:
        raise MissingKeyError(missing("X_<encoder>", f"{study.name}.obsm", obsm, hint))
    if len(usable) > 1:
        raise Img2GeneError(f"Several embeddings are stored ({listing(usable)}); say which with `encoder=`.")
    return known[usable[0]]


def embedding(study: Study, identity: dict[str, Any]) -> np.ndarray:
    """Read the stored embedding, float32 (n_obs, width); refuse it if it is incomplete or does not fit its record."""
    _check_origin(study, identity)
    key, again = _schema.matrix_key(identity), _again(identity)
    values = _stored_array(study, key)
    _check_width(study, key, values.shape, identity)
    rows = readable(study.table)
    # Choosing rows copies them, and embeddings of slides take gigabytes.
    bad = n_faulty(values if rows.all() else values[rows])
    if bad:
        raise Img2GeneError(f"`obsm['{key}']` is NaN or infinite in {bad} rows: {again}")
    large = n_extreme(values)
    if large:
        raise Img2GeneError(f"`obsm['{key}']` holds values beyond ±{LARGEST:.0e} in {large} rows: {again}")
    if len(values) > 1 and (values[1] == values[0]).all() and (values == values[0]).all():
        logger.warning("`obsm['%s']` does not vary: all spots have one embedding, and get one prediction", key)
    return values.astype(np.float32, copy=False)


def embedding_rows(study: Study, identity: dict[str, Any]) -> np.ndarray | StoredRows:
    """Read the stored embedding as :func:`embedding` does, or leave one that is in a store of its own there."""
    key = _schema.matrix_key(identity)
    stored = study.table.obsm[key]
    if not hasattr(stored, "compute"):
        return embedding(study, identity)
    _check_origin(study, identity)
    _check_width(study, key, stored.shape, identity)
    return StoredRows(stored, f"{study.name}.obsm['{key}']")


def _check_origin(study: Study, identity: dict[str, Any]) -> None:
    """Refuse an embedding whose patches have changed; nothing is known of the patches of other matrices."""
    if "matrix" not in identity:
        check_embedding(study, identity["name"])


def _again(identity: dict[str, Any]) -> str:
    """Say how to get features that can be used."""
    if "matrix" in identity:
        return "fill them or leave out these spots."
    return "run `img2gene.pp.embed_patches` again."


def _check_width(study: Study, key: str, shape: tuple[int, ...], identity: dict[str, Any]) -> None:
    if len(shape) != 2 or shape[1] != identity["width"]:
        raise Img2GeneError(
            f"`{study.name}.obsm['{key}']` has shape {shape}, its record says width {identity['width']}. "
            "Run `img2gene.pp.embed_patches` again."
        )


def _stored_array(study: Study, key: str) -> np.ndarray:
    """Read an array of numbers from obsm."""
    values = np.asarray(in_memory(study.table.obsm[key]))
    if values.dtype.kind not in "iuf":
        raise Img2GeneError(
            f"`{study.name}.obsm['{key}']` holds {values.dtype} values, not numbers: run `img2gene.pp.embed_patches` again."
        )
    return values


def tokens(study: Study, identity: dict[str, Any]) -> np.ndarray | None:
    """Read the stored tokens, float16 (n_obs, m, width), or None if the embedding has none; refuse faulty ones."""
    if not identity.get("tokens"):
        return None
    key = _schema.tokens_key(identity["name"])
    hint = f"Run `img2gene.pp.embed_patches(sdata, {identity['name']!r}, tokens={identity['tokens']})` again."
    obsm = study.table.obsm
    if key not in obsm:
        raise MissingKeyError(missing(key, f"{study.name}.obsm", obsm, hint))
    values = _stored_array(study, key)
    expected = (study.n_obs, identity["tokens"], identity["token_width"])
    if values.shape != expected:
        raise Img2GeneError(
            f"`{study.name}.obsm['{key}']` has shape {values.shape}, its record says {expected}. {hint}"
        )
    with np.errstate(over="ignore"):
        values = values.astype(np.float16, copy=False)
    rows = readable(study.table)
    # Choosing rows copies them, and embeddings of slides take gigabytes.
    bad = n_faulty(values if rows.all() else values[rows])
    if bad:
        raise Img2GeneError(f"`obsm['{key}']` is NaN or infinite in {bad} rows. {hint}")
    return values


def without_tokens(identity: dict[str, Any]) -> dict[str, Any]:
    """Remove the tokens from an identity, for a model that does not use them."""
    return {key: value for key, value in identity.items() if key not in ("tokens", "token_width")}
