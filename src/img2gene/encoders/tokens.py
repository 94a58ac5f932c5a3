"""Average feature maps over the cells of a grid: the tokens of a patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def cells(size: int, grid: int) -> list[tuple[int, int]]:
    """Return start and stop of each of ``grid`` cells along an axis of ``size`` positions.

    Cells are cut as in adaptive average pooling. Neighbouring cells overlap if ``grid`` does not divide ``size``, and
    cells repeat positions if ``grid`` exceeds ``size``.
    """
    # Cells without overlap would be uneven: mirroring a patch would then not mirror its tokens.
    return [(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)]


def cell_means(size: int, grid: int) -> np.ndarray:
    """Return the matrix float32 (grid, size) that averages an axis over its cells."""
    matrix = np.zeros((grid, size), dtype=np.float32)
    for row, (start, stop) in zip(matrix, cells(size, grid), strict=True):
        row[start:stop] = 1 / (stop - start)
    return matrix


def pool_tokens(maps: Sequence[torch.Tensor], grid: int) -> torch.Tensor:
    """Average square maps (n, c, h, h) to tokens float (n, grid², channels of all maps).

    Tokens lie row by row from the top left.
    """
    import torch

    # torch's adaptive pooling refuses uneven cells on MPS; in bfloat16 the weights of a cell would not sum to one.
    with torch.autocast(maps[0].device.type, enabled=False):
        return torch.cat([_pool(stage.float(), grid) for stage in maps], dim=1).flatten(2).transpose(1, 2)


def _pool(stage: torch.Tensor, grid: int) -> torch.Tensor:
    import torch

    matrix = torch.from_numpy(cell_means(stage.shape[-1], grid)).to(stage.device)
    return matrix @ stage @ matrix.T
