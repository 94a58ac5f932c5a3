"""Write small folders in the layouts of the platforms, with counts and places that tests know."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from PIL import Image
from shapely import Polygon, box
from shapely.geometry import mapping

GENES = ("EPCAM", "KRT8", "PTPRC", "KRT8", "COL1A1")
IDS = tuple(f"ENSG{number:011d}" for number in range(5))
UNIQUE = ("EPCAM", "KRT8", "PTPRC", "KRT8-1", "COL1A1")
SPACE_RANGER = ("1", "2", "3", "cytassist", "download", "text", "raw")
HIRES = 0.25


def draw(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw coarse coloured squares, so that each place looks different."""
    squares = np.random.default_rng(seed).integers(60, 240, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return np.ascontiguousarray(squares.repeat(16, axis=0).repeat(16, axis=1)[:height, :width])


def write_matrix(
    path: Path, counts: np.ndarray, barcodes: list[str], *, kinds: dict[str, list[str]] | None = None
) -> None:
    """Write the HDF5 file of 10x Genomics; ``kinds`` adds features of other types, with a count of 100 everywhere."""
    names, ids, types = list(GENES), list(IDS), ["Gene Expression"] * len(GENES)
    for kind, features in (kinds or {}).items():
        names, ids, types = names + features, ids + features, types + [kind] * len(features)
        counts = np.column_stack([counts, np.full((len(counts), len(features)), 100)])
    matrix = sp.csr_matrix(counts.astype(np.int32))
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
        group["shape"] = np.array(matrix.shape[::-1], dtype=np.int32)
        features_group = group.create_group("features")
        for key, values in {"name": names, "id": ids, "feature_type": types, "genome": ["GRCh38"] * len(ids)}.items():
            features_group[key] = np.array(values, dtype="S")


def _write_text_matrix(folder: Path, counts: np.ndarray, barcodes: list[str]) -> None:
    folder.mkdir(parents=True)
    texts = {
        "features.tsv": "".join(f"{i}\t{name}\tGene Expression\n" for i, name in zip(IDS, GENES, strict=True)),
        "barcodes.tsv": "".join(f"{barcode}\n" for barcode in barcodes),
    }
    for name, text in texts.items():
        with gzip.open(folder / f"{name}.gz", "wt") as file:
            file.write(text)
    scipy.io.mmwrite(folder / "matrix.mtx", sp.coo_matrix(counts.T))
    with (folder / "matrix.mtx").open("rb") as source, gzip.open(folder / "matrix.mtx.gz", "wb") as target:
        shutil.copyfileobj(source, target)
    (folder / "matrix.mtx").unlink()


@dataclass(frozen=True)
class Written:
    """What a folder holds.

    Attributes
    ----------
    path
        Folder to read.
    image
        File of the full-resolution image.
    pixels
        Its pixels.
    names
        Barcodes or cells.
    xy
        Their columns and rows in the full-resolution image.
    counts
        Their counts of ``GENES``.
    mpp
        Microns per pixel of the full-resolution image.
    """

    path: Path
    image: Path
    pixels: np.ndarray
    names: list[str]
    xy: np.ndarray
    counts: np.ndarray
    mpp: float


def _image(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / "slide.tif")
    return folder / "slide.tif"


def _spatial(folder: Path, pixels: np.ndarray, factors: dict[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    step = int(1 / HIRES)
    Image.fromarray(np.ascontiguousarray(pixels[::step, ::step])).save(folder / "tissue_hires_image.png")
    (folder / "scalefactors_json.json").write_text(json.dumps({"tissue_hires_scalef": HIRES, **factors}))


def visium(folder: Path, layout: str = "2", *, mpp: float = 0.5) -> Written:
    """Write a section of 32 Visium spots as one of ``SPACE_RANGER``; two more lie off the tissue."""
    grid = np.array([(row, column) for row in range(8) for column in range(row % 2, 8, 2)])
    xy = np.column_stack([200 + grid[:, 1] * 50 / mpp, 220 + grid[:, 0] * 50 * np.sqrt(3) / mpp]).round(3)
    pixels = draw(1920, 1280)
    names = [f"SPOT{number:04d}-1" for number in range(len(grid))]
    counts = np.random.default_rng(1).poisson(5, (len(grid), len(GENES)))
    off = {"names": ["OFF1-1", "OFF2-1"], "grid": np.array([[8, 0], [8, 2]])}
    off_xy = np.column_stack([200 + off["grid"][:, 1] * 50 / mpp, 220 + off["grid"][:, 0] * 50 * np.sqrt(3) / mpp])
    place = folder / "outs" if layout in ("2", "3", "cytassist") else folder
    prefix = "Run_A_" if layout == "download" else ""
    if layout == "text":
        _write_text_matrix(place / "filtered_feature_bc_matrix", counts, names)
    elif layout == "raw":
        write_matrix(place / "raw_feature_bc_matrix.h5", np.vstack([counts, counts[:2]]), names + off["names"])
    else:
        kinds = {"Antibody Capture": ["CD3"]} if layout == "cytassist" else None
        write_matrix(place / f"{prefix}filtered_feature_bc_matrix.h5", counts, names, kinds=kinds)
    _spatial(place / "spatial", pixels, {"spot_diameter_fullres": 65 / mpp, "tissue_lowres_scalef": 0.1})
    if layout == "cytassist":
        Image.fromarray(draw(300, 300, seed=5)).save(place / "spatial" / "cytassist_image.tiff")
    frame = pd.DataFrame(np.vstack([grid, off["grid"]]), columns=["array_row", "array_col"])
    frame.insert(0, "barcode", names + off["names"])
    frame.insert(1, "in_tissue", [1] * len(grid) + [0, 0])
    frame["pxl_row_in_fullres"], frame["pxl_col_in_fullres"] = np.vstack([xy, off_xy])[:, ::-1].T
    # The files list spots in another order than the matrix.
    frame = frame.iloc[::-1]
    if layout in ("1", "text"):
        frame.to_csv(place / "spatial" / "tissue_positions_list.csv", index=False, header=False)
    elif layout == "3":
        frame.to_parquet(place / "spatial" / "tissue_positions.parquet", index=False)
    else:
        frame.to_csv(place / "spatial" / "tissue_positions.csv", index=False)
    return Written(folder, _image(folder / "images", pixels), pixels, names, xy, counts, mpp)


def visium_hd(folder: Path, *, mpp: float = 0.5, side: int = 24, with_cells: bool = True) -> dict[object, Written]:
    """Write bins of 2, 8 and 16 µm on a square of ``side`` bins of 8 µm, and four segmented cells."""
    extent, pixels = side * 8 / mpp, draw(520, 560)
    image = _image(folder / "images", pixels)
    fine = np.random.default_rng(2).poisson(0.4, (side * 4, side * 4, len(GENES)))
    written: dict[object, Written] = {}
    for um in (2, 8, 16):
        k, n = um // 2, side * 8 // um
        counts = fine.reshape(n, k, n, k, -1).sum(axis=(1, 3)).reshape(n * n, -1)
        rows, columns = np.divmod(np.arange(n * n), n)
        xy = 40.0 + (np.column_stack([columns, rows]) + 0.5) * um / mpp
        names = [f"s_{um:03d}um_{row:05d}_{column:05d}-1" for row, column in zip(rows, columns, strict=True)]
        place = folder / "outs" / "binned_outputs" / f"square_{um:03d}um"
        write_matrix(place / "filtered_feature_bc_matrix.h5", counts, names)
        _spatial(
            place / "spatial",
            pixels,
            {"spot_diameter_fullres": um / mpp, "bin_size_um": float(um), "microns_per_pixel": mpp},
        )
        frame = pd.DataFrame({"barcode": names, "in_tissue": 1, "array_row": rows, "array_col": columns})
        frame["pxl_row_in_fullres"], frame["pxl_col_in_fullres"] = xy[:, 1], xy[:, 0]
        frame.to_parquet(place / "spatial" / "tissue_positions.parquet", index=False)
        written[um] = Written(folder, image, pixels, names, xy, counts, mpp)
    if with_cells:
        written["cells"] = _hd_cells(folder, image, pixels, mpp, extent)
    return written


def _hd_cells(folder: Path, image: Path, pixels: np.ndarray, mpp: float, extent: float) -> Written:
    centers = 40.0 + extent * np.array([[0.2, 0.2], [0.7, 0.3], [0.4, 0.8], [0.8, 0.8]])
    names = [f"cellid_{number:09d}-1" for number in (1, 2, 5, 7)]
    counts = np.random.default_rng(3).poisson(9, (4, len(GENES)))
    place = folder / "outs" / "segmented_outputs"
    write_matrix(place / "filtered_feature_cell_matrix.h5", counts, names)
    _spatial(place / "spatial", pixels, {"microns_per_pixel": mpp})
    # Cell 6 has an outline and no counts.
    shapes = {1: 0, 2: 1, 5: 2, 6: 0, 7: 3}
    features = [
        {
            "type": "Feature",
            "properties": {"cell_id": number},
            "geometry": mapping(box(*(centers[row] - 10), *(centers[row] + 10))),
        }
        for number, row in shapes.items()
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    (place / "cell_segmentations.geojson").write_text(text)
    return Written(folder, image, pixels, names, centers, counts, mpp)


def octagon(x: float, y: float, radius: float) -> Polygon:
    """Draw an octagon around a place."""
    angles = np.arange(8) * np.pi / 4
    return Polygon(np.column_stack([x + radius * np.cos(angles), y + radius * np.sin(angles)]))
