"""Refuse slide files whose pixels the readers of slides would show otherwise than they are."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from img2gene._errors import Img2GeneError

logger = logging.getLogger(__name__)

_ORIENTATION = 274
_GREY = {"MINISBLACK", "MINISWHITE"}
_CONVERT = (
    "Convert it, for example by `tifffile.imwrite(new, pixels, photometric='rgb', tile=(512, 512), resolution=…, "
    "resolutionunit='CENTIMETER')` of 8-bit RGB pixels."
)
# Readers crop up to a tile at the edge.
_SAME_SIZE = 0.9


def check_pixels(file: Path, shape: tuple[int, ...]) -> None:
    """Refuse a TIFF file unless the picture of ``shape`` (height, width) that is read from it is its largest, and colour.

    OpenSlide turns each tile by itself where a tag turns the picture, makes grey pixels colours, and scales deeper ones by
    the whole range; other readers fail when the pixels are read. Files of other kinds are let through.
    """
    import tifffile

    try:
        with tifffile.TiffFile(file) as tiff:
            series = max(tiff.series, key=_area)
            page, axes, sizes, area = series.keyframe, series.axes, series.shape, _area(series)
            orientation = int(page.tags.valueof(_ORIENTATION, default=1))
            kind, dtype = getattr(page.photometric, "name", ""), page.dtype
    except (tifffile.TiffFileError, OSError, ValueError, KeyError, IndexError, AttributeError):
        return
    if shape[0] * shape[1] < _SAME_SIZE * area:
        raise Img2GeneError(
            f"{str(file)!r}: a picture of {shape[0]} × {shape[1]} px is read from it, but its largest has {area:,} px (axes {axes}, "
            f"{' × '.join(map(str, sizes))}). Save the largest as a file of its own."
        )
    if orientation != 1:
        raise Img2GeneError(
            f"{str(file)!r}: the orientation tag is {orientation}, so the picture is stored turned or mirrored, and tiles would be "
            "turned one by one. Save it without the tag."
        )
    channels = max((size for axis, size in zip(axes, sizes, strict=True) if axis in "SC"), default=1)
    if kind in _GREY and channels < 3:
        raise Img2GeneError(
            f"{str(file)!r} is grey, as fluorescence is ({channels} channel(s)); H&E slides have three colours."
        )
    if dtype is not None and dtype != np.uint8:
        raise Img2GeneError(f"{str(file)!r} has pixels of type {dtype}; slides are read as 8-bit RGB. {_CONVERT}")
    planes = [f"{size} ({axis})" for axis, size in zip(axes, sizes, strict=True) if axis in "ZT" and size > 1]
    if planes:
        logger.warning("%s has several planes, %s, of which the first is read", file, " and ".join(planes))


def _area(series: Any) -> int:
    sides = dict(zip(series.axes, series.shape, strict=True))
    return int(sides.get("Y", 0) * sides.get("X", 0))
