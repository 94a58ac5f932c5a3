"""Layers that the networks share; all of them run under ``torch.func.vmap``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Offsets between spots are divided by this length, so that attention sees numbers of order one.
MICRONS = 100.0


class Linear(nn.Linear):
    """A linear layer that sees all leading axes as one.

    ``torch.func.vmap`` would otherwise repeat the weights for each spot, which costs seven times the time of the product.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.layers import Linear
    >>> Linear(3, 2)(torch.zeros(5, 4, 3)).shape
    torch.Size([5, 4, 2])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (…, in_features)."""
        return F.linear(x.reshape(-1, x.shape[-1]), self.weight, self.bias).reshape(*x.shape[:-1], self.out_features)


class Attention(nn.Module):
    """Multi-head attention of queries over keys, softmax(Q Kᵀ / √d + bias) V.

    With fewer queries than keys, the projections of keys and values are moved over to the queries' side, q (W_k x) =
    (W_kᵀ q) x and Σ a (W_v x) = W_v Σ a x: the same numbers for a cost that hardly depends on the number of keys.

    Parameters
    ----------
    dim
        Width of queries, keys and output.
    heads
        Number of heads; divides ``dim``.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.layers import Attention
    >>> Attention(8, heads=2)(torch.zeros(5, 1, 8), torch.zeros(5, 3, 8)).shape
    torch.Size([5, 1, 8])
    """

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(dim, dim, bias=False)
        self.key = Linear(dim, dim, bias=False)
        self.value = Linear(dim, dim)
        self.out = Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor, bias: Tensor | None = None) -> Tensor:
        """(…, q, dim) queries over (…, k, dim) keys; ``bias`` (…, heads, q, k) is added to the logits."""
        q = self._split(self.query(queries)) / (queries.shape[-1] // self.heads) ** 0.5
        few = queries.shape[-2] < keys.shape[-2]
        logits = self._over(self._each_head(q, self.key.weight), keys.mT) if few else q @ self._split(self.key(keys)).mT
        shares = (logits if bias is None else logits + bias).softmax(dim=-1)
        if few:
            weight = self.value.weight.unflatten(0, (self.heads, -1)).mT.flatten(0, 1)
            mixed = self._each_head(self._over(shares, keys), weight)
            return self.out(mixed.transpose(-3, -2).flatten(-2) + self.value.bias)
        return self.out((shares @ self._split(self.value(keys))).transpose(-3, -2).flatten(-2))

    def _split(self, x: Tensor) -> Tensor:
        """(…, n, dim) to (…, heads, n, dim / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def _over(self, x: Tensor, keys: Tensor) -> Tensor:
        """(…, heads, n, a) times (…, a, b) that all heads share; as one product, since broadcasting would copy the keys."""
        return (x.flatten(-3, -2) @ keys).unflatten(-2, (self.heads, -1))

    def _each_head(self, x: Tensor, weight: Tensor) -> Tensor:
        """(…, heads, n, a) times the heads' parts (heads · a, b) of a weight, (…, heads, n, b)."""
        flat = x.reshape(-1, *x.shape[-3:])
        products = torch.einsum("shna,hab->shnb", flat, weight.unflatten(0, (self.heads, -1)))
        return products.reshape(*x.shape[:-1], weight.shape[-1])


class RelativePosition(nn.Module):
    """Attention bias of each head from the offset between two spots in µm, and from its length.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.layers import RelativePosition
    >>> RelativePosition(heads=4)(torch.zeros(5, 8, 8, 2)).shape
    torch.Size([5, 4, 8, 8])
    """

    def __init__(self, heads: int, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(Linear(3, width), nn.GELU(), Linear(width, heads))

    def forward(self, offsets: Tensor) -> Tensor:
        """(…, heads, q, k) of offsets (…, q, k, 2) in µm."""
        scaled = offsets / MICRONS
        length = scaled.square().sum(dim=-1, keepdim=True).add(1e-12).sqrt()
        return self.layers(torch.cat([scaled, length], dim=-1)).movedim(-1, -3)


class FeedForward(nn.Module):
    """Residual block x + dropout(GELU(W x)).

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.layers import FeedForward
    >>> FeedForward(8)(torch.zeros(5, 8)).shape
    torch.Size([5, 8])
    """

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear, self.dropout = Linear(dim, dim), dropout

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return x + F.dropout(F.gelu(self.linear(x)), self.dropout, self.training)


class SpotEncoder(nn.Module):
    """Hidden features (…, dim) of a spot's components: dropout, linear, GELU, and a residual block.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.layers import SpotEncoder
    >>> SpotEncoder(32, 8)(torch.zeros(5, 32)).shape
    torch.Size([5, 8])
    """

    def __init__(self, width: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear, self.block, self.dropout = Linear(width, dim), FeedForward(dim, dropout), dropout
        # Components carry unit energy in all, so this starts the hidden units off in the bent part of the GELU.
        nn.init.normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Encode components (…, width)."""
        # Half the rate on the input: there is one view of it, while hidden units repeat each other.
        x = F.dropout(x, self.dropout / 2, self.training)
        x = F.dropout(F.gelu(self.linear(x)), self.dropout, self.training)
        return self.block(x)


class Neighborhood(nn.Module):
    """Tokens (B, k, dim) of the spots around a spot: self-attention among them with relative positions as bias.

    Queries, keys and values are made once for each spot (:meth:`project`), although it is a neighbour of many.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.layers import Neighborhood
    >>> layer, hidden = Neighborhood(8, heads=2), torch.zeros(5, 6, 8)
    >>> layer(hidden, layer.project(hidden), torch.zeros(5, 6, 2)).shape
    torch.Size([5, 6, 8])
    """

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.position = heads, RelativePosition(heads)
        self.projection = Linear(dim, 3 * dim)

    def project(self, hidden: Tensor) -> Tensor:
        """Queries, keys and values (…, 3 · dim) of hidden features (…, dim)."""
        return self.projection(hidden)

    def forward(self, hidden: Tensor, projected: Tensor, offsets: Tensor) -> Tensor:
        """Hidden features (B, k, dim) of the neighbours and their projections, at ``offsets`` (B, k, 2) in µm."""
        between = offsets.unsqueeze(-3) - offsets.unsqueeze(-2)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in projected.chunk(3, dim=-1))
        logits = q @ k.mT / q.shape[-1] ** 0.5 + self.position(between)
        return hidden + (logits.softmax(dim=-1) @ v).transpose(-3, -2).flatten(-2)


class SectionSummary(nn.Module):
    """The whole section in a fixed number of latent tokens, so that looking at it costs a spot the same in any section.

    Latents attend to the hidden features of the section's spots; then each spot attends to the latents. A layer over the
    nearest spots gives each its place: relative, as sections have neither origin nor orientation in common.

    References
    ----------
    Jaegle et al., "Perceiver: General Perception with Iterative Attention", ICML 2021 (latents); Chu et al., "Conditional
    Positional Encodings for Vision Transformers", ICLR 2023 (position from neighbours).

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.layers import SectionSummary
    >>> summary = SectionSummary(8, n_latents=3, heads=2)
    >>> latents = summary.latents_of(torch.randn(50, 8))
    >>> summary(torch.zeros(5, 8), torch.zeros(5, 6, 8), latents).shape
    torch.Size([5, 8])
    """

    def __init__(self, dim: int, n_latents: int = 16, heads: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(n_latents, dim))
        self.gather, self.spread = Attention(dim, heads), Attention(dim, heads)
        self.block = FeedForward(dim, dropout)
        self.place = Linear(dim, dim)

    def latents_of(self, spots: Tensor) -> Tensor:
        """Latents (n_latents, dim) of a section from the hidden features (n, dim) of its spots."""
        return self.block(self.latents + self.gather(self.latents, spots))

    def forward(self, hidden: Tensor, around: Tensor, latents: Tensor) -> Tensor:
        """Make one token (B, dim) per spot from its hidden features (B, dim), its neighbours' (B, k, dim), and the latents."""
        return hidden + self.spread(hidden, latents) + self.place(around.mean(dim=-2))


class PathwayAttention(nn.Module):
    """Context from pathways: Z' = softmax(Z W_q (P W_k)ᵀ / √d) P W_v, with P the spot's pathway tokens.

    The token of pathway j is a learned vector times the spot's predicted score p̂_j. What a pathway adds to an embedding is
    a term of a sum, so that its contribution to a gene can be read off (:meth:`terms`).

    References
    ----------
    Img2Gene (Zhang et al., IEEE JBHI 2026), pathway context.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.layers import PathwayAttention
    >>> PathwayAttention(8, n_pathways=5)(torch.randn(3, 8), torch.randn(3, 5)).shape
    torch.Size([3, 8])
    """

    def __init__(self, dim: int, n_pathways: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(n_pathways, dim) / dim**0.5)
        self.query, self.key, self.value = (Linear(dim, dim, bias=False) for _ in range(3))

    def shares(self, embedding: Tensor, scores: Tensor) -> Tensor:
        """What each pathway's value is multiplied with, attention · p̂, (B, P)."""
        # Scores are rows of unit length; this brings them to order one.
        scores = scores * scores.shape[-1] ** 0.5
        logits = scores * (self.query(embedding) @ self.key(self.tokens).mT) / embedding.shape[-1] ** 0.5
        return logits.softmax(dim=-1) * scores

    def terms(self, embedding: Tensor, scores: Tensor) -> Tensor:
        """What each pathway adds, (B, P, dim)."""
        return self.shares(embedding, scores).unsqueeze(-1) * self.value(self.tokens)

    def forward(self, embedding: Tensor, scores: Tensor) -> Tensor:
        """Context (B, dim) of embeddings (B, dim) with pathway scores (B, P)."""
        return self.shares(embedding, scores) @ self.value(self.tokens)


class ProjectionHead(nn.Module):
    """Into a space that two modalities share: LayerNorm(h + dropout(W GELU(h))) of h = W₀ x.

    References
    ----------
    BLEEP (Xie et al., NeurIPS 2023); CMRCNet (Liu et al., Medical Image Analysis 2026).

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.layers import ProjectionHead
    >>> ProjectionHead(32, 8)(torch.randn(5, 32)).shape
    torch.Size([5, 8])
    """

    def __init__(self, width: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear, self.out, self.norm, self.dropout = (
            Linear(width, dim),
            Linear(dim, dim),
            nn.LayerNorm(dim),
            dropout,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Project (…, width) to (…, dim)."""
        hidden = self.linear(x)
        return self.norm(hidden + F.dropout(self.out(F.gelu(hidden)), self.dropout, self.training))


class SelfNormalizing(nn.Module):
    """Linear layer, SELU, and alpha dropout: inputs of mean 0 and SD 1 keep both, through any number of layers.

    References
    ----------
    Klambauer et al., "Self-Normalizing Neural Networks", NeurIPS 2017.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.layers import SelfNormalizing
    >>> SelfNormalizing(32, 8)(torch.randn(5, 32)).shape
    torch.Size([5, 8])
    """

    def __init__(self, width: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear, self.dropout = Linear(width, dim), dropout
        # What the theory asks for: weights of variance 1 / width, no bias.
        nn.init.normal_(self.linear.weight, std=width**-0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (…, width)."""
        return F.alpha_dropout(F.selu(self.linear(x)), self.dropout, self.training)


class CrossModalFusion(nn.Module):
    """Tokens of one modality attend to each other, pass a feed-forward block, then attend to the other modality.

    Every step is residual. Applied several times it shares its weights.

    References
    ----------
    CMRCNet (Liu et al., Medical Image Analysis 2026), fusion passes of the mask reconstruction.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.layers import CrossModalFusion
    >>> CrossModalFusion(8, heads=2)(torch.zeros(5, 3, 8), torch.zeros(5, 4, 8)).shape
    torch.Size([5, 3, 8])
    """

    def __init__(self, dim: int, heads: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.own, self.other, self.block = Attention(dim, heads), Attention(dim, heads), FeedForward(dim, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Tokens (…, m, dim) that look at ``context`` (…, k, dim)."""
        normed = self.norms[0](tokens)
        tokens = self.block(tokens + self.own(normed, normed))
        return tokens + self.other(self.norms[1](tokens), context)


def mask_elements(x: Tensor, rate: float) -> Tensor:
    """Set each element to 0 with probability ``rate``, independently; the others stay as they are.

    Unlike dropout it does not scale up what is left, and it also masks outside training.

    Examples
    --------
    >>> import torch
    >>> from img2gene.models.networks.layers import mask_elements
    >>> mask_elements(torch.ones(2, 2), rate=1.0)
    tensor([[0., 0.],
            [0., 0.]])
    """
    return x * torch.bernoulli(torch.full_like(x, 1 - rate))
