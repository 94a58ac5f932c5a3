"""Weights of several predictions, chosen on spots that none of them was fitted to."""

from __future__ import annotations

import numpy as np


def stack_weights(candidates: list[np.ndarray], labels: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Non-negative weights w that minimise the mean over genes of |y − Σ w_c ŷ_c|² relative to the gene's variance.

    They need not sum to 1: where all candidates are overconfident, what is left out is shrinkage to the mean.

    Parameters
    ----------
    candidates
        Held-out predictions, (n, G) each, centred like the labels.
    labels
        (n, G), centred.
    variance
        (G,): variance of each gene; genes without count nothing.

    Returns
    -------
    float64 (n_candidates,).

    References
    ----------
    Breiman, "Stacked regressions", Machine Learning 1996.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.networks.stacking import stack_weights
    >>> y = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    >>> stack_weights([y / 2, np.array([[1.0], [1.0], [-1.0], [-1.0]])], y, np.ones(1))
    array([2., 0.])
    """
    from scipy.optimize import nnls

    # Relative errors, so that a few highly variable genes do not decide.
    weight = np.divide(1, variance, out=np.zeros(len(variance)), where=variance > 0)
    gram = np.array([[_product(one, other, weight) for other in candidates] for one in candidates])
    target = np.array([_product(one, labels, weight) for one in candidates])
    # Non-negative least squares of the normal equations, through a root of the Gram matrix.
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-10 * max(values.max(initial=0), 1e-300)
    root = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
    right = (vectors[:, kept].T @ target) / np.sqrt(values[kept])
    return nnls(root, right)[0] if kept.any() else np.zeros(len(candidates))


def _product(one: np.ndarray, other: np.ndarray, weight: np.ndarray) -> float:
    return float((np.einsum("ng,ng->g", one, other, dtype=np.float64) * weight).sum())
