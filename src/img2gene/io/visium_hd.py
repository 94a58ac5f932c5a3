"""Reader for Visium HD: bins of any side, and the cells that Space Ranger 4 segments."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, listing
from img2gene.io._folders import Folder, check_folder, section_name
from img2gene.io._measured import build_study
from img2gene.io._space_ranger import COUNTS, Scales, check_image, choose_image, read_array, read_counts, read_scales

if TYPE_CHECKING:
    from geopandas import GeoSeries
    from spatialdata import SpatialData

_PLATFORM = "Visium HD by Space Ranger 3 or 4"
_BINS = "binned_outputs"
_CELLS = "segmented_outputs"
_OUTLINES = ("cell_segmentations.geojson",)
_SQUARE = re.compile(r"square_(\d+)um$")
_DEFAULT_UM = 8


def read_visium_hd(
    path: str | Path,
    *,
    bin_um: int | None = None,
    cells: bool = False,
    image: str | Path | np.ndarray | None = None,
    section: str | None = None,
    patient: str | None = None,
    counts: str | None = None,
) -> SpatialData:
    """Read one Visium HD section that Space Ranger wrote: its bins, or its segmented cells.

    Parameters
    ----------
    path
        Folder of Space Ranger, with or without ``outs``, or its folder ``binned_outputs``.
    bin_um
        Side of the bins in µm: 2, 8 or 16, if Space Ranger made them; by default 8. For larger ones see
        :func:`img2gene.pp.bin_to`.
    cells
        Read the segmented cells of Space Ranger 4 instead of bins.
    image
        Full-resolution H&E image: the file that Space Ranger was given, or its pixels as uint8 (height, width, 3). Large
        TIFF files stay on disk. Without it, the hires image of the folder is used, which is too coarse to show nuclei.
    section
        Name of the section; by default that of the folder.
    patient
        Donor of the section. Give all sections of one donor the same name, because splits keep patients apart by it.
    counts
        ``"filtered"`` (bins on tissue) or ``"raw"`` (all bins); by default the filtered matrix if it is there.

    Returns
    -------
    SpatialData as from :func:`img2gene.io.read_visium`. The region holds circles as wide as the bins, or the outlines of
    the cells; ``obs["library_size"]`` sums all genes of a bin or cell.

    Raises
    ------
    Img2GeneError
        The folder has an unknown layout (the message says what was looked for and found), Space Ranger made no such
        bins or no cells, or the image is not the one that the positions refer to.

    Examples
    --------
    >>> import img2gene as ig
    >>> bins = ig.io.read_visium_hd("run/outs", bin_um=16, image="section.btf", patient="P1")  # doctest: +SKIP
    >>> cells = ig.io.read_visium_hd("run/outs", cells=True, image="section.btf", patient="P1")  # doctest: +SKIP
    """
    check = Arguments()
    folder = check_folder(check, path)
    section = section_name(check, section, folder)
    bin_um = check.whole("bin_um", bin_um, 1, optional=True)
    check.flag("cells", cells)
    if cells is True and bin_um is not None:
        check.messages.append(f"bin_um={bin_um} and cells=True: read either bins or cells.")
    if not hasattr(image, "dtype"):
        image = check.path("image", image, optional=True)
    patient = check.label("patient", patient, optional=True)
    counts = check.choice("counts", counts, COUNTS, optional=True)
    check.raise_all()
    root = folder / "outs" if (folder / "outs").is_dir() else folder
    if cells:
        return _read_cells(Folder(root, _PLATFORM), counts, image, section, patient)
    bins = _bins(root, _DEFAULT_UM if bin_um is None else bin_um)
    return read_array(bins, counts, image, section=section, patient=patient, spot_um=None)


def _bins(root: Path, bin_um: int) -> Folder:
    """Find the folder of the bins of one side."""
    if _SQUARE.search(root.name):
        root = root.parent
    inner = Folder(root, _PLATFORM).find(_BINS)
    parent = root if inner is None else inner
    sides = {int(found[1]): path for path in sorted(parent.glob("*square_*um")) if (found := _SQUARE.search(path.name))}
    if not sides:
        hint = "Read Visium spots with `img2gene.io.read_visium`, and segmented cells with `cells=True`."
        raise Folder(root, _PLATFORM).unknown([f"{_BINS}/square_{bin_um:03d}um"], hint)
    if bin_um not in sides:
        smaller = [side for side in sides if side < bin_um]
        hint = f" Join smaller ones: `img2gene.pp.bin_to(sdata, {bin_um})`." if smaller else ""
        raise Img2GeneError(f"{parent} has no bins of {bin_um} µm (available: {listing(sides)}).{hint}")
    return Folder(sides[bin_um], _PLATFORM)


def _read_cells(root: Folder, counts: str | None, image: Any, section: str, patient: str | None) -> SpatialData:
    """Read the cells that Space Ranger 4 segments on the H&E image."""
    inner = root.path if root.path.name.endswith(_CELLS) else root.find(_CELLS)
    if inner is None:
        raise root.unknown([_CELLS], "Space Ranger segments cells from version 4 on; read bins with `bin_um=8`.")
    folder = Folder(inner, _PLATFORM)
    scales = read_scales(folder)
    table = read_counts(folder, counts, "feature_cell_matrix")
    outlines = _read_outlines(folder.need(*_OUTLINES))
    absent = table.obs_names[~table.obs_names.isin(outlines.index)]
    if len(absent):
        raise Img2GeneError(
            f"{folder.need(*_OUTLINES)} has no outline of {len(absent)} of {table.n_obs} counted cells "
            f"({listing(absent, 5)}; it has {listing(outlines.index, 3)})."
        )
    outlines = outlines.loc[table.obs_names]
    mpp = _microns(root, scales)
    pixels, factor = choose_image(scales, image, section)
    outlines = outlines.scale(factor, factor, origin=(0, 0))
    centers = outlines.centroid
    xy = np.column_stack([centers.x, centers.y])
    known: dict[str, Any] = {"section": section, "patient": patient, "mpp": mpp / factor}
    sdata = build_study(table, xy, pixels, outlines=outlines, file=image, **known)
    check_image(sdata, scales, image, section)
    return sdata


def _read_outlines(path: Path) -> GeoSeries:
    """Read polygons in pixels of the full-resolution image, indexed by the barcodes of the cells."""
    from geopandas import GeoSeries
    from shapely.geometry import shape

    try:
        features = json.loads(path.read_bytes())["features"]
        names = [feature["properties"]["cell_id"] for feature in features]
        polygons = [shape(feature["geometry"]) for feature in features]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Img2GeneError(f"{path} holds no outlines of cells with the property cell_id ({error!r}).") from error
    # Space Ranger numbers the cells here, and names them by nine digits in the matrix.
    index = [f"cellid_{name:09d}-1" if isinstance(name, int) else str(name) for name in names]
    outlines = GeoSeries(polygons, index=index)
    if not outlines.index.is_unique:
        raise Img2GeneError(f"{path} lists cells twice: {listing(outlines.index[outlines.index.duplicated()], 5)}.")
    return outlines


def _microns(root: Folder, scales: Scales) -> float:
    """Read microns per pixel of the full-resolution image, which Space Ranger also writes beside the bins."""
    if "microns_per_pixel" in scales.factors:
        return scales.factor("microns_per_pixel")
    for path in sorted(root.path.glob(f"*{_BINS}/square_*um")):
        other = read_scales(Folder(path, _PLATFORM))
        if "microns_per_pixel" in other.factors:
            return other.factor("microns_per_pixel")
    raise Img2GeneError(f"{scales.source} has no microns_per_pixel (available: {listing(scales.factors)}).")
