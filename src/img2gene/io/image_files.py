"""Read image files as RGB, by the colour mode that the file declares."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene._study.colours import to_rgb
from img2gene.io._folders import open_file

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_COLOUR = {"RGB", "RGBX", "RGBA", "RGBa", "P", "PA", "CMYK", "YCbCr", "HSV"}
_WITH_ALPHA = {"RGBA", "RGBa", "PA"}
# Steps between the values of each channel in the palette of 216 web colours.
_WEB_STEP = 51
_BITS_PER_SAMPLE = 258  # tag of TIFF files
_ORIENTATION = 274  # tag of TIFF files and of EXIF
_ANIMATED = {"GIF", "PNG", "WEBP"}
_OWN_FILE = "Save the page that the positions of the spots refer to as a file of its own."
_UNCERTAIN = "the intensity scale is not certain. Convert the image to 8-bit RGB first."
_MERGE = (
    " If the pages are the red, green and blue planes of one image, merge them: `tifffile.imwrite(path, "
    "tifffile.imread(name).transpose(1, 2, 0), photometric='rgb', tile=(512, 512))`."
)
# Pillow's readers raise these on files that are cut, damaged or no image.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


def read_image(path: Path) -> np.ndarray:
    """Read an image file as uint8 (height, width, 3).

    Palettes, CMYK, YCbCr and HSV are converted, and transparent pixels are laid over white. Grey images, modes without
    a certain conversion, palettes of web colours, and 16-bit images that do not use their range are refused, and so are
    images that a tag turns or mirrors, files with several pages of the same size, and TIFF files whose first page is not
    the largest.
    """
    from PIL import Image

    # Pillow refuses images of the size of whole slides as possible decompression bombs. Users trust their own files.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with open_file(path) as file, Image.open(file) as picture:
            _check_orientation(picture, str(path))
            _check_pages(picture, str(path))
            return _as_rgb(picture, str(path))
    except Img2GeneError:
        raise
    except _UNREADABLE as error:
        raise Img2GeneError(
            f"{str(path)!r} cannot be read as an image ({error}). Name a JPEG, PNG or TIFF file, or pass its pixels."
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def check_file(path: Path) -> None:
    """Refuse a file that viewers show turned, or whose first page is not the only one of its size; read no pixels."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as picture:
            _check_orientation(picture, str(path))
            _check_pages(picture, str(path))
    except Img2GeneError:
        raise
    except _UNREADABLE:
        # Some large files are read by tifffile alone.
        return
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _as_rgb(picture: Image, name: str) -> np.ndarray:
    """Convert a picture by its mode."""
    mode = picture.mode
    if mode in _GREY:
        raise Img2GeneError(
            f"{name}: expected a colour image, got mode {mode!r} (grey images are refused). H&E images have three "
            "colours; choose the colour version of this image."
        )
    if mode not in _COLOUR:
        raise Img2GeneError(f"{name}: colour mode {mode!r} is not supported. Convert the image to RGB first.")
    deep = _is_deep(picture, name)
    transparent = mode in _WITH_ALPHA or "transparency" in picture.info
    pixels = to_rgb(np.asarray(picture.convert("RGBA" if transparent else "RGB")), name)
    if mode in ("P", "PA") and pixels.size:
        _check_palette(np.asarray(picture.convert("RGB")), name)
    # Pillow keeps the upper 8 of 16 bits, so 12-bit values in a 16-bit file would come out almost black.
    if deep and pixels.size and pixels.max() < 128:
        raise Img2GeneError(f"{name}: 16-bit pixels up to about {int(pixels.max()) * 256}: {_UNCERTAIN}")
    return pixels


def _check_orientation(picture: Image, name: str) -> None:
    """Refuse an image that viewers show turned or mirrored, because positions may refer to either form."""
    # Pillow applies this tag to TIFF files, and not to JPEG files.
    orientation = picture.getexif().get(_ORIENTATION, 1)
    if orientation in range(2, 9):
        raise Img2GeneError(
            f"{name}: the orientation tag is {orientation}, so viewers show the image turned or mirrored. Save it without "
            "the tag, in the form that the positions of the spots refer to. `PIL.ImageOps.exif_transpose` gives the form "
            "that viewers show."
        )


def _check_pages(picture: Image, name: str) -> None:
    """Refuse a file unless its first page, the one that is read, is the only page of the largest size."""
    sizes = _page_sizes(picture)
    width, height = sizes[0]
    largest = max(range(len(sizes)), key=lambda page: sizes[page][0] * sizes[page][1])
    if sizes[largest][0] * sizes[largest][1] > width * height:
        raise Img2GeneError(
            f"{name}: the first of {len(sizes)} pages has {width} × {height} px, and page {largest + 1} has "
            f"{sizes[largest][0]} × {sizes[largest][1]}. {_OWN_FILE}"
        )
    # The levels of a pyramid become smaller. Pages of one size are focal planes, channels or different slides.
    n_equal = sizes.count(sizes[0])
    if n_equal > 1:
        raise Img2GeneError(
            f"{name}: {n_equal} of {len(sizes)} pages have the same size of {width} × {height} px, as in a stack of focal "
            f"planes, and only one page can be read. {_OWN_FILE}{_MERGE if n_equal == 3 else ''}"
        )


def _page_sizes(picture: Image) -> list[tuple[int, int]]:
    """List width and height of each page."""
    n_pages = getattr(picture, "n_frames", 1)
    if picture.format in _ANIMATED:
        # All frames of an animation have the size of the file.
        return [picture.size] * n_pages
    if picture.format != "TIFF":
        return [picture.size]
    sizes = []
    for page in range(n_pages):
        picture.seek(page)
        sizes.append(picture.size)
    picture.seek(0)
    return sizes


def _check_palette(pixels: np.ndarray, name: str) -> None:
    """Refuse palettes that cannot hold the colours of a stain."""
    if not np.ptp(pixels, axis=-1).any():
        raise Img2GeneError(f"{name}: the palette holds no colour but grey (grey images are refused).")
    # Editors replace each pixel by the nearest of 216 fixed colours, which are off by up to 25 in each channel.
    if not (pixels % _WEB_STEP).any():
        raise Img2GeneError(
            f"{name}: the palette holds only the 216 colours of the web, which are too coarse for a stained section. "
            "Export the image as RGB."
        )


def _is_deep(picture: Image, name: str) -> bool:
    """Check whether the file holds more than 8 bits per channel; call it before the pixels are loaded."""
    # Pillow drops the raw modes of the file, such as "RGB;16B", once the pixels are loaded.
    raw = [str(tile[3]) for tile in getattr(picture, "tile", ())]
    deep = any("16" in mode for mode in raw)
    bits = getattr(picture, "tag_v2", {}).get(_BITS_PER_SAMPLE, 8)
    # Pillow reads 16-bit colour planes of a TIFF as if they had 8 bits.
    if not deep and max(np.atleast_1d(np.asarray(bits))) > 8:
        raise Img2GeneError(f"{name}: colour planes of more than 8 bits: {_UNCERTAIN}")
    return deep
