"""Expected expression at another depth than that of the training: log1p(1e4 · counts / depth) depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.models.data import TARGET_SUM
from img2gene.models.uncertainty.shallow import at_depth

# Shares of all counts of a spot, dispersions, and mean counts, between which curves are interpolated.
_SHARES = np.geomspace(1e-8, 1, 161)
_DISPERSIONS = np.concatenate([[0], np.geomspace(0.01, 30, 15)])
_MEANS = np.concatenate([[0], np.geomspace(1e-6, 1e19, 577)])
# Poisson sums are exact up to this mean; above it the logarithm is expanded around the mean.
_LARGEST_SUM = 150
_QUANTILES = 48
_DEPTHS = 9
# Share of the training depth below which intervals lack more noise of counts than others do by chance.
_SHALLOWER = 0.75
TRAINING: Literal["training"] = "training"
Depth = float | np.ndarray | Literal["training"]


@dataclass(frozen=True)
class DepthScale:
    r"""Converts predictions from the scale of the training labels to that of another depth.

    Counts of gene g in a spot with L counts are taken to be negative binomial with mean q L and variance q L + φ (q L)², where
    q is the gene's share. The expected label E[log1p(1e4 x / L)] then depends on L: at few counts most labels are 0. A
    prediction is inverted to the share that it corresponds to at the depths of the training spots, and the expected label
    of this share at another depth follows.

    Attributes
    ----------
    dispersion
        float32 (n_genes,): φ, estimated within the training sections.
    depths
        float32 (9,): quantiles of the library sizes of the training spots.

    References
    ----------
    Negative binomial counts with the library size as offset: scVI (Lopez et al., Nature Methods 2018).

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.depth_scale import DepthScale
    >>> rng = np.random.default_rng(0)
    >>> library, share = np.full(4000, 500.0), 4e-4
    >>> labels = np.log1p(1e4 * rng.poisson(share * library)[:, None] / library[:, None])
    >>> scale = DepthScale.fit(labels, library, np.repeat("S1", 4000))
    >>> round(scale.convert(labels.mean(axis=0)[None], np.inf).item(), 1)  # log1p(4) is 1.6
    1.6
    """

    dispersion: np.ndarray
    depths: np.ndarray

    shapes: ClassVar[dict[str, tuple[str | int, ...]]] = {
        "dispersion": ("genes",),
        "depths": (_DEPTHS,),
    }

    def __post_init__(self) -> None:
        """Refuse numbers that no dispersion or depth can have."""
        if not ((self.dispersion >= 0).all() and (self.depths > 0).all()):
            raise Img2GeneError("Dispersions of the depth scale must be at least 0, and its depths above 0.")

    @classmethod
    def fit(cls, labels: np.ndarray, library: np.ndarray, sections: np.ndarray) -> DepthScale:
        """Estimate dispersions from the training labels.

        Parameters
        ----------
        labels
            (n_spots, n_genes): log1p(1e4 · counts / library size).
        library
            (n_spots,): library sizes, above 0.
        sections
            str (n_spots,).
        """
        library = np.asarray(library, dtype=np.float64)
        dispersion = _dispersion(labels, library, sections)
        return cls(dispersion.astype(np.float32), _quantiles_of(library).astype(np.float32))

    def convert(self, predicted: np.ndarray, depth: Depth, *, source: Depth = TRAINING) -> np.ndarray:
        """Convert expected expression at one depth to another.

        Parameters
        ----------
        predicted
            (n_spots, n_genes): expected log1p(1e4 · counts / depth).
        depth
            Counts per spot to convert to. Those of several spots stand for their distribution, which all spots then share;
            infinity for log1p(1e4 · share); ``"training"`` for the depths of the training spots.
        source
            Counts per spot of ``predicted``, in the same forms.

        Returns
        -------
        float32 (n_spots, n_genes); an increasing function of the prediction, gene by gene. A gene that is absent is so at every
        depth: 0 stays 0, and what a model predicts below it stays as it is.
        """
        # Curves start at a share just above 0.
        before, after = (np.pad(curves, ((0, 0), (1, 0))) for curves in (self._curves(source), self._curves(depth)))
        converted = np.array(predicted, dtype=np.float32)
        for gene in range(predicted.shape[1]):
            above = predicted[:, gene] > 0
            converted[above, gene] = np.interp(predicted[above, gene], before[gene], after[gene])
        return converted

    def convert_interval(
        self,
        lower: np.ndarray,
        upper: np.ndarray,
        sd: np.ndarray | None,
        depth: Depth,
        *,
        level: float,
        source: Depth = TRAINING,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Convert intervals of measured expression, and the SD with their width.

        Measurements at a clearly smaller depth than that of the training have more noise of counts, which the intervals contain
        (:func:`img2gene.models.uncertainty.shallow.at_depth`). Where the depth is larger, or unlimited, they keep that of the
        training.

        Parameters
        ----------
        lower, upper
            (n_spots, n_genes).
        sd
            (n_spots, n_genes), or None.
        depth, source
            As in :meth:`convert`.
        level
            Nominal coverage.
        """
        counts = np.inf if isinstance(depth, str) else float(np.median(depth))
        shallower = counts < _SHALLOWER * np.median(self.depths)
        low, high = (self.convert(bound, np.inf if shallower else depth, source=source) for bound in (lower, upper))
        if shallower:
            low, high = at_depth(low, high, depth=counts, level=level)
        if sd is None:
            return low, high, None
        before, after = upper - lower, high - low
        return low, high, sd * np.divide(after, before, out=np.zeros_like(before), where=before > 0)

    def take(self, genes: np.ndarray) -> DepthScale:
        """Select genes by their numbers."""
        return DepthScale(self.dispersion[genes], self.depths)

    def _curves(self, depth: Depth) -> np.ndarray:
        """Expected label of each gene at each of ``_SHARES``, float64 (n_genes, n_shares)."""
        if np.isscalar(depth) and depth == np.inf:
            return np.tile(np.log1p(TARGET_SUM * _SHARES), (len(self.dispersion), 1))
        depths = self.depths if isinstance(depth, str) else _quantiles_of(np.atleast_1d(depth))
        return _curves(self.dispersion, depths)


