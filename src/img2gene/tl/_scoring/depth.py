"""Convert predictions to the depth at which expression was measured, so that like is compared with like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError
from img2gene._study.expression import library_size
from img2gene._study.predictions import record_of
from img2gene._study.study import Study
from img2gene.models import Model
from img2gene.models.depth_scale import TRAINING, Depth, DepthScale


@dataclass(frozen=True)
class MeasuredDepth:
    """Converts predictions of some genes to the depth of measured spots.

    Attributes
    ----------
    scale
        Depth scale of these genes; None leaves all values as they are.
    source
        Depth that was predicted at.
    library
        (n_obs,): counts of each spot.
    level
        Nominal coverage of the intervals.
    """

    scale: DepthScale | None
    source: Depth
    library: np.ndarray
    level: float = np.nan

    @classmethod
    def of(cls, study: Study, model: Model, genes: list[str], key: str, wanted: bool | None) -> MeasuredDepth:
        """Prepare the conversion; ``wanted=None`` converts predictions that were made at a stated depth."""
        source = predicted_depth(study, key)
        if wanted is False or (wanted is None and source == TRAINING):
            return cls(None, source, np.empty(0))
        scale = required_scale(model)
        numbers = pd.Index(model.genes).get_indexer(genes)
        level = np.nan if model.calibration is None else model.calibration.level
        return cls(scale.take(numbers), source, library_size(study.table), level)

    def convert(self, predicted: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Convert predictions (n_rows, n_genes) of rows of the table to the depth of these rows together."""
        if self.scale is None:
            return predicted
        return self.scale.convert(predicted, self.library[rows], source=self.source)

    def convert_interval(
        self, lower: np.ndarray | None, upper: np.ndarray | None, sd: np.ndarray | None, rows: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Convert intervals and SD of rows as their predictions; what is None stays None."""
        if self.scale is None or lower is None or upper is None or np.isnan(self.level):
            return lower, upper, sd
        return self.scale.convert_interval(lower, upper, sd, self.library[rows], level=self.level, source=self.source)

    def mean(self, mean: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Convert the mean of the training labels (n_genes,) to the depth of the rows."""
        if self.scale is None:
            return mean
        return self.scale.convert(mean[None], self.library[rows])[0].astype(np.float64)


def predicted_depth(study: Study, key: str) -> Depth:
    """Read at which depth the predictions ``key`` were made."""
    recorded = (record_of(study, key) or {}).get("depth", TRAINING)
    return np.inf if recorded == _schema.UNLIMITED else recorded


def required_scale(model: Model) -> DepthScale:
    """Return the depth scale of a model; refuse a model without one."""
    if model.depth_scale is None:
        raise Img2GeneError(
            f"The model `{model.name}` knows no depth: its labels are those of a layer, or it was fitted by an earlier version. "
            "Fit it to counts again."
        )
    return model.depth_scale
