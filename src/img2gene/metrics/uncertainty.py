"""Check predictive intervals and standard deviations; functions take (n_spots, n_genes) arrays.

Spots with an unknown (NaN) interval or deviation are left out. A gene without any known spot is NaN, never 0.
"""

from __future__ import annotations

import numpy as np

from img2gene.metrics._blocks import columns, per_gene
from img2gene.metrics.regression import row_spearman


def coverage(truth: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Compute the share of spots, for each gene, whose measured value lies in its predictive interval.

    Coverage = mean [l ≤ y ≤ u], from 0 to 1. Nominal 90 % intervals should cover .9 of the values. Read coverage
    together with width, as wide enough intervals cover everything. An interval whose bounds are crossed covers nothing.

    Parameters
    ----------
    truth, lower, upper
        (n_spots, n_genes), or (n_spots,) for one gene.

    Returns
    -------
    float64 (n_genes,) over the spots where all three are known; NaN where there is none.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import coverage
    >>> truth, lower = np.array([1.0, 2.0, 9.0, 4.0]), np.array([0.0, 2.0, 3.0, np.nan])
    >>> coverage(truth, lower, lower + 2).round(3)
    array([0.667])
    """

    def run(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return _mean_known((low <= value) & (value <= high), ~(np.isnan(value) | np.isnan(low) | np.isnan(high)))

    return per_gene(run, *columns(truth, lower, upper))


def interval_width(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Compute the mean width of the predictive intervals of each gene, on the scale of the expression.

    Width = mean (u − l), from 0. Of two models with the same :func:`img2gene.metrics.coverage`, the one with narrower
    intervals is better.

    Parameters
    ----------
    lower, upper
        (n_spots, n_genes), or (n_spots,) for one gene.

    Returns
    -------
    float64 (n_genes,) over the spots where both bounds are known; NaN where there is none.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import interval_width
    >>> interval_width(np.array([0.0, 1.0, np.nan]), np.array([1.0, 4.0, 2.0]))
    array([2.])
    """

    def run(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        # In place: `per_gene` passes copies.
        high -= low
        return _mean_known(high, ~np.isnan(high))

    return per_gene(run, *columns(lower, upper))


def error_correlation(truth: np.ndarray, predicted: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Correlate a gene's absolute errors with the predicted standard deviation.

    The score is the Spearman correlation of abs(y − ŷ) with the SD over spots, from −1 to 1. It is 0 where the SD does
    not predict which errors are large. Even the true SD stays well below 1, as an error drawn with a large SD may be
    small: normal errors with log-normal SDs, σ = .5, reach .46.

    Parameters
    ----------
    truth, predicted, sd
        (n_spots, n_genes), or (n_spots,) for one gene.

    Returns
    -------
    float64 (n_genes,) over the spots where all three are known; NaN with fewer than two such spots, and where SD or
    error are constant.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import error_correlation
    >>> error_correlation(np.array([1.0, 2.0, 5.0]), np.zeros(3), np.array([0.1, 0.2, 0.3])).round(3)
    array([1.])
    """

    def run(value: np.ndarray, guess: np.ndarray, deviation: np.ndarray) -> np.ndarray:
        error = np.abs(value - guess)
        known = ~np.isnan(error + deviation)
        correlation = row_spearman(error, deviation)
        # Ranks depend on which spots are known, so that these genes are ranked one by one.
        for gene in np.flatnonzero(~known.all(axis=1)):
            spots = known[gene]
            correlation[gene] = row_spearman(error[gene, spots][None], deviation[gene, spots][None])[0]
        return correlation

    return per_gene(run, *columns(truth, predicted, sd))


def _mean_known(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mean of each row over the known entries, NaN where none is."""
    n = known.sum(axis=1)
    total = np.sum(values, axis=1, where=known, dtype=np.float64)
    return np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
