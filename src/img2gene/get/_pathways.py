"""What is known about the pathways of an object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from img2gene import _schema
from img2gene._pathways import from_columns, required_pathways

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData


def pathways(sdata: SpatialData, *, key: str | None = None, table_key: str = "table") -> pd.DataFrame:
    """How the gene sets of :func:`img2gene.pp.score_pathways` were matched, enriched and selected.

    Parameters
    ----------
    sdata
        Study with pathways.
    key
        The ``key_added`` they were stored under; None is the default one.
    table_key
        Table they were scored in.

    Returns
    -------
    One row per gene set of the collection; the selected ones first, in the order of the columns of ``obsm[key]``, then by
    falling NES: ``pathway``, ``selected``, ``kept`` (has enough measured genes), ``n_genes``, ``n_matched``, ``fraction``,
    ``genes`` (measured ones, joined by ``;``), and ``es``, ``nes``, ``pval``, ``fdr``, ``leading_edge``, NaN where nothing
    had to be selected.

    Raises
    ------
    MissingKeyError
        No pathways under this key.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30)
    >>> ig.pp.score_pathways(sdata, n_top=5)
    >>> int(ig.get.pathways(sdata)["selected"].sum())
    5
    """
    record = required_pathways(_schema.get_table(sdata, table_key), table_key, key or _schema.PATHWAYS)
    matching = from_columns(record["matching"])
    empty: dict[str, list] = {name: [] for name in ("pathway", "es", "nes", "pval", "fdr", "leading_edge")}
    enrichment = from_columns(record["enrichment"] or empty).drop(columns="n_genes", errors="ignore")
    table = matching.merge(enrichment.astype({"pathway": matching["pathway"].dtype}), on="pathway", how="left")
    place = {name: number for number, name in enumerate(record["names"])}
    table.insert(1, "selected", table["pathway"].isin(place))
    table.insert(2, "kept", table.pop("kept"))
    order = table["pathway"].map(place)
    return (
        table.assign(place=order)
        .sort_values(["place", "nes"], ascending=[True, False], kind="stable", ignore_index=True)
        .drop(columns="place")
    )
