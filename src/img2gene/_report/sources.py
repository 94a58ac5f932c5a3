"""What a report is about: a study with its model and predictions, a cross-validation, or both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene._study.expression import labels, library_size
from img2gene._study.predictions import predicted_values
from img2gene._study.study import Study

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from img2gene.models import Model

TRAINED, HELD_OUT, NEW, IMAGE_ONLY = "training", "held out", "new", "image only"


@dataclass(frozen=True, eq=False)
class ReportedStudy(Study):
    """A study with the model that predicted under ``key``, if there is one."""

    key: str = "img2gene"
    model: Model | None = None

    @classmethod
    def read(cls, sdata: SpatialData, model: Model | str | Path | None, key: str, table_key: str) -> ReportedStudy:
        """Open a study; a model that was named must exist, the default one need not."""
        from img2gene.tl.predict import resolve_model

        study = Study.of(sdata, table_key)
        try:
            return cls(sdata, table_key, key, resolve_model(study, model, key))
        except MissingKeyError:
            if model is not None:
                raise
            return cls(sdata, table_key, key, None)

    @cached_property
    def library(self) -> np.ndarray:
        """Counts per row over the full transcriptome."""
        return library_size(self.table) if self.table.n_vars else np.zeros(self.table.n_obs)

    @cached_property
    def measured(self) -> np.ndarray:
        """Rows that have a label."""
        layer = None if self.model is None else self.model.labels["layer"]
        return self.library > 0 if layer is None else np.full(self.table.n_obs, layer in self.table.layers)

    @cached_property
    def roles(self) -> dict[str, str]:
        """Whether the model was trained on a section; sections without any label are image only."""
        report = {} if self.model is None else self.model.report
        found = {}
        for name in dict.fromkeys(self.sections.tolist()):
            if name in report.get("sections", []):
                found[name] = TRAINED
            elif not self.measured[self.sections == name].any():
                found[name] = IMAGE_ONLY
            else:
                found[name] = HELD_OUT if name in report.get("held_out", []) else NEW
        return found

    def with_role(self, *roles: str) -> list[str]:
        """Sections with one of these roles."""
        return [name for name, role in self.roles.items() if role in roles]

    @property
    def unmeasured(self) -> list[str]:
        """Sections without any label in this table, such as tiles, whether or not the model knows the section."""
        return [name for name in self.roles if not self.measured[self.sections == name].any()]

    @cached_property
    def section_patients(self) -> dict[str, str | None]:
        """Patient of each section."""
        return {name: self.patient_of(self.section_rows(name)) for name in self.roles}

    @property
    def has_predictions(self) -> bool:
        """Whether there is a layer, or a table of the same rows, with predictions."""
        tables = self.sdata.tables
        return self.key in self.table.layers or (
            self.key in tables and tables[self.key].obs_names.equals(self.table.obs_names)
        )

    @cached_property
    def ood(self) -> np.ndarray | None:
        """Percentile of each row among the distances of training embeddings."""
        return _column(self.table, f"{self.key}_ood")


@dataclass(frozen=True)
class Values:
    """Predictions and all that belongs to them, read gene by gene.

    Attributes
    ----------
    table
        Table of a study, or the kept predictions of a cross-validation.
    rows
        Rows of it that are looked at.
    layers
        Names of the layers ``predicted`` (None for X), ``std``, ``lower``, ``upper`` and ``measured``, as far as they exist.
    study
        Where the table is that of a study.
    """

    table: AnnData
    rows: np.ndarray
    layers: dict[str, str | None]
    sections: np.ndarray
    ood: np.ndarray | None
    xy: np.ndarray | None
    study: ReportedStudy | None = None

    @classmethod
    def of_predictions(cls, table: AnnData) -> Values:
        """Those that a cross-validation kept."""
        present = [name for name in ("std", "lower", "upper", "measured") if name in table.layers]
        xy = np.asarray(table.obsm["spatial"]) if "spatial" in table.obsm else None
        sections = table.obs[_schema.SECTION].astype(str).to_numpy(dtype=str)
        layers: dict[str, str | None] = {"predicted": None, **{name: name for name in present}}
        return cls(table, np.arange(table.n_obs), layers, sections, _column(table, "ood"), xy)

    @classmethod
    def of_study(cls, study: ReportedStudy, sections: Iterable[str]) -> Values:
        """Those of some sections of a study."""
        key, table = study.key, study.table
        rows = np.flatnonzero(np.isin(study.sections, list(sections)))
        layers: dict[str, str | None] = {"predicted": key, "measured": None}
        layers |= {name: f"{key}_{name}" for name in ("std", "lower", "upper") if f"{key}_{name}" in table.layers}
        return cls(
            table, rows, layers, study.sections[rows], None if study.ood is None else study.ood[rows], None, study
        )

    @property
    def genes(self) -> list[str]:
        """Names of the genes that are predicted."""
        known = self.table.var_names
        model = None if self.study is None else self.study.model
        if self.study is not None and self.study.key not in self.table.layers and self.study.has_predictions:
            known = self.study.sdata.tables[self.study.key].var_names
        return [str(gene) for gene in (known if model is None else model.genes) if gene in known]

    @property
    def names(self) -> np.ndarray:
        """Names of the spots."""
        return self.table.obs_names.to_numpy()[self.rows]

    def read(self, name: str, genes: list[str], among: np.ndarray | None = None) -> np.ndarray | None:
        """Values float64 (n, len(genes)) of all rows or those ``among`` them; None if there are none."""
        if name not in self.layers:
            return None
        rows = self.rows if among is None else self.rows[among]
        columns = self.table.var_names.get_indexer(genes)
        if self.study is not None and name == "measured":
            if (columns < 0).any():
                return None
            layer = None if self.study.model is None else self.study.model.labels["layer"]
            return labels(self.table, rows, columns, layer=layer).astype(np.float64)
        if self.study is not None and (name == "predicted" and ((columns < 0).any() or not self._own_layer)):
            return predicted_values(self.study, genes, self.study.key)[rows]
        key = self.layers[name]
        matrix = self.table.X if key is None else self.table.layers[key]
        return np.asarray(_dense(matrix[rows][:, columns]), dtype=np.float64)

    @property
    def _own_layer(self) -> bool:
        return self.study is not None and self.study.key in self.table.layers


def _column(table: AnnData, name: str) -> np.ndarray | None:
    return table.obs[name].to_numpy(dtype=float) if name in table.obs else None


def _dense(values: Any) -> np.ndarray:
    return values.toarray() if hasattr(values, "toarray") else values


def readable(call: Any, *given: Any, **asked: Any) -> tuple[Any, str]:
    """What a call returns, or why it cannot: a report says what is wrong with a part and goes on with the others."""
    try:
        return call(*given, **asked), ""
    except Img2GeneError as error:
        return None, str(error)
