"""Normalise the stain of an image by squidpy, from a thumbnail and its tissue."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene._study.images import UnreadablePixelsError, open_image, scales
from img2gene._study.pyramids import thumbnail
from img2gene._study.tissue import slide_tissue

if TYPE_CHECKING:
    import dask.array as da
    from spatialdata import SpatialData
    from squidpy.experimental.im import StainReference

METHODS = ("macenko", "reinhard", "vahadane")
# Pixels that the stain of an image is estimated from. Ten times as many change no colour by more than a grey level.
_FIT_PX = 500_000
# Smaller images are normalised once and kept, as several functions read them.
KEPT_PX = 50_000_000
_PICTURE, _TISSUE = "picture", "picture_tissue"


@dataclass(frozen=True)
class Sample:
    """What the stain of an image is estimated from.

    Attributes
    ----------
    name
        Name of the image.
    pixels
        uint8 (height, width, 3): some of its pixels.
    tissue
        bool (height, width).
    """

    name: str
    pixels: np.ndarray
    tissue: np.ndarray

    @classmethod
    def of(cls, sdata: SpatialData, image_key: str) -> Sample:
        """Take pixels of an image; one without tissue is refused."""
        height, width = scales(sdata, image_key)[0].shape[1:]
        pixels, _ = thumbnail(sdata, image_key, max(1, int(np.sqrt(height * width / _FIT_PX))))
        tissue, _ = slide_tissue(pixels)
        if not tissue.any():
            raise Img2GeneError(
                f"`{image_key}` shows no tissue, so its stain cannot be found. Leave it out of `images`."
            )
        return cls(image_key, pixels, tissue)

    def reference(self, method: str) -> StainReference:
        """Fit the stain."""
        from squidpy.experimental.im import fit_stain_reference

        with _named(self.name, method):
            return fit_stain_reference(self._picture(None), _PICTURE, method=method)

    def normalised(self, level: da.Array, reference: StainReference) -> da.Array:
        """Give the pixels of a scale, uint8 (3, height, width), the stain of the reference; background stays as it is."""
        from squidpy.experimental.im import normalize_stains

        with _named(self.name, reference.method):
            return normalize_stains(self._picture(level), _PICTURE, reference, inplace=False).data.astype(np.uint8)

    def _picture(self, level: da.Array | None) -> SpatialData:
        """Build the object that squidpy reads: the scale to change, and the sample, which it estimates from."""
        import dask.array as da
        import xarray as xr
        from spatialdata import SpatialData
        from spatialdata.models import Image2DModel, Labels2DModel

        small = da.from_array(np.moveaxis(self.pixels, -1, 0))
        images, labels = [] if level is None else [level], [] if level is None else [_enlarged(self.tissue, level)]
        images, labels = [*images, small], [*labels, da.from_array(self.tissue.astype(np.uint8))]
        rgb = ["r", "g", "b"]
        both = (
            [Image2DModel.parse(values, dims=("c", "y", "x"), c_coords=rgb) for values in images],
            [Labels2DModel.parse(values, dims=("y", "x")) for values in labels],
        )
        trees = [
            xr.DataTree.from_dict({f"scale{i}": xr.Dataset({"image": values}) for i, values in enumerate(arrays)})
            for arrays in both
        ]
        return SpatialData(images={_PICTURE: trees[0]}, labels={_TISSUE: trees[1]})


def is_reference(value: Any) -> bool:
    """Whether a value is a stain that squidpy has fitted."""
    with warnings.catch_warnings():
        # Packages that squidpy loads warn of their own use of each other.
        warnings.simplefilter("ignore")
        from squidpy.experimental.im import StainReference
    return isinstance(value, StainReference)


def normalised_scales(sdata: SpatialData, sample: Sample, reference: StainReference) -> list[da.Array]:
    """Normalise each scale of an image, uint8 (3, height, width), full resolution first."""
    import dask.array as da

    levels = []
    for number in range(len(scales(sdata, sample.name))):
        image = open_image(sdata, sample.name, scale=number)
        level = sample.normalised(image.lazy(), reference)
        if image.height * image.width <= KEPT_PX:
            level = da.from_array(_pixels(level, sample.name), chunks=level.chunks)
        levels.append(level)
    return levels


def _pixels(level: da.Array, name: str) -> np.ndarray:
    """Compute the pixels of a scale; say where they cannot be read that the image is damaged."""
    try:
        return level.compute()
    except (Img2GeneError, MemoryError):
        raise
    except Exception as error:
        raise UnreadablePixelsError(
            f"Image `{name}` has pixels that cannot be read ({type(error).__name__}: {str(error)[:200]}), and cannot be "
            "normalised. Copy or export the file again."
        ) from error


def _enlarged(mask: np.ndarray, level: da.Array) -> da.Array:
    """Repeat the values of a mask to the size of a scale, chunk by chunk."""
    import dask.array as da

    shape = level.shape[1:]

    def part(block_info: Any = None) -> np.ndarray:
        places = block_info[None]["array-location"]
        rows, columns = (
            np.minimum(np.arange(*place) * size // length, size - 1)
            for place, size, length in zip(places, mask.shape, shape, strict=True)
        )
        return mask[np.ix_(rows, columns)].astype(np.uint8)

    return da.map_blocks(part, chunks=level.chunks[1:], dtype=np.uint8, meta=np.empty((0, 0), dtype=np.uint8))


@contextmanager
def _named(image: str, method: str) -> Iterator[None]:
    """Name the image in errors of squidpy, whose warnings concern other packages."""
    progress = logging.getLogger("spatialdata._logging")
    level, progress.level = progress.level, logging.WARNING
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ValueError, RuntimeError, np.linalg.LinAlgError) as error:
        raise Img2GeneError(
            f"The stain of `{image}` cannot be found by {method}: {str(error)[:200]} Leave it out of `images`, or choose another "
            f"`method`; 'reinhard' makes no assumption about the dyes."
        ) from error
    finally:
        progress.level = level
