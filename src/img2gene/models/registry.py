"""Registry of models by name."""

from __future__ import annotations

import builtins
import inspect
from importlib import import_module
from importlib.metadata import entry_points

from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing
from img2gene.models.predictor import EXTRA_INPUTS, Predictor, declared_inputs

# Imported on first use, because networks import torch.
_BUILT_IN = {
    "bleep": "img2gene.models.cmrcnet.predictor:Bleep",
    "cmrcnet": "img2gene.models.cmrcnet.predictor:CMRCNet",
    "coordinates": "img2gene.models.baselines:CoordinateKNN",
    "img2gene": "img2gene.models.img2gene.predictor:Img2Gene",
    "knn": "img2gene.models.knn:FeatureKNN",
    "mean": "img2gene.models.baselines:TrainingMean",
    "ridge": "img2gene.models.ridge:Ridge",
}
_REGISTRY: dict[str, type[Predictor]] = {}
_loaded: builtins.list[bool] = []


def register(predictor: type[Predictor]) -> type[Predictor]:
    """Make a model available under its ``name``; usable as a class decorator.

    Other packages register theirs through the entry-point group ``img2gene.models``.

    Raises
    ------
    Img2GeneError
        The name is taken by a different class, or it declares unknown inputs.

    Examples
    --------
    >>> import img2gene as ig
    >>> from img2gene.models.ridge import Ridge
    >>> class Stiff(Ridge):
    ...     name = "stiff"
    >>> ig.models.register(Stiff).name
    'stiff'
    """
    path = f"{predictor.__module__}:{predictor.__qualname__}"
    if _BUILT_IN.get(predictor.name, path) != path or _REGISTRY.get(predictor.name, predictor) is not predictor:
        raise Img2GeneError(f"A model named `{predictor.name}` is registered already; choose another name.")
    unknown = [name for name in declared_inputs(predictor) if name not in EXTRA_INPUTS]
    if unknown:
        raise Img2GeneError(
            f"`{predictor.name}` declares unknown inputs {listing(unknown)} (available: {listing(EXTRA_INPUTS)})."
        )
    _REGISTRY[predictor.name] = predictor
    return predictor


def get(name: str) -> type[Predictor]:
    """The class of a registered model; an unknown name lists the registered ones.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.models.get("ridge").name
    'ridge'
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name].split(":")
        return register(getattr(import_module(module), attribute))
    _load_entry_points()
    if name not in _REGISTRY:
        raise MissingKeyError(missing(name, "img2gene.models", list(), "See `img2gene.models.list()`."))
    return _REGISTRY[name]


def create(name: str, **params: object) -> Predictor:
    """An unfitted model with these parameters; unknown ones are named with the known ones.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.models.create("ridge", center="none").center
    'none'
    """
    kind = get(name)
    known = [key for key in inspect.signature(kind).parameters if key not in ("args", "kwargs")]
    unknown = [key for key in params if key not in known]
    if unknown:
        raise Img2GeneError(f"`{name}` has no parameter {listing(unknown)} (available: {listing(known)}).")
    return kind(**params)


def list() -> builtins.list[str]:
    """Names of the registered models.

    Examples
    --------
    >>> import img2gene as ig
    >>> "ridge" in ig.models.list()
    True
    """
    _load_entry_points()
    return sorted({*_BUILT_IN, *_REGISTRY})


def _load_entry_points() -> None:
    if _loaded:
        return
    _loaded.append(True)
    for entry in entry_points(group="img2gene.models"):
        register(entry.load())
