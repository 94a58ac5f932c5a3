"""Predict expression for every patch of a study with a trained model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene._study.entrance import open_study, report_off_tissue
from img2gene._study.expression import in_tissue
from img2gene._study.model_inputs import model_inputs
from img2gene._study.predictions import no_shared_genes
from img2gene._study.replaced import foreign_predictions, remove_scores
from img2gene._study.resolution import warn_of_other_resolution
from img2gene._study.sections import region_column
from img2gene._study.study import Study
from img2gene.models import Model
from img2gene.models.predictor import centres_by_section
from img2gene.tl._arguments import check_flags, check_model, checked_features
from img2gene.tl._prediction.finer import (
    FinerPrediction,
    check_embedded,
    check_resolution,
    check_totals,
    store,
    target_problems,
)
from img2gene.tl._prediction.study import Request, StudyPrediction
from img2gene.tl._prediction.values import resolve_model

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

# Sections with fewer spots have no mean to speak of.
_FEW_SPOTS = 20
# A table with less than this share of its region's spots was filtered; quality control removes fewer.
_PART = 0.75
_MAX_LAYER_BYTES = 4 * 2**30


@fill_parameters
def predict(
    sdata: SpatialData,
    model: Model | str | Path | None = None,
    *,
    table_key: str = "table",
    key_added: str = "img2gene",
    features: str | None = None,
    uncertainty: bool = True,
    depth: float | str | None = None,
    out: str | Path | None = None,
    dtype: str = "float32",
    client: Any = None,
    resolution_um: float | None = None,
    totals: str = "predicted",
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
    features
        Matrix to predict from in place of the one that is named like the training's, as in :func:`img2gene.tl.fit`: for
        example LazySlide's table ``"uni2_tiles"`` for a model that was trained on ``obsm["X_uni2"]``. It must come from the
        same encoder, as far as that is recorded, see :func:`img2gene.pp.describe_features`.
    uncertainty
        Write SD, interval and percentile, too, where the model was fitted with `uncertainty=True`.
    depth
        Counts per spot at which expression is predicted. At few counts most genes are not seen, so log1p(1e4 · counts / library
        size) is lower. ``"training"`` takes the depths of the training spots; ``"unlimited"`` gives log1p(1e4 · share of the
        gene), which sections and models of different depth have in common. Counts are taken to be negative binomial. None is
        ``"training"``, but ``"unlimited"`` for a model that was fitted with ``debias="depth"``.
    out
        Zarr store to write the predictions to, chunk by chunk, so that they need not fit into memory. A call that was
        killed leaves ``<out>.unfinished``; the same call goes on from there. An embedding that
        :func:`img2gene.pp.embed_patches` wrote to a store is read from it chunk by chunk.
    dtype
        Type of the numbers in ``out``: ``"float32"``, or ``"float16"``, which halves the store and keeps three digits.
    %(client)s
    resolution_um
        Predict square tiles of this side in µm instead of spots. Their patches have the fields of view of the training, so
        they overlap; they are read and embedded here. Where labels are made of counts, expm1 of the tiles whose centre lies in
        a spot has the mean that the spot has, gene by gene; labels of a layer have it themselves. Tiles between the spots
        follow the correction of the nearest four.
    totals
        What the tiles of a spot add up to with ``resolution_um``: the ``"predicted"`` expression of the spot, or, where it
        was measured, the ``"measured"`` one.
    inplace
        If False, nothing is written to the study and a table of the predictions is returned.

    Returns
    -------
    None, or an AnnData of predictions (n_obs, n_genes of the model).

    Written is ``layers[key_added]`` (float32, on the scale of the training labels; genes that the model does not know are
    NaN) for the genes that the table has. Where it lacks genes of the model (tiles have none at all), or a layer would
    exceed 4 GiB, the whole prediction is written to ``tables[key_added]``, annotating the same regions. With ``out`` it always
    is, and its ``X`` and layers are dask arrays that stay in the store; :func:`img2gene.io.open_table` opens it later.

    With ``resolution_um``, nothing is written for the spots, but ``tables["<key_added>_<resolution>um"]`` and the squares
    ``shapes["<key_added>_<resolution>um_squares"]`` (with the region's name for several regions). ``obs["spot"]`` names the
    spot that a tile lies in. Intervals hold for spots alone, so tiles have none.

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
        named. An image has changed since it was embedded (images above 4 megapixels are compared at 64 places only), or one that
        a fine-tuned encoder needs is gone. Or the result
        would replace layers or columns that no prediction wrote. Or ``out`` holds something else, or cannot be written; the
        study then is as it was, and finished parts are kept.

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
    request = Request.of(check, key_added, uncertainty, depth, out, dtype, client)
    check_flags(check, inplace=inplace)
    resolution_um, totals = check_resolution(check, resolution_um, totals, out)
    model, features = check_model(check, model), checked_features(check, features, resolution_um=resolution_um)
    check.raise_all()
    study = open_study(check, sdata, table_key)
    with check.collect():
        _check_target(study, key_added)
    if inplace:
        check.messages += foreign_predictions(study.table, key_added)
    check.raise_all()
    trained = resolve_model(study, model, key_added)
    request = request.of_model(trained)
    inputs, table = model_inputs(study, trained, lazy=out is not None, features=features), study.stored_table
    columns = table.var_names.get_indexer(trained.genes)
    # A layer is dense and has all genes of the table, however few the model predicts.
    fits = out is None and table.n_obs * table.n_vars * 4 <= _MAX_LAYER_BYTES
    if inplace and not ((columns >= 0).all() and fits):
        _check_regions(study, key_added)
    report_off_tissue(study)
    _warn_of_parts(study, trained)
    warn_of_other_resolution(study, np.arange(study.n_obs), trained.report.get("resolution_um"))
    _report_genes(study, trained, columns, key_added)
    prediction = StudyPrediction(study, trained, inputs, request)
    if resolution_um is not None:
        return _predicted_finer(FinerPrediction(study, trained, request, prediction, resolution_um, totals), inplace)
    predicted, layers, ood = prediction.run()
    if predicted is None and not (inplace and (columns >= 0).all() and fits):
        predicted = prediction.table(layers, ood)
    if not inplace:
        return predicted
    update: dict[str, dict[str, Any]] = {"layers": {}, "obs": {} if ood is None else {_schema.ood_key(key_added): ood}}
    if (columns >= 0).any() and fits:
        update["layers"] = {name: _layer(table, values, columns) for name, values in layers.items()}
    update |= _stale(table, update, key_added) | {"uns": prediction.record(table)}
    _write(study, update, predicted, key_added, trained)
    if prediction.calibration is not None and ood is not None:
        _warn_of_ood_sections(study, ood > prediction.calibration.threshold)
    return None


def _predicted_finer(finer: FinerPrediction, inplace: bool) -> AnnData | None:
    """Predict tiles smaller than spots, and write their table with its squares, or return the table."""
    check_totals(finer.totals, finer.request.depth)
    check_embedded(finer.model)
    if inplace:
        raise_problems(target_problems(finer.study, finer.key))
    fine = finer.run()
    if not inplace:
        return fine.tables[finer.key]
    store(finer.study, fine, finer.key)
    logger.info("wrote tables[%r] and %s", finer.key, listing(fine.shapes))
    return None


def _warn_of_parts(study: Study, model: Model) -> None:
    """Warn of sections whose mean, which predictions refer to, says little or is that of a part."""
    if not centres_by_section(model.predictor):
        return
    names, counts = np.unique(study.sections[in_tissue(study.table)], return_counts=True)
    few = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < _FEW_SPOTS]
    if few:
        logger.warning(
            "sections %s have fewer than %d spots: the model predicts spots relative to the mean of their section, which so few "
            "do not show. Predict whole sections, and filter afterwards",
            listing(few),
            _FEW_SPOTS,
        )
    shapes = {region: len(study.sdata[region]) for region in study.regions if region in study.sdata}
    parts = [
        f"{region} ({len(rows)} of {shapes[region]})"
        for region, rows in study.regions.items()
        if len(rows) < _PART * shapes.get(region, 0)
    ]
    if parts:
        logger.warning(
            "the table has less than three quarters of the spots of %s. Unless only spots off the tissue are gone, predictions will differ: "
            "the model predicts spots relative to the mean of their section. Predict whole sections, and filter afterwards",
            listing(parts),
        )


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


def _warn_of_ood_sections(study: Study, beyond: np.ndarray) -> None:
    names = [str(name) for name in np.unique(study.sections) if beyond[study.sections == name].mean() > 0.5]
    if names:
        logger.warning(
            "sections %s: more than half of the spots are out-of-distribution (stain, scanner, focus or tissue), so their "
            "predictions and intervals should not be trusted",
            listing(names),
        )
