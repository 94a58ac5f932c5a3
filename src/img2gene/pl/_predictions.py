"""Predictions with their uncertainty and the measured expression, from a study or from a cross-validation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing, near_matches, no_such, raise_problems
from img2gene._study.depth import report_other_scale
from img2gene._study.expression import expression_unit, labels, measured
from img2gene._study.predictions import check_predictor, predicted_values, prediction_problems, record_of
from img2gene._study.sections import text_labels
from img2gene._study.study import Study
from img2gene.metrics._inputs import real_array
from img2gene.models.depth_scale import TRAINING
from img2gene.pl._tissue import Canvas, blank_canvas, canvases

if TYPE_CHECKING:
    from anndata import AnnData

    from img2gene.models import Model

logger = logging.getLogger(__name__)

# Predictions of a cross-validation keep no threshold; models record the same one.
OOD_THRESHOLD = 99.0
_UNCERTAINTY = ("std", "lower", "upper")
_SOURCES = "Pass a study, or the predictions that `img2gene.tl.cross_validate(sdata, keep_predictions=True)` keeps."
_PREDICT = "Run `img2gene.tl.predict(sdata)` again."


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions and what belongs to them, read gene by gene.

    Attributes
    ----------
    table
        Table of a study, or the predictions that a cross-validation kept.
    section_of
        Section of each row of the table.
    parts
        What can be read: ``predicted``, ``measured``, ``std``, ``lower`` and ``upper``, or some of them.
    genes
        Names of the predicted genes.
    ood
        Percentile of each row among the distances of training embeddings, if it is stored.
    level, threshold
        Nominal coverage of the intervals (NaN if it is not recorded), and the percentile beyond which spots are
        out-of-distribution.
    key
        Name of the prediction in the study.
    study, model
        The study, and the model that predicted in it; None for predictions of a cross-validation.
    unit
        Unit of the predictions; empty if it is unknown.
    """

    table: AnnData
    section_of: np.ndarray
    parts: list[str]
    genes: list[str]
    ood: np.ndarray | None
    level: float = np.nan
    threshold: float = OOD_THRESHOLD
    key: str = ""
    study: Study | None = None
    model: Model | None = None
    unit: str = ""

    @classmethod
    def of(cls, source: Study | AnnData, key: str, genes: list[str] | None = None) -> Predictions:
        """Open a study, or the kept predictions of a cross-validation, and check that they predict ``genes``."""
        if not isinstance(source, Study):
            predictions = cls.of_kept(source)
            if genes is not None:
                predictions._check_genes(genes)
            return predictions
        raise_problems(prediction_problems(source))
        model = _stored_predictor(source, key)
        predictions = cls.of_study(source, key, model)
        # Reading one gene refuses a prediction that is not there, with the call that makes it.
        values = predicted_values(source, predictions.genes[:1] if genes is None else genes, key)
        if genes is not None:
            predictions._check_values(genes, values)
        return predictions

    @classmethod
    def of_kept(cls, table: AnnData, level: float = np.nan, threshold: float = OOD_THRESHOLD) -> Predictions:
        """Read the predictions that a cross-validation kept."""
        if _schema.SECTION not in table.obs:
            raise MissingKeyError(f"The predictions have no `obs['section']`. {_SOURCES}")
        if table.X is None or not (table.n_obs and table.n_vars):
            raise Img2GeneError(
                f"The predictions hold no values: {table.n_obs} spots, {table.n_vars} genes. {_SOURCES}"
            )
        sections = text_labels(table.obs[_schema.SECTION], _schema.SECTION)
        parts = ["predicted", *(name for name in ("measured", *_UNCERTAINTY) if name in table.layers)]
        genes, unit = list(map(str, table.var_names)), str(table.uns.get(_schema.SCALE, ""))
        return cls(table, sections, parts, genes, _column(table, "ood"), level, threshold, unit=unit)

    @classmethod
    def of_study(cls, study: Study, key: str, model: Model | None) -> Predictions:
        """Read what ``model``, if it is known, predicted in a study under ``key``."""
        table, separate = study.table, study.sdata.tables.get(key)
        # A separate table holds genes that the study's table lacks; only there do its rows have to be the same.
        alone = key not in table.layers and separate is not None
        layers = {*table.layers, *(separate.layers if alone else ())}
        names = separate.var_names if alone else table.var_names
        if not table.n_obs:
            raise Img2GeneError(f"`{study.name}` has no rows, so there is nothing to draw.")
        record = _uncertainty_record(study, key)
        calibration = getattr(model, "calibration", None)
        return cls(
            table,
            study.sections,
            [
                "predicted",
                "measured",
                *(part for part in _UNCERTAINTY if _schema.uncertainty_keys(key)[part] in layers),
            ],
            [str(gene) for gene in (names if model is None else model.genes) if gene in names],
            _column(table, _schema.ood_key(key)),
            # The record belongs to the prediction; the model of that name may have been fitted again since.
            record.get("level", float(getattr(calibration, "level", np.nan))),
            record.get("ood_threshold", float(getattr(calibration, "threshold", OOD_THRESHOLD))),
            key,
            study,
            model,
            predicted_unit(study, key) if model is None else expression_unit(model.labels["layer"]),
        )

    @property
    def section_names(self) -> list[str]:
        """Names of all sections."""
        return list(dict.fromkeys(self.section_of.tolist()))

    @property
    def measured_genes(self) -> list[str]:
        """Names of the predicted genes that the table has, too."""
        known = set(self.table.var_names)
        return [gene for gene in self.genes if gene in known]

    @property
    def layer(self) -> str | None:
        """Layer of the study with the measured values on the model's scale; None for counts in X."""
        if self.model is not None:
            return self.model.labels["layer"]
        return (
            None if self.study is None else self.study.record(_schema.PREDICTED_BY, {}).get(self.key, {}).get("layer")
        )

    def chosen_sections(self, sections: str | Sequence[str] | None) -> list[str]:
        """Names of the chosen sections; by default the sections that the model was not trained on."""
        available = self.section_names
        if sections is None:
            # Fits on training sections look better than predictions of new ones.
            trained = [] if self.model is None else self.model.report.get("sections", [])
            return [name for name in available if name not in trained] or available
        names = [sections] if isinstance(sections, str) else list(sections)
        absent = [name for name in names if name not in available]
        if absent or not names:
            raise MissingKeyError(no_such("section", absent, available))
        return names

    def rows(self, section: str) -> np.ndarray:
        """Rows of a section."""
        return np.flatnonzero(self.section_of == section)

    def read(self, part: str, genes: list[str], rows: np.ndarray) -> np.ndarray | None:
        """Read one part as float64 (n_rows, n_genes); None if it is not there for all of these genes."""
        if part not in self.parts:
            return None
        if self.study is None:
            return _values(self.table.X if part == "predicted" else self.table.layers[part], rows, self._columns(genes))
        if part == "measured":
            return self._measured(genes, rows)
        name = self.key if part == "predicted" else _schema.uncertainty_keys(self.key)[part]
        columns = self._columns(genes)
        # Reads only the needed rows; a separate table is read as a whole.
        if name in self.table.layers and (columns >= 0).all():
            return _values(self.table.layers[name], rows, columns)
        return predicted_values(self.study, genes, self.key, part=None if part == "predicted" else part)[rows]

    def canvases(self, sections: list[str]) -> list[Canvas]:
        """Sections on the tissue of the study, or on white at the stored positions of their spots."""
        if self.study is not None:
            return canvases(self.study, sections)
        if "spatial" not in self.table.obsm:
            raise Img2GeneError("The predictions have no `obsm['spatial']`, so their spots cannot be drawn.")
        xy = real_array(self.table.obsm["spatial"], "obsm['spatial']").astype(float)
        if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
            raise Img2GeneError("`obsm['spatial']` of the predictions must hold a finite x and y for each spot.")
        return [blank_canvas(name, self.rows(name), xy[self.rows(name)]) for name in sections]

    def out_of_distribution(self, rows: np.ndarray) -> np.ndarray:
        """Mark spots beyond the threshold, bool (n_rows,); none if distances are not stored."""
        return np.zeros(len(rows), dtype=bool) if self.ood is None else self.ood[rows] > self.threshold

    def report_other_scale(self) -> None:
        """Warn if measured expression is on another scale than the predictions."""
        if self.study is not None and self.model is not None and measured(self.table, self.layer).any():
            report_other_scale(self.study, self.model)
            depth = (record_of(self.study, self.key) or {}).get("depth", TRAINING)
            if depth != TRAINING:
                logger.warning(
                    "%r is predicted at depth %s, and the measured expression has the depth of its spots: differences between them "
                    "are those of depth, too. `img2gene.tl.evaluate` compares both at the measured depth",
                    self.key,
                    f"{depth:g}" if isinstance(depth, float | int) else depth,
                )

    def no_uncertainty(self) -> MissingKeyError:
        """Describe absent standard deviations and intervals."""
        layers = f"{self.study.name}.layers" if self.study is not None else "the layers of the predictions"
        name = _schema.uncertainty_keys(self.key)["std"] if self.study is not None else "std"
        hint = "Run `img2gene.tl.predict` first, with a model that was fitted with `uncertainty=True`."
        return MissingKeyError(missing(name, layers, self.table.layers, hint))

    def _check_genes(self, genes: list[str]) -> None:
        absent = [gene for gene in genes if gene not in self.table.var_names]
        if not genes:
            raise MissingKeyError(no_such("gene", (), self.genes))
        if absent:
            raise MissingKeyError(missing(listing(absent), "the genes of the predictions", self.genes))

    def _check_values(self, genes: list[str], values: np.ndarray) -> None:
        """Raise for genes without a single value in the layer: the model does not know them."""
        absent = [gene for gene, column in zip(genes, values.T, strict=True) if not np.isfinite(column).any()]
        if absent and self.table.n_obs:
            layer = self.table.layers.get(self.key)
            known = [] if layer is None else self.table.var_names[np.isfinite(np.asarray(layer)).any(axis=0)]
            raise MissingKeyError(
                f"{listing(absent)}: not predicted by the model of {self.key!r} ({near_matches(absent, known)})."
            )

    def _measured(self, genes: list[str], rows: np.ndarray) -> np.ndarray | None:
        columns = self._columns(genes)
        if (columns < 0).any() or (self.layer is not None and self.layer not in self.table.layers):
            return None
        return labels(self.table, rows, columns, layer=self.layer).astype(np.float64)

    def _columns(self, genes: list[str]) -> np.ndarray:
        return self.table.var_names.get_indexer(genes)


