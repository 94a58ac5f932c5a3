"""Means, variances and covariance of two sets of values, gene by gene, which can be joined over sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.metrics._blocks import columns, is_constant, per_gene


@dataclass(frozen=True)
class Moments:
    """Sums that a Pearson correlation is computed from; ``a + b`` are the moments of the spots of both.

    Attributes
    ----------
    n
        Spots.
    means, squares, peaks
        float64 (2, n_genes), measured and predicted: mean, sum of squares around it, largest absolute value.
    products
        float64 (n_genes,): sum of products around the means.
    """

    n: int
    means: np.ndarray
    squares: np.ndarray
    peaks: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, truth: np.ndarray, predicted: np.ndarray) -> Moments:
        """Compute the moments of measured and predicted expression (n_spots, n_genes)."""
        one, two = columns(truth, predicted)
        return cls._of_rows(len(one), per_gene(row_moments, one, two))

    @classmethod
    def _of_rows(cls, n: int, rows: np.ndarray) -> Moments:
        return cls(n, rows[0:2], rows[2:4], rows[4:6], rows[6])

    def __add__(self, other: Moments) -> Moments:
        """Join moments as in Chan, Golub & LeVeque, "Updating formulae for computing sample variances", 1979."""
        if not (self.n and other.n):
            return self if self.n else other
        n = self.n + other.n
        step = other.means - self.means
        weight = self.n * other.n / n
        return Moments(
            n,
            self.means + step * (other.n / n),
            self.squares + other.squares + weight * np.square(step),
            np.maximum(self.peaks, other.peaks),
            self.products + other.products + weight * step[0] * step[1],
        )

    def pearson(self) -> np.ndarray:
        """Correlation of each gene; NaN where a side is constant or holds NaN, or there are fewer than two spots."""
        known = (self.n > 1) & ~is_constant(self.squares, self.peaks, self.n).any(axis=0)
        lengths = np.sqrt(self.squares)
        correlation = np.full_like(self.products, np.nan)
        np.divide(self.products, lengths[0] * lengths[1], out=correlation, where=known)
        # Rounding leaves some perfect correlations a little beyond 1.
        return np.clip(correlation, -1, 1)

    def bias(self) -> np.ndarray:
        """Mean of the predicted values less that of the measured values, of each gene; NaN without spots."""
        return self.means[1] - self.means[0]

    def slope(self) -> np.ndarray:
        """Slope of measured on predicted values, of each gene; NaN where predicted values are constant or hold NaN."""
        known = (self.n > 1) & ~is_constant(self.squares, self.peaks, self.n)[1]
        slope = np.full_like(self.products, np.nan)
        return np.divide(self.products, self.squares[1], out=slope, where=known)


def row_moments(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Compute means, squares and peaks (of both) and products, float64 (7, n_genes), of (n_genes, n_spots) blocks."""
    if not one.shape[1]:
        return np.full((7, len(one)), np.nan)
    means = np.stack([one.mean(axis=1), two.mean(axis=1)])
    peaks = np.stack([np.abs(values).max(axis=1) for values in (one, two)])
    # Centred first: sums of squares minus squared means cancel where the mean is large.
    centred = [values - mean[:, None] for values, mean in zip((one, two), means, strict=True)]
    pairs = ((0, 0), (1, 1), (0, 1))
    sums = [np.einsum("gn,gn->g", centred[i], centred[j]) for i, j in pairs]
    return np.stack([*means, *sums[:2], *peaks, sums[2]])


def row_pearson(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Correlate the rows of (n_genes, n_spots) blocks."""
    return Moments._of_rows(one.shape[1], row_moments(one, two)).pearson()


def pooled_pearson(truth: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> np.ndarray:
    """Compute the Pearson correlation of each gene over the spots of all sections together.

    As :func:`img2gene.metrics.pearson` of the stacked sections, from −1 to 1, without stacking them. A model that only
    predicts the level of each section correlates well here, and not at all within sections.

    Parameters
    ----------
    truth, predicted
        One (n_spots, n_genes) array for each section, all of the same genes.

    Returns
    -------
    float64 (n_genes,); NaN where either side is constant over all sections or holds NaN, or there are fewer than two
    spots.

    Raises
    ------
    Img2GeneError
        No section, different numbers of measured and predicted sections, or shapes that differ.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import pearson, pooled_pearson
    >>> low, high = np.array([1.0, 2.0]), np.array([8.0, 9.0])
    >>> pearson(low, low[::-1]), pooled_pearson([low, high], [low[::-1], high[::-1]]).round(2)
    (array([-1.]), array([0.96]))
    """
    for name, sections in (("truth", truth), ("predicted", predicted)):
        if not isinstance(sections, list | tuple | np.ndarray) or not getattr(sections, "ndim", 1):
            raise Img2GeneError(f"{name}: expected a list with one (n_spots, n_genes) array for each section.")
    if not len(truth) or len(truth) != len(predicted):
        raise Img2GeneError(
            f"Expression of {len(truth)} sections and predictions of {len(predicted)}: pass both for every section."
        )
    parts = [Moments.of(*pair) for pair in zip(truth, predicted, strict=True)]
    if len({part.products.shape for part in parts}) > 1:
        raise Img2GeneError("The sections differ in their number of genes.")
    return reduce(Moments.__add__, parts).pearson()
