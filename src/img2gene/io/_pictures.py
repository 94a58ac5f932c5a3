"""Open the image that belongs to a platform's folder; large TIFF files stay on disk and are read when needed."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene.io.image_files import check_file, read_image
from img2gene.io.sections import image_problems

if TYPE_CHECKING:
    import dask.array as da

logger = logging.getLogger(__name__)

_TIFF = {".tif", ".tiff", ".btf", ".tf8", ".qptiff"}
# Smaller images fit into memory several times over.
_LARGE_PX = 64_000_000
_CHUNK_PX = 1024


def open_picture(image: Any) -> np.ndarray | da.Array:
    """Open a checked path, or take pixels: uint8 (height, width, 3), as a dask array if the file is large."""
    if not isinstance(image, Path):
        raise_problems(image_problems(image))
        return image
    if image.is_dir():
        raise Img2GeneError(
            f"image={str(image)!r} is a folder ({listing(sorted(path.name for path in image.iterdir()), 5)}). Name the file of "
            "the H&E image (TIFF, JPEG or PNG)."
        )
    if not image.is_file():
        raise Img2GeneError(f"image={str(image)!r}: no such file. Name the H&E image (TIFF, JPEG or PNG).")
    lazy = _open_tiff(image) if image.suffix.lower() in _TIFF else None
    return read_image(image) if lazy is None else lazy


def _open_tiff(path: Path) -> da.Array | None:
    """Open a large TIFF file of 8-bit RGB without reading it; None for any other file."""
    import dask.array as da
    import tifffile
    import zarr

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            page = series.keyframe
            plain = series.axes == "YXS" and series.shape[2] == 3 and series.dtype == np.uint8
            if not plain or series.shape[0] * series.shape[1] < _LARGE_PX:
                return None
            # One tile shows whether this computer can decode the compression.
            next(page.segments(maxworkers=1), None)
            tiled = page.is_tiled
        store = tifffile.imread(path, series=0, level=0, aszarr=True)
        stored = zarr.open_array(store, mode="r")
        # The file stays open for as long as pixels can be read from it.
        weakref.finalize(stored, store.close)
        pixels = da.from_zarr(stored)
    except Exception as error:  # noqa: BLE001 - decoders raise errors of many kinds; Pillow names what it cannot read
        logger.info("%s is read into memory, as it cannot be opened tile by tile (%s)", path, error)
        return None
    check_file(path)
    # Rows of a file without tiles cannot be read in part.
    return pixels.rechunk((_CHUNK_PX, _CHUNK_PX if tiled else -1, 3))
