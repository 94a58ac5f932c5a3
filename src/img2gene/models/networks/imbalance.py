"""Weights that make up for labels that are rare: most genes are zero in most spots."""

from __future__ import annotations

import numpy as np

from img2gene._errors import raise_problems

_WORKING_SIZE = 2**22


def density_weights(
    labels: np.ndarray, *, n_bins: int = 100, sigma: float = 2.0, clip: tuple[float, float] = (0.1, 10)
) -> np.ndarray:
    """Weights of labels by their rarity, per gene: w ∝ p̃^−½ of the smoothed label density p̃.

    Each gene's labels are counted in bins between its smallest and its largest, and the counts are smoothed by a Gaussian
    that is reflected at both ends, so that the density of the zeros, at the lower end, is not lost beyond it. Weights are
    clipped where they have mean 1, and scaled to mean 1 again. A constant gene has weights 1.

    Parameters
    ----------
    labels
        (n, G): training labels, no NaN.
    n_bins
        Bins between the smallest and the largest label of a gene.
    sigma
        SD of the Gaussian in bins; 0 for none.
    clip
        Smallest and largest weight, before the last scaling.

    Returns
    -------
    float32 (n, G), mean 1 for each gene.

    References
    ----------
    Label distribution smoothing of Yang et al., "Delving into Deep Imbalanced Regression", ICML 2021, with the
    square-root inverse weighting.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.networks.imbalance import density_weights
    >>> density_weights(np.array([[0.0], [0.0], [0.0], [0.0], [5.0]]), sigma=0).ravel().round(3)
    array([0.833, 0.833, 0.833, 0.833, 1.667], dtype=float32)
    """
    labels = np.asarray(labels)
    _check_labels(labels, n_bins, sigma, clip)
    weights = np.empty(labels.shape, dtype=np.float32)
    # In blocks of genes, as densities take several arrays of the size of the labels.
    step = max(1, _WORKING_SIZE // len(labels))
    for start in range(0, labels.shape[1], step):
        genes = slice(start, start + step)
        rarity = 1 / np.sqrt(_density(labels[:, genes].astype(np.float64), n_bins, sigma))
        rarity = np.clip(rarity / rarity.mean(axis=0), *clip)
        weights[:, genes] = rarity / rarity.mean(axis=0)
    return weights


def _check_labels(labels: np.ndarray, n_bins: int, sigma: float, clip: tuple[float, float]) -> None:
    problems = []
    if labels.ndim != 2 or not len(labels):
        problems.append(f"labels have shape {labels.shape}: expected (n_spots, n_genes), at least one spot.")
    elif not np.isfinite(labels).all():
        problems.append(f"{int((~np.isfinite(labels)).any(axis=0).sum())} genes have NaN or infinite labels.")
    if n_bins < 1:
        problems.append(f"n_bins={n_bins!r}: expected at least 1.")
    if sigma < 0:
        problems.append(f"sigma={sigma!r}: expected 0 or more bins.")
    if not 0 < clip[0] <= 1 <= clip[1]:
        problems.append(f"clip={clip!r}: expected a positive bound up to 1, and one from 1 on.")
    raise_problems(problems)


def _density(labels: np.ndarray, n_bins: int, sigma: float) -> np.ndarray:
    """Smoothed count of the bin of each label, (n, genes)."""
    from scipy.ndimage import gaussian_filter1d

    n_genes = labels.shape[1]
    low, span = labels.min(axis=0), np.ptp(labels, axis=0)
    bins = ((labels - low) / np.where(span > 0, span, 1) * n_bins).astype(np.int64).clip(max=n_bins - 1)
    # One count for all genes: each gene gets bin numbers of its own.
    bins += np.arange(n_genes) * n_bins
    counts = np.bincount(bins.ravel(), minlength=n_genes * n_bins).reshape(n_genes, n_bins).astype(float)
    # Reflection keeps the density of the zeros, which sit at the lower end.
    smoothed = gaussian_filter1d(counts, sigma, axis=1, mode="reflect") if sigma else counts
    return smoothed.ravel()[bins]
