"""Render a synthetic section as an H&E image: dye concentrations, then Beer-Lambert absorption."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from img2gene.datasets._genes import DOMAINS
from img2gene.datasets._nuclei import draw_nuclei, stamp_nuclei
from img2gene.datasets._structures import GLAND_WALL_UM, FatCells, Glands, draw_fat_cells, draw_glands
from img2gene.datasets._tissue import SEPTUM, STEP_UM, Tissue

STAIN_FIELD_EFFECT = 0.22

# Optical density per unit of dye in R, G, B (Macenko et al., ISBI 2009, reference slide).
_HAEMATOXYLIN = np.array([0.5626, 0.7201, 0.4062])
_EOSIN = np.array([0.2159, 0.8012, 0.5581])
_GRAINS_UM = {"chromatin": 1.3, "speck": 1.8, "fine": 3.0, "cloud": 7.0, "fray": 9.0}
_BAND_PX = 192


@dataclass(frozen=True)
class Stain:
    """Holds the staining of one patient: dye vectors, concentrations, and the light through empty glass."""

    vectors: np.ndarray
    haematoxylin: float
    eosin: float
    light: np.ndarray


@dataclass(frozen=True)
class _Scene:
    """Holds the parts of a section that are drawn once, before its pixels are computed band by band."""

    tissue: Tissue
    shape: tuple[int, int]
    mpp: float
    glands: Glands
    nuclear: np.ndarray
    walls: np.ndarray
    streaks: np.ndarray
    grains: dict[str, np.ndarray]


def draw_stain(rng: np.random.Generator) -> Stain:
    """Draw dye vectors turned by a few degrees, concentrations within about ± 25 %, and a near-white lamp."""
    vectors = np.stack([_HAEMATOXYLIN, _EOSIN]) + rng.normal(0, 0.03, (2, 3))
    vectors = np.maximum(vectors, 0.05)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    haematoxylin, eosin = np.exp(rng.normal(0, 0.13, 2))
    return Stain(vectors, float(haematoxylin), float(eosin), 245 + rng.normal(0, 2) + rng.normal(0, 1, 3))


def render(rng: np.random.Generator, tissue: Tissue, stain: Stain, mpp: float) -> np.ndarray:
    """Draw a section, uint8 (height, width, 3)."""
    scene = _draw_scene(rng, tissue, mpp)
    image = np.empty((*scene.shape, 3), dtype=np.uint8)
    # Bands stay in the processor's cache: twice as fast as whole maps, and a tenth of the memory.
    for start in range(0, scene.shape[0], _BAND_PX):
        rows = slice(start, min(start + _BAND_PX, scene.shape[0]))
        image[rows] = _absorb(rng, *_dyes(_Band(scene, rows)), stain)
    return image


def _draw_scene(rng: np.random.Generator, tissue: Tissue, mpp: float) -> _Scene:
    height, width = (int(size / mpp) for size in tissue.size_um)
    glands, fat = draw_glands(rng, tissue), draw_fat_cells(rng, tissue)
    nuclear = stamp_nuclei(draw_nuclei(rng, tissue, glands, fat), (height, width), mpp)
    grains = {name: _grain(rng, tissue.size_um, max(size, mpp)) for name, size in _GRAINS_UM.items()}
    walls = _membranes(tissue, fat, (height, width), mpp)
    return _Scene(tissue, (height, width), mpp, glands, nuclear, walls, _streaks(rng), grains)


def _grain(rng: np.random.Generator, size_um: tuple[float, float], lump_um: float) -> np.ndarray:
    """Draw white noise on a grid of ``lump_um``."""
    # Interpolation averages neighbours, which reduces the SD of 1.5 to about 1.
    return 1.5 * rng.standard_normal([int(size / lump_um) + 3 for size in size_um], dtype=np.float32)


def _streaks(rng: np.random.Generator) -> np.ndarray:
    """Draw a tile of noise that is stretched along its second axis and repeats without a seam."""
    from scipy.ndimage import gaussian_filter

    tile = gaussian_filter(rng.standard_normal((1024, 1024), dtype=np.float32), (2.0, 20.0), mode="wrap")
    return tile / tile.std()


def _membranes(tissue: Tissue, fat: FatCells, shape: tuple[int, int], mpp: float) -> np.ndarray:
    """Draw the walls of the fat cells on every second pixel."""
    # Only where there is fat: searching the nearest cells takes most of the time.
    row, column = (np.arange(length // 2 + 2) * 2 * mpp for length in shape)
    share = tissue.domains[DOMAINS.index("adipose")]
    coarse = (np.minimum((p / STEP_UM).astype(int), n - 1) for p, n in zip((row, column), share.shape, strict=True))
    at = np.nonzero(share[np.ix_(*coarse)] > 0.02)
    walls = np.zeros((len(row), len(column)), dtype=np.float32)
    walls[at] = fat.walls(np.column_stack([column[at[1]], row[at[0]]]))
    return walls


class _Band:
    """Computes maps float32 (rows, width) of some rows of a scene at full resolution."""

    def __init__(self, scene: _Scene, rows: slice) -> None:
        self.scene, self.rows = scene, rows

    @cached_property
    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and column positions in µm."""
        indices = np.arange(self.rows.start, self.rows.stop), np.arange(self.scene.shape[1])
        return tuple(index * self.scene.mpp for index in indices)  # type: ignore[return-value]

    def stretch(self, field: np.ndarray, step_um: float = STEP_UM) -> np.ndarray:
        """Interpolate a coarse map linearly to the pixels."""
        for axis, position in enumerate(self.positions):
            below = np.minimum((position / step_um).astype(int), field.shape[axis] - 2)
            weight = (position / step_um - below).astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
            low = field.take(below, axis).astype(np.float32)
            field = low + weight * (field.take(below + 1, axis).astype(np.float32) - low)
        return field

    def grain(self, name: str) -> np.ndarray:
        """Return noise of SD about 1."""
        return self.stretch(self.scene.grains[name], max(_GRAINS_UM[name], self.scene.mpp))

    def share(self, domain: str) -> np.ndarray:
        """Return the share of one domain in every pixel."""
        return self.stretch(self.scene.tissue.domains[DOMAINS.index(domain)])


