"""From raw counts and pixels of a section to a prediction in a store: seconds per mm² of tissue, and where they go."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _report import DATA, report
from scipy.spatial import cKDTree
from spatialdata import SpatialData

import img2gene as ig
from img2gene import _schema
from img2gene.benchmark.layouts import read_legacy


class Steps:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        try:
            return run()
        finally:
            self.seconds[name] = time.perf_counter() - start


def prepare(read: Callable[[], SpatialData], encoder: str, steps: Steps) -> SpatialData:
    """Read a section, cut its patches and embed them with the default fields."""
    sdata = steps("read counts and image", read)
    steps("find patches", lambda: ig.pp.extract_patches(sdata))
    steps("embed", lambda: ig.pp.embed_patches(sdata, encoder))
    return sdata


def tissue_mm2(sdata: SpatialData) -> float:
    """Area of the tissue: one square of the spots' distance for each spot."""
    table = sdata["table"]
    (region,) = _schema.read_json(table, "patches")["regions"].values()
    windows = np.asarray(table.obsm["patch_bbox"], dtype=float)
    centres = (windows[:, :2] + windows[:, 2:4]) / 2 * region["mpp"]
    nearest = cKDTree(centres).query(centres, k=2)[0][:, 1]
    return len(centres) * float(np.median(nearest)) ** 2 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--section", default="C3", help="section of her2st that is predicted")
    parser.add_argument(
        "--train-on", default="C2", help="section that the model is trained on, before the clock starts"
    )
    parser.add_argument("--model", default="ridge")
    parser.add_argument("--encoder", default="default")
    parser.add_argument("--synthetic", action="store_true", help="small made-up sections instead of her2st")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ig.settings.progress = False

    def reader(name: str) -> Callable[[], SpatialData]:
        if args.synthetic:
            return lambda: ig.datasets.synthetic_cohort(n_patients=1, n_sections=1, n_spots=60)
        return lambda: read_legacy(args.data / "her2st", name, name[0])

    with tempfile.TemporaryDirectory() as folder:
        trained = prepare(reader(args.train_on), args.encoder, Steps())
        ig.tl.fit(trained, args.model, groups="section", allow_single_section=True, uncertainty=False)
        model = ig.get.model(trained)
        steps = Steps()
        sdata = prepare(reader(args.section), args.encoder, steps)
        steps("predict into the store", lambda: ig.tl.predict(sdata, model, out=Path(folder) / "predicted.zarr"))
        area, total = tissue_mm2(sdata), sum(steps.seconds.values())
    rows: list[dict[str, object]] = [
        {"step": name, "s": seconds, "s per mm²": seconds / area, "share (%)": 100 * seconds / total}
        for name, seconds in [*steps.seconds.items(), ("all", total)]
    ]
    n_spots, n_genes = sdata["table"].n_obs, len(model.genes)
    print(f"{n_spots} spots, {area:.1f} mm² of tissue, {n_genes:,} genes\n")
    report(rows, args.out)


if __name__ == "__main__":
    main()
