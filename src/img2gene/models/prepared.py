"""A model that is ready to predict any block of spots, with their intervals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.models.checked import checked_labels, failures
from img2gene.models.model import Model
from img2gene.models.predictor import Predictor
from img2gene.models.row_blocks import Block, PredictsBlocks, Rows
from img2gene.models.uncertainty.calibration import Calibration
from img2gene.models.uncertainty.held_out import predict_spread


def prepared_rows(
    predictor: Predictor,
    features: np.ndarray,
    sections: np.ndarray,
    extra: dict[str, np.ndarray | None],
    n_genes: int,
    *,
    with_spread: bool = False,
) -> Rows:
    """Return a function that predicts and checks a slice of rows; other predictors predict whole sections for it."""
    rows_of: Rows
    if _prepares(type(predictor)) and isinstance(predictor, PredictsBlocks):
        with failures(predictor.name, "prepare"):
            rows_of = predictor.prepare(features, sections, with_spread=with_spread, **extra)
    else:
        rows_of = _WholeSections(predictor, features, sections, extra, n_genes)

    def predict(rows: slice) -> Block:
        with failures(predictor.name, "prepare"):
            values, spread = rows_of(rows)
        shape, name = (rows.stop - rows.start, n_genes), predictor.name
        spread = None if spread is None else checked_labels(spread, shape, name, "the SD over members")
        return checked_labels(values, shape, name, "predictions"), spread

    return predict


def _prepares(kind: type) -> bool:
    """Check that ``prepare`` belongs to the ``predict`` of a class; a subclass may override one of them alone."""
    owners = [next((base for base in kind.__mro__ if name in base.__dict__), None) for name in ("prepare", "predict")]
    return owners[0] is not None and owners[1] is not None and issubclass(owners[0], owners[1])


@dataclass
class _WholeSections:
    """Predicts whole sections, and keeps those that the last block touched."""

    predictor: Predictor
    features: np.ndarray
    sections: np.ndarray
    extra: dict[str, np.ndarray | None]
    n_genes: int
    kept: dict[str, tuple[np.ndarray, Block]] = field(default_factory=dict)

    def __call__(self, rows: slice) -> Block:
        names = self.sections[rows]
        present = np.unique(names)
        self.kept = {name: self.kept.get(name) or self._section(name) for name in present.tolist()}
        values = np.empty((len(names), self.n_genes), dtype=np.float32)
        spread: np.ndarray | None = np.empty_like(values)
        for name, (members, (predicted, sd)) in self.kept.items():
            in_section = names == name
            places = np.searchsorted(members, rows.start + np.flatnonzero(in_section))
            values[in_section] = predicted[places]
            if sd is None or spread is None:
                spread = None
            else:
                spread[in_section] = sd[places]
        return values, spread

    def _section(self, name: str) -> tuple[np.ndarray, Block]:
        members = np.flatnonzero(self.sections == name)
        extra: dict[str, Any] = {key: None if x is None else x[members] for key, x in self.extra.items()}
        part = self.features[members], self.sections[members]
        return members, predict_spread(self.predictor, *part, self.n_genes, **extra)


@dataclass(frozen=True)
class PreparedPrediction:
    """A prediction of all spots, of which any slice can be computed by itself.

    Attributes
    ----------
    rows
        Function that predicts a slice.
    n_rows, n_genes
        Shape of the prediction.
    calibration
        Adds SD and interval; None for neither.
    new_patient
        bool (n_rows,): spots of patients that the model was not trained on.
    ood
        float64 (n_rows,): percentile of each spot among the training embeddings; None without calibration.
    """

    rows: Rows
    n_rows: int
    n_genes: int
    calibration: Calibration | None = None
    new_patient: np.ndarray | None = None
    ood: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        features: np.ndarray,
        sections: np.ndarray,
        *,
        calibration: Calibration | None = None,
        new_patient: np.ndarray | None = None,
        **extra: np.ndarray | None,
    ) -> PreparedPrediction:
        """Prepare the prediction of a model; the inputs are those of :meth:`img2gene.models.Model.predict`."""
        features, checked = model.checked_inputs(features, sections, {"positions": None, "tokens": None, **extra})
        names = np.asarray(sections)
        with_spread = calibration is not None
        seen = model.seen(features)
        rows = prepared_rows(model.predictor, seen, names, checked, len(model.genes), with_spread=with_spread)
        if model.debiasing is not None:
            rows = model.debiasing.levelled(rows, seen, names)
        ood = None if calibration is None else calibration.novelty.percentile(features, names)
        return cls(rows, len(features), len(model.genes), calibration, new_patient, ood)

    def __call__(self, rows: slice) -> dict[str, np.ndarray]:
        """Predict a slice: ``values`` and, with calibration, ``std``, ``lower`` and ``upper``, float32 (n, n_genes)."""
        if not 0 <= rows.start <= rows.stop <= self.n_rows:
            raise Img2GeneError(f"Rows {rows.start} to {rows.stop} are outside 0 to {self.n_rows}.")
        values, spread = self.rows(rows)
        if self.calibration is None:
            return {"values": values}
        new = None if self.new_patient is None else self.new_patient[rows]
        bounds = self.calibration.bounds(values, spread, new)
        return {"values": values} | dict(zip(("std", "lower", "upper"), bounds, strict=True))
