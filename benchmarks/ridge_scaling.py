"""Seconds that ``Ridge.fit`` takes for many genes and spots, penalties chosen inside the training data."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
from _report import median_seconds, report

from img2gene.models import TrainingData
from img2gene.models.ridge import Ridge

N_SECTIONS = 5


def make_data(n_spots: int, n_genes: int, width: int, seed: int = 0) -> TrainingData:
    """Features with a decaying spectrum, like embeddings, and labels that a twentieth of them carries."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n_spots, 100)) * np.linspace(3, 0.3, 100)
    features = latent @ rng.normal(size=(100, width)) / 10 + 0.5 * rng.normal(size=(n_spots, width))
    labels = rng.standard_normal((n_spots, n_genes), dtype=np.float32)
    # In single precision, as 15,000 genes of 50,000 spots take gigabytes.
    labels += latent[:, :20].astype(np.float32) @ (rng.normal(size=(20, n_genes)) / 10).astype(np.float32)
    labels += np.linspace(2, 0, n_genes, dtype=np.float32)
    sections = np.array([f"S{number}" for number in np.arange(n_spots) % N_SECTIONS])
    return TrainingData(features.astype(np.float32), labels, sections, sections, rng.uniform(size=(n_spots, 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, nargs="+", default=[250, 2_000, 15_000])
    parser.add_argument("--spots", type=int, nargs="+", default=[1_000, 5_000])
    parser.add_argument(
        "--width", type=int, default=2_688, help="features per spot: three fields of the default encoder"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for n_spots, n_genes in itertools.product(args.spots, args.genes):
        data = make_data(n_spots, n_genes, args.width)
        fit = {
            "chosen": lambda data=data: Ridge().fit(data, seed=0),
            "fixed": lambda data=data: Ridge(penalty=1.0).fit(data, seed=0),
        }
        seconds = median_seconds(fit, args.repeats)
        row = {"spots": n_spots, "genes": n_genes, "features": args.width}
        rows.append(row | {"28 penalties, 5 folds (s)": seconds["chosen"], "one penalty (s)": seconds["fixed"]})
    report(rows, args.out)


if __name__ == "__main__":
    main()
