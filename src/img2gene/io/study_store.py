"""Write a study so that a crash or a kill at any moment leaves the old store or the new one."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError, listing
from img2gene._files.locks import is_stale, is_temporary, temporary_path
from img2gene._study.stain_marks import with_stain_marks
from img2gene.io._comparison import study_differences
from img2gene.io._library_warnings import without_library_warnings

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

_KINDS = ("images", "labels", "points", "shapes", "tables")
_LAZY_KINDS = ("images", "labels", "points")
# Metadata of a Zarr group, formats 3 and 2.
_GROUPS = ("zarr.json", ".zgroup")
_METADATA = (*_GROUPS, ".zattrs", ".zmetadata", "zmetadata")
# A store that is moved away where folders cannot be swapped in one step.
_OLD = ".old"
_CURRENT_FOLDER, _SWAP = -100, 2


def write_study(sdata: SpatialData, path: str | Path, *, overwrite: bool = True) -> None:
    """Write a study to a Zarr store so that nothing is lost if the process is killed.

    :meth:`spatialdata.SpatialData.write` deletes a store before it writes the new one, and refuses to overwrite the
    store that a study was read from. This function writes next to ``path``, reads everything back and compares it with
    the study, and only then swaps the folders. It needs room on the disk for both stores, and reads every image twice.

    Parameters
    ----------
    sdata
        Study. It may have been read from ``path``: its images then read from the new store. Other objects that were
        read from the old store have to be read again.
    path
        Folder of the store. An existing SpatialData store is replaced; any other file or folder is refused.
    overwrite
        False refuses a store that exists.

    Raises
    ------
    Img2GeneError
        ``path`` cannot be used, or what was read back differs from the study. The store is then as it was before.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> path = Path(tempfile.mkdtemp()) / "study.zarr"
    >>> ig.io.write_study(sdata, path)
    >>> ig.io.write_study(sdata, path)
    >>> [item.name for item in path.parent.iterdir()]
    ['study.zarr']
    """
    target = _check(sdata, path, overwrite)
    stored = _with_present_regions(sdata)
    with _replacement(target) as temporary:
        with without_library_warnings():
            _write(stored, temporary)
            _verify(stored, temporary)
        _swap(temporary, target)
    _read_from(sdata, target)
    sdata.attrs = stored.attrs
    logger.info("wrote %s", target)


def _check(sdata: Any, path: Any, overwrite: Any) -> Path:
    """Check the arguments; return the folder of the store without symbolic links."""
    from spatialdata import SpatialData

    check = Arguments()
    if not isinstance(sdata, SpatialData):
        check.messages.append(f"sdata is a {type(sdata).__name__}; expected a SpatialData.")
    target, overwrite = check.path("path", path), check.flag("overwrite", overwrite)
    if isinstance(path, str) and "://" in path:
        check.messages.append(f"path={path!r}: only folders of this computer can be replaced in one step.")
    check.raise_all()
    try:
        target = target.resolve()
        _check_target(target, overwrite)
    except (OSError, RuntimeError) as error:
        raise Img2GeneError(f"path={str(path)!r} cannot be used ({error}); name another folder.") from error
    return target


def _check_target(target: Path, overwrite: bool) -> None:
    inside = next((str(parent) for parent in target.parents if _is_group(parent)), None)
    if inside is not None:
        raise Img2GeneError(f"path={str(target)!r} lies in the Zarr store {inside!r}; name a folder of its own.")
    if not target.name or (target.exists() and not target.is_dir()):
        raise Img2GeneError(f"path={str(target)!r} is a file or a root; name a folder, such as study.zarr.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not _is_study(target):
        raise Img2GeneError(
            f"path={str(target)!r} is a folder that holds no SpatialData store ({listing(sorted(os.listdir(target)), 5)}). "
            "Nothing is deleted that this function did not write: name another folder."
        )
    if not overwrite:
        raise Img2GeneError(f"path={str(target)!r} exists; pass `overwrite=True` to replace it.")


def _is_group(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _GROUPS)


def _is_study(folder: Path) -> bool:
    """Check that a folder is a SpatialData store, also one that a kill left incomplete."""
    if not _is_group(folder):
        return False
    for name, key in (("zarr.json", "attributes"), (".zattrs", None)):
        with suppress(OSError, ValueError, RecursionError, AttributeError):
            content = json.loads((folder / name).read_bytes())
            if "spatialdata_attrs" in (content if key is None else content.get(key, {})):
                return True
    children = set(os.listdir(folder)) - set(_METADATA)
    return bool(children) and children <= set(_KINDS)


@contextmanager
def _replacement(target: Path) -> Iterator[Path]:
    """Yield a temporary folder next to ``target``, and remove it and those that killed processes left."""
    temporary = temporary_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean(target)
        yield temporary
    except OSError as error:
        raise Img2GeneError(
            f"path={str(target)!r} cannot be written ({error}); what was there before is unchanged."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _clean(target: Path) -> None:
    """Put back a store that a kill left moved away, and remove folders that killed processes left."""
    prefix = temporary_path(target).name.rsplit(".", 2)[0]
    for path in sorted(target.parent.iterdir()):
        if not path.name.startswith(f"{prefix}."):
            continue
        if path.name.endswith(f".partial{_OLD}") and is_stale(path.with_suffix("")):
            if target.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.rename(path, target)
        elif is_temporary(path) and path.is_dir() and is_stale(path):
            shutil.rmtree(path, ignore_errors=True)


def _with_present_regions(sdata: SpatialData) -> SpatialData:
    """Return a study with the same elements whose tables annotate only regions that their rows name."""
    from spatialdata import SpatialData

    # `write` would remember the temporary folder of the object that it is called on.
    elements = {kind: dict(getattr(sdata, kind)) for kind in _KINDS}
    elements["tables"] = {name: _of_present_regions(table) for name, table in sdata.tables.items()}
    try:
        return SpatialData(**elements, attrs=with_stain_marks(sdata))
    except Exception as error:
        raise Img2GeneError(
            f"The study cannot be written ({type(error).__name__}: {str(error)[:500]}). The store is unchanged."
        ) from error


def _of_present_regions(table: AnnData) -> AnnData:
    """Copy a table that annotates regions without rows, as one that was filtered in place does."""
    attrs = table.uns.get("spatialdata_attrs")
    column = attrs.get("region_key") if isinstance(attrs, Mapping) else None
    if not isinstance(attrs, Mapping) or column not in table.obs:
        return table
    regions, present = np.atleast_1d(attrs.get("region", [])).tolist(), set(table.obs[column])
    kept = [name for name in regions if name in present]
    if not kept or len(kept) == len(regions):
        return table
    copy = table.to_memory() if table.isbacked else table.copy()
    copy.uns["spatialdata_attrs"] = {**attrs, "region": kept}
    return copy


def _write(sdata: SpatialData, folder: Path) -> None:
    try:
        sdata.write(folder)
    except Exception as error:
        raise Img2GeneError(
            f"The study cannot be written ({type(error).__name__}: {str(error)[:500]}). The store is unchanged."
        ) from error
    for path in folder.rglob("*"):
        if path.is_file():
            # Without this a power cut can leave a swapped but empty store.
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _verify(sdata: SpatialData, folder: Path) -> None:
    """Read a store back, and refuse it if it differs from the study."""
    from spatialdata import read_zarr

    try:
        problems = study_differences(sdata, read_zarr(folder))
    except Exception as error:
        raise Img2GeneError(
            f"What was written cannot be read back ({type(error).__name__}: {str(error)[:500]}). The store is unchanged."
        ) from error
    if problems:
        raise Img2GeneError(
            f"What was read back differs from the study in {listing(problems, 5)}. Store these values in another form; "
            "the store is unchanged."
        )


def _swap(new: Path, target: Path) -> None:
    """Put a folder in the place of another one; the old one gets the name of the new one."""
    if not target.exists() or not any(target.iterdir()):
        with suppress(OSError):
            os.rename(new, target)
            return
    if _exchange(new, target):
        return
    # Between these two steps the old store has another name, under which the next call finds it.
    old = new.with_name(new.name + _OLD)
    os.rename(target, old)
    os.rename(new, target)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step; False where the system cannot."""
    if os.name != "posix":
        return False
    system = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(system, "renameat2"):
        return system.renameat2(_CURRENT_FOLDER, names[0], _CURRENT_FOLDER, names[1], _SWAP) == 0
    return hasattr(system, "renamex_np") and system.renamex_np(*names, _SWAP) == 0


def _read_from(sdata: SpatialData, target: Path) -> None:
    """Let a study belong to a new store, and its lazy elements read from there if they read from the old one."""
    from spatialdata import read_zarr

    with without_library_warnings():
        if any(_reads_from(getattr(sdata, kind), target) for kind in _LAZY_KINDS):
            # The old arrays would read pixels of the new store with the chunks, and the operations, of the old one.
            stored = read_zarr(target, selection=_LAZY_KINDS)
            for kind in _LAZY_KINDS:
                for name, element in getattr(stored, kind).items():
                    getattr(sdata, kind)[name] = element
        sdata.path = target


def _reads_from(elements: Any, target: Path) -> bool:
    """Check whether any of the elements is read from a file in a folder."""
    from spatialdata import get_dask_backing_files

    files = [Path(file).resolve() for element in elements.values() for file in get_dask_backing_files(element)]
    return any(file.is_relative_to(target) for file in files)
