"""Rasterise spots on a grid of their pitch, and compare such maps by their structural similarity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.metrics._blocks import columns, per_gene, spread
from img2gene.metrics._inputs import place_array

_WINDOW = 7
_K1, _K2 = 0.01, 0.03
# Spots of square lattices lie at a quarter of a cell, and of hexagonal ones at a quarter or three: never at an edge.
_PHASE = 0.25
_MAX_CELLS_PER_SPOT = 1000
# Below √2, the diagonal of a square lattice
_NEIGHBOR = 1.25


@dataclass(frozen=True)
class Grid:
    """Cells of the pitch of the spots.

    Attributes
    ----------
    shape
        Rows and columns.
    cells
        int (n_spots,): number of the cell of each spot, row by row.
    """

    shape: tuple[int, int]
    cells: np.ndarray

    @classmethod
    def of(cls, positions: np.ndarray) -> Grid:
        """Lay a grid over spots at ``positions`` (n_spots, 2: row, column)."""
        places = place_array(positions)
        if not len(places):
            return cls((0, 0), np.empty(0, dtype=np.int64))
        index = np.floor((places - places.min(axis=0)) / pitch(places) + _PHASE).astype(np.int64)
        height, width = (int(number) for number in index.max(axis=0) + 1)
        if height * width > _MAX_CELLS_PER_SPOT * len(places):
            raise Img2GeneError(
                f"{len(places)} spots at a pitch of {pitch(places):g} would lie on {height} x {width} cells. Pass the "
                "positions of one section, in the same unit for rows and columns."
            )
        return cls((height, width), index[:, 0] * width + index[:, 1])

    @property
    def counts(self) -> np.ndarray:
        """Spots in each cell, int (rows, columns)."""
        return np.bincount(self.cells, minlength=self.shape[0] * self.shape[1]).reshape(self.shape)

    def means(self, values: np.ndarray) -> np.ndarray:
        """Mean of ``values`` (n_genes, n_spots) in each cell, (n_genes, rows, columns); 0 in empty cells."""
        maps = np.zeros((len(values), self.shape[0] * self.shape[1]))
        counts = self.counts.ravel()
        if (counts < 2).all():
            maps[:, self.cells] = values
        else:
            order = np.argsort(self.cells, kind="stable")
            filled, first = np.unique(self.cells[order], return_index=True)
            maps[:, filled] = np.add.reduceat(values[:, order], first, axis=1) / counts[filled]
        return maps.reshape(len(values), *self.shape)


def pitch(positions: np.ndarray) -> float:
    """Measure the distance between neighbouring spots: the median over pairs about as near as a spot's two nearest."""
    from scipy.spatial import cKDTree

    places = np.unique(positions, axis=0)
    if len(places) < 2:
        return 1.0
    distances = cKDTree(places).query(places, k=min(7, len(places)))[0][:, 1:]
    # The two nearest are neighbours even at corners, but their median is too small where spots lie off their lattice.
    near = np.median(distances[:, :2])
    return float(np.median(distances[distances < _NEIGHBOR * near]))


