"""Store trained models as data (safetensors and JSON), in an object or in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing
from img2gene._files.folders import write_bytes
from img2gene._files.hub import check_digest, checked_digest, fetched, is_remote
from img2gene._files.locks import remove_stale
from img2gene.models.stored import parse_json
from img2gene.settings import settings

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from img2gene.models import Model

SUFFIX = ".img2gene"


def write_model(table: AnnData, model: Model, key: str) -> None:
    """Store a model in ``uns[key]["model"]``: a JSON string, and the arrays as one uint8 array."""
    from safetensors.numpy import save

    config, arrays = model.storable_state()
    stored = {
        "config": json.dumps(config, allow_nan=False),
        "weights": np.frombuffer(save(arrays), dtype=np.uint8).copy(),
    }
    table.uns[key] = _schema.container(table, key) | {"format": _schema.FORMAT, "model": stored}


def read_model(table: AnnData, key: str) -> Model:
    """Read the model that is stored under ``uns[key]``; refuse one that is damaged."""
    from img2gene.models import Model

    source = f"uns[{key!r}]"
    present = stored_models(table)
    if not isinstance(key, str) or key not in present:
        if isinstance(key, str):
            # A value of another package or version under this key has its own message.
            _schema.container(table, key)
        raise MissingKeyError(
            missing(
                str(key),
                "the trained models of the table",
                present,
                "Run `img2gene.tl.fit` first, or pass the model that predicted, or its file, as `model=`.",
            )
        )
    stored = table.uns[key]["model"]
    if not isinstance(stored, Mapping) or stored.keys() != {"config", "weights"}:
        raise Img2GeneError(f"The stored model {source} is damaged: it does not hold a configuration and weights.")
    weights = stored["weights"]
    if not isinstance(weights, np.ndarray) or weights.dtype != np.uint8 or weights.ndim != 1:
        raise Img2GeneError(f"The stored model {source} is damaged: its weights are not an array of bytes.")
    config = parse_json(str(stored["config"]), f"The stored model {source}")
    return Model.from_state(config, _arrays(weights.tobytes(), source), source)


def stored_models(table: AnnData) -> list[str]:
    """List the keys of ``uns`` that hold a trained model."""
    return [
        key
        for key, value in table.uns.items()
        if isinstance(value, Mapping) and str(value.get("format")) == _schema.FORMAT and "model" in value
    ]


def save_model(
    model: Model | SpatialData,
    path: str | Path,
    *,
    key: str = "img2gene",
    table_key: str = "table",
    overwrite: bool = False,
) -> Path:
    """Write a trained model to one file.

    Parameters
    ----------
    model
        A model, or the study that holds it under ``key``; the scores of :func:`img2gene.tl.evaluate` on the study are then
        stored with the model, for its card (:func:`img2gene.io.model_card`).
    path
        File to write; the suffix ``.img2gene`` is appended if there is none. It is a safetensors file whose metadata
        hold the configuration as JSON: data only, no code.
    key, table_key
        Where in the study the model is stored.
    overwrite
        Replace an existing file.

    Returns
    -------
    Path of the file.

    Raises
    ------
    Img2GeneError
        The file exists, its folder does not, or it cannot be written.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.io.save_model(sdata, "tumour.img2gene")  # doctest: +SKIP
    """
    from safetensors.numpy import save

    from img2gene.models import Model

    check = Arguments()
    target: Path = check.path("path", path)
    check.flag("overwrite", overwrite)
    check.raise_all()
    with _file_errors(target, "written"):
        target = _file_to_write(target, overwrite)
    trained = model if isinstance(model, Model) else scored_model(_schema.get_table(model, table_key), key)
    config, arrays = trained.storable_state()
    remove_stale(target.parent, target.name)
    write_bytes(target, save(arrays, metadata={"img2gene": json.dumps(config, allow_nan=False)}))
    return target


def scored_model(table: AnnData, key: str) -> Model:
    """Read the model of a table, with the scores that it has there."""
    model = read_model(table, key)
    scored = _schema.read_json(table, _schema.SCORED_BY, default={})
    if scored.get("fingerprint") == model.fingerprint and scored.get("key") == key:
        scores = table.uns.get(key, {}).get("evaluation")
        if scores is not None:
            model.report = {**model.report, "evaluation": parse_json(str(scores), f"uns[{key!r}]['evaluation']")}
    return model


def _file_to_write(path: Path, overwrite: bool) -> Path:
    """Complete the name of a model file; refuse a folder, an existing file, and a folder that is not there."""
    if path.is_dir():
        raise Img2GeneError(f"{path} is a folder; name a file in it, such as {path / f'model{SUFFIX}'}.")
    path = path if path.suffix else path.with_name(path.name + SUFFIX)
    if path.exists() and (not overwrite or path.is_dir()):
        raise Img2GeneError(f"{path} exists; pass `overwrite=True` to replace it{' if it is a file' * path.is_dir()}.")
    if not path.parent.is_dir():
        raise Img2GeneError(f"Folder {path.parent} does not exist.")
    return path


@contextmanager
def _file_errors(path: Path, done: str) -> Iterator[None]:
    """Raise errors of the file system, such as no permission or too long a name, as errors of the package."""
    try:
        yield
    except OSError as error:
        raise Img2GeneError(f"{str(path)[:500]} cannot be {done} ({error.strerror or error}).") from error


def load_model(path: str | Path, *, sha256: str | None = None) -> Model:
    """Read a model that :func:`img2gene.io.save_model` wrote, from a file, the Hugging Face hub or a plain address.

    Parameters
    ----------
    path
        File of the model; the suffix ``.img2gene`` may be left out. ``"hf://owner/name@revision"`` names ``model.img2gene`` in a
        repository of the hub, ``"hf://owner/name/file@revision"`` another file of it. ``"https://…"`` is a plain address.
    sha256
        Digest of the file, which plain addresses need. A download with another digest is deleted and tried once more.

    Returns
    -------
    The trained model, checked against its digests.

    Raises
    ------
    Img2GeneError
        The file does not exist, cannot be downloaded or has another digest, is gated, holds no model, is damaged, or does not fit
        the declared architecture.

    Examples
    --------
    >>> import img2gene as ig
    >>> model = ig.io.load_model("tumour.img2gene")  # doctest: +SKIP
    """
    from img2gene.models import Model

    check = Arguments()
    check.text("sha256", sha256, optional=True)
    file: Path = check.path("path", path)
    check.raise_all()
    if isinstance(path, str) and is_remote(path):
        file = fetched(path, sha256, Path(settings.cache_dir) / "models")
    with _file_errors(file, "read"):
        file = model_file(file) or _refuse_absent(file)
        if sha256 is not None:
            check_digest(file, checked_digest(sha256), str(file))
        content = file.read_bytes()
    text = _metadata(content).get("img2gene")
    if not isinstance(text, str):
        raise Img2GeneError(f"{file} is not a model written by `img2gene.io.save_model`.")
    return Model.from_state(parse_json(text, str(file)), _arrays(content, str(file)), str(file))


def model_file(path: str | os.PathLike[str]) -> Path | None:
    """Find the file of a model, under its name or the name with the suffix; None if there is none.

    Examples
    --------
    >>> from img2gene.io.model_store import model_file
    >>> model_file("~/no such model") is None
    True
    """
    check = Arguments()
    file = check.path("path", path)
    if check.messages:
        return None
    # As `save_model` completes it.
    names = [file] if file.suffix or not file.name else [file, file.with_name(file.name + SUFFIX)]
    return next((name for name in names if _is_file(name)), None)


def _is_file(path: Path) -> bool:
    """Whether a path is a file; paths that the system refuses, such as too long ones, are none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _refuse_absent(path: Path) -> NoReturn:
    if path.is_dir():
        models = sorted(item.name for item in path.glob(f"*{SUFFIX}"))
        raise Img2GeneError(f"{path} is a folder; name a model file in it (models in it: {listing(models)}).")
    near = sorted(str(item) for item in path.parent.glob(f"*{SUFFIX}")) if path.parent.is_dir() else []
    raise MissingKeyError(missing(path.name, str(path.parent), near))


def _metadata(content: bytes) -> dict[str, Any]:
    """Read the metadata of a safetensors file; empty for other files."""
    length = int.from_bytes(content[:8], "little")
    try:
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _arrays(content: bytes, source: str) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(content)
    # Types that numpy does not have raise errors of numpy.
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise Img2GeneError(
            f"The weights in {source} are damaged: {type(error).__name__}: {str(error)[:200]}."
        ) from error
