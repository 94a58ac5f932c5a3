"""The loss of CMRCNet, and its parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from img2gene.models.cmrcnet.network import CMRCNetNetwork, Pairs
from img2gene.models.networks import losses


@dataclass(frozen=True)
class Objective:
    """The loss, L = λ_c log(1 + L_c) + λ_r log(1 + L_r) + λ_y log(1 + MSE(ŷ, y)).

    L_c is the contrastive loss (:func:`~img2gene.models.networks.losses.contrastive`), L_r the reconstruction loss
    (:func:`~img2gene.models.networks.losses.reconstruction`); the last term, of the regression head, is not part of the paper's.

    Attributes
    ----------
    contrast, reconstruction, regression
        λ_c, λ_r, λ_y; a part of weight 0 is not computed.
    temperature
        τ of the contrastive loss.

    References
    ----------
    CMRCNet (Liu et al., Medical Image Analysis 2026).
    """

    contrast: float = 1.0
    reconstruction: float = 1.0
    regression: float = 1.0
    temperature: float = 1.0

    def __call__(self, network: CMRCNetNetwork, batch: Pairs) -> dict[str, Tensor]:
        """The total, ``loss``, and its parts as they are before logarithm and weight."""
        tokens = network.image_tokens(batch.features, batch.tokens)
        images = network.image_embedding(tokens)
        parts, weights = {}, {}
        # A part of weight 0 may have no layers in the network.
        if self.contrast:
            profiles = network.gene_embedding(batch.labels)
            parts["contrast"] = losses.contrastive(profiles, images, self.temperature)
            weights["contrast"] = self.contrast
        if self.reconstruction:
            parts["reconstruction"] = losses.reconstruction(network.reconstruct(tokens, batch.labels), images)
            weights["reconstruction"] = self.reconstruction
        if self.regression:
            parts["regression"] = F.mse_loss(network.regress(images), batch.labels)
            weights["regression"] = self.regression
        # The logarithm keeps one large loss from hiding the others.
        total = torch.stack([weight * parts[name].log1p() for name, weight in weights.items()]).sum()
        return {"loss": total, **parts}
