"""Find microns per pixel of each section, and check that spots and image are on the same scale."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, Problems, listing
from img2gene._study.geometry import (
    Geometry,
    covers_same_place,
    isotropic_scale,
    largest_aligned,
    locate_element,
    locate_region,
    micron_scales,
    reaches,
    recorded,
    region_matrix,
    spot_width,
)
from img2gene._study.images import scale0
from img2gene._study.lattices import (
    AGREEMENT,
    DIAMETER_ERROR,
    VISIUM_PITCH_UM,
    array_positions,
    diameter_doubt,
    hexagonal_pitch,
    square_pitch,
)
from img2gene._study.study import Study

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

_HD_BIN = re.compile(r"square_(\d+)um")
_LARGEST_BIN_UM = 1000
_MAX_EXTENT_UM = 25_000.0
_CORNER = 0.4


def resolve_mpp(
    study: Study,
    geometries: list[Geometry],
    *,
    mpp: float | Mapping[str, float] | None,
    spot_um: float | None,
) -> dict[str, float]:
    """Find microns per image pixel of each region; all problems are raised together.

    Sources, in this order: ``mpp``; the hexagonal Visium lattice, where it contradicts a spot diameter; ``spot_um``
    over the measured spot diameter; what the section's reader recorded; the lattice; the bin size in a Visium HD
    region's name, if its elements form such a grid; microns that are known for the same image from another region or table.
    """
    resolution, problems = {}, Problems()
    for geometry in geometries:
        with problems.collect():
            resolution[geometry.region] = _region_mpp(study, geometry, mpp, spot_um)
            size = scale0(study.sdata, geometry.image_key).shape[1:]
            _check_alignment(study, geometry, resolution[geometry.region], size)
    problems.raise_all()
    return resolution


def _region_mpp(
    study: Study, geometry: Geometry, mpp: float | Mapping[str, float] | None, spot_um: float | None
) -> float:
    """Find microns per pixel of one region, from the arguments or else from the study."""
    if isinstance(mpp, Mapping):
        if geometry.region not in mpp:
            raise MissingKeyError(
                f"`mpp` has no entry for region `{geometry.region}` (entries: {listing(mpp)}). Give every region one."
            )
        mpp = mpp[geometry.region]
    if mpp is not None:
        known = _known_mpp(study, geometry)
        warn_of_other_mpp(study.sdata, geometry.image_key, float(mpp), known=known, besides=geometry.region)
        return float(mpp)
    if spot_um is not None and not geometry.spot_px > 0:
        raise Img2GeneError(f"`{geometry.region}` has no spot diameter; pass `mpp=` instead of `spot_um=`.")
    record, grid = recorded(study.table, geometry.region), array_positions(study.table.obs, geometry.rows)
    exact = _exact_mpp(geometry, grid)
    if spot_um is not None:
        doubt = "" if exact is not None else diameter_doubt(grid, geometry.centers, geometry.spot_px, spot_um)
        if doubt:
            raise Img2GeneError(
                f"`{geometry.region}`: {doubt}. Pass `mpp=` (microns per pixel of `{geometry.image_key}`)."
            )
        return _agreed(geometry, spot_um / geometry.spot_px, f"spot_um={spot_um:g}", exact)
    in_other_units = _in_other_units(record, geometry.spot_px * geometry.units_per_px)
    if exact is not None and exact.has_lattice and (in_other_units or not _is_known(record)):
        return exact.mpp
    if in_other_units:
        raise Img2GeneError(_other_units(geometry, record))
    if _is_known(record):
        # Readers record microns per unit of the region, which need not be a pixel of this image.
        return _agreed(geometry, float(record["mpp"]) * geometry.units_per_px, "the reader's record", exact)
    derived = image_mpp(study.sdata, geometry.image_key, besides=geometry.region, exact=exact)
    if derived is None:
        raise Img2GeneError(
            f"Microns per pixel of `{geometry.image_key}` (region `{geometry.region}`) are not known. Pass `mpp=` "
            f"(microns per pixel of the full-resolution image) or `spot_um=` (diameter of the spots).{_name_hint(geometry)}"
        )
    return derived


def _known_mpp(study: Study, geometry: Geometry) -> float | None:
    """Find microns per pixel from the lattice of a region, or from its reader; None without them."""
    exact = _exact_mpp(geometry, array_positions(study.table.obs, geometry.rows))
    if exact is not None:
        return exact.mpp
    record = recorded(study.table, geometry.region)
    if not _is_known(record) or _in_other_units(record, geometry.spot_px * geometry.units_per_px):
        return None
    return float(record["mpp"]) * geometry.units_per_px


def warn_of_other_mpp(
    sdata: SpatialData, image_key: str, mpp: float, *, known: float | None = None, besides: str | None = None
) -> None:
    """Warn if microns per pixel differ from ``known``, or else from what regions except ``besides`` say."""
    if known is None:
        # Sources that contradict each other show nothing.
        with suppress(Img2GeneError):
            known = image_mpp(sdata, image_key, besides=besides)
    if known is not None and abs(mpp / known - 1) > AGREEMENT:
        logger.warning(
            "mpp=%.4g is used for image `%s`, although its lattice, its reader or another region gives %.4g µm per pixel",
            mpp,
            image_key,
            known,
        )


def _is_known(record: dict[str, Any]) -> bool:
    """Check that a record holds microns per pixel or unit; some records hold None."""
    return (record.get("mpp") or 0) > 0


def _in_other_units(record: dict[str, Any], width: float) -> bool:
    """Check whether spots have another width than their reader recorded, as after a transformation to other units."""
    if not (_is_known(record) and record.get("spot_um") and width > 0):
        return False
    return bool(abs(width * record["mpp"] / record["spot_um"] - 1) > AGREEMENT)


def _other_units(geometry: Geometry, record: dict[str, Any]) -> str:
    mpp, spot_um, width = record["mpp"], record["spot_um"], geometry.spot_px * geometry.units_per_px
    return (
        f"The reader of `{geometry.region}` recorded {mpp:.4g} µm per unit and spots of {spot_um:g} µm, which are "
        f"{spot_um / mpp:.4g} units wide, but they are {width:.4g} units wide now. The region has other units, for example "
        f"after `spatialdata.transform`, or its spots another size. Pass `mpp=` (microns per pixel of `{geometry.image_key}`)."
    )


class Exact(NamedTuple):
    """Microns per pixel that follow from the design of an array."""

    mpp: float
    source: str
    has_lattice: bool


def _exact_mpp(geometry: Geometry, grid: np.ndarray | None) -> Exact | None:
    """Derive microns per pixel from the Visium lattice, or from the name of Visium HD bins that touch each other."""
    if grid is not None:
        pitch = hexagonal_pitch(grid, geometry.centers)
        if pitch is not None:
            source = f"the Visium lattice of `{geometry.region}` (100 µm from spot to spot)"
            return Exact(VISIUM_PITCH_UM / pitch, source, True)
    bin_um, side = _bin_um(geometry.region), geometry.spot_px
    if bin_um is None or (grid is None and not side > 0):
        return None
    # A name alone proves nothing: cells, or a part of the bins, may have it.
    pitch = square_pitch(grid, geometry.centers, side)
    if pitch is None or (side > 0 and abs(pitch / side - 1) > AGREEMENT):
        return None
    return Exact(bin_um / pitch, f"the name `{geometry.region}`", False)


def _bin_um(region: str) -> float | None:
    """Read the side of Visium HD bins from the name of a region; None if it names none, or several."""
    numbers = {int(digits) for digits in _HD_BIN.findall(region) if len(digits) < 9}
    return float(*numbers) if len(numbers) == 1 and 0 < min(numbers) <= _LARGEST_BIN_UM else None


def _name_hint(geometry: Geometry) -> str:
    """Say why the name of a region that sounds like Visium HD bins was not used."""
    bin_um, side = _bin_um(geometry.region), geometry.spot_px
    if bin_um is None:
        return ""
    reason = (
        f"its elements ({side:.4g} px wide) do not form a square array with one element every {side:.4g} px"
        if side > 0
        else "its elements have neither a width nor the `array_row` and `array_col` of a square array"
    )
    return f" The region is named like Visium HD bins of {bin_um:g} µm, but {reason}, so the name is not used."


def _agreed(geometry: Geometry, stated: float, source: str, exact: Exact | None) -> float:
    """Choose between stated microns per pixel and those of the array's design."""
    if exact is None or abs(stated / exact.mpp - 1) <= AGREEMENT:
        return stated
    text = (
        f"Microns per pixel of `{geometry.image_key}` (region `{geometry.region}`) are {stated:.4g} by {source}, but "
        f"{exact.mpp:.4g} by {exact.source}."
    )
    if not exact.has_lattice or not DIAMETER_ERROR[0] < stated / exact.mpp < DIAMETER_ERROR[1]:
        raise Img2GeneError(f"{text} Pass the right value as `mpp=`.")
    logger.warning(
        "%s The lattice is used: Space Ranger's spot diameter corresponds to about 65 µm. Pass `mpp=` to choose.", text
    )
    return exact.mpp


