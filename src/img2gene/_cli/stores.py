"""Studies that commands read from stores and write to stores, whole or not at all."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from img2gene._errors import Img2GeneError, MissingKeyError, listing

if TYPE_CHECKING:
    from spatialdata import SpatialData


def check_target(path: Path, overwrite: bool, suffix: str = "") -> Path:
    """Refuse a path that exists, or whose folder does not, before any work is done; append ``suffix`` if it has none."""
    target = path if path.suffix or not suffix else path.with_name(path.name + suffix)
    if target.exists() and not overwrite:
        raise Img2GeneError(f"{target} exists: name another --out, or pass --overwrite to replace it.")
    if not target.absolute().parent.is_dir():
        raise Img2GeneError(f"The folder {target.absolute().parent} does not exist: create it first.")
    return target


def open_store(path: Path) -> SpatialData:
    """Open the study of a Zarr store; images stay on the disk."""
    import spatialdata

    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise Img2GeneError(f"{path} {what}: expected the folder of a study, which `img2gene read` writes.")
    try:
        with warnings.catch_warnings():
            # spatialdata warns of tables without their regions, and of formats, at each reading.
            warnings.simplefilter("ignore")
            study = spatialdata.read_zarr(path)
    except (LookupError, OSError, TypeError, ValueError, AttributeError) as error:
        raise Img2GeneError(f"{path} holds no study that can be read ({type(error).__name__}: {error}).") from error
    if not (study.images or study.tables):
        raise Img2GeneError(f"{path} holds neither images nor tables: expected a study, which `img2gene read` writes.")
    return study


def write_store(study: SpatialData, path: Path, overwrite: bool) -> None:
    """Write a study; an existing one is replaced in one step."""
    from img2gene import io

    io.write_study(study, path, overwrite=overwrite)


def described(study: SpatialData, name: str) -> dict[str, Any]:
    """Say what a study holds: its sections, spots and genes."""
    if name not in study.tables:
        raise MissingKeyError(
            f"The study has no table {name!r} (available: {listing(study.tables)}). Pass --table-key."
        )
    table = study[name]
    sections = table.obs["section"].astype(str).unique().tolist() if "section" in table.obs else []
    return {"sections": sections, "n_spots": table.n_obs, "n_genes": table.n_vars}
