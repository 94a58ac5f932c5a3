"""A folder in which a cross-validation keeps finished parts, so that it can go on after an interruption."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import zipfile
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from img2gene._errors import Img2GeneError
from img2gene._files import ResumableFolder, atomic_path, read_record, write_bytes

logger = logging.getLogger(__name__)
FORMAT = 2
# What readers of JSON, parquet and npz raise on files that are cut or not theirs; errors of Arrow are ValueErrors or OSErrors.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


def part_key(*names: object) -> str:
    """Name of the files of one part, from what it is of and not from its place; legible, and of no other names.

    Examples
    --------
    >>> from img2gene.tl._cross_validation.checkpoint import part_key
    >>> part_key("P1", "ridge, not centred")
    'P1-ridge-not-centred-cd553b0c'
    """
    text = "-".join(re.sub(r"[^A-Za-z0-9]+", "-", str(name)).strip("-")[:40] for name in names)
    return f"{text}-{hashlib.sha256(json.dumps(list(map(str, names))).encode()).hexdigest()[:8]}"


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
    >>> from img2gene.tl._cross_validation.checkpoint import ResultsFolder
    >>> ResultsFolder(None).load("P1-ridge", "ridge") is None
    True
    """

    folder: Path | None

    @classmethod
    def open(cls, folder: str | Path | None, facts: dict[str, Any], *, what: str = "cross-validation") -> ResultsFolder:
        """Open a folder for the run that ``facts`` (JSON) describe; that of another run, or version, is refused."""
        if folder is None:
            return cls(None)
        own = {"format": FORMAT, "img2gene": version("img2gene")}
        stored = read_record(Path(folder), "folder")
        if stored is not None:
            written = {name: stored.get(name) for name in own}
            if written != own:
                raise Img2GeneError(
                    f"folder={str(folder)!r} was written by img2gene {written['img2gene']} (format {written['format']}); this "
                    f"is {own['img2gene']} (format {FORMAT}). Name another folder, or install the version that wrote it."
                )
        return cls(ResumableFolder.open(folder, own | facts, what=what, argument="folder").folder)

    def load(self, name: str, label: str) -> Part | None:
        """A finished part with scores of a model, or None; one that cannot be read counts as missing."""
        if self.folder is None or not (self.folder / f"{name}.json").is_file():
            return None
        try:
            part = self._read(self.folder, name)
            if label not in set(part.scores["model"]):
                raise ValueError(f"it holds no scores of {label!r}")
        except _UNREADABLE as error:
            logger.warning("%s in %s cannot be used (%s) and is computed again", name, self.folder, error)
            return None
        return part

    @staticmethod
    def _read(folder: Path, name: str) -> Part:
        facts = json.loads((folder / f"{name}.json").read_bytes())
        scores, structure = (pd.read_parquet(folder / f"{name}-{table}.parquet") for table in ("scores", "structure"))
        layers = {}
        if facts["layers"]:
            # Opened here, as numpy leaves files open that it cannot read.
            with open(folder / f"{name}.npz", "rb") as file, np.load(file) as stored:
                layers = {key: stored[key] for key in facts["layers"]}
        return Part(scores, structure, layers, float(facts["seconds"]))

    def save(self, name: str, part: Part) -> None:
        """Keep a finished part; the facts are written last, so that they stand for a complete one."""
        if self.folder is None:
            return
        for table in ("scores", "structure"):
            with atomic_path(self.folder / f"{name}-{table}.parquet") as temporary:
                getattr(part, table).to_parquet(temporary)
        if part.layers:
            with atomic_path(self.folder / f"{name}.npz") as temporary, temporary.open("wb") as file:
                np.savez(file, **part.layers)  # type: ignore[arg-type]
        facts = {"layers": list(part.layers), "seconds": part.seconds}
        write_bytes(self.folder / f"{name}.json", json.dumps(facts).encode())
