"""Read what a trained model needs from a study, and check that it matches the training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, missing, raise_problems
from img2gene._study import finetuning
from img2gene._study.features import trained_features
from img2gene._study.inputs import Inputs, embedding, embedding_rows, tokens
from img2gene._study.stored_rows import StoredRows
from img2gene._study.study import Study
from img2gene.models import Model
from img2gene.models.stored_model import input_problems


@dataclass(frozen=True)
class ModelInputs:
    """The arrays that a model predicts from.

    Attributes
    ----------
    features
        float32 (n_obs, width): an array, or :class:`~img2gene._study.stored_rows.StoredRows`.
    sections
        str (n_obs,).
    extra
        Further keyword inputs of the model: ``positions``, ``tokens``.
    """

    features: Any
    sections: np.ndarray
    extra: dict[str, np.ndarray | None]

    def take(self, rows: np.ndarray) -> ModelInputs:
        """The inputs of chosen rows."""
        extra = {name: None if values is None else values[rows] for name, values in self.extra.items()}
        features = self.features.take(rows) if isinstance(self.features, StoredRows) else self.features[rows]
        return ModelInputs(features, self.sections[rows], extra)


def model_inputs(study: Study, model: Model, *, lazy: bool = False, features: str | None = None) -> ModelInputs:
    """Read the embedding, the sections and the extra inputs of a model; ``lazy`` leaves a stored embedding in its store.

    ``features`` names the matrix to take in place of the one that is named like the training's.
    """
    raise_problems(input_problems(model.inputs))
    identity = None
    if features is not None or "matrix" in model.inputs:
        study, identity = _trained_matrix(study, model, features)
    inputs = _inputs(study, model, lazy, identity)
    extra: dict[str, np.ndarray | None] = {}
    if "positions" in model.extra_inputs:
        extra["positions"] = study.positions
    if "tokens" in model.extra_inputs:
        extra["tokens"] = inputs.tokens
    return ModelInputs(inputs.features, study.sections, extra)


def _trained_matrix(study: Study, model: Model, features: str | None) -> tuple[Study, dict[str, Any]]:
    """Find the matrix that a model takes; refuse one for a model that needs more than features."""
    if "finetuned" in model.inputs or "tokens" in model.extra_inputs:
        needs = "tokens" if "tokens" in model.extra_inputs else "its own encoder"
        raise Img2GeneError(
            f"features={features!r}: the model `{model.name}` needs {needs}, which a matrix does not have."
        )
    return trained_features(study, model.inputs, features)


def _inputs(study: Study, model: Model, lazy: bool, identity: dict[str, Any] | None) -> Inputs:
    """Read the features, or embed the patches with the model's fine-tuned encoder."""
    if identity is not None:
        return Inputs(identity, embedding_rows(study, identity) if lazy else embedding(study, identity), None)
    if "finetuned" in model.inputs:
        identity = finetuning.current_identity(study, model.inputs)
        raise_problems(_differences(model.inputs, identity, study))
        finetuning.check_images(study)
        return finetuning.embed_adapted(study, identity, model.encoder)
    identity = matching_identity(study, model)
    values = tokens(study, identity) if "tokens" in model.extra_inputs else None
    return Inputs(identity, embedding_rows(study, identity) if lazy else embedding(study, identity), values)


def matching_identity(study: Study, model: Model) -> dict[str, Any]:
    """Find the stored embedding that the model takes; an error names everything that differs."""
    raise_problems(input_problems(model.inputs))
    trained, obsm = model.inputs, study.table.obsm
    key = _schema.embedding_key(trained["name"])
    known = study.record("encoder", {})
    if trained["name"] not in known or key not in obsm:
        raise MissingKeyError(
            missing(
                key,
                f"{study.name}.obsm",
                obsm,
                f"The model was trained on it: run `{_extract(trained, study)}` and "
                f"`img2gene.pp.embed_patches(sdata, {trained['name']!r}{study.table_argument})`.",
            )
        )
    stored = known[trained["name"]]
    raise_problems(_differences(trained, stored, study) + _token_problems(trained, stored, study))
    return stored


def _extract(trained: dict[str, Any], study: Study) -> str:
    """Write the call that extracts patches as for the training."""
    return f"img2gene.pp.extract_patches(sdata, patch_um={tuple(trained['patch_um'])}{study.table_argument})"


def _differences(trained: dict[str, Any], stored: dict[str, Any], study: Study) -> list[str]:
    """List what differs between the stored embedding and the one the model was trained on."""
    names = {
        "revision": "encoder revision",
        "patch_um": "fields of view (µm)",
        "input_px": "input size (px)",
        "orientations": "orientations",
        "augment": "augmentation",
        "normalized": "stain normalisation",
        "width": "embedding width",
    }
    again = {"patch_um": f" Run `{_extract(trained, study)}`"}
    again["patch_um"] += "." if "finetuned" in trained else " and embed again."
    call = f"img2gene.pp.embed_patches(sdata, {trained['name']!r}, orientations={trained['orientations']}"
    call += f", augment={trained['augment']!r}" if trained.get("augment") else ""
    again |= dict.fromkeys(("orientations", "augment"), f" Run `{call}{study.table_argument})`.")
    which = "normalised ones, of `img2gene.pp.normalize_stain`," if trained.get("normalized") else "original ones"
    again["normalized"] = (
        f" Extract patches of the {which} (`images=` of img2gene.pp.extract_patches), and embed again."
    )
    return [
        f"The model was trained with {label} {trained.get(field)}, the object has {stored.get(field)}."
        + again.get(field, "")
        for field, label in names.items()
        if trained.get(field) != stored.get(field)
    ]


def _token_problems(trained: dict[str, Any], stored: dict[str, Any], study: Study) -> list[str]:
    """Check the tokens for a model that uses them; other models take an embedding with or without tokens."""
    grids = [(identity.get("tokens"), identity.get("token_width")) for identity in (trained, stored)]
    if not trained.get("tokens") or grids[0] == grids[1]:
        return []
    before, now = (f"{count} tokens of width {width}" if count else "none" for count, width in grids)
    return [
        f"The model was trained with {before}, the object has {now}. "
        f"Run `img2gene.pp.embed_patches(sdata, {trained['name']!r}, tokens={trained['tokens']}{study.table_argument})`."
    ]
