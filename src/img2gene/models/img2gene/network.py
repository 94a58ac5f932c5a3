"""The network of Img2Gene: three views of a spot, their fusion as a causal effect, and pathways as context."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from img2gene.models.networks.batches import Batch
from img2gene.models.networks.debiasing import Backdoor, Views, counterfactual
from img2gene.models.networks.layers import (
    Attention,
    Linear,
    Neighborhood,
    PathwayAttention,
    SectionSummary,
    SpotEncoder,
)
from img2gene.models.stored import StoredConfig

# Entries of the architecture that repeat a parameter of the model.
_SAME = ("dim", "heads", "n_neighbors", "n_latents", "dropout", "effect", "neighborhood")
VIEWS = ("own", "around", "section")


@dataclass(frozen=True)
class Architecture:
    """Everything that the shapes of the weights follow from.

    Attributes
    ----------
    n_components, n_genes, n_pathways
        Widths of input, of what is predicted (genes, or components of the labels), and of pathway scores (0: no pathway
        context).
    n_tokens, token_width
        Patch tokens of a spot in addition to its embedding (0: none).
    n_confounders
        Size of the confounder dictionary of the backdoor adjustment (0: none).
    dim, heads, n_neighbors, n_latents, dropout
        Hidden width, attention heads, size of the neighbourhood, latents of the section, dropout rate.
    effect
        One of :data:`img2gene.models.networks.debiasing.EFFECTS`.
    neighborhood, section
        Whether those views are looked at.
    counts
        Whether the outputs are log rates of negative binomial counts, with a dispersion for each gene.
    """

    n_components: int
    n_genes: int
    n_pathways: int = 0
    n_tokens: int = 0
    token_width: int = 0
    n_confounders: int = 0
    dim: int = 128
    heads: int = 4
    n_neighbors: int = 6
    n_latents: int = 16
    dropout: float = 0.3
    effect: str = "TE"
    neighborhood: bool = True
    section: bool = True
    counts: bool = False

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Outputs(NamedTuple):
    """Outputs of the network for a batch.

    Attributes
    ----------
    embedding
        (B, dim): the debiased embedding z.
    genes
        (B, G): the prediction ŷ.
    views
        (V, B, G): predictions ŷ_v of the views alone, the spot's own first.
    pathways
        (B, P): predicted pathway scores p̂.
    """

    embedding: Tensor
    genes: Tensor
    views: Tensor
    pathways: Tensor


class Img2GeneNetwork(nn.Module):
    """Predicts expression from three views of a spot.

    t: the spot's own tokens; n: tokens of its nearest spots; g: the spot within its section. They are fused by one shared
    cross-attention, F(t, n, g) = LayerNorm[CA(q=g, kv=t) + CA(q=g, kv=n)], of which a causal effect is taken against the
    references that the buffers hold. Pathways that the effect predicts come back as context.

    Parameters
    ----------
    architecture
        Shapes and switches.

    References
    ----------
    Img2Gene (Zhang et al., IEEE JBHI 2026); heads of single views: TRIPLEX (Chung et al., CVPR 2024).

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.img2gene.network import Architecture, Img2GeneNetwork
    >>> from img2gene.models.networks.batches import Batch
    >>> network = Img2GeneNetwork(Architecture(n_components=6, n_genes=5, n_neighbors=2))
    >>> spots, near = torch.arange(4), torch.tensor([[1, 2]] * 4)
    >>> batch = Batch(torch.randn(4, 6), torch.zeros(4, 0, 0), spots, near, spots, torch.zeros(4, 2, 2))
    >>> network(batch).genes.shape
    torch.Size([4, 5])
    """

    reference_own: Tensor
    reference_around: Tensor
    reference_section: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.encoder = SpotEncoder(a.n_components, a.dim, a.dropout)
        if a.n_tokens:
            self.token_encoder = SpotEncoder(a.token_width, a.dim, a.dropout)
            self.token_place = nn.Parameter(torch.randn(a.n_tokens, a.dim) / a.dim**0.5)
        if a.n_confounders:
            self.backdoor = Backdoor(
                a.dim, torch.zeros(a.n_confounders, a.n_components), torch.full((a.n_confounders,), 1 / a.n_confounders)
            )
        if a.neighborhood:
            self.neighborhood = Neighborhood(a.dim, a.heads)
        if a.section:
            self.section = SectionSummary(a.dim, a.n_latents, a.heads, a.dropout)
        self.cross, self.norm = Attention(a.dim, a.heads), nn.LayerNorm(a.dim)
        self._add_heads(a)
        # Buffers, as references are stored with the weights but not trained.
        self.register_buffer("reference_own", torch.zeros(1 + a.n_tokens, a.dim))
        self.register_buffer("reference_around", torch.zeros(a.n_neighbors, a.dim))
        self.register_buffer("reference_section", torch.zeros(a.dim))

    def _add_heads(self, a: Architecture) -> None:
        self.head = _zero_linear(a.dim, a.n_genes)
        looked_at = [name for name in VIEWS if name == "own" or getattr(a, {"around": "neighborhood"}.get(name, name))]
        self.view_heads = nn.ModuleDict({name: _zero_linear(a.dim, a.n_genes) for name in looked_at})
        if a.counts:
            self.log_theta = nn.Parameter(torch.zeros(a.n_genes))
        if a.n_pathways:
            self.pathway_head = Linear(a.dim, a.n_pathways)
            self.pathway_context = PathwayAttention(a.dim, a.n_pathways)

    def encode(self, features: Tensor) -> Tensor:
        """Hidden features (u, dim) of components (u, q), adjusted for confounders where the network has a dictionary."""
        hidden = self.encoder(features)
        return self.backdoor(hidden) if self.architecture.n_confounders else hidden

    def latents(self, hidden: Tensor) -> Tensor:
        """Latent tokens (n_latents, dim) of a section, from the hidden features of its spots."""
        return self.section.latents_of(hidden) if self.architecture.section else hidden[:0]

    def views(
        self, own: Tensor, around: Tensor, projected: Tensor, tokens: Tensor, offsets: Tensor, latents: Tensor
    ) -> Views:
        """The three views of spots, from hidden features (B, dim) of theirs and (B, k, dim) of their neighbours.

        ``projected`` (B, k, …) is what :meth:`project` makes of the neighbours.
        """
        mine = own.unsqueeze(-2)
        if self.architecture.n_tokens:
            mine = torch.cat([mine, self.token_encoder(tokens) + self.token_place], dim=-2)
        section = self.section(own, around, latents) if self.architecture.section else own
        if self.architecture.neighborhood:
            around = self.neighborhood(around, projected, offsets)
        return Views(mine, around, section)

    def project(self, hidden: Tensor) -> Tensor:
        """Project spots for the neighbourhood view; an empty tensor without this view."""
        return self.neighborhood.project(hidden) if self.architecture.neighborhood else hidden[..., :0]

    def batch_views(self, batch: Batch) -> Views:
        """The three views of a batch."""
        hidden = self.encode(batch.features)
        latents, projected = self.latents(hidden[batch.anchors]), self.project(hidden)
        near = batch.around
        return self.views(hidden[batch.own], hidden[near], projected[near], batch.tokens, batch.offsets, latents)

    def fuse(self, own: Tensor, around: Tensor, section: Tensor) -> Tensor:
        """F(t, n, g), (B, dim)."""
        # One attention serves both views, so that they share its weights.
        query = section.unsqueeze(-2)
        fused = self.cross(query, own)
        if self.architecture.neighborhood:
            fused = fused + self.cross(query, around)
        return self.norm(fused.squeeze(-2))

    @property
    def references(self) -> Views:
        """The reference views, "no treatment"."""
        return Views(self.reference_own, self.reference_around, self.reference_section)

    def embed(self, views: Views) -> Tensor:
        """The debiased embedding z of spots, (B, dim)."""
        return counterfactual(self.fuse, views, self.references, self.architecture.effect)

    def predict(self, views: Views) -> Outputs:
        """Everything that is predicted from views."""
        z = self.embed(views)
        pathways = self.pathway_head(z) if self.architecture.n_pathways else z[..., :0]
        context = self.pathway_context(z, pathways) if self.architecture.n_pathways else 0
        # Heads on single views keep each view informative on its own (TRIPLEX).
        pooled = {"own": views.own.mean(dim=-2), "around": views.around.mean(dim=-2), "section": views.section}
        single = torch.stack([head(pooled[name]) for name, head in self.view_heads.items()])
        return Outputs(z, self.head(z + context), single, pathways)

    def forward(self, batch: Batch) -> Outputs:
        """Everything that is predicted for a batch."""
        return self.predict(self.batch_views(batch))

    def pathway_contributions(self, views: Views, direction: Tensor) -> Tensor:
        """Contribution of each pathway to a sum of outputs, (B, P), with the weights ``direction`` (G,).

        The sum over pathways is that of the whole context.
        """
        z = self.embed(views)
        shares = self.pathway_context.shares(z, self.pathway_head(z))
        return shares * (self.pathway_context.value(self.pathway_context.tokens) @ (self.head.weight.mT @ direction))


def _zero_linear(width: int, n_outputs: int) -> Linear:
    """A linear layer with zero weights, which predicts the mean before training."""
    layer = Linear(width, n_outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def check_stored(config: dict[str, Any], parameters: Any) -> None:
    """Check the configuration of a stored model against its own parameters."""
    check = StoredConfig()
    required = ("architecture", "n_models", "center", "ridge", "scale", "bank", "k", "parameters", "report", "context")
    if check.entries("predictor", config, (*required, "shift", "smoothing"), ("n_responses",)):
        shape, context = config["architecture"], config["context"]
        if check.entries("architecture", shape, [part.name for part in fields(Architecture)]):
            same = {name: name for name in _SAME} | {"section": "section_view"}
            check.same("architecture", shape, parameters, same)
            for name in ("n_components", "n_genes", "n_pathways", "n_tokens", "token_width"):
                check.whole(f"architecture.{name}", shape[name], 0)
            # There are no more centroids than training sections.
            n_confounders = check.whole("architecture.n_confounders", shape["n_confounders"], 0)
            if isinstance(n_confounders, int) and n_confounders > parameters.n_confounders:
                check.messages.append("architecture.n_confounders is above the number of the parameters.")
            if config.get("n_responses", shape["n_genes"]) != shape["n_genes"]:
                check.messages.append("n_responses is not the number of outputs of the networks.")
            if shape["counts"] is not (parameters.objective == "negative_binomial"):
                check.messages.append("architecture.counts does not belong to the objective.")
            if check.record("context", context) and shape["n_pathways"]:
                check.list_of_names("context.names", context.get("names"))
                if len(context.get("names") or ()) != shape["n_pathways"]:
                    check.messages.append(f"context.names: expected {shape['n_pathways']} pathways.")
        check.same("predictor", config, parameters, {"n_models": "n_models", "center": "center"})
        if config["bank"] is None:
            check.messages += ["k: there is no bank to search."] * (config["k"] is not None)
        else:
            check.same("predictor", config, parameters, {"k": "k"})
        check.number("scale", config["scale"], above=0)
        check.number("smoothing", config["smoothing"], 0, 1)
        if check.entries("shift", config["shift"], ("near", "far")):
            near = check.number("shift.near", config["shift"]["near"], 0)
            check.number("shift.far", config["shift"]["far"], above=near if isinstance(near, float) else 0)
        check.record("report", config["report"])
    check.raise_all()
