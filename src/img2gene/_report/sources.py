"""The study that a report describes, with its model and predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._errors import Img2GeneError, MissingKeyError, raise_problems
from img2gene._study.expression import library_size, measured
from img2gene._study.predictions import check_predictor, prediction_problems
from img2gene._study.study import Study
from img2gene.pl._predictions import Predictions

if TYPE_CHECKING:
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
        from img2gene.tl._prediction.values import resolve_model

        # Opened first, so that a missing table is not taken for a missing model.
        study = Study.of(sdata, table_key)
        raise_problems(prediction_problems(study))
        try:
            return cls(sdata, table_key, study.plain_table, key=key, model=resolve_model(study, model, key))
        except MissingKeyError:
            if model is not None:
                raise
            return cls(sdata, table_key, study.plain_table, key=key)

    @cached_property
    def library(self) -> np.ndarray:
        """Counts per row over the full transcriptome."""
        return library_size(self.table) if self.table.n_vars else np.zeros(self.n_obs)

    @cached_property
    def measured(self) -> np.ndarray:
        """Rows with measured expression."""
        layer = None if self.model is None else self.model.labels["layer"]
        known = bool(self.table.n_vars) if layer is None else layer in self.table.layers
        return measured(self.table, layer) if known else np.zeros(self.n_obs, dtype=bool)

    @cached_property
    def unmeasured(self) -> list[str]:
        """Sections without measured expression in this table, such as tiles, also of sections that the model knows."""
        return [name for name in self.section_names() if not self.measured[self.section_rows(name)].any()]

    @cached_property
    def roles(self) -> dict[str, str]:
        """Role of each section for the model."""
        report = {} if self.model is None else self.model.report
        roles = dict.fromkeys(self.section_names(), NEW)
        roles |= {name: HELD_OUT for name in roles if name in report.get("held_out", [])}
        roles |= dict.fromkeys(self.unmeasured, IMAGE_ONLY)
        # Training comes last and wins: a section that was trained on is never called held out.
        return roles | {name: TRAINED for name in roles if name in report.get("sections", [])}

    def with_role(self, *roles: str) -> list[str]:
        """Sections with one of these roles."""
        return [name for name, role in self.roles.items() if role in roles]

    @cached_property
    def section_patients(self) -> dict[str, str | None]:
        """Patient of each section."""
        return {name: self.patient_of(self.section_rows(name)) for name in self.roles}

    @property
    def has_predictions(self) -> bool:
        """Whether there is a layer, or a table of the same rows, with predictions."""
        separate = self.sdata.tables.get(self.key)
        return self.key in self.table.layers or (
            separate is not None and separate.obs_names.equals(self.table.obs_names)
        )

    @cached_property
    def predictions(self) -> Predictions:
        """What the model predicted; distances from the training data of another model are left out."""
        predictions = Predictions.of_study(self, self.key, self.model)
        if self.model is not None and readable(check_predictor, self, self.model, self.key)[1]:
            return dataclasses.replace(predictions, ood=None)
        return predictions


def readable(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, str]:
    """Call a function, or return the message of its error, so that one broken part does not prevent a report."""
    try:
        return call(*arguments, **options), ""
    except Img2GeneError as error:
        return None, str(error)
