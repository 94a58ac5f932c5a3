"""Make encoders of networks and functions that are at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError
from img2gene.encoders.base import TorchEncoder
from img2gene.encoders.registry import register
from img2gene.encoders.repository import known_side
from img2gene.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    from torch import nn

    from img2gene.encoders.base import Encoder


def wrap(
    model: nn.Module | Callable[[np.ndarray], np.ndarray],
    name: str,
    *,
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
    input_px: int | None = None,
    mpp: float | None = None,
    revision: str | None = None,
    licence: str = "not stated",
) -> EncoderSpec:
    """Make an encoder of a network or of a function, and register it under a name.

    Parameters
    ----------
    model
        A torch module from normalised images, float (n, 3, side, side), to features (n, width); or another callable from
        uint8 (n, side, side, 3) arrays to features (n, width).
    name
        Name of the encoder; embeddings are stored in ``obsm["X_<name>"]``.
    mean, std
        Normalisation of RGB values in 0–1 for a module, three numbers each. None takes those that timm has recorded with the
        module (``pretrained_cfg``); without any, the call is refused. A function normalises itself.
    input_px
        Side of the images in pixels that patches are resized to. None takes what timm has recorded, else 224.
    mpp
        Microns per pixel of its training images, where known.
    revision
        Version of the weights, which models store. None takes a digest of the weights of a module; a function needs one.
    licence
        Licence of the weights.

    Returns
    -------
    The :class:`EncoderSpec`, which is registered for this session, and which :func:`img2gene.pp.embed_patches` takes, too.

    Raises
    ------
    Img2GeneError
        An argument is missing or invalid, the name is taken by another encoder, or the model fails on a test image.

    Examples
    --------
    >>> import torch
    >>> import img2gene as ig
    >>> network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    >>> ig.encoders.wrap(network, "colours", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)).width
    12
    """
    import torch

    check = Arguments()
    if not callable(model):
        check.messages.append(f"model={shown(model)}: expected a torch module, or a function of patches.")
    is_module = isinstance(model, torch.nn.Module)
    known = getattr(model, "pretrained_cfg", None) or {}
    side = check.whole("input_px", input_px or known_side(known), 1)
    if is_module and revision is None:
        revision = _digest(model)
    if revision is None:
        check.messages.append(
            "revision=None: name the version of this function, so that models can tell it from later ones."
        )
    statistics = _statistics(check, known, mean, std) if is_module else ((0.0,) * 3, (1.0,) * 3)
    check.raise_all()
    given = WrappedModel(model, is_module)
    spec = EncoderSpec(
        name=name,
        width=given.width(name, side),
        input_px=side,
        any_size=False,
        mpp=mpp,
        mean=statistics[0],
        std=statistics[1],
        licence=licence,
        gated=False,
        source="wrapped",
        revision=str(revision),
        build=given,
    )
    register(spec)
    return spec


def _statistics(check: Arguments, known: dict[str, Any], mean: Any, std: Any) -> tuple[Any, Any]:
    """Take the normalisation of a call, or what timm has recorded; a module without any is refused."""
    mean, std = (known.get(key) if value is None else value for key, value in (("mean", mean), ("std", std)))
    if mean is None or std is None:
        check.messages.append(
            "mean=None, std=None: the network comes without statistics of its training images. Pass what it was trained with, such as "
            "mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225) of ImageNet."
        )
    return mean, std


class WrappedModel:
    """The ``build`` function of an encoder that was made of a model at hand."""

    def __init__(self, model: Any, is_module: bool) -> None:
        self.model, self.is_module = model, is_module

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WrappedModel) and self.model is other.model

    def __hash__(self) -> int:
        return id(self.model)

    def __call__(self, spec: EncoderSpec, *, device: str | None, amp: bool | str | None, backend: str) -> Encoder:
        """Return the encoder of the model."""
        if not self.is_module:
            return FunctionEncoder(self.model, spec.width)
        return TorchEncoder(self.model, spec.width, spec.mean, spec.std, device=device, amp=amp, name=spec.name)

    def width(self, name: str, side: int) -> int:
        """Count the features of a test image."""
        grey = np.full((2, side, side, 3), 200, dtype=np.uint8)
        try:
            if self.is_module:
                import torch

                device = next(iter(self.model.parameters()), torch.empty(0)).device
                with torch.inference_mode():
                    self.model.eval()
                    features = self.model(torch.zeros((2, 3, side, side), device=device))
            else:
                features = np.asarray(self.model(grey))
            shape = tuple(features.shape)
        except Exception as error:
            raise Img2GeneError(
                f"The model of encoder `{name}` failed on two test images of {side} px: {type(error).__name__}: {error}"
            ) from error
        if len(shape) != 2 or shape[0] != 2:
            raise Img2GeneError(f"The model of encoder `{name}` returned {shape} for two images; expected (2, width).")
        return int(shape[1])


class FunctionEncoder:
    """Runs a function of patches."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], width: int) -> None:
        self.function, self.width = function, width

    def __call__(self, patches: np.ndarray, side: int | None = None) -> np.ndarray:
        """Compute features float32 (n, width) of uint8 (n, h, h, 3) patches, resized to ``side`` pixels first."""
        from img2gene.encoders.base import resize

        resized = resize(patches, side or patches.shape[1]).permute(0, 2, 3, 1).numpy()
        return np.asarray(self.function(resized), dtype=np.float32)


def _digest(model: Any) -> str:
    """Compute a digest of the weights of a module."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().float().numpy()))
    return digest.hexdigest()[:40]
