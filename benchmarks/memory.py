"""Peak memory of embedding a slide from disk, above a process that has only loaded the encoder and run one batch."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from _report import report
from _slide import MPP, write_slide

import img2gene as ig
from img2gene.pp.patches import DEFAULT_FIELDS_UM

_INTERVAL_S = 0.02
_GIB = 2**30


def child(action: str, path: str, encoder: str, fields: list[float], mpp: float) -> None:
    """Run in a process of its own: ``write`` the slide, run one batch only (``baseline``), or ``embed`` all spots."""
    ig.settings.progress = False
    if action == "baseline":
        import spatialdata  # noqa: F401 - part of the baseline, as is everything else that is imported

        model = ig.encoders.load(encoder)
        for _ in fields:
            model(np.zeros((ig.settings.batch_size, 224, 224, 3), dtype=np.uint8))
        return
    import spatialdata as sd

    sdata = sd.read_zarr(path)
    ig.pp.extract_patches(sdata, patch_um=fields, mpp=mpp)
    ig.pp.embed_patches(sdata, encoder)


def peak_memory(arguments: list[object], script: str = __file__) -> tuple[float, float]:
    """Peak resident memory (GiB) and wall time (s) of a script, this one by default, that is run with ``--child``."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-W", "ignore", script, "--child", json.dumps(arguments)])
    watched, peak = psutil.Process(process.pid), 0
    done = threading.Event()
    while not done.wait(_INTERVAL_S):
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        if process.poll() is not None:
            break
    if process.wait():
        raise SystemExit(f"{arguments[0]} failed with exit code {process.returncode}")
    return peak / _GIB, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=30_000, help="side of the image in pixels")
    parser.add_argument("--spots", type=int, default=5_000)
    parser.add_argument("--encoder", default="default", help="`color-texture` is a cheap one")
    parser.add_argument("--patch-um", type=float, nargs="+", default=DEFAULT_FIELDS_UM)
    parser.add_argument("--mpp", type=float, default=MPP, help="microns per pixel the slide is declared to have")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.zarr"
        write_slide(path, args.side, args.spots)
        common = [str(path), args.encoder, list(args.patch_um), args.mpp]
        baseline, _ = peak_memory(["baseline", *common])
        peak, seconds = peak_memory(["embed", *common])
    fields = " + ".join(f"{field:g}" for field in args.patch_um)
    row = {"encoder": args.encoder, "fields (µm)": fields, "µm/px": args.mpp}
    row |= {"image (GiB)": 3 * args.side**2 / _GIB, "spots": args.spots}
    row |= {"baseline (GiB)": baseline, "peak (GiB)": peak, "above baseline (GiB)": peak - baseline}
    report([row | {"wall (s)": seconds}], args.out)


if __name__ == "__main__":
    main()
