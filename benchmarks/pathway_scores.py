"""Seconds to score gene sets in every spot: AUCell here and in decoupler, ssGSEA in gseapy, in one process and one thread."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# Before numba is imported: decoupler would spread over all cores.
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import decoupler
import numpy as np
import pandas as pd
import scipy.sparse as sp
from _report import median_seconds, report
from anndata import AnnData

import img2gene as ig
from img2gene.pathways import aucell, ssgsea

SET_SIZES = (10, 200)


def make_counts(n_spots: int, n_genes: int, rng: np.random.Generator) -> sp.csr_matrix:
    """Counts like Visium's: a few genes abundant, about a quarter of the entries detected."""
    rate = np.exp(rng.normal(-1.5, 1.5, n_genes))
    counts = rng.poisson(rate * rng.gamma(3, 1 / 3, (n_spots, 1))).astype(np.float32)
    counts[rng.integers(n_spots, size=n_genes), np.arange(n_genes)] += 1
    return sp.csr_matrix(counts)


def make_sets(n_sets: int, n_genes: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    sizes = rng.integers(*SET_SIZES, n_sets)
    return {f"set{number:03d}": rng.choice(n_genes, size, replace=False) for number, size in enumerate(sizes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spots", type=int, default=5_000)
    parser.add_argument("--genes", type=int, default=6_000)
    parser.add_argument("--sets", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ig.settings.progress = False
    rng = np.random.default_rng(0)
    counts, sets = make_counts(args.spots, args.genes, rng), make_sets(args.sets, args.genes, rng)
    adata = AnnData(counts, var=pd.DataFrame(index=[f"G{column}" for column in range(args.genes)]))
    pairs = [(name, f"G{column}") for name, columns in sets.items() for column in columns]
    network = pd.DataFrame(pairs, columns=["source", "target"]).assign(weight=1.0)
    runs = {
        "`img2gene` AUCell": lambda: aucell(counts, sets),
        "decoupler AUCell": lambda: decoupler.mt.aucell(adata, network),
        "gseapy ssGSEA": lambda: ssgsea(counts, sets),
    }
    # Numba compiles at the first call, and everyone imports.
    decoupler.mt.aucell(adata[:5].copy(), network)
    aucell(counts[:5], sets), ssgsea(counts[:5], sets)
    seconds = median_seconds(runs, args.repeats)
    ours = seconds["`img2gene` AUCell"]
    size = {"spots": args.spots, "genes": args.genes, "sets": args.sets}
    rows: list[dict[str, object]] = [
        {**size, "score": name, "seconds": took, "AUCell here is … times as fast": took / ours}
        for name, took in seconds.items()
    ]
    report(rows, args.out)
    difference = np.abs(aucell(counts, sets) - adata.obsm["score_aucell"][list(sets)].to_numpy()).max()
    print(f"\nlargest difference to decoupler: {difference:.1g}; detected: {counts.nnz / np.prod(counts.shape):.0%}")


if __name__ == "__main__":
    main()
