"""Work that writes files: what it starts from, what it answers, and what must be left afterwards."""

from __future__ import annotations

import functools
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from spatialdata import SpatialData, read_zarr

import img2gene as ig
from img2gene.benchmark import cohorts
from img2gene.benchmark.__main__ import main
from img2gene.io import table_store
from img2gene.io.study_store import write_study
from reliability import studies
from reliability.content import content, text_of

_FIT = {**studies.NETWORK, "max_epochs": 2, "genes": 5, "seed": 1}
_CHEAP = {"models": ["mean"], "encoder": studies.ENCODER, "genes": 5, "seed": 1}


@dataclass(frozen=True)
class Job:
    """Work in a folder that may be killed or run several times at once.

    Attributes
    ----------
    name
        What is done.
    prepare
        Brings a new folder into the state before.
    run
        Does the work in the folder; the number tells apart several that run at once. Returns its result as a text.
    state
        Describes what the files in the folder hold, if they alone are the result; else None.
    share
        Trials of this job for each trial of the others: less than 1 if one takes long, more if it is quick.
    """

    name: str
    prepare: Callable[[Path], object]
    run: Callable[[Path, int], str]
    state: Callable[[Path], str] | None = None
    share: float = 1.0

    def n_trials(self, n: int) -> int:
        """Return how often this job is tried where the others are tried ``n`` times."""
        return max(1, round(self.share * n))


def nothing(folder: Path) -> None:
    """Start from an empty folder."""


def summary(value: Any) -> str:
    """Condense content to one text that can be sent and compared."""
    return _condensed(content(value))


def _condensed(entries: dict[str, str]) -> str:
    return hashlib.sha256("\n".join(sorted(map(str, entries.items()))).encode()).hexdigest()


def _models() -> tuple[str, str]:
    return "mean", "ridge"


def _save_old(folder: Path) -> None:
    ig.io.save_model(studies.trained(_models()[0]), folder / "model.img2gene")


def _save(folder: Path, number: int) -> str:
    model = studies.trained(_models()[(number + 1) % 2])
    ig.io.save_model(model, folder / "model.img2gene", overwrite=True)
    return summary(model)


def _saved(folder: Path) -> str:
    return summary(ig.io.load_model(folder / "model.img2gene"))


@functools.cache
def _store() -> Path:
    """Write the cohort with patches once, to be copied for every trial."""
    folder = Path(tempfile.mkdtemp(prefix="reliability-"))
    sdata = studies.copy_of(studies.cohort())
    ig.pp.extract_patches(sdata, patch_um=112, patch_px=32)
    write_study(sdata, folder / "study.zarr")
    return folder / "study.zarr"


def remove_templates() -> None:
    """Remove what trials were copied from."""
    if _store.cache_info().currsize:
        shutil.rmtree(_store().parent, ignore_errors=True)
        _store.cache_clear()


def _copy_store(folder: Path) -> None:
    shutil.copytree(_store(), folder / "study.zarr")


def _changed_study(number: int) -> SpatialData:
    sdata = studies.copy_of(studies.embedded())
    sdata["table"].obs["writer"] = number % 2
    return sdata


def _write(folder: Path, number: int) -> str:
    write_study(_changed_study(number), folder / "study.zarr")
    return ""


def _embed(folder: Path, number: int) -> str:
    sdata = read_zarr(folder / "study.zarr")
    ig.pp.embed_patches(sdata, studies.ENCODER)
    write_study(sdata, folder / "study.zarr")
    return ""


def _stored(folder: Path) -> str:
    return _condensed(content(read_zarr(folder / "study.zarr"), pixels=True))


def _fit(folder: Path, number: int) -> str:
    sdata = studies.copy_of(studies.embedded())
    return summary(ig.tl.fit(sdata, "img2gene", checkpoint_dir=folder / "fit", inplace=False, **_FIT))


def _cross_validate(folder: Path, number: int) -> str:
    sdata = studies.copy_of(studies.embedded())
    result = ig.tl.cross_validate(sdata, baselines=False, n_permutations=2, folder=folder / "cv", **_CHEAP)
    # Times of the folds differ between runs.
    return text_of(result.scores)


def _predict(folder: Path, number: int) -> str:
    sdata = studies.copy_of(studies.embedded())
    model = studies.trained("ridge")
    with mock.patch.object(table_store, "_MOST_ROWS", 7):
        table = ig.tl.predict(sdata, model, out=folder / "predicted.zarr", inplace=False)
    return summary(table.to_memory())


def _embed_into_store(folder: Path, number: int) -> str:
    sdata = read_zarr(folder / "study.zarr")
    with mock.patch.object(table_store, "_MOST_ROWS", 7):
        ig.pp.embed_patches(sdata, studies.ENCODER, batch_size=3, out=folder / "embedded.zarr")
    return summary(ig.io.open_table(folder / "embedded.zarr").to_memory())


def _learning_curve(folder: Path, number: int) -> str:
    sdata = studies.copy_of(studies.embedded())
    curve = ig.tl.learning_curve(sdata, fractions=[0.5, 1.0], n_repeats=1, folder=folder / "curve", **_CHEAP)
    return text_of(curve.drop(columns="seconds"))


@functools.cache
def _benchmark_cohort() -> SpatialData:
    return ig.datasets.synthetic_cohort(n_patients=3, n_sections=2, n_spots=20, n_genes=30, mpp=2.0)


def _draw_cohort(folder: Path) -> None:
    """Draw the cohort in this process, so that no child has to."""
    _benchmark_cohort()


def _benchmark(folder: Path, number: int) -> str:
    arguments = ["--cohort", "synthetic", "--protocol", "lopo", "--models", "mean", "--encoder", studies.ENCODER]
    with mock.patch.object(cohorts, "_synthetic_cohort", _benchmark_cohort):
        status = main([*arguments, "--genes", "5", "--out", str(folder / "out")])
    if status:
        raise ig.Img2GeneError(f"The command ended with status {status}.")
    tables = sorted(path for path in (folder / "out").glob("*") if path.suffix in (".csv", ".md"))
    return " ".join(text_of(path.read_text()) for path in tables)


JOBS = (
    Job("save_model", _save_old, _save, _saved, share=3),
    Job("write_study", _copy_store, _write, _stored),
    Job("embed_patches on a backed study", _copy_store, _embed, _stored),
    Job("fit(checkpoint_dir=)", nothing, _fit),
    Job("cross_validate(folder=)", nothing, _cross_validate, share=3),
    Job("predict(out=)", nothing, _predict, share=3),
    Job("embed_patches(out=)", _copy_store, _embed_into_store, share=3),
    Job("learning_curve(folder=)", nothing, _learning_curve),
    Job("benchmark", _draw_cohort, _benchmark, share=0.1),
)
