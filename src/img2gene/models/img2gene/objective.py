"""The training objective of Img2Gene: labels, their sparsity, and coherence between modalities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from img2gene.models.img2gene.network import Img2GeneNetwork, Outputs
from img2gene.models.networks import losses
from img2gene.models.networks.batches import Batch

OBJECTIVES = ("gaussian", "balanced", "negative_binomial")


class Targets(NamedTuple):
    """Targets of a batch; empty second axes stand for "not used".

    Attributes
    ----------
    labels
        (B, G): labels, centred, in units of their typical SD; or their leading components.
    weights
        (B, G or 0): weights against the imbalance of labels.
    pathways
        (B, P or 0): pathway scores.
    scored
        bool (B, 1 or 0): spots that have pathway scores; empty where all have.
    counts, library, log_rate
        (B, G or 0) counts, (B,) library sizes and (B, G or 0) log of the expected share of each gene in its section.
    rows
        int (B,): which training spots these are.
    """

    labels: Tensor
    weights: Tensor
    pathways: Tensor
    scored: Tensor
    counts: Tensor
    library: Tensor
    log_rate: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Objective:
    """The loss, L = D(ŷ, y) + Σ_v [(1 − α) D(ŷ_v, y) + α MSE(ŷ_v, stopgrad ŷ)] + λ_p MSE(p̂, p̃) + λ_ip C(S_z, S_p) + λ_ig C(S_z, S_y).

    D is the mean squared error (weighted where there are weights), Balanced MSE, or the negative log-likelihood of negative
    binomial counts.

    Attributes
    ----------
    kind
        One of ``OBJECTIVES``.
    distillation
        α.
    pathway, pathway_coherence, coherence
        λ_p, λ_ip and λ_ig.
    noise
        σ of Balanced MSE, in units of the labels' typical SD.

    References
    ----------
    Img2Gene (Zhang et al., IEEE JBHI 2026).
    """

    kind: str = "gaussian"
    distillation: float = 0.3
    pathway: float = 0.1
    pathway_coherence: float = 0.1
    coherence: float = 0.1
    noise: float = 1.0

    def __call__(self, network: Img2GeneNetwork, batch: tuple[Batch, Targets]) -> dict[str, Tensor]:
        """The total, ``loss``, and its parts without their weights."""
        spots, targets = batch
        outputs = network(spots)
        parts = {"labels": self._fit(network, outputs.genes, targets), "views": self._views(network, outputs, targets)}
        total = parts["labels"] + parts["views"]
        if targets.pathways.shape[-1]:
            # Spots without counts have no pathway scores but still train the rest.
            known = targets.scored[:, 0] if targets.scored.shape[-1] else None
            parts["pathways"] = losses.pathway(outputs.pathways, targets.pathways, known)
            parts["pathway coherence"] = losses.coherence(outputs.embedding, targets.pathways, known)
            total = total + self.pathway * parts["pathways"] + self.pathway_coherence * parts["pathway coherence"]
        if self.coherence:
            parts["coherence"] = losses.coherence(outputs.embedding, targets.labels)
            total = total + self.coherence * parts["coherence"]
        return {"loss": total, **parts}

    def _fit(self, network: Img2GeneNetwork, predicted: Tensor, targets: Targets) -> Tensor:
        if self.kind == "negative_binomial":
            return losses.negative_binomial(
                targets.log_rate + predicted, network.log_theta, targets.counts, targets.library
            )
        if self.kind == "balanced":
            return losses.balanced_mse(predicted, targets.labels, self.noise)
        return losses.weighted_mse(predicted, targets.labels, targets.weights if targets.weights.shape[-1] else None)

    def _views(self, network: Img2GeneNetwork, outputs: Outputs, targets: Targets) -> Tensor:
        if self.kind == "gaussian" and not targets.weights.shape[-1]:
            return losses.distillation(list(outputs.views), outputs.genes, targets.labels, self.distillation)
        # Without detaching, the full network would be pulled towards its weaker views.
        teacher = outputs.genes.detach()
        alpha = self.distillation
        each = [
            (1 - alpha) * self._fit(network, view, targets) + alpha * torch.nn.functional.mse_loss(view, teacher)
            for view in outputs.views
        ]
        return torch.stack(each).sum()
