"""Make a table of its own that annotates the spots of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._study.study import Study

if TYPE_CHECKING:
    from anndata import AnnData


def companion_table(study: Study, genes: Sequence[str], columns: Mapping[str, np.ndarray] | None = None) -> AnnData:
    """Make a table without values of the same spots, which annotates the same regions; ``columns`` are added to obs."""
    import anndata as ad
    from spatialdata.models import TableModel

    table = study.stored_table
    attrs = table.uns["spatialdata_attrs"]
    kept = [attrs["region_key"], attrs["instance_key"], _schema.SECTION, _schema.PATIENT, _schema.PATCH_TISSUE]
    obs = table.obs[[name for name in dict.fromkeys(kept) if name in table.obs]].copy()
    for name, values in (columns or {}).items():
        obs[name] = values
    out = ad.AnnData(obs=obs, var=pd.DataFrame(index=pd.Index(genes, dtype=str)))
    if "spatial" in table.obsm:
        out.obsm["spatial"] = np.asarray(table.obsm["spatial"]).copy()
    if "spatial" in table.uns:
        # squidpy looks up the picture of a section here.
        out.uns["spatial"] = table.uns["spatial"]
    # A table that was filtered in place still lists regions, and categories, that no row has.
    out.obs[attrs["region_key"]] = out.obs[attrs["region_key"]].astype(str).astype("category")
    return TableModel.parse(
        out, region=list(study.regions), region_key=attrs["region_key"], instance_key=attrs["instance_key"]
    )
