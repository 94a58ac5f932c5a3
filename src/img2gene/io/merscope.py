"""Reader for MERSCOPE sections with an aligned H&E image."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError
from img2gene.io._alignment import pixel_size, read_alignment, to_pixels
from img2gene.io._folders import Folder, check_folder, section_name
from img2gene.io._measured import build_study, name_genes
from img2gene.io._pictures import open_picture

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_PLATFORM = "MERSCOPE of Vizgen"
_NEEDED = ("cell_by_gene.csv", "cell_metadata.csv", "images/micron_to_mosaic_pixel_transform.csv")


def read_merscope(
    path: str | Path,
    *,
    image: str | Path | np.ndarray,
    alignment: str | Path | np.ndarray,
    section: str | None = None,
    patient: str | None = None,
    cell_um: float = 10.0,
) -> SpatialData:
    """Read the cells of one MERSCOPE section, placed on an H&E image that is aligned with it.

    Each cell gets a patch of its own. For pseudo-spots, go on with :func:`img2gene.pp.bin_to`.

    Parameters
    ----------
    path
        Folder of one region, with ``cell_by_gene.csv``, ``cell_metadata.csv`` and ``images``.
    image
        H&E image of the section: a file, or pixels as uint8 (height, width, 3). The mosaics of the run show fluorescence.
    alignment
        Matrix (3, 3) from pixels of the H&E image to µm of the run, a CSV file with it, or one with keypoints
        (``fixedX``, ``fixedY`` in µm; ``alignmentX``, ``alignmentY`` in pixels of the image).
    section
        Name of the section; by default that of the folder.
    patient
        Donor of the section. Give all sections of one donor the same name, because splits keep patients apart by it.
    cell_um
        Diameter of the circles that stand for cells, in µm.

    Returns
    -------
    SpatialData as from :func:`img2gene.io.build_section`, in pixels of the H&E image. ``tables["table"].X`` holds raw
    counts of genes without blanks, one row per cell; ``obs["library_size"]`` sums the genes of the panel.

    Raises
    ------
    Img2GeneError
        The folder has an unknown layout (the message says what was looked for and found), the alignment is no map of
        one scan, or no cell lies on the image.

    Examples
    --------
    >>> import img2gene as ig
    >>> cells = ig.io.read_merscope("region_0", image="he.tif", alignment="matrix.csv", patient="P1")  # doctest: +SKIP
    """
    check = Arguments()
    place = check_folder(check, path)
    section = section_name(check, section, place)
    if not hasattr(image, "dtype"):
        image = check.path("image", image)
    if not isinstance(alignment, np.ndarray):
        alignment = check.path("alignment", alignment)
    patient = check.label("patient", patient, optional=True)
    cell_um = check.number("cell_um", cell_um, above=0)
    check.raise_all()
    lacking = [name for name in _NEEDED if not (place / name).is_file()]
    if lacking:
        raise Folder(place, _PLATFORM).unknown(lacking)
    matrix = read_alignment(alignment, 1.0, "alignment of the H&E image")
    pixels = open_picture(image)
    table = _read_cells(place)
    xy = to_pixels(matrix, np.asarray(table.obsm["spatial"], dtype=float))
    return build_study(table, xy, pixels, section=section, patient=patient, mpp=pixel_size(matrix), spot_um=cell_um)


def _read_cells(path: Path) -> AnnData:
    """Read counts and places in µm with spatialdata-io."""
    import spatialdata_io
    from anndata import AnnData

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The table is annotating")
            warnings.filterwarnings("ignore", "Converting `region_key")
            warnings.filterwarnings("ignore", ".*dtype.*", FutureWarning)
            sdata = spatialdata_io.merscope(
                path, z_layers=None, transcripts=False, cells_boundaries=False, mosaic_images=False
            )
    except Exception as error:
        raise Img2GeneError(f"{path} cannot be read as a region of {_PLATFORM} ({error!r}).") from error
    read = sdata["table"]
    name_genes(read)
    # Names of files say nothing about the donor or the section.
    obs = read.obs.drop(columns=["region", "slide", "dataset_id", "cells_region", "EntityID"], errors="ignore")
    return AnnData(read.X, obs=obs, var=read.var, obsm={"spatial": read.obsm["spatial"]})
