"""Turn what a platform measured into a study: unique genes, places on the image, library sizes over everything."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError, listing
from img2gene._study.expression import count_problems
from img2gene._study.geometry import equivalent_diameter
from img2gene.io._file_microns import warn_of_other_microns
from img2gene.io.sections import build_section

if TYPE_CHECKING:
    import dask.array as da
    import pandas as pd
    from anndata import AnnData
    from geopandas import GeoSeries
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

GENE_IDS = "gene_ids"
_ENSEMBL = r"^ENS[A-Z]*G\d{6,}(\.\d+)?$"
SYMBOLS = ("feature_name", "gene_symbols", "gene_symbol", "gene_name", "gene_names", "symbol")
# Names of probes and codewords that measure no gene: CosMx, MERSCOPE, and Xenium.
_CONTROLS = (
    *("negprb", "negative", "systemcontrol", "falsecode"),
    "blank-",
    *("negcontrol", "antisense_", "blank_", "unassignedcodeword", "deprecatedcodeword", "intergenic_region"),
)
# Microscopes of pathology scan at .25 to .5 µm per px; at 1 µm, nuclei have some 8 px.
COARSE_UM = 1.0


def build_study(
    table: AnnData,
    xy: np.ndarray,
    image: np.ndarray | da.Array,
    *,
    section: str,
    patient: str | None,
    mpp: float,
    spot_um: float | None = None,
    outlines: GeoSeries | None = None,
    file: Any = None,
) -> SpatialData:
    """Build the study of one section, with circles or, if given, outlines of cells as its region.

    Parameters
    ----------
    table
        Raw counts of everything that was measured, in the order of ``xy``.
    xy
        float (n_obs, 2): columns and rows in pixels of ``image``.
    image
        uint8 (height, width, 3).
    section, patient, mpp, spot_um
        As for :func:`img2gene.io.build_section`. ``spot_um`` is not needed with outlines.
    outlines
        Polygons of the cells in pixels of ``image``, in the order of ``xy``.
    file
        File of ``image``; its microns per pixel are compared with ``mpp``.
    """
    import scipy.sparse as sp

    name_genes(table)
    table.X = sp.csr_matrix(table.X, dtype=np.float32)
    _check_counts(table, section)
    inside = mark_inside(xy, image, section, table)
    if not inside.all():
        table, xy = table[inside].copy(), xy[inside]
        outlines = None if outlines is None else outlines[inside]
    if outlines is not None:
        spot_um = equivalent_diameter(outlines) * mpp
    if not spot_um:
        raise Img2GeneError(f"{section}: the size of the spots or cells is unknown.")
    sdata = build_section(image, xy, table, section=section, patient=patient, mpp=mpp, spot_um=spot_um)
    if outlines is not None:
        _outline(sdata, outlines, section)
    warn_of_other_microns(file, mpp, section)
    if mpp > COARSE_UM:
        logger.warning(
            "section %s: its image has %.3g µm per px, which is too coarse to show nuclei. Pass the full-resolution image as "
            "`image=`",
            section,
            mpp,
        )
    return sdata


def _check_counts(table: AnnData, section: str) -> None:
    """Refuse counts that are cut or damaged; values that were corrected or normalised are named in a warning."""
    problems = count_problems(table.X, f"section {section}: X")
    if not problems:
        return
    lowest = table.X.data.min(initial=0)
    if not (np.isfinite(table.X.data).all() and lowest >= 0):
        bad = ~np.isfinite(table.X.data) | (table.X.data < 0)
        rows = np.unique(np.repeat(np.arange(table.n_obs), np.diff(table.X.indptr))[bad])
        raise Img2GeneError(
            f"{' '.join(problems)} These are in {len(rows)} spots or cells ({listing(table.obs_names[rows], 5)}): the file of "
            "counts may be cut. Download or export it again, or remove these rows."
        )
    logger.warning("%s", " ".join(problems))


def mark_inside(xy: np.ndarray, image: np.ndarray | da.Array, section: str, table: AnnData) -> np.ndarray:
    """Mark the rows that lie on the image, bool (n_obs,); name the others, and raise without any on it."""
    height, width = image.shape[:2]
    _check_finite(xy, table, section)
    inside: np.ndarray = np.all((xy >= 0) & (xy < (width, height)), axis=1)
    if not inside.any():
        (left, top), (right, bottom) = xy.min(axis=0), xy.max(axis=0)
        raise Img2GeneError(
            f"{section}: nothing that was measured lies on the image ({height} × {width} px; positions span columns "
            f"{left:.0f} to {right:.0f}, rows {top:.0f} to {bottom:.0f}). Check that the image and its alignment belong to "
            "this section."
        )
    if not inside.all():
        logger.warning(
            "section %s: left out %d of %d spots or cells, which lie outside the image",
            section,
            (~inside).sum(),
            len(inside),
        )
    return inside


def _check_finite(xy: np.ndarray, table: AnnData, source: object) -> None:
    """Refuse rows whose place is no number."""
    lost = table.obs_names[~np.isfinite(xy).all(axis=1)]
    if len(lost):
        raise Img2GeneError(
            f"{source}: {len(lost)} of {table.n_obs} spots or cells have no position ({listing(lost, 5)}). Complete the "
            "positions, or remove these rows from the counts."
        )


def _outline(sdata: SpatialData, outlines: GeoSeries, section: str) -> None:
    """Replace the circles of a section by outlines."""
    from geopandas import GeoDataFrame
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    region = f"{section}_spots"
    index = sdata.shapes[region].index
    frame = GeoDataFrame(geometry=np.asarray(outlines.geometry), index=index)
    del sdata.shapes[region]
    sdata.shapes[region] = ShapesModel.parse(frame, transformations={section: Identity()})


def name_genes(table: AnnData) -> None:
    """Name genes by unique symbols, and keep their Ensembl identifiers in ``var["gene_ids"]``.

    Of genes with one symbol, the first keeps it, and the others get a number, as in scanpy. Genes without a symbol
    keep their identifier.
    """
    names = table.var_names.to_series().astype(str)
    symbols = symbols_of(table)
    if symbols is not None:
        if GENE_IDS not in table.var:
            table.var[GENE_IDS] = names.to_numpy()
        texts = symbols.astype("string").str.strip()
        table.var_names = texts.where(texts.notna() & (texts != ""), names).astype(str).to_numpy()
        logger.info("genes are named by var[%r]; var[%r] keeps their identifiers", symbols.name, GENE_IDS)
    twice = table.var_names[table.var_names.duplicated()].unique()
    if len(twice):
        logger.info("%d symbols belong to several genes (%s), which were numbered", len(twice), listing(twice, 5))
        table.var_names = _numbered(table.var_names)
    table.var.index.name = None


def without_controls(table: AnnData, source: object) -> AnnData:
    """Leave out the control probes of CosMx, MERSCOPE and Xenium, which measure no gene and are known by their names."""
    controls = [is_control(name) for name in table.var_names]
    if not any(controls):
        return table
    logger.info("%s: left out %d control probes (%s)", source, sum(controls), listing(table.var_names[controls], 3))
    return table[:, [not control for control in controls]].copy()


def is_control(name: object) -> bool:
    """Check whether a feature is a control probe or a codeword that measures no gene, by its name."""
    return str(name).lower().startswith(_CONTROLS)


def symbols_of(table: AnnData) -> pd.Series | None:
    """Return the column with the symbols of genes that are named by Ensembl identifiers; None for other names."""
    names = table.var_names.to_series().astype(str)
    if not len(names) or names.str.match(_ENSEMBL).mean() <= 0.5:
        return None
    return next((table.var[key] for key in SYMBOLS if key in table.var), None)


def _numbered(names: pd.Index) -> list[str]:
    """Add -1, -2, … to the second, third, … gene of a name, past names that genes already have."""
    taken, unique = set(names), []
    counts: dict[str, int] = {}
    for name in names:
        if name not in counts:
            counts[name] = 0
            unique.append(name)
            continue
        while True:
            counts[name] += 1
            candidate = f"{name}-{counts[name]}"
            if candidate not in taken:
                break
        taken.add(candidate)
        unique.append(candidate)
    return unique


def join_positions(
    table: AnnData, frame: pd.DataFrame, columns: tuple[str, str], source: object
) -> tuple[AnnData, np.ndarray]:
    """Find the place of each row: return the rows that have one, and their places, float (n_obs, 2).

    ``frame`` is indexed by the names of the rows; ``columns`` hold x and y, and the other columns go to ``obs``. Rows
    without a place are named in a warning.
    """
    import pandas as pd

    listed = table.obs_names.isin(frame.index)
    absent = table.obs_names[~listed]
    if not listed.any():
        raise Img2GeneError(
            f"{source} lists no position of any of the {table.n_obs} counted spots or cells ({listing(absent, 3)}; it has "
            f"{listing(frame.index, 3)}). The files belong to different sections."
        )
    if not frame.index.is_unique:
        twice = frame.index[frame.index.duplicated()].unique()
        raise Img2GeneError(
            f"{source} lists {len(twice)} spots or cells twice ({listing(twice, 3)}), as where it holds several slides. Give "
            "each section a folder and files of its own."
        )
    if len(absent):
        logger.warning(
            "left out %d of %d spots or cells, of which %s lists no position: %s",
            len(absent),
            table.n_obs,
            source,
            listing(absent, 3),
        )
        table = table[listed].copy()
    chosen = frame.loc[table.obs_names]
    for name in chosen.columns.difference([*columns, *_schema_columns()], sort=False):
        table.obs[name] = chosen[name].to_numpy()
    places = chosen[list(columns)].apply(pd.to_numeric, errors="coerce")
    no_number = places.isna() & chosen[list(columns)].notna()
    if no_number.any(axis=None):
        shown = chosen[list(columns)].to_numpy()[no_number.to_numpy()]
        raise Img2GeneError(f"{source}: {listing(columns)} hold values that are no numbers ({listing(shown, 3)}).")
    xy = places.to_numpy(dtype=float)
    _check_finite(xy, table, source)
    return table, xy


def _schema_columns() -> list[Any]:
    """List columns that the study writes, whatever the files hold under their names."""
    return ["region", "spot_id", _schema.SECTION, _schema.PATIENT, _schema.LIBRARY_SIZE]
