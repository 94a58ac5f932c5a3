"""A folder in which a cross-validation keeps finished parts, so that it can go on after an interruption."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from img2gene._errors import Img2GeneError
from img2gene.models.resume import Progress

FORMAT = 1
_RECORD = "identity.json"


@dataclass(frozen=True)
class Part:
    """What one model brought on one fold.

    Attributes
    ----------
    scores
        Of every section and gene, with those of the baselines that come along.
    structure
        Of every section and gene group.
    layers
        Predictions and what belongs to them, float32 (n_test_spots, n_genes) each; empty unless they are kept.
    seconds
        Time of training.
    """

    scores: pd.DataFrame
    structure: pd.DataFrame
    layers: dict[str, np.ndarray]
    seconds: float


@dataclass(frozen=True)
class ResultsFolder:
    """Finished parts on disk; without a folder nothing is kept.

    Examples
    --------
    >>> from img2gene.tl._results_folder import ResultsFolder
    >>> ResultsFolder(None).load("fold1-ridge") is None
    True
    """

    folder: Path | None

    @classmethod
    def open(cls, folder: str | Path | None, facts: dict[str, Any]) -> ResultsFolder:
        """Open a folder for the run that ``facts`` (JSON) describe; that of another run, or version, is refused."""
        if folder is None:
            return cls(None)
        record = Path(folder) / _RECORD
        own = {"format": FORMAT, "img2gene": version("img2gene")}
        if record.is_file():
            stored = json.loads(record.read_text())
            written = {name: stored.get(name) for name in own}
            if written != own:
                raise Img2GeneError(
                    f"folder={str(folder)!r} was written by img2gene {written['img2gene']} (format {written['format']}); this "
                    f"is {own['img2gene']} (format {FORMAT}). Name another folder, or install the version that wrote it."
                )
        return cls(Progress.open(folder, own | facts, what="cross-validation", argument="folder").folder)

    def load(self, name: str) -> Part | None:
        """A finished part, or None."""
        if self.folder is None or not (self.folder / f"{name}.json").is_file():
            return None
        facts = json.loads((self.folder / f"{name}.json").read_text())
        scores, structure = (
            pd.read_parquet(self.folder / f"{name}-{table}.parquet") for table in ("scores", "structure")
        )
        layers = {}
        if facts["layers"]:
            with np.load(self.folder / f"{name}.npz") as stored:
                layers = {key: stored[key] for key in facts["layers"]}
        return Part(scores, structure, layers, facts["seconds"])

    def save(self, name: str, part: Part) -> None:
        """Keep a finished part; the facts are written last, so that they stand for a complete one."""
        if self.folder is None:
            return
        for table in ("scores", "structure"):
            path = self.folder / f"{name}-{table}.parquet"
            getattr(part, table).to_parquet(partial := _partial(path))
            os.replace(partial, path)
        if part.layers:
            with open(partial := _partial(self.folder / f"{name}.npz"), "wb") as file:
                np.savez(file, **part.layers)  # type: ignore[arg-type]
            os.replace(partial, self.folder / f"{name}.npz")
        path = self.folder / f"{name}.json"
        (partial := _partial(path)).write_text(json.dumps({"layers": list(part.layers), "seconds": part.seconds}))
        os.replace(partial, path)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
