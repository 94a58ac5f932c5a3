"""Compare the image that a user passes with the small picture of the same section in its folder."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.io._folders import open_file

logger = logging.getLogger(__name__)

_SIDE = 32
# One picture in two sizes correlates above .95; two sections of one tissue, or one section mirrored, correlate less.
_SAME, _OTHER = 0.8, 0.5
_TURNS = {
    "turned by 180°": lambda pixels: pixels[::-1, ::-1],
    "mirrored left to right": lambda pixels: pixels[:, ::-1],
    "mirrored top to bottom": lambda pixels: pixels[::-1],
    "turned by 90° clockwise": lambda pixels: np.rot90(pixels),
    "turned by 90° counterclockwise": lambda pixels: np.rot90(pixels, -1),
    "mirrored along its diagonal": lambda pixels: pixels.transpose(1, 0, 2),
    "mirrored along its other diagonal": lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
}


def check_picture(thumbnail: np.ndarray, hires: Path, section: str) -> None:
    """Refuse an image that is turned or mirrored against the picture of its folder; warn of one that looks different.

    ``thumbnail`` is the image in small, uint8 (height, width, 3), in any size.
    """
    from PIL import Image

    with open_file(hires) as file, Image.open(file) as picture:
        expected = _coarse(picture.convert("RGB"))
    found = _coarse(Image.fromarray(thumbnail))
    alike = _correlation(found, expected)
    if not alike < _SAME:
        return
    others = {name: _correlation(turn(found), expected) for name, turn in _TURNS.items()}
    name = max(others, key=lambda name: others[name])
    if others[name] >= _SAME:
        raise Img2GeneError(
            f"section {section}: the image is {name} against {hires.name}, which the positions refer to, too. Turn it back, "
            "or pass the image that Space Ranger was given."
        )
    if alike < _OTHER:
        logger.warning(
            "section %s: the image does not look like %s of its folder (correlation %.2f). Check that it shows this section: "
            "the positions refer to the image that Space Ranger was given",
            section,
            hires,
            alike,
        )


def _coarse(picture: object) -> np.ndarray:
    from PIL import Image

    return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=float)  # type: ignore[attr-defined]


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Correlate two pictures; 1 if one of them is a single colour, which shows nothing."""
    a, b = first - first.mean(axis=(0, 1)), second - second.mean(axis=(0, 1))
    norm = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / norm) if norm > 0 else 1.0
