"""Embed a study into a store, part by part, so that a killed run resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError
from img2gene._files.folders import atomic_path, fingerprint
from img2gene._study.companions import companion_table
from img2gene._study.embedding import EmbeddedBatch
from img2gene._study.study import Study
from img2gene._versions import versions
from img2gene.io.table_store import StoredArray, TableWriter, part_rows

if TYPE_CHECKING:
    from anndata import AnnData

_FORMAT = 1
_PREFIX = "spots"
# Spots that are embedded before they are written: what a kill can lose. Chunks of the store are larger.
_KEPT_SPOTS = 512
# Embeds some rows of the study.
Embed = Callable[[np.ndarray], Iterator[EmbeddedBatch]]


@dataclass(frozen=True)
class StoredEmbedding:
    """An embedding that is written to a store.

    Patches come in the order of image chunks, in which each chunk is decoded once, and the store has the order of the
    table. So finished patches are kept in files of their own first, and put in order at the end.

    Attributes
    ----------
    study, identity
        What is embedded, and how.
    records
        Entries for ``uns["img2gene"]`` of the stored table.
    runtime
        What computes the features (JSON).
    """

    study: Study
    identity: dict[str, Any]
    records: dict[str, Any]
    runtime: dict[str, Any]

    def write(self, path: Path, embed: Embed) -> AnnData:
        """Write the store, or what an earlier run left to write, and open it."""
        arrays = self._arrays()
        n_values = sum(int(np.prod(array.shape[1:])) for array in arrays)
        with TableWriter(path, self._facts(), "embedding") as writer:
            rows = part_rows(n_values, 4)
            writer.begin(self._table(), arrays, rows)
            if not writer.is_finished and next(writer.missing(), None) is not None:
                places = self._embedded(writer, embed, min(rows, _KEPT_SPOTS))
                for number, part in writer.missing():
                    writer.write(number, _gathered(writer.folder, places, arrays, part))
            return writer.finish()

    def _embedded(self, writer: TableWriter, embed: Embed, part_size: int) -> np.ndarray:
        """Embed the rows that no file holds; return the number of the file and the place in it of every row, (n_obs, 2)."""
        places = np.full((self.study.n_obs, 2), -1)
        numbers = sorted(int(file.stem.removeprefix(_PREFIX)) for file in writer.folder.glob(f"{_PREFIX}*.json"))
        for number in numbers:
            stored = writer.parts.read(f"{_PREFIX}{number}", lambda folder, facts: facts["rows"])
            if stored is not None:
                places[stored] = np.column_stack([np.full(len(stored), number), np.arange(len(stored))])
        left = np.flatnonzero(places[:, 0] < 0)
        if not len(left):
            return places
        # A file that cannot be used keeps its number until it is written again.
        number = max(numbers, default=-1) + 1
        for batch in _collected(embed(left), part_size):
            writer.keep(f"{_PREFIX}{number}", {"rows": batch.rows.tolist()}, _writer(number, batch))
            places[batch.rows] = np.column_stack([np.full(len(batch.rows), number), np.arange(len(batch.rows))])
            number += 1
        missing = int((places[:, 0] < 0).sum())
        if missing:
            raise Img2GeneError(f"{missing} of {len(places)} patches were not embedded; make the same call again.")
        return places

    def _arrays(self) -> list[StoredArray]:
        name, n_obs = self.identity["name"], self.study.n_obs
        shape: tuple[int, ...] = (n_obs, self.identity["width"])
        arrays = [StoredArray(f"obsm/{_schema.embedding_key(name)}", shape, np.dtype(np.float32))]
        if self.identity.get("tokens"):
            shape = (n_obs, self.identity["tokens"], self.identity["token_width"])
            arrays.append(StoredArray(f"obsm/{_schema.tokens_key(name)}", shape, np.dtype(np.float16)))
        return arrays

    def _table(self) -> AnnData:
        table = companion_table(self.study, [])
        table.obsm[_schema.PATCH_BBOX] = np.asarray(self.study.stored_table.obsm[_schema.PATCH_BBOX])
        _schema.apply(table, {"uns": self.records})
        return table

    def _facts(self) -> dict[str, Any]:
        """What the stored values depend on."""
        study, patches = self.study, self.study.patches
        known = ("image", "side_px", "size", "content", "digest", "matrix")
        regions = {name: {key: patches["regions"][name].get(key) for key in known} for name in sorted(study.regions)}
        table = study.stored_table
        return {
            "format": _FORMAT,
            "img2gene": versions()["img2gene"],
            "encoder": self.identity,
            "runtime": self.runtime,
            "patches": {"patch_px": patches["patch_px"], "regions": regions},
            "data": fingerprint(
                spots=table.obs_names.to_numpy(dtype=str),
                instances=table.obs[table.uns["spatialdata_attrs"]["instance_key"]].to_numpy(dtype=str),
                windows=np.asarray(table.obsm[_schema.PATCH_BBOX]),
                sections=study.sections,
            ),
        }


def _collected(batches: Iterator[EmbeddedBatch], size: int) -> Iterator[EmbeddedBatch]:
    """Join batches until they have ``size`` rows."""
    waiting: list[EmbeddedBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(one.rows) for one in waiting) >= size:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[EmbeddedBatch]) -> EmbeddedBatch:
    tokens = [batch.tokens for batch in batches if batch.tokens is not None]
    return EmbeddedBatch(
        np.concatenate([batch.rows for batch in batches]),
        np.concatenate([batch.features for batch in batches]),
        np.concatenate(tokens) if tokens else None,
    )


def _writer(number: int, batch: EmbeddedBatch) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        arrays = {"features": batch.features} | ({} if batch.tokens is None else {"tokens": batch.tokens})
        paths = []
        for name, values in arrays.items():
            paths.append(_file(folder, number, name))
            # numpy would append `.npy` to the temporary path, so it gets an open file.
            with atomic_path(paths[-1]) as temporary, temporary.open("wb") as file:
                np.save(file, values)
        return paths

    return write


def _file(folder: Path, number: int, name: str) -> Path:
    return folder / f"{_PREFIX}{number}-{name}.npy"


def _gathered(folder: Path, places: np.ndarray, arrays: list[StoredArray], rows: slice) -> dict[str, np.ndarray]:
    """Read the values of some rows from the files that hold them."""
    numbers, offsets = places[rows].T
    blocks = {}
    for array, name in zip(arrays, ("features", "tokens"), strict=False):
        block = np.empty((len(numbers), *array.shape[1:]), dtype=array.dtype)
        for number in np.unique(numbers):
            own = numbers == number
            block[own] = np.load(_file(folder, number, name), mmap_mode="r")[offsets[own]]
        blocks[array.path] = block
    return blocks
