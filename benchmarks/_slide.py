"""Made-up slides of any size on disk: texture that compresses like tissue, and spots on a Visium lattice."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.ndimage import gaussian_filter
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity

MPP = 0.5
CHUNK = 1024
_CENTRES_PX = 200


def write_slide(path: Path, side: int, n_spots: int) -> SpatialData:
    """Write a slide of ``side`` × ``side`` pixels to a zarr store, chunk by chunk, and open it."""
    centres = _lattice(side, n_spots)
    spots = ShapesModel.parse(centres, geometry=0, radius=27.5 / MPP, transformations={"slide": Identity()})
    image = Image2DModel.parse(
        texture(side),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={"slide": Identity()},
    )
    SpatialData(images={"image": image}, shapes={"spots": spots}, tables={"table": _table(n_spots)}).write(path)
    return read_zarr(path)


def _lattice(side: int, n_spots: int) -> np.ndarray:
    """Hexagonal centres (n, 2: x, y), the rows in the middle of the slide."""
    per_row = side // _CENTRES_PX - 2
    rows, columns = np.divmod(np.arange(n_spots), per_row)
    x = (columns + 1 + 0.5 * (rows % 2)) * _CENTRES_PX
    y = (rows - rows.max() / 2) * _CENTRES_PX * np.sqrt(0.75) + side / 2
    if y.min() < 0:
        raise SystemExit(f"{n_spots} spots do not fit on {side} pixels.")
    return np.column_stack([x, y])


def texture(side: int) -> da.Array:
    rng = np.random.default_rng(0)
    coarse = gaussian_filter(rng.normal(size=(CHUNK, CHUNK)), 12, mode="wrap")
    fine = gaussian_filter(rng.normal(size=(CHUNK, CHUNK)), 1.5, mode="wrap")
    level = coarse / coarse.std() + fine / fine.std()
    stain = np.array([[25.0], [40.0], [20.0]])[..., None]
    tile = np.clip(np.array([200, 140, 190])[:, None, None] - stain * level, 0, 255).astype(np.uint8)
    sizes = (CHUNK,) * (side // CHUNK) + ((side % CHUNK,) if side % CHUNK else ())

    def chunk(block_info: dict) -> np.ndarray:
        _, row, column = block_info[None]["chunk-location"]
        _, height, width = block_info[None]["chunk-shape"]
        return np.roll(tile, (37 * row, 61 * column), axis=(1, 2))[:, :height, :width]

    return da.map_blocks(chunk, dtype=np.uint8, chunks=((3,), sizes, sizes), meta=np.empty((0, 0, 0), np.uint8))


def _table(n_spots: int) -> ad.AnnData:
    obs = pd.DataFrame(
        {"region": pd.Categorical(["spots"] * n_spots), "spot_id": np.arange(n_spots)},
        index=[f"spot{number}" for number in range(n_spots)],
    )
    counts = sp.csr_matrix(np.ones((n_spots, 1), dtype=np.float32))
    table = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=["gene"]))
    return TableModel.parse(table, region="spots", region_key="region", instance_key="spot_id")
