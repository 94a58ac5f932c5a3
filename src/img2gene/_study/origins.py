"""Record what patches and embeddings were made from, and notice when they no longer belong to a study."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, Problems, listing, missing
from img2gene._study.geometry import MAX_SHIFT_PX, Geometry, locate_region, region_matrix, shift_px
from img2gene._study.images import RGBImage, open_image
from img2gene._study.study import Study

# Larger images are sampled, because reading a whole slide takes minutes.
_WHOLE_PX = 4_000_000
_TILES, _TILE_PX = 8, 32
_AGAIN = "Run `img2gene.pp.extract_patches` again."


def content_digest(image: RGBImage) -> str:
    """Compute a digest of an image's RGB pixels: of all in small images, of an 8 × 8 grid of tiles in large ones.

    It does not depend on chunks, scales, or whether the image is in memory.
    """
    size = (image.height, image.width)
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    if size[0] * size[1] <= _WHOLE_PX:
        digest.update(image.whole())
        return digest.hexdigest()
    side = min(_TILE_PX, *size)
    axes = [((np.arange(_TILES) + 0.5) * (length - side) / _TILES).astype(np.int64) for length in size]
    corners = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    digest.update(image.tiles(corners, side))
    return digest.hexdigest()


def region_origin(study: Study, geometry: Geometry) -> dict[str, Any]:
    """Describe what the patches of a region are found in: size and content of the image, and the map into it."""
    image = open_image(study.sdata, geometry.image_key)
    return {
        "size": [int(image.height), int(image.width)],
        "content": content_digest(image),
        "matrix": geometry.matrix[:2].tolist(),
    }


def patches_digest(study: Study, rows: np.ndarray, boxes: np.ndarray, settings: dict[str, Any]) -> str:
    """Compute a digest of a region's windows and settings, which does not depend on the order of the rows."""
    key = study.table.uns["spatialdata_attrs"]["instance_key"]
    names = study.table.obs[key].astype(str).to_numpy()[rows]
    windows = sorted([str(name), *box] for name, box in zip(names, boxes.tolist(), strict=True))
    return hashlib.sha256(json.dumps([settings, windows], sort_keys=True).encode()).hexdigest()[:32]


def carry_embeddings(study: Study, region: str, entry: dict[str, Any], *, unchanged: bool) -> None:
    """Note in a region's new entry from which patches its stored embeddings were made.

    ``unchanged`` says that the windows and settings are those of the old entry.
    """
    old = (study.record("patches") or {}).get("regions", {}).get(region, {})
    if unchanged and "digest" in old:
        # The digest of a filtered table would differ, although its embeddings still belong to its patches.
        entry["digest"] = old["digest"]
    sources = dict(old.get("embedded", {}))
    for name in study.record("encoder", {}):
        if old:
            sources.setdefault(name, entry["digest"] if unchanged else old.get("digest", ""))
    entry["embedded"] = sources


def embedded_patches(study: Study, name: str) -> dict[str, Any]:
    """Build the record of patches with the note that the encoder ``name`` has embedded them as they are."""
    record = study.patches
    regions = {
        region: {**entry, "embedded": {**entry.get("embedded", {}), name: entry["digest"]}}
        if region in study.regions and "digest" in entry
        else entry
        for region, entry in record["regions"].items()
    }
    return {**record, "regions": regions}


