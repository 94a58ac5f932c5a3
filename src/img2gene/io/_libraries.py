"""Read libraries in squidpy's layout: which rows belong to each, its image, and microns per pixel of this image."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, Problems, listing, missing
from img2gene._study.colours import to_rgb
from img2gene._study.lattices import (
    AGREEMENT,
    SPACE_RANGER_UM,
    VISIUM_PITCH_UM,
    VISIUM_SPOT_UM,
    array_positions,
    diameter_doubt,
    has_visium_parity,
    hexagonal_pitch,
    is_mirrored,
    nearest_distance,
)
from img2gene._study.sections import text_labels
from img2gene.io.sections import position_problems

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

# Images of this factor or more are of about the full resolution, where both units agree.
_HIRES_FACTOR = 0.7
# Bins touch each other, and positions in whole pixels move them by some percent; other spots lie farther apart.
_TOUCHING, _VISIUM_WIDTH = 1.3, 0.85
# Columns that name libraries where programs write them.
_LIBRARY_COLUMNS = ("library_id", "library", "sample", "sample_id")
_FEWEST_PLACES = 3
_JOIN = "Keep the images when joining, `anndata.concat(…, uns_merge='unique')`, with a name of its own for each library"
# Printed spots have 55 µm, and Space Ranger's circles 64.8 to 69.8 on real sections.
_VISIUM_UM = (50.0, 72.0)
_DIAMETER = "spot_diameter_fullres"
# Space Ranger writes these for Visium HD.
_MICRONS, _BIN = "microns_per_pixel", "bin_size_um"


@dataclass(frozen=True)
class Library:
    """One library of an AnnData.

    Attributes
    ----------
    name
        Name of the library.
    rows
        int (n,) rows of its spots.
    image
        uint8 (height, width, 3).
    xy
        float (n, 2) columns and rows of the spots in pixels of ``image``.
    mpp
        Microns per pixel of ``image``.
    spot_um
        Diameter of the spots in µm.
    """

    name: str
    rows: np.ndarray
    image: np.ndarray
    xy: np.ndarray
    mpp: float
    spot_um: float


def read_libraries(adata: AnnData, library_key: str | None, image: str, spot_um: float | None) -> list[Library]:
    """Read all libraries; all problems are raised together."""
    entries = _entries(adata)
    problems = Problems(position_problems(adata.obsm["spatial"], adata.n_obs, "`obsm['spatial']`", "the AnnData"))
    problems.raise_all()
    positions = np.asarray(adata.obsm["spatial"], dtype=float)
    parts = _rows(adata, library_key, entries)
    for name in parts:
        _check_image(entries[name], image, _where(name))
    libraries = [
        _read(problems, adata, name, rows, entries[name], positions[rows], image, spot_um)
        for name, rows in parts.items()
    ]
    problems.raise_all()
    return [library for library in libraries if library is not None]


def _where(name: str) -> str:
    return f"uns['spatial']['{name}']"


def _check_image(entry: Mapping[str, Any], image: str, where: str) -> None:
    images = entry.get("images")
    if not isinstance(images, Mapping) or image not in images:
        available = images if isinstance(images, Mapping) else {}
        raise MissingKeyError(missing(image, f"{where}['images']", available, "Choose one with `image=`."))


def _entries(adata: AnnData) -> dict[str, Mapping[str, Any]]:
    """Return the libraries in ``uns["spatial"]``, without flags such as ``is_single`` of CELLxGENE."""
    stored = adata.uns.get("spatial")
    items = stored.items() if isinstance(stored, Mapping) else ()
    entries = {
        str(name): item
        for name, item in items
        if isinstance(item, Mapping) and ("images" in item or "scalefactors" in item)
    }
    if "spatial" not in adata.obsm or not entries:
        shown = (
            f"uns['spatial'] holds {listing(stored)}" if isinstance(stored, Mapping) else f"uns {listing(adata.uns)}"
        )
        raise MissingKeyError(
            'The AnnData needs positions in `obsm["spatial"]` and images in `uns["spatial"]` (available: '
            f"obsm {listing(adata.obsm)}; {shown}). Read it with a reader that keeps images."
        )
    return entries


def _rows(adata: AnnData, library_key: str | None, entries: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the rows of each library, in the order of first appearance."""
    if library_key is None and len(entries) > 1:
        library_key = _library_column(adata, entries)
    if library_key is None:
        if len(entries) > 1:
            raise Img2GeneError(
                f"There are several libraries ({listing(entries)}). Pass the column of `obs` that names them as "
                "`library_key=`."
            )
        _check_one_library(adata, next(iter(entries)))
        return {next(iter(entries)): np.arange(adata.n_obs)}
    names = text_labels(adata.obs[library_key], library_key)
    unknown = sorted(set(names) - set(entries))
    if unknown:
        raise MissingKeyError(
            f'`uns["spatial"]` has no images of the libraries {listing(unknown)} (available: {listing(entries)}).'
        )
    return {str(name): np.flatnonzero(names == name) for name in pd.unique(names)}


