"""Test whether predictions correlate with expression more than two smooth maps do by chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.metrics._blocks import standardise
from img2gene.metrics._inputs import checked_draws, place_array, real_array, section_numbers
from img2gene.metrics._order import order_by_position
from img2gene.metrics.regression import pearson
from img2gene.metrics.spatial import neighbor_graph

# The time that eigenvectors take grows with the third power of the number of spots.
_MAX_SPOTS = 4000
_BLOCK = 1000
# Every draw keeps a value for each gene in memory.
_MAX_PERMUTATIONS = 100_000
# 1 / (4 P(Z > √2)), the constant of Bentkus & Dzindzalieta
_TAIL = 3.178


def spatial_correlation_test(
    truth: np.ndarray,
    predicted: np.ndarray,
    positions: np.ndarray,
    sections: np.ndarray | Sequence[str] | None = None,
    *,
    n_permutations: int = 999,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Compute the mean PCC within sections and its one-sided p-value against random maps of the same smoothness.

    Two unrelated smooth maps correlate far more often than shuffled ones. So measured expression is not shuffled but
    redrawn with its own spatial autocorrelation (Moran spectral randomisation): in the basis :math:`v_k` of
    eigenvectors of the section's centred neighbour graph, from smooth to rough, every coefficient keeps its size and
    takes a random sign. With coefficients :math:`a_k, b_k` of measured and predicted expression of unit length, the
    correlation is :math:`\sum_k a_k b_k`, and under the null :math:`\sum_k \epsilon_k a_k b_k` with signs
    :math:`\epsilon_k = \pm 1`.

    p is the smaller of two values: (b + 1) / (n + 1), where b of n draws reach the observed mean; and a bound that
    needs no draws, 3.178 P(Z > z) with z = mean / √Σ (a_k b_k)², which holds for every sum with random signs.

    Parameters
    ----------
    truth, predicted
        (n_spots, n_genes).
    positions
        (n_spots, 2).
    sections
        (n_spots,) names; by default all spots are one section.
    n_permutations
        Draws n.
    seed
        Seed of the draws, which do not depend on the order of spots and genes.

    Returns
    -------
    Mean correlation (n_genes,), over the sections where it is defined, and p-values (n_genes,); both NaN where it is
    defined in none. Of sections with more than 4,000 spots, a random 4,000 enter the p-value.

    Raises
    ------
    Img2GeneError
        Shapes that differ.

    References
    ----------
    Wagner & Dray, "Generating spatially constrained null models for irregularly spaced data using Moran spectral
    randomization methods", Methods in Ecology and Evolution 2015; Bentkus & Dzindzalieta, "A tight Gaussian bound for
    weighted sums of Rademacher random variables", Bernoulli 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import spatial_correlation_test
    >>> rng = np.random.default_rng(0)
    >>> positions = rng.uniform(size=(80, 2))
    >>> truth = rng.normal(size=(80, 2))
    >>> predicted = np.column_stack([truth[:, 0] + rng.normal(size=80), rng.normal(size=80)])
    >>> pcc, pvalue = spatial_correlation_test(truth, predicted, positions)
    >>> bool(pvalue[0] < 0.01), bool(pvalue[1] > 0.01)
    (True, True)
    """
    n_permutations, seed = checked_draws("n_permutations", n_permutations, _MAX_PERMUTATIONS, seed)
    truth, predicted = real_array(truth, "truth"), real_array(predicted, "predicted")
    if truth.ndim != 2 or truth.shape != predicted.shape:
        raise Img2GeneError(
            f"Expression {truth.shape} and predictions {predicted.shape} must have the same spots and genes: expected "
            "two (n_spots, n_genes) arrays."
        )
    positions, groups = place_array(positions, len(truth)), section_numbers(sections, len(truth))
    rng = np.random.default_rng(seed)
    pcc, draws = np.zeros((2, truth.shape[1])), _Draws(truth.shape[1], n_permutations)
    for group in range(groups.max(initial=-1) + 1):
        rows = np.flatnonzero(groups == group)
        r = pearson(truth[rows], predicted[rows])
        pcc += [np.nan_to_num(r), np.isfinite(r)]
        # Draws follow the order of the spots, which therefore must be the same whatever the order of the input.
        rows = rows[order_by_position(positions[rows], truth[rows], predicted[rows])]
        rows = rows if len(rows) <= _MAX_SPOTS else rows[np.sort(rng.choice(len(rows), _MAX_SPOTS, replace=False))]
        draws.add(truth[rows], predicted[rows], positions[rows], rng)
    mean = np.divide(pcc[0], pcc[1], out=np.full(truth.shape[1], np.nan), where=pcc[1] > 0)
    return mean, draws.pvalues()


class _Draws:
    """Sums over sections of correlations, observed and with random signs."""

    def __init__(self, n_genes: int, n_permutations: int) -> None:
        self.observed, self.power = np.zeros(n_genes), np.zeros(n_genes)
        self.defined = np.zeros(n_genes, dtype=bool)
        self.null = np.zeros((n_permutations, n_genes), dtype=np.float32)

    def add(self, truth: np.ndarray, predicted: np.ndarray, positions: np.ndarray, rng: np.random.Generator) -> None:
        """Add one section to the sums."""
        basis = _smooth_to_rough(positions).T
        signs = 2 * rng.integers(0, 2, (len(self.null), len(truth)), dtype=np.int8) - 1
        signs = signs.astype(np.float32)
        for start in range(0, truth.shape[1], _BLOCK):
            block = slice(start, start + _BLOCK)
            pair = [standardise(np.asarray(values[:, block], dtype=np.float64)) for values in (truth, predicted)]
            defined = np.isfinite(pair[0]).all(axis=0) & np.isfinite(pair[1]).all(axis=0)
            terms = (basis @ np.where(defined, pair[0], 0)) * (basis @ np.where(defined, pair[1], 0))
            self.observed[block] += terms.sum(axis=0)
            self.power[block] += np.square(terms).sum(axis=0)
            self.null[:, block] += signs @ terms.astype(np.float32)
            self.defined[block] |= defined

    def pvalues(self) -> np.ndarray:
        """One-sided p-values; NaN where no section has a correlation."""
        from scipy.stats import norm

        # Draws that equal the observed sum up to rounding count as reaching it.
        reached = (self.null >= self.observed - 1e-5).sum(axis=0)
        z = self.observed / np.sqrt(np.where(self.defined, self.power, 1))
        pvalue = np.minimum((reached + 1) / (len(self.null) + 1), _TAIL * norm.sf(z))
        return np.where(self.defined, pvalue, np.nan)


def _smooth_to_rough(positions: np.ndarray) -> np.ndarray:
    """Eigenvectors of the neighbour graph of a section, with rows and columns centred; (n_spots, n_spots)."""
    graph = neighbor_graph(positions).toarray()
    graph = (graph + graph.T) / 2
    graph += graph.mean() - graph.mean(axis=0) - graph.mean(axis=1)[:, None]
    return np.linalg.eigh(graph)[1]