def image_mpp(
    sdata: SpatialData, image_key: str, *, besides: str | None = None, exact: Exact | None = None
) -> float | None:
    """Find microns per pixel of an image from any region or table of the study; None if nothing gives them.

    Sources that contradict each other are refused. The region ``besides`` is no source for itself: what an earlier call
    recorded may have been wrong. ``exact`` is a source that the caller knows.
    """
    sources = {} if exact is None else {exact.source: exact.mpp}
    sources |= micron_scales(sdata, image_key)
    sources |= _recorded_for_image(sdata, image_key, besides) or _derived_for_image(sdata, image_key)
    if not sources:
        return None
    values = np.array(list(sources.values()))
    if values.max() / values.min() - 1 > AGREEMENT:
        text = listing(f"{value:.4g} by {name}" for name, value in sources.items())
        raise Img2GeneError(f"Microns per pixel of `{image_key}` are contradictory: {text}. Pass `mpp=`.")
    return float(values[0])


def _recorded_for_image(sdata: SpatialData, image_key: str, besides: str | None) -> dict[str, float]:
    """Read what readers and `extract_patches` recorded for an image and its regions, except one."""
    sources = {}
    for key, table in sdata.tables.items():
        patches = _schema.read_json(table, "patches", default={}).get("regions", {})
        for region, entry in patches.items():
            is_source = entry["image"] == image_key and region != besides and _is_known(entry)
            value = _rescaled(sdata, region, entry) if is_source else None
            if value is not None:
                sources[f"the patches of `{region}` in sdata['{key}']"] = value
        for entry in _schema.read_json(table, "sections", default={}).values():
            if entry.get("image") == image_key and _is_known(entry):
                region = entry.get("region")
                scale = _scale(sdata, region, image_key) if region in sdata else 1.0
                if scale is not None and not _in_other_units(entry, spot_width(sdata, region)):
                    sources.setdefault(f"the reader of `{region}`", float(entry["mpp"]) / scale)
    return sources


