"""Time of ``pp.embed_patches`` with one and with two workers of dask, and whether they give the same embedding."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
from _report import clocks, report

import img2gene as ig


def embedded(sdata, encoder: str, client) -> tuple[np.ndarray, float]:  # type: ignore[no-untyped-def]
    """Embedding of all spots, and the seconds it took."""
    start = clocks()[0]
    ig.pp.embed_patches(sdata, encoder, client=client)
    name = ig.encoders.get(encoder).name
    return np.array(sdata["table"].obsm[f"X_{name}"]), clocks()[0] - start


def main() -> None:
    from distributed import Client, LocalCluster

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spots", type=int, default=2_000, help="spots of each of two sections")
    parser.add_argument("--encoder", default="default")
    parser.add_argument("--patch-um", type=float, nargs="+", default=[112.0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ig.settings.progress = False
    sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=args.spots, n_genes=30, mpp=1.0)
    ig.pp.extract_patches(sdata, patch_um=args.patch_um)
    rows: list[dict[str, object]] = []
    values: dict[int, np.ndarray] = {}
    for n_workers in (1, 2):
        options = {"n_workers": n_workers, "threads_per_worker": 1, "dashboard_address": None}
        with LocalCluster(**options, silence_logs=logging.CRITICAL) as cluster, Client(cluster) as client:
            # The first call loads the encoder in every worker.
            embedded(sdata, args.encoder, client)
            values[n_workers], seconds = embedded(sdata, args.encoder, client)
        rows.append({"workers": n_workers, "spots": len(values[1]), "seconds": seconds})
    for row in rows:
        row["times as fast as one"] = float(rows[0]["seconds"]) / float(row["seconds"])  # type: ignore[arg-type]
        row["largest difference"] = float(np.abs(values[int(row["workers"])] - values[1]).max())  # type: ignore[call-overload]
    report(rows, args.out)


if __name__ == "__main__":
    main()
