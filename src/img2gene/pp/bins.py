"""Join bins or cells to pseudo-spots of a chosen side."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, Problems
from img2gene._study.entrance import open_table
from img2gene._study.expression import in_tissue, layer_problems, library_size
from img2gene._study.geometry import Geometry, locate
from img2gene._study.lattices import array_positions, square_pitch
from img2gene._study.microns import resolve_mpp

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from img2gene._study.study import Study

logger = logging.getLogger(__name__)

_UNEVEN = 0.05

JOINED = "n_joined"


class _Grid(NamedTuple):
    """Squares of one region: which square each row lies in, and the centres of the squares in pixels."""

    rows: np.ndarray
    square: np.ndarray
    centers: np.ndarray


def bin_to(
    sdata: SpatialData, um: float, *, mpp: float | None = None, min_joined: int = 1, table_key: str = "table"
) -> SpatialData:
    """Join the bins or cells of each section to square pseudo-spots, such as 55 µm for models of Visium.

    Parameters
    ----------
    sdata
        Study with raw counts of bins or cells.
    um
        Side of the squares in µm.
    mpp
        Microns per pixel of the images; by default the known ones, as in :func:`img2gene.pp.extract_patches`.
    min_joined
        Least number of bins or cells in a pseudo-spot; squares with fewer are left out.
    table_key
        Table of the bins or cells.

    Returns
    -------
    SpatialData, a new study with the same images. In ``tables["table"]``, ``X`` sums the counts of the bins or cells whose
    centre lies in a square, and ``obs["library_size"]`` sums their library sizes, so counts of genes that were filtered
    stay in it. ``obs["n_joined"]`` is their number. Positions are the centres of the squares. Squares of bins follow the
    rows and columns of the array, so two by two bins of 8 µm are one of 16 µm; squares of cells begin at the top left
    corner of the image. Bins off the tissue are left out. Columns of ``obs`` with one value in each section stay.

    Raises
    ------
    Img2GeneError
        X holds no raw counts, squares would be smaller than the bins, microns per pixel are unknown, or no square has
        ``min_joined`` bins or cells.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> coarse = ig.pp.bin_to(sdata, 500)
    >>> bool(coarse["table"].X.sum() == sdata["table"].X.sum())
    True
    """
    check = Arguments()
    um, mpp = check.number("um", um, above=0), check.number("mpp", mpp, above=0, optional=True)
    min_joined = check.whole("min_joined", min_joined, 1)
    study = open_table(check, sdata, table_key, with_windows=False)
    check.messages += layer_problems(study.table, None, study.name)
    check.raise_all()
    geometries = locate(study)
    microns = resolve_mpp(study, geometries, mpp=mpp, spot_um=None)
    problems, grids = Problems(), {}
    for geometry in geometries:
        with problems.collect():
            grids[geometry.region] = _grid(study, geometry, microns[geometry.region], um)
    problems.raise_all()
    parts = [_join(study, geometry, grids[geometry.region], min_joined) for geometry in geometries]
    kept = [(geometry, part) for geometry, part in zip(geometries, parts, strict=True) if part.n_obs]
    if not kept:
        raise Img2GeneError(f"No square of {um:g} µm has min_joined={min_joined} bins or cells. Choose a larger `um`.")
    return _assemble(study, kept, microns, um)


def _grid(study: Study, geometry: Geometry, mpp: float, um: float) -> _Grid:
    """Find the square of each row on tissue: along the array of bins, else along the image."""
    rows = geometry.rows
    array = array_positions(study.table.obs, rows)
    side = geometry.spot_px * mpp
    pitch = None if array is None else square_pitch(array, geometry.centers, geometry.spot_px)
    if pitch is not None and array is not None:
        side = pitch * mpp
        if abs(um / side - round(um / side)) > _UNEVEN:
            logger.warning(
                "`%s`: squares of %g µm hold different numbers of bins of %.3g µm. Choose a multiple of it",
                geometry.region,
                um,
                side,
            )
        design = np.column_stack([array, np.ones(len(array))])
        fit = np.linalg.lstsq(design, geometry.centers, rcond=None)[0]
        # Bins have whole numbers, so their edges lie half a bin from them.
        places, per_um, shift = (array + 0.5) * side, fit[:2] / side, fit[2] - 0.5 * fit[:2].sum(axis=0)
    else:
        places, per_um, shift = geometry.centers * mpp, np.eye(2) / mpp, np.zeros(2)
    if um < side * 0.999:
        raise Img2GeneError(
            f"um={um:g} is smaller than the bins or cells of `{geometry.region}` ({side:.4g} µm), which cannot be divided."
        )
    # Rounding must not move a bin over an edge that it touches.
    index = np.floor(places / um + 1e-6).astype(np.int64)
    kept = in_tissue(study.table)[rows]
    sections = pd.factorize(study.sections[rows[kept]], sort=True)[0]
    squares, square = np.unique(np.column_stack([sections, index[kept]]), axis=0, return_inverse=True)
    centers = (squares[:, 1:] + 0.5) * um @ per_um + shift
    return _Grid(rows[kept], square.ravel(), centers)


def _join(study: Study, geometry: Geometry, grid: _Grid, min_joined: int) -> AnnData:
    """Sum the counts of each square."""
    import anndata as ad
    import scipy.sparse as sp

    table, n_squares = study.table, len(grid.centers)
    member = sp.csr_matrix(
        (np.ones(len(grid.rows), dtype=np.float64), (grid.square, np.arange(len(grid.rows)))),
        shape=(n_squares, len(grid.rows)),
    )
    counts = sp.csr_matrix(table.X[grid.rows], dtype=np.float64)
    sizes = np.asarray(member @ library_size(table)[grid.rows]).ravel()
    n_joined = np.asarray(member.sum(axis=1)).ravel().astype(np.int64)
    first = np.full(n_squares, -1)
    first[grid.square[::-1]] = np.arange(len(grid.rows))[::-1]
    obs = pd.DataFrame(
        {_schema.SECTION: study.sections[grid.rows[first]], _schema.LIBRARY_SIZE: sizes, JOINED: n_joined},
        index=[f"{geometry.region}_{number}" for number in range(n_squares)],
    )
    for name in _constant_columns(study, [*obs.columns, *_own_columns(study)]):
        obs[name] = table.obs[name].iloc[grid.rows[first]].to_numpy()
    part = ad.AnnData(sp.csr_matrix(member @ counts, dtype=np.float32), obs=obs, var=table.var.copy())
    part.obsm["spatial"] = grid.centers[:, ::-1].copy()
    return part[n_joined >= min_joined].copy()


def _own_columns(study: Study) -> list[str]:
    """List columns that tell the bins apart, say where they lie, or describe their patches."""
    attrs = study.table.uns["spatialdata_attrs"]
    places = ["region", "spot_id", "in_tissue", "array_row", "array_col"]
    patches = [_schema.PATCH_TISSUE, _schema.PATCH_INSIDE, _schema.PATCH_READABLE]
    return [attrs["region_key"], attrs["instance_key"], *places, *patches]


def _constant_columns(study: Study, besides: list[str]) -> list[str]:
    """List columns of obs with one value in each section, such as the patient."""
    groups = study.table.obs.groupby(np.asarray(study.sections), observed=True)
    return [
        name
        for name in study.table.obs
        if name not in besides and bool((groups[name].nunique(dropna=False) <= 1).all())
    ]


def _assemble(study: Study, parts: list[tuple[Geometry, AnnData]], microns: dict[str, float], um: float) -> SpatialData:
    """Build the study of all pseudo-spots."""
    import anndata as ad
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import get_transformation

    shapes, records = {}, {}
    for geometry, part in parts:
        region, mpp = f"{geometry.region}_{um:g}um", microns[geometry.region]
        part.obs["region"], part.obs["spot_id"] = region, np.arange(part.n_obs)
        shapes[region] = ShapesModel.parse(
            part.obsm["spatial"],
            geometry=0,
            radius=np.full(part.n_obs, um / mpp / 2),
            index=part.obs["spot_id"].to_numpy(),
            transformations=get_transformation(study.sdata[geometry.image_key], get_all=True),
        )
        name = "_".join(sorted(set(part.obs[_schema.SECTION])))
        records[name] = {"mpp": mpp, "spot_um": float(um), "image": geometry.image_key, "region": region}
    table = ad.concat([part for _, part in parts], join="outer", merge="first")
    for column in (_schema.SECTION, "region"):
        table.obs[column] = pd.Categorical(table.obs[column])
    _schema.write_json(table, "sections", records)
    parsed = TableModel.parse(table, region=list(shapes), region_key="region", instance_key="spot_id")
    images = {geometry.image_key: study.sdata.images[geometry.image_key] for geometry, _ in parts}
    logger.info("joined %d bins or cells to %d pseudo-spots of %g µm", study.n_obs, table.n_obs, um)
    return SpatialData(images=images, shapes=shapes, tables={"table": parsed})
