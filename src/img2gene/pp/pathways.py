"""Score pathways in every spot, and select those that vary with the tissue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._checks import Arguments, shown
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, MissingKeyError, missing
from img2gene._study.entrance import open_study, stored_positions
from img2gene._study.expression import layer_problems, measured
from img2gene._study.features import with_features
from img2gene._study.inputs import choose_encoder, embedding, has_embedding
from img2gene._study.pathways import log_counts, set_columns, to_columns
from img2gene._study.study import Study
from img2gene.pathways import match_gene_sets, read_gene_sets
from img2gene.pathways.context import METHODS, choose_pathways, score_spots
from img2gene.pathways.gene_sets import ORGANISMS
from img2gene.pp.expression import rows_of_sections
from img2gene.settings import settings

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl")


@fill_parameters
def score_pathways(
    sdata: SpatialData,
    gene_sets: Mapping[str, list[str]] | pd.DataFrame | str | Path = "tissue",
    *,
    method: str = "aucell",
    n_top: int = 50,
    sections: Iterable[str] | None = None,
    organism: str = "auto",
    encoder: str | None = None,
    features: str | None = None,
    gene_ids: str | None = None,
    min_genes: int = 5,
    seed: int | None = None,
    table_key: str = "table",
    key_added: str = _schema.PATHWAYS,
    inplace: bool = True,
) -> dict[str, dict[str, Any]] | None:
    """Score gene sets in every spot.

    If there are more than ``n_top`` sets, the function takes those most enriched among genes that vary with position
    and morphology, see :func:`img2gene.pathways.rank_genes` and :func:`img2gene.pathways.enrich`. A model trained with
    pathways selects them again on its training spots, so held-out sections never influence it, whatever ``sections``
    is.

    Join sections before you score them: sections that were scored separately have to be scored again after joining.

    Parameters
    ----------
    %(sdata_counts)s
    gene_sets
        ``"tissue"``, ``"hallmark"``, ``"reactome"``, ``"go_bp"``, a library of Enrichr, a GMT path, a dict, or a
        network: see :func:`img2gene.pathways.read_gene_sets`.
    method
        ``"aucell"`` (:func:`img2gene.pathways.aucell`), ``"ssgsea"`` (:func:`img2gene.pathways.ssgsea`, some hundred
        times slower) or ``"zscore"`` (:func:`img2gene.pathways.zscore`).
    n_top
        Largest number of pathways that are scored.
    sections
        Sections on which pathways are selected, and which give mean and SD for the z-score; by default all.
    organism
        ``"human"``, ``"mouse"``, or ``"auto"``, which infers it from the gene names. Named collections differ by
        organism.
    encoder
        Which embedding describes morphology, if several are stored. Without an embedding, genes are ranked by position
        alone.
    features
        A matrix that describes morphology in place of an embedding: its name in obsm, or a table with a row for each spot.
    gene_ids
        Column of var with other names of the genes, usually Ensembl ids; by default the first existing one of
        ``gene_ids``, ``gene_id`` and ``ensembl``. Sets are matched by whichever names cover more of their genes.
    min_genes
        Sets with fewer measured genes are dropped.
    seed
        Seed of the selection; None takes ``img2gene.settings.seed``.
    %(table_key_counts)s
    key_added
        Name the pathways are stored under.
    %(inplace_update)s

    Returns
    -------
    None, or the update. The call writes ``obsm[key_added]``, float32 (n_obs, P), NaN in spots without counts, and
    ``uns["img2gene"][key_added]``: one JSON string with names, method, all matched sets, how they were matched and
    enriched. Read it with :func:`img2gene.get.pathways`.

    Raises
    ------
    Img2GeneError
        Counts are not raw, sections, method or organism are unknown, the named embedding is missing, or no gene set has
        enough measured genes.
    MissingKeyError
        The collection, file or column does not exist.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30)
    >>> ig.pp.score_pathways(sdata)
    >>> "hypoxia" in ig.get.pathways(sdata)["pathway"].tolist()
    True
    """
    check = Arguments()
    method = check.choice("method", method, METHODS)
    organism = check.choice("organism", organism, ("auto", *ORGANISMS))
    n_top, min_genes = check.whole("n_top", n_top, 1), check.whole("min_genes", min_genes, 1)
    names = check.labels("sections", sections)
    encoder, gene_ids = check.text("encoder", encoder, optional=True), check.text("gene_ids", gene_ids, optional=True)
    features = check.text("features", features, optional=True)
    seed = check.seed("seed", settings.seed if seed is None else seed)
    check.flag("inplace", inplace)
    study = open_study(check, sdata, table_key)
    table = study.table
    check.messages += layer_problems(table, None, study.name)
    with check.collect():
        _check_key(table, key_added)
    with check.collect():
        rows = study.ordered(rows_of_sections(study, names))
    if gene_ids is None or isinstance(gene_ids, str):
        with check.collect():
            other_names = _other_names(study, gene_ids)
    study = _with_morphology(check, study, encoder, features)
    check.raise_all()
    rows = _measured_rows(study, rows)
    species = _organism(table, other_names) if organism == "auto" else organism
    collection = read_gene_sets(gene_sets, organism=species)
    columns, matching = match_gene_sets(collection, table.var_names, other_names, min_genes=min_genes)
    matched = {name: table.var_names[members].tolist() for name, members in columns.items()}
    options = {"method": method, "organism": species, "n_top": n_top, "matching": to_columns(matching)}
    scores, record = _scored(_Selection(study, rows, seed, encoder, features), matched, options)
    update: dict[str, dict[str, Any]] = {"obsm": {key_added: scores}, "uns": {key_added: record}}
    if not inplace:
        return update
    _schema.apply(study.stored_table, update)
    return None


def _with_morphology(check: Arguments, study: Study, encoder: Any, features: Any) -> Study:
    """Check which embedding or matrix describes morphology, and return the study with that matrix."""
    if isinstance(features, str):
        if encoder is not None:
            check.messages.append(
                f"features={features!r} and encoder={shown(encoder)} contradict each other: pass one."
            )
        with check.collect():
            return with_features(study, features)
    elif isinstance(encoder, str):
        with check.collect():
            choose_encoder(study, encoder)
    return study


def _scored(
    selection: _Selection, matched: dict[str, list[str]], options: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Select pathways if there are more than wanted, and score them; return the scores and their record."""
    chosen, enrichment = list(matched), None
    if len(matched) > options["n_top"]:
        chosen, enrichment = selection.choose(matched, options["n_top"])
    scores = selection.score(options["method"], {name: matched[name] for name in chosen})
    record = {
        "names": chosen,
        "gene_sets": matched,
        "enrichment": None if enrichment is None else to_columns(enrichment),
        **options,
        **selection.record(),
    }
    return scores, record


