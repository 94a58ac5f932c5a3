"""Choose the image of each region, and find the spots in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, Problems, listing, missing
from img2gene._study.images import check_scale0, scale0
from img2gene._study.study import Study

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_MAX_ANISOTROPY = 0.02
# Windows have whole pixels, so a smaller shift changes no patch noticeably.
MAX_SHIFT_PX = 1.0


@dataclass(frozen=True)
class Geometry:
    """Where the spots of one region lie in their image.

    Attributes
    ----------
    region
        Name of the region element.
    image_key
        Name of the image element.
    rows
        (n,) rows of the table.
    centers
        float (n, 2): row and column of the spot centres in pixels of the scale-0 image.
    spot_px
        Median spot diameter (side of a square, equivalent diameter of a polygon) in image pixels; NaN for points.
    units_per_px
        Units of the region's own coordinates per image pixel.
    matrix
        float (3, 3) map from the region's own (x, y) to columns and rows of the image.
    """

    region: str
    image_key: str
    rows: np.ndarray
    centers: np.ndarray
    spot_px: float
    units_per_px: float
    matrix: np.ndarray


def locate(study: Study, images: str | Mapping[str, str] | None = None) -> list[Geometry]:
    """Locate the spots of every region in its image; all problems are raised together."""
    geometries, problems = [], Problems()
    for region, rows in study.regions.items():
        with problems.collect():
            geometries.append(locate_region(study, region, rows, images))
    problems.raise_all()
    return geometries


def locate_region(study: Study, region: str, rows: np.ndarray, images: str | Mapping[str, str] | None) -> Geometry:
    """Locate the spots of one region, which are in ``rows`` of the table."""
    sdata = study.sdata
    if region not in sdata:
        raise MissingKeyError(missing(region, "sdata", [*sdata.shapes, *sdata.labels], "The table names this region."))
    image_key = choose_image(study, region, images)
    xy, diameter = _instances(study, region, rows)
    return _geometry(sdata, region, image_key, rows, xy, diameter)


def locate_element(sdata: SpatialData, region: str, image_key: str) -> Geometry:
    """Locate all instances of a region in an image, whether or not a table annotates them."""
    centers, diameter = _centers(sdata, region)
    return _geometry(sdata, region, image_key, np.arange(len(centers)), centers.to_numpy(dtype=float), diameter)


def _geometry(
    sdata: SpatialData, region: str, image_key: str, rows: np.ndarray, xy: np.ndarray, diameter: float
) -> Geometry:
    """Map places in a region's own coordinates into an image."""
    matrix = region_matrix(sdata, region, image_key)
    scale = isotropic_scale(matrix, region, image_key)
    xy = xy @ matrix[:2, :2].T + matrix[:2, 2]
    return Geometry(region, image_key, rows, xy[:, ::-1].copy(), diameter * scale, 1 / scale, matrix)


def choose_image(study: Study, region: str, images: str | Mapping[str, str] | None = None) -> str:
    """Choose the image of a region: the named one, else the recorded one, else the largest in its coordinate system."""
    available = study.sdata.images
    if isinstance(images, str):
        image: str | None = images
    elif images is not None and region not in images:
        raise MissingKeyError(missing(region, "images", images, "Name the image of every region."))
    else:
        image = images[region] if images is not None else None
    if image is not None:
        if image not in available:
            raise MissingKeyError(missing(image, "sdata.images", available, "Pass `images=`."))
        return image
    recorded_image = recorded(study.table, region).get("image")
    if recorded_image in available:
        return str(recorded_image)
    return largest_aligned(study.sdata, region, list(study.regions))


def recorded(table: AnnData, region: str) -> dict[str, Any]:
    """Read what the reader of a region recorded: image, microns per unit, spot diameter; empty if nothing."""
    entries = _schema.read_json(table, "sections", default={})
    return next((entry for entry in entries.values() if entry.get("region") == region), {})


