"""Reader for Xenium sections with an aligned H&E image."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, listing
from img2gene.io._alignment import check_direction, outlines_to_pixels, pixel_size, read_alignment, to_pixels
from img2gene.io._folders import Folder, check_folder, section_name
from img2gene.io._measured import build_study, join_positions, name_genes, without_controls
from img2gene.io._pictures import open_picture
from img2gene.io._space_ranger import read_matrix

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoSeries
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

_PLATFORM = "Xenium Onboard Analysis 1 to 4"
_SPECS, _MATRIX = "experiment.xenium", "cell_feature_matrix.h5"
_CELLS = ("cells.parquet", "cells.csv.gz", "cells.csv")
# spatialdata-io reads these, and outlines with them.
_WHOLE_RUN = (_SPECS, _MATRIX, "cells.parquet", "cells.zarr.zip")
_X, _Y = "x_centroid", "y_centroid"
_OUTLINES = "cell_boundaries.parquet"
_IMAGES = ("he_image.ome.tif",)
_ALIGNMENTS = ("he_imagealignment.csv", "he_alignment.csv", "he_image_alignment.csv")
# Parts of a run that no study needs.
_UNREAD = (
    "nucleus_boundaries",
    "cells_labels",
    "nucleus_labels",
    "transcripts",
    "morphology_mip",
    "morphology_focus",
    "aligned_images",
)
_HOW = (
    "Align it in Xenium Explorer (Image > Add image, then set keypoints), export the alignment, and pass the file as "
    "`alignment=`: a matrix of 3 × 3 numbers, or keypoints"
)


def read_xenium(
    path: str | Path,
    *,
    image: str | Path | np.ndarray | None = None,
    alignment: str | Path | np.ndarray | None = None,
    section: str | None = None,
    patient: str | None = None,
    outlines: bool = True,
) -> SpatialData:
    """Read the cells of one Xenium section, placed on its H&E image.

    Each cell gets a patch of its own. For pseudo-spots, go on with :func:`img2gene.pp.bin_to`.

    Parameters
    ----------
    path
        Folder of the Xenium analyzer or of Xenium Ranger. Of a run that was downloaded in parts, ``experiment.xenium``,
        ``cell_feature_matrix.h5``, and ``cells.parquet`` or ``cells.csv.gz`` are enough. Outlines also need
        ``cell_boundaries.parquet`` and ``cells.zarr.zip``.
    image
        H&E image of the section, scanned after the run: a file, or pixels as uint8 (height, width, 3). Large TIFF files
        stay on disk. By default ``<run>_he_image.ome.tif`` in the folder.
    alignment
        How the image lies on the run, as Xenium Explorer exports it: a CSV file with the matrix (3, 3) from pixels of the
        H&E image to pixels of the morphology image, a CSV file with keypoints (``fixedX``, ``fixedY``, ``alignmentX``,
        ``alignmentY``), or the matrix. By default ``<run>_he_imagealignment.csv`` in the folder. For an image that was
        resampled to the morphology image, pass ``np.eye(3)``.
    section
        Name of the section; by default that of the folder.
    patient
        Donor of the section. Give all sections of one donor the same name, because splits keep patients apart by it.
    outlines
        Keep the outlines of the cells. If False, or without their files, cells are circles of their median area.

    Returns
    -------
    SpatialData as from :func:`img2gene.io.build_section`, in pixels of the H&E image. ``tables["table"].X`` holds raw
    counts of genes, without control probes, one row per cell; ``obs["library_size"]`` sums the genes of the panel. Genes
    have unique symbols, and ``var["gene_ids"]`` has their Ensembl identifiers. Cells off the image are left out.

    Raises
    ------
    Img2GeneError
        The folder has an unknown layout (the message says what was looked for and found), there is no H&E image or no
        alignment (the message says how to align), or no cell lies on the image.

    Examples
    --------
    >>> import img2gene as ig
    >>> cells = ig.io.read_xenium("run", image="he.ome.tif", alignment="matrix.csv", patient="P1")  # doctest: +SKIP
    >>> spots = ig.pp.bin_to(cells, 55)  # doctest: +SKIP
    """
    check = Arguments()
    place = check_folder(check, path)
    section = section_name(check, section, place)
    if not hasattr(image, "dtype"):
        image = check.path("image", image, optional=True)
    if not isinstance(alignment, np.ndarray):
        alignment = check.path("alignment", alignment, optional=True)
    patient = check.label("patient", patient, optional=True)
    check.flag("outlines", outlines)
    check.raise_all()
    outs = place / "outs" if (place / "outs").is_dir() else place
    folder = Folder(outs, _PLATFORM)
    specs = folder.need(_SPECS)
    folder.need(_MATRIX), folder.need(*_CELLS)
    image, alignment = _chosen(folder, image, alignment)
    unit_um = _unit(specs)
    matrix = read_alignment(alignment, unit_um, "alignment of the H&E image")
    pixels = open_picture(image)
    table, polygons = _read(folder, outlines)
    # Cells are placed in µm, and the alignment in pixels of the morphology image.
    microns = np.diag([unit_um, unit_um, 1.0]) @ matrix
    check_direction(matrix, table.obsm["spatial"] / unit_um, pixels.shape, unit_um)
    _warn_of_mirrored(matrix)
    xy = to_pixels(microns, table.obsm["spatial"])
    spot_um = 2 * np.sqrt(np.nanmedian(table.obs["cell_area"]) / np.pi)
    return build_study(
        table,
        xy,
        pixels,
        section=section,
        patient=patient,
        mpp=pixel_size(microns),
        spot_um=float(spot_um),
        file=image,
        outlines=None if polygons is None else outlines_to_pixels(microns, polygons),
    )


def _chosen(folder: Folder, image: Any, alignment: Any) -> tuple[Any, Any]:
    """Choose image and alignment: what was passed, else the files of the folder."""
    image = folder.find(*_IMAGES) if image is None else image
    if image is None:
        raise Img2GeneError(
            f"{folder.path} has no H&E image (looked for <run>_{_IMAGES[0]}); its morphology images show fluorescence. Pass the "
            f"H&E image of the section as `image=`. {_HOW}."
        )
    alignment = folder.find(*_ALIGNMENTS) if alignment is None else alignment
    if alignment is None:
        raise Img2GeneError(
            f"How the H&E image lies on {folder.path} is unknown (looked for <run>_{_ALIGNMENTS[0]}), and cells would get "
            f"patches of other places. {_HOW}. For an image that was resampled to the morphology image, pass "
            "`alignment=np.eye(3)`."
        )
    return image, alignment


def _unit(path: Path) -> float:
    """Read microns per pixel of the morphology image."""
    try:
        size = json.loads(path.read_bytes())["pixel_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Img2GeneError(f"{path} holds no pixel_size ({error!r}).") from error
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < np.inf:
        raise Img2GeneError(f"{path}: pixel_size is {size!r}; expected microns per pixel.")
    return float(size)


def _warn_of_mirrored(matrix: np.ndarray) -> None:
    """Warn of an alignment that mirrors the image, which was scanned from the side of the run."""
    if np.linalg.det(matrix[:2, :2]) < 0:
        logger.warning(
            "the alignment of the H&E image mirrors it, as keypoints with exchanged x and y would. Draw the cells on it: "
            "`img2gene.pl.patches(sdata)`"
        )


def _read(folder: Folder, outlines: bool) -> tuple[AnnData, GeoSeries | None]:
    """Read counts and places in µm, and outlines in µm, if there are any."""
    if all((folder.path / name).is_file() for name in _WHOLE_RUN):
        return _read_run(folder.path, outlines)
    return _read_parts(folder, outlines), None


def _read_parts(folder: Folder, outlines: bool) -> AnnData:
    """Read counts and places in µm of a run that lacks files which spatialdata-io needs."""
    import pandas as pd

    matrix, path = folder.need(_MATRIX), folder.need(*_CELLS)
    try:
        cells = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError, EOFError) as error:
        raise Img2GeneError(f"{path} cannot be read as a table of cells ({error}).") from error
    lacking = [name for name in ("cell_id", _X, _Y, "cell_area") if name not in cells]
    if lacking:
        raise Img2GeneError(f"{path}: columns {listing(lacking)} not found (available: {listing(cells.columns)}).")
    if outlines:
        logger.warning(
            "%s lacks some of %s under these names, so cells are circles",
            folder.path,
            listing(_WHOLE_RUN + (_OUTLINES,)),
        )
    read = read_matrix(matrix)
    name_genes(read)
    # Files of early versions hold names as bytes.
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in cells["cell_id"]]
    cells.index = pd.Index(names)
    table, places = join_positions(read, cells.drop(columns="cell_id"), (_X, _Y), path)
    table.obsm["spatial"] = places
    return without_controls(table, folder.path)


def _read_run(path: Path, outlines: bool) -> tuple[Any, GeoSeries | None]:
    """Read the cells with spatialdata-io: counts, places in µm, and outlines in µm, if there are any."""
    import spatialdata_io
    from anndata import AnnData

    outlines = outlines and (path / _OUTLINES).is_file()
    try:
        with warnings.catch_warnings():
            # Symbols are numbered below, and regions become categories.
            warnings.filterwarnings("ignore", "Variable names are not unique")
            warnings.filterwarnings("ignore", "Converting `region_key")
            # Neither labels nor circles are read.
            warnings.filterwarnings("ignore", "The table is annotating")
            sdata = spatialdata_io.xenium(path, cells_boundaries=outlines, **dict.fromkeys(_UNREAD, False))
    except Exception as error:
        raise Img2GeneError(f"{path} cannot be read as a run of {_PLATFORM} ({error!r}).") from error
    read = sdata["table"]
    name_genes(read)
    obs = read.obs.drop(columns=["region", "cell_labels"], errors="ignore")
    obs.index = read.obs["cell_id"].astype(str).to_numpy()
    table = AnnData(read.X, obs=obs, var=read.var, obsm={"spatial": read.obsm["spatial"]})
    table = without_controls(table, path)
    if not outlines:
        return table, None
    polygons = sdata["cell_boundaries"].geometry
    polygons.index = polygons.index.astype(str)
    return table, _all_outlines(table, polygons, path)


def _all_outlines(table: AnnData, polygons: GeoSeries, path: Path) -> GeoSeries:
    """Order outlines as the cells; those that the run leaves out, of the smallest cells, become circles."""
    from geopandas import GeoSeries
    from shapely import Point

    absent = table.obs_names[~table.obs_names.isin(polygons.index)]
    if len(absent):
        logger.warning("%s: %d cells have no outline, and are circles (%s)", path, len(absent), listing(absent, 3))
    outlines = dict(zip(polygons.index, polygons, strict=True))
    area = table.obs["cell_area"].astype(float)
    radii = np.sqrt(area.fillna(area.median()).to_numpy() / np.pi)
    for name, place, radius in zip(table.obs_names, table.obsm["spatial"], radii, strict=True):
        if name not in outlines:
            outlines[name] = Point(*place).buffer(radius)
    return GeoSeries([outlines[name] for name in table.obs_names], index=table.obs_names)
