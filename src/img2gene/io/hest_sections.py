"""Reader for sections of HEST-1k: counts, the whole-slide image and its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._checks import Arguments, name_text
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing, raise_problems
from img2gene.io._folders import Folder, check_folder, section_name
from img2gene.io._measured import build_study, name_genes
from img2gene.io._pictures import open_picture
from img2gene.io.sections import position_problems

if TYPE_CHECKING:
    from spatialdata import SpatialData

_PLATFORM = "HEST-1k"


def read_hest(path: str | Path, section: str, *, patient: str | None = None, spot_um: float = 55.0) -> SpatialData:
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
        Spot diameter in µm.

    Returns
    -------
    SpatialData as from :func:`img2gene.io.build_section`, with the whole-slide image, which stays on disk if it is large.

    Raises
    ------
    Img2GeneError
        A file is missing or cannot be read, or the metadata do not give microns per pixel.

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
    spot_um = check.number("spot_um", spot_um, above=0)
    check.raise_all()
    folder = Folder(place, _PLATFORM)
    names = [f"st/{section}.h5ad", f"wsis/{section}.tif", f"metadata/{section}.json"]
    lacking = [name for name in names if not (place / name).is_file()]
    if lacking:
        raise folder.unknown(lacking)
    counts, image, details = (place / name for name in names)
    about = _metadata(details)
    try:
        stored = ad.read_h5ad(counts)
    except (OSError, ValueError, KeyError) as error:
        raise Img2GeneError(f"{counts} cannot be read as an AnnData ({error}).") from error
    if "spatial" not in stored.obsm:
        raise MissingKeyError(missing("spatial", f"{counts}: obsm", stored.obsm))
    raise_problems(position_problems(stored.obsm["spatial"], stored.n_obs, f"{counts}: obsm['spatial']", "the counts"))
    name_genes(stored)
    grid = stored.obs[[name for name in ("in_tissue", "array_row", "array_col") if name in stored.obs]]
    table = ad.AnnData(stored.X, obs=grid.copy(), var=stored.var)
    xy = np.asarray(stored.obsm["spatial"], dtype=float)
    patient = _patient(about) if patient is None else patient
    size = about["pixel_size_um_estimated"]
    return build_study(
        table, xy, open_picture(image), section=section, patient=patient, mpp=float(size), spot_um=spot_um
    )


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
