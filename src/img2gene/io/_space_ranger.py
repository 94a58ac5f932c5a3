"""Read what Space Ranger 1 to 4 writes about an array: counts, positions, scale factors and the hires image."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._errors import Img2GeneError, listing
from img2gene._study.lattices import VISIUM_PITCH_UM, VISIUM_SPOT_UM, array_positions
from img2gene.io._folders import Folder, open_file
from img2gene.io._libraries import spot_sizes, warn_of_mirrored_array
from img2gene.io._measured import build_study, join_positions
from img2gene.io._pictures import open_picture
from img2gene.io._same_picture import check_picture

if TYPE_CHECKING:
    import dask.array as da
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

PLATFORM = "Space Ranger 1 to 4"
COUNTS = ("filtered", "raw")
_X, _Y = "pxl_col_in_fullres", "pxl_row_in_fullres"
_BARCODE = "barcode"
_COLUMNS = [_BARCODE, "in_tissue", "array_row", "array_col", _Y, _X]
# Space Ranger 3 and later, 2, and 1.
_POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
_SCALES = ("scalefactors_json.json",)
_CYTASSIST = "cytassist_image.tiff"
_HIRES = ("tissue_hires_image.png", "tissue_hires_image.jpg")
# Archives such as GEO hold every file gzipped.
_GZIP = ".gz"
# The hires image is rounded to whole pixels, and its scale factor is that of one axis.
_SIZE_ERROR = 0.01
_FEW = 100


@dataclass(frozen=True)
class Scales:
    """Scale factors of an array, and the files of its ``spatial`` folder."""

    files: Folder
    factors: dict[str, Any]
    source: Path

    def factor(self, key: str) -> float:
        """Read a positive number."""
        value = self.factors.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
            raise Img2GeneError(
                f"{self.source}: {key} is {value!r}; expected a positive number (available: {listing(self.factors)})."
            )
        return float(value)


def read_array(
    folder: Folder, counts: str | None, image: Any, *, section: str, patient: str | None, spot_um: float | None
) -> SpatialData:
    """Read the spots or bins of one folder with counts and ``spatial``."""
    scales = read_scales(folder)
    table = read_counts(folder, counts)
    place = scales.files.find(*_or_gzipped(_POSITIONS))
    if place is None:
        raise folder.unknown([f"spatial/{name}" for name in _POSITIONS])
    positions = _read_positions(place)
    table, xy = join_positions(table, positions, (_X, _Y), place)
    unit_um, width = _sizes(table, xy, positions, scales, spot_um)
    pixels, factor = choose_image(scales, image, section)
    sizes: dict[str, Any] = {"mpp": unit_um / factor, "spot_um": width}
    sdata = build_study(table, xy * factor, pixels, section=section, patient=patient, file=image, **sizes)
    check_image(sdata, scales, image, section)
    return sdata


def _sizes(
    table: AnnData, xy: np.ndarray, positions: pd.DataFrame, scales: Scales, spot_um: float | None
) -> tuple[float, float]:
    """Find microns per unit of the positions, and the diameter of the spots."""
    if table.n_obs < _FEW and positions[[_X, _Y]].notna().all(axis=None):
        # A few counted spots can lie in one line, but the file lists all places of the array.
        grid, places = array_positions(positions, np.arange(len(positions))), positions[[_X, _Y]].to_numpy(float)
    else:
        grid, places = array_positions(table.obs, np.arange(table.n_obs)), xy
    sizes = spot_sizes(grid, {"scalefactors": scales.factors}, places, str(scales.source), spot_um)
    if scales.files.find(_CYTASSIST) is None:
        warn_of_mirrored_array(grid, places, str(scales.source))
    diameter, pitch = scales.factors.get("spot_diameter_fullres"), VISIUM_PITCH_UM / sizes[0]
    if sizes[1] == VISIUM_SPOT_UM and isinstance(diameter, int | float) and diameter > pitch:
        raise Img2GeneError(
            f"{scales.source}: spots have a diameter of {diameter:.4g} px (spot_diameter_fullres), but lie {pitch:.4g} px apart in the "
            "table of positions, so they would overlap. Positions must be pixels of the full-resolution image: divide those of "
            "a smaller image by its scale factor."
        )
    return sizes


def check_image(sdata: SpatialData, scales: Scales, image: Any, section: str) -> None:
    """Compare a given image, which the study holds in small, with the hires image of the folder, if there is one."""
    hires = scales.files.find(*_or_gzipped(_HIRES))
    if image is not None and hires is not None:
        check_picture(sdata["table"].uns["spatial"][section]["images"]["hires"], hires, section)


def read_scales(folder: Folder) -> Scales:
    """Find the folder ``spatial`` and read its scale factors; some downloads lay its files beside the counts."""
    inner = folder.find("spatial")
    files = Folder(inner, folder.platform) if inner is not None and inner.is_dir() else folder
    source = files.find(*_or_gzipped(_SCALES))
    if source is None:
        raise folder.unknown([f"spatial/{name}" for name in _SCALES])
    try:
        with open_file(source) as file:
            factors = json.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise Img2GeneError(f"{source} cannot be read as JSON ({error}).") from error
    if not isinstance(factors, dict):
        raise Img2GeneError(f"{source} holds no scale factors by name.")
    return Scales(files, factors, source)


def _or_gzipped(names: tuple[str, ...]) -> list[str]:
    return [*names, *(name + _GZIP for name in names)]


def read_counts(folder: Folder, counts: str | None, kind: str = "feature_bc_matrix") -> AnnData:
    """Read the counts of genes; features of other kinds, such as antibodies, are no part of the transcriptome."""
    kinds = COUNTS if counts is None else (counts,)
    names = [f"{name}_{kind}{end}" for name in kinds for end in (".h5", "")]
    path = folder.find(*names)
    if path is None:
        raise folder.unknown(names)
    if counts is None and "raw_" in path.name:
        logger.info(
            "%s: read %s, as there is no filtered matrix; obs['in_tissue'] marks spots on tissue",
            path.parent,
            path.name,
        )
    return read_matrix(path)


def read_matrix(path: Path) -> AnnData:
    """Read a feature matrix of 10x Genomics, an HDF5 file or a folder of text files."""
    import warnings

    import scanpy as sc

    try:
        with warnings.catch_warnings():
            # Symbols that several genes share are numbered later.
            warnings.filterwarnings("ignore", "Variable names are not unique")
            table = (
                sc.read_10x_mtx(path, gex_only=True, make_unique=False)
                if path.is_dir()
                else sc.read_10x_h5(path, gex_only=True)
            )
    except Exception as error:
        unpacked = path.is_dir() and any(path.glob("matrix.mtx"))
        hint = f" Its files are expected to be gzipped: gzip {str(path)!r}/*" if unpacked else ""
        raise Img2GeneError(f"{path} cannot be read as a feature matrix of 10x Genomics ({error}).{hint}") from error
    if not table.n_obs or not table.n_vars:
        raise Img2GeneError(f"{path} holds no counts of genes ({table.n_obs} barcodes, {table.n_vars} genes).")
    return table


def _read_positions(path: Path) -> pd.DataFrame:
    """Read positions in pixels of the full-resolution image, indexed by barcode."""
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            # The first column names itself in files with a header, from Space Ranger 2 on.
            with open_file(path) as file:
                named = _BARCODE.encode() in file.readline().lower()
            frame = pd.read_csv(path) if named else pd.read_csv(path, header=None)
            if not named and frame.shape[1] == len(_COLUMNS):
                frame.columns = pd.Index(_COLUMNS)
    except (OSError, ValueError, EOFError) as error:
        raise Img2GeneError(f"{path} cannot be read as a table of positions ({error}).") from error
    lacking = [name for name in _COLUMNS if name not in frame]
    if lacking:
        raise Img2GeneError(
            f"{path} has no layout of {PLATFORM} that is known. Looked for the columns {listing(_COLUMNS)}, and found "
            f"{listing(frame.columns)}."
        )
    return frame[_COLUMNS].set_index(_BARCODE)


def choose_image(scales: Scales, image: Any, section: str) -> tuple[np.ndarray | da.Array, float]:
    """Open the full-resolution image, or else the hires one; also return its pixels per full-resolution pixel."""
    path = scales.files.find(*_or_gzipped(_HIRES))
    if image is None:
        if path is None:
            raise Img2GeneError(
                f"{scales.files.path} has no image ({' or '.join(_HIRES)}). Pass the full-resolution image as `image=`."
            )
        logger.info("section %s: %s is read, as no full-resolution image was given", section, path.name)
        return open_picture(path), scales.factor("tissue_hires_scalef")
    pixels = open_picture(image)
    if path is not None:
        _check_size(pixels.shape, path, scales.factor("tissue_hires_scalef"))
    return pixels, 1.0


def _check_size(shape: tuple[int, ...], hires: Path, factor: float) -> None:
    """Refuse an image that is not the one whose pixels the positions refer to."""
    from PIL import Image

    with open_file(hires) as file, Image.open(file) as picture:
        width, height = (side / factor for side in picture.size)
    tolerance = _SIZE_ERROR + 2 / (factor * max(width, height))
    if max(abs(shape[0] / height - 1), abs(shape[1] / width - 1)) > tolerance:
        turned = max(abs(shape[1] / height - 1), abs(shape[0] / width - 1)) <= tolerance
        raise Img2GeneError(
            f"The image has {shape[0]} × {shape[1]} px, but the positions refer to one of about {height:.0f} × {width:.0f} px "
            f"({hires.name} over its scale factor){', so it is turned' if turned else ''}. Pass the image that Space Ranger was "
            "given (`--image`, or `--cytaimage` without a microscope image), or leave `image` out to use the hires image."
        )
