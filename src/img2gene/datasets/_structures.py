"""Glands and fat cells of a synthetic section. The image shows their walls, and nuclei line them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from img2gene.datasets._genes import DOMAINS
from img2gene.datasets._tissue import Tissue, sample_field

GLAND_WALL_UM = 13.0

_GLAND_PITCH_UM = 62.0
_FAT_CELL_UM = 54.0
_WALL_UM = 1.2


@dataclass(frozen=True)
class Glands:
    """Holds the acini: centres (n, 2) in µm, and the radius of each lumen."""

    xy: np.ndarray
    lumen: np.ndarray

    def outside(self, xy: np.ndarray) -> np.ndarray:
        """Return for each position (x, y) whether it lies outside all glands."""
        if not len(self.xy):
            return np.ones(len(xy), dtype=bool)
        distance = np.linalg.norm(xy[:, None] - self.xy[None], axis=-1)
        return (distance > self.lumen + GLAND_WALL_UM).all(axis=1)


@dataclass(frozen=True)
class FatCells:
    """Holds the vacuoles: centres (n, 2) in µm, and the distance by which each pushes its walls outwards."""

    xy: np.ndarray
    push: np.ndarray

    def walls(self, xy: np.ndarray) -> np.ndarray:
        """Compute the density of membrane at positions (x, y), 0–1."""
        from scipy.spatial import cKDTree

        # Borders of an additively weighted Voronoi diagram are curved, as membranes are. The two cells nearest by weighted
        # distance are searched among the four nearest by plain distance.
        distance, index = cKDTree(self.xy).query(xy, k=4)
        nearest = np.partition(distance - self.push[index], 1, axis=1)
        return np.exp(-(((nearest[:, 1] - nearest[:, 0]) / (2 * _WALL_UM)) ** 2))

    def wall_sites(self) -> tuple[np.ndarray, np.ndarray]:
        """Return a point on the wall between each cell and its nearest neighbour, and the wall's direction there."""
        from scipy.spatial import cKDTree

        distance, index = cKDTree(self.xy).query(self.xy, k=2)
        step = self.xy[index[:, 1]] - self.xy
        share = 0.5 + (self.push - self.push[index[:, 1]]) / (2 * distance[:, 1])
        return self.xy + share[:, None] * step, np.arctan2(step[:, 0], -step[:, 1])


def draw_glands(rng: np.random.Generator, tissue: Tissue) -> Glands:
    """Draw acini on a jittered lattice wherever normal epithelium prevails."""
    xy = jittered_lattice(rng, tissue.size_um, _GLAND_PITCH_UM, jitter=0.1)
    lumen = rng.uniform(3, 14, len(xy))
    share = sample_field(tissue.domains[DOMAINS.index("epithelium")], xy)
    keep = (share > 0.5) & (sample_field(tissue.outline, xy) > 0)
    return Glands(xy[keep], lumen[keep])


def draw_fat_cells(rng: np.random.Generator, tissue: Tissue) -> FatCells:
    """Draw vacuoles all over the canvas. The image shows only the vacuoles within adipose tissue."""
    xy = jittered_lattice(rng, tissue.size_um, _FAT_CELL_UM, jitter=0.15)
    return FatCells(xy, rng.uniform(0, 10, len(xy)))


def jittered_lattice(rng: np.random.Generator, size_um: tuple[float, float], pitch: float, jitter: float) -> np.ndarray:
    """Draw points (x, y) on a hexagonal lattice, each moved by a normal step of SD ``jitter`` × pitch."""
    # 0.866 is the square root of 3/4: the distance between rows of a hexagonal lattice of pitch 1.
    row, column = np.indices((int(size_um[0] / pitch / 0.866) + 2, int(size_um[1] / pitch) + 2))
    xy = np.stack([(column + 0.5 * (row % 2)) * pitch, row * pitch * 0.866], axis=-1).reshape(-1, 2)
    return xy + pitch * rng.normal(0, jitter, xy.shape)
