"""Predictive SD and intervals, calibrated on held-out groups of the training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from img2gene.models.data import TrainingData, with_prefix
from img2gene.models.stored import StoredConfig
from img2gene.models.uncertainty.held_out import HeldOut, unit_labels
from img2gene.models.uncertainty.inner_folds import inner_folds
from img2gene.models.uncertainty.ood import Novelty, part_numbers, sample_rows, unit_weights
from img2gene.models.uncertainty.shallow import LEAST_DEPTH, at_depth

# Spots beyond this percentile of the training distances are out-of-distribution.
THRESHOLD = 99.0
_MOST_ROWS, _LEAST_ROWS, _MOST_VALUES = 20_000, 1000, 2**26
_FACTOR_ROWS, _FACTOR_GENES = 4000, 300
_GENE_BLOCK, _ROW_BLOCK = 64, 2048
_PARTS = 10
# Least share of its mean that the SD falls to at predictions where residuals are smallest.
_FLOOR = 0.25
# Least half-width in SDs: labels that tie (zeros, of a constant prediction) would leave none to widen.
_LEAST_WIDTH = 0.05
# Groups that have nothing in common would ask for arbitrarily wide intervals.
_MOST_FACTOR = 3.0
_CURVE = ("center", "scale", "slope", "low", "high", "spread")


@dataclass(frozen=True)
class Prediction:
    """Predicted labels with their uncertainty.

    Attributes
    ----------
    values, std, lower, upper
        float32 (n_spots, n_genes): labels, predictive SD, bounds of the interval.
    ood
        float64 (n_spots,): percentile 0–100 of the spot among the training embeddings.

    Examples
    --------
    >>> import img2gene as ig
    >>> model = ig.io.load_model("tumour.img2gene")  # doctest: +SKIP
    >>> prediction = model.predict_intervals(features, sections)  # doctest: +SKIP
    >>> (prediction.upper - prediction.lower).mean(axis=0)  # doctest: +SKIP
    """

    values: np.ndarray
    std: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    ood: np.ndarray


@dataclass(frozen=True)
class Calibration:
    r"""Turns a prediction into an SD, an interval and an out-of-distribution percentile.

    With the residuals r = y − ŷ of training spots whose group was left out, every group counting the same:

    - the *residual SD* of gene g is a line in ŷ (of \|r\|, its slope shrunk by its uncertainty), scaled to the mean r²;
    - the *predictive SD* s adds to its square what the variance between ensemble members exceeds its mean by;
    - the *interval* is ŷ + s (median ± f · half-widths), from the quantiles of r / s of each gene over the pooled groups;
    - the *factor* f, 1–3 and common to all genes, is what intervals calibrated without a group need to cover that group at
      the stated level, in the mean over genes and groups. The shortfall of quantiles from K groups is of order 1 / K, so what
      K − 1 groups need beyond 1 is multiplied by (K − 1) / K;
    - where no patient could be left out, variation between patients is unknown. For new patients, intervals of expression
      made from counts then also cover what would be measured at 500 counts per spot, because depth differs most.

    Attributes
    ----------
    level
        Nominal coverage.
    nonnegative
        Whether bounds below 0 are set to 0, as labels made of counts are never less.
    center, scale, slope, low, high
        float32 (G,): residual SD = scale + slope · (ŷ − center), ŷ within low and high.
    spread
        float32 (G,): mean variance between members of the ensemble on held-out spots; 0 where there is no ensemble.
    median, below, above
        float32 (G,): median of r / s, and half-widths of the interval, f included.
    novelty
        Distances of training embeddings.
    threshold
        Percentile of the distances above which a spot is out-of-distribution.
    depth
        Least depth in counts per spot that intervals of new patients cover in addition to that of the training; None for no
        other depth.

    References
    ----------
    Pooled groups with equal weights: Dunn, Wasserman & Ramdas, "Distribution-free prediction sets for two-layer hierarchical
    models", JASA 2022; Lee, Barber & Willett, "Distribution-free inference with hierarchical data", 2023.

    Examples
    --------
    >>> import img2gene as ig
    >>> model = ig.io.load_model("tumour.img2gene")  # doctest: +SKIP
    >>> model.calibration.level  # doctest: +SKIP
    """

    level: float
    nonnegative: bool
    center: np.ndarray
    scale: np.ndarray
    slope: np.ndarray
    low: np.ndarray
    high: np.ndarray
    spread: np.ndarray
    median: np.ndarray
    below: np.ndarray
    above: np.ndarray
    novelty: Novelty
    threshold: float = THRESHOLD
    depth: float | None = None

    dtypes: ClassVar[dict[str, str]] = {f"novelty.{name}": dtype for name, dtype in Novelty.dtypes.items()}
    per_gene: ClassVar[tuple[str, ...]] = tuple("center scale slope low high spread median below above".split())

    @classmethod
    def fit(
        cls, held_out: HeldOut, data: TrainingData, *, level: float, seed: int, one_patient: bool = False
    ) -> tuple[Calibration, dict[str, Any]]:
        """Calibrate on held-out predictions of training spots, at most 20,000 in similar numbers per group, and report on it.

        ``one_patient`` says that all groups belong to one patient.
        """
        most = max(min(_MOST_ROWS, _MOST_VALUES // max(held_out.predicted.shape[1], 1)), _LEAST_ROWS)
        # Rows are drawn from the canonical order of the spots, so that the draw does not depend on the order of the rows.
        order = data.canonical_order()
        by_position = np.argsort(np.argsort(order)[held_out.rows])
        chosen = by_position[sample_rows(held_out.units[by_position], most, seed)]
        units, rows = held_out.units[chosen], held_out.rows[chosen]
        weights = unit_weights(units)
        curves: dict[str, list[np.ndarray]] = {name: [] for name in cls.per_gene}
        sample = sample_rows(units, _FACTOR_ROWS, seed)
        normals = []
        for start in range(0, held_out.predicted.shape[1], _GENE_BLOCK):
            genes = slice(start, start + _GENE_BLOCK)
            predicted = held_out.predicted[chosen, genes].astype(np.float64)
            residuals = data.labels[rows, genes] - predicted
            spread = None if held_out.spread is None else held_out.spread[chosen, genes].astype(np.float64)
            curve = _curve(predicted, residuals, spread, weights)
            sd = predictive_sd(predicted, spread, *curve.values())
            normal = np.divide(residuals, sd, out=np.zeros_like(sd), where=sd > 0)
            curve |= dict(zip(("median", "below", "above"), _quantiles(normal, weights, level), strict=True))
            for name, values in curve.items():
                curves[name].append(values)
            normals.append(normal[sample, :: max(held_out.predicted.shape[1] // _FACTOR_GENES, 1)].astype(np.float32))
        factor, covered = _factor(np.hstack(normals), part_numbers(units, _PARTS, seed)[sample], weights[sample], level)
        arrays: dict[str, Any] = {name: np.concatenate(values).astype(np.float32) for name, values in curves.items()}
        arrays |= {name: arrays[name] * np.float32(factor) for name in ("below", "above")}
        folds = inner_folds(data, seed=seed)
        novelty = Novelty.fit(
            data.features, folds.centred_in(data.sections), unit_labels(data, folds), seed=seed, order=order
        )
        facts = {"factor": factor, "coverage_without_factor": covered, "ood_threshold": THRESHOLD}
        knows_patients = held_out.kind == "group" and not one_patient
        depth = LEAST_DEPTH if data.library is not None and not knows_patients else None
        report = {"level": level, "left_out": held_out.kind, "units": np.unique(units).tolist(), "n_spots": len(units)}
        report |= facts | {"least_depth": depth}
        return cls(level, data.library is not None, **arrays, novelty=novelty, depth=depth), report

    def bounds(
        self, predicted: np.ndarray, spread: np.ndarray | None, new_patient: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predictive SD, lower and upper bound, float32 (n, G) each; ``spread`` (n, G) is overwritten by the SD.

        ``new_patient``, bool (n,), marks spots of patients that were not trained on; by default all are.
        """
        std = np.empty_like(predicted) if spread is None else spread
        lower, upper = np.empty_like(predicted), np.empty_like(predicted)
        curve = [getattr(self, name) for name in _CURVE]
        for start in range(0, len(predicted), _ROW_BLOCK):
            rows = slice(start, start + _ROW_BLOCK)
            std[rows] = predictive_sd(predicted[rows], None if spread is None else spread[rows], *curve)
            middle = predicted[rows] + self.median * std[rows]
            lower[rows], upper[rows] = middle - self.below * std[rows], middle + self.above * std[rows]
            if self.depth is not None:
                new = slice(None) if new_patient is None else new_patient[rows]
                low, high = at_depth(lower[rows][new], upper[rows][new], depth=self.depth, level=self.level)
                lower[rows][new] = np.minimum(lower[rows][new], low)
                upper[rows][new] = np.maximum(upper[rows][new], high)
        # Labels made of counts are log(1 + x), which is never negative.
        if self.nonnegative:
            np.maximum(lower, 0, out=lower)
            np.maximum(upper, 0, out=upper)
        return std, lower, upper

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Facts (JSON) and arrays."""
        config, arrays = self.novelty.state()
        stored = {name: getattr(self, name) for name in self.per_gene}
        stored |= {f"novelty.{name}": value for name, value in arrays.items()}
        facts = {"level": self.level, "nonnegative": self.nonnegative, "threshold": self.threshold, "depth": self.depth}
        return {**facts, "novelty": config}, stored

    @classmethod
    def array_shapes(cls) -> dict[str, tuple[str | int, ...]]:
        """Shapes of the arrays, by named axes or sizes."""
        shapes: dict[str, tuple[str | int, ...]] = dict.fromkeys(cls.per_gene, ("genes",))
        return shapes | {f"novelty.{name}": axes for name, axes in Novelty.shapes.items()}

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Calibration:
        """Restore it."""
        check = StoredConfig()
        if check.entries("calibration", config, ("level", "nonnegative", "threshold", "novelty"), ("depth",)):
            check.number("calibration.level", config["level"], 0, 1)
            check.flag("calibration.nonnegative", config["nonnegative"])
            check.number("calibration.threshold", config["threshold"], 0, 100)
            check.number("calibration.depth", config.get("depth"), above=0, optional=True)
        check.positive(arrays, ["below", "above"])
        check.positive(arrays, ["scale", "spread"], zero=True)
        if (arrays["low"] > arrays["high"]).any():
            check.messages.append("Arrays `low` and `high` of the calibration do not belong together.")
        check.raise_all()
        return cls(
            config["level"],
            config["nonnegative"],
            **{name: arrays[name] for name in cls.per_gene},
            novelty=Novelty.from_state(config["novelty"], with_prefix(arrays, "novelty")),
            threshold=config["threshold"],
            # Older models have none.
            depth=config.get("depth"),
        )


def predictive_sd(
    predicted: np.ndarray,
    spread: np.ndarray | None,
    center: np.ndarray,
    scale: np.ndarray,
    slope: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    mean_variance: np.ndarray,
) -> np.ndarray:
    """SD (n, G) of predictions whose members differ by ``spread`` (n, G), see :class:`Calibration` for the others (G,)."""
    residual = np.maximum(scale + slope * (np.clip(predicted, low, high) - center), _FLOOR * scale)
    if spread is None:
        return residual
    # Held-out residuals already include the mean variance of the ensemble.
    rest = np.maximum(np.square(residual) - mean_variance, np.square(_FLOOR * residual))
    return np.sqrt(rest + np.square(spread))


def _curve(
    predicted: np.ndarray, residuals: np.ndarray, spread: np.ndarray | None, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The residual SD of each gene as a line in the prediction."""
    size = np.abs(residuals)
    center, level = weights @ predicted, weights @ size
    deviation = predicted - center
    variance = weights @ np.square(deviation)
    slope = np.divide(weights @ (deviation * size), variance, out=np.zeros_like(center), where=variance > 1e-12)
    # A slope counts by how far it lies above its standard error, as in the estimator of James and Stein.
    noise = (weights @ np.square(size - level - slope * deviation)) * np.square(weights).sum()
    squared = np.square(slope) * variance
    slope *= np.clip(1 - np.divide(noise, squared, out=np.ones_like(noise), where=squared > 0), 0, 1)
    low, high = predicted.min(axis=0), predicted.max(axis=0)
    line = np.maximum(level + slope * deviation, _FLOOR * level)
    unit = np.sqrt(
        np.divide(weights @ np.square(residuals), weights @ np.square(line), out=np.zeros_like(level), where=level > 0)
    )
    mean_variance = np.zeros_like(level) if spread is None else weights @ np.square(spread)
    return dict(zip(_CURVE, (center, unit * level, unit * slope, low, high, mean_variance), strict=True))


