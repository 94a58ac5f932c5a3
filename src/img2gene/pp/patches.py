"""Find each spot's patch in its image; its side in pixels follows from microns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._checks import Arguments, shown
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, Problems
from img2gene._study.colours import WHITE
from img2gene._study.entrance import open_table
from img2gene._study.expression import in_tissue
from img2gene._study.geometry import Geometry, locate, recorded
from img2gene._study.images import scale0
from img2gene._study.microns import resolve_mpp
from img2gene._study.origins import carry_embeddings, patches_digest, region_origin
from img2gene._study.patches import field_boxes
from img2gene._study.pyramids import check_pyramid, thumbnail
from img2gene._study.resolution import warn_of_coarse_images, warn_of_enlarged_images
from img2gene._study.stain_marks import stain_record
from img2gene._study.study import Study
from img2gene._study.tissue import box_fractions, tissue_mask, warn_of_misplaced_spots

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

# These fields were the most accurate ones in benchmarks/encoder_comparison.py.
DEFAULT_FIELDS_UM = (100.0, 200.0, 400.0, 800.0)
_THUMBNAIL_PX = 600
_MIN_LIMIT_PX = 64
_MIN_FIELD_PX = 4


@fill_parameters
def extract_patches(
    sdata: SpatialData,
    *,
    patch_um: float | Sequence[float] = DEFAULT_FIELDS_UM,
    patch_px: int = 224,
    mpp: float | Mapping[str, float] | None = None,
    spot_um: float | None = None,
    images: str | Mapping[str, str] | None = None,
    resolution_um: float | None = None,
    table_key: str = "table",
    inplace: bool = True,
) -> dict[str, dict[str, Any]] | None:
    """Find the image patch of every spot: one or several square fields of view around its centre.

    No pixel is stored: :func:`img2gene.pp.embed_patches` streams them, :func:`img2gene.get.patches` returns chosen
    ones.

    Parameters
    ----------
    sdata
        Study with images, regions (circles, polygons or labels) and a table that annotates them.
    patch_um
        Side of the field of view in µm; several numbers give several fields around one centre. The default fields were
        the most accurate on real sections (``benchmarks/encoder_comparison.py``).
    patch_px
        Side in pixels that every field is resized to before it enters the encoder.
    mpp
        Microns per pixel of the scale-0 image, for all regions or by region. By default it follows from the reader's
        record, the Visium lattice (100 µm from spot to spot), the bin size in a name like ``square_008um`` of bins that
        touch, or another region on the same image. Nothing else is assumed.
    spot_um
        Diameter of the spots in µm, from which microns per pixel follow if ``mpp`` is None. The hexagonal Visium
        lattice is more exact, so it is used instead, with a warning, if the two differ.
    images
        Image element, for all regions or by region. By default the largest image in the region's coordinate system.
    %(resolution_um)s
    table_key
        Table whose rows get a patch.
    %(inplace_update)s

    Returns
    -------
    None, or the update. The call writes ``obsm["patch_bbox"]`` (int64 (n_obs, 4): y0, x0, y1, x1 of the first field in
    pixels of the scale-0 image; windows may exceed it and are padded with white), ``obs["patch_tissue"]`` (tissue
    fraction of the first field, 0–1), ``obs["patch_inside"]`` (fraction inside the image) and the specification in
    ``uns["img2gene"]["patches"]``, with a digest of each image; ``uns["spatial"]`` gets a thumbnail for squidpy where
    it has none.

    Raises
    ------
    Img2GeneError
        All problems at once: columns of these names that the function did not write, no image or coordinate system in
        common, spots outside the image or on the scale of a downscaled one, unknown microns per pixel, a transformation
        that rotates or stretches, scales of an image that show different pictures, fields that are too large for the
        image. Spots that a crop left on the edge of the image are kept, with a warning.

    Notes
    -----
    Images coarser than 1 µm per pixel do not show nuclei; a warning names them, and what to do.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=(112, 224))
    >>> sdata["table"].obsm["patch_bbox"].shape[1]
    4
    """
    check = Arguments()
    arguments = PatchArguments.checked(check, patch_um, patch_px, mpp, spot_um, images, resolution_um, inplace)
    study = open_table(check, sdata, table_key, with_windows=False)
    check.messages += _library_problems(study.table, study.name)
    check.messages += [] if inplace is False else _foreign_columns(study)
    check.raise_all()
    geometries = locate(study, images)
    resolution = resolve_mpp(study, geometries, mpp=mpp, spot_um=spot_um)
    update, libraries = _found_patches(study, geometries, resolution, arguments)
    _warn_of_resolution(geometries, resolution, arguments)
    if not inplace:
        return update
    entries = update["uns"]["patches"]["regions"]
    moved = [geometry for geometry in geometries if _moved(study, geometry, entries[geometry.region])]
    outdated = {name for geometry in moved for name in study.section_names(geometry.rows)}
    with _schema.all_or_nothing(study.table):
        _schema.apply(study.table, update)
        _add_libraries(study, geometries, libraries, outdated)
    return None


def _warn_of_resolution(geometries: list[Geometry], resolution: dict[str, float], arguments: PatchArguments) -> None:
    """Warn of images that are too coarse, unless the call reads all of them at such a resolution."""
    images = {geometry.image_key: resolution[geometry.region] for geometry in geometries}
    warn_of_enlarged_images(images, arguments.resolution_um)
    if not (arguments.resolution_um or 0) * 1.01 >= max(images.values(), default=0):
        warn_of_coarse_images(images, arguments.fields[0], arguments.patch_px)


@dataclass(frozen=True)
class PatchArguments:
    """Fields of view and input size of a call, checked."""

    fields: list[float]
    patch_px: int
    resolution_um: float | None = None

    @property
    def record(self) -> dict[str, Any]:
        """What is stored of them; without ``resolution_um`` as in earlier versions."""
        resolution = {} if self.resolution_um is None else {"resolution_um": self.resolution_um}
        return {"patch_um": self.fields, "patch_px": self.patch_px, **resolution}

    @classmethod
    def checked(
        cls,
        check: Arguments,
        patch_um: Any,
        patch_px: Any,
        mpp: Any,
        spot_um: Any,
        images: Any,
        resolution_um: Any,
        inplace: Any,
    ) -> PatchArguments:
        """Check all arguments of :func:`extract_patches` but the study, which the caller opens."""
        fields = check_fields(check, patch_um)
        pixels = check.whole("patch_px", patch_px, 32, _schema.MAX_SIDE_PX)
        for name, value in mpp.items() if isinstance(mpp, Mapping) else [("", mpp)]:
            check.number(f"mpp[{name!r}]" if name else "mpp", value, above=0, optional=not name)
        check.number("spot_um", spot_um, above=0, optional=True)
        for name, value in images.items() if isinstance(images, Mapping) else [("", images)]:
            check.text(f"images[{name!r}]" if name else "images", value, optional=not name)
        check.flag("inplace", inplace)
        return cls(fields, pixels, check_resolution(check, resolution_um, fields))


def check_resolution(check: Arguments, resolution_um: Any, fields: list[float]) -> Any:
    """Convert the resolution that all images are read at; every field needs a few pixels in it."""
    resolution_um = check.number("resolution_um", resolution_um, above=0, optional=True)
    sizes = [field for field in fields if isinstance(field, float)]
    if isinstance(resolution_um, float) and sizes and min(sizes) < _MIN_FIELD_PX * resolution_um:
        check.messages.append(
            f"resolution_um={resolution_um:g}: a field of {min(sizes):g} µm would have less than {_MIN_FIELD_PX} pixels; choose a "
            "smaller `resolution_um` or a larger `patch_um`."
        )
    return resolution_um


def check_fields(check: Arguments, patch_um: Any) -> list[float]:
    """Convert one field of view or several to a list of floats."""
    if isinstance(patch_um, str | bytes | Mapping) or not isinstance(patch_um, Iterable):
        return [check.number("patch_um", patch_um, above=0)]
    values = list(np.atleast_1d(patch_um) if isinstance(patch_um, np.ndarray) else patch_um)
    fields = Arguments()
    numbers = [fields.number("patch_um", value, above=0) for value in values]
    if fields.messages or not values:
        check.messages.append(f"patch_um={shown(patch_um)}: expected one or several positive numbers of microns.")
    else:
        check.distinct("patch_um", numbers)
    return numbers


def _found_patches(
    study: Study, geometries: list[Geometry], resolution: dict[str, float], arguments: PatchArguments
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Find the windows of all regions; return the update of the table, and each section's entry for squidpy."""
    update, libraries, problems = _empty_update(study.table, arguments), {}, Problems()
    sides = {}
    for image_key in dict.fromkeys(geometry.image_key for geometry in geometries):
        with problems.collect():
            check_pyramid(study.sdata, image_key)
    for geometry in geometries:
        with problems.collect():
            size = scale0(study.sdata, geometry.image_key).shape[1:]
            sides[geometry.region] = _sides(arguments.fields, resolution[geometry.region], geometry, max(size))
    with problems.collect():
        # Thumbnails are stored by section, so missing names are noticed before anything is written.
        names = study.sections
        used = in_tissue(study.table)
    problems.raise_all()
    for geometry in geometries:
        region, rows = geometry.region, geometry.rows
        # Further fields share the centre, so the first window is enough to find them.
        boxes = field_boxes(geometry.centers, sides[region])[:, 0]
        picture, step = _overview(study.sdata, geometry.image_key, int(sides[region][0]))
        entry = _entry(study, geometry, resolution[region], sides[region], boxes, arguments)
        update["obsm"][_schema.PATCH_BBOX][rows] = boxes
        tissue = tissue_mask(picture)
        update["obs"][_schema.PATCH_TISSUE][rows] = box_fractions(tissue, boxes, step)
        warn_of_misplaced_spots(region, geometry.image_key, boxes[used[rows]], tissue, step)
        update["obs"][_schema.PATCH_INSIDE][rows] = _inside(boxes, tuple(entry["size"]))
        update["uns"]["patches"]["regions"][region] = entry
        for name in dict.fromkeys(names[rows].tolist()):
            libraries[name] = _library(study, picture, step, geometry)
    return update, libraries


