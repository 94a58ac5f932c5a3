"""Read tasks of HEST-Benchmark: counts as AnnData, patches as crops of 112 µm, and files with folds and genes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._checks import Arguments, name_text
from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene._files.h5ad import read_h5ad
from img2gene.io.sections import build_section, position_problems

if TYPE_CHECKING:
    import h5py
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

PATCH_UM = 112.0
SPLIT = "split"
_SPOT_UM = 55.0
_PIXEL_SIZE = "pixel_size_um_estimated"


def find(folder: str | Path) -> list[str]:
    """List the sections that have both counts and patches."""
    folder = _folder(folder)
    return sorted(
        path.stem for path in folder.glob("adata/*.h5ad") if (folder / "patches" / f"{path.stem}.h5").is_file()
    )


def panel(folder: str | Path) -> list[str] | None:
    """Read the genes on which the task is scored; return None if the task has no file of genes."""
    path = _folder(folder) / "var_50genes.json"
    if not path.is_file():
        return None
    try:
        genes = json.loads(path.read_bytes())["genes"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        genes = None
    if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
        raise Img2GeneError(f"{path} holds no list `genes` of names; download the file of the task again.")
    return genes


def splits(folder: str | Path) -> dict[str, str]:
    """Read from ``splits/`` which fold holds out each section; raise if the folds are no partition of the sections."""
    folder = _folder(folder)
    held: dict[str, str] = {}
    trained: dict[str, set[str]] = {}
    for path in sorted(folder.glob("splits/test_*.csv")):
        number = path.stem.removeprefix("test_")
        partner = path.with_name(f"train_{number}.csv")
        if not partner.is_file():
            raise Img2GeneError(f"{path} needs the file {partner.name} in the same folder.")
        test, train = _listed(path), _listed(partner)
        if set(test) & set(held):
            twice = listing(sorted(set(test) & set(held)))
            raise Img2GeneError(f"{path} holds out {twice}, which another fold also holds out.")
        held |= dict.fromkeys(test, f"split{number}")
        trained[f"split{number}"] = set(train)
    for fold, used in trained.items():
        if used != {name for name, other in held.items() if other != fold}:
            raise Img2GeneError(
                f"{folder / 'splits'}: {fold} trains on {listing(sorted(used))}; expected all sections that it does "
                "not hold out."
            )
    return held


def _folder(folder: str | Path) -> Path:
    """Check the argument ``folder``."""
    check = Arguments()
    path = check.path("folder", folder)
    check.raise_all()
    return path


def _read_csv(path: Path, **options: Any) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(path, **options)
    except (OSError, ValueError) as error:
        raise Img2GeneError(f"{path} cannot be read as a table ({error}).") from error


def _listed(path: Path) -> list[str]:
    table = _read_csv(path, dtype=str)
    if "sample_id" not in table:
        raise Img2GeneError(f"{path}: column sample_id not found (available: {listing(table)}).")
    return table["sample_id"].tolist()


def metadata(folder: str | Path) -> pd.DataFrame | None:
    """Read the newest ``HEST_v*.csv`` next to the task folders, indexed by section; return None if there is none."""
    files = sorted(_folder(folder).parent.glob("HEST_v*.csv"))
    if not files:
        return None
    table = _read_csv(files[-1], dtype={"id": str})
    if "id" not in table or table["id"].duplicated().any():
        raise Img2GeneError(f"{files[-1]}: expected a column id that names each section once.")
    return table.set_index("id")


def patients(folder: str | Path) -> dict[str, str]:
    """Return the patient of each section, from the metadata or, without it, from the folds of the task."""
    rows = metadata(folder)
    # The folds of the task keep all sections of a patient together, so a fold is a safe substitute for a patient.
    names = splits(folder)
    if rows is not None and "patient" in rows:
        # Every study in HEST-1k numbers its patients anew.
        study = rows.get("dataset_title", rows["patient"].map(lambda _: "")).astype(str)
        names |= {
            str(name): f"{study[name]} {name_text(patient)}".strip()
            for name, patient in rows["patient"].dropna().items()
        }
    return names


def read_section(folder: str | Path, name: str, patient: str | None) -> tuple[SpatialData, np.ndarray]:
    """Read counts and positions of the spots that have a patch, and their patches uint8 (n_obs, H, W, 3)."""
    import anndata as ad
    import scipy.sparse as sp

    check = Arguments()
    path, name = check.path("folder", folder), check.text("name", name)
    patient = check.label("patient", patient, optional=True)
    check.raise_all()
    crops, barcodes, corners = _read_crops(path / "patches" / f"{name}.h5")
    stored = _read_counts(path / "adata" / f"{name}.h5ad")
    rows = stored.obs_names.astype(str).get_indexer(barcodes)
    if (rows < 0).any():
        raise Img2GeneError(f"{name}: spots with a patch but without counts: {listing(barcodes[rows < 0], 5)}.")
    if "spatial" not in stored.obsm:
        raise Img2GeneError(
            f"{name}: obsm['spatial'] with the positions not found (available: {listing(stored.obsm)})."
        )
    raise_problems(position_problems(stored.obsm["spatial"], stored.n_obs, f"{name}: obsm['spatial']", "the counts"))
    places = np.asarray(stored.obsm["spatial"], dtype=float)[rows]
    mpp = _microns_per_pixel(path, name, places, corners)
    table = ad.AnnData(sp.csr_matrix(stored.X[rows], dtype=np.float32), var=stored.var[[]].copy())
    table.var_names_make_unique()
    table.obs_names = [f"{name}_{barcode}" for barcode in barcodes]
    # The task has no image. A blank one stands in for it; `img2gene.benchmark.embeddings` drops it.
    blank = np.full((8, 8, 3), 255, dtype=np.uint8)
    sdata = build_section(blank, places, table, section=name, patient=patient, mpp=mpp, spot_um=_SPOT_UM)
    fold = splits(path).get(name)
    if fold is not None:
        sdata["table"].obs[SPLIT] = fold
    _record_patches(sdata["table"], places, name, mpp, crops.shape[1])
    return sdata, crops


def _read_counts(path: Path) -> AnnData:
    stored = read_h5ad(path)
    if stored.X is None or not stored.obs_names.is_unique:
        raise Img2GeneError(f"{path}: expected counts in X, and each barcode once.")
    return stored


def _read_crops(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read pixels, barcodes and top left corners of all patches."""
    # Releases differ in the name of the barcodes.
    with _open_h5(path) as file:
        key = "barcodes" if "barcodes" in file else "barcode"
        lacking = [name for name in ("img", key, "coords") if name not in file]
        if lacking:
            raise Img2GeneError(f"{path}: {listing(lacking)} not found (available: {listing(file)}).")
        names = [value.decode() if isinstance(value, bytes) else str(value) for value in file[key][:].ravel()]
        crops, corners = file["img"][:], file["coords"][:].astype(float)
    square = crops.ndim == 4 and crops.shape[1] == crops.shape[2] and crops.shape[3] == 3 and crops.dtype == np.uint8
    if not square or len(crops) != len(names) or corners.shape != (len(names), 2) or len(set(names)) != len(names):
        raise Img2GeneError(
            f"{path}: expected one patch uint8 (side, side, 3), one barcode and one corner per spot; got img "
            f"{crops.dtype} {crops.shape}, {len(set(names))} barcodes and coords {corners.shape}."
        )
    return crops, np.array(names), corners


