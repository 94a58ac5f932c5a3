"""Tell results of the package from a user's own columns, and remove scores of predictions that are replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from img2gene import _schema

if TYPE_CHECKING:
    from anndata import AnnData

PCC = "pcc"
_EVALUATION = "evaluation"


def foreign_predictions(table: AnnData, key: str) -> list[str]:
    """List layers and columns that a prediction ``key`` would replace although no prediction wrote them."""
    parts = () if key in _schema.read_json(table, _schema.UNCERTAINTY, default={}) else _schema.uncertainty_keys(key)
    layers = [_schema.uncertainty_keys(key)[part] for part in parts]
    if key not in _schema.read_json(table, _schema.PREDICTED_BY, default={}):
        layers.append(key)
    taken = [f"layers['{name}']" for name in layers if name in table.layers]
    if parts and _schema.ood_key(key) in table.obs:
        taken.append(f"obs['{_schema.ood_key(key)}']")
    return _schema.foreign_problems(taken, "Choose another `key_added`, or rename them")


def foreign_scores(table: AnnData, columns: Iterable[str]) -> list[str]:
    """List columns of ``var`` that scores would replace although neither evaluation nor predictability wrote them."""
    names = set(columns)
    if _schema.read_json(table, _schema.PREDICTABILITY) is None:
        # Evaluations of earlier versions have no record of the column.
        scored = _schema.read_json(table, _schema.SCORED_BY) is not None or any(map(_evaluated, table.uns.values()))
        names -= {PCC} if scored else set()
    else:
        names = set()
    return _schema.foreign_problems(
        [f"var['{name}']" for name in table.var if name in names], "Rename them, or pass `inplace=False` for a table"
    )


def scored_by(key: str, fingerprint: str) -> dict[str, Any]:
    """Build the update of ``uns`` that says which prediction ``var["pcc"]`` belongs to."""
    return {_schema.SCORED_BY: {"key": key, "fingerprint": fingerprint}}


def remove_scores(table: AnnData, key: str, fingerprint: str) -> None:
    """Remove the scores of the predictions ``key``, unless the model with this fingerprint made these predictions."""
    by = _schema.read_json(table, _schema.PREDICTED_BY, default={}).get(key, {})
    if by.get("fingerprint") == fingerprint:
        return
    stored, scored = table.uns.get(key), _schema.read_json(table, _schema.SCORED_BY)
    evaluated = _evaluated(stored)
    if evaluated:
        table.uns[key] = {name: value for name, value in stored.items() if name != _EVALUATION}
    if PCC in table.var and (evaluated if scored is None else scored["key"] == key):
        del table.var[PCC]
    if scored is not None and scored["key"] == key:
        table.uns[_schema.UNS] = {n: v for n, v in _schema.container(table).items() if n != _schema.SCORED_BY}


def _evaluated(stored: Any) -> bool:
    return isinstance(stored, Mapping) and "format" in stored and _EVALUATION in stored
