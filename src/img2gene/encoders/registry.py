"""Register, look up and load encoders by name."""

from __future__ import annotations

import builtins
import dataclasses
import logging
import threading
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing
from img2gene.encoders.base import checked_amp
from img2gene.encoders.checked import CheckedEncoder
from img2gene.encoders.spec import HUB, TIMM, EncoderSpec, is_commit, split_hub

if TYPE_CHECKING:
    import pandas as pd

    from img2gene.encoders.base import Encoder

logger = logging.getLogger(__name__)

DEFAULT = "efficientnet-lite0"
# Each of these modules has a tuple `SPECS`. A new encoder needs its own module and one line here.
_BUILT_IN = (
    "img2gene.encoders.efficientnet.encoder",
    "img2gene.encoders.color_texture",
    "img2gene.encoders.timm_hub",
    "img2gene.encoders.zoo.entries",
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
        ``spec`` is no :class:`EncoderSpec`, or a different encoder has its name.

    Examples
    --------
    >>> import dataclasses
    >>> import img2gene as ig
    >>> spec = ig.encoders.get("color-texture")
    >>> ig.encoders.register(dataclasses.replace(spec, name="my-texture"))
    >>> "my-texture" in ig.encoders.list().index
    True
    """
    if not isinstance(spec, EncoderSpec):
        raise Img2GeneError(f"spec={shown(spec)}: expected an `img2gene.encoders.EncoderSpec`.")
    # The names of the package's own encoders are taken before anyone has asked for one.
    _load_all()
    if _REGISTRY.get(spec.name, spec) != spec or spec.name in _ALIASES:
        raise Img2GeneError(f"An encoder named `{spec.name}` is registered already; choose another name.")
    _REGISTRY[spec.name] = spec


def get(name: str) -> EncoderSpec:
    """Return the specification of an encoder. ``"default"`` names the encoder that needs no download.

    Parameters
    ----------
    name
        Registered name, or ``"default"``. ``"hf-hub:owner/name@<commit>"`` returns the registered encoder whose weights
        come from this hub repository, with the weights of another commit. The commit becomes part of its name
        (``"uni-<commit>"``), under which embeddings and models find it again. Any other timm model of the hub works as well, if
        its repository states the normalisation; without a commit, today's is taken and recorded. ``"timm:resnet18.a1_in1k"``
        is short for ``"hf-hub:timm/resnet18.a1_in1k"``.

    Raises
    ------
    MissingKeyError
        No encoder has this name. The message lists the registered names.
    Img2GeneError
        ``name`` is no string, or names no whole commit.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.encoders.get("default").licence
    'Apache-2.0'
    """
    check = Arguments()
    name = check.text("name", name)
    check.raise_all()
    _load_all()
    if name.startswith(TIMM):
        name = f"{HUB}timm/{name.removeprefix(TIMM)}"
    if name.startswith(HUB):
        return _from_hub(name)
    key = _ALIASES.get(name, name)
    base, _, commit = key.rpartition("-")
    if key not in _REGISTRY and is_commit(commit) and base in _REGISTRY and _REGISTRY[base].source.startswith(HUB):
        return _at_commit(_REGISTRY[base], commit)
    if key not in _REGISTRY:
        hint = "See `img2gene.encoders.list()`. Other models of timm are 'timm:<name>', those of the hub 'hf-hub:owner/name'."
        if name.removeprefix("X_") in _REGISTRY:
            hint = f"`obsm[{name!r}]` holds its embedding: pass {name.removeprefix('X_')!r}."
        raise MissingKeyError(missing(_short(name), "img2gene.encoders", _REGISTRY, hint))
    return _REGISTRY[key]


def _short(name: str) -> str:
    return name if len(name) <= 100 else f"{name[:99]}…"


def _from_hub(name: str) -> EncoderSpec:
    """Return the registered encoder that loads from a hub repository, at the commit that ``name`` gives."""
    source, commit = split_hub(name)
    known = {spec.source.casefold(): spec for spec in reversed(_REGISTRY.values()) if spec.source.startswith(HUB)}
    spec = known.get(source.casefold())
    if spec is None:
        spec = _of_repository(source, commit, listing(sorted(one.source for one in known.values()), len(known)))
    return _at_commit(spec, commit) if commit else spec


def _of_repository(source: str, commit: str, known: str) -> EncoderSpec:
    """Describe a timm model of the hub that no entry describes, and register it for this session."""
    from img2gene.encoders.repository import of_repository

    try:
        spec = of_repository(source, commit)
    except MissingKeyError as error:
        raise MissingKeyError(
            f"No encoder loads from {_short(source)!r} (available: {known}), and its repository cannot be read: {error} "
            "Name a timm model of the hub, or make an encoder with `img2gene.encoders.wrap`."
        ) from error
    register(spec)
    return spec


def _at_commit(spec: EncoderSpec, commit: str) -> EncoderSpec:
    """Return an encoder with the weights of another commit, and with a name of its own."""
    if commit == spec.revision:
        return spec
    return dataclasses.replace(spec, name=f"{spec.name}-{commit}", revision=commit)


def load(name: str, *, device: str | None = None, amp: bool | str | None = None, backend: str = "auto") -> Encoder:
    """Load an encoder with its weights.

    Parameters
    ----------
    name
        Registered name, or ``"hf-hub:owner/name@<commit>"`` as in :func:`get`.
    device
        Torch device. None takes ``img2gene.settings.device``.
    amp
        Whether to compute in bfloat16: True, False, or ``"auto"`` (on CUDA devices that support it). None takes
        ``img2gene.settings.amp``.
    backend
        ``"torch"``, ``"onnx"``, or ``"auto"``: onnxruntime on the CPU for encoders that have it, as the default one, and torch
        otherwise. Features of both agree to 1e-4.

    Returns
    -------
    Encoder: a callable from uint8 (n, side, side, 3) arrays to float32 (n, width) features. Each call checks the
    features: an error names the encoder if they have another shape, or are NaN or infinite.

    Raises
    ------
    MissingKeyError
        No encoder has this name.
    Img2GeneError
        ``backend``, ``device`` or ``amp`` is not known, a package is missing, or the weights are damaged or cannot be
        loaded.

    Examples
    --------
    >>> import numpy as np
    >>> import img2gene as ig
    >>> encoder = ig.encoders.load("color-texture")
    >>> encoder(np.full((2, 32, 32, 3), 200, dtype=np.uint8)).shape[0]
    2
    """
    check = Arguments()
    backend = check.choice("backend", backend, ("auto", "torch", "onnx"))
    if not (isinstance(device, str) and device == "auto"):
        device = check.device("device", device)
    amp = checked_amp(check, amp)
    with check.collect():
        spec = get(name)
    check.raise_all()
    spec = resolved(spec)
    return load_spec(spec, device=device, amp=amp, backend=backend)


def resolved(spec: EncoderSpec) -> EncoderSpec:
    """Look up today's commit of an encoder of the zoo whose commit is not known; the others are returned as they are."""
    from img2gene.encoders.zoo import loading

    return loading.resolved(spec)


def load_spec(spec: EncoderSpec, *, device: str | None, amp: bool | str | None, backend: str) -> CheckedEncoder:
    """Load the encoder of a specification, registered here or not."""
    encoder = build(spec, device=device, amp=amp, backend=backend)
    return CheckedEncoder(encoder, spec.name, spec.width, spec.token_width)


def build(spec: EncoderSpec, *, device: str | None, amp: bool | str | None, backend: str) -> Any:
    """Call the ``build`` function of an encoder; an error names the encoder."""
    try:
        encoder = spec.build(spec, device=device, amp=amp, backend=backend)
    except (Img2GeneError, MemoryError):
        raise
    except Exception as error:
        raise Img2GeneError(f"Encoder `{spec.name}` could not be loaded: {type(error).__name__}: {error}") from error
    if not callable(encoder):
        raise Img2GeneError(f"Encoder `{spec.name}`: its `build` returned {shown(encoder)}, expected a callable.")
    width = getattr(encoder, "width", spec.width)
    if width != spec.width:
        raise Img2GeneError(f"Encoder `{spec.name}` has width {shown(width)}, its specification {spec.width}.")
    return encoder


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
# Reentrant: a plugin may look up another encoder while it is loaded.
_lock = threading.RLock()


def _load_all() -> None:
    """Register the built-in encoders and the encoders of installed packages, once."""
    with _lock:
        if _loaded:
            return
        _loaded.append(True)
        try:
            for module in _BUILT_IN:
                for spec in import_module(module).SPECS:
                    register(spec)
        except BaseException:
            # An interrupted import must not leave half of the encoders for the rest of the session.
            _loaded.clear()
            raise
        for entry in entry_points(group="img2gene.encoders"):
            _load_plugin(entry)


def _load_plugin(entry: EntryPoint) -> None:
    """Register the encoder of an installed package; a broken one is named in a warning and left out."""
    try:
        loaded = entry.load()
        register(loaded if isinstance(loaded, EncoderSpec) else loaded())
    # A module can call `sys.exit` while it is imported.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        logger.warning(
            "the encoder %r of an installed package is left out, as it could not be loaded: %s: %s",
            entry.name,
            type(error).__name__,
            error,
        )
