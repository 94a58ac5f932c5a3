"""Predict expression for every patch of a study with a trained model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing, raise_problems
from img2gene._study.inputs import Inputs, embedding, positions, tokens
from img2gene._study.sections import section_labels
from img2gene.models import Calibration, Model

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

_MAX_LAYER_BYTES = 4 * 2**30


def predict(
    sdata: SpatialData,
    model: Model | str | Path | None = None,
    *,
    table_key: str = "table",
    key_added: str = "img2gene",
    uncertainty: bool = True,
    inplace: bool = True,
) -> AnnData | None:
    """Predict expression from embedded patches.

    Parameters
    ----------
    sdata
        Study, or a section with only an image and tiles, on which :func:`img2gene.pp.embed_patches` was run as for the
        training sections. A model with a fine-tuned encoder embeds the patches itself, and needs their image instead.
    model
        A model, the path of one written by :func:`img2gene.io.save_model`, or the key it is stored under in this table, else
        in the only other table that has it; by default ``key_added``.
    table_key
        Table whose rows are predicted.
    key_added
        Name of the result.
    uncertainty
        Write SD, interval and percentile, too, where the model was fitted with `uncertainty=True`.
    inplace
        If False, nothing is written and a table of the predictions is returned.

    Returns
    -------
    None, or an AnnData of predictions (n_obs, n_genes of the model).

    Written is ``layers[key_added]`` (float32, on the scale of the training labels; genes that the model does not know are
    NaN) for the genes that the table has. Where it lacks genes of the model (tiles have none at all), or a layer would
    exceed 4 GiB, the whole prediction is written to ``tables[key_added]``, annotating the same regions.

    With uncertainty, layers of the same shape stand beside it: ``<key_added>_std``, the predictive SD, and
    ``<key_added>_lower`` and ``<key_added>_upper``, the interval that holds the stated share of measured labels in the mean over
    genes and new patients. ``obs["<key_added>_ood"]`` is the percentile (0–100) of the spot's distance from the training
    embeddings among those of ordinary patients; above 99 it should not be trusted. Level and threshold are recorded in
    ``uns["img2gene"]["uncertainty"]``. Without, what an earlier prediction of the same name left of these is removed.

    Raises
    ------
    Img2GeneError
        The embedding (or, for a fine-tuned encoder, the patches) is not what the model was trained on; all differences are
        named. Or an image that a fine-tuned encoder needs is gone.

    Notes
    -----
    The slide-centred ridge refers each spot to the mean of its section, so predictions depend on which spots of a section
    are present: predict whole sections.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "ridge", validate_on=["P3"])
    >>> ig.tl.predict(sdata)
    >>> sdata["table"].layers["img2gene"].shape == sdata["table"].shape
    True
    """
    _schema.check_name(key_added, "key_added")
    table = _schema.get_table(sdata, table_key)
    if key_added == table_key or key_added in {*sdata.images, *sdata.shapes, *sdata.labels, *sdata.points}:
        raise Img2GeneError(f"key_added={key_added!r} is the name of another element; choose another one.")
    if key_added in sdata.tables and _schema.read_json(sdata.tables[key_added], "prediction") is None:
        raise Img2GeneError(
            f"key_added={key_added!r} is the name of a table that is no prediction; choose another one."
        )
    found = resolve_model(sdata, table_key, model, key_added)
    features, sections, extra = model_inputs(sdata, found, table_key)
    calibration = found.calibration if uncertainty else None
    layers, ood = _predicted(found, calibration, features, sections, extra, key_added)
    shared = table.var_names.get_indexer(found.genes)
    complete = bool((shared >= 0).all())
    fits = table.n_obs * table.n_vars * 4 <= _MAX_LAYER_BYTES
    predicted = None
    if not (inplace and complete and fits):
        predicted = _predicted_table(table, found, layers, ood, key_added)
        _record(predicted, found, calibration, key_added)
    if not inplace:
        return predicted
    update: dict[str, dict[str, Any]] = {"layers": {}, "obs": {} if ood is None else {_schema.ood_key(key_added): ood}}
    if (shared >= 0).any() and fits:
        update["layers"] = {name: _layer(table, values, shared) for name, values in layers.items()}
    _write(table, update, found, calibration, key_added)
    if predicted is not None:
        if key_added in sdata.tables:
            del sdata.tables[key_added]
        sdata.tables[key_added] = predicted
        logger.info("wrote tables[%r]", key_added)
    if calibration is not None and ood is not None:
        _warn_of_strangers(sections, ood > calibration.threshold)
    return None


def _predicted(
    model: Model,
    calibration: Calibration | None,
    features: np.ndarray,
    sections: np.ndarray,
    extra: dict[str, np.ndarray | None],
    key: str,
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Layers by name, the prediction first, and the percentile of each spot."""
    if calibration is None:
        return {key: model.predict(features, sections, **extra)}, None
    found = model.predict_intervals(features, sections, **extra)
    names = _schema.uncertainty_keys(key)
    return {key: found.values} | {name: getattr(found, part) for part, name in names.items()}, found.ood


