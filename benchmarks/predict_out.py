"""Peak memory and time of ``tl.predict(out=)`` against the plain matrix product and a write, and how both grow."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _report import report

N_SECTIONS = 5
SPOT_UM, MPP = 8.0, 0.5


def make_study(n_spots: int, width: int):  # type: ignore[no-untyped-def]
    """Tiles of five slides with an embedding; their images are not needed."""
    import anndata as ad
    import geopandas as gpd
    import pandas as pd
    import shapely
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    from img2gene import _schema

    rng = np.random.default_rng(0)
    region = np.arange(n_spots) * N_SECTIONS // n_spots
    names = [f"slide{number}" for number in range(N_SECTIONS)]
    side = int(np.ceil(np.sqrt(n_spots / N_SECTIONS)))
    place = np.arange(n_spots) - np.searchsorted(region, region)
    xy = np.column_stack([place % side, place // side]) * SPOT_UM / MPP
    shapes = {
        name: ShapesModel.parse(
            gpd.GeoDataFrame({"radius": np.full((region == i).sum(), 8.0)}, geometry=shapely.points(xy[region == i]))
        )
        for i, name in enumerate(names)
    }
    obs = pd.DataFrame({"region": pd.Categorical.from_codes(region, names), "spot_id": place})
    obs.index = [f"spot{number}" for number in range(n_spots)]
    table = ad.AnnData(np.zeros((n_spots, 0), dtype=np.float32), obs=obs)
    features = rng.standard_normal((n_spots, width), dtype=np.float32)
    features += region[:, None]
    table.obsm["X_color-texture"] = features
    windows = np.column_stack([xy[:, ::-1] - 8, xy[:, ::-1] + 8]).astype(np.int64)
    table.obsm["patch_bbox"] = windows
    patches = {"patch_um": [8.0], "patch_px": 32, "regions": {}}
    patches["regions"] = {name: {"image": "he", "mpp": MPP, "side_px": [16]} for name in names}
    _schema.write_json(table, "patches", patches)
    _schema.write_json(table, "encoder", {"color-texture": identity(width)})
    table = TableModel.parse(table, region=names, region_key="region", instance_key="spot_id")
    return SpatialData(shapes=shapes, tables={"table": table})


def identity(width: int) -> dict[str, object]:
    return {
        "name": "color-texture",
        "revision": "1",
        "width": width,
        "patch_um": [8.0],
        "input_px": 96,
        "orientations": 1,
    }


def make_model(width: int, n_genes: int):  # type: ignore[no-untyped-def]
    from img2gene.models import Model, TrainingData, create

    rng = np.random.default_rng(1)
    features = rng.standard_normal((2_000, width), dtype=np.float32)
    labels = features @ rng.standard_normal((width, n_genes), dtype=np.float32) / 30
    sections = np.repeat(["A", "B", "C", "D"], 500)
    predictor = create("ridge", penalty=1.0)
    predictor.fit(TrainingData(features, labels, sections, sections, rng.uniform(size=(2_000, 2))), seed=0)
    genes = [f"G{number}" for number in range(n_genes)]
    facts = {"sections": ["A", "B", "C", "D"], "patients": None}
    return Model(predictor, genes, {}, identity(width), {"layer": None, "target_sum": 1e4}, facts)


def measure(n_spots: int, width: int, n_genes: int, dtype: str, folder: Path) -> dict[str, object]:
    """One size, in a process of its own."""
    import img2gene as ig

    ig.settings.progress = False
    sdata, model = make_study(n_spots, width), make_model(width, n_genes)
    # What a process does once, such as importing packages, is no cost of a prediction.
    ig.tl.predict(make_study(100 * N_SECTIONS, width), model, out=folder / "first.zarr", dtype=dtype, uncertainty=False)
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock = time.process_time()
    start = time.perf_counter()
    ig.tl.predict(sdata, model, out=folder / "predicted.zarr", dtype=dtype, uncertainty=False)
    seconds, busy = time.perf_counter() - start, time.process_time() - clock
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plain, plain_busy = plain_product(np.asarray(sdata["table"].obsm["X_color-texture"]), n_genes, folder, dtype)
    return {
        "locations": n_spots,
        "genes": n_genes,
        "features": width,
        "peak (GB)": peak / 1e6,
        "peak before (GB)": started / 1e6,
        "predict (s)": seconds,
        "product + write (s)": plain,
        "ratio": seconds / plain,
        "predict: processor time (s)": busy,
        "processor time: ratio": busy / plain_busy,
    }


def plain_product(features: np.ndarray, n_genes: int, folder: Path, dtype: str) -> tuple[float, float]:
    """Seconds of a product with (width, n_genes) coefficients in blocks, written to one file and to the disk."""
    import os

    coefficients = np.random.default_rng(2).standard_normal((features.shape[1], n_genes), dtype=np.float32)
    clock, start = time.process_time(), time.perf_counter()
    with (folder / "plain.bin").open("wb") as file:
        for first in range(0, len(features), 4096):
            file.write((features[first : first + 4096] @ coefficients).astype(dtype, copy=False))
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - start, time.process_time() - clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--locations", type=int, nargs="+", default=[50_000, 100_000, 200_000, 500_000])
    parser.add_argument("--genes", type=int, default=1_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        found = measure(args.locations[0], args.width, args.genes, args.dtype, args.one)
        print(json.dumps(found), flush=True)
        return
    rows = []
    for n_spots in args.locations:
        with tempfile.TemporaryDirectory() as folder:
            options = {"--locations": n_spots, "--width": args.width, "--genes": args.genes, "--dtype": args.dtype}
            words = [str(word) for pair in options.items() for word in pair]
            answer = subprocess.run(
                [sys.executable, __file__, *words, "--one", folder], check=True, capture_output=True, text=True
            )
            rows.append(json.loads(answer.stdout.splitlines()[-1]))
    report(rows, args.out)
    for name in ("predict (s)", "predict: processor time (s)") if len(rows) > 1 else ():
        sizes, seconds = (np.log([row[key] for row in rows]) for key in ("locations", name))
        print(f"\nexponent of {name}: {np.polyfit(sizes, seconds, 1)[0]:.2f}", flush=True)


if __name__ == "__main__":
    main()
