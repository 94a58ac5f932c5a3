"""Choose which genes to predict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, MissingKeyError, no_such
from img2gene._study.depth import MIN_DEPTH, deep_enough
from img2gene._study.entrance import open_study, stored_positions
from img2gene._study.expression import gene_statistics, labels, layer_problems
from img2gene._study.study import Study

if TYPE_CHECKING:
    from spatialdata import SpatialData

_RANKINGS = {"mean": "mean", "variable": "dispersion", "spatial": "moran"}
_SCANPY = "highly_variable"


@fill_parameters
def select_genes(
    sdata: SpatialData,
    n_genes: int = 250,
    *,
    by: str = "mean",
    min_detection: float = 0.1,
    sections: Iterable[str] | None = None,
    layer: str | None = None,
    table_key: str = "table",
    key_added: str = "panel",
    inplace: bool = True,
) -> dict[str, dict[str, Any]] | None:
    """Choose a gene panel.

    A panel leaks if held-out sections helped to choose it. Name the training sections, or let
    ``img2gene.tl.fit(genes=<number>)`` choose within the training data.

    Parameters
    ----------
    %(sdata_counts)s
    n_genes
        Size of the panel.
    by
        ``"mean"`` expression, ``"variable"`` (dispersion: variance over mean), ``"spatial"`` (Moran's I over the six
        nearest spots, averaged over sections), or ``"highly_variable"`` (:func:`scanpy.pp.highly_variable_genes` with its
        default flavour: dispersion among genes of similar mean, within each section).
    min_detection
        Smallest share of spots in which a gene must be detected, 0–1.
    sections
        Sections on which genes are chosen; by default all but those with less than a fifth of the depth of the median section.
    layer
        Layer with expression on a scale of your own; by default counts in X are normalised.
    %(table_key_counts)s
    key_added
        Column of var that is written.
    %(inplace_update)s

    Returns
    -------
    None, or the update. The call writes ``var[key_added]`` (boolean) and records the sections, so that
    :func:`img2gene.tl.fit` can check its split against those of ``"panel"``.

    Raises
    ------
    Img2GeneError
        Counts that are not raw, unknown sections, a column ``key_added`` that is no panel of this function, or fewer than ``n_genes`` usable genes.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.select_genes(sdata, 20, sections=["P1_S1"])
    >>> int(sdata["table"].var["panel"].sum())
    20
    """
    check = Arguments()
    n_genes = check.whole("n_genes", n_genes, 1)
    by = check.choice("by", by, (*_RANKINGS, _SCANPY))
    min_detection = check.number("min_detection", min_detection, 0, 1)
    chosen = check.labels("sections", sections)
    layer = check.text("layer", layer, optional=True)
    check.flag("inplace", inplace)
    with check.collect():
        _schema.check_name(key_added, "key_added")
    study = open_study(check, sdata, table_key)
    if layer is None or isinstance(layer, str):
        check.messages += layer_problems(study.table, layer, study.name)
    if isinstance(by, str) and by == "spatial" and "spatial" not in study.table.obsm:
        check.messages.append('`by="spatial"` needs positions in `obsm["spatial"]`.')
    if layer is not None and isinstance(by, str) and by == _SCANPY:
        check.messages.append(f"by={by!r} needs counts, as scanpy expects their logarithm: leave out `layer`.")
    with check.collect():
        rows = study.ordered(rows_of_sections(study, chosen))
    if inplace is not False and isinstance(key_added, str):
        check.messages += _foreign_panel(study, key_added)
    check.raise_all()
    panel, rows = _panel(study, rows, n_genes, by, min_detection, layer)
    update: dict[str, dict[str, Any]] = {"var": {key_added: panel}}
    origin = {"sections": sorted(set(study.sections[rows].tolist())), "by": by}
    # `fit` takes genes from this column alone, so only its sections can leak.
    if key_added == _schema.PANEL:
        update["uns"] = {_schema.PANEL: origin}
    else:
        update["uns"] = {_schema.PANELS: {**study.record(_schema.PANELS, {}), key_added: origin}}
    if not inplace:
        return update
    _schema.apply(study.stored_table, update)
    return None


def _foreign_panel(study: Study, key: str) -> list[str]:
    """List the column that a panel would replace although no panel was stored there."""
    known = study.record(_schema.PANEL) is not None if key == _schema.PANEL else key in study.record(_schema.PANELS, {})
    names = [f"var['{key}']"] if key in study.table.var and not known else []
    return _schema.foreign_problems(names, "Choose another `key_added`, or rename it")


def _panel(
    study: Study, rows: np.ndarray, n_genes: int, by: str, min_detection: float, layer: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Mark the chosen genes, bool (n_vars,); also return the rows with expression, by which they were chosen."""
    table = study.table
    values = labels(table, rows, np.arange(table.n_vars), layer=layer)
    complete = np.isfinite(values).all(axis=1)
    rows, values = rows[complete], values[complete]
    deep = deep_enough(study, rows, layer=layer, min_depth=MIN_DEPTH)
    rows, values = rows[deep], values[deep]
    if not len(rows):
        raise Img2GeneError("No spot of the chosen sections has expression: all are off the tissue or without counts.")
    # Genes can be chosen before patches exist, and Moran's I of the nearest spots needs no unit.
    positions = stored_positions(study, rows) if by == "spatial" else np.zeros((len(rows), 2))
    statistics = gene_statistics(values, study.sections[rows], positions)
    detected = statistics["detection"] >= min_detection
    if by == _SCANPY:
        score = _scanpy_scores(values, detected & (statistics["variance"] > 0), study.sections[rows], n_genes)
    else:
        score = np.where(detected, statistics[_RANKINGS[by]], np.nan)
    usable = np.flatnonzero(np.isfinite(score) & (statistics["variance"] > 0))
    if len(usable) < n_genes:
        raise Img2GeneError(
            f"n_genes={n_genes}: {len(usable)} of {table.n_vars} genes vary and are detected in {min_detection:.0%} of the spots. "
            "Lower `n_genes` or `min_detection`."
        )
    panel = np.zeros(table.n_vars, dtype=bool)
    # Equal scores are ordered by name, so that the order of the columns has no influence.
    names = table.var_names.to_numpy(dtype=str)[usable]
    panel[usable[np.lexsort((names, -score[usable]))[:n_genes]]] = True
    return panel, rows


