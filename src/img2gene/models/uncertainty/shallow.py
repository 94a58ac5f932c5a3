"""Intervals of expression that hold for sections of another depth than the training's."""

from __future__ import annotations

import numpy as np
from scipy.special import gammainccinv

from img2gene.models.data import TARGET_SUM

# Counts per spot; platforms in use are rarely shallower.
LEAST_DEPTH = 500.0


def at_depth(lower: np.ndarray, upper: np.ndarray, *, depth: float, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Convert intervals of expression at unlimited depth to intervals of measured expression at some depth.

    A spot of ``depth`` counts has a Poisson number of counts of a gene, whose mean is its share of the expression times
    ``depth``. The result reaches from the lower quantile at the lower bound to the upper quantile at the upper bound.

    Parameters
    ----------
    lower, upper
        (n_spots, n_genes): bounds of log1p(1e4 · share of the gene).
    depth
        Counts per spot.
    level
        Nominal coverage, which sets the quantiles.

    Returns
    -------
    Lower and upper bound of log1p(1e4 · counts / depth), float32 (n_spots, n_genes) each.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.uncertainty.shallow import at_depth
    >>> share = np.log1p(np.array([[20.0]]))  # one count in 500
    >>> [round(bound.item(), 2) for bound in at_depth(share, share, depth=500, level=0.9)]  # no count, or three
    [0.0, 4.11]
    """
    tail = (1 - level) / 2
    return _quantile(lower, depth, tail), _quantile(upper, depth, 1 - tail)


def _quantile(values: np.ndarray, depth: float, quantile: float) -> np.ndarray:
    """Quantile of log1p(1e4 · counts / depth) where the expression has the given values."""
    # No gene has more than all counts of a spot.
    mean = np.minimum(np.expm1(np.clip(values, 0, 30)) / TARGET_SUM, 1) * depth
    most = int(depth + 10 * np.sqrt(depth))
    # The quantile reaches k counts where the probability of fewer than k falls below it.
    steps = gammainccinv(np.arange(1, most + 1), quantile)
    counts = np.searchsorted(steps, mean)
    return np.log1p(TARGET_SUM / depth * np.arange(most + 1)).astype(np.float32)[counts]