def check_embedding(study: Study, name: str) -> None:
    """Refuse the stored embedding of an encoder if its patches, or the images that they came from, have changed since."""
    entries = (study.record("patches") or {}).get("regions", {})
    # Without any record the embedding came from elsewhere, so there is nothing to compare it with.
    regions = list(study.regions) if entries else []
    key = f"`{study.name}.obsm['{_schema.embedding_key(name)}']`"
    problems = Problems()
    unknown = [region for region in regions if region not in entries]
    if unknown:
        problems.messages.append(
            f"{key} has no record for {listing(unknown)}: the patches and settings that it was made from are not known. Run "
            "`img2gene.pp.extract_patches` and `img2gene.pp.embed_patches` again, or join the embedded sections with "
            "`img2gene.io.concat_sections`, which keeps the records."
        )
    known = [region for region in regions if region in entries]
    # Records of older versions, and of patches that came without an image, have no digest.
    sources = {region: entries[region].get("embedded", {}).get(name) for region in known}
    stale = [region for region in known if sources[region] not in (None, entries[region].get("digest"))]
    if stale:
        problems.messages.append(
            f"{key} was made from other patches of {listing(stale)}: `img2gene.pp.extract_patches` has run with other settings "
            f"or on another image since. Run `img2gene.pp.embed_patches(sdata, {name!r}{study.table_argument})` again."
        )
    with problems.collect():
        check_images(study, [region for region in known if region not in stale])
    problems.raise_all()


def check_images(study: Study, regions: list[str] | None = None) -> None:
    """Refuse patches of images that have changed, or moved against their spots; images that are gone are not compared."""
    entries = (study.record("patches") or {}).get("regions", {})
    images: dict[str, tuple[RGBImage, str]] = {}
    problems = Problems()
    for region in study.regions if regions is None else regions:
        entry = entries.get(region, {})
        name = entry.get("image")
        if "content" not in entry or name not in study.sdata.images:
            continue
        with problems.collect():
            if name not in images:
                # Cores of a tissue microarray share one image.
                image = open_image(study.sdata, name)
                images[name] = image, content_digest(image)
            change = _change(study, region, entry, *images[name])
            if change:
                problems.messages.append(
                    f"The patches and embeddings of `{region}` no longer belong to image `{name}`: {change}. Run "
                    f"`img2gene.pp.extract_patches` and `img2gene.pp.embed_patches` again{_with_table(study)}. If the image was "
                    "only cropped or resized and the embeddings of its spots are right, remove it instead: "
                    f"`del sdata.images[{name!r}]`."
                )
    problems.raise_all()


def open_region(study: Study, region: str) -> RGBImage:
    """Open the image that a region's patches were found in; refuse it if it has changed since."""
    entry, images = study.patches["regions"][region], study.sdata.images
    if entry["image"] not in images:
        raise MissingKeyError(missing(entry["image"], "sdata.images", images, _AGAIN))
    image = open_image(study.sdata, entry["image"])
    change = _change(study, region, entry, image, content_digest(image)) if "content" in entry else ""
    if change:
        raise Img2GeneError(
            f"The patches of `{region}` no longer belong to image `{entry['image']}`: {change}. "
            f"Run `img2gene.pp.extract_patches` again{_with_table(study)}."
        )
    return image


def _with_table(study: Study) -> str:
    return f" with `{study.table_argument[2:]}`" if study.table_argument else ""


def _change(study: Study, region: str, entry: dict[str, Any], image: RGBImage, content: str) -> str:
    """Say how an image differs from the one that patches were found in; empty if it does not."""
    size = [image.height, image.width]
    if size != entry["size"]:
        return f"it has {size[0]} × {size[1]} px, and had {entry['size'][0]} × {entry['size'][1]}"
    # An object with images and a table only still has all that reading pixels takes.
    if region in study.sdata:
        before = np.array([*entry["matrix"], [0, 0, 1]])
        shift = shift_px(before, region_matrix(study.sdata, region, entry["image"]), tuple(size))
        if not shift <= MAX_SHIFT_PX:
            return f"the transformation between them has changed, by up to {shift:.4g} px"
        if _schema.PATCH_BBOX in study.table.obsm:
            rows = study.regions[region]
            located = locate_region(study, region, rows, entry["image"])
            moved = float(np.abs(located.centers - study.centers[rows]).max(initial=0))
            # Windows have whole pixels, so their centres differ from those of spots by up to half a pixel.
            if not moved <= MAX_SHIFT_PX + 0.5:
                return f"spots and windows are up to {moved:.4g} px apart"
    return "" if content == entry["content"] else "its pixels have changed"
