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
    """What a Pearson correlation needs to know of labels and predictions; ``a + b`` is that of the spots of both.

    Attributes
    ----------
    n
        Spots.
    means, squares, peaks
        float64 (2, n_genes), labels and predictions: mean, sum of squares around it, largest absolute value.
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
        """Moments of (n_spots, n_genes) labels and predictions."""
        one, two = columns(truth, predicted)
        return cls._of_rows(len(one), per_gene(row_moments, one, two))

    @classmethod
    def _of_rows(cls, n: int, rows: np.ndarray) -> Moments:
        return cls(n, rows[0:2], rows[2:4], rows[4:6], rows[6])

    def __add__(self, other: Moments) -> Moments:
        """Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979."""
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
        """Correlation of each gene; NaN where labels or predictions are constant or hold NaN, or there are fewer than two spots."""
        known = (self.n > 1) & ~is_constant(self.squares, self.peaks, self.n).any(axis=0)
        lengths = np.sqrt(self.squares)
        found = np.full_like(self.products, np.nan)
        np.divide(self.products, lengths[0] * lengths[1], out=found, where=known)
        return np.clip(found, -1, 1)


def row_moments(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Means, squares, peaks (of both) and products, float64 (7, n_genes), of (n_genes, n_spots) blocks."""
    if not one.shape[1]:
        return np.full((7, len(one)), np.nan)
    means = np.stack([one.mean(axis=1), two.mean(axis=1)])
    peaks = np.stack([np.abs(values).max(axis=1) for values in (one, two)])
    centred = [values - mean[:, None] for values, mean in zip((one, two), means, strict=True)]
    pairs = ((0, 0), (1, 1), (0, 1))
    sums = [np.einsum("gn,gn->g", centred[i], centred[j]) for i, j in pairs]
    return np.stack([*means, *sums[:2], *peaks, sums[2]])


def row_pearson(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Correlations of the rows of (n_genes, n_spots) blocks."""
    return Moments._of_rows(one.shape[1], row_moments(one, two)).pearson()


def pooled_pearson(truth: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> np.ndarray:
    """Pearson correlation of each gene over the spots of all sections together.

    As :func:`img2gene.metrics.pearson` of the stacked sections, from −1 to 1, without stacking them. A model that only tells
    sections apart correlates well here, and not at all within sections; where both differ, the level of sections decides.

    Parameters
    ----------
    truth, predicted
        One (n_spots, n_genes) array for each section, all of the same genes.

    Returns
    -------
    float64 (n_genes,); NaN where labels or predictions are constant over all sections, hold NaN, or there are fewer than two
    spots.

    Raises
    ------
    Img2GeneError
        No section, as many labels as predictions are not given, or their shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import pearson, pooled_pearson
    >>> low, high = np.array([1.0, 2.0]), np.array([8.0, 9.0])
    >>> pearson(low, low[::-1]), pooled_pearson([low, high], [low[::-1], high[::-1]]).round(2)
    (array([-1.]), array([0.96]))
    """
    if not len(truth) or len(truth) != len(predicted):
        raise Img2GeneError(f"Labels of {len(truth)} sections and predictions of {len(predicted)}: give both for each.")
    parts = [Moments.of(*pair) for pair in zip(truth, predicted, strict=True)]
    if len({part.products.shape for part in parts}) > 1:
        raise Img2GeneError("The sections differ in their number of genes.")
    return reduce(Moments.__add__, parts).pearson()
