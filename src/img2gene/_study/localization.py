"""Locate a tissue by marker scores and thresholds, compare with an annotation, and store the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema, metrics
from img2gene._checks import name_text
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing
from img2gene._study.study import Study

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

_RECORDS = "localization"
# Missing values turn into these texts when a table is stored as text.
_MISSING = ("", "nan", "None", "<NA>")


def score_column(key: str, tissue: str) -> str:
    """Name the ``obs`` column with the marker score of a tissue."""
    return f"{key}_{tissue}"


def inside_column(key: str, tissue: str) -> str:
    """Name the ``obs`` column that marks the spots inside a tissue."""
    return f"{key}_{tissue}_inside"


def records(table: AnnData) -> dict[str, Any]:
    """Read settings and thresholds of every localisation of a table, by key."""
    return _schema.read_json(table, _RECORDS, default={})


def records_update(table: AnnData, key: str, record: dict[str, Any]) -> dict[str, Any]:
    """Build the update of ``uns`` that adds a localisation to the stored ones."""
    return {_RECORDS: records(table) | {key: record}}


def required_record(study: Study, key: str) -> dict[str, Any]:
    """Read what :func:`img2gene.tl.localize` stored under ``key``; refuse scores of predictions that were replaced.

    If nothing is stored, the error lists the stored keys.
    """
    known = records(study.table)
    if key not in known:
        where = f"the localisations of {study.name}"
        raise MissingKeyError(missing(key, where, known, "Run `img2gene.tl.localize` first."))
    record = known[key]
    by = _schema.read_json(study.table, _schema.PREDICTED_BY, default={}).get(record.get("key"))
    # Measured scores do not come from predictions, and records of earlier versions name no model.
    if (
        by is not None
        and record.get("use") == "predicted"
        and record.get("fingerprint", by["fingerprint"]) != by["fingerprint"]
    ):
        raise Img2GeneError(
            f"The localisation {key!r} belongs to predictions {record['key']!r} that another model has replaced since. Run "
            "`img2gene.tl.localize` again."
        )
    return record


def marker_score(values: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Average z-scores of expression (n_spots, n_markers) over markers, float64 (n_spots,); NaN if any is NaN."""
    return ((np.asarray(values, dtype=np.float64) - mean) / sd).mean(axis=1)


def pairs_within(positions: np.ndarray, groups: list[np.ndarray], radius: float) -> sp.csr_matrix:
    """Link the spots of each group that lie within ``radius``: CSR (n_spots, n_spots) of ones, no spot with itself."""
    import scipy.sparse as sp
    from scipy.spatial import cKDTree

    pairs = [rows[cKDTree(positions[rows]).query_pairs(radius, output_type="ndarray")] for rows in groups]
    one, two = np.concatenate(pairs).T
    size = (len(positions),) * 2
    graph = sp.csr_matrix((np.ones(len(one)), (one, two)), shape=size)
    return graph + graph.T


def smoothed(scores: np.ndarray, graph: sp.csr_matrix) -> np.ndarray:
    """Average each spot's score with its neighbours in ``graph``, ignoring spots without a score; NaN stays NaN."""
    known = np.isfinite(scores)
    total = np.where(known, scores, 0)
    return np.where(known, (total + graph @ total) / np.maximum(known + graph @ known, 1), np.nan)


def otsu(scores: np.ndarray) -> float | None:
    """Compute Otsu's threshold of the finite scores; None if there are none."""
    from skimage.filters import threshold_otsu

    known = scores[np.isfinite(scores)]
    return float(threshold_otsu(known)) if len(known) else None


