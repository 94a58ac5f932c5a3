"""Share of the wall time of ``pp.embed_patches`` that passes outside the encoder's forward pass."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from _report import report
from _slide import MPP, write_slide
from spatialdata import SpatialData

import img2gene as ig
from img2gene import encoders
from img2gene.encoders import registry
from img2gene.pp.patches import DEFAULT_FIELDS_UM


class Stopwatch:
    """Times every call of a function."""

    def __init__(self, function: object) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: object, **kwargs: object) -> object:
        start = time.perf_counter()
        try:
            return self.function(*args, **kwargs)  # type: ignore[operator]
        finally:
            self.seconds += time.perf_counter() - start


@contextmanager
def watched(encoder: encoders.Encoder) -> Iterator[Stopwatch | None]:
    """Time the forward passes of an encoder that ``embed_patches`` loads meanwhile; None for one without a network."""
    inner = encoder.encoder  # type: ignore[attr-defined]
    # onnxruntime runs in the encoder itself, torch in its network.
    network = inner if hasattr(inner, "forward") else getattr(inner, "network", None)
    with mock.patch.object(registry, "load_spec", lambda *args, **kwargs: encoder):
        if network is None:
            yield None
            return
        watch = Stopwatch(network.forward)
        with mock.patch.object(network, "forward", watch):
            yield watch


def embed(sdata: SpatialData, encoder: encoders.Encoder, orientations: int, num_workers: int) -> tuple[float, float]:
    """Wall time of ``embed_patches`` and of the forward passes within, in seconds."""
    start = time.perf_counter()
    with watched(encoder) as watch:
        ig.pp.embed_patches(sdata, orientations=orientations, num_workers=num_workers)
    return time.perf_counter() - start, watch.seconds if watch else 0.0


def measure(sdata: SpatialData, backends: list[str], orientations: int, repeats: int) -> list[dict[str, object]]:
    loaded = {backend: encoders.load("default", backend=backend) for backend in backends}
    for encoder in loaded.values():
        encoder(np.zeros((32, 224, 224, 3), dtype=np.uint8))
    settings = [(backend, workers) for backend in backends for workers in (1, 0)]
    found: dict[tuple[str, int], list[tuple[float, float]]] = {setting: [] for setting in settings}
    for _ in range(repeats):
        for backend, workers in settings:
            found[backend, workers].append(embed(sdata, loaded[backend], orientations, workers))
    n = sdata["table"].n_obs
    rows = []
    for (backend, workers), times in found.items():
        wall, forward = np.median(times, axis=0)
        share = float(np.median([100 * (1 - inside / whole) for whole, inside in times]))
        row = {"backend": backend, "decoding": "ahead" if workers else "same thread", "spots": n}
        rows.append(
            row | {"ms/spot": 1e3 * wall / n, "forward ms/spot": 1e3 * forward / n, "outside forward (%)": share}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spots", type=int, default=256)
    parser.add_argument("--patch-um", type=float, nargs="+", default=DEFAULT_FIELDS_UM)
    parser.add_argument("--mpp", type=float, default=MPP, help="microns per pixel the slide is declared to have")
    parser.add_argument("--orientations", type=int, default=1)
    parser.add_argument("--backends", nargs="+", default=["torch", "onnx"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ig.settings.progress = False
    with tempfile.TemporaryDirectory() as folder:
        sdata = write_slide(Path(folder) / "slide.zarr", 6_000, args.spots)
        ig.pp.extract_patches(sdata, patch_um=args.patch_um, mpp=args.mpp)
        report(measure(sdata, args.backends, args.orientations, args.repeats), args.out)


if __name__ == "__main__":
    main()
