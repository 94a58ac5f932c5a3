"""Know which images were normalised, also after the study was written, which loses the attributes of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from img2gene._errors import Img2GeneError
from img2gene._study.images import open_image
from img2gene._study.origins import content_digest
from img2gene._study.stain import KEPT_PX

if TYPE_CHECKING:
    from spatialdata import SpatialData

# Attribute of images that were normalised, with the method; and of the study, with size and pixels of each of them.
MARK = "img2gene_stain"


def is_normalised(sdata: SpatialData, name: str) -> bool:
    """Whether an image was normalised: it says so, or the study does and the image has not been replaced since."""
    return bool(stain_record(sdata, name))


def stain_record(sdata: SpatialData, name: str) -> dict[str, str]:
    """Return the method that an image was normalised by, as ``{"normalized": method}``; empty for other images."""
    method, entry = _own_mark(sdata.images[name]), _records(sdata).get(name)
    if method is None and isinstance(entry, Mapping) and {**entry, **_identity(sdata, name)} == entry:
        method = entry["method"]
    return {} if method is None else {"normalized": str(method)}


def with_stain_marks(sdata: SpatialData) -> dict[str, Any]:
    """Build the attributes of the study with a record of each normalised image, and of no other one."""
    old, records = _records(sdata), {}
    for name, element in sdata.images.items():
        method = _own_mark(element)
        if method is not None:
            records[name] = {"method": str(method), **_identity(sdata, name)}
        elif name in old and is_normalised(sdata, name):
            records[name] = old[name]
    others = {key: value for key, value in sdata.attrs.items() if key != MARK}
    return others | ({MARK: records} if records else {})


def _identity(sdata: SpatialData, name: str) -> dict[str, Any]:
    """Describe an image so that another one under its name is noticed."""
    try:
        image = open_image(sdata, name)
    except Img2GeneError:
        # No call of the package has written it.
        return {"size": None}
    size = [int(image.height), int(image.width)]
    # Pixels of larger images are computed when they are read, which takes minutes.
    return {"size": size} | ({"content": content_digest(image)} if size[0] * size[1] <= KEPT_PX else {})


def _records(sdata: SpatialData) -> Mapping[str, Any]:
    records = sdata.attrs.get(MARK)
    return records if isinstance(records, Mapping) else {}


def _own_mark(image: Any) -> Any:
    node = image["scale0"] if hasattr(image, "children") and "scale0" in image.children else image
    attributes = dict(node.attrs) | (dict(node["image"].attrs) if hasattr(node, "ds") and "image" in node else {})
    return attributes.get(MARK)