def best_threshold(truth: np.ndarray, scores: np.ndarray) -> float:
    """Find the threshold with the largest true positive rate − false positive rate (Youden's J).

    It lies midway between the lowest score called inside and the next one below. Of several best thresholds, the
    highest is taken.
    """
    from sklearn.metrics import roc_curve

    # The midpoint needs the next lower score, which dropped cuts would skip.
    false_positive, true_positive, cuts = roc_curve(truth, scores, drop_intermediate=False)
    # The first cut is infinity, which calls no spot inside.
    best = 1 + int(np.argmax((true_positive - false_positive)[1:]))
    if best + 1 == len(cuts):
        # The lowest score is the best cut: just below it, `>` calls all spots inside.
        return float(np.nextafter(cuts[best], -np.inf))
    return float((cuts[best] + cuts[best + 1]) / 2)


def annotated(column: pd.Series, values: list[str]) -> np.ndarray:
    """Mark rows with one of ``values`` by 1, with another value by 0 and without a value by NaN, float (n_obs,)."""
    texts = _column_texts(column)
    return np.where(texts.isin(_MISSING), np.nan, texts.isin(values).to_numpy(dtype=float))


def annotation_values(column: pd.Series) -> list[str]:
    """List the values of an annotation; for categories, also those that no row has."""
    known = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else pd.unique(column.dropna())
    return [text for text in dict.fromkeys(map(_text, known)) if text not in _MISSING]


def _column_texts(column: pd.Series) -> pd.Series:
    """Convert values to text; missing ones become ``""``."""
    return column.astype(object).where(column.notna(), "").map(_text)


def positive_values(column: pd.Series, tissues: list[str], positive: Any) -> dict[str, list[str]]:
    """Find the annotation values of each tissue: those in ``positive``, else its name, or True in a boolean column."""
    if positive is not None and not isinstance(positive, Mapping):
        if len(tissues) > 1:
            raise Img2GeneError(f"`positive` must be a dict for several tissues: {listing(tissues)}.")
        positive = {tissues[0]: positive}
    named = positive or {}
    foreign = [name for name in named if name not in tissues]
    if foreign:
        raise Img2GeneError(
            f"`positive` names tissues without markers: {listing(foreign)} (available: {listing(tissues)})."
        )
    known = annotation_values(column)
    if set(known) <= {"True", "False"}:
        known = ["True", "False"]
    default = {tissue: "True" if "True" in known else tissue for tissue in tissues}
    as_numbers = pd.api.types.is_numeric_dtype(getattr(column.dtype, "categories", column).dtype)
    accepted = {tissue: _texts(named.get(tissue, default[tissue]), as_numbers) for tissue in tissues}
    absent = {name: [value for value in values if value not in known] for name, values in accepted.items()}
    problems = [f"{listing(absent[name])} ({name})" for name, values in accepted.items() if absent[name] or not values]
    if problems:
        raise MissingKeyError(
            f"`obs['{column.name}']` has no value {', '.join(problems)}; available: {listing(known, 30)}. "
            "Say which of its values mean a tissue with `positive={tissue: [values]}`."
        )
    return accepted


def _texts(values: Any, as_numbers: bool) -> list[str]:
    """Convert one value or several to text; with ``as_numbers``, a text such as ``"1.0"`` counts as the number."""
    several = list(values) if np.iterable(values) and not isinstance(values, str | bytes) else [values]
    return [_text(_number(value) if as_numbers else value) for value in several]


def _number(value: Any) -> Any:
    """Read a text as a number if it is one; return other values unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _text(value: Any) -> str:
    """Convert a value to text, the same for 1 and 1.0, without spaces around it."""
    return name_text(value).strip()


def agreement(truth: np.ndarray, scores: np.ndarray, inside: np.ndarray) -> dict[str, float | int]:
    """Compute AUROC, AUPRC and Dice over the spots with both an annotation and a score, and count these spots."""
    known = np.isfinite(truth) & np.isfinite(scores)
    actual, score = truth[known] == 1, scores[known]
    return {
        "n_annotated": int(known.sum()),
        "n_positive": int(actual.sum()),
        "auroc": metrics.auroc(actual, score),
        "auprc": metrics.auprc(actual, score),
        "dice": metrics.dice(actual, inside[known]),
    }
