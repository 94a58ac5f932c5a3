"""Predict block by block into a store, from which a killed run resumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError
from img2gene._files.folders import fingerprint
from img2gene._study.expression import in_tissue
from img2gene._study.model_inputs import ModelInputs
from img2gene._study.study import Study
from img2gene._versions import versions
from img2gene.io.table_store import StoredArray, TableWriter, part_rows
from img2gene.models import Calibration, Model
from img2gene.models.data import RowSource
from img2gene.models.prepared import PreparedPrediction
from img2gene.models.row_blocks import blocks
from img2gene.settings import settings
from img2gene.tl._prediction.values import at_depth, new_patients, predicted_table, prediction_record, spread
from img2gene.tl._scoring.depth import required_scale

if TYPE_CHECKING:
    from anndata import AnnData

_FORMAT = 1


@dataclass(frozen=True)
class StreamedPrediction:
    """A prediction of a study that is written to a store.

    Attributes
    ----------
    study, model, calibration, inputs
        What is predicted, and from what; without calibration, neither SD nor intervals.
    key
        Name of the result.
    depth
        As in :func:`img2gene.tl.predict`.
    dtype
        ``"float32"`` or ``"float16"``.
    """

    study: Study
    model: Model
    calibration: Calibration | None
    inputs: ModelInputs
    key: str
    depth: float | str | None
    dtype: str

    def write(self, path: Path) -> tuple[AnnData, np.ndarray | None]:
        """Write the store, or what an earlier run left to write.

        Returns
        -------
        The stored table, opened without reading its matrices, and the percentile of each spot.
        """
        kept = in_tissue(self.study.table)
        if not kept.any():
            raise Img2GeneError("No spot lies on tissue (`obs['in_tissue']`), so there is nothing to predict.")
        scale = None if self.depth is None else required_scale(self.model)
        # Features are centred by section, so spots off the tissue would change the predictions of all others.
        part = self.inputs if kept.all() else self.inputs.take(kept)
        with TableWriter(path, self._facts(kept), "prediction") as writer:
            new = None if self.calibration is None else new_patients(self.study, self.model)[kept]
            prepared = PreparedPrediction.of(
                self.model, part.features, part.sections, calibration=self.calibration, new_patient=new, **part.extra
            )
            ood = None if prepared.ood is None else spread(prepared.ood, kept)
            self._begin(writer, ood)
            # Rows of the study come before these rows of the part on tissue.
            before = np.concatenate([[0], np.cumsum(kept)])
            for number, rows in self._progress(writer):
                values = prepared(slice(int(before[rows.start]), int(before[rows.stop])))
                layers = at_depth(scale, self._named(values), self.depth, self.key)
                writer.write(number, {self._path(name): self._stored(x, kept[rows]) for name, x in layers.items()})
            return writer.finish(), ood

    def _begin(self, writer: TableWriter, ood: np.ndarray | None) -> None:
        table = predicted_table(self.study, self.model, {}, ood, self.key)
        _schema.apply(table, {"uns": prediction_record(table, self.model, self.calibration, self.key, self.depth)})
        names = [self.key, *(_schema.uncertainty_keys(self.key).values() if self.calibration else ())]
        dtype, shape = np.dtype(self.dtype), (self.study.n_obs, len(self.model.genes))
        arrays = [StoredArray(self._path(name), shape, dtype) for name in names]
        writer.begin(table, arrays, part_rows(shape[1], dtype.itemsize))

    def _progress(self, writer: TableWriter) -> Any:
        from tqdm.auto import tqdm

        with tqdm(total=self.study.n_obs, desc="predict", unit="spot", disable=not settings.progress) as bar:
            bar.update(writer.n_finished())
            for number, rows in writer.missing():
                yield number, rows
                bar.update(rows.stop - rows.start)

    def _path(self, name: str) -> str:
        return "X" if name == self.key else f"layers/{name}"

    def _named(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Name the values of a block after their layers."""
        names = _schema.uncertainty_keys(self.key) | {"values": self.key}
        return {names[name]: block for name, block in values.items()}

    def _stored(self, values: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Values of all rows of a block, NaN off the tissue, in the type that is stored."""
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtype, copy=False)
        if not np.isfinite(stored).all():
            raise Img2GeneError(
                f"dtype={self.dtype!r} holds numbers up to {np.finfo(self.dtype).max:g}, and the model predicts up to "
                f'{float(np.abs(values).max()):.3g}. Pass dtype="float32".'
            )
        return spread(stored, kept)

    def _facts(self, kept: np.ndarray) -> dict[str, Any]:
        """What the stored values depend on."""
        table, study = self.study.stored_table, self.study
        regions = np.empty(study.n_obs, dtype=object)
        for name, rows in study.regions.items():
            regions[rows] = name
        data = fingerprint(
            spots=table.obs_names.to_numpy(dtype=str),
            instances=table.obs[table.uns["spatialdata_attrs"]["instance_key"]].to_numpy(dtype=str),
            regions=regions.astype(str),
            sections=study.sections,
            patients=study.patients,
            tissue=kept,
            **self.inputs.extra,
        )
        return {
            "format": _FORMAT,
            "img2gene": versions()["img2gene"],
            "model": self.model.fingerprint,
            "key_added": self.key,
            "depth": self.depth,
            "uncertainty": None if self.calibration is None else self.calibration.level,
            "dtype": self.dtype,
            "data": {**data, "features": _digest(self.inputs.features)},
        }


def _digest(features: np.ndarray | RowSource) -> str:
    """Compute a digest of features, whether they are in memory or in a store."""
    import hashlib

    digest = hashlib.sha256(str(features.shape).encode())
    for rows in blocks(len(features)):
        digest.update(np.ascontiguousarray(features[rows], dtype=np.float32))
    return digest.hexdigest()[:16]