def _scanpy_scores(values: np.ndarray, usable: np.ndarray, sections: np.ndarray, n_top: int) -> np.ndarray:
    """Score genes so that the ``n_top`` highest are scanpy's highly variable genes, float (n_genes,); NaN if not usable."""
    import warnings

    import anndata as ad
    import scanpy as sc

    score = np.full(len(usable), np.nan)
    if usable.any():
        table = ad.AnnData(values[:, usable], obs={"section": sections.astype(object)})
        batch = "section" if len(np.unique(sections)) > 1 else None
        with warnings.catch_warnings():
            # It calls other packages by names that are about to go.
            warnings.simplefilter("ignore")
            found = sc.pp.highly_variable_genes(
                table, n_top_genes=min(n_top, table.n_vars), batch_key=batch, inplace=False
            )
        # scanpy sorts by the number of sections that choose a gene, then by dispersion.
        order = ["highly_variable_nbatches"] * (batch is not None) + ["dispersions_norm"]
        keys = found[order].astype(float).round(6)
        known = np.isfinite(keys).all(axis=1).to_numpy()
        ranks = keys.apply(tuple, axis=1).rank(method="dense").to_numpy(dtype=float)
        score[usable] = np.where(known, ranks, np.nan)
    return score


def rows_of_sections(study: Study, sections: list[str] | None) -> np.ndarray:
    """Find the rows of the named sections, by default all; refuse unknown names."""
    if sections is None:
        return np.arange(study.n_obs)
    unknown = [name for name in sections if name not in study.sections]
    if unknown or not sections:
        raise MissingKeyError(f"sections={sections}: {no_such('section', unknown, np.unique(study.sections))}")
    return np.flatnonzero(np.isin(study.sections, sections))
