"""Lay fine tiles over the spots of a study, and say which spot each of them lies in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError, listing
from img2gene._study.geometry import region_matrix
from img2gene._study.lattices import nearest_distance
from img2gene._study.study import Study

if TYPE_CHECKING:
    from spatialdata import SpatialData

_MOST_TILES = 2_000_000
# Tiles between spots are kept up to this distance, in distances of neighbouring spots: lattices leave no larger gaps.
_GAP = 0.75


@dataclass(frozen=True)
class FineTiles:
    """Square tiles over the spots of one region.

    Attributes
    ----------
    region, image
        Names of the spots' region and of its image.
    centers
        float (n, 2): row and column of each tile in pixels of the scale-0 image.
    side_px, mpp
        Side of a tile in pixels, and microns per pixel.
    rows
        int (m,): rows of the table on tissue.
    inside
        int (n,): which of ``rows`` each tile lies in; −1 between spots.
    places
        float (m, 2): row and column of the spots.
    """

    region: str
    image: str
    centers: np.ndarray
    side_px: float
    mpp: float
    rows: np.ndarray
    inside: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, study: Study, region: str, kept: np.ndarray, resolution_um: float) -> FineTiles:
        """Lay tiles over the spots ``kept``, bool (n_obs,), of a region."""
        entry = study.patches["regions"][region]
        mpp, rows = entry.get("mpp"), study.regions[region]
        rows = rows[kept[rows]]
        if not mpp:
            raise Img2GeneError(
                f"Microns per pixel of `{region}` are not recorded: run `img2gene.pp.extract_patches` again."
            )
        side = resolution_um / mpp
        outlines = _outlines(study, region, entry["image"], rows)
        centers = _grid(outlines, side, region)
        inside = _containing(outlines, centers)
        places = study.centers[rows]
        near = (inside >= 0) | (_distances(centers, places) <= _GAP * _spacing(places))
        tiles = cls(region, entry["image"], centers[near], side, mpp, rows, inside[near], places)
        tiles._check(study, resolution_um, outlines)
        return tiles

    def _check(self, study: Study, resolution_um: float, outlines: Any) -> None:
        """Refuse tiles so coarse that a spot holds none."""
        empty = np.setdiff1d(np.arange(len(self.rows)), self.inside)
        if len(empty):
            import shapely

            width = float(np.sqrt(np.median(shapely.area(outlines)))) * self.mpp
            raise Img2GeneError(
                f"resolution_um={resolution_um:g}: {len(empty)} spots of `{self.region}` "
                f"({listing(study.table.obs_names[self.rows[empty]], 3)}) hold the centre of no tile, as spots are about "
                f"{width:.3g} µm wide. Pass at most {width / 2:.2g}."
            )

    def nearest(self, k: int) -> np.ndarray:
        """The ``k`` nearest spots of each tile, int (n, k), nearest first; fewer where there are fewer."""
        from scipy.spatial import cKDTree

        k = min(k, len(self.places))
        return np.asarray(cKDTree(self.places).query(self.centers, k=k)[1]).reshape(len(self.centers), k)


def tiled(study: Study, tiles: list[FineTiles], key: str, resolution_um: float) -> SpatialData:
    """Make an object with the images, the squares of the tiles, and a table of them without genes."""
    from spatialdata import SpatialData

    images = {tile.image: study.sdata.images[tile.image] for tile in tiles}
    names = {tile.region: f"{key}_squares" if len(tiles) == 1 else f"{key}_{tile.region}_squares" for tile in tiles}
    shapes = {names[tile.region]: _squares(study, tile) for tile in tiles}
    return SpatialData(images=images, shapes=shapes, tables={key: _table(study, tiles, names, resolution_um)})


def _table(study: Study, tiles: list[FineTiles], names: dict[str, str], resolution_um: float) -> Any:
    import anndata as ad
    from spatialdata.models import TableModel

    frames: list[pd.DataFrame] = []
    records: dict[str, Any] = {}
    for tile in tiles:
        # Tiles between the spots belong to the section and the patient of the nearest one.
        owner = tile.rows[np.where(tile.inside >= 0, tile.inside, tile.nearest(1)[:, 0])]
        frame = pd.DataFrame({"region": names[tile.region], "tile_id": np.arange(len(owner))})
        frame[_schema.SECTION] = study.sections[owner]
        if study.patients is not None:
            frame[_schema.PATIENT] = study.patients[owner]
        spots = study.table.obs_names.to_numpy(dtype=str)[owner]
        frame["spot"] = np.where(tile.inside >= 0, spots, "")
        frame.index = pd.Index([f"{tile.region}_tile{i}" for i in range(len(owner))])
        frames.append(frame)
        record = {"mpp": tile.mpp, "spot_um": resolution_um, "image": tile.image, "region": names[tile.region]}
        records |= {str(section): record for section in np.unique(study.sections[owner])}
    obs = pd.concat(frames)
    for column in ("region", _schema.SECTION, _schema.PATIENT):
        if column in obs:
            obs[column] = pd.Categorical(obs[column])
    table = ad.AnnData(np.zeros((len(obs), 0), dtype=np.float32), obs=obs)
    table.obsm["spatial"] = np.concatenate([tile.centers[:, ::-1] for tile in tiles])
    _schema.write_json(table, "sections", records)
    return TableModel.parse(table, region=list(names.values()), region_key="region", instance_key="tile_id")


def _squares(study: Study, tiles: FineTiles) -> Any:
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    y, x = (tiles.centers - tiles.side_px / 2).T
    frame = gpd.GeoDataFrame(geometry=shapely.box(x, y, x + tiles.side_px, y + tiles.side_px))
    image = study.sdata.images[tiles.image]
    return ShapesModel.parse(frame, transformations=dict(get_transformation(image, get_all=True)))


def _outlines(study: Study, region: str, image: str, rows: np.ndarray) -> np.ndarray:
    """Outlines of spots as polygons (x, y) in pixels of the image."""
    import shapely

    if region not in study.sdata.shapes:
        raise Img2GeneError(
            f"`{region}` is no shapes element, so the outlines of its spots are not known. `resolution_um` needs circles or "
            "polygons: `spatialdata.to_polygons` makes them of labels."
        )
    shapes, key = study.sdata.shapes[region], study.table.uns["spatialdata_attrs"]["instance_key"]
    shapes = shapes.iloc[shapes.index.get_indexer(study.table.obs[key].to_numpy()[rows])]
    outlines = np.asarray(shapes.geometry)
    if "radius" in shapes:
        outlines = shapely.buffer(outlines, shapes["radius"].to_numpy(), quad_segs=16)
    matrix = region_matrix(study.sdata, region, image)
    return shapely.transform(outlines, lambda xy: xy @ matrix[:2, :2].T + matrix[:2, 2])


def _grid(outlines: np.ndarray, side: float, region: str) -> np.ndarray:
    """Centres (n, 2: row, column) of tiles from the top left corner of all outlines, so that square bins are divided evenly."""
    import shapely

    x0, y0, x1, y1 = shapely.total_bounds(outlines)
    # Rounding must not add a row beyond the last bin.
    counts = [int(np.ceil(round((last - first) / side, 6))) for first, last in ((y0, y1), (x0, x1))]
    if counts[0] * counts[1] > _MOST_TILES:
        raise Img2GeneError(
            f"resolution_um: {counts[0] * counts[1]:,} tiles over `{region}`, and at most {_MOST_TILES:,} are predicted at a time. "
            "Choose coarser tiles, or a part of the section."
        )
    rows, columns = np.meshgrid(*(side * (np.arange(n) + 0.5) for n in counts), indexing="ij")
    return np.column_stack([rows.ravel() + y0, columns.ravel() + x0])


def _containing(outlines: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Number of the outline that contains each centre, int (n,); −1 for none, the first of several."""
    import shapely

    tree = shapely.STRtree(outlines)
    tile, spot = tree.query(shapely.points(centers[:, ::-1]), predicate="intersects")
    inside = np.full(len(centers), len(outlines))
    np.minimum.at(inside, tile, spot)
    return np.where(inside < len(outlines), inside, -1)


def _distances(centers: np.ndarray, places: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    return np.asarray(cKDTree(places).query(centers)[0])


def _spacing(places: np.ndarray) -> float:
    """Median distance between neighbouring spots."""
    return nearest_distance(places) or 0.0
