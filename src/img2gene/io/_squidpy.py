"""Lay out a study for squidpy: positions, a thumbnail and scale factors of each section, all from its current image."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._errors import Img2GeneError, MissingKeyError, Problems, listing, missing
from img2gene._study.entrance import stored_positions
from img2gene._study.geometry import Geometry, locate_region, recorded, transformations
from img2gene._study.images import scale0
from img2gene._study.pyramids import thumbnail
from img2gene.io.sections import THUMBNAIL_PX

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from img2gene._study.study import Study

logger = logging.getLogger(__name__)

Libraries = dict[str, dict[str, Any]]
_MAX_THUMBNAIL_PX = 4800


def squidpy_layout(study: Study, images: str | Mapping[str, str] | None) -> tuple[np.ndarray, Libraries]:
    """Return positions (n_obs, 2: x, y), and the entry of ``uns["spatial"]`` of each section.

    Both come from the image of each region as it is now. Regions without an image keep what is stored.
    """
    geometries, problems = {}, Problems()
    for region, rows in study.regions.items():
        with problems.collect():
            geometries[region] = _located(study, region, rows, images)
    problems.raise_all()
    sections = _images_of_sections(study, geometries)
    positions = _positions(study, geometries)
    stored = study.table.uns.get("spatial")
    stored = stored if isinstance(stored, Mapping) else {}
    libraries: Libraries = {}
    for image in dict.fromkeys(sections.values()):
        names = [name for name, other in sections.items() if other == image]
        if image is None:
            libraries |= {name: stored[name] for name in names if _fits(study, name, stored.get(name), positions)}
        else:
            on_image = [item for item in geometries.values() if item is not None and item.image_key == image]
            entry = _entry(study.sdata, on_image, len(names))
            libraries |= {name: _details(stored.get(name)) | entry for name in names}
    return positions, libraries


def _located(study: Study, region: str, rows: np.ndarray, images: str | Mapping[str, str] | None) -> Geometry | None:
    """Locate a region in its image; None if the study holds no image of it."""
    if images is None and not _has_image(study.sdata, region):
        if region not in study.sdata and recorded(study.table, region).get("image") in study.sdata.images:
            # The stored positions may be those of another crop of the image.
            hint = "The table names this region, whose image the study holds: add the region, or leave out its rows."
            raise MissingKeyError(missing(region, "sdata", [*study.sdata.shapes, *study.sdata.labels], hint))
        return None
    if images is None:
        entries = (study.record("patches") or {}).get("regions", {})
        image = entries.get(region, {}).get("image")
        images = image if image in study.sdata.images else None
    return locate_region(study, region, rows, images)


def _has_image(sdata: SpatialData, region: str) -> bool:
    if region not in sdata:
        return False
    systems = set(transformations(sdata, region))
    return any(systems & set(transformations(sdata, name)) for name in sdata.images)


def _images_of_sections(study: Study, geometries: dict[str, Geometry | None]) -> dict[str, str | None]:
    """Return the image of each section; None if the study holds none of it."""
    keys: dict[str, dict[str | None, None]] = {}
    for region, rows in study.regions.items():
        item = geometries[region]
        for name in study.section_names(rows):
            keys.setdefault(name, {})[None if item is None else item.image_key] = None
    several = {name: list(images) for name, images in keys.items() if len(images) > 1}
    if several:
        texts = [f"{name} ({', '.join(image or 'no image' for image in images)})" for name, images in several.items()]
        raise Img2GeneError(
            f"Sections have spots on several images: {listing(texts)}. squidpy draws one picture per section: name the "
            "parts apart in `obs['section']`, or choose the image with `images=`."
        )
    return {name: next(iter(images)) for name, images in keys.items()}


def _positions(study: Study, geometries: dict[str, Geometry | None]) -> np.ndarray:
    """Return positions in units of each image's first region, from the top left corner of the image."""
    positions = np.full((study.n_obs, 2), np.nan)
    without = [rows for region, rows in study.regions.items() if geometries[region] is None]
    if without:
        rows = np.concatenate(without)
        positions[rows] = _stored_positions(study, rows)
    units: dict[str, float] = {}
    for item in geometries.values():
        if item is not None:
            unit = units.setdefault(item.image_key, item.units_per_px)
            positions[item.rows] = item.centers[:, ::-1] * unit
    return positions


def _stored_positions(study: Study, rows: np.ndarray) -> np.ndarray:
    obsm = study.table.obsm
    if "spatial" not in obsm:
        hint = "Add the image of each region to the study, and run `img2gene.pp.extract_patches`."
        raise MissingKeyError(missing("spatial", f"{study.name}.obsm", obsm, hint))
    return stored_positions(study, rows, "add the image of their region, or leave out these rows")


def _entry(sdata: SpatialData, geometries: list[Geometry], n_sections: int) -> dict[str, Any]:
    """Build the thumbnail and the scale factors of an image that ``n_sections`` share."""
    first = geometries[0]
    # A core of a tissue microarray gets about as many pixels as a section with an image of its own.
    side = min(_MAX_THUMBNAIL_PX, THUMBNAIL_PX * int(np.ceil(np.sqrt(n_sections))))
    height, width = scale0(sdata, first.image_key).shape[1:]
    picture, step = thumbnail(sdata, first.image_key, max(1, int(np.ceil(max(height, width) / side))))
    factors = {"tissue_hires_scalef": 1 / (step * first.units_per_px)}
    diameters = [item.spot_px for item in geometries if item.spot_px > 0]
    if diameters:
        factors["spot_diameter_fullres"] = float(np.median(diameters)) * first.units_per_px
    return {"images": {"hires": picture}, "scalefactors": factors}


def _details(stored: Any) -> dict[str, Any]:
    """Take what else is stored about a library; its pictures and factors may belong to another crop of the image."""
    items = stored.items() if isinstance(stored, Mapping) else ()
    return {key: value for key, value in items if key not in ("images", "scalefactors")}


def _fits(study: Study, name: str, stored: Any, positions: np.ndarray) -> bool:
    """Check that the spots of a section lie on its stored thumbnail; warn if they do not."""
    if not isinstance(stored, Mapping):
        return False
    pictures, factors = stored.get("images"), stored.get("scalefactors")
    if not isinstance(pictures, Mapping) or not isinstance(factors, Mapping):
        return False
    xy = positions[study.section_rows(name)]
    for key, picture in pictures.items():
        size, factor = np.array(np.shape(picture)[1::-1]), factors.get(f"tissue_{key}_scalef")
        if factor is not None and not ((xy * factor >= 0) & (xy * factor <= size)).all():
            logger.warning(
                "section %s: spots lie outside its stored thumbnail %r, which is left out; the study holds no image of it",
                name,
                key,
            )
            return False
    return True
