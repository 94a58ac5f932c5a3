"""Tile and embed a made-up slide from disk: memory above the encoder, chunks decoded, and time outside the forward pass.

The tissue is a disc, so that a slide of 50,000 pixels has 20,000 tiles of 112 µm. It is written as a Zarr store and as an
OME-TIFF with a pyramid, JPEG-compressed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import dask.array as da
import numpy as np
from _report import report
from _slide import CHUNK, MPP, texture
from embed_overhead import watched
from memory import peak_memory

import img2gene as ig

_RADIUS = 0.357  # of the side: 20,000 tiles on 50,000 pixels
_LEVELS = 4
_GLASS = 245
_TILE_UM = 112.0


def disc(side: int) -> da.Array:
    """Pixels of a slide (3, side, side): a disc of tissue on glass."""

    def chunk(pixels: np.ndarray, block_info: dict) -> np.ndarray:
        _, rows, columns = (np.arange(*span) - side / 2 for span in block_info[0]["array-location"])
        outside = rows[:, None] ** 2 + columns**2 > (_RADIUS * side) ** 2
        return np.where(outside, np.uint8(_GLASS), pixels)

    return texture(side).map_blocks(chunk, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))


def write_zarr(folder: Path, side: int) -> str:
    """Write the slide as a store of spatialdata."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel

    path = folder / "slide.zarr"
    image = Image2DModel.parse(disc(side), dims=("c", "y", "x"), c_coords=["r", "g", "b"])
    SpatialData(images={"slide_image": image}).write(path)
    return str(path)


def write_ome_tiff(folder: Path, side: int) -> str:
    """Write the slide as a pyramid of tiles."""
    import tifffile

    path = folder / "slide.ome.tiff"
    microns = {
        "axes": "YXS",
        "PhysicalSizeX": MPP,
        "PhysicalSizeY": MPP,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeYUnit": "µm",
    }
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as file:
        for level in range(_LEVELS):
            pixels = disc(side)[:, :: 2**level, :: 2**level]
            file.write(
                _tiles(pixels),
                shape=(*pixels.shape[1:], 3),
                dtype=np.uint8,
                tile=(CHUNK, CHUNK),
                photometric="rgb",
                compression="jpeg",
                **({"subifds": _LEVELS - 1, "metadata": microns} if level == 0 else {"subfiletype": 1}),
            )
    return str(path)


def _tiles(pixels: da.Array) -> Iterator[np.ndarray]:
    """Tiles of a picture (CHUNK, CHUNK, 3), row by row; those of the edge are filled with glass."""
    pixels = pixels.rechunk((3, CHUNK, CHUNK))
    for row, column in itertools.product(*(range(n) for n in pixels.numblocks[1:])):
        block = np.moveaxis(pixels.blocks[0, row, column].compute(scheduler="synchronous"), 0, -1)
        sides = [(0, CHUNK - length) for length in block.shape[:2]]
        yield np.ascontiguousarray(np.pad(block, [*sides, (0, 0)], constant_values=_GLASS))


WRITERS = {"zarr": write_zarr, "OME-TIFF": write_ome_tiff}


def child(action: str, path: str, encoder: str, fields: list[float], facts: str) -> None:
    """Run in a process of its own: one batch only (``baseline``), or the whole slide (``embed``)."""
    import spatialdata as sd
    import squidpy  # noqa: F401 - part of the baseline, as is everything else that is imported

    from img2gene._study.images import RGBImage

    ig.settings.progress = False
    loaded = ig.encoders.load(encoder)
    for _ in fields:
        loaded(np.zeros((ig.settings.batch_size, 224, 224, 3), dtype=np.uint8))
    if action == "baseline":
        return
    sdata = sd.read_zarr(path) if path.endswith(".zarr") else ig.io.read_slide(path)
    options = {"mpp": MPP} if path.endswith(".zarr") else {}
    start = time.perf_counter()
    ig.pp.tile_slide(sdata, "slide_image", tile_um=_TILE_UM, patch_um=fields, **options)
    tiled = time.perf_counter()
    decoded: Counter[tuple[str, int, int]] = Counter()
    decode = RGBImage._decode

    def counted(image: RGBImage, row: int, column: int) -> np.ndarray:
        decoded[image.name, row, column] += 1
        return decode(image, row, column)

    with mock.patch.object(RGBImage, "_decode", counted), watched(loaded) as watch:
        ig.pp.embed_patches(sdata, encoder, orientations=1, table_key="slide_tiles")
    seconds = time.perf_counter() - tiled
    found = {
        "tiles": sdata["slide_tiles"].n_obs,
        "chunks": len(decoded),
        "decodings per chunk": sum(decoded.values()) / len(decoded),
        "tile (s)": tiled - start,
        "embed (s)": seconds,
        "embed / forward pass": seconds / watch.seconds if watch else None,
    }
    Path(facts).write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=50_000, help="side of the slide in pixels")
    parser.add_argument("--formats", nargs="+", choices=WRITERS, default=list(WRITERS))
    parser.add_argument("--encoders", nargs="+", default=["color-texture", "default"])
    parser.add_argument("--patch-um", type=float, nargs="+", default=[_TILE_UM])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in args.formats:
            path = WRITERS[kind](folder, args.side)
            for encoder in args.encoders:
                common = [path, encoder, list(args.patch_um), str(folder / "facts.json")]
                baseline, _ = peak_memory(["baseline", *common], __file__)
                peak, _ = peak_memory(["embed", *common], __file__)
                facts = json.loads((folder / "facts.json").read_text())
                rows.append({"format": kind, "encoder": encoder, **facts, "above the encoder (GiB)": peak - baseline})
    report(rows, args.out)


if __name__ == "__main__":
    main()
