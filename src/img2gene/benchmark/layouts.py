"""Find and read the sections of a cohort, for each layout of files."""

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
class StoredSection:
    """Holds one section as its cohort stores it: with an image, or with patches.

    Attributes
    ----------
    sdata
        Counts and positions of the spots. The image is blank if there are ``crops``.
    crops
        Patch of each spot, uint8 (n_obs, H, W, 3), if the cohort has patches instead of images.
    """

    sdata: SpatialData
    crops: np.ndarray | None = None


@dataclass(frozen=True)
class Layout:
    """Describes the files of a section, and holds the functions that find and read them.

    Attributes
    ----------
    expected
        Files of a section, in words, for messages.
    find
        Function that lists the sections of a folder that have all of their files.
    read
        Function that reads one section, called as ``read(folder, name, patient)``.
    """

    expected: str
    find: Callable[[Path], list[str]]
    read: Callable[[Path, str, str | None], StoredSection]


def find_legacy(folder: Path) -> list[str]:
    """List the sections that have counts, image and spot file."""
    names = [path.name.removesuffix(".tsv.gz") for path in folder.glob("ST-cnts/*.tsv.gz")]
    return sorted(name for name in names if all(path.is_file() for path in _legacy_files(folder, name)))


def read_legacy(folder: Path, name: str, patient: str | None) -> SpatialData:
    """Read a section of legacy Spatial Transcriptomics in the layout of her2st."""
    from img2gene import io

    return io.read_legacy_st(*_legacy_files(folder, name), section=name, patient=patient)


def _legacy_files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    return (
        folder / "ST-cnts" / f"{name}.tsv.gz",
        folder / "ST-imgs" / f"{name}.jpg",
        folder / "ST-spotfiles" / f"{name}_selection.tsv",
    )


def find_arrays(folder: Path) -> list[str]:
    """List the sections that have counts and an image, which is cropped to the array."""
    names = [path.name.removesuffix("_counts.tsv.gz") for path in folder.glob("*_counts.tsv.gz")]
    return sorted(name for name in names if (folder / f"{name}.jpg").is_file())


def read_array(folder: Path, name: str, patient: str | None) -> SpatialData:
    """Read a section of legacy Spatial Transcriptomics whose image is cropped to the array."""
    from img2gene import io

    return io.read_legacy_st(folder / f"{name}_counts.tsv.gz", folder / f"{name}.jpg", section=name, patient=patient)


def find_visium(folder: Path) -> list[str]:
    """List the folders that Space Ranger wrote."""
    return sorted(path.parent.name for path in folder.glob("*/filtered_feature_bc_matrix.h5"))


def read_visium(folder: Path, name: str, patient: str | None = None) -> SpatialData:
    """Read a Visium section from the folder of its name."""
    import spatialdata_io

    with warnings.catch_warnings():
        # spatialdata-io warns so about every folder of Space Ranger.
        warnings.filterwarnings("ignore", "Variable names are not unique", UserWarning)
        warnings.filterwarnings("ignore", "Converting `region_key", UserWarning)
        sdata = spatialdata_io.visium(folder / name, dataset_id=name)
    if patient is not None:
        sdata["table"].obs[_schema.PATIENT] = patient
    return sdata


def _with_image(
    read: Callable[[Path, str, str | None], SpatialData],
) -> Callable[[Path, str, str | None], StoredSection]:
    return lambda folder, name, patient: StoredSection(read(folder, name, patient))


def find_patches(folder: Path) -> list[str]:
    """List the sections of a HEST-Benchmark task that have both counts and patches."""
    from img2gene.io import hest

    return hest.find(folder)


def _read_patches(folder: Path, name: str, patient: str | None) -> StoredSection:
    from img2gene.io import hest

    return StoredSection(*hest.read_section(folder, name, patient))


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
