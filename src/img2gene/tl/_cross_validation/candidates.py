"""The models that are compared: their labels, and the arguments of ``fit`` for each."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from img2gene import models as registry
from img2gene._checks import several, shown
from img2gene._errors import Img2GeneError, Problems, listing, raise_problems
from img2gene._study.inputs import choose_encoder
from img2gene._study.origins import check_images
from img2gene._study.study import Study
from img2gene.tl._arguments import as_plain, create_predictor

ModelsGiven = str | Sequence[str] | Mapping[str, str | Mapping[str, Any]]
# Arguments of `img2gene.tl.fit`: model, encoder and parameters.
Candidate = dict[str, Any]


def model_candidates(
    models: ModelsGiven, encoder: str | None, study: Study, features: str | None = None
) -> dict[str, Candidate]:
    """Collect the arguments of ``fit`` for each label; unknown models, parameters and embeddings are refused."""
    inputs = {"encoder": encoder} | ({} if features is None else {"features": features})
    candidates = {str(label): {**inputs, **as_plain(one)} for label, one in _by_label(models).items()}
    problems = Problems(["`models` is empty."] * (not candidates))
    # Each embedding is checked once, so that several models on a missing one make one problem.
    wrong = [one["encoder"] for one in candidates.values() if not isinstance(one["encoder"], str | None)]
    problems.messages += [f"encoder={shown(name)}: expected the name of an encoder, or None." for name in wrong[:1]]
    problems.messages += [
        f"models[{label!r}] names features={shown(one['features'])}; pass `features=` to the call, for all models."
        for label, one in candidates.items()
        if one.get("features") != features
    ]
    for name in dict.fromkeys(one["encoder"] for one in candidates.values() if one["encoder"] not in wrong):
        with problems.collect():
            choose_encoder(study, name, features)
    # Folds have no images any more, so only here can these be compared with the embeddings.
    with problems.collect():
        check_images(study)
    for label, one in candidates.items():
        with problems.collect():
            _try(label, one)
    problems.raise_all()
    return candidates


def candidate_identity(study: Study, candidate: Candidate) -> dict[str, Any]:
    """Look up the embedding, or the matrix of features, that a candidate trains on."""
    return choose_encoder(study, candidate["encoder"], candidate.get("features"))


def completed(candidate: Candidate, study: Study) -> str:
    """Write a candidate with its defaults and its embedding as JSON: the same text for candidates that train alike."""
    # A default that is written out trains the same model, so defaults are filled in before texts are compared.
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(registry.get(candidate["model"])).parameters.items()
        if parameter.default is not parameter.empty
    }
    whole = {**defaults, **candidate, "encoder": candidate_identity(study, candidate)["name"]}
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
            f"models[{label!r}]={shown(one)}: {expected}"
            for label, one in candidates.items()
            if not isinstance(label, str)
            or not isinstance(one, Mapping)
            or not all(isinstance(key, str) for key in one)
        ]
        raise_problems(wrong)
        return candidates
    names = several(models)
    if names is None:
        raise Img2GeneError(f"models={shown(models)}: {expected}")
    raise_problems([f"models: {shown(name)} is no name; {expected}" for name in names if not isinstance(name, str)])
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise Img2GeneError(f"models: {listing(twice)} listed more than once; list each once, or give each a label.")
    return {name: {"model": name} for name in names}


def _try(label: str, candidate: Mapping[str, Any]) -> None:
    """Make the model once, so that it is refused before any is trained."""
    if "model" not in candidate:
        raise Img2GeneError(
            f"models[{label!r}] names no model: expected a dict such as {{'model': 'ridge', 'n_components': 10}}."
        )
    if not isinstance(candidate["model"], str):
        raise Img2GeneError(f"models[{label!r}]: {shown(candidate['model'])} is no name of a model.")
    params = {key: value for key, value in candidate.items() if key not in ("model", "encoder", "features")}
    try:
        create_predictor(candidate["model"], params)
    except Img2GeneError as error:
        raise type(error)(str(error) if str(error).startswith("models[") else f"models[{label!r}]: {error}") from error