def _dyes(band: _Band) -> tuple[np.ndarray, np.ndarray]:
    """Compute haematoxylin and eosin in every pixel, for a stain of average strength."""
    nuclear = band.scene.nuclear[band.rows] * (1 + 0.16 * band.grain("chromatin"))
    haematoxylin, eosin = _cytoplasm(band)
    _draw_glands(band, haematoxylin, eosin)
    # Nuclei take up almost no eosin.
    eosin *= 1 - 0.75 * np.minimum(nuclear / 0.6, 1)
    edge = band.stretch(band.scene.tissue.outline) + 0.010 * band.grain("fray") + 0.004 * band.grain("fine")
    on_tissue = np.clip(edge / 0.01 + 0.5, 0, 1)
    eosin *= np.exp(STAIN_FIELD_EFFECT * band.stretch(band.scene.tissue.stain))
    return np.maximum(haematoxylin, nuclear) * on_tissue, eosin * on_tissue


def _cytoplasm(band: _Band) -> tuple[np.ndarray, np.ndarray]:
    """Compute haematoxylin and eosin of all tissue except nuclei and glands."""
    cloud, fine, speck, fibres = band.grain("cloud"), band.grain("fine"), band.grain("speck"), _fibres(band)
    septa = np.clip(1.6 - np.abs(band.stretch(band.scene.tissue.nests)) / SEPTUM, 0, 1)
    walls = band.stretch(band.scene.walls, 2 * band.scene.mpp)
    looks = {
        "tumour": (
            0.16 - 0.12 * septa + 0.03 * cloud,
            0.33 + 0.04 * cloud + 0.03 * fine + septa * (0.4 * fibres - 0.3),
        ),
        "stroma": (0.03, 0.42 * fibres),
        "immune": (0.16 + 0.04 * cloud, 0.17 + 0.04 * cloud),
        "adipose": (0.01 * walls, 0.36 * walls),
        "epithelium": (0.03, 0.32 * fibres),
        "necrosis": (0.10 + 0.04 * cloud, 0.50 + 0.07 * cloud + 0.06 * fine + 0.04 * speck),
    }
    haematoxylin, eosin = (np.zeros_like(cloud) for _ in range(2))
    for name, (blue, pink) in looks.items():
        share = band.share(name)
        haematoxylin += share * blue
        eosin += share * pink
    return np.maximum(haematoxylin, 0), np.maximum(eosin, 0)


def _fibres(band: _Band) -> np.ndarray:
    """Draw wavy collagen from 0 (cleft) to 1.2: streaky noise looked up along the contours of the flow."""
    flow, tile = band.scene.tissue.flow, band.scene.streaks
    across, along = band.stretch(flow), band.stretch(_along(flow))
    streaks = np.full_like(across, 1.0)
    for scale_um, weight in ((0.6, 0.6), (2.1, 0.8)):
        # Both coordinates are positive after the shift, so truncation is a floor; 1023 wraps around the tile.
        row, column = ((position / scale_um + 65536).astype(np.int32) & 1023 for position in (across, along))
        streaks += weight * tile[row, column]
    return 1.2 / (1 + np.exp(-1.6 * streaks))


def _along(flow: np.ndarray) -> np.ndarray:
    """Compute positions along the fibres, at right angles to the mean direction of ``flow``."""
    dy, dx = (part.mean() for part in np.gradient(flow, STEP_UM))
    y, x = np.indices(flow.shape) * STEP_UM
    return (dx * y - dy * x) / np.hypot(dx, dy)


def _draw_glands(band: _Band, haematoxylin: np.ndarray, eosin: np.ndarray) -> None:
    """Draw each acinus into the dye maps: an empty lumen inside a wall of pale pink cytoplasm."""
    y, x = band.positions
    for centre, lumen in zip(band.scene.glands.xy, band.scene.glands.lumen, strict=True):
        reach = lumen + GLAND_WALL_UM + 2
        rows, columns = (
            slice(*np.searchsorted(p, (c - reach, c + reach))) for p, c in ((y, centre[1]), (x, centre[0]))
        )
        distance = np.hypot(y[rows, None] - centre[1], x[None, columns] - centre[0]) - lumen
        wall = np.clip((GLAND_WALL_UM - distance) / 1.5, 0, 1)
        cell = np.clip(distance / 1.5, 0, 1)
        for dye, amount in ((haematoxylin, 0.14), (eosin, 0.34)):
            dye[rows, columns] += wall * (amount * cell - dye[rows, columns])


def _absorb(rng: np.random.Generator, haematoxylin: np.ndarray, eosin: np.ndarray, stain: Stain) -> np.ndarray:
    """Compute RGB by Beer-Lambert, light × exp(−Σ concentration × optical density), and add the camera's noise."""
    noise = 1.6 * rng.standard_normal(eosin.shape, dtype=np.float32)
    dyes = (np.float32(stain.haematoxylin) * haematoxylin, np.float32(stain.eosin) * eosin)
    channels = []
    for light, (blue, pink) in zip(stain.light, stain.vectors.T, strict=True):
        absorbed = np.float32(blue) * dyes[0] + np.float32(pink) * dyes[1]
        channels.append(np.clip(np.float32(light) * np.exp(-absorbed) + noise, 0, 255))
    return np.stack(channels, axis=-1).astype(np.uint8)
