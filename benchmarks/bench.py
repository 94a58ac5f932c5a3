"""Run the measurements of work on slides, stores and clusters one after the other, and print all their tables."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Measurement:
    """A script with what it shows, and the arguments of its full and its quick size."""

    title: str
    script: str
    full: list[str] = field(default_factory=list)
    quick: list[str] = field(default_factory=list)


MEASUREMENTS = (
    Measurement(
        "Stream of patches against readers of single tiles",
        "patch_streaming.py",
        [],
        ["--side", "2000", "--spots", "50", "--tiles", "20"],
    ),
    Measurement(
        "Time outside the encoder's forward pass", "embed_overhead.py", [], ["--spots", "16", "--repeats", "1"]
    ),
    Measurement(
        "A whole slide as a store and as OME-TIFF",
        "whole_slide.py",
        [],
        ["--side", "4000", "--encoders", "color-texture"],
    ),
    Measurement("Memory of embedding a slide above the encoder", "memory.py", [], ["--side", "6000", "--spots", "400"]),
    Measurement(
        "Predictions in a store against the plain product and a write",
        "predict_out.py",
        ["--locations", "50000", "100000", "200000", "500000"],
        ["--locations", "5000", "20000", "--genes", "200"],
    ),
    Measurement("Fit of the ridge", "ridge_scaling.py", [], ["--genes", "100", "--spots", "300", "--repeats", "1"]),
    Measurement(
        "Fit of the ridge against RidgeCV of scikit-learn",
        "ridge_peer.py",
        [],
        ["--spots", "2000", "--width", "64", "--genes", "400", "--peer-genes", "100"],
    ),
    Measurement(
        "From raw counts and pixels to a prediction in a store",
        "end_to_end.py",
        [],
        ["--synthetic", "--encoder", "color-texture"],
    ),
    Measurement(
        "Encoder speed: torch and onnxruntime",
        "encoder_speed.py",
        [],
        ["--batch-sizes", "8", "--patches", "8", "--repeats", "1"],
    ),
    Measurement(
        "Embedding and training on one device",
        "gpu.py",
        ["--device", "cpu", "--batch-sizes", "8", "32", "--spots", "128", "--workers", "1"],
        ["--device", "cpu", "--quick"],
    ),
    Measurement("One and two workers of dask", "workers.py", [], ["--spots", "40", "--encoder", "color-texture"]),
    Measurement(
        "Predictions finer than spots", "finer.py", [], ["--bins", "4", "--genes", "10", "--structure-um", "30"]
    ),
)


QUICK_NOTE = (
    "Small sizes, which show that the scripts work. Fixed costs, such as loading an encoder, dominate ratios and exponents at "
    "these sizes: take them from a run without --quick."
)


def run(measurement: Measurement, *, quick: bool, minutes: float) -> bool:
    """Run one script, print its tables as they come, and tell whether it succeeded."""
    words = measurement.quick if quick else measurement.full
    print(f"\n## {measurement.title}\n\n`python benchmarks/{' '.join([measurement.script, *words])}`\n", flush=True)
    start = time.perf_counter()
    try:
        code = subprocess.run(
            [sys.executable, "-W", "ignore", str(HERE / measurement.script), *words], timeout=60 * minutes
        ).returncode
    except subprocess.TimeoutExpired:
        code = "stopped"
    print(f"\n{time.perf_counter() - start:.0f} s, exit code {code}", flush=True)
    return code == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all scripts work")
    names = [one.script for one in MEASUREMENTS]
    parser.add_argument(
        "--only", nargs="+", metavar="SCRIPT", choices=names, help=f"scripts to run: {', '.join(names)}"
    )
    parser.add_argument("--minutes", type=float, default=120, help="limit of each script")
    args = parser.parse_args()
    chosen = [one for one in MEASUREMENTS if not args.only or one.script in args.only]
    if args.quick:
        print(QUICK_NOTE, flush=True)
    failed = [one.script for one in chosen if not run(one, quick=args.quick, minutes=args.minutes)]
    if failed:
        sys.exit(f"not finished: {', '.join(failed)}")


if __name__ == "__main__":
    main()