def _check_one_library(adata: AnnData, name: str) -> None:
    """Refuse spots of several libraries where only one has an image, as joined AnnData objects can have them."""
    for key in _LIBRARY_COLUMNS:
        if key in adata.obs:
            known = adata.obs[key].dropna().astype(str)
            others = sorted(set(known) - {name})
            if others and (known == name).any():
                raise Img2GeneError(
                    f"`obs['{key}']` names several libraries ({name}, {listing(others, 5)}), but `uns['spatial']` has an image of "
                    f"`{name}` only. {_JOIN}, or select its spots. If it names no libraries, rename the column."
                )


def _check_places(grid: np.ndarray | None, name: str) -> None:
    """Refuse spots of several sections under one name, which share places of a Visium array."""
    if grid is None or not has_visium_parity(grid) or min(len(np.unique(axis)) for axis in grid.T) < _FEWEST_PLACES:
        return
    if len(np.unique(grid, axis=0)) < len(grid):
        raise Img2GeneError(
            f"Several spots of library `{name}` have the same `array_row` and `array_col`, so they are of several sections on one "
            f"image. {_JOIN}."
        )


def _library_column(adata: AnnData, entries: dict[str, Any]) -> str | None:
    """Find the one column of ``obs`` that holds the names of several libraries; None without one."""
    columns = []
    for name in adata.obs.columns[adata.obs.columns.notna()]:
        column = adata.obs[name]
        if getattr(column, "ndim", 1) == 1 and column.dtype.kind not in "fc":
            values = {str(value) for value in column.unique()}
            if len(values) > 1 and values <= set(entries):
                columns.append(str(name))
    if len(columns) == 1:
        logger.info("obs[%r] names the library of each spot", columns[0])
    return columns[0] if len(columns) == 1 else None


def _read(
    problems: Problems,
    adata: AnnData,
    name: str,
    rows: np.ndarray,
    entry: Mapping[str, Any],
    positions: np.ndarray,
    image: str,
    spot_um: float | None,
) -> Library | None:
    """Read one library; None if it has problems, which are added to ``problems``."""
    where, before = _where(name), len(problems.messages)
    with problems.collect():
        _schema.check_name(name, "library")
    with problems.collect():
        pixels = _image(entry, image, where)
    with problems.collect():
        factor = _factor(entry, image, where)
    grid = array_positions(adata.obs, rows)
    with problems.collect():
        _check_places(grid, name)
    with problems.collect():
        unit_um, spot_um = spot_sizes(grid, entry, positions, where, spot_um)
    if len(problems.messages) > before:
        return None
    xy = positions * factor
    with problems.collect():
        _check_units(name, grid, entry, positions, factor, pixels, image)
    with problems.collect():
        _check_place(name, xy, pixels, unit_um / factor, image)
    warn_of_mirrored_array(grid, positions, where)
    return Library(name, rows, pixels, xy, unit_um / factor, spot_um)


