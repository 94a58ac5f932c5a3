"""Milliseconds per patch of 224 pixels: torch in float32 and bfloat16, and onnxruntime, at several batch sizes."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from _report import median_seconds, report

from img2gene import encoders

BACKENDS = {
    "torch float32": {"backend": "torch", "amp": False},
    "torch bfloat16": {"backend": "torch", "amp": True},
    "onnx float32": {"backend": "onnx", "device": "cpu"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="default")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--patches", type=int, default=64, help="patches per measurement")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    loaded = {name: encoders.load(args.encoder, **BACKENDS[name]) for name in args.backends}  # type: ignore[arg-type]
    patches = np.random.default_rng(0).integers(0, 256, (args.patches, 224, 224, 3), dtype=np.uint8)

    def embed(encoder: encoders.Encoder, size: int) -> None:
        for start in range(0, len(patches), size):
            encoder(patches[start : start + size])

    rows = []
    for size in args.batch_sizes:
        for encoder in loaded.values():
            encoder(patches[:size])
        runs = {name: partial(embed, encoder, size) for name, encoder in loaded.items()}
        seconds = median_seconds(runs, args.repeats)
        row: dict[str, object] = {"batch size": size}
        row |= {f"{name} (ms)": 1e3 * value / len(patches) for name, value in seconds.items()}
        first = next(iter(seconds.values()))
        rows.append(row | {f"{name}: speed-up": first / value for name, value in list(seconds.items())[1:]})
    report(rows, args.out)


if __name__ == "__main__":
    main()
