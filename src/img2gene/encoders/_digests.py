"""Digests of networks and functions of the session: equal digests mean equal features."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

# Their layers print all their settings; attributes beside these change with each release.
_LIBRARIES = {"torch", "torchvision", "timm", "transformers"}


def digest(model: Any) -> str:
    """Compute a digest of the weights and layers of a module, and of the attributes of layers that no library defines."""
    total = hashlib.sha256(repr(model).encode())
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode())
        # Modules can keep other things than tensors beside their weights.
        total.update(_bytes(value))
    for name, layer in model.named_modules():
        if type(layer).__module__.split(".")[0] not in _LIBRARIES:
            total.update(f"{name}{source(type(layer))}".encode())
            for key, value in sorted(_attributes(layer)):
                total.update(key.encode())
                total.update(_bytes(value))
    return total.hexdigest()


def full_revision(stated: str | int | None, weights: str, statistics: tuple[Any, Any]) -> str:
    """Return the revision of a module, which covers its normalisation, too: it changes the features as the weights do."""
    if stated is None:
        return hashlib.sha256(f"{weights} {statistics}".encode()).hexdigest()[:40]
    return f"{stated}+{hashlib.sha256(str(statistics).encode()).hexdigest()[:8]}"


def source(defined: Callable[..., Any]) -> str:
    """Read the source of a function or class of the session; empty for one of a package, or one without source."""
    if getattr(defined, "__module__", None) != "__main__":
        return ""
    try:
        return inspect.getsource(defined)
    except (OSError, TypeError):
        return ""


def _attributes(layer: Any) -> Iterator[tuple[str, Any]]:
    """Give the plain attributes of a layer, and the buffers that its state does not hold."""
    stored = layer.state_dict()
    yield from ((name, value) for name, value in layer.named_buffers(recurse=False) if name not in stored)
    for name, value in vars(layer).items():
        if not name.startswith("_") and name != "training" and _is_plain(value):
            yield name, value


def _is_plain(value: Any) -> bool:
    """Whether the text of a value is the same in each session."""
    if isinstance(value, Mapping):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str | bytes | np.ndarray) or _is_tensor(value)


def _bytes(value: Any) -> bytes:
    if _is_tensor(value):
        return np.ascontiguousarray(value.detach().cpu().float().numpy()).tobytes()
    return np.ascontiguousarray(value).tobytes() if isinstance(value, np.ndarray) else repr(value).encode()


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)
