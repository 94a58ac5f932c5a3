"""The score by which models choose inside their training data."""

from __future__ import annotations

import numpy as np

from img2gene.metrics import pearson

# Correlations of rarely expressed genes are mostly noise.
_SCORED_GENES = 500


def scored_genes(labels: np.ndarray) -> np.ndarray:
    """Choose the genes that select epochs: the highest mean labels."""
    return np.argsort(-labels.mean(axis=0), kind="stable")[:_SCORED_GENES]


def mean_correlation(labels: np.ndarray, predicted: np.ndarray, sections: np.ndarray) -> float:
    """Mean over genes and sections of the correlation within sections; 0 where none is defined."""
    known = np.concatenate([pearson(labels[sections == s], predicted[sections == s]) for s in np.unique(sections)])
    # Constant genes have no correlation.
    return float(np.nanmean(known)) if np.isfinite(known).any() else 0.0
