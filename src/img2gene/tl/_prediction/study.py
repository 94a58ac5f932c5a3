"""Predict a study block by block, into memory or into a store from which a killed run resumes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._cluster import check_client, run_parts
from img2gene._errors import Img2GeneError
from img2gene._files.folders import fingerprint
from img2gene._study.expression import in_tissue
from img2gene._study.model_inputs import ModelInputs
from img2gene._study.study import Study
from img2gene._versions import versions
from img2gene.io.table_store import StoredArray, TableWriter, part_rows
from img2gene.models import Calibration, Model
from img2gene.models.data import RowSource
from img2gene.models.depth_scale import TRAINING, DepthScale
from img2gene.models.prepared import PreparedPrediction
from img2gene.models.row_blocks import blocks
from img2gene.settings import settings, tqdm_bar
from img2gene.tl._arguments import check_flags, check_name
from img2gene.tl._prediction.values import at_depth, new_patients, predicted_table, prediction_record, spread
from img2gene.tl._scoring.depth import required_scale

if TYPE_CHECKING:
    from anndata import AnnData
    from distributed import Client

_FORMAT = 1
# Counts per spot beyond which `depth` is a mistake; "unlimited" has no noise of counts at all.
_DEEPEST = 1e15


@dataclass(frozen=True)
class Request:
    """What a call of :func:`img2gene.tl.predict` asks for, checked.

    Attributes
    ----------
    key
        Name of the result.
    uncertainty, depth, dtype
        As in the call.
    out
        Store; None for none.
    client
        Client of dask, whose workers predict; None to predict in this process.
    """

    key: str
    uncertainty: bool
    depth: float | str | None
    out: Path | None
    dtype: str
    client: Client | None = None

    @classmethod
    def of(cls, check: Arguments, key: Any, uncertainty: Any, depth: Any, out: Any, dtype: Any, client: Any) -> Request:
        """Check the arguments."""
        check_name(check, "key_added", key)
        check_flags(check, uncertainty=uncertainty)
        if not (isinstance(depth, str) and depth in (_schema.UNLIMITED, TRAINING)):
            depth = check.number("depth", depth, 1, _DEEPEST, optional=True)
        path, dtype = check.path("out", out, optional=True), check.choice("dtype", dtype, ("float32", "float16"))
        if out is None and isinstance(dtype, str) and dtype == "float16":
            check.messages.append('dtype="float16" needs `out=`: predictions in the study are float32.')
        return cls(key, uncertainty, depth, path, dtype, check_client(check, client))

    def of_model(self, model: Model) -> Request:
        """The request with the depth that a model predicts at by default; None for the depths of the training spots."""
        depth = model.labels.get("depth") if self.depth is None else self.depth
        return replace(self, depth=None if depth == TRAINING else depth)


@dataclass(frozen=True)
class StudyPrediction:
    """A prediction of a study, in memory or written to a store.

    Attributes
    ----------
    study, model, inputs
        What is predicted, and from what.
    request
        What the call asks for.
    """

    study: Study
    model: Model
    inputs: ModelInputs
    request: Request

    @property
    def calibration(self) -> Calibration | None:
        """Turns predictions into intervals; None without uncertainty."""
        return self.model.calibration if self.request.uncertainty else None

    @cached_property
    def kept(self) -> np.ndarray:
        """Spots on the tissue, bool (n_obs,)."""
        kept = in_tissue(self.study.table)
        if not kept.any():
            raise Img2GeneError("No spot lies on tissue (`obs['in_tissue']`), so there is nothing to predict.")
        return kept

    def _prepared(self) -> PreparedPrediction:
        # Features are centred by section, so spots off the tissue would change the predictions of all others.
        part = self.inputs if self.kept.all() else self.inputs.take(self.kept)
        new = None if self.calibration is None else new_patients(self.study, self.model)[self.kept]
        return PreparedPrediction.of(
            self.model, part.features, part.sections, calibration=self.calibration, new_patient=new, **part.extra
        )

    def run(self) -> tuple[AnnData | None, dict[str, np.ndarray], np.ndarray | None]:
        """Write the store of the request, if there is one, and return its table; else return the layers."""
        if self.request.out is None:
            return None, *self.layers()
        table, ood = self.write(self.request.out)
        return table, {}, ood

    def layers(self) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Layers by name, the prediction first, and the percentile of each spot; NaN off the tissue."""
        scale = self._scale()
        prepared = self._prepared()
        values: dict[str, np.ndarray] = {}
        parts = list(blocks(prepared.n_rows))
        for number, block in run_parts(self.request.client, _block, prepared, parts):
            for name, array in block.items():
                if name not in values:
                    values[name] = np.empty((prepared.n_rows, prepared.n_genes), dtype=np.float32)
                values[name][parts[number]] = array
        layers = at_depth(scale, self._named(values), self.request.depth, self.request.key, self.calibration)
        ood = None if prepared.ood is None else spread(prepared.ood, self.kept)
        return {name: spread(array, self.kept) for name, array in layers.items()}, ood

    def write(self, path: Path) -> tuple[AnnData, np.ndarray | None]:
        """Write the store, or what an earlier run left to write.

        Returns
        -------
        The stored table, opened without reading its matrices, and the percentile of each spot.
        """
        scale, kept = self._scale(), self.kept
        with TableWriter(path, self._facts(kept), "prediction") as writer:
            prepared = self._prepared()
            ood = None if prepared.ood is None else spread(prepared.ood, kept)
            self._begin(writer, ood)
            # Rows of the study come before these rows of the part on tissue.
            before = np.concatenate([[0], np.cumsum(kept)])
            missing = list(writer.missing())
            parts = [slice(int(before[rows.start]), int(before[rows.stop])) for _, rows in missing]
            done = self.study.n_obs - sum(rows.stop - rows.start for _, rows in missing)
            with self._progress(done) as bar:
                for place, values in run_parts(self.request.client, _block, prepared, parts):
                    number, rows = missing[place]
                    layers = at_depth(
                        scale, self._named(values), self.request.depth, self.request.key, self.calibration
                    )
                    writer.write(number, {self._path(name): self._stored(x, kept[rows]) for name, x in layers.items()})
                    bar.update(rows.stop - rows.start)
            return writer.finish(), ood

    def table(self, layers: dict[str, np.ndarray], ood: np.ndarray | None) -> AnnData:
        """Make a separate table of the prediction, with its record; without layers it has annotations only."""
        table = predicted_table(self.study, self.model, layers, ood, self.request.key)
        _schema.apply(table, {"uns": self.record(table)})
        return table

    def record(self, table: AnnData) -> dict[str, Any]:
        """What is recorded of the prediction in the ``uns`` of a table."""
        return prediction_record(table, self.model, self.calibration, self.request.key, self.request.depth)

    def _scale(self) -> DepthScale | None:
        return None if self.request.depth is None else required_scale(self.model)

    def _begin(self, writer: TableWriter, ood: np.ndarray | None) -> None:
        names = [self.request.key, *(_schema.uncertainty_keys(self.request.key).values() if self.calibration else ())]
        dtype, shape = np.dtype(self.request.dtype), (self.study.n_obs, len(self.model.genes))
        arrays = [StoredArray(self._path(name), shape, dtype) for name in names]
        writer.begin(self.table({}, ood), arrays, part_rows(shape[1], dtype.itemsize))

    def _progress(self, done: int) -> Any:
        return tqdm_bar(
            initial=done, total=self.study.n_obs, desc="predict", unit="spot", disable=not settings.progress
        )

    def _path(self, name: str) -> str:
        return "X" if name == self.request.key else f"layers/{name}"

    def _named(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Name the values of a block after their layers."""
        names = _schema.uncertainty_keys(self.request.key) | {"values": self.request.key}
        return {names[name]: block for name, block in values.items()}

    def _stored(self, values: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Values of all rows of a block, NaN off the tissue, in the type that is stored."""
        with np.errstate(over="ignore"):
            stored = values.astype(self.request.dtype, copy=False)
        # Predictions in single precision are finite, as the model was checked.
        if stored.dtype != values.dtype and not np.isfinite(stored).all():
            raise Img2GeneError(
                f"dtype={self.request.dtype!r} holds numbers up to {np.finfo(self.request.dtype).max:g}, and the model predicts up to "
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
            "key_added": self.request.key,
            "depth": self.request.depth,
            "uncertainty": None if self.calibration is None else self.calibration.level,
            "dtype": self.request.dtype,
            "data": {**data, "features": _digest(self.inputs.features)},
        }


def _block(prepared: PreparedPrediction, rows: slice) -> dict[str, np.ndarray]:
    """Predict a slice of rows, here or in a worker."""
    return prepared(rows)


def _digest(features: np.ndarray | RowSource) -> str:
    """Compute a digest of features, whether they are in memory or in a store."""
    import hashlib

    digest = hashlib.sha256(str(features.shape).encode())
    for rows in blocks(len(features)):
        digest.update(np.ascontiguousarray(features[rows], dtype=np.float32))
    return digest.hexdigest()[:16]