def _rescaled(sdata: SpatialData, region: str, entry: dict[str, Any]) -> float | None:
    """Convert recorded microns per pixel to the image as it is now; None if it has changed in an unknown way."""
    size = list(scale0(sdata, entry["image"]).shape[1:])
    if entry.get("size", size) == size:
        return float(entry["mpp"])
    scale = _scale(sdata, region, entry["image"]) if region in sdata else None
    before = np.abs(np.array(entry["matrix"])[:, :2]).max()
    width = spot_width(sdata, region)
    # Records of older versions have no width.
    in_other_units = abs(width / entry.get("spot_width", width) - 1) > AGREEMENT
    return None if scale is None or in_other_units else float(entry["mpp"]) * before / scale


def _derived_for_image(sdata: SpatialData, image_key: str) -> dict[str, float]:
    """Derive microns per pixel from the squares and lattices that other regions on the image have."""
    sources: dict[str, float] = {}
    annotated: set[str] = set()
    for key in sdata.tables:
        # Another table that cannot be read is no source, and no reason to refuse this image.
        with suppress(Img2GeneError):
            study = Study.of(sdata, key)
            annotated |= set(study.regions)
            sources |= _derived_from_table(study, image_key)
    for region in sdata.shapes:
        if region not in annotated and _bin_um(region) and _belongs(sdata, region, [], image_key):
            with suppress(Img2GeneError):
                exact = _exact_mpp(locate_element(sdata, region, image_key), None)
                sources |= {} if exact is None else {exact.source: exact.mpp}
    return sources


