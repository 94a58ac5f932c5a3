"""Stream windows out of large images, so that every chunk is decoded once and no batch of large windows is in memory."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from img2gene._study.colours import WHITE
from img2gene._study.images import RGBImage, chunks_of

T = TypeVar("T")
# A chunk by the place of its image among several, its row and its column.
Key = tuple[int, int, int]
Blocks = dict[Key, np.ndarray]


@dataclass(frozen=True)
class Shrinking:
    """Sides in pixels that larger windows are reduced to, one after the other; smaller ones stay as they are.

    Attributes
    ----------
    averaged
        Side after averaging over areas, as a coarser scanner does; None leaves it out.
    resized
        Side of the encoder's input, as :func:`img2gene.encoders.base.resize` makes it; None leaves it out.
    """

    averaged: int | None = None
    resized: int | None = None

    def side(self, length: int) -> int:
        """Return the side that windows of ``length`` pixels have at the end."""
        return min(side for side in (length, self.averaged, self.resized) if side is not None)

    def __call__(self, window: np.ndarray) -> np.ndarray:
        """Reduce a window, uint8 (h, h, 3)."""
        if self.averaged is not None and self.averaged < len(window):
            from PIL import Image

            size = (self.averaged, self.averaged)
            window = np.array(Image.fromarray(window).resize(size, Image.Resampling.BOX))
        if self.resized is not None and self.resized < len(window):
            from img2gene.encoders.base import resize

            window = resize(window[None], self.resized)[0].permute(1, 2, 0).numpy()
        return window


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


class _Field:
    """Cuts the windows of one field of view, which all have one side length."""

    def __init__(self, image: RGBImage, place: int, length: int, shrinking: Shrinking) -> None:
        self.image, self.place, self.length, self.shrinking = image, place, length, shrinking
        self.side = shrinking.side(length)
        # One window that stays in the processor's cache: large ones are shrunk before the next is cut.
        self._window = None if self.side == length else np.empty((length, length, 3), dtype=np.uint8)

    def cut(self, box: np.ndarray, blocks: Blocks, out: np.ndarray) -> None:
        """Cut the window ``box`` out of decoded chunks into ``out``, uint8 (side, side, 3)."""
        own = {key[1:]: block for key, block in blocks.items() if key[0] == self.place}
        if self._window is None:
            _fill(out, box, own, self.image)
            return
        _fill(self._window, box, own, self.image)
        out[...] = self.shrinking(self._window)


def stream_windows(
    image: RGBImage | Sequence[RGBImage],
    boxes: np.ndarray,
    batch_size: int,
    num_workers: int = 1,
    *,
    shrinking: Sequence[Shrinking] | None = None,
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
    shrinking
        How the windows of each field are reduced; None leaves them as they are.
    skip_unreadable
        Go on after pixels that cannot be decoded, and mark the spots on them, instead of raising.

    Yields
    ------
    Batches in the order of the first image's chunks; ``index`` says which spots they hold.
    """
    of_fields = [image] * boxes.shape[1] if isinstance(image, RGBImage) else list(image)
    images = list(dict.fromkeys(of_fields))
    places = [images.index(item) for item in of_fields]
    spans = [item.chunk_spans(boxes[:, [place == p for p in places]]) for place, item in enumerate(images)]
    order = _by_chunk(spans[0]) if images else np.zeros(0, dtype=np.int64)
    uses = _chunk_uses(spans)
    cache: Blocks = {}
    fields = _fields(of_fields, places, boxes, shrinking)

    def decode(key: Key) -> np.ndarray:
        source = images[key[0]]
        return source.readable_block(*key[1:]) if skip_unreadable else source.block(*key[1:])

    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            needed = [[key for place, span in enumerate(spans) for key in _keys(span[spot], place)] for spot in index]
            absent = [key for key in dict.fromkeys(key for keys in needed for key in keys) if key not in cache]
            cache.update(zip(absent, pool.map(decode, absent), strict=True))
            pixels = [np.empty((len(index), field.side, field.side, 3), dtype=np.uint8) for field in fields]
            lost = np.zeros(len(index), dtype=bool)
            for number, item in enumerate(of_fields):
                lost |= item.lost(boxes[index, number])
            for row, (spot, keys) in enumerate(zip(index, needed, strict=True)):
                blocks = {key: cache[key] for key in keys}
                for field, box, out in zip(fields, boxes[spot], pixels, strict=True):
                    field.cut(box, blocks, out[row])
                _release(keys, uses, cache)
            yield Windows(index, pixels, lost)


def _fields(
    images: list[RGBImage], places: list[int], boxes: np.ndarray, shrinking: Sequence[Shrinking] | None
) -> list[_Field]:
    if not len(boxes):
        return []
    lengths = (boxes[0, :, 2] - boxes[0, :, 0]).tolist()
    ways = [Shrinking()] * len(lengths) if shrinking is None else shrinking
    return [_Field(*parts) for parts in zip(images, places, lengths, ways, strict=True)]


def chunk_order(image: RGBImage, boxes: np.ndarray) -> np.ndarray:
    """Order of spots, int (n,), in which :func:`stream_windows` reads their windows."""
    return _by_chunk(image.chunk_spans(boxes))


def _by_chunk(spans: np.ndarray) -> np.ndarray:
    # Spots on the same chunks come one after the other, so few chunks are in memory at a time.
    return np.lexsort((spans[:, 2], spans[:, 0]))


def _keys(span: np.ndarray, place: int) -> list[Key]:
    return [(place, *chunk) for chunk in chunks_of(span)]


def _chunk_uses(spans: list[np.ndarray]) -> Counter[Key]:
    """Count how many spots touch each chunk."""
    return Counter(key for place, parts in enumerate(spans) for span in parts for key in _keys(span, place))


def _release(keys: list[Key], uses: Counter[Key], cache: Blocks) -> None:
    """Drop the chunks that no later spot touches."""
    for key in keys:
        uses[key] -= 1
        if not uses[key]:
            del cache[key]


def _fill(window: np.ndarray, box: np.ndarray, blocks: dict[tuple[int, int], np.ndarray], image: RGBImage) -> None:
    """Copy the part of each chunk that lies in the window; what no chunk covers is white."""
    y0, x0, y1, x1 = box
    parts, covered = [], 0
    for (row, column), block in blocks.items():
        top, left = image.y_edges[row], image.x_edges[column]
        a, b = max(y0, top), min(y1, top + block.shape[0])
        c, d = max(x0, left), min(x1, left + block.shape[1])
        if a < b and c < d:
            parts.append((slice(a - y0, b - y0), slice(c - x0, d - x0), block[a - top : b - top, c - left : d - left]))
            covered += (b - a) * (d - c)
    if covered < window.shape[0] * window.shape[1]:
        window[...] = WHITE
    for rows, columns, pixels in parts:
        window[rows, columns] = pixels


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
