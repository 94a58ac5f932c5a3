"""Reader for Visium sections of Space Ranger 1 to 4."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError
from img2gene.io._folders import Folder, check_folder, section_name
from img2gene.io._space_ranger import COUNTS, PLATFORM, read_array

if TYPE_CHECKING:
    import numpy as np
    from spatialdata import SpatialData


def read_visium(
    path: str | Path,
    *,
    image: str | Path | np.ndarray | None = None,
    section: str | None = None,
    patient: str | None = None,
    counts: str | None = None,
    spot_um: float | None = None,
) -> SpatialData:
    """Read one Visium section that Space Ranger 1 to 4 wrote, also of CytAssist.

    Parameters
    ----------
    path
        Folder of Space Ranger, with or without ``outs``. Its files may have the name of the run in front, as downloads
        have.
    image
        Full-resolution H&E image: the file that Space Ranger was given, or its pixels as uint8 (height, width, 3). Large
        TIFF files stay on disk. Without it, the hires image of the folder is used, which is too coarse to show nuclei.
    section
        Name of the section; by default that of the folder.
    patient
        Donor of the section. Give all sections of one donor the same name, because splits keep patients apart by it.
    counts
        ``"filtered"`` (spots on tissue) or ``"raw"`` (all spots); by default the filtered matrix if it is there.
    spot_um
        Spot diameter in µm; by default 55, that of Visium. It is needed only where spots lie in one line.

    Returns
    -------
    SpatialData as from :func:`img2gene.io.build_section`. ``tables["table"].X`` holds raw counts of genes (CSR float32),
    and ``obs`` also ``in_tissue``, ``array_row`` and ``array_col``. Genes have unique symbols, and ``var["gene_ids"]`` has
    their Ensembl identifiers. Microns per pixel follow from the distance of 100 µm from spot to spot.

    Raises
    ------
    Img2GeneError
        The folder has an unknown layout (the message says what was looked for and found), a file cannot be read, spots
        have no position, or the image is not the one that the positions refer to.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.io.read_visium("run/outs", image="section.tif", section="S1", patient="P1")  # doctest: +SKIP
    """
    check = Arguments()
    folder = check_folder(check, path)
    section = section_name(check, section, folder)
    if not hasattr(image, "dtype"):
        image = check.path("image", image, optional=True)
    patient = check.label("patient", patient, optional=True)
    counts = check.choice("counts", counts, COUNTS, optional=True)
    spot_um = check.number("spot_um", spot_um, above=0, optional=True)
    check.raise_all()
    return read_array(_outs(folder), counts, image, section=section, patient=patient, spot_um=spot_um)


def _outs(path: Path) -> Folder:
    """Find the folder with the results of Space Ranger; send bins to their own reader."""
    folder = Folder(path / "outs" if (path / "outs").is_dir() else path, PLATFORM)
    if any(folder.path.glob("*binned_outputs")):
        raise Img2GeneError(f"{path} holds bins of Visium HD: read it with `img2gene.io.read_visium_hd`.")
    return folder
