"""Reader for MERSCOPE sections with an aligned H&E image."""

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

_PLATFORM = "MERSCOPE of Vizgen"
_NEEDED = ("cell_by_gene.csv", "cell_metadata.csv")
_X, _Y = "center_x", "center_y"


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
        Folder of one region, with ``cell_by_gene.csv`` and ``cell_metadata.csv``.
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
        alignment = check.path("alignment", need_alignment(alignment))
    patient = check.label("patient", patient, optional=True)
    cell_um = check.number("cell_um", cell_um, above=0)
    check.raise_all()
    lacking = [name for name in _NEEDED if not (place / name).is_file()]
    if lacking:
        raise Folder(place, _PLATFORM).unknown(lacking)
    matrix = read_alignment(alignment, 1.0, "alignment of the H&E image")
    pixels = open_picture(image)
    table, microns = _read_cells(place)
    check_direction(matrix, microns, pixels.shape, 1.0)
    xy = to_pixels(matrix, microns)
    sizes = {"mpp": pixel_size(matrix), "spot_um": cell_um}
    return build_study(table, xy, pixels, section=section, patient=patient, file=image, **sizes)


def _read_cells(path: Path) -> tuple[AnnData, np.ndarray]:
    """Read counts and places in µm; the two tables may list cells in different orders."""
    import scipy.sparse as sp
    from anndata import AnnData

    counts, cells = _read(path / _NEEDED[0], []), _read(path / _NEEDED[1], [_X, _Y])
    text = [name for name, dtype in counts.dtypes.items() if dtype.kind not in "uif"]
    if text or counts.empty:
        raise Img2GeneError(
            f"{path / _NEEDED[0]} holds no counts of genes (columns that are no numbers: {listing(text)})."
        )
    table = AnnData(sp.csr_matrix(counts.to_numpy(dtype=np.float32)))
    table.obs_names, table.var_names = counts.index, counts.columns.astype(str)
    return join_positions(without_controls(table, path), cells, (_X, _Y), path / _NEEDED[1])


def _read(path: Path, needed: list[str]) -> pd.DataFrame:
    """Read a table of cells, indexed by their names in the first column, which have too many digits for a float."""
    import pandas as pd

    try:
        frame = pd.read_csv(path, index_col=0, dtype={0: str}, low_memory=False)
    except (OSError, ValueError, EOFError) as error:
        raise Img2GeneError(f"{path} cannot be read as a table ({error}).") from error
    frame.index = pd.Index(frame.index.astype(str), name=None)
    lacking = [name for name in needed if name not in frame]
    if lacking:
        raise Img2GeneError(
            f"{path} has no layout of {_PLATFORM} that is known. Looked for the columns {listing(lacking)}, and found "
            f"{listing(frame.columns)}."
        )
    return frame
