"""Reader for legacy Spatial Transcriptomics sections: a count table, an image, and the pixel position of each spot."""

from __future__ import annotations

import logging
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene._study.expression import count_problems
from img2gene.io._measured import mark_inside
from img2gene.io.image_files import read_image
from img2gene.io.sections import build_section, image_problems

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

PITCH_UM = 200.0
"""Distance between the centres of neighbouring spots on a legacy ST array, in µm."""
ARRAY_SHAPE = (33, 35)
"""Spots per row and per column of a legacy ST array. Images without a spot file are cropped to this frame."""

_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)"
_SPOT_COLUMNS = ("x", "y", "pixel_x", "pixel_y")
# Files of one section share at least .98 of their spots, those of different sections up to .84 (six sections of her2st).
_SAME_SECTION, _LEAST_SHARED = 0.9, 0.5
_ADJUSTED = ("new_x", "new_y")
# pandas raises these on files that are absent, cut, compressed otherwise, or no tables.
_UNREADABLE = (OSError, ValueError, EOFError, zlib.error, OverflowError)


def read_legacy_st(
    counts: str | Path,
    image: str | Path | np.ndarray,
    spots: str | Path | None = None,
    *,
    section: str,
    patient: str | None = None,
    spot_um: float = 100.0,
    mpp: float | None = None,
    pitch_um: float = PITCH_UM,
) -> SpatialData:
    """Read one legacy Spatial Transcriptomics section.

    Parameters
    ----------
    counts
        Tab-separated raw counts, which may be gzipped: genes in columns, spots in rows. Row names ``AxB`` give the
        array coordinates, which may be fractions.
    image
        H&E image file (JPEG, PNG, TIFF), or its pixels as uint8 (height, width, 3). Files with a palette or in CMYK are
        converted to RGB; grey images, and 16-bit images that do not use their range, are refused.
    spots
        Tab-separated spot file with ``x``, ``y`` (array coordinates), ``pixel_x`` (column), ``pixel_y`` (row) and
        optionally ``selected``. Only selected spots with counts are kept. Without this file, the image must be cropped
        to the array's frame of 33 × 35 spots: spot ``AxB`` then lies at
        ``((A - 1) / 32 · width, (B - 1) / 34 · height)``.
    section
        Name of the section. It also names the coordinate system and begins the names of the elements.
    patient
        Donor of the section. Give all sections of one donor the same name, because splits keep patients apart by it.
    spot_um
        Spot diameter in µm.
    mpp
        Microns per pixel of the image. By default they follow from the distance between neighbouring spots.
    pitch_um
        Distance between the centres of neighbouring spots in µm, used if ``mpp`` is None.

    Returns
    -------
    SpatialData as from :func:`img2gene.io.build_section`. ``tables["table"].X`` holds raw counts (CSR float32), and its
    ``obs`` also has ``array_x`` and ``array_y``.

    Raises
    ------
    Img2GeneError
        A file cannot be read, the files belong to different sections, counts are not raw counts, spots or genes occur
        twice, or the name of the section cannot be stored.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.io.read_legacy_st(
    ...     "C2.tsv.gz", "C2.jpg", "C2_selection.tsv", section="C2", patient="C"
    ... )  # doctest: +SKIP

    References
    ----------
    Ståhl et al., "Visualization and analysis of gene expression in tissue sections by spatial transcriptomics",
    Science 2016; Andersson et al., Nat Commun 2021 (spot files).
    """
    check = Arguments()
    with check.collect():
        _schema.check_name(section, "section")
    counts_path, spots_path = check.path("counts", counts), check.path("spots", spots, optional=True)
    image = image if isinstance(image, np.ndarray) else check.path("image", image)
    patient = check.label("patient", patient, optional=True)
    spot_um, pitch_um = check.number("spot_um", spot_um, above=0), check.number("pitch_um", pitch_um, above=0)
    mpp = check.number("mpp", mpp, above=0, optional=True)
    check.raise_all()
    pixels = image if isinstance(image, np.ndarray) else read_image(Path(image))
    raise_problems(image_problems(pixels))
    table = _read_tsv(counts_path, "counts", index_col=0)
    _check_counts(table, str(counts_path))
    array_xy = _array_coordinates(table.index, str(counts_path))
    if spots_path is None:
        xy = (array_xy - 1) / (np.array(ARRAY_SHAPE) - 1) * np.array(pixels.shape[1::-1])
    else:
        table, array_xy, xy = _join_spots(table, array_xy, _read_tsv(spots_path, "spots"), str(spots_path))
    if mpp is None:
        mpp = pitch_um / _pixels_per_array_unit(array_xy, xy)
    adata = _to_anndata(table, array_xy, section)
    if spots_path is not None:
        # Without the file, the last spots lie on the edge of the frame by definition.
        inside = mark_inside(xy, pixels, section, adata)
        adata, xy = adata[inside].copy(), xy[inside]
    return build_section(pixels, xy, adata, section=section, patient=patient, mpp=mpp, spot_um=spot_um)


def _read_tsv(path: Path, argument: str, **options: Any) -> pd.DataFrame:
    """Read a tab-separated file, which may be gzipped."""
    try:
        return pd.read_csv(path, sep="\t", **options)
    except _UNREADABLE as error:
        raise Img2GeneError(
            f"{argument}={str(path)!r} cannot be read as a tab-separated table ({error}). Name a text file, or a "
            "gzipped one with the ending .gz."
        ) from error