def predicted_unit(study: Study, key: str) -> str:
    """Unit of the predictions ``key`` of a study; empty if another package made them."""
    by = record_of(study, key)
    return "" if by is None else expression_unit(by.get("layer"))


def _stored_predictor(study: Study, key: str) -> Model | None:
    """Read the stored model that made the predictions ``key``; None if no model of that name is stored."""
    from img2gene.io.model_store import read_model, stored_models

    names = list(stored_models(study.table))
    if key not in names:
        return None
    by = record_of(study, key)
    # A model can predict under the name of another one.
    for name in (key, *(name for name in names if name != key)):
        model = read_model(study.table, name)
        if by is None or by["fingerprint"] == model.fingerprint:
            return model
    check_predictor(study, read_model(study.table, key), key)
    return None


def _values(matrix: Any, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    values = matrix[rows][:, columns]
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=np.float64)


def _column(table: AnnData, name: str) -> np.ndarray | None:
    """Read a column of distances, NaN where there is none."""
    if name not in table.obs:
        return None
    if not pd.api.types.is_numeric_dtype(table.obs[name]):
        raise Img2GeneError(f"`obs['{name}']` holds {table.obs[name].dtype} values, not distances. {_PREDICT}")
    return table.obs[name].to_numpy(dtype=float, na_value=np.nan)


def _uncertainty_record(study: Study, key: str) -> dict[str, float]:
    """Read the level and threshold that a prediction was stored with."""
    records = study.record(_schema.UNCERTAINTY, default={})
    record = records.get(key, {}) if isinstance(records, dict) else None
    names = ("level", "ood_threshold")
    if not isinstance(record, dict) or not all(isinstance(record.get(name, 0.0), int | float) for name in names):
        raise Img2GeneError(
            f"The record of the uncertainty of {key!r} in `{study.name}.uns['{_schema.UNS}']` is damaged. {_PREDICT}"
        )
    return {name: float(record[name]) for name in names if name in record}
