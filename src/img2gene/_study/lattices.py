"""Measure the arrays of Visium (hexagonal) and Visium HD (square), and recognise what is neither."""

from __future__ import annotations

import numpy as np
import pandas as pd

VISIUM_PITCH_UM = 100.0
VISIUM_SPOT_UM = 55.0
# Space Ranger's `spot_diameter_fullres` is 64.8–69.8 µm on real sections, although the printed spots have 55 µm.
DIAMETER_ERROR = (0.75, 0.95)
SPACE_RANGER_UM = 65.0
# Scanners and lattices agree within 2 % on real sections.
AGREEMENT = 0.03
# Fits on real Visium sections deviate by less than 1 %; a square grid has a ratio of 1 instead of √3.
_TOLERANCE = 0.05
# Positions in whole pixels move bins of 2 µm by less than a tenth of their side.
_LARGEST_SHIFT = 0.15
# Larger samples take minutes and show nothing more.
_SAMPLE = 100_000
_MAX_FITS = 5
_ARRAY = ["array_row", "array_col"]
# From a spot of the hexagonal array to the next row, and to the next column, in units of the pitch.
_HEX_STEPS = np.array([np.sqrt(3) / 2, 0.5])


def array_positions(obs: pd.DataFrame, rows: np.ndarray) -> np.ndarray | None:
    """Read ``array_row`` and ``array_col`` of the rows, float (n, 2); None if they are absent or no numbers."""
    if not set(_ARRAY) <= set(obs.columns):
        return None
    grid = obs[_ARRAY].iloc[rows].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    return grid if np.isfinite(grid).all() else None


def hexagonal_pitch(grid: np.ndarray, centers: np.ndarray) -> float | None:
    """Measure the distance of neighbouring spots of a hexagonal Visium array; None for any other array.

    The lattice is exact. Space Ranger's ``spot_diameter_fullres`` corresponds to about 65 µm although the printed spots
    have 55 µm, so microns per pixel derived from it and 55 µm would be 15 % too small.

    Parameters
    ----------
    grid
        float (n, 2): ``array_row`` and ``array_col`` of the spots.
    centers
        float (n, 2): row and column of the spot centres in pixels.
    """
    # Only the hexagonal array leaves every second (row, column) empty, but thinned square bins can do so, too.
    return _fitted_pitch(grid, centers, _HEX_STEPS) if has_visium_parity(grid) else None


def is_mirrored(grid: np.ndarray, xy: np.ndarray) -> bool:
    """Check whether a hexagonal array lies on its image as in a mirror, as swapped columns and rows would place it.

    ``xy`` float (n, 2) are column and row of the spot centres in pixels. Turned arrays are not mirrored.
    """
    if hexagonal_pitch(grid, xy) is None:
        return False
    fit = np.linalg.lstsq(np.column_stack([grid, np.ones(len(grid))]), xy, rcond=None)[0]
    # Rows of the array run down the image, which is its second axis, and columns to the right.
    return bool(np.linalg.det(fit[:2]) > 0)


def square_pitch(grid: np.ndarray | None, centers: np.ndarray, side: float) -> float | None:
    """Measure the distance of neighbouring bins of a square array; None for any other array.

    Parameters
    ----------
    grid
        float (n, 2): ``array_row`` and ``array_col`` of the bins; None if they are unknown.
    centers
        float (n, 2): row and column of the bin centres in pixels.
    side
        Expected distance in pixels. Without ``grid`` only bins at this distance show the array.
    """
    return _fitted_pitch(grid, centers, np.ones(2)) if grid is not None else _neighbour_pitch(centers, side)