def largest_aligned(sdata: SpatialData, region: str, regions: list[str]) -> str:
    """Choose the largest image in the region's coordinate system; images named like the region come first.

    ``regions`` are all regions of its table, which can have images of their own.
    """
    systems = set(transformations(sdata, region))
    aligned = [name for name in sdata.images if systems & set(transformations(sdata, name))]
    if not aligned:
        raise Img2GeneError(
            f"No image shares a coordinate system with `{region}` (its systems: {listing(systems)}; images: "
            f"{listing(sdata.images)}). Register one with `spatialdata.transformations.set_transformation`."
        )
    # `P10_image` starts with the names of both regions `P1` and `P10`; it belongs to the longer one.
    others = [name for name in regions if name != region]
    named = [
        name
        for name in aligned
        if name.startswith(region) and not any(name.startswith(o) and len(o) > len(region) for o in others)
    ]
    if not named and len(aligned) > 1 and others:
        raise Img2GeneError(
            f"Several images share a coordinate system with `{region}` ({listing(aligned)}); say which with "
            f"`images={{'{region}': …}}`."
        )
    # Readers keep downscaled copies of a scan next to it, so the largest is taken.
    sizes = {name: int(np.prod(scale0(sdata, name).shape[1:])) for name in named or aligned}
    return max(sizes, key=lambda name: sizes[name])


