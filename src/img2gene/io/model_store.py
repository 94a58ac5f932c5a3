"""Store trained models as data (safetensors and JSON), in an object or in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, missing
from img2gene._files import write_bytes

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from img2gene.models import Model

SUFFIX = ".img2gene"


def write_model(table: AnnData, model: Model, key: str) -> None:
    """Store a model in ``uns[key]["model"]``: a JSON string, and the arrays as one uint8 array."""
    from safetensors.numpy import save

    config, arrays = model.state()
    container = dict(table.uns.get(key, {}))
    container["format"] = _schema.FORMAT
    container["model"] = {
        "config": json.dumps(config, allow_nan=False),
        "weights": np.frombuffer(save(arrays), dtype=np.uint8).copy(),
    }
    table.uns[key] = container


def read_model(table: AnnData, key: str) -> Model:
    """Read the model that is stored under ``uns[key]``."""
    from img2gene.models import Model

    stored = _container(table, key).get("model")
    if stored is None:
        raise MissingKeyError(
            missing(key, "the trained models of the table", stored_models(table), "Run `img2gene.tl.fit` first.")
        )
    return Model.from_state(
        json.loads(str(stored["config"])), _arrays(np.asarray(stored["weights"]).tobytes(), f"uns['{key}']")
    )


def stored_models(table: AnnData) -> list[str]:
    """List the keys of ``uns`` that hold a trained model."""
    return [key for key in table.uns if "model" in _container(table, key)]


def _container(table: AnnData, key: str) -> Any:
    from collections.abc import Mapping

    value = table.uns.get(key, {})
    return value if isinstance(value, Mapping) and "format" in value else {}


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
        A model, or the study that holds it under ``key``.
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
        The file exists, or its folder does not.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.io.save_model(sdata, "tumour.img2gene")  # doctest: +SKIP
    """
    from safetensors.numpy import save

    from img2gene.models import Model

    trained = model if isinstance(model, Model) else read_model(_schema.get_table(model, table_key), key)
    path = Path(path)
    path = path if path.suffix else path.with_suffix(SUFFIX)
    if path.exists() and not overwrite:
        raise Img2GeneError(f"{path} exists; pass `overwrite=True` to replace it.")
    if not path.parent.is_dir():
        raise Img2GeneError(f"Folder {path.parent} does not exist.")
    config, arrays = trained.state()
    write_bytes(path, save(arrays, metadata={"img2gene": json.dumps(config, allow_nan=False)}))
    return path


def load_model(path: str | Path) -> Model:
    """Read a model that :func:`img2gene.io.save_model` wrote.

    Raises
    ------
    Img2GeneError
        The file does not exist, holds no model of this package, or its arrays do not fit the declared architecture.

    Examples
    --------
    >>> import img2gene as ig
    >>> model = ig.io.load_model("tumour.img2gene")  # doctest: +SKIP
    """
    from img2gene.models import Model

    path = Path(path)
    if not path.is_file():
        near = sorted(str(file) for file in path.parent.glob(f"*{SUFFIX}")) if path.parent.is_dir() else []
        raise MissingKeyError(missing(path.name, str(path.parent), near))
    content = path.read_bytes()
    config = _metadata(content).get("img2gene")
    if config is None:
        raise Img2GeneError(f"{path} is not a model written by `img2gene.io.save_model`.")
    return Model.from_state(json.loads(config), _arrays(content, str(path)))


def _metadata(content: bytes) -> dict[str, str]:
    """Read the metadata of a safetensors file; empty for other files."""
    length = int.from_bytes(content[:8], "little")
    try:
        return json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError):
        return {}


def _arrays(content: bytes, source: str) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(content)
    except SafetensorError as error:
        raise Img2GeneError(f"The weights in {source} are damaged: {error}.") from error
