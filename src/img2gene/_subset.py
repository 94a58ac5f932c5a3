"""Some spots of a study as a study of their own, without images: what models are trained and judged on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._expression import library_size

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def subset(
    sdata: SpatialData,
    rows: np.ndarray,
    genes: list[str] | None = None,
    *,
    layer: str | None = None,
    table_key: str = "table",
) -> SpatialData:
    """Chosen spots (and genes) of a study, without images and without what models do not look at.

    Library sizes stay those of the full transcriptome. ``layer`` is the one of the labels, if they are not counts.
    """
    import anndata as ad
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    table: AnnData = sdata.tables[table_key]
    attrs = table.uns["spatialdata_attrs"]
    columns = slice(None) if genes is None else table.var_names.get_indexer(genes)
    part = ad.AnnData(
        table.X[rows][:, columns],
        obs=table.obs.iloc[rows].copy(),
        var=table.var.iloc[columns].copy(),
        obsm={
            name: values.iloc[rows] if isinstance(values, pd.DataFrame) else values[rows]
            for name, values in table.obsm.items()
        },
        layers={} if layer is None else {layer: table.layers[layer][rows][:, columns]},
        uns={_schema.UNS: dict(table.uns[_schema.UNS])},
    )
    if layer is None:
        part.obs[_schema.LIBRARY_SIZE] = library_size(table)[rows]
    present = part.obs[attrs["region_key"]].unique().tolist()
    part = TableModel.parse(part, region=present, region_key=attrs["region_key"], instance_key=attrs["instance_key"])
    return SpatialData(shapes=dict(sdata.shapes), labels=dict(sdata.labels), tables={table_key: part})
