"""Expression as pictures: spots rasterised on a grid of their pitch, and the structural similarity of such maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.metrics._blocks import columns, per_gene, spread

_WINDOW = 7
_K1, _K2 = 0.01, 0.03
# Spots of square lattices then lie at a quarter of a cell, those of hexagonal ones at a quarter or at three: never at an edge.
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
        """Grid that spots at ``positions`` (n_spots, 2: row, column) lie on."""
        places = np.asarray(positions, dtype=np.float64)
        if places.ndim != 2 or places.shape[1] != 2 or not np.isfinite(places).all():
            raise Img2GeneError(f"Expected finite positions (n_spots, 2: row, column), got shape {places.shape}.")
        if not len(places):
            return cls((0, 0), np.empty(0, dtype=np.int64))
        index = np.floor((places - places.min(axis=0)) / pitch(places) + _PHASE).astype(np.int64)
        height, width = (int(number) for number in index.max(axis=0) + 1)
        if height * width > _MAX_CELLS_PER_SPOT * len(places):
            raise Img2GeneError(
                f"{len(places)} spots at a pitch of {pitch(places):g} would lie on {height} x {width} cells: the positions "
                "are not those of one section."
            )
        return cls((height, width), index[:, 0] * width + index[:, 1])

    @property
    def counts(self) -> np.ndarray:
        """Spots in each cell, int (rows, columns)."""
        return np.bincount(self.cells, minlength=self.shape[0] * self.shape[1]).reshape(self.shape)

    def means(self, values: np.ndarray) -> np.ndarray:
        """Mean of ``values`` (n_genes, n_spots) in each cell, (n_genes, rows, columns); 0 in empty cells."""
        found = np.zeros((len(values), self.shape[0] * self.shape[1]))
        counts = self.counts.ravel()
        if (counts < 2).all():
            found[:, self.cells] = values
        else:
            order = np.argsort(self.cells, kind="stable")
            filled, first = np.unique(self.cells[order], return_index=True)
            found[:, filled] = np.add.reduceat(values[:, order], first, axis=1) / counts[filled]
        return found.reshape(len(values), *self.shape)


def pitch(positions: np.ndarray) -> float:
    """Distance between neighbouring spots: the median over all pairs that are about as near as a spot's two nearest."""
    from scipy.spatial import cKDTree

    places = np.unique(positions, axis=0)
    if len(places) < 2:
        return 1.0
    distances = cKDTree(places).query(places, k=min(7, len(places)))[0][:, 1:]
    # The two nearest are neighbours even at corners, but where spots lie off their lattice they are the nearer ones.
    near = np.median(distances[:, :2])
    return float(np.median(distances[distances < _NEIGHBOR * near]))


def rasterize(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Maps of expression: the spots of a section as pixels of a grid of their pitch.

    A pixel is as wide as neighbouring spots are apart (in the median) and holds the mean of the spots in it. On a hexagonal lattice, whose rows are nearer to each other than its spots, two rows meet in one row of pixels
    out of six or seven.

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
    (given,) = columns(values)
    grid = _grid_of(given, positions)
    found = np.full((given.shape[1], *grid.shape), np.nan)
    filled = grid.counts > 0
    found[:, filled] = grid.means(np.array(given.T, dtype=np.float64, order="C"))[:, filled]
    return np.moveaxis(found, 0, -1)


def ssim(truth: np.ndarray, predicted: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Structural similarity of the measured and the predicted map of each gene in one section.

    SSIM = mean over windows of (2 μ_y μ_ŷ + C₁)(2 σ_yŷ + C₂) / ((μ_y² + μ_ŷ² + C₁)(σ_y² + σ_ŷ² + C₂)), C₁ = (.01 L)²,
    C₂ = (.03 L)², from −1 to 1. Maps are those of :func:`img2gene.metrics.rasterize`; windows are 7 × 7 pixels, all weighted
    alike, with sample (co)variances; L is the range of labels and predictions of the gene together. On a rectangle full of spots
    this equals ``skimage.metrics.structural_similarity`` with its defaults. Elsewhere only tissue counts: pixels without
    a spot are left out of the windows, and windows of which less than half holds spots are left out of the mean.

    Parameters
    ----------
    truth, predicted
        (n_spots, n_genes) of one section, or (n_spots,) for one gene.
    positions
        (n_spots, 2: row, column) in any unit that is the same in both directions.

    Returns
    -------
    float64 (n_genes,); NaN where the labels are constant, anything is NaN, or no window fits on the tissue, which has to be seven
    spots wide. A constant prediction has an SSIM, near 0 where the labels vary. Where a gene is 0 in both maps its windows count
    1: compare SSIM between models, not between genes.

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
        # Also of those with NaN, and of constant ones, whose range may be 0.
        extent[np.isnan(spread(first))] = np.nan
        return _similarity(grid.means(first), grid.means(second), extent, counts, used)

    # Half as many genes in a block, for the many maps that are held at a time.
    return per_gene(run, one, two, values_per_gene=2 * grid.shape[0] * grid.shape[1])


def _similarity(
    one: np.ndarray, two: np.ndarray, extent: np.ndarray, counts: np.ndarray, used: np.ndarray
) -> np.ndarray:
    """Mean SSIM of maps (n_genes, rows, columns) over the windows in use; ``counts`` are their pixels with spots."""
    # Windows that are not in use are computed, too, as picking the others takes longer; one pixel has no covariance.
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
    found = (2 * shared + c1) / (power + c1)
    found *= 2 * covariance(one * two, shared) + c2
    found /= covariance(one**2 + two**2, power) + c2
    return np.einsum("grc,rc->g", found, used / used.sum())


def _window_sums(maps: np.ndarray) -> np.ndarray:
    """Sums over the windows that lie within maps (n, rows, columns)."""
    for axis in (2, 1):
        length = maps.shape[axis] - _WINDOW + 1
        maps = sum(maps[(slice(None),) * axis + (slice(i, i + length),)] for i in range(_WINDOW))  # type: ignore[assignment]
    return maps


def _grid_of(values: np.ndarray, positions: np.ndarray) -> Grid:
    grid = Grid.of(positions)
    if len(grid.cells) != len(values):
        raise Img2GeneError(f"{len(grid.cells)} positions for {len(values)} spots.")
    return grid
