"""Store the finished parts of a cross-validation in a folder, from which an interrupted run resumes."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from img2gene._errors import Img2GeneError
from img2gene._files.folders import ResumableFolder, atomic_path, read_record

# Format 1 named parts by position, so that models in another order took each other's results.
# Format 3 kept no digests of the parts.
# Raised whenever the same call gives other numbers, so that a folder never mixes results of two versions.
FORMAT = 5


def part_key(*names: object) -> str:
    """Name the files of a part after its fold and model.

    The name is readable and, because it ends with a digest of fold and model, unique. It does not depend on the order
    of the parts.

    Examples
    --------
    >>> from img2gene.tl._cross_validation.checkpoint import part_key
    >>> part_key("P1", "ridge, not centred")
    'P1-ridge-not-centred-cd553b0c'
    """
    # Names are cut off, because file systems limit their length.
    text = "-".join(re.sub(r"[^A-Za-z0-9]+", "-", str(name)).strip("-")[:40] for name in names)
    # The digest is of JSON: joined by hyphens, ("a-b", "c") and ("a", "b-c") would be the same.
    return f"{text}-{hashlib.sha256(json.dumps(list(map(str, names))).encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Part:
    """Scores and predictions of one model on one fold.

    Attributes
    ----------
    scores
        Scores of every section and gene, with the scores of the baselines.
    structure
        Structure scores of every section and gene group.
    layers
        Predictions, measured values and intervals, float32 (n_test_spots, n_genes) each; empty unless they are kept.
    seconds
        Training time.
    """

    scores: pd.DataFrame
    structure: pd.DataFrame
    layers: dict[str, np.ndarray]
    seconds: float


def open_results(
    folder: str | Path | None, facts: dict[str, Any], *, what: str = "cross-validation"
) -> ResumableFolder:
    """Open a folder for the run that ``facts`` (JSON) describe; the folder of another run or version is refused.

    Examples
    --------
    >>> from img2gene.tl._cross_validation.checkpoint import load_part, open_results
    >>> load_part(open_results(None, {}), "P1-ridge", "ridge") is None
    True
    """
    # Versions come before all other facts, because another version calls for other advice than other arguments.
    versions = {"format": FORMAT, "img2gene": version("img2gene")}
    stored = None if folder is None else read_record(Path(folder), "folder")
    if stored is not None:
        written = {name: stored.get(name) for name in versions}
        if written != versions:
            raise Img2GeneError(
                f"folder={str(folder)!r} was written by img2gene {written['img2gene']} (format {written['format']}); "
                f"this is {versions['img2gene']} (format {FORMAT}). Name another folder, or install the version that "
                "wrote it."
            )
    return ResumableFolder.open(folder, versions | facts, what=what, argument="folder")


def load_part(results: ResumableFolder, name: str, label: str) -> Part | None:
    """Load a finished part with scores of a model; None if it is absent or unreadable."""

    def read(folder: Path, facts: dict[str, Any]) -> Part:
        part = _read(folder, name, facts)
        if label not in set(part.scores["model"]):
            raise ValueError(f"it holds no scores of {label!r}")
        return part

    return results.read(name, read)


def _read(folder: Path, name: str, facts: dict[str, Any]) -> Part:
    scores, structure = (pd.read_parquet(folder / f"{name}-{table}.parquet") for table in ("scores", "structure"))
    layers = {}
    if facts["layers"]:
        # Opened here: numpy does not close a file that it cannot read.
        with (folder / f"{name}.npz").open("rb") as file, np.load(file) as stored:
            layers = {key: stored[key] for key in facts["layers"]}
    return Part(scores, structure, layers, float(facts["seconds"]))


def save_part(results: ResumableFolder, name: str, part: Part) -> None:
    """Keep a finished part."""
    facts = {"layers": list(part.layers), "seconds": part.seconds}
    results.write(name, facts, lambda folder: _write(folder, name, part))


def _write(folder: Path, name: str, part: Part) -> list[Path]:
    """Write the tables and layers of a part, and list the files."""
    paths = [folder / f"{name}-{table}.parquet" for table in ("scores", "structure")]
    for path, table in zip(paths, (part.scores, part.structure), strict=True):
        with atomic_path(path) as temporary:
            table.to_parquet(temporary)
    if part.layers:
        paths.append(folder / f"{name}.npz")
        # numpy would append `.npz` to the temporary path, so it gets an open file.
        with atomic_path(paths[-1]) as temporary, temporary.open("wb") as file:
            np.savez(file, **part.layers)  # type: ignore[arg-type]
    return paths