def possible_visium_pitches(grid: np.ndarray | None, centers: np.ndarray) -> list[float]:
    """Estimate the distance of neighbouring Visium spots where it cannot be proved that the array is hexagonal.

    Spots in one line, without array positions, or with ones that do not fit, can lie on a hexagonal array without showing
    it. NaN means that they show no distance at all. The list is empty if the spots do not lie on a hexagonal array.
    """
    pitches = []
    if grid is not None and has_visium_parity(grid) and _is_line(grid):
        places = grid * _HEX_STEPS
        spread, length = (float(((xy - xy.mean(axis=0)) ** 2).sum()) for xy in (places, centers))
        pitches.append(float(np.sqrt(length / spread)) if min(spread, length) > 0 else float("nan"))
    # Columns may be swapped or numbered in another way, so places are looked at in any case.
    nearest = _hexagonal_neighbours(centers)
    if nearest is not None:
        # Spots in one column lie two rows apart.
        pitches += [nearest, nearest / np.sqrt(3)] if _is_straight(centers) else [nearest]
    return pitches


def nearest_distance(places: np.ndarray) -> float | None:
    """Return the median distance of places (n, 2) to their nearest neighbour; None for fewer than two places.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene._study.lattices import nearest_distance
    >>> nearest_distance(np.array([[0.0, 0.0], [0.0, 3.0], [4.0, 0.0], [0.0, 0.0]]))
    3.0
    """
    from scipy.spatial import cKDTree

    # Coincident places count once.
    distinct = np.unique(places, axis=0)
    return float(np.median(cKDTree(distinct).query(distinct, k=2)[0][:, 1])) if len(distinct) > 1 else None


def diameter_doubt(grid: np.ndarray | None, centers: np.ndarray, spot_px: float, spot_um: float) -> str:
    """Say why spots of ``spot_px`` pixels may not have ``spot_um`` µm; empty without a doubt.

    Visium spots have 55 µm, but their diameter in pixels comes from Space Ranger, and corresponds to about 65 µm.
    ``grid`` and ``centers`` are as in :func:`square_pitch`.
    """
    # Without any distance, only the diameter can tell Visium spots from others.
    ratios = {
        pitch: spot_um / spot_px * pitch / VISIUM_PITCH_UM if np.isfinite(pitch) else spot_um / SPACE_RANGER_UM
        for pitch in possible_visium_pitches(grid, centers)
    }
    pitch = next((pitch for pitch, ratio in ratios.items() if DIAMETER_ERROR[0] < ratio < DIAMETER_ERROR[1]), None)
    if pitch is None:
        return ""
    reason = (
        f"but if these are Visium spots, 100 µm apart, it is {VISIUM_PITCH_UM / pitch:.4g}: they lie in one line, or have no "
        "`array_row` and `array_col` that fit their places, so the lattice cannot decide"
        if np.isfinite(pitch)
        else f"which {len(centers)} spots are too few to check"
    )
    return (
        f"spot_um={spot_um:g} gives {spot_um / spot_px:.4g} µm per pixel, {reason}. Visium spots have 55 µm, but the diameter "
        f"that Space Ranger writes (`spot_diameter_fullres`) corresponds to about {SPACE_RANGER_UM:g} µm"
    )


def has_visium_parity(grid: np.ndarray) -> bool:
    """Check whether array positions leave every second place empty, as those of a hexagonal array do."""
    return bool(np.isfinite(grid).all()) and len(np.unique(grid.sum(axis=1) % 2)) <= 1


def _is_line(grid: np.ndarray) -> bool:
    """Check whether spots lie in one line, or are one spot, and so do not show both steps of an array."""
    centred = grid - grid.mean(axis=0)
    return bool(np.linalg.matrix_rank(centred.T @ centred) < 2)


def _is_straight(centers: np.ndarray) -> bool:
    """Check whether places lie on a straight line, up to rounding."""
    spread = np.linalg.svd(centers - centers.mean(axis=0), compute_uv=False)
    return bool(len(spread) < 2 or spread[1] <= 0.01 * spread[0])


