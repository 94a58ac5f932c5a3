"""Out-of-distribution percentile of a spot, from its embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from img2gene.models.centring import section_means
from img2gene.models.stored import StoredConfig
from img2gene.models.uncertainty.inner_folds import deal

# Further axes hold little variance and share one.
_COMPONENTS = 256
_MOST_ROWS = 5000
_PARTS = 5
_EXACT_WIDTH = 1024
_BLOCK_ROWS = 2048
# A weight of 1 gives AUROCs of .97 only; a larger one would hide a few outlying spots in an ordinary section.
_SECTION_WEIGHT = 3.0
_GRID = np.linspace(0, 1, 1001)


@dataclass(frozen=True)
class Ellipsoid:
    """A shrunk covariance of embeddings: leading components, one variance for all others.

    Attributes
    ----------
    mean, scale
        float32 (width,): subtracted, then divided by. Features that do not vary have infinite scale, stored as the largest
        float32.
    axes
        float32 (k, width): principal axes of the scaled features.
    variance
        float32 (k + 1,): variance along each axis, and that of everything off the axes.
    """

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    variance: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, *, seed: int) -> Ellipsoid:
        """Covariance over all spots, within sections and between; the shrinkage is that of Ledoit and Wolf (2004)."""
        from sklearn.covariance import ledoit_wolf_shrinkage
        from sklearn.decomposition import PCA

        mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
        known = scale > 1e-6 * max(float(scale.max(initial=0)), 1e-12)
        scale = np.where(known, scale, np.finfo(np.float32).max)
        scaled = (features - mean) / scale
        k = min(_COMPONENTS, len(scaled) - 1, int(known.sum()))
        if k < 1:
            return cls._single(mean, scale, np.zeros((0, len(mean))), np.ones(1))
        solver = "covariance_eigh" if len(mean) <= _EXACT_WIDTH else "randomized"
        pca = PCA(k, svd_solver=solver, random_state=seed).fit(scaled)
        rest = max(int(known.sum()) - k, 1)
        total = float(scaled.var(axis=0, ddof=1).sum())
        noise = max(total - float(pca.explained_variance_.sum()), 0) / rest
        share = float(ledoit_wolf_shrinkage(pca.transform(scaled), assume_centered=True))
        variance = (1 - share) * np.append(pca.explained_variance_, noise) + share * total / int(known.sum())
        # A direction in which training spots do not vary at all must not make every other spot infinitely far.
        variance = np.maximum(variance, 1e-4 * total / int(known.sum()))
        return cls._single(mean, scale, pca.components_, variance)

    @classmethod
    def _single(cls, mean: np.ndarray, scale: np.ndarray, axes: np.ndarray, variance: np.ndarray) -> Ellipsoid:
        return cls(
            mean.astype(np.float32), scale.astype(np.float32), axes.astype(np.float32), variance.astype(np.float32)
        )

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Mahalanobis distance float64 (n,) of each row, in blocks."""
        distances = np.empty(len(features))
        for start in range(0, len(features), _BLOCK_ROWS):
            # In double precision: two nearly equal sums are subtracted below, and what remains would depend on row order.
            scaled = (features[start : start + _BLOCK_ROWS].astype(np.float64) - self.mean) / self.scale
            scores = scaled @ self.axes.T
            off = np.maximum(np.square(scaled).sum(axis=1) - np.square(scores).sum(axis=1), 0)
            along = (np.square(scores) / self.variance[:-1]).sum(axis=1)
            distances[start : start + _BLOCK_ROWS] = np.sqrt(along + off / self.variance[-1])
        return distances


