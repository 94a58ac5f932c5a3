"""Registry of models by name."""

from __future__ import annotations

import builtins
import inspect
import logging
import threading
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import numpy as np

from img2gene._checks import shown
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing, raise_problems
from img2gene.models.predictor import EXTRA_INPUTS, Predictor, declared_inputs

logger = logging.getLogger(__name__)
# Imported on first use, because networks import torch.
_BUILT_IN = {
    "bleep": "img2gene.models.cmrcnet.predictor:Bleep",
    "cmrcnet": "img2gene.models.cmrcnet.predictor:CMRCNet",
    "coordinates": "img2gene.models.baselines:CoordinateKNN",
    "img2gene": "img2gene.models.img2gene.predictor:Img2Gene",
    "knn": "img2gene.models.knn:FeatureKNN",
    "mean": "img2gene.models.baselines:TrainingMean",
    "ridge": "img2gene.models.ridge:Ridge",
    "ridge-plain": "img2gene.models.plain_ridge:PlainRidge",
}
_METHODS = ("fit", "predict", "state", "from_state", "summary")
_REGISTRY: dict[str, type[Predictor]] = {}
_loaded: builtins.list[bool] = []
_lock = threading.RLock()


def register(predictor: type[Predictor]) -> type[Predictor]:
    """Make a model available under its ``name``; usable as a class decorator.

    Other packages register theirs through the entry-point group ``img2gene.models``.

    Raises
    ------
    Img2GeneError
        What is registered is no class with a name, the methods of a predictor and declared shapes; the name is taken by
        a different class; or it declares unknown inputs.

    Examples
    --------
    >>> import img2gene as ig
    >>> from img2gene.models.ridge import Ridge
    >>> class Stiff(Ridge):
    ...     name = "stiff"
    >>> ig.models.register(Stiff).name
    'stiff'
    """
    _check_contract(predictor)
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
    if not isinstance(name, str):
        raise Img2GeneError(f"model={shown(name)}: expected a name; see `img2gene.models.list()`.")
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
    # Numpy scalars are numbers, but JSON does not take them.
    return kind(**{key: value.item() if isinstance(value, np.generic) else value for key, value in params.items()})


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
    with _lock:
        if not _loaded:
            # A plugin may itself look for models while it is imported.
            _loaded.append(True)
            for entry in entry_points(group="img2gene.models"):
                _load_plugin(entry)


def _load_plugin(entry: EntryPoint) -> None:
    """Register the model of an installed package; a broken one is named in a warning and left out."""
    try:
        register(entry.load())
    # A module can call `sys.exit` while it is imported.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        logger.warning(
            "the model %r of an installed package is left out, as it could not be loaded: %s: %s",
            entry.name,
            type(error).__name__,
            error,
        )


def _check_contract(predictor: Any) -> None:
    """Refuse what is no class with all that a predictor needs."""
    if not isinstance(predictor, type):
        raise Img2GeneError(
            f"{shown(predictor)} is no class; register the class of a model, not an instance or its name."
        )
    problems = []
    name = getattr(predictor, "name", None)
    if not isinstance(name, str) or not name:
        problems.append(f"`name` is {shown(name)}, expected a string that is not empty.")
    absent = [method for method in _METHODS if not callable(getattr(predictor, method, None))]
    if absent:
        problems.append(f"Methods {listing(absent)} are missing.")
    if not callable(getattr(predictor, "array_shapes", None)) and not _are_shapes(getattr(predictor, "shapes", None)):
        problems.append(
            "`shapes` must map the name of each stored array to its axes; `array_shapes(config)` may do so instead."
        )
    inputs = getattr(predictor, "inputs", ())
    if not isinstance(inputs, tuple | builtins.list) or not all(isinstance(item, str) for item in inputs):
        problems.append(f"`inputs` is {shown(inputs)}, expected a tuple of names (available: {listing(EXTRA_INPUTS)}).")
    if problems:
        raise_problems(
            [f"The class {predictor.__qualname__} cannot be registered as a model. {text}" for text in problems]
        )


def _are_shapes(shapes: Any) -> bool:
    return isinstance(shapes, dict) and all(
        isinstance(name, str) and isinstance(axes, tuple) and all(isinstance(axis, str | int) for axis in axes)
        for name, axes in shapes.items()
    )
