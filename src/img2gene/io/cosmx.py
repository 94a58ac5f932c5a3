"""Reader for CosMx sections with an aligned H&E image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, listing
from img2gene.io._alignment import check_direction, need_alignment, pixel_size, read_alignment, to_pixels
from img2gene.io._folders import Folder, check_folder, section_name
from img2gene.io._measured import build_study, join_positions, without_controls
from img2gene.io._pictures import open_picture

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

_PLATFORM = "CosMx (flat files of AtoMx)"
_COUNTS = ("exprMat_file.csv", "exprMat_file.csv.gz")
_CELLS = ("metadata_file.csv", "metadata_file.csv.gz")
_X, _Y = "CenterX_global_px", "CenterY_global_px"
_KEYS = ["fov", "cell_ID"]
# https://nanostring-biostats.github.io/CosMx-Analysis-Scratch-Space/posts/flat-file-exports/flat-files-compare.html
_PIXEL_UM = 0.12028


def read_cosmx(
    path: str | Path,
    *,
    image: str | Path | np.ndarray,
    alignment: str | Path | np.ndarray,
    section: str | None = None,
    patient: str | None = None,
    pixel_um: float = _PIXEL_UM,
    cell_um: float = 10.0,
) -> SpatialData:
    """Read the cells of one CosMx section, placed on an H&E image that is aligned with it.

    Each cell gets a patch of its own. For pseudo-spots, go on with :func:`img2gene.pp.bin_to`.

    Parameters
    ----------
    path
        Folder of the flat files of one slide: ``<run>_exprMat_file.csv`` and ``<run>_metadata_file.csv``, which may be
        gzipped.
    image
        H&E image of the section: a file, or pixels as uint8 (height, width, 3). The images of the run show fluorescence.
    alignment
        Matrix (3, 3) from pixels of the H&E image to global pixels of the run, a CSV file with it, or one with keypoints
        (``fixedX``, ``fixedY`` in global pixels; ``alignmentX``, ``alignmentY`` in pixels of the image).
    section
        Name of the section; by default that of the folder.
    patient
        Donor of the section. Give all sections of one donor the same name, because splits keep patients apart by it.
    pixel_um
        Microns per global pixel of the run. AtoMx writes 0.12028; the ReadMe of older data sets names 0.18.
    cell_um
        Diameter of the circles that stand for cells, in µm.

    Returns
    -------
    SpatialData as from :func:`img2gene.io.build_section`, in pixels of the H&E image. ``tables["table"].X`` holds raw
    counts of genes without control probes, one row per cell; ``obs["library_size"]`` sums the genes of the panel.
    Transcripts outside of cells are left out.

    Raises
    ------
    Img2GeneError
        The folder has an unknown layout (the message says what was looked for and found), the alignment is no map of
        one scan, or no cell lies on the image.

    Examples
    --------
    >>> import img2gene as ig
    >>> cells = ig.io.read_cosmx("flat_files", image="he.tif", alignment="matrix.csv", patient="P1")  # doctest: +SKIP
    """
    check = Arguments()
    place = check_folder(check, path)
    section = section_name(check, section, place)
    if not hasattr(image, "dtype"):
        image = check.path("image", image)
    if not isinstance(alignment, np.ndarray):
        alignment = check.path("alignment", need_alignment(alignment))
    patient = check.label("patient", patient, optional=True)
    pixel_um, cell_um = check.number("pixel_um", pixel_um, above=0), check.number("cell_um", cell_um, above=0)
    check.raise_all()
    # spatialdata-io also wants fluorescence images and labels, which flat files come without.
    folder = Folder(place, _PLATFORM)
    counts_path, cells_path = folder.need(*_COUNTS), folder.need(*_CELLS)
    matrix = np.diag([pixel_um, pixel_um, 1.0]) @ read_alignment(alignment, pixel_um, "alignment of the H&E image")
    pixels = open_picture(image)
    table, places = join_positions(_read_counts(counts_path), _read(cells_path, [_X, _Y]), (_X, _Y), cells_path)
    check_direction(np.diag([1 / pixel_um, 1 / pixel_um, 1.0]) @ matrix, places, pixels.shape, pixel_um)
    xy = to_pixels(matrix, places * pixel_um)
    sizes = {"mpp": pixel_size(matrix), "spot_um": cell_um}
    return build_study(table, xy, pixels, section=section, patient=patient, file=image, **sizes)


def _read(path: Path, needed: list[str]) -> pd.DataFrame:
    """Read a table of cells, indexed by field of view and number."""
    import pandas as pd

    try:
        frame = pd.read_csv(path, low_memory=False)
    except (OSError, ValueError, EOFError) as error:
        raise Img2GeneError(f"{path} cannot be read as a table ({error}).") from error
    lacking = [name for name in [*_KEYS, *needed] if name not in frame]
    if lacking:
        raise Img2GeneError(
            f"{path} has no layout of {_PLATFORM} that is known. Looked for the columns {listing(lacking)}, and found "
            f"{listing(frame.columns)}."
        )
    # A table with gaps has its whole numbers as floats.
    parts = [frame[key].convert_dtypes().astype(str) for key in reversed(_KEYS)]
    frame.index = pd.Index(parts[0] + "_" + parts[1])
    return frame


def _read_counts(path: Path) -> AnnData:
    """Read counts of genes; cell 0 of each field of view holds what lies outside of cells."""
    import scipy.sparse as sp
    from anndata import AnnData

    frame = _read(path, [])
    frame = frame[frame["cell_ID"] != 0].drop(columns=[*_KEYS, "cell", "cell_id"], errors="ignore")
    text = [name for name, dtype in frame.dtypes.items() if dtype.kind not in "uif"]
    if text or frame.empty:
        raise Img2GeneError(f"{path} holds no counts of genes (columns that are no numbers: {listing(text)}).")
    table = AnnData(sp.csr_matrix(frame.to_numpy(dtype=np.float32)))
    table.obs_names, table.var_names = frame.index, frame.columns.astype(str)
    return without_controls(table, path)