@dataclass(frozen=True)
class Novelty:
    """Distance of a spot and its section from the training embeddings, as a percentile.

    D² = d(x)² + 3 · max(d(x̄)² − p / n, 0), where d is the Mahalanobis distance, x̄ the mean of the section's n spots, and p the mean
    of d² over the training spots, so that p / n is what chance puts a mean off by. Stain, scanner and focus
    belong to a whole slide: its mean shows a shift that is smaller than the differences between single spots.

    Attributes
    ----------
    ellipsoid
        The shrunk covariance of all training embeddings.
    length
        p of the formula.
    reference
        float64 (1001,): quantiles 0, .1, …, 100 % of the distances of training spots from the training embeddings of the *other*
        groups, each group counting the same. They show how far an ordinary new patient lies.
    n_reference
        Number of spots that the quantiles were computed from.

    Notes
    -----
    Beyond the largest distance d of the reference the percentile rises on, so that spots do not tie: with m the median,
    100 − 100 / (n + 1) / (1 + (x − d) / (d − m)).
    """

    ellipsoid: Ellipsoid
    length: float
    reference: np.ndarray
    n_reference: int

    shapes: ClassVar[dict[str, tuple[str | int, ...]]] = {
        "mean": ("width",),
        "scale": ("width",),
        "axes": ("novelty_axes", "width"),
        "variance": ("novelty_variances",),
        "reference": (len(_GRID),),
    }
    dtypes: ClassVar[dict[str, str]] = {"reference": "float64"}

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        sections: np.ndarray,
        units: np.ndarray,
        *,
        seed: int,
        order: np.ndarray | None = None,
    ) -> Novelty:
        """Fit the distribution of training embeddings; ``units`` (n,) are left out in turn, in at most five parts.

        Spots are drawn in ``order`` (n,), a permutation of the rows; without it as they come.
        """
        order = np.arange(len(units)) if order is None else order
        rows = order[sample_rows(units[order], _MOST_ROWS, seed)]
        features, sections, units = features[rows], sections[rows], units[rows]
        whole, parts = Ellipsoid.fit(features, seed=seed), part_numbers(units, _PARTS, seed)
        distances = np.empty(len(features))
        for name in np.unique(parts):
            held = parts == name
            fitted = np.ones_like(held) if held.all() else ~held
            left = Ellipsoid.fit(features[fitted], seed=seed)
            length = float(np.square(left.distances(features[fitted])).mean())
            distances[held] = _distances(left, length, features[held], sections[held])
        order = np.argsort(distances)
        share = np.cumsum(unit_weights(units)[order])
        length = float(np.square(whole.distances(features)).mean())
        return cls(whole, length, np.interp(_GRID, share / share[-1], distances[order]), len(rows))

    def percentile(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """Percentile 0–100, float64 (n,), of each row of features (n, width), whose ``sections`` (n,) should be whole."""
        distances, last = _distances(self.ellipsoid, self.length, features, sections), float(self.reference[-1])
        top = 100 * self.n_reference / (self.n_reference + 1)
        inside = np.interp(distances, self.reference, _GRID * top)
        span = max(last - float(np.median(self.reference)), 1e-12)
        return np.where(distances > last, 100 - (100 - top) / (1 + np.maximum(distances - last, 0) / span), inside)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Facts (JSON) and arrays."""
        arrays = {name: getattr(self.ellipsoid, name) for name in ("mean", "scale", "axes", "variance")}
        return {"n_reference": self.n_reference, "length": self.length}, arrays | {"reference": self.reference}

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Novelty:
        """Restore it."""
        check = StoredConfig()
        if check.entries("novelty", config, ("n_reference", "length")):
            check.whole("novelty.n_reference", config["n_reference"], 1)
            check.number("novelty.length", config["length"], 0)
        check.positive(arrays, ["scale", "variance"])
        if len(arrays["variance"]) != len(arrays["axes"]) + 1:
            check.messages.append("Arrays `novelty.axes` and `novelty.variance` do not belong together.")
        if (np.diff(arrays["reference"]) < 0).any() or arrays["reference"][0] < 0:
            check.messages.append("Array `novelty.reference` holds no rising distances.")
        check.raise_all()
        parts = {name: arrays[name] for name in ("mean", "scale", "axes", "variance")}
        return cls(Ellipsoid(**parts), config["length"], arrays["reference"], config["n_reference"])


def _distances(ellipsoid: Ellipsoid, length: float, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """D of the formula, float64 (n,)."""
    names, means = section_means(features, sections)
    number = np.searchsorted(names, sections)
    chance = length / np.bincount(number, minlength=len(names))
    off = np.maximum(np.square(ellipsoid.distances(means)) - chance, 0)
    return np.sqrt(np.square(ellipsoid.distances(features)) + _SECTION_WEIGHT * off[number])


def unit_weights(units: np.ndarray) -> np.ndarray:
    """Weights (n,) that sum to 1 and give every unit the same share, whatever its number of spots."""
    _, number, counts = np.unique(units, return_inverse=True, return_counts=True)
    return 1 / (len(counts) * counts[number])


def sample_rows(units: np.ndarray, most: int, seed: int) -> np.ndarray:
    """All rows, or above ``most`` a random sample of this size with as equal numbers per unit as possible; sorted."""
    if len(units) <= most:
        return np.arange(len(units))
    shuffled = np.random.default_rng(seed).permutation(len(units))
    rank = np.empty(len(units), dtype=int)
    for name in np.unique(units):
        members = shuffled[units[shuffled] == name]
        rank[members] = np.arange(len(members))
    return np.sort(shuffled[np.argsort(rank[shuffled], kind="stable")[:most]])


def part_numbers(units: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Number (n,) of the part of each row: one for each unit, or above ``most`` units dealt at random into as many."""
    names, number = np.unique(units, return_inverse=True)
    # Dealt into one part each, the numbers of the names come back in random order: the place that each name gets.
    places = np.concatenate(deal(np.arange(len(names)), len(names), seed))
    return places[number] % most
