"""Seconds and memory of the ridge against scikit-learn's ``RidgeCV``: many spots, one embedding, all genes."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from _report import clocks, peak_above, report
from ridge_scaling import make_data
from sklearn.linear_model import RidgeCV

from img2gene.models import TrainingData
from img2gene.models.linear import PENALTIES
from img2gene.models.ridge import Ridge


def timed(fit) -> tuple[np.ndarray, float]:  # type: ignore[no-untyped-def]
    """Wall and processor seconds of a fit, and its peak memory above the data in GiB."""
    start = clocks()
    _, peak = peak_above(fit)
    return clocks() - start, peak


def peer(data: TrainingData, n_genes: int) -> tuple[np.ndarray, float]:
    """Fit ``RidgeCV`` with a penalty per gene, by its fast leave-one-out formula, to the first genes."""
    model = RidgeCV(alphas=np.asarray(PENALTIES), alpha_per_target=True)
    return timed(lambda: model.fit(data.features, data.labels[:, :n_genes]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spots", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--genes", type=int, default=15_000)
    parser.add_argument(
        "--peer-genes",
        type=int,
        default=500,
        help="genes that RidgeCV fits at a time; its time grows with their number",
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data = make_data(args.spots, args.genes, args.width)
    n_peer = min(args.peer_genes, args.genes)
    # With two sizes, what does not depend on the genes is not counted for each block of them.
    few, _ = peer(data, max(n_peer // 2, 1))
    block, block_peak = peer(data, n_peer)
    per_gene = (block - few) / max(n_peer - max(n_peer // 2, 1), 1)
    once = np.maximum(block - per_gene * n_peer, 0)
    scaled = once + per_gene * args.genes
    own, own_peak = timed(lambda: Ridge().fit(data, seed=0))
    sizes = {"spots": args.spots, "features": args.width, "genes": args.genes}
    rows: list[dict[str, object]] = [
        {"fit": f"img2gene ridge, {len(PENALTIES)} penalties, 5 folds", **sizes, "s": own[0], "CPU s": own[1], "peak above the data (GiB)": own_peak, "RidgeCV / fit (CPU)": scaled[1] / own[1]},
        {"fit": f"RidgeCV, {n_peer:,} genes at a time, scaled to all", **sizes, "s": scaled[0], "CPU s": scaled[1], "peak above the data (GiB)": block_peak, "RidgeCV / fit (CPU)": 1.0},
    ]  # fmt: skip
    report(rows, args.out)
    everything = block_peak * args.genes / n_peer
    print(f"\nRidgeCV with all {args.genes:,} genes at once would take about {everything:,.0f} GiB above the data.")


if __name__ == "__main__":
    main()
