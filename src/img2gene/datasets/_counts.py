"""Expression of a synthetic cohort: gene effects, expected counts, and counts drawn from them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from img2gene.datasets._genes import DOMAINS, GENES

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

CONFOUNDER_EFFECT = 0.6
LIBRARY_SD = 0.35
SCALE = 1e4

_BASELINE = {"housekeeping": (1.6, 0.6), "noise": (-1.0, 0.7)}
_MARKER_BASELINE = (-0.4, 0.6)
_EFFECT = (2.4, 0.4)
_GRADIENT_EFFECT = {"hypoxia": (2.4, 0.4), "proliferation": (-2.2, 0.4)}
_BLOCK = 5


@dataclass(frozen=True)
class GeneEffects:
    """Log-rate effects, one row per gene.

    Attributes
    ----------
    baseline
        (G,) log-rate in a spot without markers.
    domain
        (G, K) added where the spot lies in a domain.
    hypoxia
        (G,) added as hypoxia rises from 0 to 1.
    confounder
        (G,) added per unit of the stain field in confounded patients; 0 for four genes of five.
    dispersion
        (G,) size of the negative binomial.
    """

    baseline: np.ndarray
    domain: np.ndarray
    hypoxia: np.ndarray
    confounder: np.ndarray
    dispersion: np.ndarray

    def head(self, n: int) -> GeneEffects:
        """Effects of the first ``n`` genes."""
        return GeneEffects(*(getattr(self, f.name)[:n] for f in fields(self)))


def draw_effects(rng: np.random.Generator) -> GeneEffects:
    """Effects of all genes; always of all, so that a shorter list has the same genes with the same effects."""
    groups = np.array([group for _, group in GENES])
    baseline, domain, hypoxia = (np.zeros(s) for s in (len(groups), (len(groups), len(DOMAINS)), len(groups)))
    for group in dict.fromkeys(groups):
        of_group = groups == group
        n = of_group.sum()
        baseline[of_group] = rng.normal(*_BASELINE.get(group, _MARKER_BASELINE), n)
        if group in DOMAINS:
            domain[of_group, DOMAINS.index(group)] = rng.normal(*_EFFECT, n)
        if group in _GRADIENT_EFFECT:
            hypoxia[of_group] = rng.normal(*_GRADIENT_EFFECT[group], n)
    domain[groups == "proliferation", DOMAINS.index("tumour")] = 1.0
    return GeneEffects(baseline, domain, hypoxia, _confounded(rng, len(groups)), rng.uniform(4, 16, len(groups)))


def _confounded(rng: np.random.Generator, n_genes: int) -> np.ndarray:
    """One gene of every block of five, so that short gene lists have their share."""
    chosen = np.arange(0, n_genes, _BLOCK) + rng.integers(0, _BLOCK, -(-n_genes // _BLOCK))
    effect = np.zeros(n_genes)
    effect[chosen[chosen < n_genes]] = CONFOUNDER_EFFECT
    return effect


def log_rate(effects: GeneEffects, shares: np.ndarray, hypoxia: np.ndarray, signal: float) -> np.ndarray:
    """Noise-free log-rate (n_spots, G), equation 1 of :func:`img2gene.datasets.synthetic_cohort`."""
    spatial = shares @ effects.domain.T + np.outer(hypoxia - 0.5, effects.hypoxia)
    return effects.baseline + signal * spatial


def shares_of(rate: np.ndarray) -> np.ndarray:
    """Softmax over genes: the share of each gene in a spot's transcripts."""
    weights = np.exp(rate - rate.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def draw_counts(rng: np.random.Generator, expected: np.ndarray, dispersion: np.ndarray, dropout: float) -> csr_matrix:
    """Negative binomial (as a gamma-Poisson mixture) around ``expected``, then entries lost with ``dropout``."""
    from scipy.sparse import csr_matrix

    counts = rng.poisson(rng.gamma(np.broadcast_to(dispersion, expected.shape), expected / dispersion))
    counts[rng.uniform(size=counts.shape) < dropout] = 0
    return csr_matrix(counts.astype(np.float32))
