"""Read whole slides lazily, with microns per pixel from the file."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, listing
from img2gene._study.colours import WHITE
from img2gene._study.images import LOST_VALUE
from img2gene._study.lattices import AGREEMENT
from img2gene._study.pyramids import check_pyramid, check_sizes
from img2gene.io._cut_files import cut_message
from img2gene.io._file_microns import COARSEST_UM, INCH_UM, ome_microns, positive
from img2gene.io._folders import storable_name
from img2gene.io._slide_pixels import check_pixels

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

_CHUNK_PX = 1024
# Parts of a damaged chunk that are read by themselves, where the file does not say how large its tiles are.
_PART_PX = 256
_MOST_ANISOTROPY = 0.02
_OME = re.compile(r"\.ome(\.tiff?|\.btf)?$", flags=re.IGNORECASE)
# Scanners name their objective by these magnifications of a camera with pixels of about 10 µm.
_OBJECTIVE_UM = 10.0


def read_slide(path: str | Path, mpp: float | None = None, *, section: str | None = None) -> SpatialData:
    """Read a whole slide: SVS, NDPI, MRXS, OME-TIFF, pyramidal TIFF, DICOM and what else wsidata opens.

    No pixel is decoded but for a few tiles that are compared between the levels of the pyramid; what is read later is
    decoded chunk by chunk. Needs ``pip install "img2gene[wsi]"``.

    Parameters
    ----------
    path
        File of the slide; of a DICOM slide, which is a folder of files, any of them.
    mpp
        Microns per pixel of the full resolution; by default what the file says. Another value than the file's is used,
        with a warning.
    section
        Name of the section; by default the name of the file without its ending, with ``_`` in place of characters that cannot
        be stored.

    Returns
    -------
    SpatialData with ``images["<section>_image"]``: one scale for each level of the pyramid, RGB, in pixels in the coordinate
    system ``<section>`` and in microns in ``<section>_um``. Continue with :func:`img2gene.pp.tile_slide`.

    Raises
    ------
    Img2GeneError
        wsidata is not installed; the file does not exist or is no slide; it says nothing about microns per pixel, more
        than 20 (which is the resolution of a print), or that pixels are not square; its pixels are grey, deeper than 8 bits or
        stored turned; a larger picture of the file would be left out; or the levels of its pyramid have different
        proportions or show different pictures. If a TIFF file was cut, the error says so; without any other error a warning
        does.

    Notes
    -----
    The file must stay where it is, as pixels are read from it; :func:`img2gene.io.write_study` copies them into the store.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.io.read_slide("slide.svs")  # doctest: +SKIP
    >>> ig.pp.tile_slide(sdata, "slide_image")  # doctest: +SKIP
    """
    from spatialdata import SpatialData

    check = Arguments()
    file, mpp = check.path("path", path), check.number("mpp", mpp, above=0, optional=True)
    if section is None and isinstance(file, Path):
        section = section_name(file)
    with check.collect():
        _schema.check_name(section, "section")  # type: ignore[arg-type]
    check.raise_all()
    cut = cut_message(file)
    try:
        slide = _open(file)
        check_pixels(file, slide.properties.shape)
        microns = _microns(file, slide.properties, mpp)
        check_sizes(slide.properties.level_shape, f"slide `{file}`")
        name = f"{section}_image"
        sdata = SpatialData(images={name: _multiscale(slide, str(section), microns)})
        check_pyramid(sdata, name)
    except Img2GeneError as error:
        if not cut:
            raise
        # What else is wrong may come from it.
        raise Img2GeneError(f"{cut}\n{error}") from error
    if cut:
        n_levels = len(sdata[name].children)
        logger.warning("%s %d level(s) are read; spots on pixels beyond the end will get NaN", cut, n_levels)
    return sdata


def section_name(file: Path) -> str:
    """Make a name that can be stored of the name of a file.

    Examples
    --------
    >>> from pathlib import Path
    >>> from img2gene.io.slides import section_name
    >>> section_name(Path("data/patient 1 (A).ome.tiff"))
    'patient_1_A'
    """
    return storable_name(_OME.sub("", file.stem if not _OME.search(file.name) else file.name))


def _open(file: Path) -> Any:
    """Open a slide with the reader of wsidata that knows its format."""
    try:
        from wsidata.reader import READERS
    except ImportError as error:
        raise Img2GeneError(f'Slides need wsidata: pip install "img2gene[wsi]" ({error}).') from error
    # Unlike that of a path, this answers for a name that is too long, too.
    if not os.path.exists(file):
        raise Img2GeneError(f"There is no file {str(file)!r}. Check the path.")
    if os.path.isdir(file):
        found = sorted(name for name in os.listdir(file) if not name.startswith("."))
        raise Img2GeneError(
            f"{str(file)!r} is a folder ({listing(found) or 'empty'}). Pass the file of the slide; of a DICOM slide any of its "
            "`.dcm` files: the other levels are found beside it."
        )
    # OpenSlide sees neither the pyramid of an OME-TIFF nor its microns.
    names: list[Any] = ["tiffslide", None] if _OME.search(file.name) else [None]
    reasons = []
    for name in names:
        try:
            return READERS.try_open(str(file), reader=name)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - each reader has errors of its own
            reasons.append(str(error)[:200])
    raise Img2GeneError(
        f"{str(file)!r} cannot be opened as a slide ({listing(reasons)}). Pass an SVS, NDPI, MRXS, DICOM, OME-TIFF or "
        "pyramidal TIFF file; a JPEG or PNG is read by `img2gene.io.build_section` or `spatialdata.models.Image2DModel`."
    )


def _microns(file: Path, properties: Any, mpp: float | None) -> float:
    """Find microns per pixel: ``mpp``, else what the file says."""
    # The tags of a TIFF often count dots of a print, so what OME states comes first.
    stated, recorded = ome_microns(file), _recorded(properties)
    sides = stated or recorded
    if stated and recorded and mpp is None and abs(np.mean(stated) / np.mean(recorded) - 1) > AGREEMENT:
        logger.warning(
            "%s states %.4g µm per pixel in its OME metadata, which are used, and %.4g elsewhere; pass `mpp=` if the first is wrong",
            file,
            np.mean(stated),
            np.mean(recorded),
        )
    if len(sides) == 2 and abs(sides[0] / sides[1] - 1) > _MOST_ANISOTROPY and mpp is None:
        raise Img2GeneError(
            f"{str(file)!r}: pixels are {sides[0]:.4g} × {sides[1]:.4g} µm, not square. Resample the slide, or pass `mpp=` if the "
            "file is wrong."
        )
    known = float(np.mean(sides)) if sides else None
    if known is not None and known > COARSEST_UM and mpp is None:
        raise Img2GeneError(
            f"{str(file)!r} says {known:.4g} µm per pixel ({INCH_UM / known:.0f} dots per inch). That is the resolution of a "
            "print or a screen, not of a scan. Pass `mpp=`, microns per pixel of the full resolution (about .25 at 40×, .5 at 20×)."
        )
    if mpp is not None:
        if known is not None and abs(mpp / known - 1) > AGREEMENT:
            logger.warning("mpp=%.4g is used for %s, although the file says %.4g µm per pixel", mpp, file, known)
        return mpp
    if known is None:
        power = properties.magnification
        hint = f" Its objective of {power:g}× suggests about {_OBJECTIVE_UM / power:.2g}." if power else ""
        raise Img2GeneError(
            f"{str(file)!r} does not say how many microns a pixel has. Pass `mpp=`, microns per pixel of the full resolution "
            f"(about .25 for a scan at 40×, .5 at 20×).{hint}"
        )
    return known


def _recorded(properties: Any) -> list[float]:
    """Read the microns of both sides of a pixel from the properties of a slide; empty if they are not there."""
    raw: Mapping[str, Any] = json.loads(properties.raw) if properties.raw else {}
    sides = [positive(raw.get(name)) for name in ("mpp-x", "mpp-y")]
    both = [side for side in sides if side is not None]
    one = positive(properties.mpp)
    return both if len(both) == 2 else [one] if one is not None else []


def _multiscale(slide: Any, section: str, mpp: float) -> Any:
    """Build the multi-scale image of a slide, one scale per level."""
    import dask.array as da
    import xarray as xr
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    properties, levels = slide.properties, {}
    for level, (height, width) in enumerate(properties.level_shape):
        chunks = da.core.normalize_chunks((3, _CHUNK_PX, _CHUNK_PX), (3, height, width))
        # The reader travels in the graph, so other processes can open the file themselves.
        data = da.map_blocks(
            _read_block, slide, level, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), dtype=np.uint8)
        )
        factors = np.array(properties.shape) / (height, width)
        systems = {
            section: Scale(factors, ("y", "x")),
            _schema.micron_system(section): Scale(factors * mpp, ("y", "x")),
        }
        image = Image2DModel.parse(data, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=systems)
        levels[f"scale{level}"] = xr.Dataset({"image": image})
    return xr.DataTree.from_dict(levels)


def _read_block(slide: Any, level: int, block_info: Any = None) -> np.ndarray:
    """Read one chunk of a level, uint8 (3, height, width); outside the scanned part it is white."""
    _, (y0, y1), (x0, x1) = block_info[None]["array-location"]
    lost_value = LOST_VALUE.get()
    if lost_value is None:
        pixels = _region(slide, level, (y0, x0, y1, x1))
    else:
        pixels = _readable_parts(slide, level, (y0, x0, y1, x1), lost_value)
    step = slide.properties.level_downsample[level]
    left, top, width, height = slide.properties.bounds or (0, 0, np.inf, np.inf)
    rows, columns = np.arange(y0, y1) * step, np.arange(x0, x1) * step
    outside = (
        ((rows < top - step) | (rows >= top + height))[:, None] | (columns < left - step) | (columns >= left + width)
    )
    if outside.any():
        # OpenSlide draws places that were not scanned in black.
        pixels = np.where(outside[..., None], np.uint8(WHITE), pixels)
    return np.moveaxis(np.asarray(pixels, dtype=np.uint8), -1, 0)


def _region(slide: Any, level: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """Read a box (y0, x0, y1, x1) of a level, uint8 (height, width, 3)."""
    step = slide.properties.level_downsample[level]
    y0, x0, y1, x1 = box
    place = (int(np.ceil(x0 * step)), int(np.ceil(y0 * step)), x1 - x0, y1 - y0)
    try:
        return slide.get_region(*place, level=level)
    except Exception:
        if slide.name != "openslide":
            raise
        # After one error, OpenSlide answers every call with it, so the file is opened again: here, and by the next call.
        slide.set_reader(None)
        fresh = type(slide)(slide.file)
        try:
            return fresh.get_region(*place, level=level)
        finally:
            fresh.detach_reader()


def _readable_parts(slide: Any, level: int, box: tuple[int, int, int, int], lost_value: int) -> np.ndarray:
    """Read a box as :func:`_region` does, tile by tile of the file; ``lost_value`` stands for tiles that cannot be read."""
    y0, x0, y1, x1 = box
    pixels = np.full((y1 - y0, x1 - x0, 3), lost_value, dtype=np.uint8)
    height, width = _tile_px(slide, level)
    for top in range(y0 - y0 % height, y1, height):
        for left in range(x0 - x0 % width, x1, width):
            part = max(top, y0), max(left, x0), min(top + height, y1), min(left + width, x1)
            try:
                pixels[part[0] - y0 : part[2] - y0, part[1] - x0 : part[3] - x0] = _region(slide, level, part)
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001 - each reader has errors of its own
                continue
    return pixels


def _tile_px(slide: Any, level: int) -> tuple[int, int]:
    """Height and width of the tiles of a level in its file."""
    raw = json.loads(slide.properties.raw) if slide.properties.raw else {}
    height, width = (positive(raw.get(f"level[{level}].tile-{side}")) for side in ("height", "width"))
    return int(height or _PART_PX), int(width or _PART_PX)
