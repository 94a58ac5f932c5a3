"""Recognise the tiles of an earlier call, which may be replaced, and protect what the user added to them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError, listing
from img2gene._study.localization import inside_column, records, score_column

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)


_ARRAYS = (_schema.embedding_key, _schema.tokens_key, _schema.restained_key)


def squares_name(key: str) -> str:
    """Name the shapes that belong to the table ``key`` of tiles."""
    return f"{key}_squares"


def taken_names(sdata: SpatialData, key: str) -> list[str]:
    """List why tiles cannot be written as ``key``: elements of the user, or columns in earlier tiles."""
    names = (key, squares_name(key))
    replaced = dict(zip(("tables", "shapes"), names, strict=True)) if is_tiling(sdata.tables.get(key), key) else {}
    # spatialdata takes a name once among elements of all kinds, and does not tell capitals apart.
    folded = {name.casefold() for name in names}
    taken = [
        name
        for kind in ("images", "labels", "points", "shapes", "tables")
        for name in getattr(sdata, kind)
        if name.casefold() in folded and replaced.get(kind) != name
    ]
    problems = [
        f"`{name}` exists in the object already, and `tile_slide` did not write it; choose another `key_added` or delete it "
        "first."
        for name in taken
    ]
    columns = _foreign_columns(sdata.tables[key]) if replaced else []
    way_out = "Choose another `key_added`, or remove them from the tiles first"
    return problems + _schema.foreign_problems(columns, way_out)


def is_tiling(table: AnnData | None, key: str) -> bool:
    """Check that an earlier call wrote the table ``key``, by its record of the squares."""
    if table is None or table.n_vars:
        return False
    return any(record.get("region") == squares_name(key) for record in _sections(table).values())


def check_dependent_tables(sdata: SpatialData, key: str, table: AnnData, squares: GeoDataFrame) -> None:
    """Raise if other tables, such as predictions, belong to earlier tiles that differ from the new ones."""
    region, earlier = squares_name(key), sdata.tables.get(key)
    dependent = [name for name, other in sdata.tables.items() if name != key and region in _regions(other)]
    same = earlier is not None and _sections(earlier) == _sections(table)
    if dependent and not (same and _same_squares(sdata.shapes.get(region), squares)):
        raise Img2GeneError(
            f"The tables {listing(dependent)} belong to the earlier tiles `{key}`, and the new tiles are different. Delete them "
            f"first (`del sdata.tables[{dependent[0]!r}]`), or choose another `key_added`."
        )


def remove_tiles(sdata: SpatialData, key: str, image_key: str) -> None:
    """Remove the tiles of an earlier call, and warn if they were tiles of another image; do nothing without any."""
    earlier = sdata.tables.get(key)
    images = [] if earlier is None else [record.get("image") for record in _sections(earlier).values()]
    if images and image_key not in images:
        logger.warning(
            "the tiles of %s in %r are replaced by tiles of %s; pass another `key_added` to keep both",
            listing(images),
            key,
            image_key,
        )
    # spatialdata warns of an element that is replaced without being removed.
    sdata.shapes.pop(squares_name(key), None)
    sdata.tables.pop(key, None)


def _foreign_columns(table: AnnData) -> list[str]:
    """List columns and arrays of a table of tiles that no function of this package wrote."""
    written = {_schema.SECTION, _schema.PATIENT, _schema.PATCH_TISSUE, _schema.PATCH_INSIDE, _schema.PATCH_READABLE}
    written |= {str(_attributes(table).get(name)) for name in ("region_key", "instance_key")}
    for key, record in records(table).items():
        written |= {column(key, tissue) for tissue in record["markers"] for column in (score_column, inside_column)}
    predictions = _schema.read_json(table, _schema.UNCERTAINTY, default={})
    written |= {_schema.ood_key(key) for key in predictions}
    embeddings = _schema.read_json(table, "encoder", default={})
    arrays = {"spatial", _schema.PATCH_BBOX}
    arrays |= {name(encoder) for encoder in embeddings for name in _ARRAYS}
    return [f"obs[{name!r}]" for name in table.obs if name not in written] + [
        f"obsm[{name!r}]" for name in table.obsm if name not in arrays
    ]


def _sections(table: AnnData) -> dict[str, Any]:
    return _schema.read_json(table, "sections", default={})


def _attributes(table: AnnData) -> Mapping[str, Any]:
    attrs = table.uns.get("spatialdata_attrs")
    return attrs if isinstance(attrs, Mapping) else {}


def _regions(table: AnnData) -> set[str]:
    """List the regions that a table annotates; none if it says nothing about them."""
    column = _attributes(table).get("region_key")
    return set(table.obs[column].astype(str)) if isinstance(column, str) and column in table.obs else set()


def _same_squares(earlier: GeoDataFrame | None, squares: GeoDataFrame) -> bool:
    return (
        earlier is not None
        and earlier.index.equals(squares.index)
        and np.array_equal(earlier.bounds.to_numpy(), squares.bounds.to_numpy())
    )
