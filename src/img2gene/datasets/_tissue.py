"""Draw the layout of a synthetic section on a coarse grid: outline, domains, hypoxia, stain field and spots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from img2gene.datasets._genes import DOMAINS
from img2gene.datasets._parameters import PITCH_UM, SPOT_UM

# About a third of the shortest smoothing length, 25 µm, so that the coarse grid loses no structure.
STEP_UM = 8.0
SEPTUM = 0.09

_TISSUE_FRACTION = 0.54
_COMPOSITION = {
    "tumour": 0.32, "stroma": 0.28, "immune": 0.13, "adipose": 0.12, "epithelium": 0.09, "necrosis": 0.06
}  # fmt: skip
_LENGTH_UM = {"tumour": 95, "stroma": 110, "immune": 70, "adipose": 130, "epithelium": 80, "necrosis": 60}
_SOFTNESS = 0.05
_SHARE_CONCENTRATION = 60.0


@dataclass(frozen=True)
class Tissue:
    """Holds the layout of one section. All maps share a grid of ``STEP_UM`` that starts at (0, 0) µm.

    Attributes
    ----------
    outline
        (h, w), above 0 inside the tissue.
    domains
        (K, h, w) shares of ``DOMAINS``, 1 in total.
    hypoxia
        (h, w) in 0–1.
    stain
        (h, w) eosin field: mean 0 and SD 1 within the tissue, plus a constant per section.
    flow
        (h, w) stream function in µm; stromal fibres follow its contours.
    nests
        (h, w). Septa between nests of tumour run where its absolute value is below ``SEPTUM``.
    spots
        (n_spots, 2) centres as (x, y) in µm.
    array
        (n_spots, 2) row and column in the hexagonal array, numbered as Visium does.
    """

    outline: np.ndarray
    domains: np.ndarray
    hypoxia: np.ndarray
    stain: np.ndarray
    flow: np.ndarray
    nests: np.ndarray
    spots: np.ndarray
    array: np.ndarray

    @property
    def size_um(self) -> tuple[float, float]:
        """Height and width in µm."""
        height, width = self.outline.shape
        return (height - 1) * STEP_UM, (width - 1) * STEP_UM


def draw_composition(rng: np.random.Generator) -> np.ndarray:
    """Draw the shares of the domains in the sections of one patient."""
    mean = np.array([_COMPOSITION[name] for name in DOMAINS])
    share = np.maximum(rng.dirichlet(_SHARE_CONCENTRATION * mean), 0.04)
    return share / share.sum()


def draw_tissue(rng: np.random.Generator, n_spots: int, composition: np.ndarray) -> Tissue:
    """Draw a section with exactly ``n_spots`` spots inside the tissue."""
    shape = _canvas(rng, n_spots)
    outline = _outline(rng, shape)
    spots, array, outline = _place_spots(rng, outline, n_spots)
    inside = outline > 0
    hypoxia = _hypoxia(rng, shape)
    domains = _domains(rng, inside, composition, hypoxia)
    stain = smooth_field(rng, shape, 180, inside) + 0.5 * rng.standard_normal()
    nests = smooth_field(rng, shape, 42)
    return Tissue(outline, domains, hypoxia, stain, _flow(rng, shape), nests, spots, array)


def smooth_field(
    rng: np.random.Generator, shape: tuple[int, int], length_um: float, inside: np.ndarray | None = None
) -> np.ndarray:
    """Smooth white noise with a Gaussian of SD ``length_um``, then scale to mean 0 and SD 1 (within ``inside``)."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.standard_normal(shape), length_um / STEP_UM, mode="reflect", truncate=3)
    sample = field if inside is None else field[inside]
    return (field - sample.mean()) / sample.std()


def sample_field(field: np.ndarray, xy: np.ndarray, order: int = 1) -> np.ndarray:
    """Interpolate a (h, w) map at positions (x, y) in µm."""
    from scipy.ndimage import map_coordinates

    return map_coordinates(field, xy[..., ::-1].T / STEP_UM, order=order, mode="nearest").T


def spot_mean(field: np.ndarray, spots: np.ndarray) -> np.ndarray:
    """Average a (h, w) map over the disc of each spot."""
    return sample_field(field, spots[:, None, :] + _disc()).mean(axis=1)


