"""Read how the pathways of an object were matched, enriched and selected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError
from img2gene._study.pathways import from_columns, required_pathways, stored_pathways
from img2gene._study.study import Study

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from img2gene.models import Model

_ENRICHMENT = ("pathway", "es", "nes", "pval", "fdr", "leading_edge")


def pathways(sdata: SpatialData, *, key: str | None = None, table_key: str = "table") -> pd.DataFrame:
    """List how gene sets were matched, enriched and selected by :func:`img2gene.pp.score_pathways` or by a model.

    A model trained with pathways ranks the stored gene sets again on its training spots. Pass the key of the model to
    see this ranking and the pathways that it uses.

    Parameters
    ----------
    sdata
        Study with pathways.
    key
        Name of the pathways, by default ``"pathways"``; or name of a trained model.
    table_key
        Table in which pathways were scored.

    Returns
    -------
    One row per gene set of the collection; the selected ones first, in the order of the columns of ``obsm[key]``, then
    by falling NES: ``pathway``, ``selected``, ``kept`` (has enough measured genes), ``n_genes``, ``n_matched``,
    ``fraction``, ``genes`` (measured ones, joined by ``;``), and ``es``, ``nes``, ``pval``, ``fdr``, ``leading_edge``,
    NaN if all sets were taken without selection. For a model: ``pathway``, ``selected``, ``n_matched`` and the last
    five columns; the pathways that it uses come first, in its order.

    Raises
    ------
    MissingKeyError
        No pathways are stored under this key.
    Img2GeneError
        The model of this key has no pathway context.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30)
    >>> ig.pp.score_pathways(sdata, n_top=5)
    >>> int(ig.get.pathways(sdata)["selected"].sum())
    5
    """
    from img2gene.io.model_store import read_model, stored_models

    check = Arguments()
    check.text("key", key, optional=True)
    check.text("table_key", table_key)
    check.raise_all()
    study, name = Study.of(sdata, table_key), key or _schema.PATHWAYS
    # Pathways come before a model of the same name.
    if stored_pathways(study, name) is None and name in stored_models(study.table):
        return _of_model(read_model(study.table, name))
    record = required_pathways(study, name)
    sets = _selected_first(_enriched(from_columns(record["matching"]), record), record["names"])
    sets.insert(2, "kept", sets.pop("kept"))
    return sets


def _of_model(model: Model) -> pd.DataFrame:
    """List the gene sets that a model ranked on its training spots; without a ranking, those that it uses."""
    import pandas as pd

    context = getattr(model.predictor, "context", None)
    if not context:
        raise Img2GeneError(
            f"The model `{model.name}` has no pathway context. Run `img2gene.pp.score_pathways(sdata)` and then "
            "`img2gene.tl.fit(sdata, 'img2gene')`."
        )
    if context["enrichment"]:
        sizes = from_columns(context["enrichment"]).set_index("pathway")["n_genes"].to_dict()
    else:
        sizes = {name: len(context["gene_sets"][name]) for name in context["names"]}
    matching = pd.DataFrame({"pathway": list(sizes), "n_matched": list(sizes.values())})
    return _selected_first(_enriched(matching, context), context["names"])


def _enriched(matching: pd.DataFrame, record: dict[str, Any]) -> pd.DataFrame:
    """Add the enrichment to gene sets, NaN if none was computed."""
    empty: dict[str, list] = {name: [] for name in _ENRICHMENT}
    enrichment = from_columns(record["enrichment"] or empty)[list(_ENRICHMENT)]
    return matching.merge(enrichment.astype({"pathway": matching["pathway"].dtype}), on="pathway", how="left")


def _selected_first(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Sort the selected sets first, in their order, then the others by falling NES."""
    # Sets that were not selected get NaN for a place, which sorting puts last.
    place = {name: number for number, name in enumerate(names)}
    table.insert(1, "selected", table["pathway"].isin(place))
    return (
        table.assign(place=table["pathway"].map(place))
        .sort_values(["place", "nes"], ascending=[True, False], kind="stable", ignore_index=True)
        .drop(columns="place")
    )
