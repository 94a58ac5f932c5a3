"""Models that are compared: labels, and what each is trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from img2gene import models as registry
from img2gene._errors import Img2GeneError, Problems
from img2gene._study import choose_encoder

if TYPE_CHECKING:
    from anndata import AnnData

ModelsGiven = str | Sequence[str] | Mapping[str, Mapping[str, Any]]


def model_candidates(
    models: ModelsGiven, encoder: str | None, table: AnnData, table_key: str
) -> dict[str, dict[str, Any]]:
    """Arguments of ``fit`` for each label; unknown models, parameters and embeddings are refused."""
    if not isinstance(models, Mapping):
        models = {name: {"model": name} for name in ([models] if isinstance(models, str) else models)}
    problems = Problems(["`models` is empty."] * (not models))
    found = {str(label): {"encoder": encoder, **given} for label, given in models.items()}
    for label, given in found.items():
        with problems.collect():
            if "model" not in given:
                raise Img2GeneError(
                    f"models[{label!r}] names no model: expected a dict such as {{'model': 'ridge', 'n_components': 10}}."
                )
            params = {key: value for key, value in given.items() if key not in ("model", "encoder")}
            registry.create(given["model"], **params)
            choose_encoder(table, given["encoder"], table_key)
    problems.raise_all()
    return found