def _check_place(name: str, xy: np.ndarray, pixels: np.ndarray, mpp: float, image: str) -> None:
    """Refuse spots of which none lies on the image, and numbers too large or too small for floats."""
    if not 0 < mpp < np.inf:
        raise Img2GeneError(f"`{_where(name)}`: {mpp:g} µm per pixel cannot be right; check `scalefactors`.")
    if not ((xy >= 0) & (xy < pixels.shape[1::-1])).all(axis=1).any():
        (left, top), (right, bottom) = xy.min(axis=0), xy.max(axis=0)
        raise Img2GeneError(
            f"No spot of library `{name}` lies on its image `{image}` ({pixels.shape[0]} × {pixels.shape[1]} px; spots "
            f"span columns {left:.0f} to {right:.0f}, rows {top:.0f} to {bottom:.0f}). `obsm['spatial']` times the scale "
            "factor must be pixels of this image."
        )


def _check_units(
    name: str,
    grid: np.ndarray | None,
    entry: Mapping[str, Any],
    positions: np.ndarray,
    factor: float,
    pixels: np.ndarray,
    image: str,
) -> None:
    """Refuse positions that are pixels of the image already, and not of the full resolution."""
    on_image = ((positions >= 0) & (positions < pixels.shape[1::-1])).all()
    if factor > _HIRES_FACTOR or not on_image:
        return
    pitch = None if grid is None else hexagonal_pitch(grid, positions)
    # Visium spots have two thirds of their distance; bins touch each other.
    most = _TOUCHING if pitch is None else _VISIUM_WIDTH
    pitch = nearest_distance(positions) if pitch is None else pitch
    diameter = _factors(entry).get(_DIAMETER)
    if pitch is not None and diameter is not None and float(np.asarray(diameter).item()) < most * pitch:
        return
    (left, top), (right, bottom) = positions.min(axis=0), positions.max(axis=0)
    raise Img2GeneError(
        f"Positions of library `{name}` (columns {left:.0f} to {right:.0f}, rows {top:.0f} to {bottom:.0f}) look like pixels of "
        f"its image `{image}` ({pixels.shape[0]} × {pixels.shape[1]} px), but `obsm['spatial']` must hold pixels of the full "
        f"resolution. Divide them by the scale factor: `adata.obsm['spatial'] = adata.obsm['spatial'] / {factor:g}`."
    )


def _image(entry: Mapping[str, Any], image: str, where: str) -> np.ndarray:
    pixels = np.asarray(entry["images"][image])
    if pixels.dtype.kind not in "uif" or not pixels.size:
        raise Img2GeneError(f"`{where}['images']['{image}']` is no picture ({pixels.dtype}, shape {pixels.shape}).")
    return to_rgb(pixels, f"`{where}['images']['{image}']`")


def _factor(entry: Mapping[str, Any], image: str, where: str) -> float:
    """Read how many pixels of the image one unit of ``obsm["spatial"]`` is."""
    key = f"tissue_{image}_scalef"
    if image == "fullres" and key not in _factors(entry):
        # Positions are pixels of the full-resolution image by definition.
        return 1.0
    return _number(entry, key, where, "Pixels of the image are `obsm['spatial']` times this factor.")


def spot_sizes(
    grid: np.ndarray | None, entry: Mapping[str, Any], positions: np.ndarray, where: str, spot_um: float | None
) -> tuple[float, float]:
    """Find microns per unit of ``obsm["spatial"]``, and the diameter of the spots in µm.

    The Visium lattice is preferred to what Space Ranger writes for Visium HD, and this to ``spot_um``, which must not
    contradict them.
    """
    pitch = None if grid is None else hexagonal_pitch(grid, positions)
    # The lattice is exact, also where a file gives the diameter in pixels of a smaller image.
    if pitch is not None:
        return VISIUM_PITCH_UM / pitch, _visium_spot(where, spot_um)
    diameter = _number(entry, _DIAMETER, where, "It is the diameter of a spot in units of `obsm['spatial']`.")
    recorded = _recorded_sizes(entry, where, diameter)
    if recorded:
        size = _agreed(recorded, where, spot_um)
        return size / diameter, size
    if spot_um is None:
        raise Img2GeneError(
            f"`{where}`: neither a Visium lattice nor `scalefactors` give the size of the spots. Pass `spot_um=`, the diameter in µm."
        )
    doubt = diameter_doubt(grid, positions, diameter, spot_um)
    if doubt:
        raise Img2GeneError(f"`{where}`: {doubt}. Pass `spot_um=65` for the diameter of Space Ranger.")
    return spot_um / diameter, spot_um


