"""Which sections, spots and genes are scored, and whether the model was trained on their patients."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError, LeakageError, MissingKeyError, listing, missing, raise_problems
from img2gene._study.expression import labels, layer_problems, library_size
from img2gene._study.sections import patient_labels, section_labels, section_names
from img2gene.models import Model

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


def choose_sections(table: AnnData, model: Model, sections: Iterable[str] | None, table_key: str) -> list[str]:
    """The sections asked for, by default those that the model was not trained on; an error if there are none."""
    present = section_names(table, np.arange(table.n_obs), table_key)
    if sections is None:
        fresh = [name for name in present if name not in model.report["sections"]]
        if not fresh:
            raise Img2GeneError(
                "The model was trained on every section of this study, so no honest score is possible. Hold some out with "
                "`img2gene.tl.fit(…, validate_on=…)`, or name `sections=` to score in-sample (`allow_leakage=True`)."
            )
        return fresh
    asked = [sections] if isinstance(sections, str) else [str(name) for name in sections]
    unknown = [name for name in asked if name not in present]
    if unknown or not asked:
        raise MissingKeyError(f"No section named {listing(unknown)} (available: {listing(present)}).")
    return asked


def measured_sections(table: AnnData, model: Model, sections: Iterable[str] | None, table_key: str) -> list[str]:
    """As :func:`choose_sections`, without sections that have no label; an error if none has one."""
    sections = choose_sections(table, model, sections, table_key)
    known = section_names(table, np.flatnonzero(has_label(table, model)), table_key)
    empty = [name for name in sections if name not in known]
    if len(empty) == len(sections):
        raise Img2GeneError(
            f"Nothing to score against: no spot of the sections {listing(empty)} has a count (sections with labels: "
            f"{listing(known)}). Name others with `sections=`, or look at the predictions with `img2gene.pl.prediction`."
        )
    if empty:
        logger.info("sections %s have no labels and are not scored", listing(empty))
    return [name for name in sections if name in known]


def has_label(table: AnnData, model: Model) -> np.ndarray:
    """Whether each row has a label, bool (n_obs,): spots without a single count have none."""
    return library_size(table) > 0 if model.labels["layer"] is None else np.ones(table.n_obs, dtype=bool)


def check_leakage(
    table: AnnData, model: Model, chosen: list[str], table_key: str, allow: bool
) -> Callable[[str], object]:
    """Tell of a section whether it, or another one of its patient, was trained on; NA where patients are not known."""
    names, patients = section_labels(table, table_key), patient_labels(table)
    trained = set(model.report["patients"] or [])
    leaked = {name for name in chosen if name in model.report["sections"]}
    if patients is not None:
        leaked |= {name for name in chosen if trained & set(patients[names == name].tolist())}
    # A split that was allowed to leak at training needs no second permission for the sections it held out.
    declared = set(model.report["held_out"]) if model.report["leakage"] else set()
    undeclared = sorted(leaked - declared)
    if undeclared and not allow:
        raise LeakageError(
            f"The model was trained on the patient (or the very spots) of the sections {listing(undeclared)}: such scores "
            "are too good. Score other sections, or pass `allow_leakage=True`, which marks the result."
        )
    if leaked:
        logger.warning(
            "sections %s share a patient with the training sections; their scores are optimistic",
            listing(sorted(leaked)),
        )
    unknown = patients is None or model.report["patients"] is None
    return lambda name: True if name in leaked else pd.NA if unknown else False


def check_scorable(table: AnnData, model: Model, key: str, table_key: str) -> None:
    """Raise if there are no predictions under ``key``, or no labels like those of the training."""
    if key not in table.layers:
        raise MissingKeyError(
            missing(key, f"sdata['{table_key}'].layers", table.layers, "Run `img2gene.tl.predict` first.")
        )
    check_predictor(table, model, key)
    raise_problems(layer_problems(table, model.labels["layer"], table_key))


def measured_genes(table: AnnData, model: Model) -> list[str]:
    """Genes that the model predicts and the table has, in the order of the model; an error if there are none."""
    genes = [gene for gene in model.genes if gene in table.var_names]
    if not genes:
        raise Img2GeneError(
            f"None of the model's {len(model.genes)} genes ({listing(model.genes, 5)}) is in the table."
        )
    return genes


def check_predictor(table: AnnData, model: Model, key: str) -> None:
    """Raise if what is stored under ``key`` was predicted by another model: its split, and so its leaks, may be others."""
    by = _schema.read_json(table, _schema.PREDICTED_BY, default={}).get(key)
    if by is not None and by["fingerprint"] != model.fingerprint:
        raise Img2GeneError(
            f"The predictions {key!r} were made by another model (`{by['model']}`) than the one that is to be judged by them "
            f"(`{model.name}`, trained on {listing(model.report['sections'])}). Run `img2gene.tl.predict` with this one, or pass "
            "the other as `model=`."
        )


def scored_values(
    table: AnnData, model: Model, rows: np.ndarray, columns: np.ndarray, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions (n_spots, n_genes) of those ``rows`` that have labels."""
    kept, truth = labelled(table, model, rows, columns)
    return truth, np.asarray(table.layers[key][kept][:, columns])


def labelled(table: AnnData, model: Model, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those ``rows`` that have labels, and the labels (n_spots, n_genes)."""
    truth = labels(table, rows, columns, layer=model.labels["layer"])
    kept = np.isfinite(truth).all(axis=1)
    return (rows, truth) if kept.all() else (rows[kept], truth[kept])


def patient_of(table: AnnData, rows: np.ndarray) -> str | None:
    """Patient of the ``rows`` of a section; None where patients are not recorded."""
    patients = patient_labels(table)
    return None if patients is None else "+".join(dict.fromkeys(patients[rows].tolist()))


def is_rule(genes: Sequence[object]) -> bool:
    """Whether ``genes`` is a statistic and a number, such as ``("mean", 50)``, rather than names of genes."""
    return len(genes) == 2 and isinstance(genes[1], int)
