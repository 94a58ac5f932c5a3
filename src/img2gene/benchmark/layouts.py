"""How the sections of a cohort lie in its folder, and how they are read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from img2gene import _schema

if TYPE_CHECKING:
    import numpy as np
    from spatialdata import SpatialData


@dataclass(frozen=True)
class Section:
    """One section that was read.

    Attributes
    ----------
    sdata
        Counts and places, and the image unless there are ``crops``.
    crops
        uint8 (n_obs, H, W, 3): the patch of each spot, where a cohort comes as patches instead of images.
    """

    sdata: SpatialData
    crops: np.ndarray | None = None


@dataclass(frozen=True)
class Layout:
    """Files of a section, for people and for programs.

    Attributes
    ----------
    expected
        The files of each section, for messages.
    find
        Names of the sections in a folder that have all of their files.
    read
        Read one section: ``read(folder, name, patient)``.
    """

    expected: str
    find: Callable[[Path], list[str]]
    read: Callable[[Path, str, str | None], Section]


def find_legacy(folder: Path) -> list[str]:
    """Sections with counts, image and spots."""
    names = [path.name.removesuffix(".tsv.gz") for path in folder.glob("ST-cnts/*.tsv.gz")]
    return sorted(name for name in names if all(path.is_file() for path in _legacy_files(folder, name)))


def read_legacy(folder: Path, name: str, patient: str | None) -> SpatialData:
    """A section of legacy Spatial Transcriptomics in the layout of her2st."""
    from img2gene import io

    return io.read_legacy_st(*_legacy_files(folder, name), section=name, patient=patient)


def _legacy_files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    return (
        folder / "ST-cnts" / f"{name}.tsv.gz",
        folder / "ST-imgs" / f"{name}.jpg",
        folder / "ST-spotfiles" / f"{name}_selection.tsv",
    )


def find_arrays(folder: Path) -> list[str]:
    """Sections with counts and an image that is the frame of the array."""
    names = [path.name.removesuffix("_counts.tsv.gz") for path in folder.glob("*_counts.tsv.gz")]
    return sorted(name for name in names if (folder / f"{name}.jpg").is_file())


def read_array(folder: Path, name: str, patient: str | None) -> SpatialData:
    """A section of legacy Spatial Transcriptomics whose image is the frame of the array."""
    from img2gene import io

    return io.read_legacy_st(folder / f"{name}_counts.tsv.gz", folder / f"{name}.jpg", section=name, patient=patient)


def find_visium(folder: Path) -> list[str]:
    """Folders that Space Ranger wrote."""
    return sorted(path.parent.name for path in folder.glob("*/filtered_feature_bc_matrix.h5"))


def read_visium(folder: Path, name: str, patient: str | None = None) -> SpatialData:
    """A Visium section in the folder of its name."""
    import spatialdata_io

    with warnings.catch_warnings():
        # What spatialdata-io says of every such folder.
        warnings.filterwarnings("ignore", "Variable names are not unique", UserWarning)
        warnings.filterwarnings("ignore", "Converting `region_key", UserWarning)
        sdata = spatialdata_io.visium(folder / name, dataset_id=name)
    if patient is not None:
        sdata["table"].obs[_schema.PATIENT] = patient
    return sdata


def _with_image(read: Callable[[Path, str, str | None], SpatialData]) -> Callable[[Path, str, str | None], Section]:
    return lambda folder, name, patient: Section(read(folder, name, patient))


def find_patches(folder: Path) -> list[str]:
    """Sections of a HEST-Benchmark task with both expression and patches."""
    from img2gene.io import hest

    return hest.find(folder)


def _read_patches(folder: Path, name: str, patient: str | None) -> Section:
    from img2gene.io import hest

    return Section(*hest.read_section(folder, name, patient))


LAYOUTS = {
    "legacy": Layout(
        "ST-cnts/<section>.tsv.gz, ST-imgs/<section>.jpg and ST-spotfiles/<section>_selection.tsv",
        find_legacy,
        _with_image(read_legacy),
    ),
    "array": Layout("<section>_counts.tsv.gz and <section>.jpg", find_arrays, _with_image(read_array)),
    "visium": Layout(
        "<section>/filtered_feature_bc_matrix.h5 and <section>/spatial/ of Space Ranger",
        find_visium,
        _with_image(read_visium),
    ),
    "hest": Layout("adata/<section>.h5ad and patches/<section>.h5 of HEST-Benchmark", find_patches, _read_patches),
}
