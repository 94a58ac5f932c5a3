"""Read microns per pixel that an image file states."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

UNITS_UM = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3}
# Above it a file holds the resolution of a print or a screen (72 dots per inch are 353 µm), not that of a scan.
COARSEST_UM = 20.0
INCH_UM = 25_400.0
# Alignments by hand stretch a section by some percent.
_NOTABLE = 0.1


def ome_microns(file: Path) -> list[float]:
    """Read the microns of both sides of a pixel from the metadata of an OME-TIFF; empty if they are not there."""
    import tifffile

    try:
        with tifffile.TiffFile(file) as tiff:
            return _ome(tiff)
    except (tifffile.TiffFileError, OSError, KeyError, SyntaxError, ValueError):
        return []


def positive(value: Any) -> float | None:
    """Read a positive number; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < np.inf else None


def warn_of_other_microns(file: Any, mpp: float, section: str) -> None:
    """Warn if a TIFF file states other microns per pixel than its section has; files without any say nothing."""
    stated = _stated(file) if isinstance(file, Path) else None
    if stated is not None and max(stated / mpp, mpp / stated) - 1 > _NOTABLE:
        logger.warning(
            "section %s: places and alignment give %.4g µm per px, but %s states %.4g. Check that the image has the size that "
            "the places or the alignment refer to, and that an alignment leads from the image to the run, not back",
            section,
            mpp,
            file,
            stated,
        )


def _stated(file: Path) -> float | None:
    """Read microns per pixel of a TIFF file: of OME, or else the resolution of its first page; None without them."""
    import tifffile

    try:
        with tifffile.TiffFile(file) as tiff:
            sides = _ome(tiff) or _resolution(tiff.pages[0])
    except (tifffile.TiffFileError, OSError, KeyError, SyntaxError, ValueError, IndexError, ZeroDivisionError):
        return None
    size = float(np.mean(sides)) if sides else None
    return size if size is not None and size <= COARSEST_UM else None


def _ome(tiff: Any) -> list[float]:
    import tifffile

    text = tiff.ome_metadata if tiff.is_ome else None
    pixels = tifffile.xml2dict(text)["OME"]["Image"] if text else []
    # The first image is the slide, others are its label and macro pictures.
    first = pixels[0] if isinstance(pixels, list) and pixels else pixels
    entry = first.get("Pixels", {}) if isinstance(first, Mapping) else {}
    sizes = []
    for axis in "XY":
        size, unit = positive(entry.get(f"PhysicalSize{axis}")), entry.get(f"PhysicalSize{axis}Unit", "µm")
        if size is not None and unit in UNITS_UM:
            sizes.append(size * UNITS_UM[unit])
    return sizes


def _resolution(page: Any) -> list[float]:
    """Read the tags of the resolution, which count pixels per inch or centimetre."""
    unit = {2: INCH_UM, 3: 10_000.0}.get(int(page.tags.valueof(296, default=0)))
    if unit is None:
        return []
    counts = [page.tags.valueof(tag, default=(0, 1)) for tag in (282, 283)]
    return [unit * below / above for above, below in counts if above > 0 and below > 0]