def _layer(table: AnnData, values: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Values (n, genes of the model) in the columns of the table; other genes are NaN."""
    if np.array_equal(shared, np.arange(table.n_vars)):
        return values
    layer = np.full(table.shape, np.nan, dtype=np.float32)
    layer[:, shared[shared >= 0]] = values[:, shared >= 0]
    return layer


def _write(
    table: AnnData, update: dict[str, dict[str, Any]], model: Model, calibration: Calibration | None, key: str
) -> None:
    """Write what was predicted, and remove what an earlier prediction of that name left beside it."""
    before = {"layers": _schema.uncertainty_keys(key).values(), "obs": [_schema.ood_key(key)]}
    for slot, names in before.items():
        stale = {name: None for name in names if name in getattr(table, slot) and name not in update[slot]}
        update[slot] = {**update[slot], **stale}
    _schema.apply(table, update)
    _record(table, model, calibration, key)


def _record(table: AnnData, model: Model, calibration: Calibration | None, key: str) -> None:
    """Which model predicted, level of the intervals and threshold of the percentile, beside those of other predictions."""
    facts = {"level": calibration.level, "ood_threshold": calibration.threshold} if calibration is not None else None
    by = {"model": model.name, "fingerprint": model.fingerprint}
    for record, value in ((_schema.UNCERTAINTY, facts), (_schema.PREDICTED_BY, by)):
        known = _schema.read_json(table, record, default={})
        kept = {name: other for name, other in known.items() if name != key} | ({} if value is None else {key: value})
        if kept != known:
            _schema.write_json(table, record, kept)


def _warn_of_strangers(sections: np.ndarray, beyond: np.ndarray) -> None:
    names = [str(name) for name in np.unique(sections) if beyond[sections == name].mean() > 0.5]
    if names:
        logger.warning(
            "sections %s: more than half of the spots are unlike the training data (stain, scanner, focus or tissue), so their "
            "predictions and intervals should not be trusted",
            listing(names),
        )


def resolve_model(sdata: SpatialData, table_key: str, model: Model | str | Path | None, key: str) -> Model:
    """The model itself, the one in a file, or the one stored in the table, else in the only other table that has it."""
    from img2gene.io.model_store import load_model, read_model, stored_models

    if isinstance(model, Model):
        return model
    table, name = _schema.get_table(sdata, table_key), model or key
    # Tiles of a slide are a table of their own, and are predicted by a model that was trained on spots.
    others = [other for other in sdata.tables.values() if other is not table and name in stored_models(other)]
    holder = others[0] if name not in stored_models(table) and len(others) == 1 else table
    if model is None or name in stored_models(holder):
        return read_model(holder, str(name))
    if not Path(model).is_file():
        raise MissingKeyError(missing(str(model), "the trained models of the table, nor a file", stored_models(table)))
    return load_model(model)


def model_inputs(
    sdata: SpatialData, model: Model, table_key: str
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray | None]]:
    """What a model looks at: the embedding, the sections, and its extra inputs."""
    table = _schema.get_table(sdata, table_key)
    inputs = _inputs(sdata, table, model, table_key)
    extra: dict[str, np.ndarray | None] = {}
    if "positions" in model.extra_inputs:
        extra["positions"] = positions(table, table_key)
    if "tokens" in model.extra_inputs:
        extra["tokens"] = inputs.tokens
    return inputs.features, section_labels(table, table_key), extra


def _inputs(sdata: SpatialData, table: AnnData, model: Model, table_key: str) -> Inputs:
    """The stored embedding, or that by the model's own fine-tuned encoder."""
    if "finetuned" in model.inputs:
        from img2gene._study import finetuning

        identity = finetuning.current_identity(table, model.inputs, table_key)
        raise_problems(_differences(model.inputs, identity, table_key))
        finetuning.check_images(sdata, table, table_key)
        return finetuning.embed_adapted(sdata, table_key, identity, model.encoder)
    identity = matching_identity(table, model, table_key)
    found = tokens(table, identity, table_key) if "tokens" in model.extra_inputs else None
    return Inputs(identity, embedding(table, identity, table_key), found)


def matching_identity(table: AnnData, model: Model, table_key: str) -> dict[str, Any]:
    """Identity of the stored embedding that the model takes; everything that differs is named."""
    wanted = model.inputs
    key = _schema.embedding_key(wanted["name"])
    known = _schema.read_json(table, "encoder", default={})
    if wanted["name"] not in known or key not in table.obsm:
        raise MissingKeyError(
            missing(
                key,
                f"sdata['{table_key}'].obsm",
                table.obsm,
                f"The model was trained on it: run `{_extract(wanted, table_key)}` and "
                f"`img2gene.pp.embed_patches(sdata, {wanted['name']!r}{_elsewhere(table_key)})`.",
            )
        )
    have = known[wanted["name"]]
    raise_problems(_differences(wanted, have, table_key) + _token_problems(wanted, have, table_key))
    return have


def _elsewhere(table_key: str) -> str:
    """The argument that names a table, where it is not the default one."""
    return "" if table_key == "table" else f", table_key={table_key!r}"


def _extract(wanted: dict[str, Any], table_key: str) -> str:
    return f"img2gene.pp.extract_patches(sdata, patch_um={tuple(wanted['patch_um'])}{_elsewhere(table_key)})"


def _differences(wanted: dict[str, Any], have: dict[str, Any], table_key: str) -> list[str]:
    """What distinguishes the embedding of the object from that which the model was trained on."""
    names = {
        "revision": "encoder revision",
        "patch_um": "fields of view (µm)",
        "input_px": "input size (px)",
        "orientations": "orientations",
        "width": "embedding width",
    }
    again = f" Run `{_extract(wanted, table_key)}`"
    again += "." if "finetuned" in wanted else " and embed again."
    return [
        f"The model was trained with {label} {wanted[field]}, the object has {have[field]}."
        + again * (field == "patch_um")
        for field, label in names.items()
        if wanted[field] != have[field]
    ]


def _token_problems(wanted: dict[str, Any], have: dict[str, Any], table_key: str) -> list[str]:
    """What a model that looks at tokens lacks; one that does not takes the embedding with or without them."""
    grids = [(identity.get("tokens"), identity.get("token_width")) for identity in (wanted, have)]
    if not wanted.get("tokens") or grids[0] == grids[1]:
        return []
    trained, stored = (f"{count} tokens of width {width}" if count else "none" for count, width in grids)
    return [
        f"The model was trained with {trained}, the object has {stored}. "
        f"Run `img2gene.pp.embed_patches(sdata, {wanted['name']!r}, tokens={wanted['tokens']}{_elsewhere(table_key)})`."
    ]


def _predicted_table(
    table: AnnData, model: Model, layers: dict[str, np.ndarray], ood: np.ndarray | None, key: str
) -> AnnData:
    """Predictions as a table of their own that annotates the same regions."""
    import anndata as ad
    from spatialdata.models import TableModel

    attrs = table.uns["spatialdata_attrs"]
    kept = [attrs["region_key"], attrs["instance_key"], _schema.SECTION, _schema.PATIENT, _schema.PATCH_TISSUE]
    obs = table.obs[[name for name in dict.fromkeys(kept) if name in table.obs]].copy()
    if ood is not None:
        obs[_schema.ood_key(key)] = ood
    beside = {name: values for name, values in layers.items() if name != key}
    out = ad.AnnData(layers[key], obs=obs, var=pd.DataFrame(index=pd.Index(model.genes)), layers=beside)
    if "spatial" in table.obsm:
        out.obsm["spatial"] = np.asarray(table.obsm["spatial"]).copy()
    if "spatial" in table.uns:
        out.uns["spatial"] = table.uns["spatial"]
    _schema.write_json(out, "prediction", {"model": model.name, "report": model.report})
    return TableModel.parse(
        out, region=attrs["region"], region_key=attrs["region_key"], instance_key=attrs["instance_key"]
    )