def _instances(study: Study, region: str, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Return centres (x, y) in the element's own coordinates in the order of ``rows``, and the median diameter."""
    obs, key = study.table.obs, study.table.uns["spatialdata_attrs"].get("instance_key")
    if key not in obs:
        raise MissingKeyError(missing(key, f"{study.name}.obs", obs.columns, "It names the instance of each row."))
    centers, diameter = _centers(study.sdata, region)
    # pandas refuses duplicates, too, but its error does not name the region.
    if not centers.index.is_unique:
        raise Img2GeneError(f"`{region}` has duplicate instance names; its index must be unique.")
    instances = obs[key].to_numpy()[rows]
    place = centers.index.get_indexer(instances)
    if (place < 0).any():
        raise Img2GeneError(_unknown_instances(study, region, key, instances[place < 0], centers.index))
    xy = centers.to_numpy(dtype=float)[place]
    if not np.isfinite(xy).all():
        raise Img2GeneError(f"`{region}` has {int((~np.isfinite(xy)).any(axis=1).sum())} spots without a position.")
    return xy, diameter


def _unknown_instances(study: Study, region: str, key: str, unknown: np.ndarray, known: pd.Index) -> str:
    """Say which instances the region lacks; names that are equal as text differ in their type only."""
    text = (
        f"{len(unknown)} rows of the table name an instance that `{region}` does not have "
        f"({listing(unknown, 5)}; it has {listing(known, 5)})."
    )
    if not set(map(str, unknown)) & set(map(str, known)):
        return text
    names = [type(values[0]).__name__ for values in (unknown, known)]
    kind = known.dtype if pd.api.types.is_numeric_dtype(known.dtype) else "str"
    return (
        f"{text} The types differ: the table has {names[0]}, `{region}` has {names[1]} (dtype {known.dtype}). Convert "
        f"the column: `{study.name}.obs['{key}'] = {study.name}.obs['{key}'].astype('{kind}')`."
    )


def _centers(sdata: SpatialData, region: str) -> tuple[pd.DataFrame, float]:
    """Return all centres of a region element, and the median diameter, which is NaN for labels."""
    if region in sdata.shapes:
        shapes = sdata.shapes[region]
        points = shapes.geometry.centroid
        return pd.DataFrame({"x": points.x, "y": points.y}, index=shapes.index), spot_width(sdata, region)
    from spatialdata import get_centroids
    from spatialdata.transformations import get_transformation

    system = next(iter(transformations(sdata, region)))
    centroids = get_centroids(sdata[region], coordinate_system=system).compute()
    # `get_centroids` answers in a coordinate system, so its transformation is undone.
    back = get_transformation(sdata[region], system).inverse().to_affine_matrix(("x", "y"), ("x", "y"))
    xy = centroids[["x", "y"]].to_numpy() @ back[:2, :2].T + back[:2, 2]
    return pd.DataFrame(xy, columns=["x", "y"], index=centroids.index), float("nan")


def spot_width(sdata: SpatialData, region: str | None) -> float:
    """Return the median diameter of a region's spots in its own units; NaN for labels, and for a region that is absent."""
    if region not in sdata.shapes:
        return float("nan")
    shapes = sdata.shapes[region]
    return float(2 * np.median(shapes["radius"])) if "radius" in shapes else equivalent_diameter(shapes.geometry)


def reaches(study: Study, geometry: Geometry) -> np.ndarray:
    """Distance in image pixels, float (n,), from the centre of each spot to its farthest side; 0 for points."""
    region, shapes = geometry.region, study.sdata.shapes
    per_unit = 1 / geometry.units_per_px
    if region not in shapes:
        # A crop may keep a whole pixel of the labels where it keeps a part of one.
        return np.full(len(geometry.rows), per_unit)
    key = study.table.uns["spatialdata_attrs"]["instance_key"]
    members = shapes[region].loc[study.table.obs[key].to_numpy()[geometry.rows]]
    if "radius" in members:
        return members["radius"].to_numpy(dtype=float) * per_unit
    # The centroid of a cell need not be the middle of its outline.
    low, high = np.split(members.bounds.to_numpy(), 2, axis=1)
    centers = np.column_stack([members.centroid.x, members.centroid.y])
    return np.maximum(centers - low, high - centers).max(axis=1) * per_unit


def equivalent_diameter(geometry: Any) -> float:
    """Return the side of squares, else the diameter of the circle with the median area."""
    area = float(np.median(geometry.area))
    # Only rectangles fill the smallest rectangle around them, however they are turned.
    box = float(np.median(geometry.minimum_rotated_rectangle().area))
    return float(np.sqrt(area)) if np.isclose(area, box, rtol=1e-3) else float(2 * np.sqrt(area / np.pi))


def micron_scales(sdata: SpatialData, image_key: str) -> dict[str, float]:
    """Read microns per pixel of an image from its coordinate systems in microns, which are called ``<section>_um``."""
    scales, axes = {}, ("x", "y")
    for system, transformation in transformations(sdata, image_key).items():
        if system == _schema.micron_system(system.removesuffix("_um")):
            matrix = transformation.to_affine_matrix(axes, axes)
            try:
                scales[f"the coordinate system `{system}`"] = isotropic_scale(matrix, system, image_key)
            except Img2GeneError:
                continue
    return scales


def transformations(sdata: SpatialData, name: str) -> dict[str, Any]:
    """Return the transformations of an element to its coordinate systems."""
    from spatialdata.transformations import get_transformation

    if name in sdata.tables:
        raise Img2GeneError(
            f"`{name}` is a table, which has no place; a region must be one of {listing([*sdata.shapes, *sdata.labels])}. "
            "Correct the column of the table that names regions."
        )
    check_scale0(sdata[name], name)
    return dict(get_transformation(sdata[name], get_all=True))


def region_matrix(sdata: SpatialData, region: str, image_key: str) -> np.ndarray:
    """Return the 3 × 3 matrix from the region's own (x, y) to the image's pixels."""
    from_region, from_image = transformations(sdata, region), transformations(sdata, image_key)
    shared = [name for name in from_region if name in from_image]
    if not shared:
        raise Img2GeneError(
            f"`{region}` and image `{image_key}` share no coordinate system ({listing(from_region)} against {listing(from_image)}). "
            "Register them with `spatialdata.transformations.set_transformation`."
        )
    axes = ("x", "y")
    try:
        maps = [
            np.linalg.inv(from_image[name].to_affine_matrix(axes, axes))
            @ from_region[name].to_affine_matrix(axes, axes)
            for name in shared
        ]
        shifts = [shift_px(maps[0], other, scale0(sdata, image_key).shape[1:]) for other in maps]
    except np.linalg.LinAlgError:
        shifts = [np.nan]
    if not np.isfinite(shifts).all():
        raise Img2GeneError(
            f"A transformation of `{region}` or image `{image_key}` ({listing(shared)}) maps all places to a line or a "
            "point, or is not finite. Set another with `spatialdata.transformations.set_transformation`."
        )
    if max(shifts) > MAX_SHIFT_PX:
        raise Img2GeneError(
            f"`{region}` and image `{image_key}` are aligned differently in {listing(shared)}: places differ by up to "
            f"{max(shifts):.4g} px. Remove the wrong transformation with "
            "`spatialdata.transformations.remove_transformation`."
        )
    return maps[0]


def shift_px(one: np.ndarray, other: np.ndarray, size: tuple[int, ...]) -> float:
    """Return the largest distance in pixels between two maps (3, 3) into an image of this height and width."""
    height, width = size
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], dtype=float).T
    # Maps are linear, so places differ most at a corner.
    return float(np.linalg.norm((other @ np.linalg.inv(one) @ corners - corners)[:2], axis=0).max())


