"""Reader for sections of HEST-1k: counts, the whole-slide image and its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._checks import Arguments, name_text
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing, raise_problems
from img2gene._files.h5ad import read_h5ad
from img2gene._study.lattices import VISIUM_SPOT_UM, array_positions, hexagonal_pitch, nearest_distance
from img2gene.io._folders import Folder, check_folder, section_name
from img2gene.io._measured import build_study, name_genes, without_controls
from img2gene.io._pictures import open_picture
from img2gene.io.sections import position_problems

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_PLATFORM = "HEST-1k"
# HEST-1k joins what these platforms measure to squares that touch.
_SQUARES = ("xenium", "visium hd")


def read_hest(
    path: str | Path, section: str, *, patient: str | None = None, spot_um: float | None = None
) -> SpatialData:
    """Read one section of HEST-1k.

    Parameters
    ----------
    path
        Folder with ``st/<section>.h5ad``, ``wsis/<section>.tif`` and ``metadata/<section>.json``.
    section
        Identifier of the section, such as ``"TENX99"``.
    patient
        Donor of the section; by default that of the metadata, with the title of its study in front, as every study
        numbers its patients anew.
    spot_um
        Spot diameter in µm, or the side of square pseudo-spots; by default that of the data: 55 for Visium, the diameter
        recorded for legacy Spatial Transcriptomics, and the distance of the squares into which HEST-1k joins transcripts
        of Xenium (100 µm) and bins of Visium HD (128 µm).

    Returns
    -------
    SpatialData as from :func:`img2gene.io.build_section`, with the whole-slide image, which stays on disk if it is large.

    Raises
    ------
    Img2GeneError
        A file is missing or cannot be read, or the metadata do not give microns per pixel or the size of the spots.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.io.read_hest("hest_data", "TENX99")  # doctest: +SKIP

    References
    ----------
    Jaume et al., "HEST-1k: a dataset for spatial transcriptomics and histology image analysis", NeurIPS 2024.
    """
    import anndata as ad

    check = Arguments()
    place = check_folder(check, path)
    section = section_name(check, check.label("section", section), None)
    patient = check.label("patient", patient, optional=True)
    spot_um = check.number("spot_um", spot_um, above=0, optional=True)
    check.raise_all()
    folder = Folder(place, _PLATFORM)
    names = [f"st/{section}.h5ad", f"wsis/{section}.tif", f"metadata/{section}.json"]
    lacking = [name for name in names if not (place / name).is_file()]
    if lacking:
        raise folder.unknown(lacking)
    counts, image, details = (place / name for name in names)
    about = _metadata(details)
    stored = read_h5ad(counts)
    if "spatial" not in stored.obsm:
        raise MissingKeyError(missing("spatial", f"{counts}: obsm", stored.obsm))
    raise_problems(position_problems(stored.obsm["spatial"], stored.n_obs, f"{counts}: obsm['spatial']", "the counts"))
    stored = without_controls(stored, counts)
    name_genes(stored)
    grid = stored.obs[[name for name in ("in_tissue", "array_row", "array_col") if name in stored.obs]]
    table = ad.AnnData(stored.X, obs=grid.copy(), var=stored.var)
    xy = np.asarray(stored.obsm["spatial"], dtype=float)
    patient = _patient(about) if patient is None else patient
    mpp = float(about["pixel_size_um_estimated"])
    spot_um = _spot_size(about, stored, xy, mpp, details) if spot_um is None else spot_um
    sizes = {"mpp": mpp, "spot_um": spot_um}
    return build_study(table, xy, open_picture(image), section=section, patient=patient, file=image, **sizes)


def _spot_size(about: dict[str, Any], stored: AnnData, xy: np.ndarray, mpp: float, source: Path) -> float:
    """Find the diameter of spots, or the side of the squares that HEST-1k made of cells or bins, in µm.

    The recorded sizes of squares are those of the platform (2 µm) or of Visium (55 µm), as ``HEST_v1_1_0.csv`` and
    ``register_downscale_img`` of the HEST library show.
    """
    technology = str(about.get("st_technology", "")).strip().lower()
    grid = array_positions(stored.obs, np.arange(stored.n_obs))
    if technology == "visium" or (not technology and grid is not None and hexagonal_pitch(grid, xy[:, ::-1])):
        return VISIUM_SPOT_UM
    pitch = nearest_distance(xy)
    if technology in _SQUARES and pitch is not None:
        return pitch * mpp
    factors = stored.uns.get("spatial", {}).get("ST", {}).get("scalefactors", {})
    recorded = [about.get("spot_diameter"), float(factors.get("spot_diameter_fullres", np.nan)) * mpp]
    sizes = [float(size) for size in recorded if isinstance(size, int | float) and 0 < size < np.inf]
    if technology in _SQUARES or not sizes:
        raise Img2GeneError(
            f"{source} does not give the size of the spots (st_technology {about.get('st_technology')!r}, spot_diameter "
            f"{about.get('spot_diameter')!r}). Pass `spot_um=`: 55 for Visium, 100 for legacy Spatial Transcriptomics."
        )
    return sizes[0]


def _metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a section, which must give microns per pixel."""
    try:
        about = json.loads(path.read_bytes())
        size = about["pixel_size_um_estimated"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Img2GeneError(f"{path} gives no pixel_size_um_estimated ({error!r}).") from error
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < np.inf:
        raise Img2GeneError(f"{path}: pixel_size_um_estimated is {size!r}; expected microns (of {listing(about)}).")
    return about


def _patient(about: dict[str, Any]) -> str | None:
    """Name the patient by study and number; None if the metadata name none."""
    patient = about.get("patient")
    if patient in (None, ""):
        return None
    return f"{about.get('dataset_title') or ''} {name_text(patient)}".strip()
