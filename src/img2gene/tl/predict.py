"""Predict expression for every patch of a study with a trained model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing
from img2gene._study.entrance import open_study, report_off_tissue
from img2gene._study.expression import in_tissue
from img2gene._study.model_inputs import ModelInputs, model_inputs
from img2gene._study.predictions import no_shared_genes
from img2gene._study.replaced import foreign_predictions, remove_scores
from img2gene._study.resolution import warn_of_other_resolution
from img2gene._study.sections import folded, region_column
from img2gene._study.study import Study
from img2gene.models import Calibration, Model
from img2gene.models.depth_scale import DepthScale
from img2gene.tl._arguments import check_flags, check_model, check_name
from img2gene.tl._scoring.depth import required_scale

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
    depth: float | str | None = None,
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
    depth
        Counts per spot at which expression is predicted. At few counts most genes are not seen, so log1p(1e4 · counts / library
        size) is lower. None takes the depths of the training spots; ``"unlimited"`` gives log1p(1e4 · share of the gene),
        which sections and models of different depth have in common. Counts are taken to be negative binomial.
    inplace
        If False, nothing is written and a table of the predictions is returned.

    Returns
    -------
    None, or an AnnData of predictions (n_obs, n_genes of the model).

    Written is ``layers[key_added]`` (float32, on the scale of the training labels; genes that the model does not know are
    NaN) for the genes that the table has. Where it lacks genes of the model (tiles have none at all), or a layer would
    exceed 4 GiB, the whole prediction is written to ``tables[key_added]``, annotating the same regions.

    With uncertainty, further layers of the same shape are written: ``<key_added>_std``, the predictive SD, and
    ``<key_added>_lower`` and ``<key_added>_upper``, the interval that holds the stated share of measured labels in the mean over
    genes and new patients. Spots off the tissue (0 in ``obs["in_tissue"]``) are NaN. ``obs["<key_added>_ood"]`` is the percentile (0–100) of the spot's distance from the training
    embeddings among those of ordinary patients; above 99 it should not be trusted. Level and threshold are recorded in
    ``uns["img2gene"]["uncertainty"]``. Without, what an earlier prediction of the same name left of these is removed.
    Another model's predictions of that name take their scores with them: ``var["pcc"]`` and the stored evaluation.

    Raises
    ------
    Img2GeneError
        The embedding (or, for a fine-tuned encoder, the patches) is not what the model was trained on; all differences are
        named. An image has changed since it was embedded, or one that a fine-tuned encoder needs is gone. Or the result
        would replace layers or columns that no prediction wrote.

    Notes
    -----
    Models that centre features by section, which is the default of all but ``"mean"``, compare each spot with the mean of its
    section, so predictions depend on which spots of a section are present: predict whole sections, and filter afterwards.

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
    check = Arguments()
    check_name(check, "key_added", key_added)
    check_flags(check, uncertainty=uncertainty, inplace=inplace)
    if not (isinstance(depth, str) and depth == _schema.UNLIMITED):
        depth = check.number("depth", depth, above=0, optional=True)
    model = check_model(check, model)
    check.raise_all()
    study = open_study(check, sdata, table_key)
    with check.collect():
        _check_target(study, key_added)
    if inplace:
        check.messages += foreign_predictions(study.table, key_added)
    check.raise_all()
    trained = resolve_model(study, model, key_added)
    inputs, table = model_inputs(study, trained), study.stored_table
    columns = table.var_names.get_indexer(trained.genes)
    # A layer is dense and has all genes of the table, however few the model predicts.
    fits = table.n_obs * table.n_vars * 4 <= _MAX_LAYER_BYTES
    if inplace and not ((columns >= 0).all() and fits):
        _check_regions(study, key_added)
    report_off_tissue(study)
    warn_of_other_resolution(study, np.arange(study.n_obs), trained.report.get("resolution_um"))
    calibration = trained.calibration if uncertainty else None
    layers, ood = _predicted(study, trained, calibration, inputs, key_added, depth)
    _report_genes(study, trained, columns, key_added)
    predicted, record = None, _record(table, trained, calibration, key_added, depth)
    if not (inplace and (columns >= 0).all() and fits):
        predicted = _predicted_table(study, trained, layers, ood, key_added)
        _schema.apply(predicted, {"uns": _record(predicted, trained, calibration, key_added, depth)})
    if not inplace:
        return predicted
    update: dict[str, dict[str, Any]] = {"layers": {}, "obs": {} if ood is None else {_schema.ood_key(key_added): ood}}
    if (columns >= 0).any() and fits:
        update["layers"] = {name: _layer(table, values, columns) for name, values in layers.items()}
    update |= _stale(table, update, key_added) | {"uns": record}
    _write(study, update, predicted, key_added, trained)
    if calibration is not None and ood is not None:
        _warn_of_ood_sections(study, ood > calibration.threshold)
    return None


def _check_target(study: Study, key_added: str) -> None:
    sdata, tables = study.sdata, study.sdata.tables
    if key_added == study.table_key or key_added in {*sdata.images, *sdata.shapes, *sdata.labels, *sdata.points}:
        raise Img2GeneError(f"key_added={key_added!r} is the name of another element; choose another one.")
    if key_added in tables and _schema.read_json(tables[key_added], "prediction") is None:
        raise Img2GeneError(
            f"key_added={key_added!r} is the name of a table that is no prediction; choose another one."
        )


def _check_regions(study: Study, key_added: str) -> None:
    """Refuse to replace a table of predictions of other regions."""
    sdata, tables = study.sdata, study.sdata.tables
    if key_added not in tables:
        return
    others = sorted(set(region_column(tables[key_added], "prediction").astype(str)) - set(study.regions))
    if any(region in sdata for region in others):
        raise Img2GeneError(
            f"tables[{key_added!r}] holds predictions of other regions ({listing(others)}), which would be lost. Pass another "
            f"`key_added` (and the model), or delete the table: `del sdata.tables[{key_added!r}]`."
        )


def _predicted(
    study: Study,
    model: Model,
    calibration: Calibration | None,
    inputs: ModelInputs,
    key: str,
    depth: float | str | None,
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Layers by name, the prediction first, and the percentile of each spot; NaN off the tissue."""
    scale, rows = None if depth is None else required_scale(model), in_tissue(study.table)
    # Features are centred by section, so spots off the tissue would change the predictions of all others.
    part = inputs if rows.all() else inputs.take(rows)
    if not rows.any():
        raise Img2GeneError("No spot lies on tissue (`obs['in_tissue']`), so there is nothing to predict.")
    if calibration is None:
        layers = {key: model.predict(part.features, part.sections, **part.extra)}
        return {name: _spread(values, rows) for name, values in _at_depth(scale, layers, depth, key).items()}, None
    prediction = model.predict_intervals(
        part.features, part.sections, **part.extra, new_patient=_new_patients(study, model)[rows]
    )
    names = _schema.uncertainty_keys(key)
    layers = {key: prediction.values} | {name: getattr(prediction, part) for part, name in names.items()}
    layers = _at_depth(scale, layers, depth, key)
    return {name: _spread(values, rows) for name, values in layers.items()}, _spread(prediction.ood, rows)


