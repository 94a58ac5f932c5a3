"""Predicted values stored in a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from img2gene import _schema
from img2gene._errors import MissingKeyError, listing, missing

if TYPE_CHECKING:
    from spatialdata import SpatialData


def predicted_values(
    sdata: SpatialData, genes: list[str], key: str, table_key: str = "table", *, part: str | None = None
) -> np.ndarray:
    """Predictions (n_obs, n_genes) from the layer ``key``, or from the table ``key`` of the same rows, which may know more genes.

    ``part`` is ``"std"``, ``"lower"`` or ``"upper"`` for what stands beside them.
    """
    table, own = _schema.get_table(sdata, table_key), sdata.tables.get(key)
    layer = key if part is None else _schema.uncertainty_keys(key)[part]
    found = {}
    if layer in table.layers:
        found[f"sdata['{table_key}'].var_names"] = (table.var_names, table.layers[layer])
    if own is not None and own.obs_names.equals(table.obs_names) and (part is None or layer in own.layers):
        found[f"sdata['{key}'].var_names"] = (own.var_names, own.X if part is None else own.layers[layer])
    if not found:
        fitted = "" if part is None else ", with a model that was fitted with `uncertainty=True`"
        hint = f"Run `img2gene.tl.predict` first{fitted}."
        raise MissingKeyError(missing(layer, f"sdata['{table_key}'].layers", table.layers, hint))
    for names, values in found.values():
        if genes and names.isin(genes).sum() == len(set(genes)):
            return np.asarray(values[:, names.get_indexer(genes)], dtype=float)
    where, (names, _) = next(iter(found.items()))
    raise MissingKeyError(missing(listing(gene for gene in genes if gene not in names), where, names))