def _entry(
    study: Study,
    geometry: Geometry,
    mpp: float,
    sides: np.ndarray,
    boxes: np.ndarray,
    arguments: PatchArguments,
) -> dict[str, Any]:
    """Build the record of a region's patches, with all that they were made from."""
    origin = region_origin(study, geometry) | stain_record(study.sdata, geometry.image_key)
    entry = {"image": geometry.image_key, "mpp": mpp, "side_px": [int(side) for side in sides], **origin}
    if geometry.spot_px > 0:
        entry["spot_width"] = geometry.spot_px * geometry.units_per_px
    settings = {key: entry[key] for key in ("mpp", "side_px", "content")} | {"patch_um": arguments.fields}
    if arguments.resolution_um is not None:
        settings["resolution_um"] = arguments.resolution_um
    entry["digest"] = patches_digest(study, geometry.rows, boxes, settings)
    record = study.record("patches") or {}
    old, stored = record.get("regions", {}).get(geometry.region, {}), study.table.obsm.get(_schema.PATCH_BBOX)
    same_call = record.get("resolution_um") == arguments.resolution_um and record.get("patch_um") == arguments.fields
    same_settings = same_call and all(
        old.get(key) == entry[key] for key in ("image", "mpp", "side_px", "content") if key in old or key == "image"
    )
    unchanged = same_settings and stored is not None and np.array_equal(np.asarray(stored)[geometry.rows], boxes)
    carry_embeddings(study, geometry.region, entry, unchanged=unchanged)
    return entry


