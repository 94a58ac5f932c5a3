"""Which sections, spots and genes are scored, and whether the model was trained on their patients."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError, LeakageError, MissingKeyError, listing, missing, no_such, raise_problems
from img2gene._study.depth import report_other_scale
from img2gene._study.expression import labels, layer_problems, measured
from img2gene._study.matrices import dense, in_memory
from img2gene._study.predictions import check_predictor, no_shared_genes, separate_table
from img2gene._study.sections import folded
from img2gene._study.spots import same_spots, spot_digests
from img2gene._study.study import Study
from img2gene.models import Model

logger = logging.getLogger(__name__)


def choose_sections(study: Study, model: Model, sections: Iterable[str] | None) -> list[str]:
    """Choose the sections to score, by default those that training neither used nor left out as too shallow."""
    present = study.section_names()
    if not present:
        raise Img2GeneError(f"`{study.name}` has no spots, so there is nothing to score.")
    if sections is None:
        # A section that was meant for training, but was too shallow, is no test section.
        seen = {*model.report["sections"], *model.report.get("left_out", [])}
        fresh = [name for name in present if name not in seen]
        if not fresh:
            raise Img2GeneError(
                "The model was trained on every section of this study, so no honest score is possible. Hold some out with "
                "`img2gene.tl.fit(…, validate_on=…)`, or name `sections=` to score in-sample (`allow_leakage=True`)."
            )
        return fresh
    chosen = [sections] if isinstance(sections, str) else list(dict.fromkeys(map(str, sections)))
    unknown = [name for name in chosen if name not in present]
    if unknown or not chosen:
        raise MissingKeyError(no_such("section", unknown, present))
    return chosen


def measured_sections(study: Study, model: Model, sections: Iterable[str] | None) -> list[str]:
    """Choose the sections to score as :func:`choose_sections` does, without sections that have no measured spot."""
    known = study.section_names(has_label(study, model))
    if study.n_obs and not known:
        raise Img2GeneError(
            f"`{study.name}` has no measured expression to score against: none of its {study.n_obs} spots lies on tissue and "
            "has a count. Look at the predictions with `img2gene.pl.prediction`."
        )
    chosen = choose_sections(study, model, sections)
    empty = [name for name in chosen if name not in known]
    if len(empty) == len(chosen):
        raise Img2GeneError(
            f"Nothing to score against: no spot of the sections {listing(empty)} has a count on tissue (sections with counts: "
            f"{listing(known)}). Name others with `sections=`, or look at the predictions with `img2gene.pl.prediction`."
        )
    if empty:
        logger.info("sections %s have no counts and are not scored", listing(empty))
    return [name for name in chosen if name in known]


def has_label(study: Study, model: Model) -> np.ndarray:
    """Whether each row has measured expression, bool (n_obs,)."""
    return measured(study.table, model.labels["layer"])


def report_unlabelled(study: Study, model: Model, chosen: list[str]) -> None:
    """Log how many spots of the chosen sections are not scored."""
    rows = np.isin(study.sections, chosen)
    left_out = rows & ~has_label(study, model)
    if left_out.any():
        logger.info(
            "left out %d of %d spots without measured expression: no count, or off the tissue (obs['in_tissue'] is 0)",
            left_out.sum(),
            rows.sum(),
        )


@dataclass(frozen=True)
class Leakage:
    """Says of each scored section whether its patient was trained on; NA where patients are not recorded.

    Attributes
    ----------
    trained_on
        Sections that were trained on, also under another name.
    leaked
        These, and other sections of patients who were trained on.
    unknown
        Whether patients are not recorded.
    """

    trained_on: list[str]
    leaked: set[str]
    unknown: bool

    def __call__(self, section: str) -> object:
        return True if section in self.leaked else pd.NA if self.unknown else False


def check_leakage(study: Study, model: Model, chosen: list[str], allow: bool) -> Leakage:
    """Find out which scored sections are of patients who were trained on, and refuse them unless they are allowed."""
    patients = study.patients
    trained = {folded(name) for name in model.report["patients"] or []}
    known = {*model.report["sections"], *renamed_sections(study, model, chosen)}
    trained_on = [name for name in chosen if name in known]
    leaked = set(trained_on)
    if patients is not None:
        # Patients may have other names than when the model was trained.
        present = np.isin(study.sections, model.report["sections"])
        trained |= set(map(folded, patients[present].tolist()))
        leaked |= {name for name in chosen if trained & set(map(folded, patients[study.sections == name].tolist()))}
    # A split that was allowed to leak at training needs no second permission for the sections it held out.
    declared = set(model.report["held_out"]) if model.report["leakage"] else set()
    undeclared = sorted(leaked - declared)
    if undeclared and not allow:
        raise LeakageError(
            f"The model was trained on the patient (or the spots) of the sections {listing(undeclared)}: such scores "
            "are too good. Score other sections, or pass `allow_leakage=True`, which marks the result."
        )
    if leaked:
        logger.warning(
            "sections %s share a patient with the training sections; their scores are optimistic",
            listing(sorted(leaked)),
        )
    return Leakage(trained_on, leaked, patients is None or model.report["patients"] is None)


def renamed_sections(study: Study, model: Model, chosen: list[str]) -> set[str]:
    """Find sections that were trained on under another name, by the embeddings of their spots."""
    known = model.report.get("spots")
    values = study.table.obsm.get(_schema.matrix_key(model.inputs))
    # Models of earlier versions name no spots, and those with a fine-tuned encoder take no stored embedding.
    if not isinstance(known, dict) or "finetuned" in model.inputs or values is None or np.ndim(values) != 2:
        return set()
    values = in_memory(values)
    if values.dtype.kind not in "iuf":
        return set()
    values = dense(values)
    digests = {name: spot_digests(values[study.sections == name]) for name in chosen}
    return {name for name, spots in digests.items() if any(same_spots(spots, other) for other in known.values())}


def check_scorable(study: Study, model: Model, key: str) -> None:
    """Raise if ``key`` holds no predictions of this model, or the table no expression on the scale of its training."""
    table, values = study.table, stored_values(study, key, key)
    if not table.n_vars:
        raise Img2GeneError(f"Nothing to score against: `{study.name}` has no genes, so no expression is measured.")
    if not any(gene in table.var_names for gene in model.genes):
        raise Img2GeneError(no_shared_genes(model.genes, table.var_names))
    if values is None:
        where = f" (the table `{key}` predicts other rows, or with another model)" * (key in study.sdata.tables)
        hint = f"Run `img2gene.tl.predict` first{where}."
        raise MissingKeyError(missing(key, f"{study.name}.layers", table.layers, hint))
    check_predictor(study, model, key)
    raise_problems(layer_problems(table, model.labels["layer"], study.name))
    report_other_scale(study, model)
    dtype = values[0].dtype if hasattr(values[0], "compute") else in_memory(values[0]).dtype
    if dtype.kind not in "iuf":
        raise Img2GeneError(f"`{study.name}.layers['{key}']` holds {dtype} values, not predictions.")


def measured_genes(study: Study, model: Model) -> list[str]:
    """List the genes that the model predicts and the table has, in the order of the model."""
    genes = [gene for gene in model.genes if gene in study.table.var_names]
    if not genes:
        raise Img2GeneError(
            f"None of the model's {len(model.genes)} genes ({listing(model.genes, 5)}) is in the table."
        )
    return genes


def scored_values(
    study: Study, model: Model, rows: np.ndarray, columns: np.ndarray, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Read measured and predicted expression (n_spots, n_genes) of the ``rows`` that were measured."""
    kept, truth = labelled(study, model, rows, columns)
    return truth, layer_values(study, key, key, kept, columns)