def _disc(n: int = 61) -> np.ndarray:
    """Return ``n`` points (n, 2) in µm from the centre of a spot that cover it evenly (sunflower arrangement)."""
    index = np.arange(n)
    radius = SPOT_UM / 2 * np.sqrt((index + 0.5) / n)
    angle = index * np.pi * (3 - np.sqrt(5))
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])


def _canvas(rng: np.random.Generator, n_spots: int) -> tuple[int, int]:
    area = n_spots * PITCH_UM**2 * np.sqrt(0.75) / _TISSUE_FRACTION
    aspect = np.exp(rng.uniform(-0.15, 0.15))
    side = np.sqrt(area) + 0.4 * PITCH_UM
    return int(side / aspect / STEP_UM) + 1, int(side * aspect / STEP_UM) + 1


def _outline(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = (np.abs(x) ** 2.2 + np.abs(y) ** 2.2) ** (1 / 2.2)
    rough = 0.13 * smooth_field(rng, shape, 110) + 0.015 * smooth_field(rng, shape, 25)
    margin = np.maximum(np.maximum(np.abs(x), np.abs(y)) - 0.8, 0)
    return 1 - radius + rough - 2.5 * margin


def _place_spots(
    rng: np.random.Generator, outline: np.ndarray, n_spots: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose the ``n_spots`` lattice sites deepest in the tissue; return their positions, indices and a new outline."""
    height, width = (np.array(outline.shape) - 1) * STEP_UM
    rows, columns = int(height / (PITCH_UM * np.sqrt(0.75))) + 2, int(width / PITCH_UM) + 2
    row, column = (grid.ravel() for grid in np.indices((rows, columns)))
    column = 2 * column + row % 2
    lattice = np.column_stack([column * PITCH_UM / 2, row * PITCH_UM * np.sqrt(0.75)])
    lattice = lattice - rng.uniform(0, PITCH_UM / 2, 2)
    depth = sample_field(outline, lattice[:, None, :] + _disc()).min(axis=1)
    depth[((lattice < SPOT_UM) | (lattice > np.array([width, height]) - SPOT_UM)).any(axis=1)] = -np.inf
    # The outline is shifted at the end so that it just contains the chosen spots: every section has the same number.
    chosen = np.sort(np.argsort(-depth, kind="stable")[:n_spots])
    return lattice[chosen], np.column_stack([row, column])[chosen], outline - depth[chosen].min() + 0.01


def _hypoxia(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw a slope across the section in a random direction, bent by a smooth field, within 0–1."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.meshgrid(*(np.linspace(-1.7, 1.7, n) for n in shape), indexing="ij")
    z = 0.8 * (np.cos(angle) * x + np.sin(angle) * y) + 0.7 * smooth_field(rng, shape, 120)
    return 1 / (1 + np.exp(-1.8 * z))


def _domains(rng: np.random.Generator, inside: np.ndarray, composition: np.ndarray, hypoxia: np.ndarray) -> np.ndarray:
    fields = {name: smooth_field(rng, inside.shape, _LENGTH_UM[name], inside) for name in DOMAINS}
    # Necrosis lies in hypoxic tumour, as in tumours that outgrow their vessels.
    fields["necrosis"] = 0.6 * fields["necrosis"] + 0.7 * fields["tumour"] + 3.0 * (hypoxia - 0.5)
    return _calibrated_softmax(np.stack([fields[name] for name in DOMAINS]), inside, composition)


def _calibrated_softmax(fields: np.ndarray, inside: np.ndarray, composition: np.ndarray) -> np.ndarray:
    """Compute the softmax over domains, with offsets that make their areas within the tissue equal ``composition``."""
    offset = np.zeros(len(fields))
    within = fields[:, inside]
    for _ in range(40):
        share = _softmax((within + offset[:, None]) / _SOFTNESS).mean(axis=1)
        offset += 0.4 * np.log(composition / np.maximum(share, 1e-4))
    return _softmax((fields + offset[:, None, None]) / _SOFTNESS)


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=0))
    return weights / weights.sum(axis=0)


def _flow(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    angle = rng.uniform(0, np.pi)
    y, x = np.indices(shape) * STEP_UM
    return np.cos(angle) * x + np.sin(angle) * y + 35 * smooth_field(rng, shape, 90) + 5 * smooth_field(rng, shape, 28)
