"""Truncated singular value decomposition of centred features, and of the responses they predict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The exact eigendecomposition grows with the cube of this size; the Gram matrix with its square.
_EXACT_LIMIT, _GRAM_LIMIT = 1500, 4000


@dataclass(frozen=True)
class Decomposition:
    """Singular value decomposition of the scaled training features, and the labels' share of it.

    Attributes
    ----------
    scale
        float64 (width,): SD of each feature within sections.
    components
        float64 (k, width): right singular vectors of the scaled features.
    singular
        float64 (k,): singular values.
    projected
        float64 (k, n_genes): uᵀ y; a ridge solution is its rows times a shrinkage.
    energy
        Mean squared length of the scaled rows: the unit of the penalties.
    """

    scale: np.ndarray
    components: np.ndarray
    singular: np.ndarray
    projected: np.ndarray
    energy: float

    def scores(self, centred: np.ndarray) -> np.ndarray:
        """Principal component scores float64 (n, k) of centred features."""
        # One division of the few components instead of one of all features.
        return (centred @ (self.components / self.scale).T.astype(centred.dtype)).astype(np.float64)

    def shrinkage(self, penalty: float) -> np.ndarray:
        """Factor of each component (k,): s / (s² + λ), λ = penalty · energy."""
        return self.singular / (np.square(self.singular) + penalty * self.energy)

    def coefficients(self, penalties: np.ndarray) -> np.ndarray:
        """Ridge solution float32 (k, n_genes) with a penalty for each gene (n_genes,)."""
        coefficients = np.empty(self.projected.shape, dtype=np.float32)
        for penalty in np.unique(penalties):
            genes = penalties == penalty
            coefficients[:, genes] = self.shrinkage(penalty)[:, None] * self.projected[:, genes]
        return coefficients


def decompose(
    features: np.ndarray, labels: np.ndarray, n_components: int, seed: int, scale: np.ndarray | None = None
) -> Decomposition:
    """Scale centred features to unit SD, or divide them by a given ``scale``, and take the leading singular vectors.

    Exact through the smaller Gram matrix up to 1,500 rows or columns, randomised (Halko et al. 2011) above.
    """
    if scale is None:
        scale = np.sqrt(np.square(features).mean(axis=0, dtype=np.float64))
    # A feature that never varies (a filter that never fires) carries nothing; dividing by its rounding error would.
    scale = np.where(scale > 1e-6 * max(float(scale.max(initial=0)), 1e-12), scale, np.inf)
    scaled = features / scale.astype(features.dtype)
    singular, vt = _svd(scaled, n_components, seed)
    # The Gram matrix squares the singular values, so half of the digits are left.
    smallest = np.sqrt(np.finfo(scaled.dtype).eps) * max(float(singular.max(initial=0)), 1e-12)
    singular, vt = singular[singular > smallest], vt[singular > smallest]
    energy = max(float(np.square(scaled).sum(dtype=np.float64)) / max(len(scaled), 1), 1e-12)
    scale = np.where(np.isfinite(scale), scale, np.finfo(np.float32).max)
    # u = x v / s; of decompositions that serve the features alone there are no labels to project.
    projected = (scaled @ (vt / singular[:, None]).T.astype(scaled.dtype)).T @ labels if labels.size else labels[:0]
    return Decomposition(scale, vt, singular, projected, energy)


def leading_directions(centred: np.ndarray, n_directions: int, seed: int) -> np.ndarray:
    """Find the directions in which centred rows vary most, float64 (width, at most ``n_directions``)."""
    singular, vt = _svd(centred, n_directions, seed)
    return vt[singular > 1e-6 * max(float(singular.max(initial=0)), 1e-12)].T


def _svd(matrix: np.ndarray, n_components: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading ``n_components`` singular values, largest first, and right singular vectors in rows; float64."""
    n, width = matrix.shape
    k = min(n_components, n, width)
    if min(n, width) > _GRAM_LIMIT:
        _, singular, vt = _randomized(matrix, k, seed, n_iter=4)
        return singular.astype(np.float64), vt.astype(np.float64)
    tall = n > width
    values, vectors = _leading_eigenpairs(matrix.T @ matrix if tall else matrix @ matrix.T, k, seed)
    singular = np.sqrt(np.maximum(values, 0))
    if tall:
        return singular, vectors.T
    inverse = np.divide(1, singular, out=np.zeros_like(singular), where=singular > 0)
    return singular, (vectors * inverse).T @ matrix


def _leading_eigenpairs(gram: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest ``k`` eigenvalues of a Gram matrix, largest first, and their eigenvectors in columns; float64."""
    size = len(gram)
    if size > _EXACT_LIMIT and 4 * k < size:
        # A Gram matrix is the square of a matrix, so half of its iterations are enough.
        vectors, values, _ = _randomized(gram, k, seed, n_iter=2)
        return values.astype(np.float64), vectors.astype(np.float64)
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    return values[: -k - 1 : -1], vectors[:, : -k - 1 : -1]


def _randomized(matrix: np.ndarray, k: int, seed: int, n_iter: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leading ``k`` singular triplets of a large matrix (Halko et al. 2011)."""
    from sklearn.utils.extmath import randomized_svd

    return randomized_svd(matrix, k, n_iter=n_iter, random_state=seed)
