"""Gene–gene structure: which genes vary together, and whether predictions keep that."""

from __future__ import annotations

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.metrics.regression import pearson, standardise

_MIN_PAIRS = 3


def gene_correlation(values: np.ndarray) -> np.ndarray:
    """Pearson correlation of every gene with every other over spots.

    r_gh = Σ (x_g − x̄_g)(x_h − x̄_h) / √(Σ (x_g − x̄_g)² Σ (x_h − x̄_h)²), from −1 to 1.

    Parameters
    ----------
    values
        (n_spots, n_genes) of one section: between sections, differences of stain and depth correlate all genes.

    Returns
    -------
    float64 (n_genes, n_genes), symmetric. Row and column of a gene that is constant or holds NaN are NaN, its diagonal too;
    with fewer than two spots everything is.

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
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise Img2GeneError(f"Expected a (n_spots, n_genes) array, got shape {values.shape}.")
    if len(values) < 2:
        return np.full((values.shape[1],) * 2, np.nan)
    unit = standardise(values)
    return np.clip(unit.T @ unit, -1, 1)


def structure_score(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """How well a predicted correlation matrix agrees with the measured one.

    Both scores compare the upper triangles, each pair of genes once and without the diagonal: the Pearson correlation says
    whether the same pairs vary together, the root of the mean squared difference whether they do so as strongly.

    Parameters
    ----------
    truth, predicted
        (n_genes, n_genes) from :func:`gene_correlation`. Pairs that are NaN in either are left out.

    Returns
    -------
    Pearson correlation, from −1 to 1, and RMSE, from 0 at best to 2. Both are NaN with fewer than three defined pairs; the
    correlation also where all pairs have the same value.

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
    one, two = (np.asarray(matrix, dtype=np.float64) for matrix in (truth, predicted))
    if one.shape != two.shape or one.ndim != 2 or one.shape[0] != one.shape[1]:
        raise Img2GeneError(
            f"Expected two (n_genes, n_genes) correlation matrices, got shapes {one.shape} and {two.shape}; "
            "`img2gene.metrics.gene_correlation` makes them of expression."
        )
    pairs = np.triu_indices(len(one), k=1)
    known = np.isfinite(one[pairs]) & np.isfinite(two[pairs])
    if known.sum() < _MIN_PAIRS:
        return np.nan, np.nan
    first, second = one[pairs][known], two[pairs][known]
    return float(pearson(first, second)[0]), float(np.sqrt(np.square(first - second).mean()))
