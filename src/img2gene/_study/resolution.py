"""Compare images by microns per pixel, choose the scale that patches are read from, and name what would mislead."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from img2gene._errors import listing
from img2gene._study.study import Study

logger = logging.getLogger(__name__)

# A nucleus, some 8 µm wide, has fewer than eight pixels in a coarser image.
COARSE_UM = 1.05
# Scans of 20× and 40× of one scanner differ by a factor of two give or take a few percent.
_MOST_RATIO = 2.05


_warned = ContextVar("img2gene_resolution_warned", default=False)


@contextmanager
def resolution_warned() -> Iterator[None]:
    """Say nothing of unequal sections within the block, as many parts of one call would repeat it."""
    token = _warned.set(True)
    try:
        yield
    finally:
        _warned.reset(token)


def seen_um(mpp: float, resolution_um: float | None) -> float:
    """Microns per pixel of the patches of an image: those of the image, or the coarser ``resolution_um``."""
    return float(max(mpp, resolution_um or 0))


def nearest_scale(scales_um: Sequence[float], target_um: float) -> int:
    """Choose the scale of an image whose microns per pixel are nearest to ``target_um`` by ratio; of two, the finer.

    Examples
    --------
    >>> from img2gene._study.resolution import nearest_scale
    >>> nearest_scale([0.25, 1.0, 4.0], 0.9), nearest_scale([0.25, 1.0, 4.0], 0.5)
    (1, 0)
    """
    distances = np.abs(np.log(np.asarray(scales_um) / target_um))
    # Rounded sizes of scales must not decide between two that are equally near.
    return int(np.flatnonzero(distances <= distances.min() + 1e-3)[0])


def section_resolutions(study: Study, rows: np.ndarray | None = None) -> dict[str, float]:
    """Read microns per pixel of each section's patches, for the sections among ``rows``; those unknown are left out."""
    record = study.record("patches") or {}
    resolutions: dict[str, float] = {}
    # A mask: sorting the rows of each region takes a tenth of the time of a prediction.
    among = np.full(study.n_obs, rows is None)
    if rows is not None:
        among[rows] = True
    for region, members in study.regions.items():
        mpp = record.get("regions", {}).get(region, {}).get("mpp")
        chosen = members[among[members]]
        if not mpp or not len(chosen):
            continue
        um = seen_um(mpp, record.get("resolution_um"))
        for name in study.section_names(chosen):
            resolutions[name] = max(um, resolutions.get(name, 0.0))
    return resolutions


def warn_of_coarse_images(images: Mapping[str, float], field_um: float, patch_px: int) -> None:
    """Warn of images, given with microns per pixel, in which a field of view has too few pixels to show nuclei."""
    coarse = {name: um for name, um in images.items() if um > COARSE_UM}
    if not coarse:
        return
    shown = listing(f"`{name}` {um:.3g} µm per pixel, {field_um / um:.0f} px" for name, um in coarse.items())
    logger.warning(
        "images coarser than 1 µm per pixel do not show nuclei: a field of %g µm is enlarged to %d px (%s). Read the "
        "full-resolution scan instead: pass it to the reader as the section's image, or, if it is in the object, as "
        "`images=`. Without one, read all sections that are compared with these at one resolution: "
        "`img2gene.pp.extract_patches(sdata, resolution_um=%.3g)`",
        field_um,
        patch_px,
        shown,
        max(coarse.values()),
    )


def warn_of_enlarged_images(images: Mapping[str, float], resolution_um: float | None) -> None:
    """Warn of images, given with microns per pixel, that are coarser than the resolution they are to be read at."""
    coarse = {name: um for name, um in images.items() if resolution_um and um > resolution_um * 1.01}
    if coarse:
        logger.warning(
            "resolution_um=%.3g is finer than the images %s, whose patches keep their resolution: pass resolution_um=%.3g or "
            "more to read all of them at one",
            resolution_um,
            listing(f"`{name}` ({um:.3g} µm per pixel)" for name, um in coarse.items()),
            max(coarse.values()),
        )


def warn_of_unequal_sections(study: Study, rows: np.ndarray) -> None:
    """Warn if microns per pixel of the sections among ``rows`` differ more than twofold."""
    resolutions = {} if _warned.get() else section_resolutions(study, rows)
    values = resolutions.values()
    if values and max(values) > _MOST_RATIO * min(values):
        logger.warning(
            "the images of the sections differ more than twofold in µm per pixel (%s), so the encoder sees the same tissue "
            "in different sharpness. Read all of them at one resolution: "
            "`img2gene.pp.extract_patches(sdata, resolution_um=%.3g%s)`, then embed again",
            _shown(resolutions),
            max(values),
            study.table_argument,
        )


def warn_of_other_resolution(study: Study, rows: np.ndarray, trained: Mapping[str, Any] | None) -> None:
    """Warn of sections among ``rows`` whose µm per pixel are more than twofold from all ``trained`` sections."""
    if not trained:
        return warn_of_unequal_sections(study, rows)
    known = np.array(list(trained.values()), dtype=float)
    resolutions = {} if _warned.get() else section_resolutions(study, rows)
    far = {name: um for name, um in resolutions.items() if (np.maximum(um / known, known / um) > _MOST_RATIO).all()}
    if far:
        coarser = {name: um for name, um in far.items() if um > known.max()}
        logger.warning(
            "the images of %s differ more than twofold in µm per pixel from those that the model was trained on (%s), so "
            "predictions there are poor. %s",
            _shown(far),
            _range(known),
            _train_again(coarser, study) if coarser else _read_coarser(float(known.min()), study),
        )
    return None


def _train_again(coarser: dict[str, float], study: Study) -> str:
    um = max(coarser.values())
    return (
        f"Read all sections at one resolution, `img2gene.pp.extract_patches(sdata, resolution_um={um:.3g}"
        f"{study.table_argument})`, embed them and train again, or use a finer scan"
    )


def _read_coarser(um: float, study: Study) -> str:
    return (
        f"Read them as in the training, `img2gene.pp.extract_patches(sdata, resolution_um={um:.3g}"
        f"{study.table_argument})`, and embed them again"
    )


def _shown(resolutions: Mapping[str, float]) -> str:
    return listing((f"{name} {um:.3g}" for name, um in resolutions.items()), 6)


def _range(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    return f"{low:.3g}" if high / low < 1.01 else f"{low:.3g} to {high:.3g}"
