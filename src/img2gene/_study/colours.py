"""Convert pixels to 8-bit RGB where their meaning is certain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from img2gene._errors import Img2GeneError, listing

WHITE = 255
_RGBA = "rgba"
_COLOURS = {"red": "r", "green": "g", "blue": "b", "alpha": "a", **{letter: letter for letter in _RGBA}}


def to_rgb(pixels: np.ndarray, name: str) -> np.ndarray:
    """Convert (height, width, channels) pixels to uint8 RGB where the meaning is certain.

    uint8 RGB is returned as it is; RGBA is laid over white; floats within 0–1 and 16-bit values that use their full
    range are rescaled; 8-bit values in a 16-bit container are kept.

    Raises
    ------
    Img2GeneError
        Grey or multi-channel pixels, floats outside 0–1, or an uncertain bit depth.
    """
    if pixels.ndim != 3:
        raise Img2GeneError(
            f"{name}: expected (height, width, 3) pixels, got shape {pixels.shape} (grey images are refused)."
        )
    low, high = (
        (0.0, 0.0) if pixels.dtype == np.uint8 or not pixels.size else (float(pixels.min()), float(pixels.max()))
    )
    return conversion(pixels.shape[2], pixels.dtype, low, high, name)(pixels)


def conversion(
    channels: int, dtype: np.dtype, low: float, high: float, name: str, *, alpha_is_named: bool = True
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that turns blocks (height, width, channels) with this value range into uint8 RGB."""
    if channels not in (3, 4):
        raise Img2GeneError(
            f"{name}: {channels} channel(s); H&E images have 3 (RGB) or 4 (RGBA). A grey or fluorescence image is not "
            "what the encoders were trained on: choose another image with `images=`."
        )
    scale = _scale(dtype, low, high, name)

    def convert(block: np.ndarray) -> np.ndarray:
        eight = block if scale is None else np.rint(np.clip(block * scale, 0, 255)).astype(np.uint8)
        if channels == 4 and not alpha_is_named and (eight[..., 3] < 255).any():
            raise Img2GeneError(
                f"{name}: the fourth channel has no name and is not opaque, so it may be alpha, black (CMYK) or a stain. "
                "Name the channels, `sdata.set_channel_names(image, ['r', 'g', 'b', 'a'])`, or convert to RGB."
            )
        return np.ascontiguousarray(eight if channels == 3 else _over_white(eight))

    return convert


def channel_order(channels: list[object], name: str) -> list[int]:
    """Return the positions of red, green, blue and, if there is one, alpha, from names or consecutive numbers."""
    words = [str(channel).strip().lower() for channel in channels]
    letters = [_COLOURS.get(word, "") for word in words]
    expected = _RGBA[: len(words)]
    if len(words) in (3, 4) and sorted(letters) == sorted(expected):
        return [letters.index(letter) for letter in expected]
    numbers = [int(word) for word in words if word.isdecimal()]
    if len(numbers) == len(words) and sorted(numbers) == list(range(min(numbers), min(numbers) + len(numbers))):
        return np.argsort(numbers).tolist()
    raise Img2GeneError(
        f"{name}: channels are {listing(channels)}, not RGB. Choose another image with `images=`, or, if they are red, "
        "green and blue, name them with `sdata.set_channel_names(image, ['r', 'g', 'b'])`."
    )


def _scale(dtype: np.dtype, low: float, high: float, name: str) -> float | None:
    """Return the factor that scales pixels to 8 bit, None for 8-bit pixels; refuse an uncertain intensity scale."""
    if dtype == np.uint8:
        return None
    if np.issubdtype(dtype, np.floating) and low >= 0 and high <= 1:
        return 255.0
    if np.issubdtype(dtype, np.integer) and low >= 0:
        if high <= 255:
            return 1.0
        # The white background of a brightfield scan fills the upper half of the range of its bit depth.
        if dtype == np.uint16 and high >= 2**15:
            return 255 / 65535
    raise Img2GeneError(
        f"{name}: {dtype} pixels from {low:.4g} to {high:.4g}: the intensity scale is not certain. "
        "Convert the image to uint8 RGB (0–255), or to floats within 0–1, first."
    )


def _over_white(rgba: np.ndarray) -> np.ndarray:
    """Lay RGBA pixels over a white background."""
    alpha = rgba[..., 3:].astype(np.uint16)
    # Adding 127 makes the whole-number division round to the nearest value.
    blended = (rgba[..., :3].astype(np.uint16) * alpha + WHITE * (255 - alpha) + 127) // 255
    return blended.astype(np.uint8)
