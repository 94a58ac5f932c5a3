"""Read how an H&E image is aligned to a platform's coordinates."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from img2gene._errors import Img2GeneError, listing

logger = logging.getLogger(__name__)

# Columns of the keypoints that Xenium Explorer exports: pixels of the morphology image, and of the aligned image. Its
# matrix has the same direction: kb.10xgenomics.com/hc/en-us/articles/35386990499853
_FIXED, _MOVING = ("fixedX", "fixedY"), ("alignmentX", "alignmentY")
_LARGEST_STRETCH = 0.1
_NOTABLE_STRETCH = 0.02
# A landmark that is two cells away was likely set on another place.
_NOTABLE_ERROR_UM = 20.0
_MOST_OUTSIDE = 0.5
_FINEST_UM = 0.15


def read_alignment(alignment: Any, unit_um: float, what: str) -> np.ndarray:
    """Read the map (3, 3) from pixels of the image to units of the platform.

    ``alignment`` is a matrix (3, 3), or a CSV file with one, or with keypoints. A unit of the platform has ``unit_um`` µm.
    """
    if isinstance(alignment, Path):
        alignment = _read_file(alignment, unit_um)
    matrix = np.asarray(alignment, dtype=float)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.allclose(matrix[2], [0, 0, 1]):
        raise Img2GeneError(
            f"The {what} is no affine matrix (3, 3) with the last row 0, 0, 1: shape {matrix.shape}, {matrix.tolist()}."
        )
    sizes = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if not sizes.min() > 0 or sizes.max() / sizes.min() - 1 > _LARGEST_STRETCH:
        raise Img2GeneError(
            f"The {what} stretches the image unevenly ({sizes.max():.4g} and {sizes.min():.4g} units per pixel), which no scan "
            "does. Check its keypoints."
        )
    if sizes.max() / sizes.min() - 1 > _NOTABLE_STRETCH:
        logger.warning("the %s stretches the image by %.3g %%", what, 100 * (sizes.max() / sizes.min() - 1))
    return matrix


def _read_file(path: Path, unit_um: float) -> np.ndarray:
    import pandas as pd

    try:
        with path.open() as file:
            first = file.readline()
        if _FIXED[0] in first:
            return _fit(pd.read_csv(path), path, unit_um)
        return pd.read_csv(path, header=None).to_numpy(dtype=float)
    except Img2GeneError:
        raise
    except (OSError, ValueError) as error:
        raise Img2GeneError(
            f"alignment={str(path)!r} cannot be read ({error}). Expected a CSV file with a matrix of 3 × 3 numbers, or with "
            f"keypoints in the columns {listing([*_FIXED, *_MOVING])}."
        ) from error


def _fit(points: Any, path: Path, unit_um: float) -> np.ndarray:
    """Fit an affine map to keypoints by least squares."""
    lacking = [name for name in (*_FIXED, *_MOVING) if name not in points]
    if lacking:
        raise Img2GeneError(f"{path}: columns {listing(lacking)} not found (available: {listing(points.columns)}).")
    fixed, moving = points[list(_FIXED)].to_numpy(float), points[list(_MOVING)].to_numpy(float)
    design = np.column_stack([moving, np.ones(len(moving))])
    if not np.isfinite(design).all() or np.linalg.matrix_rank(design - [0, 0, 0]) < 3:
        raise Img2GeneError(f"{path}: three keypoints that do not lie in one line are needed; it has {len(points)}.")
    fit = np.linalg.lstsq(design, fixed, rcond=None)[0]
    errors = np.linalg.norm(design @ fit - fixed, axis=1) * unit_um
    if errors.max() > _NOTABLE_ERROR_UM:
        logger.warning(
            "%s: keypoint %d is %.0f µm away from where the others place it",
            path,
            int(errors.argmax()) + 1,
            errors.max(),
        )
    return np.vstack([fit.T, [0, 0, 1]])


def pixel_size(matrix: np.ndarray) -> float:
    """Return units of the platform per pixel of the image."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))


def to_pixels(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Map places (n, 2) of the platform to columns and rows of the image."""
    inverse = np.linalg.inv(matrix)
    return xy @ inverse[:2, :2].T + inverse[:2, 2]


def need_alignment(alignment: Any) -> Any:
    """Return the alignment; raise if there is none, and say how to make one."""
    if alignment is None:
        raise Img2GeneError(
            "alignment=None: how the H&E image lies on the run is unknown, and cells would get patches of other places. Find at least "
            "three places in both images, for instance in QuPath or napari, write their positions to a CSV file with the columns "
            "fixedX, fixedY (in the run) and alignmentX, alignmentY (in the H&E image), and pass the file as `alignment=`."
        )
    return alignment


def check_direction(matrix: np.ndarray, places: np.ndarray, shape: tuple[int, ...], unit_um: float) -> None:
    """Refuse a matrix that places most cells outside of the image, while its inverse, or a matrix in µm, does not.

    ``places`` (n, 2) are in units of the platform, as the target of ``matrix``; a unit has ``unit_um`` µm.
    """
    known = places[np.isfinite(places).all(axis=1)]
    scale = np.diag([1 / unit_um, 1 / unit_um, 1.0])
    placed, turned, in_um = (
        _share_inside(to_pixels(one, known), shape) for one in (matrix, np.linalg.inv(matrix), scale @ matrix)
    )
    # A crop at the corner of the run holds whatever is drawn towards it, but no scan has pixels of a tenth of a micron.
    is_fine = pixel_size(matrix) * unit_um < _FINEST_UM
    if placed >= _MOST_OUTSIDE or max(turned, in_um if is_fine else 0.0) <= _MOST_OUTSIDE:
        return
    before = f"The alignment of the H&E image places {placed:.0%} of the cells on it, and "
    if is_fine and in_um > turned:
        raise Img2GeneError(
            f"{before}{in_um:.0%} if it leads to µm. Pass the way to pixels of the run, of {unit_um:g} µm: "
            f"`alignment=np.diag([{1 / unit_um:.6g}, {1 / unit_um:.6g}, 1]) @ matrix`."
        )
    raise Img2GeneError(
        f"{before}its inverse {turned:.0%}, so it leads from the run to the image. Pass the way from pixels of the image to the run: "
        "`alignment=np.linalg.inv(matrix)`, or keypoints with fixed and moving exchanged."
    )


def _share_inside(xy: np.ndarray, shape: tuple[int, ...]) -> float:
    return float(np.all((xy >= 0) & (xy < (shape[1], shape[0])), axis=1).mean()) if len(xy) else 0.0


def outlines_to_pixels(matrix: np.ndarray, outlines: Any) -> Any:
    """Map outlines of the platform to pixels of the image."""
    (a, b, dx), (c, d, dy), _ = np.linalg.inv(matrix)
    return outlines.affine_transform([a, b, c, d, dx, dy])
