"""Define the interface of encoders and the steps that they share: resizing, normalisation, device, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from img2gene._checks import Arguments, shown
from img2gene.encoders.checked import checked_output

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
        """Compute features float32 (n, width) of uint8 (n, h, h, 3) patches, resized to ``side`` pixels first."""
        ...


class TokenEncoder(Protocol):
    """Adds tokens to an encoder: features of each cell of a grid over the patch.

    Examples
    --------
    >>> import numpy as np
    >>> import img2gene as ig
    >>> features, tokens = ig.encoders.load("color-texture").tokens(np.zeros((1, 48, 48, 3), dtype=np.uint8), 48, 3)
    >>> tokens.shape
    (1, 9, 50)
    """

    def tokens(self, patches: np.ndarray, side: int | None, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """Compute the features of a call and, in the same pass, tokens float32 (n, grid², token_width).

        Tokens lie row by row from the top left.
        """
        ...


def resize(patches: np.ndarray, side: int) -> torch.Tensor:
    """Resize uint8 (n, h, h, 3) patches to (n, 3, side, side), bilinearly and with antialiasing when they shrink."""
    import torch
    import torch.nn.functional as F

    # In 8 bits torch is twenty times as fast as in floats, and the results differ by at most one grey level.
    pixels = torch.from_numpy(_contiguous(patches)).permute(0, 3, 1, 2)
    if pixels.shape[-1] == side or not len(pixels):
        return pixels
    return F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def _contiguous(patches: np.ndarray) -> np.ndarray:
    """Copy turned or mirrored patches into the order of their pixels; others stay as they are."""
    if patches.flags.c_contiguous or patches.strides[-1] != patches.itemsize:
        return np.ascontiguousarray(patches)
    # Whole pixels of three bytes are copied twice as fast as single bytes.
    pixels = np.ascontiguousarray(patches.view(np.dtype((np.void, patches.shape[-1])))[..., 0])
    return pixels.view(patches.dtype).reshape(patches.shape)


def normalise(pixels: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> torch.Tensor:
    """Scale uint8 pixels (n, 3, h, w) to 0–1, subtract ``mean`` and divide by ``std``."""
    import torch

    scale, shift = (torch.from_numpy(values).to(pixels.device) for values in _scale_and_shift(mean, std))
    return pixels.float().mul_(scale).sub_(shift)


def normalise_array(
    pixels: np.ndarray, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> np.ndarray:
    """Compute what :func:`normalise` does in numpy.

    For one image at a time, torch's threads cost more than they save: they wait for the next image at full load.
    """
    scale, shift = _scale_and_shift(mean, std)
    values = pixels.astype(np.float32, order="C")
    values *= scale
    values -= shift
    return values


def _scale_and_shift(mean: tuple[float, float, float], std: tuple[float, float, float]) -> list[np.ndarray]:
    """Return a factor and a shift of each channel: one multiplication and one subtraction in place of three passes."""
    factors = [1 / (255 * value) for value in std], [m / s for m, s in zip(mean, std, strict=True)]
    return [np.array(values, dtype=np.float32).reshape(1, 3, 1, 1) for values in factors]


def resolve_device(device: str | None) -> str:
    """Return the torch device ``device``, or the device of the settings for None.

    ``"auto"`` chooses CUDA if there is any, then MPS, then the CPU.
    """
    import torch

    from img2gene.settings import settings

    name = "img2gene.settings.device" if device is None else "device"
    device = settings.device if device is None else device
    if not (isinstance(device, str) and device == "auto"):
        check = Arguments()
        device = check.device(name, device, optional=False)
        check.raise_all()
        return str(device)
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_amp(amp: bool | str | None, device: str) -> bool:
    """Return whether to compute in bfloat16. ``"auto"`` does so on CUDA devices that support it."""
    import torch

    from img2gene.settings import settings

    amp = settings.amp if amp is None else amp
    check = Arguments()
    amp = checked_amp(check, amp)
    check.raise_all()
    # Not on CPUs: some of them are faster in bfloat16 than in torch's float32, but onnxruntime in float32 is faster than
    # both, and more exact (benchmarks/encoder_speed.py).
    return device.startswith("cuda") and torch.cuda.is_bf16_supported() if amp == "auto" else bool(amp)


def checked_amp(check: Arguments, amp: Any) -> Any:
    """Check the precision: True, False, ``"auto"``, or None for the precision of the settings."""
    if amp is None or (isinstance(amp, str) and amp == "auto"):
        return amp
    if isinstance(amp, bool | np.bool_):
        return bool(amp)
    check.messages.append(f"amp={shown(amp)}: choose True, False or 'auto'.")
    return amp


# Images per pass on a GPU: while it computes one part of a batch, the processor resizes the next.
_GPU_PASS = 32


class TorchEncoder:
    """Runs a torch network in inference mode on normalised images.

    Parameters
    ----------
    network
        Module from float (n, 3, side, side) to (n, width). For tokens it also needs a method
        ``with_tokens(images, grid)``, which returns (n, width) and (n, grid², token_width).
    width
        Number of features.
    mean, std
        Normalisation of RGB values in 0–1.
    device
        Torch device, as in :func:`resolve_device`.
    amp
        Whether to compute in bfloat16, as in :func:`resolve_amp`. Features are float32 in both cases.
    name
        Name of the encoder in error messages.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        width: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        *,
        device: str | None = None,
        amp: bool | str | None = None,
        name: str = "of torch",
    ) -> None:
        import torch

        self.name = name
        self.width, self.mean, self.std = width, mean, std
        self.device = resolve_device(device)
        self.amp = resolve_amp(amp, self.device)
        # On the processor a part would wait for the one before.
        self.pass_size = None if self.device == "cpu" else _GPU_PASS
        # Convolutions in channels-last order are faster on CPUs and on tensor cores; the features stay the same.
        layout = torch.channels_last
        self.network = network.eval().to(self.device, memory_format=layout)  # type: ignore[call-overload]

    def __call__(self, patches: np.ndarray, side: int | None = None) -> np.ndarray:
        """Compute features float32 (n, width) of uint8 (n, h, h, 3) patches, resized to ``side`` pixels first."""
        (features,) = self._computed(patches, side, lambda images: (self.network(images),))
        return checked_output(features, (len(patches), self.width), self.name, "features")

    def tokens(self, patches: np.ndarray, side: int | None, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """Compute features and, in the same pass, tokens float32 (n, grid², token_width)."""
        features, tokens = self._computed(patches, side, lambda images: self.network.with_tokens(images, grid))
        return (
            checked_output(features, (len(patches), self.width), self.name, "features"),
            checked_output(tokens, (len(patches), grid**2, tokens.shape[-1]), self.name, "tokens"),
        )

    def _computed(
        self, patches: np.ndarray, side: int | None, run: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
    ) -> list[np.ndarray]:
        """Run the network on all patches, part by part, and fetch the results when the last part is under way."""
        import torch

        size = self.pass_size or max(len(patches), 1)
        with self._inference():
            # At least one part, so that no patches give arrays without rows.
            starts = range(0, max(len(patches), 1), size)
            parts = [run(self._images(patches[start : start + size], side)) for start in starts]
            return [_array(torch.cat(values)) for values in zip(*parts, strict=True)]

    def _images(self, patches: np.ndarray, side: int | None) -> torch.Tensor:
        pixels = resize(patches, side or patches.shape[1])
        if self.device.startswith("cuda"):
            # From pinned memory the copy goes on while the processor resizes the next part.
            pixels = pixels.contiguous().pin_memory().to(self.device, non_blocking=True)
        return normalise(pixels.to(self.device), self.mean, self.std)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        import torch

        with torch.inference_mode(), torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.amp):
            yield


def _array(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
