"""Read RGB pixels of large images, and convert them to 8 bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._errors import Img2GeneError, listing
from img2gene._study.colours import WHITE, channel_order, conversion

if TYPE_CHECKING:
    import dask.array as da
    from spatialdata import SpatialData


class UnreadablePixelsError(Img2GeneError):
    """Raised for a chunk of an image that cannot be decoded, as in a file that was cut."""


class RGBImage:
    """A lazily read (channel, y, x) image seen as uint8 RGB blocks.

    Parameters
    ----------
    array
        dask array (c, y, x).
    channels
        Channel names in any order, red, green, blue and perhaps alpha, or consecutive numbers for channels in this
        order. Other names are refused. A fourth channel without a name must be opaque, because it may be anything.
    name
        Name used in messages.
    """

    def __init__(self, array: da.Array, channels: list[object], name: str) -> None:
        self.name = name
        self.array = array
        self.height, self.width = array.shape[1:]
        if array.dtype.kind not in "uif" or not array.size:
            raise Img2GeneError(
                f"{name}: {array.dtype} pixels, {self.height} × {self.width}; expected numbers. Choose another image "
                "with `images=`."
            )
        # Grey and multi-channel images are refused by their number of channels, whatever the names.
        self._order = channel_order(channels, name) if len(channels) in (3, 4) else []
        # 8-bit pixels need no range, and finding it means reading the whole image.
        low, high = (0.0, 0.0) if array.dtype == np.uint8 else _range(array)
        named = not str(channels[-1]).isdecimal()
        self._convert = conversion(array.shape[0], array.dtype, low, high, name, alpha_is_named=named)
        self.y_edges = np.concatenate([[0], np.cumsum(array.chunks[1])])
        self.x_edges = np.concatenate([[0], np.cumsum(array.chunks[2])])
        self._kept: dict[tuple[int, int], np.ndarray] = {}
        self.unreadable: set[tuple[int, int]] = set()

    def block(self, row: int, column: int) -> np.ndarray:
        """Decode one chunk: uint8 (height, width, 3)."""
        kept = self._kept.pop((row, column), None)
        return self._rgb(self._decode(row, column)) if kept is None else kept

    def _decode(self, row: int, column: int) -> np.ndarray:
        try:
            # Threads of the caller decode chunks in parallel, so dask must not start its own.
            return self.array.blocks[:, row, column].compute(scheduler="synchronous")
        except MemoryError:
            raise
        except Exception as error:  # each file format has errors of its own
            self.unreadable.add((row, column))
            raise UnreadablePixelsError(
                f"{self.name}: the pixels of rows {self.y_edges[row]} to {self.y_edges[row + 1]} and columns "
                f"{self.x_edges[column]} to {self.x_edges[column + 1]} cannot be read ({type(error).__name__}: "
                f"{str(error)[:200]}). Copy or export the file again."
            ) from error

    def readable_block(self, row: int, column: int) -> np.ndarray | None:
        """Decode one chunk as :meth:`block` does; None if its pixels cannot be read."""
        try:
            return self.block(row, column)
        except UnreadablePixelsError:
            return None

    def lost(self, boxes: np.ndarray) -> np.ndarray:
        """Mark windows (n, 4) that touch a chunk which could not be read so far, bool (n,)."""
        spans = self.chunk_spans(boxes[:, None])
        return np.array([any(chunk in self.unreadable for chunk in chunks_of(span)) for span in spans], dtype=bool)

    def chunk_spans(self, boxes: np.ndarray) -> np.ndarray:
        """Find the first and one-past-last chunk row and column (n, 4: r0, r1, c0, c1) that windows (n, n_fields, 4) touch."""
        low, high = boxes[:, :, :2].min(axis=1), boxes[:, :, 2:].max(axis=1)
        spans = np.zeros((len(boxes), 4), dtype=np.int64)
        for axis, edges in enumerate((self.y_edges, self.x_edges)):
            first, last = np.clip(low[:, axis], 0, edges[-1]), np.clip(high[:, axis], 0, edges[-1])
            spans[:, 2 * axis] = np.searchsorted(edges, first, side="right") - 1
            # A window outside the image ends at chunk 0, so it touches none.
            spans[:, 2 * axis + 1] = np.where(last > first, np.searchsorted(edges, last, side="left"), 0)
        return spans

    def _or_white(self, row: int, column: int) -> np.ndarray:
        """Decode one chunk; white if its pixels cannot be read, which :attr:`unreadable` notes."""
        block = self.readable_block(row, column)
        shape = (np.diff(self.y_edges)[row], np.diff(self.x_edges)[column], 3)
        return np.full(shape, WHITE, dtype=np.uint8) if block is None else block

    def _rgb(self, pixels: np.ndarray) -> np.ndarray:
        """Convert pixels (c, height, width) to uint8 (height, width, 3)."""
        # Planes are stacked seven times as fast as their axis is moved.
        return self._convert(np.stack([pixels[channel] for channel in self._order], axis=-1))

    def lazy(self) -> da.Array:
        """Return the pixels as a dask array, uint8 (3, height, width)."""
        one = self.array.rechunk({0: -1})
        return one.map_blocks(lambda x: np.moveaxis(self._rgb(x), -1, 0), dtype=np.uint8, chunks=(3, *one.chunks[1:]))

    def whole(self) -> np.ndarray:
        """Decode all pixels, uint8 (height, width, 3); the next call of :meth:`block` for each chunk is free.

        Pixels that cannot be read are white.
        """
        out = np.empty((self.height, self.width, 3), dtype=np.uint8)
        for row, top in enumerate(self.y_edges[:-1]):
            for column, left in enumerate(self.x_edges[:-1]):
                block = self._or_white(row, column)
                if (row, column) not in self.unreadable:
                    self._kept[row, column] = block
                out[top : top + block.shape[0], left : left + block.shape[1]] = block
        return out

    def tiles(self, corners: np.ndarray, side: int) -> np.ndarray:
        """Read square tiles, uint8 (n, side, side, 3), and decode each chunk once; what cannot be read is white.

        ``corners`` are int (n, 2): row and column of the top left pixels; tiles lie inside the image.
        """
        out = np.full((len(corners), side, side, 3), WHITE, dtype=np.uint8)
        boxes = np.concatenate([corners, corners + side], axis=1)
        spans = self.chunk_spans(boxes[:, None])
        for row, column in sorted({chunk for span in spans for chunk in chunks_of(span)}):
            try:
                pixels = self._decode(row, column)
            except UnreadablePixelsError:
                continue
            top, left = self.y_edges[row], self.x_edges[column]
            bottom, right = top + pixels.shape[1], left + pixels.shape[2]
            for tile, (y0, x0, y1, x1) in zip(out, boxes, strict=True):
                a, b, c, d = max(y0, top), min(y1, bottom), max(x0, left), min(x1, right)
                if a < b and c < d:
                    part = pixels[:, a - top : b - top, c - left : d - left]
                    tile[a - y0 : b - y0, c - x0 : d - x0] = self._rgb(part)
        return out

    def thumbnail(self, step: int) -> np.ndarray:
        """Take every ``step``-th pixel, uint8, decoded chunk by chunk; what cannot be read is white."""
        out = np.empty((-(-self.height // step), -(-self.width // step), 3), dtype=np.uint8)
        for row, (top, bottom) in enumerate(zip(self.y_edges[:-1], self.y_edges[1:], strict=True)):
            for column, (left, right) in enumerate(zip(self.x_edges[:-1], self.x_edges[1:], strict=True)):
                # These are the first pixels of the chunk that belong to the thumbnail.
                y, x = -top % step, -left % step
                if y < bottom - top and x < right - left:
                    part = self._or_white(row, column)[y::step, x::step]
                    i, j = (top + y) // step, (left + x) // step
                    out[i : i + part.shape[0], j : j + part.shape[1]] = part
        return out


def chunks_of(span: np.ndarray) -> list[tuple[int, int]]:
    """List row and column of the chunks in a span (r0, r1, c0, c1)."""
    r0, r1, c0, c1 = (int(value) for value in span)
    return [(row, column) for row in range(r0, r1) for column in range(c0, c1)]


def _range(array: da.Array) -> tuple[float, float]:
    import dask

    # One call computes both, so that the image is read once.
    low, high = dask.compute(array.min(), array.max())
    return float(low), float(high)


def check_scale0(element: Any, name: str) -> None:
    """Raise if a multi-scale image or label element has lost its full resolution, which holds its transformations."""
    scales = list(getattr(element, "children", {}))
    if hasattr(element, "children") and "scale0" not in scales:
        raise Img2GeneError(
            f"`{name}` has no `scale0`, the full resolution (it has {listing(scales)}). Read it anew, or parse one of its scales: "
            "`spatialdata.models.Image2DModel.parse(pixels, dims=('c', 'y', 'x'), transformations=…)`."
        )


def scales(sdata: SpatialData, image_key: str) -> list[Any]:
    """List the DataArrays (c, y, x) of a single- or multi-scale image, full resolution first."""
    import xarray as xr

    image = sdata.images[image_key]
    check_scale0(image, image_key)
    arrays = (
        [next(iter(node.ds.values())) for node in image.children.values()]
        if isinstance(image, xr.DataTree)
        else [image]
    )
    if any(set(array.dims) != {"c", "y", "x"} for array in arrays):
        raise Img2GeneError(
            f"Image `{image_key}` has the axes {listing(arrays[0].dims)}; expected c, y, x. Choose another with `images=`."
        )
    _check_coordinates(arrays[0], image_key)
    return [array.transpose("c", "y", "x") for array in arrays]


def _check_coordinates(array: Any, image_key: str) -> None:
    """Refuse an image that was cut, turned or padded with xarray, which leaves the transformation of the whole image."""
    for axis in ("y", "x"):
        if axis not in array.coords:
            continue
        stored, n_pixels = np.asarray(array.coords[axis].values, dtype=float), array.sizes[axis]
        # spatialdata places the centre of the first pixel at .5, in others at 0; NaN is no place.
        if not np.abs(stored - np.arange(n_pixels)).max(initial=0) <= 0.5:
            raise Img2GeneError(
                f"The pixels of image `{image_key}` have the `{axis}` coordinates {listing(stored[:2])}, … {listing(stored[-1:])}, "
                f"expected 0.5, 1.5, … {n_pixels - 0.5:g}: it was cut, turned or padded with xarray, and its transformation "
                "no longer places it. Cut it with `spatialdata.bounding_box_query`, or parse its pixels again with the right "
                "transformation: `spatialdata.models.Image2DModel.parse(pixels, dims=('c', 'y', 'x'), transformations=…)`."
            )


def scale0(sdata: SpatialData, image_key: str) -> Any:
    """Return the full-resolution DataArray (c, y, x) of a single- or multi-scale image."""
    return scales(sdata, image_key)[0]


def open_image(sdata: SpatialData, image_key: str, scale: int = 0) -> RGBImage:
    """Open an image element as uint8 RGB, read lazily."""
    image = scales(sdata, image_key)[scale]
    channels = list(image.coords["c"].values) if "c" in image.coords else list(range(image.shape[0]))
    return RGBImage(image.data, channels, f"image `{image_key}`")
