"""Scores of predictions against labels, per gene; every function takes (n_spots, n_genes) arrays.

A gene that is constant in the labels or the predictions has no correlation: it is NaN, never 0.
"""

from __future__ import annotations

import numpy as np

from img2gene._errors import Img2GeneError

# Relative to the largest value, below which a spread is rounding error of a constant
_CONSTANT = 1e-6


def _pair(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 (n_spots, n_genes)."""
    pair = [np.asarray(values, dtype=np.float64) for values in (truth, predicted)]
    if pair[0].shape != pair[1].shape:
        raise Img2GeneError(f"Labels {pair[0].shape} and predictions {pair[1].shape} differ in shape.")
    if pair[0].ndim not in (1, 2):
        raise Img2GeneError(f"Expected (n_spots, n_genes) arrays, got {pair[0].ndim} dimensions.")
    one, two = (values if values.ndim == 2 else values[:, None] for values in pair)
    return one, two


def standardise(values: np.ndarray) -> np.ndarray:
    """Columns centred and scaled to unit length; constant columns become NaN."""
    if not len(values):
        return np.full((0, values.shape[1]), np.nan)
    centred = values - values.mean(axis=0)
    length = np.sqrt(np.square(centred).sum(axis=0))
    floor = _CONSTANT * np.abs(values).max(axis=0) * np.sqrt(len(values))
    return np.divide(centred, length, out=np.full_like(centred, np.nan), where=length > floor)


def pearson(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pearson correlation of each gene over spots.

    r = Σ (y − ȳ)(ŷ − ŷ̄) / √(Σ (y − ȳ)² Σ (ŷ − ŷ̄)²), from −1 to 1.

    Parameters
    ----------
    truth, predicted
        (n_spots, n_genes), or (n_spots,) for one gene.

    Returns
    -------
    float64 (n_genes,); NaN where labels or predictions are constant, hold NaN, or there are fewer than two spots.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import pearson
    >>> pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])).round(3)
    array([1.])
    """
    one, two = _pair(truth, predicted)
    if len(one) < 2:
        return np.full(one.shape[1], np.nan)
    return np.clip((standardise(one) * standardise(two)).sum(axis=0), -1, 1)


def spearman(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Spearman correlation of each gene over spots: Pearson correlation of average ranks, from −1 to 1.

    Parameters and edge cases as in :func:`pearson`.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import spearman
    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 9.0])).round(3)
    array([1.])
    """
    from scipy.stats import rankdata

    one, two = _pair(truth, predicted)
    if len(one) < 2:
        return np.full(one.shape[1], np.nan)
    ranks = [rankdata(values, axis=0, nan_policy="propagate") for values in (one, two)]
    return pearson(ranks[0], ranks[1])


def mse(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean squared error of each gene, mean (y − ŷ)², 0 at best; NaN without spots.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import mse
    >>> mse(np.array([0.0, 2.0]), np.array([0.0, 0.0]))
    array([2.])
    """
    one, two = _pair(truth, predicted)
    return np.square(one - two).mean(axis=0) if len(one) else np.full(one.shape[1], np.nan)


def mae(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean absolute error of each gene, mean ``abs(y − ŷ)``, 0 at best; NaN without spots.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import mae
    >>> mae(np.array([0.0, 2.0]), np.array([0.0, 0.0]))
    array([1.])
    """
    one, two = _pair(truth, predicted)
    return np.abs(one - two).mean(axis=0) if len(one) else np.full(one.shape[1], np.nan)


def r2(truth: np.ndarray, predicted: np.ndarray, reference: np.ndarray | float) -> np.ndarray:
    """Share of squared error that the prediction saves against a constant reference.

    R² = 1 − Σ (y − ŷ)² / Σ (y − reference)², from −∞ to 1; 0 is as good as the reference. With the training mean as
    reference no knowledge of the test section is used.

    Parameters
    ----------
    truth, predicted
        (n_spots, n_genes).
    reference
        (n_genes,) values that a model without an image would predict, usually the training mean.

    Returns
    -------
    float64 (n_genes,); NaN where every label equals the reference.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import r2
    >>> r2(np.array([0.0, 2.0]), np.array([0.0, 2.0]), 1.0)
    array([1.])
    """
    one, two = _pair(truth, predicted)
    total = np.square(one - np.asarray(reference, dtype=np.float64)).sum(axis=0)
    error = np.square(one - two).sum(axis=0)
    return 1 - np.divide(error, total, out=np.full_like(total, np.nan), where=total > 0)
