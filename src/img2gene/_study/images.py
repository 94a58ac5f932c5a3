"""Read RGB pixels of large images: convert them to 8 bit, and stream windows so that every chunk is decoded once."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from img2gene._errors import Img2GeneError, listing
from img2gene._study.colours import WHITE, channel_order, conversion

if TYPE_CHECKING:
    import dask.array as da
    from spatialdata import SpatialData

T = TypeVar("T")
# A chunk by the place of its image among several, its row and its column; None where its pixels cannot be read.
Key = tuple[int, int, int]
Blocks = dict[Key, "np.ndarray | None"]


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
        spans = _chunk_spans(self, boxes[:, None])
        return np.array([any(key[1:] in self.unreadable for key in _keys(span)) for span in spans], dtype=bool)

    def _or_white(self, row: int, column: int) -> np.ndarray:
        """Decode one chunk; white if its pixels cannot be read, which :attr:`unreadable` notes."""
        block = self.readable_block(row, column)
        shape = (np.diff(self.y_edges)[row], np.diff(self.x_edges)[column], 3)
        return np.full(shape, WHITE, dtype=np.uint8) if block is None else block

    def _rgb(self, pixels: np.ndarray) -> np.ndarray:
        """Convert pixels (c, height, width) to uint8 (height, width, 3)."""
        return self._convert(np.moveaxis(pixels, 0, -1)[..., self._order])

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
        spans = _chunk_spans(self, boxes[:, None])
        for _, row, column in sorted({key for span in spans for key in _keys(span)}):
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


def _range(array: da.Array) -> tuple[float, float]:
    import dask

    # One call computes both, so that the image is read once.
    low, high = dask.compute(array.min(), array.max())
    return float(low), float(high)


@dataclass(frozen=True)
class Windows:
    """Square windows of several spots and fields of view.

    Attributes
    ----------
    index
        (n,) positions of the spots in the ``boxes`` that were passed.
    fields
        One uint8 array (n, side, side, 3) per field of view.
    unreadable
        bool (n,): spots with pixels that could not be decoded, which are white here.
    """

    index: np.ndarray
    fields: list[np.ndarray]
    unreadable: np.ndarray


def stream_windows(
    image: RGBImage | Sequence[RGBImage],
    boxes: np.ndarray,
    batch_size: int,
    num_workers: int = 1,
    *,
    skip_unreadable: bool = False,
) -> Iterator[Windows]:
    """Cut windows out of an image, decoding each chunk once and dropping it after its last window.

    Parameters
    ----------
    image
        The image, or the image of each field: scales of one picture.
    boxes
        int (n, n_fields, 4): y0, x0, y1, x1 of each spot's windows in pixels of the field's image; may exceed it, which is
        padded with white. All windows of one field have one side length.
    batch_size
        Spots per yielded batch.
    num_workers
        Threads that decode the chunks of a batch.
    skip_unreadable
        Go on after a chunk that cannot be decoded, and mark the spots on it, instead of raising.

    Yields
    ------
    Batches in the order of the first image's chunks; ``index`` says which spots they hold.
    """
    of_fields = [image] * boxes.shape[1] if isinstance(image, RGBImage) else list(image)
    images = list(dict.fromkeys(of_fields))
    places = [images.index(item) for item in of_fields]
    spans = [_chunk_spans(item, boxes[:, [place == p for p in places]]) for place, item in enumerate(images)]
    order = _by_chunk(spans[0]) if images else np.zeros(0, dtype=np.int64)
    uses = _chunk_uses(spans)
    cache: Blocks = {}
    sides = boxes[0, :, 2] - boxes[0, :, 0] if len(boxes) else []

    def decode(key: Key) -> np.ndarray | None:
        source = images[key[0]]
        return source.readable_block(*key[1:]) if skip_unreadable else source.block(*key[1:])

    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            needed = [[key for place, span in enumerate(spans) for key in _keys(span[spot], place)] for spot in index]
            absent = [key for key in dict.fromkeys(key for keys in needed for key in keys) if key not in cache]
            cache.update(zip(absent, pool.map(decode, absent), strict=True))
            fields = [np.full((len(index), side, side, 3), WHITE, dtype=np.uint8) for side in sides]
            lost = np.array([any(cache[key] is None for key in keys) for keys in needed], dtype=bool)
            for place, (spot, keys) in enumerate(zip(index, needed, strict=True)):
                for field, box, source in zip(fields, boxes[spot], places, strict=True):
                    _fill(field[place], box, {key: cache[key] for key in keys if key[0] == source}, images[source])
                _release(keys, uses, cache)
            yield Windows(index, fields, lost)


def chunk_order(image: RGBImage, boxes: np.ndarray) -> np.ndarray:
    """Order of spots, int (n,), in which :func:`stream_windows` reads their windows."""
    return _by_chunk(_chunk_spans(image, boxes))


def _by_chunk(spans: np.ndarray) -> np.ndarray:
    # Spots on the same chunks come one after the other, so few chunks are in memory at a time.
    return np.lexsort((spans[:, 2], spans[:, 0]))


def _keys(span: np.ndarray, place: int = 0) -> list[Key]:
    r0, r1, c0, c1 = (int(value) for value in span)
    return [(place, row, column) for row in range(r0, r1) for column in range(c0, c1)]


def _chunk_spans(image: RGBImage, boxes: np.ndarray) -> np.ndarray:
    """Find the first and one-past-last chunk row and column (n, 4: r0, r1, c0, c1) that each spot's windows touch."""
    low, high = boxes[:, :, :2].min(axis=1), boxes[:, :, 2:].max(axis=1)
    spans = np.zeros((len(boxes), 4), dtype=np.int64)
    for axis, edges in enumerate((image.y_edges, image.x_edges)):
        first, last = np.clip(low[:, axis], 0, edges[-1]), np.clip(high[:, axis], 0, edges[-1])
        spans[:, 2 * axis] = np.searchsorted(edges, first, side="right") - 1
        # A window outside the image ends at chunk 0, so it touches none.
        spans[:, 2 * axis + 1] = np.where(last > first, np.searchsorted(edges, last, side="left"), 0)
    return spans


