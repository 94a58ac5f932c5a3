"""Per-gene statistics of training labels, from which gene groups are drawn."""

from __future__ import annotations

import numpy as np

from img2gene.metrics import morans_i, neighbor_graph


def gene_statistics(labels: np.ndarray, sections: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Mean, variance, dispersion, detection and Moran's I of each gene.

    Parameters
    ----------
    labels
        (n_spots, n_genes) training labels.
    sections
        (n_spots,): Moran's I is computed within each section and averaged.
    positions
        (n_spots, 2).

    Returns
    -------
    float32 (n_genes,) each: ``mean``; ``variance``; ``dispersion`` (variance over mean, of ``expm1`` of the labels);
    ``detection`` (share of spots above 0); ``moran`` (six nearest spots).
    """
    linear = np.expm1(np.clip(labels, None, 30).astype(np.float64))
    average = linear.mean(axis=0)
    dispersion = np.divide(linear.var(axis=0), average, out=np.full_like(average, np.nan), where=average > 0)
    statistics = {
        "mean": labels.mean(axis=0, dtype=np.float64),
        "variance": labels.var(axis=0, dtype=np.float64),
        "dispersion": dispersion,
        "detection": (labels > 0).mean(axis=0),
        "moran": _moran(labels, sections, positions),
    }
    return {name: values.astype(np.float32) for name, values in statistics.items()}


def _moran(labels: np.ndarray, sections: np.ndarray, positions: np.ndarray) -> np.ndarray:
    values = []
    for name in np.unique(sections):
        rows = sections == name
        values.append(morans_i(labels[rows], neighbor_graph(positions[rows])))
    table = np.array(values)
    known = np.isfinite(table)
    return np.divide(
        np.where(known, table, 0).sum(axis=0),
        known.sum(axis=0),
        out=np.full(table.shape[1], np.nan),
        where=known.any(axis=0),
    )
