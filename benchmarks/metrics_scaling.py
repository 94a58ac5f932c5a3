"""Every metric on a whole section against a loop over genes, in one run: seconds, processor seconds, peak memory.

``python benchmarks/metrics_scaling.py --threads 2`` scores 15,000 genes in 20,000 spots (float32). The loop calls scipy, scikit-learn,
scikit-image or numpy gene by gene for ``--subset`` genes, and is scaled up to all. ``difference`` is the largest one between both on
these genes. With ``--structure`` the correlation of all genes with all is computed, too, against ``numpy.corrcoef``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _report import clocks, peak_above, report
from scipy import stats
from skimage.metrics import structural_similarity
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from img2gene import metrics

ROWS, DISTINCT = 100, 1000
Score = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Section:
    """Labels, predictions and predictive SD (n_spots, n_genes) on a full square lattice."""

    truth: np.ndarray
    predicted: np.ndarray
    sd: np.ndarray
    positions: np.ndarray


def simulate(n_spots: int, n_genes: int) -> Section:
    """Sparse counts, as labels have them, and predictions that know half of what varies; genes recur after ``DISTINCT``."""
    rng = np.random.default_rng(0)
    positions = np.indices((ROWS, n_spots // ROWS)).reshape(2, -1).T.astype(float)
    waves = np.sin(positions @ rng.normal(scale=0.1, size=(2, 20)))
    known, hidden = (waves @ rng.normal(scale=0.3, size=(20, DISTINCT)) for _ in range(2))
    parts = (
        np.log1p(rng.poisson(np.exp(known + hidden - rng.uniform(0, 3, DISTINCT)))),
        known + 0.1 * rng.standard_normal(known.shape),
        0.3 + 0.1 * np.abs(hidden),
    )
    chosen = np.arange(n_genes) % DISTINCT
    return Section(*(part.astype(np.float32)[:, chosen] for part in parts), positions)


def ways(section: Section) -> dict[str, tuple[Score, Score]]:
    """Each metric of some columns at once, and the same of one column by another library."""
    graph = metrics.neighbor_graph(section.positions)
    shape = (ROWS, len(section.positions) // ROWS)

    def similarity(y: np.ndarray, p: np.ndarray, *_: object) -> float:
        extent = max(y.max(), p.max()) - min(y.min(), p.min())
        maps = [values.reshape(shape).astype(float) for values in (y, p)]
        return structural_similarity(*maps, data_range=float(extent))

    def moran(y: np.ndarray, *_: object) -> float:
        z = y - y.mean(dtype=float)
        return len(z) / graph.sum() * (z @ (graph @ z)) / (z @ z)

    def spread(y: np.ndarray, p: np.ndarray, *_: object) -> float:
        return np.sqrt(mean_squared_error(y, p)) / y.std(dtype=float)

    return {
        "pearson": (lambda y, p, s, m: metrics.pearson(y, p), lambda y, p, *_: stats.pearsonr(y, p).statistic),
        "spearman": (lambda y, p, s, m: metrics.spearman(y, p), lambda y, p, *_: stats.spearmanr(y, p).statistic),
        "mse": (lambda y, p, s, m: metrics.mse(y, p), lambda y, p, *_: mean_squared_error(y, p)),
        "mae": (lambda y, p, s, m: metrics.mae(y, p), lambda y, p, *_: mean_absolute_error(y, p)),
        "nrmse": (lambda y, p, s, m: metrics.nrmse(y, p), spread),
        "r2": (lambda y, p, s, m: metrics.r2(y, p, m), lambda y, p, *_: r2_score(y, p)),
        "ssim": (lambda y, p, s, m: metrics.ssim(y, p, section.positions), similarity),
        "morans_i": (lambda y, p, s, m: metrics.morans_i(y, graph), moran),
        "coverage": (
            lambda y, p, s, m: metrics.coverage(y, p, s),
            lambda y, p, s, m: ((p <= y) & (y <= s)).mean(),
        ),
        "interval_width": (
            lambda y, p, s, m: metrics.interval_width(p, s),
            lambda y, p, s, m: (s.astype(float) - p).mean(),
        ),
        "error_correlation": (
            lambda y, p, s, m: metrics.error_correlation(y, p, s),
            lambda y, p, s, m: stats.spearmanr(np.abs(y.astype(float) - p), s).statistic,
        ),
    }


def measure(name: str, way: tuple[Score, Score], columns: tuple[np.ndarray, ...], n_subset: int) -> dict[str, object]:
    """One metric of all genes, and the loop over the first of them."""
    at_once, alone = way
    before = clocks()
    found, peak = peak_above(lambda: at_once(*columns))
    seconds, processor = clocks() - before
    before = clocks()
    expected = [alone(*(values[..., gene] for values in columns)) for gene in range(n_subset)]
    loop_seconds, loop_processor = (clocks() - before) * (len(found) / n_subset)
    return {
        "metric": name,
        "s": seconds,
        "CPU s": processor,
        "memory (GiB)": peak,
        "loop, scaled (s)": loop_seconds,
        "loop, scaled (CPU s)": loop_processor,
        "CPU s, loop / img2gene": loop_processor / processor,
        "difference": float(np.abs(found[:n_subset] - expected).max()),
    }


def structure(values: np.ndarray, n_subset: int) -> dict[str, object]:
    """Correlation of all genes with all, against numpy's of some, whose cost grows with the square of the genes."""
    before = clocks()
    found, peak = peak_above(lambda: metrics.gene_correlation(values))
    seconds, processor = clocks() - before
    before = clocks()
    expected = np.corrcoef(values[:, :n_subset], rowvar=False, dtype=np.float64)
    other = (clocks() - before) * (values.shape[1] / n_subset) ** 2
    return {
        "metric": "gene_correlation",
        "s": seconds,
        "CPU s": processor,
        "memory (GiB)": peak,
        "loop, scaled (s)": other[0],
        "loop, scaled (CPU s)": other[1],
        "CPU s, loop / img2gene": other[1] / processor,
        "difference": float(np.abs(found[:n_subset, :n_subset] - expected).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=15_000)
    parser.add_argument("--spots", type=int, default=20_000)
    parser.add_argument("--subset", type=int, default=30, help="genes that the loop is measured on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--structure", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "metrics_scaling.csv")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    section = simulate(arguments.spots, arguments.genes)
    mean = section.truth.mean(axis=0, dtype=np.float64)
    columns = (section.truth, section.predicted, section.sd, mean)
    rows = []
    for name, way in ways(section).items():
        rows.append(measure(name, way, columns, arguments.subset))
        print(rows[-1], flush=True)
    if arguments.structure:
        rows.append(structure(section.truth, max(2, arguments.genes // 15)))
    report(rows, arguments.out)


if __name__ == "__main__":
    main()