def divided_sections(study: Study) -> list[str]:
    """Say which sections have spots on several slides: on images that do not show the same place."""
    regions: dict[str, list[str]] = {}
    for region, rows in study.regions.items():
        for name in study.section_names(rows):
            regions.setdefault(name, []).append(region)
    several = {name: parts for name, parts in regions.items() if len(parts) > 1}
    images = {region: _slide(study, region) for parts in several.values() for region in parts}
    divided = [
        name
        for name, parts in several.items()
        if any(_are_apart(study.sdata, images[parts[0]], images[other]) for other in parts[1:])
    ]
    return [
        f"Spots of several slides have one name in `{study.name}.obs['{_schema.SECTION}']` ({listing(divided)}), and would be "
        "taken for one section. Give each slide its own name, such as patient and number."
    ] * bool(divided)


def _slide(study: Study, region: str) -> str | None:
    """Find the image of a region without any demand on it; None if there is none."""
    entry = (study.record("patches") or {}).get("regions", {}).get(region, {})
    for image in (entry.get("image"), recorded(study.table, region).get("image")):
        if image in study.sdata.images:
            return str(image)
    try:
        return largest_aligned(study.sdata, region, list(study.regions)) if region in study.sdata else None
    except Img2GeneError:
        return None


def _are_apart(sdata: SpatialData, one: str | None, other: str | None) -> bool:
    """Check that two images are known and show different places."""
    return None not in (one, other) and one != other and not covers_same_place(sdata, str(one), str(other))


def covers_same_place(sdata: SpatialData, one: str, other: str) -> bool:
    """Check that two images show the same place, as copies of one scan in different resolutions do."""
    try:
        matrix = region_matrix(sdata, one, other)
    except Img2GeneError:
        return False
    (height, width), size = (np.array(scale0(sdata, name).shape[1:]) for name in (one, other))
    corners = matrix @ np.array([[0, 0, 1], [width, height, 1]], dtype=float).T
    expected = np.array([[0, 0], size[::-1]], dtype=float).T
    # Thumbnails round their size to whole pixels.
    return bool((np.abs(corners[:2] - expected) <= _MAX_ANISOTROPY * size[::-1, None] + 1).all())


def isotropic_scale(matrix: np.ndarray, region: str, image_key: str) -> float:
    """Return image pixels per unit of the region; refuse transformations that rotate, shear or stretch."""
    linear = np.abs(matrix[:2, :2])
    # Swapped or mirrored axes are allowed, because a square window stays an upright square.
    straight = np.sort(linear, axis=1)
    low, high = straight[:, 1].min(), straight[:, 1].max()
    if low <= 0 or straight[:, 0].max() > _MAX_ANISOTROPY * high or high / low - 1 > _MAX_ANISOTROPY:
        raise Img2GeneError(
            f"The transformation from `{region}` to image `{image_key}` rotates, shears or stretches "
            f"({np.array2string(matrix[:2, :2], precision=3)}); patches are upright squares. Resample the image into the "
            "coordinate system of the spots with `spatialdata.transform` or `spatialdata.rasterize` first."
        )
    return float(straight[:, 1].mean())
