"""Tables that are written chunk by chunk, and opened without reading their matrices."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from img2gene import _schema
from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, listing
from img2gene._files.folders import ResumableFolder
from img2gene.io._library_warnings import without_library_warnings

if TYPE_CHECKING:
    import zarr
    from anndata import AnnData

logger = logging.getLogger(__name__)

# Finished parts of an unfinished store are in a folder of this ending next to it.
UNFINISHED = ".unfinished"
_TABLE = "table.zarr"
_SKELETON = "table"
_RUN = "stored_run"
# A part is what a kill can lose, and what has to fit into memory.
_PART_BYTES = 2**25
_MOST_ROWS = 4096
# Chunks that hold whole rows are written without a copy; wide rows are cut, so that few genes can be read alone.
_CHUNK_BYTES = 2**24
_LAZY_GROUPS = ("layers", "obsm")
_EMBEDDING = _schema.embedding_key("")


def open_table(path: str | os.PathLike[str]) -> AnnData:
    """Open a stored table without reading its matrices.

    Parameters
    ----------
    path
        Zarr store that ``out=`` of :func:`img2gene.tl.predict` or :func:`img2gene.pp.embed_patches` wrote, or any other
        table in AnnData's format.

    Returns
    -------
    AnnData whose ``X``, layers and embeddings are dask arrays that are read from the store when they are needed. All
    annotations are in memory.

    Raises
    ------
    Img2GeneError
        There is no such store, it is unfinished, or it holds no table.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata.tables["img2gene"] = ig.io.open_table("predicted.zarr")  # doctest: +SKIP
    >>> sdata["img2gene"][:, "ERBB2"].X.compute()  # doctest: +SKIP
    """
    check = Arguments()
    source = check.path("path", path)
    check.raise_all()
    if not source.is_dir():
        hint = f" Its unfinished parts are in {str(_unfinished(source))!r}: make the call again that wrote them."
        raise Img2GeneError(f"path={str(source)!r}: there is no such store." + hint * _unfinished(source).is_dir())
    return _read(source)


def _read(source: Path) -> AnnData:
    import anndata as ad
    import zarr

    try:
        group = zarr.open_group(source, mode="r")
        if group.attrs.get("encoding-type") != "anndata":
            raise Img2GeneError(
                f"path={str(source)!r} holds no table of AnnData; open it with `spatialdata.read_zarr`."
            )
        parts: dict[str, Any] = {name: ad.io.read_elem(group[name]) for name in ("obs", "var", "uns") if name in group}
        if "X" in group:
            parts["X"] = ad.experimental.read_elem_lazy(group["X"])
        for name in _LAZY_GROUPS:
            members = dict(cast("zarr.Group", group[name]).members()) if name in group else {}
            parts[name] = {key: _element(element, name, key) for key, element in members.items()}
        attrs = parts.get("uns", {}).get("spatialdata_attrs", {})
        if isinstance(attrs.get("region"), np.ndarray):
            # Written as a list, which spatialdata expects again.
            attrs["region"] = attrs["region"].tolist()
        return ad.AnnData(**parts)
    except Img2GeneError:
        raise
    # zarr and anndata raise errors of many kinds for damaged stores.
    except Exception as error:
        raise Img2GeneError(
            f"path={str(source)!r} cannot be opened as a table ({type(error).__name__}: {str(error)[:300]})."
        ) from error


def _element(stored: Any, group: str, key: str) -> Any:
    import anndata as ad

    lazy = group == "layers" or (group == "obsm" and key.startswith(_EMBEDDING))
    return ad.experimental.read_elem_lazy(stored) if lazy else ad.io.read_elem(stored)


def part_rows(n_values: int, itemsize: int) -> int:
    """Return how many rows of ``n_values`` values a part holds.

    Examples
    --------
    >>> from img2gene.io.table_store import part_rows
    >>> part_rows(1000, 4)
    4096
    """
    return int(min(max(_PART_BYTES // max(n_values * itemsize, 1), 1), _MOST_ROWS))


@dataclass(frozen=True)
class StoredArray:
    """An array of a table that is written in parts.

    Attributes
    ----------
    path
        Where it stands in the store: ``"X"``, ``"layers/…"`` or ``"obsm/…"``.
    shape
        (n_obs, …).
    dtype
        float32 or float16.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def create(self, group: zarr.Group, rows: int) -> None:
        """Create it, empty, with chunks that parts of ``rows`` rows fill."""
        column = rows * self.dtype.itemsize * int(np.prod(self.shape[2:], dtype=int))
        n_chunks = max(-(-column * self.shape[1] // _CHUNK_BYTES), 1)
        # Equal widths, as a narrower last chunk would be filled up.
        width = max(-(-self.shape[1] // n_chunks), 1)
        group.create_array(
            self.path,
            shape=self.shape,
            dtype=self.dtype,
            chunks=(rows, width, *self.shape[2:]),
            # Predictions and embeddings hardly shrink, and compressing them takes longer than writing them.
            compressors=None,
            fill_value=np.nan,
            attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
        )


class TableWriter:
    """Writes a table part by part; finished parts survive a kill, and the store appears when it is whole.

    Parameters
    ----------
    path
        Store to write.
    facts
        What the content depends on (JSON): parts of another run are never continued.
    what
        What is written, in messages.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import anndata as ad
    >>> import numpy as np
    >>> from img2gene.io.table_store import StoredArray, TableWriter, open_table
    >>> path = Path(tempfile.mkdtemp()) / "table.zarr"
    >>> with TableWriter(path, {"seed": 0}, "table") as writer:
    ...     writer.begin(ad.AnnData(shape=(3, 2)), [StoredArray("X", (3, 2), np.dtype("f4"))], rows=2)
    ...     for part, rows in writer.missing():
    ...         writer.write(part, {"X": np.ones((rows.stop - rows.start, 2), dtype="f4")})
    ...     table = writer.finish()
    >>> float(open_table(path).X.sum().compute())
    6.0
    """

    def __init__(self, path: Path, facts: dict[str, Any], what: str) -> None:
        # The stored facts went through JSON, where tuples become lists.
        self.path, self.facts, self.what = path, json.loads(_schema.to_json(facts, what)), what
        self.rows, self.n_rows = 1, 0
        self.is_finished = _is_finished(path, self.facts, what)
        if self.is_finished:
            # A kill after the last step leaves it.
            shutil.rmtree(self.folder, ignore_errors=True)
        # Without a folder nothing is kept: a finished store needs none.
        folder = None if self.is_finished else self.folder
        self.parts = ResumableFolder.open(folder, self.facts, what=what, argument="out")

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.parts.__exit__(*exception)

    @property
    def folder(self) -> Path:
        """Folder of the unfinished store."""
        return _unfinished(self.path)

    def begin(self, table: AnnData, arrays: list[StoredArray], rows: int) -> None:
        """Write the annotations of the table, and create its arrays, unless an earlier run did."""
        self.rows, self.n_rows = rows, table.n_obs
        if self.is_finished or self.parts.read(_SKELETON, lambda *_: True):
            return
        _schema.write_json(table, _RUN, self.facts)
        with self._writing():
            self.parts.write(_SKELETON, {"rows": rows}, lambda folder: _write_skeleton(folder, table, arrays, rows))

    def missing(self) -> Iterator[tuple[int, slice]]:
        """Number and rows of each part that is not written yet."""
        for number in self._missing:
            start = number * self.rows
            yield number, slice(start, min(start + self.rows, self.n_rows))

    def n_finished(self) -> int:
        """Number of rows that are written."""
        return self.n_rows - sum(rows.stop - rows.start for _, rows in self.missing())

    @cached_property
    def _missing(self) -> list[int]:
        # Each part is compared with its digest once, when the run begins.
        numbers = [] if self.is_finished else range(-(-self.n_rows // self.rows))
        return [number for number in numbers if not self.parts.read(f"part{number}", lambda *_: True)]

    def write(self, number: int, values: Mapping[str, np.ndarray]) -> None:
        """Write the rows of a part of all arrays."""
        with self._writing():
            facts = {"part": number}
            self.parts.write(f"part{number}", facts, lambda folder: _write_part(folder, number, self.rows, values))

    def keep(self, name: str, facts: dict[str, Any], writer: Callable[[Path], list[Path]]) -> None:
        """Keep files next to the table until it is finished, as :meth:`ResumableFolder.write` does."""
        with self._writing():
            self.parts.write(name, facts, writer)

    def finish(self) -> AnnData:
        """Put the store in its place, and open it."""
        if not self.is_finished:
            with self._writing():
                self._remove_partial()
                _consolidate(self.folder / _TABLE)
                os.rename(self.folder / _TABLE, self.path)
            self.parts.__exit__()
            shutil.rmtree(self.folder, ignore_errors=True)
            logger.info("wrote %s to %s", self.what, self.path)
        return open_table(self.path)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._remove_partial()
            raise self._refusal(error.strerror or error) from error
        except Img2GeneError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            self._remove_partial()
            raise self._refusal(error.__cause__.strerror or error.__cause__) from error

    def _remove_partial(self) -> None:
        """Remove half-written files, which zarr leaves when it is killed or the disk is full."""
        for path in (self.folder / _TABLE).rglob("*.partial"):
            path.unlink(missing_ok=True)

    def _refusal(self, reason: object) -> Img2GeneError:
        return Img2GeneError(
            f"out={str(self.path)!r} cannot be written ({reason}). What is finished is kept in {str(self.folder)!r}: make "
            "room, or make it writable, and make the same call again, which goes on from there. The study is unchanged."
        )


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + UNFINISHED)


def _is_finished(path: Path, facts: dict[str, Any], what: str) -> bool:
    """Check whether a store already holds the result of this run; refuse to replace any other."""
    try:
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return False
    except OSError as error:
        # The system refuses the path itself, such as one that is too long, or does not let its folder be read.
        raise Img2GeneError(f"`out` cannot be used as a path ({error.strerror}); choose another one.") from error
    stored = None
    if path.is_dir():
        try:
            stored = _schema.read_json(_read(path), _RUN)
        except Img2GeneError:
            stored = None
    if not isinstance(stored, dict):
        raise Img2GeneError(f"out={str(path)!r} exists and holds no {what}. Name another store, or remove this one.")
    differ = [name for name in sorted({*stored, *facts}) if stored.get(name) != facts.get(name)]
    if differ:
        raise Img2GeneError(
            f"out={str(path)!r} holds a {what} with other {listing(differ)}. Name another store, or remove this one."
        )
    logger.info("took the finished %s from %s", what, path)
    return True


def _write_skeleton(folder: Path, table: AnnData, arrays: list[StoredArray], rows: int) -> list[Path]:
    import anndata as ad
    import zarr

    # A killed run may have left a part of it.
    shutil.rmtree(folder / _TABLE, ignore_errors=True)
    group = zarr.create_group(folder / _TABLE, zarr_format=3)
    with without_library_warnings():
        ad.io.write_elem(group, "/", table)
    for array in arrays:
        array.create(group, rows)
    files = [path for path in sorted((folder / _TABLE).rglob("*")) if path.is_file()]
    _flush(files)
    return [path for path in files if path.name != "zarr.json"]


def _write_part(folder: Path, number: int, rows: int, values: Mapping[str, np.ndarray]) -> list[Path]:
    import zarr

    group = zarr.open_group(folder / _TABLE, mode="r+", use_consolidated=False)
    files = []
    for path, block in values.items():
        # zarr compares every chunk with its fill value otherwise, which takes longer than writing it.
        with zarr.config.set({"array.write_empty_chunks": True}):
            array = cast("zarr.Array[Any]", group[path])
        array[number * rows : number * rows + len(block)] = block
        files += sorted(path for path in (folder / _TABLE / path / "c" / str(number)).rglob("*") if path.is_file())
    _flush(files)
    return files


def _consolidate(store: Path) -> None:
    """Gather the metadata of a store, so that programs that open it read one file."""
    import zarr

    with warnings.catch_warnings():
        # zarr warns that other programs may not know this; they then read the metadata one by one.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(str(store))


def _flush(files: list[Path]) -> None:
    for path in files:
        # Without this a power cut can leave a part that is on record but empty.
        with path.open("rb") as file:
            os.fsync(file.fileno())
