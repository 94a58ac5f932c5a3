"""What every encoder is, and the steps they share: resize, normalise, device and precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np

from img2gene._errors import Img2GeneError

if TYPE_CHECKING:
    import torch


class Encoder(Protocol):
    """Turns patches into features.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.encoders.load("color-texture").width
    50
    """

    width: int

    def __call__(self, patches: np.ndarray, side: int | None = None) -> np.ndarray:
        """Features float32 (n, width) of uint8 (n, h, h, 3) patches, resized to ``side`` pixels first."""
        ...


class TokenEncoder(Protocol):
    """What an encoder has besides if it can tell where in a patch its features were found: tokens, one for each cell of a grid.

    Examples
    --------
    >>> import numpy as np
    >>> import img2gene as ig
    >>> features, tokens = ig.encoders.load("color-texture").tokens(np.zeros((1, 48, 48, 3), dtype=np.uint8), 48, 3)
    >>> tokens.shape
    (1, 9, 50)
    """

    def tokens(self, patches: np.ndarray, side: int | None, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """Features as from a call, and tokens float32 (n, grid², token_width), row by row from the top left.

        Both come from one pass.
        """
        ...


def resize(patches: np.ndarray, side: int) -> torch.Tensor:
    """Resize uint8 (n, h, h, 3) patches to (n, 3, side, side): bilinear, antialiased when shrinking.

    It stays in 8 bits, where torch is twenty times as fast as in floats and at most one grey level away from them.
    """
    import torch
    import torch.nn.functional as F

    pixels = torch.from_numpy(np.ascontiguousarray(patches)).permute(0, 3, 1, 2)
    if pixels.shape[-1] == side or not len(pixels):
        return pixels
    return F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def normalise(pixels: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> torch.Tensor:
    """Floats (n, 3, h, w) of uint8 pixels: scaled to 0–1, minus ``mean``, over ``std``."""
    import torch

    scale = torch.tensor([1 / (255 * value) for value in std], device=pixels.device).view(1, 3, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=pixels.device).view(1, 3, 1, 1)
    return pixels.float().mul_(scale).sub_(shift)


def resolve_device(device: str | None) -> str:
    """The device asked for, else the one in the settings; ``"auto"`` takes CUDA, then MPS, then the CPU."""
    import torch

    from img2gene.settings import settings

    device = device or settings.device
    if device != "auto":
        try:
            return str(torch.device(device))
        except RuntimeError as error:
            raise Img2GeneError(f"device={device!r}: {error}") from error
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_amp(amp: bool | str | None, device: str) -> bool:
    """Whether to compute in bfloat16; ``"auto"`` says yes on CUDA devices that have it.

    On CPUs it has to be asked for: where they compute in it natively it beats torch's float32, but onnxruntime in float32
    beats both and keeps the last digits (``benchmarks/encoder_speed.py``).
    """
    import torch

    from img2gene.settings import settings

    amp = settings.amp if amp is None else amp
    if amp not in (True, False, "auto"):
        raise Img2GeneError(f"amp={amp!r}: choose True, False or 'auto'.")
    return device.startswith("cuda") and torch.cuda.is_bf16_supported() if amp == "auto" else bool(amp)


class TorchEncoder:
    """A network in inference mode that maps normalised images to features.

    Parameters
    ----------
    network
        Module from float (n, 3, side, side) to (n, width); for tokens it also has ``with_tokens(images, grid)``, which
        gives (n, width) and (n, grid², token_width).
    width
        Number of features.
    mean, std
        Normalisation of RGB values in 0–1.
    device
        Torch device.
    amp
        Compute in bfloat16; features are float32 either way.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        width: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        *,
        device: str = "cpu",
        amp: bool = False,
    ) -> None:
        import torch

        self.width, self.mean, self.std, self.device, self.amp = width, mean, std, device, amp
        self.network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, patches: np.ndarray, side: int | None = None) -> np.ndarray:
        """Features float32 (n, width) of uint8 (n, h, h, 3) patches, resized to ``side`` pixels first."""
        with self._inference():
            return _array(self.network(self._images(patches, side)))

    def tokens(self, patches: np.ndarray, side: int | None, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """Features, and tokens float32 (n, grid², token_width) of the same pass."""
        with self._inference():
            features, tokens = self.network.with_tokens(self._images(patches, side), grid)
            return _array(features), _array(tokens)

    def _images(self, patches: np.ndarray, side: int | None) -> torch.Tensor:
        return normalise(resize(patches, side or patches.shape[1]).to(self.device), self.mean, self.std)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        import torch

        with torch.inference_mode(), torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.amp):
            yield


def _array(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
