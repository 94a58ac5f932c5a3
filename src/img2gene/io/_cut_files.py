"""Notice TIFF files that were cut, as by a download that broke off."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

_TYPES = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "u8", 6: "u1", 7: "u1", 8: "u2", 9: "u4", 10: "u8", 11: "u4", 12: "u8"}
_TYPES |= {13: "u4", 16: "u8", 17: "u8", 18: "u8"}
# Offsets and lengths of strips and of tiles.
_DATA = ((273, 279), (324, 325))
_SUB_PICTURES, _HAMAMATSU = 330, 65420


def cut_message(file: Path) -> str:
    """Say that a TIFF file ends before what it refers to; empty if it does not, and for files of other kinds.

    Readers of TIFF leave out what lies beyond the end, such as the microns or a level of the pyramid, without an error.
    """
    last = 0
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            for end in _ends(stream, size):
                last = max(last, end)
    except struct.error:
        # The file ends within a directory.
        last = max(last, size + 1)
    except OSError:
        return ""
    if last <= size:
        return ""
    return (
        f"{str(file)!r} was cut: it has {size:,} bytes, and refers to others up to byte {last:,}. Descriptions, levels and tiles "
        "beyond its end are lost. Copy or download the file again."
    )


@dataclass(frozen=True)
class _Layout:
    """Byte order of a TIFF file, and the formats of numbers and offsets in its directories."""

    order: str
    n_entries: str
    offset: str

    def read(self, stream: BinaryIO, kind: str) -> int:
        return int(struct.unpack(self.order + kind, stream.read(struct.calcsize(self.order + kind)))[0])


def _ends(stream: BinaryIO, size: int) -> Iterator[int]:
    """Yield where everything ends that the directories of a TIFF file refer to."""
    order = {b"II": "<", b"MM": ">"}.get(stream.read(2))
    if order is None:
        return
    version = struct.unpack(order + "H", stream.read(2))[0]
    layout = {42: _Layout(order, "H", "I"), 43: _Layout(order, "Q", "Q")}.get(version)
    if layout is None:
        return
    # Large files say here how many bytes an offset has.
    stream.seek(4 if version == 42 else 8)
    waiting = [layout.read(stream, layout.offset)]
    known: set[int] = set()
    while waiting:
        place = waiting.pop()
        if not place or place in known:
            continue
        known.add(place)
        yield place + 1
        if place < size:
            entries, following = _directory(stream, layout, place, size)
            if _HAMAMATSU in entries:
                # Its offsets lack their upper half.
                return
            waiting += [following, *entries.get(_SUB_PICTURES, (0, []))[1]]
            yield from (end for end, _ in entries.values())
            for offsets, lengths in _DATA:
                if offsets in entries and lengths in entries:
                    starts, counts = (np.asarray(entries[tag][1], dtype=np.uint64) for tag in (offsets, lengths))
                    yield int((starts + counts).max(initial=0)) if len(starts) == len(counts) else 0


def _directory(
    stream: BinaryIO, layout: _Layout, place: int, size: int
) -> tuple[dict[int, tuple[int, list[int]]], int]:
    """Read a directory: of each tag where its values end, and those of offsets and lengths; and the next directory."""
    stream.seek(place)
    width = struct.calcsize(layout.offset)
    entries: dict[int, tuple[int, list[int]]] = {}
    for _ in range(layout.read(stream, layout.n_entries)):
        tag, kind, count = layout.read(stream, "H"), layout.read(stream, "H"), layout.read(stream, layout.offset)
        after = stream.tell() + width
        dtype = np.dtype(layout.order + _TYPES.get(kind, "u1"))
        n_bytes = count * dtype.itemsize
        start = stream.tell() if n_bytes <= width else layout.read(stream, layout.offset)
        values: list[int] = []
        if start + n_bytes <= size and tag in (_SUB_PICTURES, *_DATA[0], *_DATA[1]):
            stream.seek(start)
            values = np.frombuffer(stream.read(n_bytes), dtype=dtype).tolist()
        entries[tag] = (start + n_bytes, values)
        stream.seek(after)
    return entries, layout.read(stream, layout.offset)
