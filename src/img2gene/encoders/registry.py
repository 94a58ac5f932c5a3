"""Which encoders there are, what each expects, and where its weights come from."""

from __future__ import annotations

import builtins
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from img2gene._errors import Img2GeneError, MissingKeyError, missing
from img2gene.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    import pandas as pd

    from img2gene.encoders.base import Encoder

DEFAULT = "efficientnet-lite0"
_REGISTRY: dict[str, EncoderSpec] = {}
_ALIASES = {"default": DEFAULT}


def register(spec: EncoderSpec) -> None:
    """Make an encoder available by its name.

    Other packages register theirs through the entry-point group ``img2gene.encoders``: each entry point is an
    :class:`EncoderSpec` or a function that returns one.

    Raises
    ------
    Img2GeneError
        The name is taken by a different encoder.

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
    """The specification of a registered encoder; ``"default"`` is the offline default.

    Raises
    ------
    MissingKeyError
        No such encoder; lists the registered ones.

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
    """Load an encoder's weights.

    Parameters
    ----------
    name
        Registered name.
    device
        Torch device; None takes ``img2gene.settings.device``.
    amp
        bfloat16 arithmetic: True, False, or ``"auto"`` where the processor gains from it; None takes ``settings.amp``.
    backend
        ``"torch"``, ``"onnx"`` (needs ``pip install img2gene[onnx]``), or ``"auto"``: onnxruntime on the CPU where it is
        installed, else torch.

    Returns
    -------
    Encoder: a callable from uint8 (n, side, side, 3) arrays to float32 (n, width) features.

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
    """Registered encoders as a DataFrame: one row per encoder, one column per property.

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


_loaded: builtins.list[bool] = []


def _load_all() -> None:
    """Register our own encoders and those of other packages, once."""
    if _loaded:
        return
    _loaded.append(True)
    from img2gene.encoders import color_texture, timm_hub
    from img2gene.encoders.efficientnet import encoder as efficientnet

    for spec in (*efficientnet.SPECS, *color_texture.SPECS, *timm_hub.SPECS):
        register(spec)
    for entry in entry_points(group="img2gene.encoders"):
        found = entry.load()
        register(found if isinstance(found, EncoderSpec) else found())