def _at_depth(
    scale: DepthScale | None, layers: dict[str, np.ndarray], depth: float | str | None, key: str
) -> dict[str, np.ndarray]:
    """Convert layers to another depth; the SD changes as the width of the interval does."""
    if scale is None or depth is None:
        return layers
    names, target = _schema.uncertainty_keys(key), np.inf if isinstance(depth, str) else depth
    converted = {name: scale.convert(values, target) for name, values in layers.items() if name != names["std"]}
    if names["std"] in layers:
        before, after = (each[names["upper"]] - each[names["lower"]] for each in (layers, converted))
        ratio = np.divide(after, before, out=np.zeros_like(before), where=before > 0)
        converted[names["std"]] = layers[names["std"]] * ratio
    return converted


def _new_patients(study: Study, model: Model) -> np.ndarray:
    """Mark spots of patients that the model was not trained on, bool (n_obs,); all where patients are not known."""
    trained = {folded(name) for name in model.report.get("patients") or []}
    if study.patients is None:
        return np.ones(study.n_obs, dtype=bool)
    return np.array([folded(name) not in trained for name in study.patients.tolist()], dtype=bool)


def _spread(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Values of some rows in an array of all rows; the others are NaN."""
    if rows.all():
        return values
    out = np.full((len(rows), *values.shape[1:]), np.nan, dtype=values.dtype)
    out[rows] = values
    return out


def _report_genes(study: Study, model: Model, columns: np.ndarray, key: str) -> None:
    """Warn if the table has none, or less than half, of the genes that the model predicts; tiles have no genes at all."""
    if not study.table.n_vars:
        return
    n_shared = int((columns >= 0).sum())
    if not n_shared:
        logger.warning(
            "%s The predictions are in the table %r alone.", no_shared_genes(model.genes, study.table.var_names), key
        )
    elif n_shared < len(model.genes) / 2:
        absent = [gene for gene, column in zip(model.genes, columns, strict=True) if column < 0]
        logger.warning(
            "the table has only %d of the model's %d genes (not %s): the predictions of all of them are in the table %r. Check "
            "that `var_names` are written as in the training",
            n_shared,
            len(model.genes),
            listing(absent, 5),
            key,
        )


def _layer(table: AnnData, values: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Values (n, genes of the model) in the columns of the table; other genes are NaN."""
    # This saves a copy, which can take gigabytes.
    if np.array_equal(shared, np.arange(table.n_vars)):
        return values
    layer = np.full(table.shape, np.nan, dtype=np.float32)
    layer[:, shared[shared >= 0]] = values[:, shared >= 0]
    return layer


def _stale(table: AnnData, update: dict[str, dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    """Extend an update: None removes what an earlier prediction of that name wrote and this one does not."""
    before = {"layers": [key, *_schema.uncertainty_keys(key).values()], "obs": [_schema.ood_key(key)]}
    for slot, names in before.items():
        stale = {name: None for name in names if name in getattr(table, slot) and name not in update[slot]}
        update = update | {slot: {**update[slot], **stale}}
    return update


def _write(study: Study, update: dict[str, dict[str, Any]], predicted: AnnData | None, key: str, model: Model) -> None:
    """Write the layers with their record, and the separate table if there is one, or nothing."""
    table, tables = study.stored_table, study.sdata.tables
    with _schema.all_or_nothing(table, study.sdata):
        # The record of the earlier prediction, which the update replaces, says whose scores these are.
        remove_scores(table, key, model.fingerprint)
        _schema.apply(table, update)
        if key in tables and (predicted is not None or _predicts(tables[key], study)):
            del tables[key]
        if predicted is not None:
            tables[key] = predicted
            logger.info("wrote tables[%r]", key)


def _predicts(table: AnnData, study: Study) -> bool:
    """Check that a table of predictions belongs to the regions of a study; tiles have regions of their own."""
    return bool(set(region_column(table, "prediction").astype(str)) & set(study.regions))


def _record(
    table: AnnData, model: Model, calibration: Calibration | None, key: str, depth: float | str | None
) -> dict[str, Any]:
    """Name the model that predicted and the depth, the level of the intervals and the threshold of the percentile."""
    facts = {"level": calibration.level, "ood_threshold": calibration.threshold} if calibration is not None else None
    by = {"model": model.name, "fingerprint": model.fingerprint} | ({} if depth is None else {"depth": depth})
    records = {}
    for record, value in ((_schema.UNCERTAINTY, facts), (_schema.PREDICTED_BY, by)):
        known = _schema.read_json(table, record, default={})
        kept = {name: other for name, other in known.items() if name != key} | ({} if value is None else {key: value})
        if kept != known:
            records[record] = kept
    return records


def _warn_of_ood_sections(study: Study, beyond: np.ndarray) -> None:
    names = [str(name) for name in np.unique(study.sections) if beyond[study.sections == name].mean() > 0.5]
    if names:
        logger.warning(
            "sections %s: more than half of the spots are out-of-distribution (stain, scanner, focus or tissue), so their "
            "predictions and intervals should not be trusted",
            listing(names),
        )


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
        raise MissingKeyError(missing(name, "the trained models of the table, nor a file", stored_models(table)))
    return load_model(file)


def _predicted_table(
    study: Study, model: Model, layers: dict[str, np.ndarray], ood: np.ndarray | None, key: str
) -> AnnData:
    """Make a separate table of predictions that annotates the same regions."""
    import anndata as ad
    from spatialdata.models import TableModel

    table = study.stored_table
    attrs = table.uns["spatialdata_attrs"]
    kept = [attrs["region_key"], attrs["instance_key"], _schema.SECTION, _schema.PATIENT, _schema.PATCH_TISSUE]
    obs = table.obs[[name for name in dict.fromkeys(kept) if name in table.obs]].copy()
    if ood is not None:
        obs[_schema.ood_key(key)] = ood
    others = {name: values for name, values in layers.items() if name != key}
    out = ad.AnnData(layers[key], obs=obs, var=pd.DataFrame(index=pd.Index(model.genes)), layers=others)
    if "spatial" in table.obsm:
        out.obsm["spatial"] = np.asarray(table.obsm["spatial"]).copy()
    if "spatial" in table.uns:
        # squidpy looks up the picture of a section here.
        out.uns["spatial"] = table.uns["spatial"]
    _schema.write_json(out, "prediction", {"model": model.name, "report": model.report})
    # A table that was filtered in place still lists regions, and categories, that no row has.
    out.obs[attrs["region_key"]] = out.obs[attrs["region_key"]].astype(str).astype("category")
    return TableModel.parse(
        out, region=list(study.regions), region_key=attrs["region_key"], instance_key=attrs["instance_key"]
    )
