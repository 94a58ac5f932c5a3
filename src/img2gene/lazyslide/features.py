"""Take features of LazySlide over into the table of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._checks import Arguments, several
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, MissingKeyError, listing, raise_problems
from img2gene._study.entrance import open_table
from img2gene._study.features import UNKNOWN_REVISION
from img2gene._study.origins import embedded_patches
from img2gene._study.study import Study
from img2gene.lazyslide.layout import ROUNDING_PX, SPOT, TILE_SPEC, Tiles, read_features, read_layout, tile_shapes

if TYPE_CHECKING:
    from spatialdata import SpatialData

_SOURCE = "LazySlide"


@fill_parameters
def add_features(
    sdata: SpatialData,
    features: str,
    *,
    wsi: SpatialData | list[SpatialData] | None = None,
    tile_key: str = "tiles",
    table_key: str = "table",
    inplace: bool = True,
) -> dict[str, dict[str, Any]] | None:
    """Take features that LazySlide extracted over into ``obsm``, so that models train on them and predict from them.

    The table is one of spots, whose patches :func:`img2gene.lazyslide.add_tiles` gave to LazySlide, or one that
    :func:`img2gene.lazyslide.read_tiles` made. Rows are matched by the number of their tile.

    Parameters
    ----------
    sdata
        Study.
    features
        Encoder (``"uni2"``) whose tables are called ``uni2_<tiles>``, as LazySlide names them.
    wsi
        WSIData that hold the feature tables, one or one for each section; by default they are in ``sdata``.
    tile_key
        ``key_added`` of :func:`img2gene.lazyslide.add_tiles`.
    table_key
        Table that gets the features.
    %(inplace_update)s

    Returns
    -------
    None, or the update. Written are ``obsm["X_<encoder>"]`` (float32 (n_obs, width)), and in ``uns["img2gene"]`` the width of
    the tiles in µm and in pixels, which a model's slides must share.

    Raises
    ------
    MissingKeyError
        The tiles or features of a region are missing.
    Img2GeneError
        A feature table holds other tiles, or NaN; tiles have other spots than the table; regions have features of different
        widths, or tiles of different sizes in µm; or an array of that name is the user's.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.lazyslide.add_tiles(sdata)  # doctest: +SKIP
    >>> wsi = wsidata.open_wsi(sdata, image_key="S1_image")  # doctest: +SKIP
    >>> zs.tl.feature_extraction(wsi, "uni2", tile_key="S1_tiles")  # doctest: +SKIP
    >>> ig.lazyslide.add_features(sdata, "uni2", wsi=wsi)  # doctest: +SKIP
    >>> ig.tl.fit(sdata, "ridge")  # doctest: +SKIP
    """
    check = Arguments()
    check.text("features", features), check.text("tile_key", tile_key), check.flag("inplace", inplace)
    sources = [sdata] if wsi is None else [wsi] if hasattr(wsi, "tables") else several(wsi)
    if sources is None or not all(hasattr(source, "tables") and hasattr(source, "shapes") for source in sources):
        check.messages.append(f"wsi={type(wsi).__name__}: expected a WSIData, a list of them, or None.")
    study = open_table(check, sdata, table_key)
    check.raise_all()
    values: Any = None
    identities = []
    for region, rows in study.regions.items():
        encoder, part, identity = _of_region(study, region, features, tile_key, sources or [])
        identities.append(identity)
        _check_same(features, region, identities)
        values = np.empty((study.n_obs, part.shape[1]), dtype=np.float32) if values is None else values
        values[rows] = part
    raise_problems(_foreign(study, identities[0]["name"]) if inplace else [])
    update = _update(study, identities[0], values)
    if not inplace:
        return update
    _schema.apply(study.stored_table, update)
    return None


def feature_identity(encoder: str, values: np.ndarray, tile_um: float, side_px: int) -> dict[str, Any]:
    """Record what features are of; a trained model accepts only embeddings with the same identity.

    LazySlide records neither revision nor licence of the encoder; :func:`img2gene.pp.describe_features` adds them.
    """
    return {
        "name": encoder,
        "revision": UNKNOWN_REVISION,
        "source": _SOURCE,
        "licence": "unknown",
        "width": int(values.shape[1]),
        "patch_um": [tile_um],
        "input_px": side_px,
        "orientations": 1,
    }


def _of_region(
    study: Study, region: str, features: str, tile_key: str, sources: list[Any]
) -> tuple[str, np.ndarray, dict[str, Any]]:
    """Read the features of a region in the order of its rows."""
    tiles = region if region in study.sdata.attrs.get(TILE_SPEC, {}) else f"{region}_{tile_key}"
    holders = [source for source in sources if f"{features}_{tiles}" in source.tables and tiles in source.shapes]
    # Without a holder the error of the first says what is missing.
    holder = holders[0] if holders else study.sdata
    shapes = tile_shapes(holder, tiles)
    encoder, values = read_features(holder, features, tiles)
    layout = read_layout(holder, tiles, None)
    if tiles == region:
        names, spots = shapes.index, study.table.obs[study.table.uns["spatialdata_attrs"]["instance_key"]]
    elif SPOT in shapes:
        names, spots = pd.Index(shapes[SPOT].astype(str)), study.table.obs_names.to_series()
    else:
        raise MissingKeyError(
            f"`{tiles}` are no tiles of the spots of `{study.name}`: they do not name them. Run `img2gene.lazyslide.add_tiles`."
        )
    rows = pd.Index(names).get_indexer(spots.to_numpy()[study.regions[region]])
    if (rows < 0).any():
        lost = study.table.obs_names[study.regions[region]][rows < 0]
        raise Img2GeneError(
            f"`{tiles}` are tiles of other spots: {len(lost)} of {len(rows)} spots of `{region}` have none ({listing(lost, 5)}). "
            "Run `img2gene.lazyslide.add_tiles` again and extract features, or leave out these spots."
        )
    _check_patches(study, region, tiles, layout, rows)
    return encoder, values[rows], feature_identity(encoder, values, layout.tile_um, layout.side_px)


def _check_patches(study: Study, region: str, key: str, layout: Tiles, rows: np.ndarray) -> None:
    """Refuse tiles that are not the patches of their spots, which may have been extracted anew since."""
    if _schema.PATCH_BBOX not in study.table.obsm or study.record("patches") is None:
        return
    boxes = np.asarray(study.table.obsm[_schema.PATCH_BBOX], dtype=float)[study.regions[region]]
    fields = study.patches["patch_um"]
    if len(fields) > 1 or np.abs(boxes - layout.boxes[rows]).max() > ROUNDING_PX:
        raise Img2GeneError(
            f"`{key}` are squares of {layout.tile_um:.4g} µm that are not the patches of `{study.name}` ({listing(fields)} µm). "
            f"Run `img2gene.pp.extract_patches(sdata, patch_um={layout.tile_um:.4g}{study.table_argument})`, or lay tiles over the "
            "present patches (`img2gene.lazyslide.add_tiles`, one field of view, another `key_added`) and extract features again."
        )


def _check_same(features: str, region: str, identities: list[dict[str, Any]]) -> None:
    """Refuse regions whose features cannot be compared with those of the first."""
    first, last = identities[0], identities[-1]
    # Tiles have whole pixels at full resolution.
    close = abs(first["patch_um"][0] / last["patch_um"][0] - 1) < 0.02
    names = [name for name in ("width", "input_px") if first[name] != last[name]] + ["patch_um"] * (not close)
    if names:
        texts = [f"{name} {last[name]} against {first[name]}" for name in names]
        raise Img2GeneError(
            f"Features `{features}` of `{region}` differ from those of the other regions: {listing(texts)}. Cut tiles of one size "
            "in µm, and extract features with one encoder."
        )


def _foreign(study: Study, name: str) -> list[str]:
    """List an array of the user that the features would replace."""
    key = _schema.embedding_key(name)
    if name in study.record("encoder", {}) or key not in study.table.obsm:
        return []
    return _schema.foreign_problems([f"obsm['{key}']"], f"Rename or delete it in `{study.name}`")


def _update(study: Study, identity: dict[str, Any], values: np.ndarray) -> dict[str, dict[str, Any]]:
    patches, name = study.record("patches"), identity["name"]
    if patches is not None:
        identity = {**identity, "patch_um": patches["patch_um"]}
    uns: dict[str, Any] = {"encoder": {**study.record("encoder", {}), name: identity}}
    if patches is not None:
        uns["patches"] = embedded_patches(study, name)
    return {"obsm": {_schema.embedding_key(name): values}, "uns": uns}