def stored_values(study: Study, key: str, name: str) -> tuple[Any, pd.Index] | None:
    """Find the prediction ``key``, or its layer ``name``, and the genes of its columns; None if it was not written.

    It is a layer of the table, or in the table ``key``, where ``out=`` of :func:`img2gene.tl.predict` leaves it.
    """
    if name in study.table.layers:
        return study.table.layers[name], study.table.var_names
    # Tiles and studies without the genes of the model have a table of their own, too.
    separate = separate_table(study, key)
    values = None if separate is None else separate.X if name == key else separate.layers.get(name)
    return None if separate is None or values is None else (values, separate.var_names)


def layer_values(study: Study, key: str, name: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Read some rows, and columns of the study's table, of a prediction as a dense array."""
    stored = stored_values(study, key, name)
    if stored is None:
        raise MissingKeyError(missing(name, f"{study.name}.layers", study.table.layers))
    values, genes = stored
    places = genes.get_indexer(study.table.var_names[columns])
    # Of a table in a store, only the chosen rows are read.
    part = values[rows] if hasattr(values, "compute") else in_memory(values)[rows]
    array = dense(in_memory(part[:, places]))
    # Sums of half precision would lose digits.
    return array.astype(np.promote_types(array.dtype, np.float32), copy=False)


def labelled(study: Study, model: Model, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the measured ``rows``, and read their expression (n_spots, n_genes) on the model's scale."""
    truth = labels(study.table, rows, columns, layer=model.labels["layer"])
    kept = np.isfinite(truth).all(axis=1)
    return (rows, truth) if kept.all() else (rows[kept], truth[kept])


def is_rule(genes: Sequence[object]) -> bool:
    """Whether ``genes`` is a statistic and a number, such as ``("mean", 50)``, rather than names of genes."""
    return len(genes) == 2 and isinstance(genes[1], (int, np.integer))
