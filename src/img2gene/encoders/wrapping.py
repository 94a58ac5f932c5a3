"""Make encoders of networks and functions of the session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError
from img2gene._schema import MAX_SIDE_PX
from img2gene.encoders._digests import digest, full_revision, source
from img2gene.encoders.base import TorchEncoder
from img2gene.encoders.registry import register
from img2gene.encoders.repository import known_side
from img2gene.encoders.spec import EncoderSpec, channels

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
        Version of the model, which trained models store. None takes a digest of the weights, layers and normalisation of a
        module, of the attributes of layers that no library defines, and of the source of those defined in the session. To
        a version of yours, a digest of the normalisation is added. A function needs a version.
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
    side = check.whole("input_px", known_side(known) if input_px is None else input_px, 1, MAX_SIDE_PX)
    if not is_module and revision is None:
        check.messages.append(
            "revision=None: name the version of this function, so that models can tell it from later ones."
        )
    if not isinstance(revision, str | int | None):
        check.messages.append(f"revision={shown(revision)}: expected text.")
    statistics = _statistics(check, known, mean, std) if is_module else ((0.0,) * 3, (1.0,) * 3)
    check.raise_all()
    wrapped = WrappedModel(model, is_module, digest(model) if is_module else source(model))
    if is_module:
        revision = full_revision(revision, wrapped.digest, statistics)
    spec = EncoderSpec(
        name=name,
        width=wrapped.width(name, side),
        input_px=side,
        any_size=False,
        mpp=mpp,
        mean=statistics[0],
        std=statistics[1],
        licence=licence,
        gated=False,
        source="wrapped",
        revision=str(revision),
        build=wrapped,
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
    before = len(check.messages)
    mean, std = channels(check, "mean", mean), channels(check, "std", std)
    if len(check.messages) > before:
        return mean, std
    for name, values in (("mean", mean), ("std", std)):
        # With statistics of bytes, every image would be nearly black.
        if not all(0 <= value <= 1 for value in values):
            check.messages.append(f"{name}={values}: expected values of RGB in 0–1; divide those of 0–255 by 255.")
    if not all(std):
        check.messages.append(f"std={std}: a standard deviation of 0 cannot be divided by.")
    return mean, std


class WrappedModel:
    """Builds the encoder of a wrapped model."""

    def __init__(self, model: Any, is_module: bool, digest: str) -> None:
        self.model, self.is_module, self.digest = model, is_module, digest

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WrappedModel):
            return NotImplemented
        # A cell that is run again makes the same model anew; functions without source are told apart by themselves.
        is_same = self.digest != "" or self.model is other.model
        return is_same and (self.is_module, self.digest) == (other.is_module, other.digest)

    def __hash__(self) -> int:
        return hash((self.is_module, self.digest))

    def __call__(self, spec: EncoderSpec, *, device: str | None, amp: bool | str | None, backend: str) -> Encoder:
        """Return the encoder of the model. A model whose weights have changed since `wrap` is refused."""
        if not self.is_module:
            return FunctionEncoder(self.model, spec.width)
        if digest(self.model) != self.digest:
            raise Img2GeneError(
                f"The weights or attributes of encoder `{spec.name}` have changed since `img2gene.encoders.wrap`, so they are not those of "
                f"revision {spec.revision}. Wrap the network again under another name."
            )
        return ModuleEncoder(self.model, spec.width, spec.mean, spec.std, device=device, amp=amp, name=spec.name)

    def width(self, name: str, side: int) -> int:
        """Count the features of test images. Features of an image must not depend on other images, or vary between calls."""
        try:
            pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
            both, one = (np.asarray(self._features(images)) for images in (pixels, pixels[:1]))
        except Exception as error:
            raise Img2GeneError(
                f"The model of encoder `{name}` failed on two test images of {side} px: {type(error).__name__}: {error}"
            ) from error
        if both.ndim != 2 or len(both) != 2 or both.dtype.kind not in "fiu":
            what = f"{both.dtype} values of shape {both.shape}" if both.dtype.kind not in "fiu" else str(both.shape)
            raise Img2GeneError(
                f"The model of encoder `{name}` returned {what} for two images; expected numbers (2, width)."
            )
        if not np.isfinite(both).all():
            raise Img2GeneError(f"The model of encoder `{name}` returned NaN or infinity for a test image.")
        if one.shape[1:] != both.shape[1:] or not np.allclose(both[0], one[0], 1e-2, 1e-3 * np.abs(both).max()):
            raise Img2GeneError(
                f"The model of encoder `{name}` returned other features for an image alone than for the same image in a batch of "
                "two: its features depend on the batch or on chance, so they cannot be compared between calls. Remove batch "
                "normalisation in training mode, dropout, or whatever else does this."
            )
        return int(both.shape[1])

    def _features(self, pixels: np.ndarray) -> Any:
        if not self.is_module:
            return self.model(pixels.copy())
        import torch

        device = next(iter(self.model.parameters()), torch.empty(0)).device
        with torch.inference_mode(), _evaluating(self.model):
            features = self.model(torch.from_numpy(pixels / np.float32(255)).permute(0, 3, 1, 2).to(device))
        if not isinstance(features, torch.Tensor):
            raise TypeError(f"it returned a {type(features).__name__} and not a tensor (n, width)")
        return features.float().cpu().numpy()


class ModuleEncoder(TorchEncoder):
    """Runs a network of the session, which may still be trained: it is in evaluation mode only while it computes."""

    def __init__(self, network: nn.Module, *arguments: Any, **options: Any) -> None:
        with _evaluating(network):
            super().__init__(network, *arguments, **options)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        with super()._inference(), _evaluating(self.network):
            yield


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and each of its layers back into its own mode afterwards."""
    modes = {layer: layer.training for layer in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for layer, training in modes.items():
            layer.training = training


class FunctionEncoder:
    """Runs a function of patches."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], width: int) -> None:
        self.function, self.width = function, width

    def __call__(self, patches: np.ndarray, side: int | None = None) -> np.ndarray:
        """Compute features float32 (n, width) of uint8 (n, h, h, 3) patches, resized to ``side`` pixels first."""
        from img2gene.encoders.base import resize

        resized = resize(patches, side or patches.shape[1]).permute(0, 2, 3, 1).numpy()
        # A copy, as a function can write into its argument, and other orientations are made of the same pixels.
        return np.asarray(self.function(resized.copy()), dtype=np.float32)