def _fitted_pitch(grid: np.ndarray, centers: np.ndarray, steps: np.ndarray) -> float | None:
    """Fit positions of an array to pixels, and return its pitch; None if the array is skewed, stretched or irregular.

    ``steps`` (2,) are the distances of neighbouring rows and columns in units of the pitch. Up to a tenth of the spots
    may lie elsewhere.
    """
    if len(grid) < 3 or not np.isfinite(grid).all():
        return None
    design, kept = np.column_stack([grid, np.ones(len(grid))]), np.arange(len(grid))
    # Spots that lie far away pull the first fits towards them.
    for _ in range(_MAX_FITS):
        if _is_line(grid[kept]):
            return None
        fit = np.linalg.lstsq(design[kept], centers[kept], rcond=None)[0]
        distances = np.linalg.norm(design @ fit - centers, axis=1)
        pitch = _regular_pitch(fit, distances[kept], steps)
        if pitch is not None:
            return pitch
        kept = np.argsort(distances, kind="stable")[: len(grid) - len(grid) // 10]
    return None


def _regular_pitch(fit: np.ndarray, distances: np.ndarray, steps: np.ndarray) -> float | None:
    """Return the pitch of a fitted array; None if it is skewed, stretched or irregular."""
    lengths = np.linalg.norm(fit[:2], axis=1)
    pitches = lengths / steps
    pitch = float(pitches.mean())
    if not pitch > 0 or abs(pitches[0] / pitches[1] - 1) > _TOLERANCE:
        return None
    skew = abs(fit[0] @ fit[1]) / lengths.prod()
    error = np.sqrt((distances**2).mean()) / pitch
    return pitch if max(skew, error) <= _TOLERANCE else None


def _neighbour_pitch(centers: np.ndarray, side: float) -> float | None:
    """Measure the pitch of a square array, however it is turned, from bins that touch."""
    vectors = _near_vectors(centers, 2.5 * side)
    touching = vectors[np.abs(np.abs(vectors) / side - 1) <= AGREEMENT + _rounding(side)]
    if not len(touching):
        return None
    # The fourth power is the same for the four directions of a square array.
    angle = np.angle(((touching / np.abs(touching)) ** 4).mean())
    turned = touching * np.exp(-0.25j * angle)
    quarter = np.rint(np.angle(turned) / (np.pi / 2))
    pitch = float(np.abs((turned * np.exp(-0.5j * np.pi * quarter)).mean()))
    steps = vectors * np.exp(-0.25j * angle) / pitch
    shifts = np.abs(steps - (np.rint(steps.real) + 1j * np.rint(steps.imag)))
    has_both_directions = len(np.unique(quarter % 2)) == 2
    return pitch if has_both_directions and shifts.max() <= _LARGEST_SHIFT + _rounding(side) else None


def _rounding(side: float) -> float:
    """Return the share of a side by which two positions in whole pixels can be off."""
    return min(0.15, 1 / side)


def _hexagonal_neighbours(centers: np.ndarray) -> float | None:
    """Return the distance of nearest neighbours if all lie in directions of a hexagonal array, NaN without neighbours."""
    places = np.unique(_sample(centers), axis=0)
    pitch = nearest_distance(places)
    if pitch is None:
        return float("nan")
    vectors = _near_vectors(places, 1.3 * pitch)
    # The sixth power is the same for the six directions of a hexagonal array.
    order = abs(((vectors / np.abs(vectors)) ** 6).mean())
    # Single spots may lie elsewhere.
    return pitch if order > 0.9 and np.quantile(np.abs(np.abs(vectors) / pitch - 1), 0.95) <= _TOLERANCE else None


def _near_vectors(centers: np.ndarray, reach: float) -> np.ndarray:
    """Return the vectors between all pairs of places within ``reach``, complex (n_pairs,), both ways."""
    from scipy.spatial import cKDTree

    places = _sample(centers)
    pairs = cKDTree(places).query_pairs(reach, output_type="ndarray")
    vectors = (places[pairs[:, 1]] - places[pairs[:, 0]]) @ np.array([1j, 1])
    return np.concatenate([vectors, -vectors])


def _sample(centers: np.ndarray) -> np.ndarray:
    """Take the places nearest to the middle, so that neighbours stay together."""
    if len(centers) <= _SAMPLE:
        return centers
    distances = ((centers - np.median(centers, axis=0)) ** 2).sum(axis=1)
    return centers[np.argpartition(distances, _SAMPLE)[:_SAMPLE]]
