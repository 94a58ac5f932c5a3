"""Patches per second from a zarr-backed image: our stream against spatialdata's ImageTilesDataset and a numpy array."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _report import median_seconds, report
from _slide import MPP, write_slide
from spatialdata import SpatialData
from spatialdata.dataloader import ImageTilesDataset

import img2gene as ig
from img2gene._study.patches import stream_patches
from img2gene._study.study import Study

PATCH_PX = 224


def stream(sdata: SpatialData, num_workers: int) -> int:
    return sum(len(rows) for rows, _ in stream_patches(Study.of(sdata), 32, num_workers))


def tiles(sdata: SpatialData, n_tiles: int, **kwargs: object) -> Callable[[], int]:
    """Iterate spatialdata's own dataset over every k-th spot; its set-up is not timed."""
    dataset = ImageTilesDataset(
        sdata=sdata,
        regions_to_images={"spots": "image"},
        regions_to_coordinate_systems={"spots": "slide"},
        tile_dim_in_units=PATCH_PX,
        table_name="table",
        **kwargs,
    )
    chosen = np.linspace(0, len(dataset) - 1, min(n_tiles, len(dataset))).astype(int)
    return lambda: sum(np.asarray(_pixels(dataset[int(number)])).shape[0] > 0 for number in chosen)


def _pixels(item: object) -> object:
    return item["image"].data if isinstance(item, SpatialData) else item[0].data  # type: ignore[index]


def dask_slices(sdata: SpatialData, boxes: np.ndarray) -> int:
    """What a plain loop does: one slice of the lazy image per spot."""
    image = sdata.images["image"].data
    return sum(image[:, a:c, b:d].compute(scheduler="synchronous").shape[0] > 0 for a, b, c, d in boxes)


def memory_slices(image: np.ndarray, boxes: np.ndarray) -> int:
    """The upper bound: copies out of an image that is decoded in memory already, in batches of 32."""
    batch = np.empty((32, PATCH_PX, PATCH_PX, 3), dtype=np.uint8)
    for place, (a, b, c, d) in enumerate(boxes):
        batch[place % 32] = image[a:c, b:d]
    return len(boxes)


def measure(sdata: SpatialData, n_tiles: int, repeats: int) -> list[dict[str, object]]:
    ig.pp.extract_patches(sdata, patch_um=PATCH_PX * MPP, mpp=MPP)
    boxes = sdata["table"].obsm["patch_bbox"]
    array = np.ascontiguousarray(np.moveaxis(sdata.images["image"].data.compute(), 0, -1))
    some = boxes[np.linspace(0, len(boxes) - 1, n_tiles).astype(int)]
    runs: dict[str, tuple[int, Callable[[], object]]] = {
        "img2gene stream, decoding ahead": (len(boxes), lambda: stream(sdata, 1)),
        "img2gene stream, same thread": (len(boxes), lambda: stream(sdata, 0)),
        "ImageTilesDataset, SpatialData per tile": (n_tiles, tiles(sdata, n_tiles)),
        "ImageTilesDataset, array per tile": (n_tiles, tiles(sdata, n_tiles, return_annotations="region")),
        "dask slice per spot": (n_tiles, lambda: dask_slices(sdata, some)),
        "numpy slice, image in memory": (len(boxes), lambda: memory_slices(array, boxes)),
    }
    seconds = median_seconds({name: run for name, (_, run) in runs.items()}, repeats)
    speeds = {name: n / seconds[name] for name, (n, _) in runs.items()}
    ours = next(iter(speeds.values()))
    return [
        {"reader": name, "patches": runs[name][0], "patches/s": speed, "img2gene is … × as fast": ours / speed}
        for name, speed in speeds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=10_000, help="side of the image in pixels")
    parser.add_argument("--spots", type=int, default=2_000)
    parser.add_argument("--tiles", type=int, default=200, help="spots read by the slow readers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ig.settings.progress = False
    with tempfile.TemporaryDirectory() as folder:
        sdata = write_slide(Path(folder) / "slide.zarr", args.side, args.spots)
        report(measure(sdata, min(args.tiles, args.spots), args.repeats), args.out)


if __name__ == "__main__":
    main()