def _measured_rows(study: Study, rows: np.ndarray) -> np.ndarray:
    """Keep the rows with counts on the tissue; refuse sections without any."""
    kept = rows[measured(study.table, None)[rows]]
    if not len(kept):
        raise Img2GeneError("No spot of the chosen sections has expression: all are off the tissue or without counts.")
    return kept


def _check_key(table: AnnData, key: str) -> None:
    """Refuse a name under which something other than pathways is stored."""
    _schema.check_name(key, "key_added")
    record = _schema.read_json(table, key)
    has_pathways = isinstance(record, dict) and "gene_sets" in record
    if not has_pathways and (record is not None or key in table.obsm):
        raise Img2GeneError(f"key_added={key!r} would overwrite something other than pathways; choose another name.")


def _other_names(study: Study, column: str | None) -> list[str] | None:
    """Read other names of the genes from a column of var; None if no such column exists."""
    table = study.table
    if column is None:
        column = next((name for name in _ID_COLUMNS if name in table.var), None)
    elif column not in table.var:
        raise MissingKeyError(missing(column, f"{study.name}.var", table.var.columns, "Pass `gene_ids=`."))
    return None if column is None else table.var[column].astype(str).tolist()


def _organism(table: AnnData, other_names: list[str] | None) -> str:
    """Infer the organism: mouse if genes are named like ``Actb`` or ``ENSMUSG…``, else human."""
    symbols = [str(name) for name in table.var_names]
    if any(name.startswith("ENSMUSG") for name in [*symbols, *(other_names or [])]):
        return "mouse"
    # Some human symbols have small letters, too, such as C1orf112, so the majority decides.
    lower = sum(name[1:] != name[1:].upper() for name in symbols)
    return "mouse" if 2 * lower > len(symbols) else "human"


@dataclass(frozen=True)
class _Selection:
    """A study, the rows on which its pathways are selected, and what describes morphology."""

    study: Study
    rows: np.ndarray
    seed: int
    encoder: str | None
    features: str | None

    def record(self) -> dict[str, Any]:
        """Describe on which sections pathways were selected, and with which seed."""
        study = self.study
        return {
            "sections": sorted(study.section_names(self.rows)),
            "scored": sorted(study.section_names()),
            "seed": self.seed,
        }

    def choose(self, gene_sets: dict[str, list[str]], n_top: int) -> tuple[list[str], pd.DataFrame]:
        """Choose the pathways most enriched in the selected rows."""
        study, rows = self.study, self.rows
        features = self._morphology()
        return choose_pathways(
            log_counts(study.table, rows),
            list(study.table.var_names),
            gene_sets,
            n_top,
            sections=study.sections[rows],
            positions=self._positions(rows),
            features=None if features is None else features[rows],
            seed=self.seed,
        )

    def score(self, method: str, gene_sets: dict[str, list[str]]) -> np.ndarray:
        """Score all spots."""
        table = self.study.table
        # The other methods rank genes within a spot, for which counts are enough.
        labels = log_counts(table, np.arange(table.n_obs)) if method == "zscore" else None
        columns = set_columns(table, gene_sets)
        return score_spots(method, table.X, labels, columns, reference=self.rows, genes=table.var_names)

    def _morphology(self) -> np.ndarray | None:
        if self.encoder is None and self.features is None and not has_embedding(self.study):
            return None
        return embedding(self.study, choose_encoder(self.study, self.encoder, self.features))

    def _positions(self, rows: np.ndarray) -> np.ndarray:
        obsm = self.study.table.obsm
        if "spatial" in obsm:
            return stored_positions(self.study, rows)
        if _schema.PATCH_BBOX in obsm or _schema.POSITIONS in obsm:
            return self.study.positions[rows]
        raise Img2GeneError(
            'Selecting pathways needs the positions of the spots: set `obsm["spatial"]`, run `img2gene.pp.extract_patches` '
            "first, or raise `n_top` to the number of gene sets."
        )
