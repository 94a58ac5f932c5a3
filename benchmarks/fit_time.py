"""Seconds of whole fits, from embeddings in memory to a trained model: the default, and the ridge it mixes.

``python benchmarks/fit_time.py`` makes four patients with one section each. Embeddings are as wide as the default ones, and
twenty directions of them carry expression, so that networks have something to learn. Early stopping decides how long they
train, as it does for users; *epochs* is what the final networks were trained for, and *most* what the schedule allows.
"""

from __future__ import annotations

import argparse

import numpy as np
from _report import clocks, markdown
from network_scaling import positions

WIDTH, N_SIGNALS = 3_584, 20


def training_data(n_sections: int, n_spots: int, n_genes: int):
    """Embeddings and log expression with a signal that is smooth over the section."""
    from scipy.ndimage import gaussian_filter1d

    from img2gene.models import TrainingData

    rng = np.random.default_rng(0)
    total = n_sections * n_spots
    signal = gaussian_filter1d(rng.standard_normal((total, N_SIGNALS)), 10, axis=0)
    signal /= signal.std(axis=0)
    features = rng.standard_normal((total, WIDTH), dtype=np.float32)
    features += 2 * (signal @ rng.standard_normal((N_SIGNALS, WIDTH)) / np.sqrt(N_SIGNALS)).astype(np.float32)
    labels = np.tanh(signal) @ rng.standard_normal((N_SIGNALS, n_genes)) / np.sqrt(N_SIGNALS)
    labels = (labels + rng.standard_normal(labels.shape)).clip(0).astype(np.float32)
    sections = np.repeat([f"S{i}" for i in range(n_sections)], n_spots)
    return TrainingData(features, labels, sections, sections, np.tile(positions(n_spots), (n_sections, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["ridge", "img2gene"])
    parser.add_argument("--sections", type=int, default=4)
    parser.add_argument("--spots", type=int, default=4_000, help="spots of a section")
    parser.add_argument("--genes", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    import torch
    from threadpoolctl import threadpool_limits

    import img2gene as ig

    torch.set_num_threads(args.threads)
    ig.settings.progress = False
    data = training_data(args.sections, args.spots, args.genes)
    rows = []
    for name in args.models:
        model, start = ig.models.create(name), clocks()
        with threadpool_limits(args.threads):
            model.fit(data, seed=0)
        wall, cpu = clocks() - start
        rows.append({"model": name, "threads": args.threads, "seconds": wall, "CPU seconds": cpu})
        rows[-1] |= {key: value for key, value in model.summary().items() if key in ("epochs", "max_epochs")}
        print(rows[-1], flush=True)
    print(markdown(rows))


if __name__ == "__main__":
    main()