def _chunk_uses(spans: list[np.ndarray]) -> Counter[Key]:
    """Count how many spots touch each chunk."""
    return Counter(key for place, parts in enumerate(spans) for span in parts for key in _keys(span, place))


def _release(keys: list[Key], uses: Counter[Key], cache: Blocks) -> None:
    """Drop the chunks that no later spot touches."""
    for key in keys:
        uses[key] -= 1
        if not uses[key]:
            del cache[key]


def _fill(window: np.ndarray, box: np.ndarray, blocks: Blocks, image: RGBImage) -> None:
    """Copy the part of each block that lies in the window."""
    y0, x0, y1, x1 = box
    for (_, row, column), block in blocks.items():
        if block is None:
            continue
        top, left = image.y_edges[row], image.x_edges[column]
        a, b = max(y0, top), min(y1, top + block.shape[0])
        c, d = max(x0, left), min(x1, left + block.shape[1])
        if a < b and c < d:
            window[a - y0 : b - y0, c - x0 : d - x0] = block[a - top : b - top, c - left : d - left]


def prefetch(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """Produce ``items`` in a background thread, at most ``depth`` ahead, so that decoding overlaps with computing."""
    ready: queue.Queue[tuple[str, object]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(kind: str, value: object) -> None:
        while not stop.is_set():
            try:
                # Without a timeout, the thread would block forever once the consumer stops reading.
                return ready.put((kind, value), timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                if stop.is_set():
                    return
                put("item", item)
            put("end", None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            put("error", error)

    threading.Thread(target=produce, daemon=True).start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "item":
                yield value  # type: ignore[misc]
            elif kind == "error":
                raise value  # type: ignore[misc]
            else:
                return
    finally:
        # This also runs when the consumer stops early; the thread would never end otherwise.
        stop.set()


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
