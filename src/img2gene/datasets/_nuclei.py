"""Place the nuclei of a synthetic section and draw them."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

import numpy as np

from img2gene.datasets._genes import DOMAINS
from img2gene.datasets._structures import FatCells, Glands, jittered_lattice
from img2gene.datasets._tissue import SEPTUM, STEP_UM, Tissue, sample_field

_BATCH = 1024


@dataclass(frozen=True)
class NucleusType:
    """Describes one type of nuclei: density per mm², radius in µm, darkness as haematoxylin concentration."""

    density: float
    radius: float
    spread: float
    aspect: float
    darkness: float
    vesicular: float = 0.0
    lobes: float = 0.0


_KINDS = {
    "tumour": NucleusType(6200, 4.7, 0.22, 1.25, 0.80, vesicular=0.55, lobes=0.10),
    "stroma": NucleusType(1500, 3.1, 0.15, 3.4, 0.95),
    "immune": NucleusType(13000, 2.9, 0.08, 1.08, 1.25, lobes=0.04),
    "necrosis": NucleusType(2600, 1.5, 0.45, 1.30, 1.15, lobes=0.10),
}
_LYMPHOCYTE_DENSITY = {"stroma": 450, "epithelium": 350, "tumour": 250, "necrosis": 250}
_GHOST = NucleusType(2200, 3.8, 0.20, 1.2, 0.24, lobes=0.08)
_FAT_NUCLEUS = NucleusType(0, 2.4, 0.10, 3.2, 1.00)
_GLAND_NUCLEUS = NucleusType(0, 3.3, 0.08, 1.5, 0.85, vesicular=0.25)
_MYOEPITHELIUM = NucleusType(0, 2.2, 0.10, 3.0, 1.05)


@dataclass(frozen=True)
class Nuclei:
    """Holds centre, semi-axes (µm), angle of the long axis, and appearance, one entry per nucleus."""

    x: np.ndarray
    y: np.ndarray
    long: np.ndarray
    short: np.ndarray
    angle: np.ndarray
    darkness: np.ndarray
    vesicular: np.ndarray
    lobes: np.ndarray

    def take(self, index: np.ndarray) -> Nuclei:
        """Return the nuclei at ``index``."""
        return Nuclei(*(column[index] for column in astuple(self)))


def draw_nuclei(rng: np.random.Generator, tissue: Tissue, glands: Glands, fat: FatCells) -> Nuclei:
    """Draw all nuclei of a section.

    In every domain, hypoxia *h* changes their density by the factor 1.4 − 1.15 h and their radius by 0.85 + 0.4 h.
    """
    parts = []
    for name, kind in [*_KINDS.items(), ("necrosis", _GHOST)]:
        densities = {name: kind.density}
        if name == "immune":
            densities |= _LYMPHOCYTE_DENSITY
        if name == "stroma":
            densities["epithelium"] = kind.density
        xy = _scatter(rng, tissue, densities)
        if name == "tumour":
            xy = xy[np.abs(sample_field(tissue.nests, xy)) > 1.3 * SEPTUM]
        parts.append(_shape(rng, tissue, xy[glands.outside(xy)], kind))
    parts += [_ring(rng, glands, _GLAND_NUCLEUS, 6.0, 7.5), _ring(rng, glands, _MYOEPITHELIUM, 12.0, 17.0)]
    parts.append(_on_walls(rng, tissue, fat))
    return Nuclei(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Nuclei)))


def stamp_nuclei(nuclei: Nuclei, shape: tuple[int, int], mpp: float) -> np.ndarray:
    """Draw the haematoxylin concentration of the nuclei alone, float32 (height, width)."""
    canvas = np.zeros(shape, dtype=np.float32)
    # Nuclei of similar size share a batch, whose window fits the largest of them. One window size for all nuclei would
    # need several times the pixels.
    order = np.argsort(nuclei.long, kind="stable")
    for start in range(0, len(order), _BATCH):
        _stamp_batch(canvas, nuclei.take(order[start : start + _BATCH]), mpp)
    return canvas


def _stamp_batch(canvas: np.ndarray, nuclei: Nuclei, mpp: float) -> None:
    half = int(np.ceil(nuclei.long.max() * 1.25 / mpp)) + 1
    offset = np.arange(-half, half + 1, dtype=np.int32)
    column, row = (np.rint(centre / mpp).astype(np.int32)[:, None] + offset for centre in (nuclei.x, nuclei.y))
    dx = (column * mpp - nuclei.x[:, None]).astype(np.float32)[:, None, :]
    dy = (row * mpp - nuclei.y[:, None]).astype(np.float32)[:, :, None]
    value = _profile(dx, dy, nuclei, mpp)
    height, width = canvas.shape
    value *= ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
    flat = np.clip(row, 0, height - 1)[:, :, None] * width + np.clip(column, 0, width - 1)[:, None, :]
    ink = value > 0
    np.maximum.at(canvas.reshape(-1), flat[ink], value[ink])


def _profile(dx: np.ndarray, dy: np.ndarray, nuclei: Nuclei, mpp: float) -> np.ndarray:
    """Compute the darkness of lobed ellipses with a soft edge; vesicular ones have a pale centre and a nucleolus."""
    long, short, angle, darkness, vesicular, lobes = (
        np.asarray(column, dtype=np.float32)[:, None, None] for column in astuple(nuclei)[2:]
    )
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / long
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / short
    square = u * u + v * v
    radius = np.sqrt(square)
    # The cosine of three times the polar angle, without an arctangent per pixel.
    rim = radius + lobes * u * (4 * u * u - 3 * square) / np.maximum(square, 1e-6)
    edge = np.clip((1 - rim) * short / mpp + 0.5, 0, 1)
    pale = 1 - vesicular * np.clip(1 - square, 0, 1)
    nucleolus = vesicular * np.exp(-6 * ((u - 0.2) ** 2 + (v + 0.15) ** 2) * short)
    return edge * darkness * (pale + 0.8 * nucleolus)


def _scatter(rng: np.random.Generator, tissue: Tissue, densities: dict[str, float]) -> np.ndarray:
    """Draw positions of one type of nuclei from its density in each domain."""
    peak = 1.4 * max(densities.values())
    xy = jittered_lattice(rng, tissue.size_um, 1000 / np.sqrt(peak * 0.866), jitter=0.2)
    density = sum(value * tissue.domains[DOMAINS.index(name)] for name, value in densities.items())
    density = density * (1.4 - 1.15 * tissue.hypoxia) * (tissue.outline > 0)
    # A lattice of the highest density is thinned: nuclei then keep their distance from each other.
    return xy[rng.uniform(size=len(xy)) < sample_field(density, xy) / peak]


def _shape(rng: np.random.Generator, tissue: Tissue, xy: np.ndarray, kind: NucleusType) -> Nuclei:
    swelling = 0.85 + 0.4 * sample_field(tissue.hypoxia, xy)
    angle = rng.uniform(0, np.pi, len(xy))
    if kind.aspect > 2:
        angle = _fibre_angle(tissue, xy) + rng.normal(0, 0.25, len(xy))
    return _nuclei(rng, xy, angle, swelling, kind)


def _nuclei(
    rng: np.random.Generator, xy: np.ndarray, angle: np.ndarray, swelling: np.ndarray | float, kind: NucleusType
) -> Nuclei:
    n = len(xy)
    radius = kind.radius * swelling * np.exp(kind.spread * rng.standard_normal(n))
    stretch = np.sqrt(1 + (kind.aspect - 1) * rng.uniform(0.5, 1.5, n))
    return Nuclei(
        x=xy[:, 0],
        y=xy[:, 1],
        long=radius * stretch,
        short=radius / stretch,
        angle=angle,
        darkness=kind.darkness * np.exp(0.15 * rng.standard_normal(n)),
        vesicular=kind.vesicular * rng.uniform(0.4, 1, n),
        lobes=kind.lobes * rng.uniform(-1, 1, n),
    )


def _ring(rng: np.random.Generator, glands: Glands, kind: NucleusType, out_um: float, spacing_um: float) -> Nuclei:
    """Draw nuclei around each lumen, upright in the inner layer and flat in the outer layer."""
    radius = glands.lumen + out_um
    counts = np.rint(2 * np.pi * radius / spacing_um).astype(int)
    gland = np.repeat(np.arange(len(counts)), counts)
    turn = np.concatenate([np.arange(n) / n for n in counts] or [np.empty(0)])
    angle = 2 * np.pi * turn + rng.normal(0, 0.06, len(turn))
    reach = radius[gland] + rng.normal(0, 0.8, len(turn))
    xy = glands.xy[gland] + reach[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    return _nuclei(rng, xy, angle + (np.pi / 2 if kind.aspect > 2 else 0), 1.0, kind)


def _on_walls(rng: np.random.Generator, tissue: Tissue, fat: FatCells) -> Nuclei:
    """Draw the flat nuclei of fat cells, which lie on their walls."""
    xy, angle = fat.wall_sites()
    adipose = sample_field(tissue.domains[DOMAINS.index("adipose")], xy)
    keep = (adipose > 0.6) & (sample_field(tissue.outline, xy) > 0) & (rng.uniform(size=len(xy)) < 0.7)
    return _nuclei(rng, xy[keep], angle[keep], 1.0, _FAT_NUCLEUS)


def _fibre_angle(tissue: Tissue, xy: np.ndarray) -> np.ndarray:
    dy, dx = np.gradient(tissue.flow, STEP_UM)
    return np.arctan2(-sample_field(dx, xy), sample_field(dy, xy))
