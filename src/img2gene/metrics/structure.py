"""Measure which genes vary together, and whether predictions preserve that."""

from __future__ import annotations

from functools import reduce

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.metrics._blocks import each_block, spread
from img2gene.metrics._inputs import real_array
from img2gene.metrics.moments import Moments

_MIN_PAIRS = 3
# Rows of all genes at once would take several matrices of n_genes² values.
_BLOCK_PAIRS = 2**21


def gene_correlation(values: np.ndarray) -> np.ndarray:
    """Compute the Pearson correlation of every gene with every other over spots.

    r_gh = Σ (x_g − x̄_g)(x_h − x̄_h) / √(Σ (x_g − x̄_g)² Σ (x_h − x̄_h)²), from −1 to 1.

    Parameters
    ----------
    values
        (n_spots, n_genes) of one section: differences of stain and depth between sections would correlate all genes.

    Returns
    -------
    float64 (n_genes, n_genes), symmetric. Row and column of a gene that is constant or holds NaN are NaN, its diagonal
    too; with fewer than two spots all values are NaN.

    Raises
    ------
    Img2GeneError
        ``values`` is not two-dimensional.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import gene_correlation
    >>> gene_correlation(np.array([[1.0, 6.0, 5.0], [2.0, 4.0, 5.0], [3.0, 2.0, 5.0]])).round(3)
    array([[ 1., -1., nan],
           [-1.,  1., nan],
           [nan, nan, nan]])
    """
    values = real_array(values, "values")
    if values.ndim != 2:
        raise Img2GeneError(f"Expected a (n_spots, n_genes) array, got shape {values.shape}.")
    n_spots, n_genes = values.shape
    if n_spots < 2:
        return np.full((n_genes, n_genes), np.nan)
    unit = np.empty((n_spots, n_genes))

    def standardise(block: slice) -> None:
        rows = np.array(values[:, block].T, dtype=np.float64, order="C")
        # Genes with infinite values become NaN.
        with np.errstate(invalid="ignore", over="ignore"):
            length = np.sqrt(spread(rows))
            unit[:, block] = ((rows - rows.mean(axis=1, keepdims=True)) / length[:, None]).T

    each_block(standardise, n_genes, n_spots)
    correlation = unit.T @ unit
    # Rounding leaves the diagonal a little off 1.
    return np.clip(correlation, -1, 1, out=correlation)


def structure_score(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Compare a predicted correlation matrix with the measured one.

    Both scores compare the upper triangles: each pair of genes once, without the diagonal. The Pearson correlation
    measures whether the same pairs vary together, the root mean squared difference (RMSE) whether they do so as
    strongly.

    Parameters
    ----------
    truth, predicted
        (n_genes, n_genes) from :func:`gene_correlation`. Pairs that are NaN in either are left out.

    Returns
    -------
    Pearson correlation, from −1 to 1, and RMSE, from 0 at best to 2. Both are NaN with fewer than three defined pairs;
    the correlation also where all pairs have the same value.

    Raises
    ------
    Img2GeneError
        The matrices are not square, or differ in shape.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import structure_score
    >>> truth = np.array([[1.0, 0.2, 0.4], [0.2, 1.0, 0.6], [0.4, 0.6, 1.0]])
    >>> [round(score, 3) for score in structure_score(truth, truth - 0.1)]
    [1.0, 0.1]
    """
    one, two = real_array(truth, "truth"), real_array(predicted, "predicted")
    if one.shape != two.shape or one.ndim != 2 or one.shape[0] != one.shape[1]:
        raise Img2GeneError(
            f"Expected two (n_genes, n_genes) correlation matrices, got shapes {one.shape} and {two.shape}; "
            "compute them from expression with `img2gene.metrics.gene_correlation`."
        )
    parts = [_block_moments(one, two, block) for block in _row_blocks(len(one))]
    moments = reduce(Moments.__add__, (part for part, _ in parts))
    if moments.n < _MIN_PAIRS:
        return np.nan, np.nan
    squares = sum(square for _, square in parts)
    return float(moments.pearson()[0]), float(np.sqrt(squares / moments.n))


def _row_blocks(n_genes: int) -> list[slice]:
    size = max(1, _BLOCK_PAIRS // max(1, n_genes))
    return [slice(start, start + size) for start in range(0, max(1, n_genes), size)]


def _block_moments(one: np.ndarray, two: np.ndarray, rows: slice) -> tuple[Moments, float]:
    """Moments and squared differences of the known pairs above the diagonal in some rows of two matrices."""
    first, second = one[rows], two[rows]
    known = np.isfinite(first) & np.isfinite(second)
    known &= np.arange(len(one)) > np.arange(len(one))[rows, None]
    first, second = first[known], second[known]
    return Moments.of(first, second), float(np.square(first - second).sum())