def rasterize(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Draw the spots of a section as pixels of a grid of their pitch.

    A pixel is as wide as the median distance between neighbouring spots, and holds the mean of the spots in it. The
    rows of a hexagonal lattice are nearer to each other than its spots: every sixth or seventh row of pixels holds two
    of them.

    Parameters
    ----------
    values
        (n_spots, n_genes), or (n_spots,) for one gene.
    positions
        (n_spots, 2: row, column) in any unit that is the same in both directions.

    Returns
    -------
    float64 (rows, columns, n_genes); NaN where there is no spot.

    Raises
    ------
    Img2GeneError
        Positions that are not finite, not as many as values, or scattered over more than 1,000 pixels a spot.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import rasterize
    >>> rasterize(np.array([5.0, 6.0, 7.0]), np.array([[0, 0], [0, 100], [100, 0]]))[..., 0]
    array([[ 5.,  6.],
           [ 7., nan]])
    """
    (matrix,) = columns(values)
    grid = _grid_of(matrix, positions)
    maps = np.full((matrix.shape[1], *grid.shape), np.nan)
    filled = grid.counts > 0
    maps[:, filled] = grid.means(np.array(matrix.T, dtype=np.float64, order="C"))[:, filled]
    return np.moveaxis(maps, 0, -1)


def ssim(truth: np.ndarray, predicted: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Compute the structural similarity of the measured and the predicted map of each gene in one section.

    SSIM = mean over windows of (2 μ_y μ_ŷ + C₁)(2 σ_yŷ + C₂) / ((μ_y² + μ_ŷ² + C₁)(σ_y² + σ_ŷ² + C₂)), C₁ = (.01 L)²,
    C₂ = (.03 L)², from −1 to 1. Maps are drawn by :func:`img2gene.metrics.rasterize`. Windows have 7 × 7 pixels of
    equal weight, and sample (co)variances. L is the range of the measured and predicted values of the gene together. On
    a rectangle full of spots this equals ``skimage.metrics.structural_similarity`` with its defaults. Elsewhere only
    tissue counts: windows leave out pixels without a spot, and the mean leaves out windows that are less than half
    filled.

    Parameters
    ----------
    truth, predicted
        (n_spots, n_genes) of one section, or (n_spots,) for one gene.
    positions
        (n_spots, 2: row, column) in any unit that is the same in both directions.

    Returns
    -------
    float64 (n_genes,); NaN where the measured values are constant, anything is NaN, or no window fits on the tissue,
    which must be seven spots wide. A constant prediction has an SSIM, near 0 where the measured values vary. Windows
    where a gene is 0 in both maps count as 1: compare SSIM between models, not between genes.

    Raises
    ------
    Img2GeneError
        As :func:`img2gene.metrics.rasterize`.

    References
    ----------
    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
    Transactions on Image Processing 2004.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import ssim
    >>> positions = np.indices((8, 9)).reshape(2, -1).T
    >>> truth = positions[:, 1].astype(float)
    >>> ssim(truth, truth, positions), ssim(truth, truth[::-1], positions).round(2)
    (array([1.]), array([-0.91]))
    """
    one, two = columns(truth, predicted)
    grid = _grid_of(one, positions)
    if min(grid.shape) < _WINDOW:
        return np.full(one.shape[1], np.nan)
    counts = _window_sums((grid.counts > 0)[None].astype(np.float64))[0]
    used = counts >= _WINDOW**2 / 2
    if not used.any():
        return np.full(one.shape[1], np.nan)

    def run(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        extent = np.maximum(first.max(axis=1), second.max(axis=1)) - np.minimum(first.min(axis=1), second.min(axis=1))
        # NaN for genes that hold NaN, and for constant ones, whose range may be 0.
        extent[np.isnan(spread(first))] = np.nan
        return _similarity(grid.means(first), grid.means(second), extent, counts, used)

    # Half as many genes in a block, as many maps are held at the same time.
    return per_gene(run, one, two, values_per_gene=2 * grid.shape[0] * grid.shape[1])


def _similarity(
    one: np.ndarray, two: np.ndarray, extent: np.ndarray, counts: np.ndarray, used: np.ndarray
) -> np.ndarray:
    """Mean SSIM of maps (n_genes, rows, columns) over the windows in use; ``counts`` are their pixels with spots."""
    # Unused windows are computed, too, as selecting the others takes longer. One pixel has no covariance.
    n = np.maximum(counts, 2)

    def covariance(products: np.ndarray, means: np.ndarray) -> np.ndarray:
        sums = _window_sums(products)
        sums /= n
        sums -= means
        sums *= n / (n - 1)
        return sums

    one_mean, two_mean = (_window_sums(values) / n for values in (one, two))
    shared = one_mean * two_mean
    power = one_mean**2 + two_mean**2
    c1, c2 = ((k * extent[:, None, None]) ** 2 for k in (_K1, _K2))
    similarity = (2 * shared + c1) / (power + c1)
    similarity *= 2 * covariance(one * two, shared) + c2
    similarity /= covariance(one**2 + two**2, power) + c2
    return np.einsum("grc,rc->g", similarity, used / used.sum())


def _window_sums(maps: np.ndarray) -> np.ndarray:
    """Sums over the windows that lie within maps (n, rows, columns)."""
    for axis in (2, 1):
        length = maps.shape[axis] - _WINDOW + 1
        maps = sum(maps[(slice(None),) * axis + (slice(i, i + length),)] for i in range(_WINDOW))  # type: ignore[assignment]
    return maps


def _grid_of(values: np.ndarray, positions: np.ndarray) -> Grid:
    grid = Grid.of(positions)
    if len(grid.cells) != len(values):
        raise Img2GeneError(f"{len(grid.cells)} positions for {len(values)} spots: pass one per spot.")
    return grid