def _quantiles_of(library: np.ndarray) -> np.ndarray:
    return np.quantile(np.asarray(library, dtype=np.float64), (np.arange(_DEPTHS) + 0.5) / _DEPTHS)


def _dispersion(labels: np.ndarray, library: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """Estimate the dispersion of each gene around the mean of its section by moments, float64 (n_genes,)."""
    excess, squares = np.zeros(labels.shape[1]), np.zeros(labels.shape[1])
    for name in np.unique(sections):
        rows = sections == name
        counts = np.expm1(labels[rows].astype(np.float64)) * (library[rows] / TARGET_SUM)[:, None]
        mean = library[rows][:, None] * (counts.sum(axis=0) / library[rows].sum())
        excess += (np.square(counts - mean) - mean).sum(axis=0)
        squares += np.square(mean).sum(axis=0)
    dispersion = np.divide(excess, squares, out=np.zeros_like(excess), where=squares > 0)
    return np.clip(dispersion, 0, _DISPERSIONS[-1])


def _curves(dispersion: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """Expected label of each gene at each of ``_SHARES``, averaged over depths, float64 (n_genes, n_shares)."""
    table = np.mean([_table(max(float(depth), 1.0)) for depth in depths], axis=0)
    after = np.clip(np.searchsorted(_DISPERSIONS, dispersion), 1, len(_DISPERSIONS) - 1)
    low, high = _DISPERSIONS[after - 1], _DISPERSIONS[after]
    weight = ((dispersion - low) / (high - low))[:, None]
    return (1 - weight) * table[after - 1] + weight * table[after]


def _table(depth: float) -> np.ndarray:
    """Expected label at one depth, float64 (n_dispersions, n_shares)."""
    position = np.log(np.maximum(_MEANS, _MEANS[1] / 10))
    poisson = _poisson_labels(depth)
    rows = [
        np.interp(np.log(np.maximum(depth * _SHARES[:, None] * rates, np.exp(position[0]))), position, poisson).mean(
            axis=1
        )
        for rates in map(_relative_rates, _DISPERSIONS)
    ]
    return np.array(rows)


def _poisson_labels(depth: float) -> np.ndarray:
    """E[log1p(1e4 x / depth)] of Poisson counts x with each of ``_MEANS``."""
    from scipy.stats import poisson

    factor = TARGET_SUM / depth
    counts = np.arange(_LARGEST_SUM + 12 * int(np.sqrt(_LARGEST_SUM)))
    small = _MEANS < _LARGEST_SUM
    values = np.empty(len(_MEANS))
    values[small] = poisson.pmf(counts, _MEANS[small][:, None]) @ np.log1p(factor * counts)
    mean = _MEANS[~small]
    values[~small] = np.log1p(factor * mean) - factor**2 * mean / (2 * np.square(1 + factor * mean))
    return values


def _relative_rates(dispersion: float) -> np.ndarray:
    """Quantiles of the gamma distribution with mean 1 that makes Poisson counts negative binomial."""
    from scipy.stats import gamma

    if dispersion == 0:
        return np.ones(1)
    rates = gamma.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, 1 / dispersion, scale=dispersion)
    return np.asarray(rates / rates.mean())