def _derived_from_table(study: Study, image_key: str) -> dict[str, float]:
    """Derive microns per pixel of an image from the regions of a table that lie on it."""
    sources: dict[str, float] = {}
    entries = (study.record("patches") or {}).get("regions", {})
    for region, rows in study.regions.items():
        grid = array_positions(study.table.obs, rows)
        if region not in study.sdata or (grid is None and not _bin_um(region)):
            continue
        image = entries.get(region, {}).get("image") or recorded(study.table, region).get("image")
        if _belongs(study.sdata, region, list(study.regions), image_key, image):
            exact = _exact_mpp(locate_region(study, region, rows, image_key), grid)
            sources |= {} if exact is None else {exact.source: exact.mpp}
    return sources


def _belongs(sdata: SpatialData, region: str, regions: list[str], image_key: str, image: str | None = None) -> bool:
    """Check that a region lies on an image: on its own image ``image``, or on a copy of it in another resolution."""
    if _scale(sdata, region, image_key) is None:
        return False
    try:
        imaged_on = image if image is not None and image in sdata.images else largest_aligned(sdata, region, regions)
    except Img2GeneError:
        return False
    return imaged_on == image_key or covers_same_place(sdata, imaged_on, image_key)


def _scale(sdata: SpatialData, region: str, image_key: str) -> float | None:
    """Return image pixels per unit of a region; None if the two are not aligned."""
    try:
        return isotropic_scale(region_matrix(sdata, region, image_key), region, image_key)
    except Img2GeneError:
        return None


def _check_alignment(study: Study, geometry: Geometry, mpp: float, size: tuple[int, ...]) -> None:
    """Refuse spots outside the image, and coordinates of a downscaled image laid on the full-resolution one."""
    height, width = size
    y, x = geometry.centers.T
    _check_inside(study, geometry, height, width)
    in_corner = y.max() < _CORNER * height and x.max() < _CORNER * width
    if in_corner and (_implausible_size(geometry, mpp, max(size)) or _overlapping(geometry)):
        raise Img2GeneError(
            f"The spots of `{geometry.region}` fill only the top left corner of image `{geometry.image_key}` "
            f"(rows to {y.max():.0f} of {height}, columns to {x.max():.0f} of {width}) and their size ({geometry.spot_px:.1f} px "
            f"across, {mpp:.3g} µm per pixel) does not fit it: they look like coordinates of a downscaled (hires) image "
            "on the full-resolution one. Multiply them by 1 / scale factor, or set the transformation."
        )


def _check_inside(study: Study, geometry: Geometry, height: int, width: int) -> None:
    """Refuse spots outside the image; spots on its edge, which a crop leaves, are named in a warning."""
    y, x = geometry.centers.T
    beyond = np.max([-y, -x, y - height, x - width], axis=0)
    # A centre on the last row or column of pixels still lies inside, one on the border itself does not.
    outside = (y < 0) | (x < 0) | (y >= height) | (x >= width)
    if not outside.any():
        return
    names = listing(study.table.obs_names[geometry.rows[outside]], 5)
    text = (
        f"{int(outside.sum())} of {len(y)} spots of `{geometry.region}` lie outside image `{geometry.image_key}` "
        f"({height} × {width} px; spots span rows {y.min():.0f} to {y.max():.0f}, columns {x.min():.0f} to {x.max():.0f}): "
        f"{names}."
    )
    # A crop keeps spots that touch it and rounds its edge to whole pixels.
    if (beyond > reaches(study, geometry) + 1)[outside].any():
        raise Img2GeneError(
            f"{text} Check the transformation between them, choose another image with `images=`, or leave these rows "
            f"out: `sdata['{study.table_key}'] = {study.name}[keep].copy()`."
        )
    logger.warning(
        "%s They touch its edge, and their patches are padded with white. Leave them out by `obs['%s']`, the fraction "
        "of each patch inside the image.",
        text,
        _schema.PATCH_INSIDE,
    )


def _implausible_size(geometry: Geometry, mpp: float, side: int) -> bool:
    """Check whether the image or its spots would have a size that no spatial array has."""
    if mpp * side > _MAX_EXTENT_UM:
        return True
    # Spot diameters lie between 2 µm (Visium HD) and 100 µm (legacy ST).
    return bool(geometry.spot_px * mpp < 1.5)


def _overlapping(geometry: Geometry) -> bool:
    """Check whether spots overlap, as they do when positions are downscaled and diameters are not."""
    from scipy.spatial import cKDTree

    if len(geometry.centers) < 2:
        return False
    nearest = cKDTree(geometry.centers).query(geometry.centers, k=2)[0][:, 1]
    return bool(np.median(nearest) < 0.7 * geometry.spot_px)
