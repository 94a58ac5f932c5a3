"""Training targets of all spots, as arrays that batches are taken from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from img2gene.models.centring import centre
from img2gene.models.data import TARGET_SUM, TrainingData
from img2gene.models.depth import depth_weights
from img2gene.models.img2gene.objective import Targets
from img2gene.models.img2gene.parameters import Img2GeneParameters
from img2gene.models.img2gene.responses import Responses
from img2gene.models.networks.batches import SectionSpots
from img2gene.models.networks.imbalance import density_weights


@dataclass
class TargetArrays:
    """Targets of all training spots.

    Attributes
    ----------
    labels
        float32 (n, G): centred, in units of ``scale``.
    weights, spot_weights, pathways, counts
        float32 (n, G or 0), (n, 1 or 0), (n, P or 0), (n, G or 0).
    scored
        bool (n, 1 or 0): spots that have pathway scores; empty where all have.
    library
        float32 (n,).
    log_rates
        float32 (G or 0,) for each section; ``log_rate_mean`` over all training counts.
    scale
        Root of the mean variance of the centred labels.
    """

    labels: np.ndarray
    weights: np.ndarray
    spot_weights: np.ndarray
    pathways: np.ndarray
    scored: np.ndarray
    counts: np.ndarray
    library: np.ndarray
    log_rates: dict[str, np.ndarray]
    log_rate_mean: np.ndarray
    scale: float

    @classmethod
    def build(cls, parameters: Img2GeneParameters, data: TrainingData, base: np.ndarray | None) -> TargetArrays:
        """Targets of training data; ``base`` are held-out predictions of the ridge."""
        # With a ridge that was fitted to the same spots, its residuals would be too small.
        left = data.labels if base is None else data.labels - base
        mean = None if parameters.center == "section" else left.mean(axis=0, dtype=np.float64)
        centred = centre(left, data.sections, mean)
        scale = float(np.sqrt(max(np.square(centred).mean(), 1e-12)))
        none = np.zeros((len(centred), 0), dtype=np.float32)
        pathways = none if data.pathways is None else _pathway_targets(data, mean is None)
        scored = np.asarray(np.isfinite(pathways).all(axis=1)).reshape(-1, 1)
        counts, library, log_rates, log_rate_mean = none, np.ones(len(centred), dtype=np.float32), {}, none[0]
        if parameters.objective == "negative_binomial":
            # Counts come back from log labels, as those are all that training data hold.
            library = np.asarray(data.library, dtype=np.float32)
            counts = np.round(np.expm1(data.labels) * (library / TARGET_SUM)[:, None]).astype(np.float32)
            log_rate_mean = _log_rate(counts, library)
            log_rates = {
                str(name): _log_rate(counts[data.sections == name], library[data.sections == name])
                if parameters.center == "section"
                else log_rate_mean
                for name in np.unique(data.sections)
            }
        return cls(
            (centred / scale).astype(np.float32),
            # Rarity is that of the labels themselves: centred labels have no zeros.
            density_weights(data.labels) if parameters.weighting == "density" else none,
            depth_weights(data.library, data.sections).astype(np.float32)[:, None]
            if parameters.depth_weights
            else none,
            pathways,
            scored[:, :0] if scored.all() else scored,
            counts,
            library,
            log_rates,
            log_rate_mean,
            scale,
        )

    def n_outputs(self, parameters: Img2GeneParameters) -> int:
        """Number of outputs of the networks: of the genes for counts and weighted labels, else of components of the labels."""
        n_genes = self.labels.shape[1]
        squares = parameters.objective == "gaussian" and parameters.weighting == "none"
        return min(parameters.n_responses, n_genes) if squares else n_genes

    def responses(self, n: int, rows: np.ndarray, spot_weights: np.ndarray) -> Responses:
        """Find the ``n`` outputs of networks from the labels of the spots that they are trained on."""
        return Responses.of(self.labels[rows], spot_weights[rows], n, seed=0)

    def batch(self, section: SectionSpots, rows: np.ndarray, responses: Responses) -> Targets:
        """The targets of some spots of a section."""
        rate = self.log_rates.get(section.name, self.log_rate_mean)
        parts = (self.labels, self.weights, self.pathways, self.scored, self.counts, self.library)
        labels, weights, pathways, scored, counts, library = (torch.from_numpy(part[rows]) for part in parts)
        labels = responses.reduce(labels)
        if self.spot_weights.shape[1]:
            spots = torch.from_numpy(self.spot_weights[rows]).expand(labels.shape)
            weights = spots * weights if weights.shape[1] else spots
        log_rate = torch.from_numpy(rate).expand(len(rows), len(rate))
        return Targets(labels, weights, pathways, scored, counts, library, log_rate, torch.from_numpy(rows))


def _pathway_targets(data: TrainingData, centred: bool) -> np.ndarray:
    """Pathway scores, relative to the mean of their section if labels are; NaN where spots have no counts.

    Most of a score is the profile of the tissue, which all spots of a section share: without centring, spots would look alike
    by their pathways and not by their expression.
    """
    scores = np.array(data.pathways, dtype=np.float32)
    if centred:
        for name in np.unique(data.sections):
            rows = (data.sections == name) & np.isfinite(scores).all(axis=1)
            scores[rows] -= scores[rows].mean(axis=0, dtype=np.float64).astype(np.float32) if rows.any() else 0
    return scores


def _log_rate(counts: np.ndarray, library: np.ndarray) -> np.ndarray:
    """Log of each gene's share of the counts; half a count is added, as no gene has a share of exactly 0."""
    return np.log((counts.sum(axis=0, dtype=np.float64) + 0.5) / library.sum(dtype=np.float64)).astype(np.float32)