def _quantiles(normal: np.ndarray, weights: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median and half-widths below and above it, (n_genes,) each, of weighted values (n, n_genes)."""
    order = np.argsort(normal, axis=0)
    share = np.cumsum(weights[order], axis=0)
    share /= max(float(weights.sum()), 1e-300)
    levels = ((1 - level) / 2, 0.5, (1 + level) / 2)
    at = [np.minimum((share < part - 1e-9).sum(axis=0), len(normal) - 1) for part in levels]
    low, middle, high = (np.take_along_axis(normal, order[rows, range(len(rows))][None], axis=0)[0] for rows in at)
    return middle, np.maximum(middle - low, _LEAST_WIDTH), np.maximum(high - middle, _LEAST_WIDTH)


def _factor(normal: np.ndarray, parts: np.ndarray, weights: np.ndarray, level: float) -> tuple[float, float | None]:
    """Common factor of the half-widths, and the coverage of left-out parts without it; 1 and None with less than 3 parts."""
    n = int(parts.max()) + 1
    # With two parts, intervals without one of them rest on a single part.
    if n < 3:
        return 1.0, None
    means = np.stack([np.average(normal[parts == part], axis=0, weights=weights[parts == part]) for part in range(n)])
    needed, shares = [], []
    for part in range(n):
        held = parts == part
        nested = normal + (_nested_means(means, part) - means)[parts]
        median, below, above = _quantiles(nested[~held], weights[~held], level)
        off = normal[held] - median
        needed.append(np.maximum(off / above, -off / below).ravel())
        shares.append(np.repeat(weights[held], normal.shape[1]))
    values, share = np.concatenate(needed), np.concatenate(shares)
    order = np.argsort(values)
    cumulative = np.cumsum(share[order]) / share.sum()
    factor = float(values[order][min(int(np.searchsorted(cumulative, level - 1e-9)), len(values) - 1)])
    covered = float(share[values <= 1].sum() / share.sum())
    return round(min(1 + (max(factor, 1) - 1) * (n - 1) / n, _MOST_FACTOR), 4), round(covered, 4)


def _nested_means(means: np.ndarray, left: int) -> np.ndarray:
    """Mean residuals of parts (n_parts, n_genes) as they would be without the part ``left``.

    Predictions are offset by the mean label of the other parts. Mean residuals of all parts therefore sum to about 0, and the
    part left out would always lie opposite to the parts that its interval is calibrated on.
    """
    n = len(means)
    offsets = means * ((n - 1) / n)
    rest = (offsets.sum(axis=0) - offsets[left]) / (n - 1)
    nested = (offsets - rest) * ((n - 1) / (n - 2))
    nested[left] = means[left]
    return nested
