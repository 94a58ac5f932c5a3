"""Reader for legacy Spatial Transcriptomics sections: a count table, an image, and the pixel position of each spot."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene._study.expression import count_problems

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

PITCH_UM = 200.0
"""Centre-to-centre distance of neighbouring spots on a legacy ST array, in µm."""
ARRAY_SHAPE = (33, 35)
"""Spots per row and column of a legacy ST array, the frame that images without a spot file are cropped to."""


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
        Tab-separated raw counts (gzip allowed), spots in rows named ``AxB`` by their array coordinates (fractions
        allowed), genes in columns.
    image
        H&E image file (JPEG, PNG, TIFF), or its pixels as uint8 (height, width, 3).
    spots
        Tab-separated spot file with ``x``, ``y`` (array coordinates), ``pixel_x`` (column), ``pixel_y`` (row) and
        optionally ``selected``; only selected spots with counts are kept. Without it the image is taken to be cropped
        to the array's frame of 33 × 35 spots, so that spot ``AxB`` lies at ``((A - 1) / 32 · width, (B - 1) / 34 · height)``.
    section
        Name of the section; also its coordinate system and the stem of its element names.
    patient
        Donor of the section. Splits are made by it: sections of one donor share its name.
    spot_um
        Spot diameter in µm.
    mpp
        Microns per pixel of the image. By default from the distance of neighbouring spots, ``pitch_um``.
    pitch_um
        Centre-to-centre distance of neighbouring spots in µm, used when ``mpp`` is not given.

    Returns
    -------
    SpatialData with ``images["<section>_image"]``, circles ``shapes["<section>_spots"]`` and ``tables["table"]``, whose X
    holds raw counts (CSR float32) and obs holds ``section``, ``patient``, ``region``, ``spot_id``, ``library_size``.

    Raises
    ------
    Img2GeneError
        The files do not fit each other, counts are not raw counts, spots or genes are duplicated, or the section's
        name cannot be stored.

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
    from img2gene.io.sections import build_section

    _schema.check_name(section, "section")
    pixels = image if isinstance(image, np.ndarray) else _read_image(Path(image))
    table = pd.read_csv(counts, sep="\t", index_col=0)
    _check_counts(table, str(counts))
    array_xy = _array_coordinates(table.index, str(counts))
    if spots is None:
        xy = (array_xy - 1) / (np.array(ARRAY_SHAPE) - 1) * np.array(pixels.shape[1::-1])
    else:
        table, array_xy, xy = _join_spots(table, array_xy, pd.read_csv(spots, sep="\t"), str(spots))
    if mpp is None:
        mpp = pitch_um / _pixels_per_array_unit(array_xy, xy)
    adata = _to_anndata(table, array_xy, section)
    return build_section(pixels, xy, adata, section=section, patient=patient, mpp=mpp, spot_um=spot_um)


def _read_image(path: Path) -> np.ndarray:
    from PIL import Image

    from img2gene._study.images import to_rgb

    # Whole-slide images exceed Pillow's guard against decompression bombs; the file is the user's own.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return to_rgb(pixels, str(path))


def _check_counts(table: pd.DataFrame, source: str) -> None:
    problems = []
    text = [column for column in table if not pd.api.types.is_numeric_dtype(table[column])]
    if text:
        problems.append(f"{source}: columns that are not numbers: {listing(text)}.")
    else:
        problems += count_problems(table.to_numpy(), source)
    for kind, names in (("spots", table.index), ("genes", table.columns)):
        duplicated = names[names.duplicated()].unique()
        if len(duplicated):
            problems.append(f"{source}: duplicate {kind}: {listing(duplicated)}.")
    # pandas renames a repeated column to "name.1", so a repetition shows only in the pairs
    raise_problems(problems + _renamed_duplicates(table, source))


def _renamed_duplicates(table: pd.DataFrame, source: str) -> list[str]:
    stems = table.columns.str.replace(r"\.1$", "", regex=True)
    twice = stems[(stems != table.columns) & stems.isin(table.columns)]
    clones = [gene for gene in twice if table[gene].equals(table[f"{gene}.1"])]
    return [f"{source}: duplicate genes: {listing(clones)}."] if clones else []


def _array_coordinates(names: pd.Index, source: str) -> np.ndarray:
    parts = names.astype(str).str.extract(r"^(-?[\d.]+)x(-?[\d.]+)$").to_numpy(dtype=object)
    bad = names[pd.isna(parts).any(axis=1)]
    if len(bad):
        raise Img2GeneError(f"{source}: spots are named by array coordinates, like 10x21; found {listing(bad)}.")
    return parts.astype(float)


def _join_spots(
    table: pd.DataFrame, array_xy: np.ndarray, spots: pd.DataFrame, source: str
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    lacking = [column for column in ("x", "y", "pixel_x", "pixel_y") if column not in spots]
    if lacking:
        raise Img2GeneError(f"{source}: columns {listing(lacking)} not found (available: {listing(spots.columns)}).")
    if "selected" in spots:
        spots = spots[spots["selected"].astype(bool)]
    keys = pd.MultiIndex.from_frame(spots[["x", "y"]].round().astype(int))
    if keys.has_duplicates:
        raise Img2GeneError(f"{source}: array position listed twice: {listing(keys[keys.duplicated()])}.")
    wanted = pd.MultiIndex.from_arrays(np.rint(array_xy).astype(int).T)
    place = keys.get_indexer(wanted)
    found = place >= 0
    if not found.any():
        raise Img2GeneError(f"{source}: no spot of the count table is listed; are both files of one section?")
    if not found.all() or len(keys) > found.sum():
        logger.info("%s: kept %d of %d counted and %d listed spots", source, found.sum(), len(found), len(keys))
    chosen = spots.iloc[place[found]]
    array = chosen[["new_x", "new_y"] if {"new_x", "new_y"} <= set(chosen) else ["x", "y"]]
    return table[found], array.to_numpy(float), chosen[["pixel_x", "pixel_y"]].to_numpy(float)


def _pixels_per_array_unit(array_xy: np.ndarray, xy: np.ndarray) -> float:
    """Pixels per array step: least squares of pixel on array coordinates, averaged over both axes."""
    spread = array_xy - array_xy.mean(axis=0)
    if len(xy) < 3 or (np.square(spread).sum(axis=0) == 0).any():
        raise Img2GeneError("Too few spots to derive microns per pixel from their distance; pass `mpp=`.")
    slopes = (spread * (xy - xy.mean(axis=0))).sum(axis=0) / np.square(spread).sum(axis=0)
    if (slopes <= 0).any() or abs(slopes[0] / slopes[1] - 1) > 0.1:
        raise Img2GeneError(
            f"Pixels per array unit differ between x and y ({slopes[0]:.1f}, {slopes[1]:.1f}): "
            "swapped or mirrored coordinates? Pass `mpp=` if this is meant."
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
