"""Weights of several predictions, chosen on spots that none of them was fitted to."""

from __future__ import annotations

import numpy as np


def stack_weights(
    candidates: list[np.ndarray], labels: np.ndarray, spot_weights: np.ndarray | None = None, *, shrinkage: float = 0.0
) -> np.ndarray:
    """Non-negative weights w that minimise the mean over genes of |y − Σ w_c ŷ_c|² relative to the gene's variance.

    They need not sum to 1: where all candidates are overconfident, what is left out is shrinkage to the mean.

    Parameters
    ----------
    candidates
        Held-out predictions, (n, G) each, centred like the labels.
    labels
        (n, G), centred.
    spot_weights
        (n,): weight of each spot; None for equal weights.
    shrinkage
        λ of a penalty λ T Σ_c (w_c − 1/n_candidates)², with T the candidates' mean sum of squares relative to the genes'
        variance. It draws the weights towards the mean of the candidates, which is safe where the held-out spots say little
        about the spots that will be predicted.

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
    >>> stack_weights([y / 2, np.array([[1.0], [1.0], [-1.0], [-1.0]])], y)
    array([2., 0.])
    """
    from scipy.optimize import nnls

    spots = np.ones(len(labels)) if spot_weights is None else spot_weights / spot_weights.mean()
    variance = np.einsum("n,ng,ng->g", spots, labels, labels, dtype=np.float64)
    # Relative errors, so that a few highly variable genes do not decide; genes that do not vary count nothing.
    genes = np.divide(1, variance, out=np.zeros(len(variance)), where=variance > 1e-12 * variance.max(initial=0))

    def product(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.einsum("n,ng,ng->g", spots, one, other, dtype=np.float64) @ genes)

    gram = np.array([[product(one, other) for other in candidates] for one in candidates])
    target = np.array([product(one, labels) for one in candidates])
    pull = shrinkage * float(np.trace(gram)) / len(candidates)
    gram += pull * np.eye(len(candidates))
    target += pull / len(candidates)
    # Non-negative least squares of the normal equations, through a root of the Gram matrix.
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-10 * max(values.max(initial=0), 1e-300)
    root = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
    right = (vectors[:, kept].T @ target) / np.sqrt(values[kept])
    return nnls(root, right)[0] if kept.any() else np.zeros(len(candidates))
