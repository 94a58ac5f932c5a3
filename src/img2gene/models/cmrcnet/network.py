"""The network of CMRCNet: a shared space of images and expression, and mask reconstruction."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from img2gene.models.networks.layers import (
    CrossModalFusion,
    Linear,
    ProjectionHead,
    SelfNormalizing,
    SpotEncoder,
    mask_elements,
)
from img2gene.models.stored import StoredConfig

# Times that masked image tokens look at the expression tokens.
_FUSION_PASSES = 2
_GENE_DROPOUT = 0.25
# Entries of the architecture that repeat a parameter of the model.
_SAME = ("dim", "heads", "n_gene_tokens", "dropout", "mask")


@dataclass(frozen=True)
class Architecture:
    """Everything that the shapes of the weights follow from.

    Attributes
    ----------
    n_components, n_genes
        Widths of the image's components and of the labels.
    n_tokens, token_width
        Patch tokens of a spot in addition to its embedding (0: none).
    dim, heads, n_gene_tokens
        Width of tokens and of the shared space, attention heads, tokens that are made of the labels.
    dropout, mask
        Dropout rate of the image side, share of elements of the image tokens that are masked.
    reconstruction, regression
        Whether the network has the parts for mask reconstruction, and a head that predicts labels.
    """

    n_components: int
    n_genes: int
    n_tokens: int = 0
    token_width: int = 0
    dim: int = 256
    heads: int = 4
    n_gene_tokens: int = 8
    dropout: float = 0.2
    mask: float = 0.5
    reconstruction: bool = True
    regression: bool = True

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Pairs(NamedTuple):
    """Spots with image and expression.

    Attributes
    ----------
    features
        float32 (B, q): components of the embedding.
    tokens
        float32 (B, m, w): components of the patch tokens; m is 0 where there are none.
    labels
        float32 (B, G): labels, centred, in units of their typical SD.
    """

    features: Tensor
    tokens: Tensor
    labels: Tensor


class CMRCNetNetwork(nn.Module):
    """Brings image and expression of a spot into one space, and restores a masked image with the help of expression.

    Parameters
    ----------
    architecture
        Shapes and switches.

    References
    ----------
    Liu et al., "Spatial Transcriptomics Expression Prediction from Histopathology Based on Cross-Modal Mask Reconstruction
    and Contrastive Learning", Medical Image Analysis 108:103889, arXiv:2506.08854.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.cmrcnet.network import Architecture, CMRCNetNetwork
    >>> network = CMRCNetNetwork(Architecture(n_components=6, n_genes=5, dim=8, heads=2))
    >>> network.image_embedding(network.image_tokens(torch.randn(4, 6), torch.zeros(4, 0, 0))).shape
    torch.Size([4, 8])
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.encoder = SpotEncoder(a.n_components, a.dim, a.dropout)
        if a.n_tokens:
            self.token_encoder = SpotEncoder(a.token_width, a.dim, a.dropout)
            self.token_place = nn.Parameter(torch.randn(a.n_tokens, a.dim) / a.dim**0.5)
        self.image_head = ProjectionHead(a.dim, a.dim, a.dropout)
        self.gene_head = ProjectionHead(a.n_genes, a.dim, a.dropout)
        if a.reconstruction:
            self.gene_tokens = nn.Sequential(
                SelfNormalizing(a.n_genes, a.dim, _GENE_DROPOUT),
                SelfNormalizing(a.dim, a.n_gene_tokens * a.dim, _GENE_DROPOUT),
            )
            self.fusion = CrossModalFusion(a.dim, a.heads, a.dropout)
        if a.regression:
            self.regression_head = Linear(a.dim, a.n_genes)
            # The head starts at the training mean, which no random weights can improve on.
            nn.init.zeros_(self.regression_head.weight)
            nn.init.zeros_(self.regression_head.bias)

    def image_tokens(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Tokens (B, 1 + m, dim) of the image: one for its embedding, one for each patch token."""
        whole = self.encoder(features).unsqueeze(-2)
        if not self.architecture.n_tokens:
            return whole
        return torch.cat([whole, self.token_encoder(tokens) + self.token_place], dim=-2)

    def image_embedding(self, tokens: Tensor) -> Tensor:
        """u, (B, dim), of image tokens (B, 1 + m, dim)."""
        return self.image_head(tokens.mean(dim=-2))

    def gene_embedding(self, labels: Tensor) -> Tensor:
        """v, (B, dim), of labels (B, G)."""
        return self.gene_head(labels)

    def reconstruct(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """r, (B, dim): image tokens, masked element by element, that looked at the tokens made of the labels."""
        a = self.architecture
        genes = self.gene_tokens(labels).unflatten(-1, (a.n_gene_tokens, a.dim))
        restored = mask_elements(tokens, a.mask)
        for _ in range(_FUSION_PASSES):
            restored = self.fusion(restored, genes)
        return restored.mean(dim=-2)

    def regress(self, images: Tensor) -> Tensor:
        """Labels (B, G) of image embeddings (B, dim), relative to their mean; none without a head."""
        return self.regression_head(images) if self.architecture.regression else images[..., :0]


def check_stored(config: dict[str, Any], parameters: Any) -> None:
    """Check the configuration of a stored model against its own parameters."""
    check = StoredConfig()
    required = ("architecture", "n_models", "center", "scale", "bank", "ridge", "k", "weighting", "exclude")
    # Older models name the library that searched their bank; results are the same.
    if check.entries("predictor", config, (*required, "parameters", "report"), ("search",)):
        shape = config["architecture"]
        if check.entries("architecture", shape, [part.name for part in fields(Architecture)]):
            check.same("architecture", shape, parameters, {name: name for name in _SAME})
            for name in ("n_components", "n_genes", "n_tokens", "token_width"):
                check.whole(f"architecture.{name}", shape[name], 0)
            for name in ("reconstruction", "regression"):
                if shape[name] is not (getattr(parameters, name) > 0):
                    check.messages.append(f"architecture.{name} does not belong to the weight of its loss.")
        same = ("n_models", "center", "k", "weighting", "exclude")
        check.same("predictor", config, parameters, {name: name for name in same})
        check.number("scale", config["scale"], above=0)
        check.record("report", config["report"])
    check.raise_all()
