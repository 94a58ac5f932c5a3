"""Read predicted values that are stored in a study."""

from __future__ import annotations

import numpy as np

from img2gene import _schema
from img2gene._errors import MissingKeyError, listing, missing
from img2gene._study.study import Study


def predicted_values(study: Study, genes: list[str], key: str, *, part: str | None = None) -> np.ndarray:
    """Read predictions (n_obs, n_genes) from the layer ``key``, or from a table ``key`` with the same rows.

    The separate table can hold genes that the study's table lacks. ``part`` is ``"std"``, ``"lower"`` or ``"upper"``
    for the standard deviation or the bounds of the interval.
    """
    table, separate = study.table, study.sdata.tables.get(key)
    layer = key if part is None else _schema.uncertainty_keys(key)[part]
    sources = {}
    if layer in table.layers:
        sources[f"{study.name}.var_names"] = (table.var_names, table.layers[layer])
    if separate is not None and separate.obs_names.equals(table.obs_names):
        if part is None:
            sources[f"sdata['{key}'].var_names"] = (separate.var_names, separate.X)
        elif layer in separate.layers:
            sources[f"sdata['{key}'].var_names"] = (separate.var_names, separate.layers[layer])
    if not sources:
        condition = "" if part is None else ", with a model that was fitted with `uncertainty=True`"
        hint = f"Run `img2gene.tl.predict` first{condition}."
        raise MissingKeyError(missing(layer, f"{study.name}.layers", table.layers, hint))
    for names, values in sources.values():
        if genes and names.isin(genes).sum() == len(set(genes)):
            return np.asarray(values[:, names.get_indexer(genes)], dtype=float)
    where, (names, _) = next(iter(sources.items()))
    raise MissingKeyError(missing(listing(gene for gene in genes if gene not in names), where, names))
