"""Networks of the zoo: what turns the outputs of timm and transformers into features and tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from img2gene.encoders.tokens import pool_tokens

CLASS, CLASS_AND_MEAN = "class", "class+mean"


class HubNetwork(nn.Module):
    """Gives features and tokens of a network that returns a row of tokens for each image.

    Parameters
    ----------
    network
        The network.
    pooling
        ``"pooled"`` (as the network pools), ``"class"`` (its class token) or ``"class+mean"`` (the class token, and the mean
        of the tokens of the image).
    n_prefix
        Tokens before those of the image: the class token and registers.
    """

    def __init__(self, network: nn.Module, pooling: str, n_prefix: int) -> None:
        super().__init__()
        self.network: Any = network
        self.pooling, self.n_prefix = pooling, n_prefix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute features, (n, width)."""
        return self._features(self.unpooled(x))

    def with_tokens(self, x: torch.Tensor, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute features, and tokens averaged over each cell of a grid, (n, grid², token_width)."""
        unpooled = self.unpooled(x)
        patches = unpooled[:, self.n_prefix :].transpose(1, 2)
        return self._features(unpooled), pool_tokens([patches.unflatten(2, (math.isqrt(patches.shape[2]),) * 2)], grid)

    def unpooled(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the tokens of the last layer, (n, n_prefix + n_tokens, token_width)."""
        return self.network.forward_features(x)

    def _features(self, unpooled: torch.Tensor) -> torch.Tensor:
        if self.pooling == CLASS_AND_MEAN:
            return torch.cat([unpooled[:, 0], unpooled[:, self.n_prefix :].mean(dim=1)], dim=-1)
        return unpooled[:, 0] if self.pooling == CLASS else self.network.forward_head(unpooled)


class TransformersNetwork(HubNetwork):
    """Gives features and tokens of a vision model of transformers."""

    def unpooled(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the tokens of the last layer, (n, n_prefix + n_tokens, token_width)."""
        return self.network(pixel_values=x).last_hidden_state


class SwinNetwork(nn.Module):
    """Gives the pooled features of a Swin transformer; its map of 7 × 7 places makes no tokens of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute features, (n, width)."""
        return self.network(x)


class ConvStem(nn.Module):
    """Turns images into the first tokens of CTransPath by three convolutions, in place of one linear map of each patch."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        **options: Any,
    ) -> None:
        super().__init__()
        narrow = embed_dim // 8
        sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.grid_size = tuple(side // patch_size for side in sides)
        self.proj = nn.Sequential(
            *_convolution(in_chans, narrow), *_convolution(narrow, 2 * narrow), nn.Conv2d(2 * narrow, embed_dim, 1)
        )
        norm = options.get("norm_layer")
        self.norm = nn.Identity() if norm is None else norm(embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute tokens, (n, h / 4, w / 4, embed_dim)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


def _convolution(n_in: int, n_out: int) -> tuple[nn.Module, ...]:
    """Halve an image."""
    return (
        nn.Conv2d(n_in, n_out, kernel_size=3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(inplace=True),
    )


class AttentionPool(nn.Module):
    """Pools a row of tokens by the attention of a learned query."""

    def __init__(self, width: int, token_width: int, n_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, width))
        self.attn = nn.MultiheadAttention(width, n_heads, kdim=token_width, vdim=token_width, batch_first=True)
        self.ln_q, self.ln_k = nn.LayerNorm(width), nn.LayerNorm(token_width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pool tokens (n, n_tokens, token_width) to (n, width)."""
        keys = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), -1, -1)
        return self.attn(query, keys, keys, need_weights=False)[0][:, 0]


class ConchNetwork(HubNetwork):
    """The image part of CONCH before its projection to the space that images and texts share."""

    def __init__(self, trunk: nn.Module, width: int = 512, n_heads: int = 8) -> None:
        super().__init__(trunk, "attention", 1)
        self.attn_pool_contrast = AttentionPool(width, self.network.num_features, n_heads)
        self.ln_contrast = nn.LayerNorm(width)

    def _features(self, unpooled: torch.Tensor) -> torch.Tensor:
        return self.ln_contrast(self.attn_pool_contrast(unpooled))
