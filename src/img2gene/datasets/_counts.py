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

# Mean and SD of normal distributions on the log-rate.
_BASELINE = {"housekeeping": (1.6, 0.6), "noise": (-1.0, 0.7)}
_MARKER_BASELINE = (-0.4, 0.6)
_EFFECT = (2.4, 0.4)
_GRADIENT_EFFECT = {"hypoxia": (2.4, 0.4), "proliferation": (-2.2, 0.4)}
# One gene of each block of this length is confounded.
_CONFOUNDED_BLOCK = 5


@dataclass(frozen=True)
class GeneEffects:
    """Holds the effects on the log-rate, one row per gene.

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
        """Return the effects of the first ``n`` genes."""
        return GeneEffects(*(getattr(self, field.name)[:n] for field in fields(self)))


def draw_effects(rng: np.random.Generator) -> GeneEffects:
    """Draw the effects of all genes."""
    # Always of all genes, so that a study with fewer genes has the same effects.
    groups = np.array([group for _, group in GENES])
    baseline, hypoxia = np.zeros(len(groups)), np.zeros(len(groups))
    domain = np.zeros((len(groups), len(DOMAINS)))
    for group in dict.fromkeys(groups):
        members = groups == group
        n = members.sum()
        baseline[members] = rng.normal(*_BASELINE.get(group, _MARKER_BASELINE), n)
        if group in DOMAINS:
            domain[members, DOMAINS.index(group)] = rng.normal(*_EFFECT, n)
        if group in _GRADIENT_EFFECT:
            hypoxia[members] = rng.normal(*_GRADIENT_EFFECT[group], n)
    domain[groups == "proliferation", DOMAINS.index("tumour")] = 1.0
    return GeneEffects(baseline, domain, hypoxia, _confounded(rng, len(groups)), rng.uniform(4, 16, len(groups)))


def _confounded(rng: np.random.Generator, n_genes: int) -> np.ndarray:
    """Draw the confounded genes: one gene of every block of five, so that short lists have their share of them."""
    starts = np.arange(0, n_genes, _CONFOUNDED_BLOCK)
    chosen = starts + rng.integers(0, _CONFOUNDED_BLOCK, len(starts))
    effect = np.zeros(n_genes)
    effect[chosen[chosen < n_genes]] = CONFOUNDER_EFFECT
    return effect


def log_rate(effects: GeneEffects, shares: np.ndarray, hypoxia: np.ndarray, signal: float) -> np.ndarray:
    """Compute the noise-free log-rate (n_spots, G), equation 1 of :func:`img2gene.datasets.synthetic_cohort`."""
    spatial = shares @ effects.domain.T + np.outer(hypoxia - 0.5, effects.hypoxia)
    return effects.baseline + signal * spatial


def shares_of(rate: np.ndarray) -> np.ndarray:
    """Compute the share of each gene in a spot's transcripts, the softmax over genes."""
    # Subtracting the maximum changes nothing but keeps the exponential finite.
    weights = np.exp(rate - rate.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def draw_counts(rng: np.random.Generator, expected: np.ndarray, dispersion: np.ndarray, dropout: float) -> csr_matrix:
    """Draw negative binomial counts around ``expected``, then lose each count with probability ``dropout``."""
    from scipy.sparse import csr_matrix

    # A negative binomial is a Poisson distribution whose mean is gamma-distributed.
    counts = rng.poisson(rng.gamma(np.broadcast_to(dispersion, expected.shape), expected / dispersion))
    counts[rng.uniform(size=counts.shape) < dropout] = 0
    return csr_matrix(counts.astype(np.float32))
