"""What training, prediction and evaluation share: which embedding, which sections, which patients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing
from img2gene._study.patches import centers_of, specification
from img2gene._study.sections import regions
from img2gene.models.data import n_faulty

if TYPE_CHECKING:
    from anndata import AnnData


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
