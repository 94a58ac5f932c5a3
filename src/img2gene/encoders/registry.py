"""Register, look up and load encoders by name."""

from __future__ import annotations

import builtins
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from img2gene._errors import Img2GeneError, MissingKeyError, missing
from img2gene.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    import pandas as pd

    from img2gene.encoders.base import Encoder

DEFAULT = "efficientnet-lite0"
# Each of these modules has a tuple `SPECS`. A new encoder needs its own module and one line here.
_BUILT_IN = (
    "img2gene.encoders.efficientnet.encoder",
    "img2gene.encoders.color_texture",
    "img2gene.encoders.timm_hub",
)
_REGISTRY: dict[str, EncoderSpec] = {}
_ALIASES = {"default": DEFAULT}


def register(spec: EncoderSpec) -> None:
    """Make an encoder available by its name.

    Other packages register theirs through the entry-point group ``img2gene.encoders``: each entry point is an
    :class:`EncoderSpec` or a function that returns one.

    Parameters
    ----------
    spec
        Specification with the name of the encoder.

    Raises
    ------
    Img2GeneError
        A different encoder has this name.

    Examples
    --------
    >>> import dataclasses
    >>> import img2gene as ig
    >>> spec = ig.encoders.get("color-texture")
    >>> ig.encoders.register(dataclasses.replace(spec, name="my-texture"))
    >>> "my-texture" in ig.encoders.list().index
    True
    """
    if _REGISTRY.get(spec.name, spec) != spec or spec.name in _ALIASES:
        raise Img2GeneError(f"An encoder named `{spec.name}` is registered already; choose another name.")
    _REGISTRY[spec.name] = spec


def get(name: str) -> EncoderSpec:
    """Return the specification of an encoder. ``"default"`` names the encoder that needs no download.

    Parameters
    ----------
    name
        Registered name, or ``"default"``.

    Raises
    ------
    MissingKeyError
        No encoder has this name. The message lists the registered names.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.encoders.get("default").licence
    'Apache-2.0'
    """
    _load_all()
    key = _ALIASES.get(name, name)
    if key not in _REGISTRY:
        raise MissingKeyError(missing(name, "img2gene.encoders", _REGISTRY, "See `img2gene.encoders.list()`."))
    return _REGISTRY[key]


def load(name: str, *, device: str | None = None, amp: bool | str | None = None, backend: str = "auto") -> Encoder:
    """Load an encoder with its weights.

    Parameters
    ----------
    name
        Registered name.
    device
        Torch device. None takes ``img2gene.settings.device``.
    amp
        Whether to compute in bfloat16: True, False, or ``"auto"`` (on CUDA devices that support it). None takes
        ``img2gene.settings.amp``.
    backend
        ``"torch"``, ``"onnx"`` (needs ``pip install img2gene[onnx]``), or ``"auto"``, which runs onnxruntime on the CPU
        if it is installed, and torch otherwise.

    Returns
    -------
    Encoder: a callable from uint8 (n, side, side, 3) arrays to float32 (n, width) features.

    Raises
    ------
    MissingKeyError
        No encoder has this name.
    Img2GeneError
        ``backend``, ``device`` or ``amp`` is not known, a package is missing, or the weights cannot be loaded.

    Examples
    --------
    >>> import numpy as np
    >>> import img2gene as ig
    >>> encoder = ig.encoders.load("color-texture")
    >>> encoder(np.full((2, 32, 32, 3), 200, dtype=np.uint8)).shape[0]
    2
    """
    if backend not in ("auto", "torch", "onnx"):
        raise Img2GeneError(f"backend={backend!r}: choose 'auto', 'torch' or 'onnx'.")
    spec = get(name)
    return spec.build(spec, device=device, amp=amp, backend=backend)


def list() -> pd.DataFrame:
    """List the registered encoders in a DataFrame with one row per encoder and one column per property.

    Examples
    --------
    >>> import img2gene as ig
    >>> "efficientnet-lite0" in ig.encoders.list().index
    True
    """
    import pandas as pd

    _load_all()
    columns = [name for name in EncoderSpec.__dataclass_fields__ if name != "build"]
    rows = [[getattr(spec, column) for column in columns] for spec in _REGISTRY.values()]
    return pd.DataFrame(rows, columns=columns).set_index("name")


# A list, not a variable: functions can fill it without `global`. `list` itself is the function above.
_loaded: builtins.list[bool] = []


def _load_all() -> None:
    """Register the built-in encoders and the encoders of installed packages, once."""
    if _loaded:
        return
    # Set before the modules are imported: an entry point may look up another encoder while it loads.
    _loaded.append(True)
    for module in _BUILT_IN:
        for spec in import_module(module).SPECS:
            register(spec)
    for entry in entry_points(group="img2gene.encoders"):
        loaded = entry.load()
        register(loaded if isinstance(loaded, EncoderSpec) else loaded())