def warn_of_mirrored_array(grid: np.ndarray | None, xy: np.ndarray, where: str) -> None:
    """Warn if a Visium array lies on its image as in a mirror; ``xy`` (n, 2) are columns and rows of the image."""
    if grid is not None and is_mirrored(grid, xy):
        logger.warning(
            "`%s`: rows and columns of the array are mirrored on the image, as swapped x and y would place them. That is right only "
            "for an image that was mirrored before Space Ranger read it, and for CytAssist. Draw the spots: `img2gene.pl.patches(sdata)`",
            where,
        )


def _visium_spot(where: str, spot_um: float | None) -> float:
    """Return the diameter of spots on a Visium lattice; raise if ``spot_um`` cannot be theirs."""
    if spot_um is None:
        return VISIUM_SPOT_UM
    if not _VISIUM_UM[0] <= spot_um <= _VISIUM_UM[1]:
        raise Img2GeneError(
            f"`{where}`: spot_um={spot_um:g}, but `array_row` and `array_col` show a Visium lattice, whose spots have "
            f"{VISIUM_SPOT_UM:g} µm (Space Ranger's circles {SPACE_RANGER_UM:g}). Leave `spot_um` out; if this is another platform, "
            "delete these two columns."
        )
    return spot_um


def _agreed(recorded: dict[str, float], where: str, spot_um: float | None) -> float:
    """Return the recorded size; raise if it is contradictory, or ``spot_um`` another."""
    sizes = recorded if spot_um is None else {**recorded, f"spot_um={spot_um:g}": spot_um}
    if max(sizes.values()) / min(sizes.values()) - 1 > AGREEMENT:
        stated = listing(f"{size:.4g} µm by {source}" for source, size in sizes.items())
        raise Img2GeneError(
            f"`{where}`: the diameter of the spots is contradictory: {stated}. Leave `spot_um` out to use `scalefactors`, "
            "or correct these."
        )
    return next(iter(recorded.values()))


def _recorded_sizes(entry: Mapping[str, Any], where: str, diameter: float) -> dict[str, float]:
    """Read the sizes of Visium HD bins in µm that Space Ranger writes into ``scalefactors``."""
    factors, sizes = _factors(entry), {}
    if _MICRONS in factors:
        microns = _number(entry, _MICRONS, where, "It is microns per unit of `obsm['spatial']`.")
        sizes[f"scalefactors['{_MICRONS}']"] = microns * diameter
    if _BIN in factors:
        sizes[f"scalefactors['{_BIN}']"] = _number(entry, _BIN, where, "It is the side of a bin in µm.")
    return sizes


def _factors(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    factors = entry.get("scalefactors")
    return factors if isinstance(factors, Mapping) else {}


def _number(entry: Mapping[str, Any], key: str, where: str, meaning: str) -> float:
    """Read a positive number of ``scalefactors``."""
    factors = _factors(entry)
    if key not in factors:
        hint = f"{meaning} Set it: `adata.{where}['scalefactors']['{key}'] = …`."
        raise MissingKeyError(missing(key, f"{where}['scalefactors']", factors, hint))
    value = np.asarray(factors[key])
    # Files may return a single number as an array with one value.
    if value.dtype.kind not in "uif" or value.size != 1 or not (np.isfinite(value).all() and value.item() > 0):
        raise Img2GeneError(
            f"`{where}['scalefactors']['{key}']` is {factors[key]!r}; expected a positive number. {meaning}"
        )
    return float(value.item())