def _sides(fields: list[float], mpp: float, geometry: Geometry, longest: int) -> np.ndarray:
    """Convert fields of view to whole pixels; refuse fields that are too small or too large for the image."""
    exact = np.array(fields) / mpp
    if np.rint(exact).min() < _MIN_FIELD_PX:
        raise Img2GeneError(
            f"A field of {min(fields):g} µm is only {np.rint(exact).min():.0f} pixels of image `{geometry.image_key}` "
            f"({mpp:.3g} µm per pixel); use a larger `patch_um` or an image of higher resolution."
        )
    # A window twice as long as the image shows all of it around any spot; more would add white only.
    limit = min(_schema.MAX_SIDE_PX, max(2 * longest, _MIN_LIMIT_PX))
    if exact.max() > limit:
        raise Img2GeneError(
            f"A field of {max(fields):g} µm is {exact.max():.4g} pixels of image `{geometry.image_key}`, whose longer "
            f"side has {longest} ({mpp:.3g} µm per pixel); the largest field is {limit * mpp:.4g} µm. Use a smaller "
            "`patch_um`, or check `mpp`."
        )
    return np.rint(exact).astype(np.int64)


def _empty_update(table: AnnData, arguments: PatchArguments) -> dict[str, dict[str, Any]]:
    """Prepare the update, to be filled region by region."""
    n = table.n_obs
    patches = {**arguments.record, "regions": {}}
    return {
        "obsm": {_schema.PATCH_BBOX: np.zeros((n, 4), dtype=np.int64)},
        "obs": {_schema.PATCH_TISSUE: np.zeros(n), _schema.PATCH_INSIDE: np.zeros(n)},
        "uns": {"patches": patches},
    }


