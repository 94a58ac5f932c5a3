"""What a prediction consists of: its model, its depth, its record, and its table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._errors import MissingKeyError, listing
from img2gene._study.companions import companion_table
from img2gene._study.sections import folded
from img2gene._study.study import Study
from img2gene.models import Calibration, Model
from img2gene.models.depth_scale import DepthScale

if TYPE_CHECKING:
    from anndata import AnnData


def resolve_model(study: Study, model: Model | str | Path | None, key: str) -> Model:
    """Find the model: the object itself, a file, or the one stored under a key of this table or of the only other one."""
    from img2gene.io.model_store import load_model, model_file, read_model, stored_models

    if isinstance(model, Model):
        return model
    table, name = study.table, str(model or key)
    # Tiles of a slide are a table of their own; the model that predicts them was trained on the table of the spots.
    tables = [other for key_, other in study.sdata.tables.items() if key_ != study.table_key]
    others = [other for other in tables if name in stored_models(other)]
    holder = others[0] if name not in stored_models(table) and len(others) == 1 else table
    if model is None or name in stored_models(holder):
        # A stored model comes before a file of the same name.
        return read_model(holder, name)
    file = model_file(model)
    if file is None:
        address = " Addresses are read by `img2gene.io.load_model`, which returns the model." if "://" in name else ""
        raise MissingKeyError(
            f"`{name}` is neither a trained model of the table (available: {listing(stored_models(table))}) nor a file.{address}"
        )
    return load_model(file)


def at_depth(
    scale: DepthScale | None,
    layers: dict[str, np.ndarray],
    depth: float | str | None,
    key: str,
    calibration: Calibration | None,
) -> dict[str, np.ndarray]:
    """Convert layers to another depth; the SD changes as the width of the interval does."""
    if scale is None or depth is None:
        return layers
    names, target = _schema.uncertainty_keys(key), np.inf if isinstance(depth, str) else depth
    bounds = [names["lower"], names["upper"], names["std"]]
    converted = {name: scale.convert(values, target) for name, values in layers.items() if name not in bounds}
    if calibration is not None and names["lower"] in layers:
        lower, upper, sd = layers[names["lower"]], layers[names["upper"]], layers.get(names["std"])
        found = scale.convert_interval(lower, upper, sd, target, level=calibration.level)
        converted |= {name: values for name, values in zip(bounds, found, strict=True) if values is not None}
    return converted


def new_patients(study: Study, model: Model) -> np.ndarray:
    """Mark spots of patients that the model was not trained on, bool (n_obs,); all where patients are not known."""
    trained = {folded(name) for name in model.report.get("patients") or []}
    if study.patients is None:
        return np.ones(study.n_obs, dtype=bool)
    return np.array([folded(name) not in trained for name in study.patients.tolist()], dtype=bool)


def spread(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Values of some rows in an array of all rows; the others are NaN."""
    if rows.all():
        return values
    out = np.full((len(rows), *values.shape[1:]), np.nan, dtype=values.dtype)
    out[rows] = values
    return out


def prediction_record(
    table: AnnData, model: Model, calibration: Calibration | None, key: str, depth: float | str | None
) -> dict[str, Any]:
    """Name the model that predicted and the depth, the level of the intervals and the threshold of the percentile."""
    facts = {"level": calibration.level, "ood_threshold": calibration.threshold} if calibration is not None else None
    by = {"model": model.name, "fingerprint": model.fingerprint} | ({} if depth is None else {"depth": depth})
    if model.labels["layer"] is not None:
        by["layer"] = model.labels["layer"]
    records = {}
    for record, value in ((_schema.UNCERTAINTY, facts), (_schema.PREDICTED_BY, by)):
        known = _schema.read_json(table, record, default={})
        kept = {name: other for name, other in known.items() if name != key} | ({} if value is None else {key: value})
        if kept != known:
            records[record] = kept
    return records


def predicted_table(
    study: Study, model: Model, layers: dict[str, np.ndarray], ood: np.ndarray | None, key: str
) -> AnnData:
    """Make a separate table of predictions that annotates the same regions; without layers it has annotations only."""
    obs = {} if ood is None else {_schema.ood_key(key): ood}
    out = companion_table(study, model.genes, obs)
    if key in layers:
        out.X = layers[key]
    for name, values in layers.items():
        if name != key:
            out.layers[name] = values
    _schema.write_json(out, "prediction", {"model": model.name, "report": model.report})
    return out
