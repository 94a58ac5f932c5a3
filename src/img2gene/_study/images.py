"""Read RGB pixels of large images, and convert them to 8 bit."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._errors import Img2GeneError, listing
from img2gene._study.colours import WHITE, channel_order, conversion

if TYPE_CHECKING:
    import dask.array as da
    from spatialdata import SpatialData


# What readers of files put in place of the parts of a chunk that cannot be decoded; None lets them raise.
LOST_VALUE: ContextVar[int | None] = ContextVar("lost_value", default=None)


class UnreadablePixelsError(Img2GeneError):
    """Raised for pixels of an image that cannot be decoded, as in a file that was cut."""


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
        # For each chunk that could not be read whole, the boxes (n, 4: y0, x0, y1, x1) that are lost.
        self.unreadable: dict[tuple[int, int], np.ndarray] = {}
        self._reasons: dict[tuple[int, int], str] = {}

    def block(self, row: int, column: int) -> np.ndarray:
        """Decode one chunk: uint8 (height, width, 3)."""
        block = self.readable_block(row, column)
        if (row, column) in self.unreadable:
            y0, x0, y1, x1 = self.unreadable[row, column][0]
            raise UnreadablePixelsError(
                f"{self.name}: the pixels of rows {y0} to {y1} and columns {x0} to {x1} cannot be read "
                f"({self._reasons[row, column]}). Copy or export the file again."
            )
        return block

    def readable_block(self, row: int, column: int) -> np.ndarray:
        """Decode one chunk as :meth:`block` does; what cannot be read is white, and noted in :attr:`unreadable`."""
        kept = self._kept.pop((row, column), None)
        return self._cutter(row, column)(slice(None), slice(None)) if kept is None else kept

    def _cutter(self, row: int, column: int) -> Callable[[slice, slice], np.ndarray]:
        """Decode one chunk; return what cuts RGB pixels out of it, so that only these are converted."""
        self.unreadable.pop((row, column), None)
        try:
            pixels = self._decode(row, column)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - each file format has errors of its own
            self._reasons[row, column] = f"{type(error).__name__}: {str(error)[:200]}"
            block = self._in_parts(row, column)
            return lambda rows, columns: block[rows, columns]
        return lambda rows, columns: self._rgb(pixels[:, rows, columns])

    def _decode(self, row: int, column: int) -> np.ndarray:
        # Threads of the caller decode chunks in parallel, so dask must not start its own.
        return self.array.blocks[:, row, column].compute(scheduler="synchronous")

    def _in_parts(self, row: int, column: int) -> np.ndarray:
        """Decode what can be read of a chunk as RGB, white elsewhere, and note the boxes that are lost."""
        edges = self.y_edges[row : row + 2], self.x_edges[column : column + 2]
        shape = tuple(int(high - low) for low, high in edges)
        block, lost = np.full((*shape, 3), WHITE, dtype=np.uint8), np.ones(shape, dtype=bool)
        try:
            # Whatever was made of lost parts, by cutting or staining the image, changes with the value in their place.
            first, second = (self._with_lost_value(row, column, value) for value in (0, WHITE))
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - files that are not read in parts are lost by the chunk
            pass
        else:
            lost = (first != second).any(axis=0)
            block = np.where(lost[..., None], np.uint8(WHITE), self._rgb(first))
        if lost.any():
            self.unreadable[row, column] = _boxes(lost) + np.array([edges[0][0], edges[1][0]] * 2)
        return block

    def _with_lost_value(self, row: int, column: int, value: int) -> np.ndarray:
        token = LOST_VALUE.set(value)
        try:
            return self._decode(row, column)
        finally:
            LOST_VALUE.reset(token)

    def lost(self, boxes: np.ndarray) -> np.ndarray:
        """Mark windows (n, 4) with pixels that could not be read so far, bool (n,)."""
        if not self.unreadable:
            return np.zeros(len(boxes), dtype=bool)
        none = np.zeros((0, 4), dtype=np.int64)
        spans = self.chunk_spans(boxes[:, None])
        return np.array(
            [
                any(_overlap(self.unreadable.get(chunk, none), box) for chunk in chunks_of(span))
                for span, box in zip(spans, boxes, strict=True)
            ],
            dtype=bool,
        )

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
                block = self.readable_block(row, column)
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
            cut = self._cutter(row, column)
            (top, bottom), (left, right) = self.y_edges[row : row + 2], self.x_edges[column : column + 2]
            for tile, (y0, x0, y1, x1) in zip(out, boxes, strict=True):
                a, b, c, d = max(y0, top), min(y1, bottom), max(x0, left), min(x1, right)
                if a < b and c < d:
                    tile[a - y0 : b - y0, c - x0 : d - x0] = cut(slice(a - top, b - top), slice(c - left, d - left))
        return out

    def thumbnail(self, step: int) -> np.ndarray:
        """Take every ``step``-th pixel, uint8, decoded chunk by chunk; what cannot be read is white."""
        out = np.empty((-(-self.height // step), -(-self.width // step), 3), dtype=np.uint8)
        for row, (top, bottom) in enumerate(zip(self.y_edges[:-1], self.y_edges[1:], strict=True)):
            for column, (left, right) in enumerate(zip(self.x_edges[:-1], self.x_edges[1:], strict=True)):
                # These are the first pixels of the chunk that belong to the thumbnail.
                y, x = -top % step, -left % step
                if y < bottom - top and x < right - left:
                    part = self.readable_block(row, column)[y::step, x::step]
                    i, j = (top + y) // step, (left + x) // step
                    out[i : i + part.shape[0], j : j + part.shape[1]] = part
        return out

    def lost_points(self, step: int) -> np.ndarray:
        """Mark the pixels of a thumbnail around which anything could not be read so far, bool (height, width)."""
        lost = np.zeros((-(-self.height // step), -(-self.width // step)), dtype=bool)
        for y0, x0, y1, x1 in (box for boxes in self.unreadable.values() for box in boxes):
            lost[y0 // step : -(-y1 // step), x0 // step : -(-x1 // step)] = True
        return lost


def _boxes(mask: np.ndarray) -> np.ndarray:
    """Cover the true places of a mask with boxes (n, 4: y0, x0, y1, x1) that lie on no others."""
    cuts = [
        np.unique([0, *(np.flatnonzero((np.diff(mask, axis=axis)).any(axis=1 - axis)) + 1), mask.shape[axis]])
        for axis in (0, 1)
    ]
    rows, columns = np.nonzero(mask[np.ix_(cuts[0][:-1], cuts[1][:-1])])
    return np.column_stack([cuts[0][rows], cuts[1][columns], cuts[0][rows + 1], cuts[1][columns + 1]])


def _overlap(boxes: np.ndarray, box: np.ndarray) -> bool:
    """Check whether any of the boxes (n, 4) shares a pixel with ``box``."""
    return bool(((boxes[:, :2] < box[2:]) & (boxes[:, 2:] > box[:2])).all(axis=1).any())


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