def _check_counts(table: pd.DataFrame, source: str) -> None:
    if table.empty:
        raise Img2GeneError(f"{source}: no counts found ({table.shape[0]} rows, {table.shape[1]} columns of numbers).")
    problems = []
    text = [name for name, dtype in table.dtypes.items() if not _is_number(dtype)]
    if text:
        problems.append(f"{source}: columns that are not numbers: {listing(text)}.")
    else:
        problems += count_problems(table.to_numpy(), source)
    for kind, names in (("spots", table.index), ("genes", table.columns)):
        duplicated = names[names.duplicated()].unique()
        if len(duplicated):
            problems.append(f"{source}: duplicate {kind}: {listing(duplicated)}.")
    # pandas renames a repeated column to "name.1", so duplicates show only as pairs.
    raise_problems(problems + _renamed_duplicates(table, source))


def _is_number(dtype: Any) -> bool:
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)


def _renamed_duplicates(table: pd.DataFrame, source: str) -> list[str]:
    stems = table.columns.str.replace(r"\.1$", "", regex=True)
    twice = stems[(stems != table.columns) & stems.isin(table.columns)]
    # A gene may be called "name.1", so only columns with equal counts are duplicates.
    clones = [gene for gene in twice if table[gene].equals(table[f"{gene}.1"])]
    return [f"{source}: duplicate genes: {listing(clones)}."] if clones else []


def _array_coordinates(names: pd.Index, source: str) -> np.ndarray:
    parts = names.astype(str).str.extract(rf"^({_NUMBER})x({_NUMBER})$").to_numpy(dtype=object)
    bad = names[pd.isna(parts).any(axis=1)]
    if len(bad):
        raise Img2GeneError(f"{source}: row names must be array coordinates such as 10x21, but are {listing(bad)}.")
    return parts.astype(float)


def _join_spots(
    table: pd.DataFrame, array_xy: np.ndarray, spots: pd.DataFrame, source: str
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    lacking = [column for column in _SPOT_COLUMNS if column not in spots]
    if lacking:
        raise Img2GeneError(f"{source}: columns {listing(lacking)} not found (available: {listing(spots.columns)}).")
    if "selected" in spots:
        spots = spots[_selected(spots["selected"], source)]
    numbers = [name for name in (*_SPOT_COLUMNS, *_ADJUSTED) if name in spots]
    bad = [name for name in numbers if not _is_number(spots[name].dtype) or not np.isfinite(spots[name]).all()]
    if bad:
        raise Img2GeneError(f"{source}: columns {listing(bad)} hold values that are no numbers, or none in some rows.")
    places = pd.MultiIndex.from_arrays(np.rint(array_xy).astype(int).T)
    if places.has_duplicates:
        raise Img2GeneError(f"Counted spots share a place of the array: {listing(places[places.duplicated()])}.")
    keys = pd.MultiIndex.from_frame(spots[["x", "y"]].round().astype(int))
    if keys.has_duplicates:
        raise Img2GeneError(f"{source}: array position listed twice: {listing(keys[keys.duplicated()])}.")
    rows = keys.get_indexer(places)
    listed = rows >= 0
    shared = max(listed.mean(), listed.sum() / max(len(keys), 1))
    text = f"{source}: {listed.sum()} spots are in both files, of {len(listed)} counted and {len(keys)} selected spots"
    if shared < _LEAST_SHARED:
        raise Img2GeneError(f"{text}. Check that counts and spot file are of one section.")
    if shared < _SAME_SECTION:
        logger.warning("%s, and only these are kept. Check that counts and spot file are of one section", text)
    elif not listed.all() or len(keys) > listed.sum():
        logger.info("%s", text)
    chosen = spots.iloc[rows[listed]]
    # Some files also give array coordinates that were adjusted to the image.
    array = chosen[list(_ADJUSTED if set(_ADJUSTED) <= set(chosen) else _SPOT_COLUMNS[:2])]
    return table[listed], array.to_numpy(float), chosen[["pixel_x", "pixel_y"]].to_numpy(float)


def _selected(column: pd.Series, source: str) -> np.ndarray:
    """Convert the column ``selected`` to bool."""
    values = column.map({1: True, 0: False, "True": True, "False": False})
    if values.isna().any():
        raise Img2GeneError(
            f"{source}: column selected holds {listing(column[values.isna()].unique(), 5)}; expected 0 or 1."
        )
    return values.to_numpy(dtype=bool)


def _pixels_per_array_unit(array_xy: np.ndarray, xy: np.ndarray) -> float:
    """Fit pixel to array coordinates by least squares; return pixels per array step, averaged over both axes."""
    spread = array_xy - array_xy.mean(axis=0)
    if len(xy) < 3 or (np.square(spread).sum(axis=0) == 0).any():
        raise Img2GeneError("Too few spots to derive microns per pixel from their distance; pass `mpp=`.")
    slopes = (spread * (xy - xy.mean(axis=0))).sum(axis=0) / np.square(spread).sum(axis=0)
    if (slopes <= 0).any() or abs(slopes[0] / slopes[1] - 1) > 0.1:
        raise Img2GeneError(
            f"Pixels per array unit differ between x and y ({slopes[0]:.1f}, {slopes[1]:.1f}): "
            "the coordinates may be swapped or mirrored. If they are right, pass `mpp=`."
        )
    return float(slopes.mean())


def _to_anndata(table: pd.DataFrame, array_xy: np.ndarray, section: str) -> AnnData:
    import anndata as ad
    import scipy.sparse as sp

    obs = pd.DataFrame(
        {"array_x": array_xy[:, 0], "array_y": array_xy[:, 1]}, index=[f"{section}_{name}" for name in table.index]
    )
    var = pd.DataFrame(index=table.columns.astype(str))
    return ad.AnnData(sp.csr_matrix(table.to_numpy(dtype=np.float32)), obs=obs, var=var)