def _open_h5(path: Path) -> h5py.File:
    import h5py

    try:
        return h5py.File(path)
    except OSError as error:
        raise Img2GeneError(f"{path} cannot be read as HDF5 ({error}).") from error


def _microns_per_pixel(folder: Path, name: str, places: np.ndarray, corners: np.ndarray) -> float:
    """Read microns per pixel from the metadata, or derive them from the corners of the patches."""
    import pandas as pd

    rows = metadata(folder)
    if rows is not None and name in rows.index and _PIXEL_SIZE in rows:
        size = pd.to_numeric(rows[_PIXEL_SIZE], errors="coerce")[name]
        if 0 < size < np.inf:
            return float(size)
    # A corner lies half a patch from its spot, in both directions.
    half = places - corners
    middle = float(np.median(half))
    if not middle > 0 or np.abs(half - middle).max() > 0.05 * middle + 1:
        raise Img2GeneError(
            f"{name}: microns per pixel are unknown. HEST_v*.csv next to the task folders does not list them, and they "
            "cannot be derived from the corners of the patches."
        )
    return PATCH_UM / (2 * middle)


def _record_patches(table: AnnData, places: np.ndarray, name: str, mpp: float, side_px: int) -> None:
    """Write the record that :func:`img2gene.pp.extract_patches` would write."""
    from img2gene._study.patches import field_boxes

    side = int(round(PATCH_UM / mpp))
    region: dict[str, Any] = {"image": f"{name}_image", "mpp": mpp, "side_px": [side]}
    patches = {"patch_um": [PATCH_UM], "patch_px": side_px, "regions": {f"{name}_spots": region}}
    boxes = field_boxes(places[:, ::-1], [side])[:, 0]
    _schema.apply(table, {"obsm": {_schema.PATCH_BBOX: boxes}, "uns": {"patches": patches}})
