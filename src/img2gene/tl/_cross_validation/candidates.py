"""The models that are compared: their labels, and the arguments of ``fit`` for each."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from img2gene import models as registry
from img2gene._errors import Img2GeneError, Problems, raise_problems
from img2gene._study.inputs import choose_encoder
from img2gene._study.study import Study

ModelsGiven = str | Sequence[str] | Mapping[str, str | Mapping[str, Any]]
# Arguments of `img2gene.tl.fit`: model, encoder and parameters.
Candidate = dict[str, Any]


def model_candidates(models: ModelsGiven, encoder: str | None, study: Study) -> dict[str, Candidate]:
    """Collect the arguments of ``fit`` for each label; unknown models, parameters and embeddings are refused."""
    candidates = {str(label): {"encoder": encoder, **one} for label, one in _by_label(models).items()}
    problems = Problems(["`models` is empty."] * (not candidates))
    # Each embedding is checked once, so that several models on a missing one make one problem.
    for name in dict.fromkeys(one["encoder"] for one in candidates.values()):
        with problems.collect():
            choose_encoder(study, name)
    for label, one in candidates.items():
        with problems.collect():
            _try(label, one)
    problems.raise_all()
    return candidates


def completed(candidate: Candidate, study: Study) -> str:
    """Write a candidate with its defaults and its embedding as JSON: the same text for candidates that train alike."""
    # A default that is written out trains the same model, so defaults are filled in before texts are compared.
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(registry.get(candidate["model"])).parameters.items()
        if parameter.default is not parameter.empty
    }
    whole = {**defaults, **candidate, "encoder": choose_encoder(study, candidate["encoder"])["name"]}
    return json.dumps(whole, sort_keys=True, default=str)


def _by_label(models: ModelsGiven) -> dict[str, Mapping[str, Any]]:
    expected = (
        "expected the name of a model, several, or a dict for each label: {'10 components': {'model': 'ridge', "
        "'n_components': 10}}."
    )
    if isinstance(models, str):
        return {models: {"model": models}}
    if isinstance(models, Mapping):
        candidates = {label: {"model": one} if isinstance(one, str) else one for label, one in models.items()}
        wrong = [
            f"models[{label!r}]={one!r}: {expected}"
            for label, one in candidates.items()
            if not isinstance(one, Mapping)
        ]
        raise_problems(wrong)
        return candidates
    if not isinstance(models, Iterable):
        raise Img2GeneError(f"models={models!r}: {expected}")
    names = list(models)
    raise_problems([f"models: {name!r} is no name; {expected}" for name in names if not isinstance(name, str)])
    return {name: {"model": name} for name in names}


def _try(label: str, candidate: Mapping[str, Any]) -> None:
    """Make the model once, so that it is refused before any is trained."""
    if "model" not in candidate:
        raise Img2GeneError(
            f"models[{label!r}] names no model: expected a dict such as {{'model': 'ridge', 'n_components': 10}}."
        )
    params = {key: value for key, value in candidate.items() if key not in ("model", "encoder")}
    try:
        registry.create(candidate["model"], **params)
    # This clause comes first, because the error is a ValueError, and its message already names the culprit.
    except Img2GeneError:
        raise
    except (TypeError, ValueError) as error:
        raise Img2GeneError(f"models[{label!r}]: {candidate['model']!r} does not take {params}: {error}.") from error