def _inside(boxes: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Compute the share of each box that lies inside the image."""
    clipped = np.clip(boxes, 0, [size[0], size[1], size[0], size[1]])
    area = (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1])
    return area / ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _overview(sdata: SpatialData, image_key: str, side: int) -> tuple[np.ndarray, float]:
    """Read a thumbnail with at least eight points across a patch of ``side`` pixels."""
    return thumbnail(sdata, image_key, max(1, side // 8))


def _library(study: Study, picture: np.ndarray, step: float, geometry: Geometry) -> dict[str, Any]:
    """Build a section's entry of ``uns["spatial"]``, as squidpy expects it; empty if the positions do not allow one."""
    origin = _origin(study, geometry)
    if origin is None:
        return {}
    # squidpy draws the picture from the origin of `obsm["spatial"]` on, which a crop moves away from the image's corner.
    before = np.rint(origin / step).astype(int)
    every = max(1, max(np.array(picture.shape[:2]) + before) // _THUMBNAIL_PX)
    margin = -(-np.maximum(before, 0) // every)
    part = picture[max(-before[0], 0) :: every, max(-before[1], 0) :: every]
    padded = np.pad(part, ((margin[0], 0), (margin[1], 0), (0, 0)), constant_values=WHITE)
    return {
        "images": {"hires": np.ascontiguousarray(padded)},
        "scalefactors": {
            # squidpy multiplies `obsm["spatial"]`, in units of the region, by this factor to get pixels of the picture.
            "tissue_hires_scalef": 1 / (step * every * geometry.units_per_px),
            "spot_diameter_fullres": geometry.spot_px * geometry.units_per_px,
        },
    }


def _origin(study: Study, geometry: Geometry) -> np.ndarray | None:
    """Find how many pixels (rows, columns) the image begins after the origin of ``obsm["spatial"]``.

    None if the positions are no scaled and shifted image coordinates, because they would be drawn on other places.
    """
    if "spatial" not in study.table.obsm:
        return np.zeros(2)
    places = np.asarray(study.table.obsm["spatial"])[geometry.rows]
    if places.ndim != 2 or places.shape[1] < 2:
        return None
    shifts = places[:, 1::-1].astype(float) / geometry.units_per_px - geometry.centers
    origin = np.median(shifts, axis=0)
    spread = np.abs(shifts - origin).max()
    return origin if spread <= max(2.0, np.nan_to_num(geometry.spot_px) / 4) else None


def _foreign_columns(study: Study) -> list[str]:
    """List columns of the user that the call would replace; windows or their record show that they are its own."""
    table = study.table
    if _schema.PATCH_BBOX in table.obsm or study.record("patches") is not None:
        return []
    names = [f"obs['{name}']" for name in (_schema.PATCH_TISSUE, _schema.PATCH_INSIDE) if name in table.obs]
    return _schema.foreign_problems(names, f"Rename or drop it in `{study.name}`")


def _library_problems(table: AnnData, name: str) -> list[str]:
    """Refuse an entry ``uns["spatial"]`` that cannot hold thumbnails, and that the user may need."""
    spatial = table.uns.get("spatial")
    if spatial is None or isinstance(spatial, Mapping):
        return []
    return [
        f"`{name}.uns['spatial']` is a {type(spatial).__name__}; squidpy's thumbnails by section belong there. Rename or "
        "delete it."
    ]


def _moved(study: Study, geometry: Geometry, entry: dict[str, Any]) -> bool:
    """Check whether the image or the place of a region has changed since the package described it."""
    old = (study.record("patches") or {}).get("regions", {}).get(geometry.region)
    if old is None:
        # Readers of the package lay spots and image out in the same pixels.
        same_image = recorded(study.table, geometry.region).get("image") == geometry.image_key
        return same_image and not np.allclose(geometry.matrix, np.eye(3))
    known = {key: old.get(key, entry[key]) for key in ("image", "content", "matrix")}
    return any(known[key] != entry[key] for key in known)


def _add_libraries(
    study: Study, geometries: list[Geometry], libraries: dict[str, dict[str, Any]], outdated: set[str]
) -> None:
    """Store a thumbnail per section for squidpy; keep existing images and an existing ``obsm["spatial"]``.

    ``outdated`` are sections whose thumbnail shows an earlier image or place.
    """
    table = study.table
    if "spatial" not in table.obsm:
        positions = np.zeros((table.n_obs, 2))
        for geometry in geometries:
            # Readers leave (x, y) in units of the region here.
            positions[geometry.rows] = geometry.centers[:, ::-1] * geometry.units_per_px
        table.obsm["spatial"] = positions
    # Entries are copied, so that another table with the same ones does not change. CELLxGENE puts a flag among them.
    spatial = {
        key: dict(value) if isinstance(value, Mapping) else value
        for key, value in (table.uns.get("spatial") or {}).items()
    }
    for name, library in libraries.items():
        entry = spatial.setdefault(name, {})
        if isinstance(entry, dict) and ("images" not in entry or name in outdated):
            for part, values in library.items():
                entry[part] = {**entry.get(part, {}), **values}
    table.uns["spatial"] = spatial
