"""Are predictive intervals and standard deviations right? Every function takes (n_spots, n_genes) arrays.

Intervals and deviations may be NaN, not known, in some spots: these are left out. A gene without any is NaN, never 0.
"""

from __future__ import annotations

import numpy as np

from img2gene.metrics._blocks import columns, per_gene
from img2gene.metrics.regression import row_spearman


def coverage(truth: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Share of spots, for each gene, whose label lies in its predictive interval.

    Coverage = mean [l ≤ y ≤ u], from 0 to 1. Intervals of nominal 90 % should hold .9; read it beside their width, as wide
    enough ones hold everything. An interval whose bounds are crossed holds nothing.

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
    """Mean width of the predictive intervals of each gene, on the scale of the labels.

    Width = mean (u − l), from 0; of two models with the same :func:`img2gene.metrics.coverage` that with narrower intervals
    knows more.

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
        high -= low
        return _mean_known(high, ~np.isnan(high))

    return per_gene(run, *columns(lower, upper))


def error_correlation(truth: np.ndarray, predicted: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Does the predicted standard deviation tell where a gene's errors are large?

    Spearman correlation of abs(y − ŷ) with the SD over spots, from −1 to 1; 0 is an SD that says nothing of where errors lie. Even
    the true SD stays well below 1, as an error drawn with a large SD may be small: normal errors whose SDs are log-normal, with
    σ = .5, reach .46.

    Parameters
    ----------
    truth, predicted, sd
        (n_spots, n_genes), or (n_spots,) for one gene.

    Returns
    -------
    float64 (n_genes,) over the spots where all three are known; NaN with fewer than two of them, and where SD or error are
    constant.

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
        found = row_spearman(error, deviation)
        for gene in np.flatnonzero(~known.all(axis=1)):
            spots = known[gene]
            found[gene] = row_spearman(error[gene, spots][None], deviation[gene, spots][None])[0]
        return found

    return per_gene(run, *columns(truth, predicted, sd))


def _mean_known(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mean of each row over the known entries, NaN where none is."""
    n = known.sum(axis=1)
    total = np.sum(values, axis=1, where=known, dtype=np.float64)
    return np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
