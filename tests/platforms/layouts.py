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


XENIUM_UM = 0.2125


@dataclass(frozen=True)
class Run:
    """A run of cells: what a reader should find on the H&E image, and the alignment as Xenium Explorer exports it."""

    written: Written
    matrix: np.ndarray
    keypoints: Path


def xenium(folder: Path, version: str = "2.0.0", *, angle: float = 30.0, mpp: float = 0.5) -> Run:
    """Write a run of 30 cells whose H&E image is turned by ``angle`` degrees and has ``mpp`` µm per px."""
    import zarr

    rng = np.random.default_rng(4)
    n, pixels = 30, draw(700, 800)
    xy = rng.uniform(150, 550, (n, 2))
    turn = np.deg2rad(angle)
    linear = mpp / XENIUM_UM * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = np.vstack([np.column_stack([linear, [900.0, 40.0]]), [0, 0, 1]])
    microns = (xy @ linear.T + matrix[:2, 2]) * XENIUM_UM
    numbers = np.arange(1, n + 1, dtype=np.uint32)
    with_text = version >= "1.3"
    names = [f"{_letters(number)}-1" if with_text else str(number) for number in numbers]
    counts = rng.poisson(6, (n, len(GENES)))
    controls = {"Negative Control Probe": ["NegControlProbe_1"], "Unassigned Codeword": ["UnassignedCodeword_1"]}
    write_matrix(folder / "cell_feature_matrix.h5", counts, names, kinds=controls)
    specs = {"pixel_size": XENIUM_UM, "analysis_sw_version": f"xenium-{version}"}
    (folder / "experiment.xenium").write_text(json.dumps(specs))
    cells = pd.DataFrame({"cell_id": names if with_text else numbers})
    cells["x_centroid"], cells["y_centroid"] = microns.T
    cells["cell_area"], cells["nucleus_area"] = 80.0, 20.0
    cells.to_parquet(folder / "cells.parquet", index=False)
    outlines = [octagon(x, y, 5.0) for x, y in microns]
    vertices = pd.DataFrame(
        [
            (name, *place, number)
            for name, number, o in zip(names, numbers, outlines, strict=True)
            for place in o.exterior.coords
        ],
        columns=["cell_id", "vertex_x", "vertex_y", "label_id"],
    )
    if version < "2":
        vertices = vertices.drop(columns="label_id")
    vertices.to_parquet(folder / "cell_boundaries.parquet", index=False)
    with zarr.storage.ZipStore(folder / "cells.zarr.zip", mode="w") as store:
        group = zarr.open_group(store, mode="w", zarr_format=2)
        ids = np.column_stack([numbers, np.ones(n, np.uint32)]) if with_text else numbers
        group.create_array("cell_id", data=ids)
        summary = np.column_stack([microns[:, 0], np.zeros(n)])
        group.create_array("cell_summary", data=summary, attributes={"column_names": ["cell_centroid_x", "z_level"]})
        if version >= "2":
            for kind in (0, 1):
                group.create_array(f"polygon_sets/{kind}/cell_index", data=np.arange(n, dtype=np.uint32))
        elif with_text:
            group.create_array("seg_mask_value", data=numbers)
    chosen = xy[:16]
    points = pd.DataFrame((chosen @ linear.T + matrix[:2, 2]), columns=["fixedX", "fixedY"])
    points["alignmentX"], points["alignmentY"] = chosen.T
    keypoints = folder.parent / f"{folder.name}_keypoints.csv"
    points.to_csv(keypoints, index=False)
    image = _image(folder.parent / f"{folder.name}_images", pixels)
    return Run(Written(folder, image, pixels, names, xy, counts, mpp), matrix, keypoints)


def _letters(number: int) -> str:
    """Name a cell as the analyzer does: each hexadecimal digit is a letter from a to p."""
    return "".join(chr(ord("a") + int(digit, 16)) for digit in f"{number:08x}")


def cosmx(folder: Path, *, pixel_um: float = 0.12028, mpp: float = 0.5) -> Run:
    """Write the flat files of 12 cells in two fields of view, with control probes and counts outside of cells."""
    n, pixels, rng = 12, draw(400, 420), np.random.default_rng(6)
    folder.mkdir(parents=True, exist_ok=True)
    fov, number = np.repeat([1, 2], n // 2), np.tile(np.arange(1, n // 2 + 1), 2)
    matrix = np.array([[mpp / pixel_um, 0, 300.0], [0, -mpp / pixel_um, 5000.0], [0, 0, 1]])
    xy = rng.uniform(60, 360, (n, 2))
    places = xy @ matrix[:2, :2].T + matrix[:2, 2]
    counts = rng.poisson(6, (n, len(UNIQUE)))
    frame = pd.DataFrame(counts, columns=list(UNIQUE)).assign(Negative1=3, SystemControl2=4)
    frame.insert(0, "cell_ID", number)
    frame.insert(0, "fov", fov)
    outside = frame.iloc[:1].assign(cell_ID=0)
    pd.concat([outside, frame]).to_csv(folder / "Run_exprMat_file.csv", index=False)
    cells = pd.DataFrame({"fov": fov, "cell_ID": number, "Area": 500})
    cells["CenterX_global_px"], cells["CenterY_global_px"] = places.T
    cells.iloc[::-1].to_csv(folder / "Run_metadata_file.csv", index=False)
    names = [f"{cell}_{view}" for cell, view in zip(number, fov, strict=True)]
    image = _image(folder.parent / f"{folder.name}_images", pixels)
    return Run(Written(folder, image, pixels, names, xy, counts, mpp), matrix, image)


def merscope(folder: Path, *, mpp: float = 0.5) -> Run:
    """Write a region of 10 cells, with one blank."""
    n, pixels, rng = 10, draw(400, 420), np.random.default_rng(7)
    (folder / "images").mkdir(parents=True)
    matrix = np.array([[0.0, -mpp, 900.0], [mpp, 0.0, 20.0], [0, 0, 1]])
    xy = rng.uniform(60, 360, (n, 2))
    microns = xy @ matrix[:2, :2].T + matrix[:2, 2]
    names = [str(1_000_000_000_000_000_000 + number) for number in range(n)]
    counts = rng.poisson(6, (n, len(UNIQUE)))
    frame = pd.DataFrame(counts, columns=list(UNIQUE), index=pd.Index(names, name="cell")).assign(**{"Blank-1": 2})
    frame.to_csv(folder / "cell_by_gene.csv")
    cells = pd.DataFrame({"fov": 1, "volume": 500.0}, index=pd.Index(names, name="EntityID"))
    cells["center_x"], cells["center_y"] = microns.T
    cells.to_csv(folder / "cell_metadata.csv")
    np.savetxt(folder / "images" / "micron_to_mosaic_pixel_transform.csv", np.diag([9.26, 9.26, 1.0]))
    image = _image(folder.parent / f"{folder.name}_images", pixels)
    return Run(Written(folder, image, pixels, names, xy, counts, mpp), matrix, image)


def hest(folder: Path, *, mpp: float = 0.5, technology: str = "Spatial Transcriptomics") -> Written:
    """Write section ``X1`` of HEST-1k with 9 spots, 50 µm apart."""
    import anndata as ad

    pixels, counts = draw(500, 520), np.random.default_rng(8).poisson(6, (9, len(UNIQUE)))
    xy = np.array([(100.0 + 100 * column, 120.0 + 100 * row) for row in range(3) for column in range(3)])
    names = [f"SPOT{number}" for number in range(9)]
    table = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=pd.DataFrame(index=names))
    table.var = pd.DataFrame({"gene_ids": list(IDS)}, index=list(UNIQUE))
    table.obsm["spatial"] = xy
    for name in ("st", "wsis", "metadata"):
        (folder / name).mkdir(parents=True)
    table.write_h5ad(folder / "st" / "X1.h5ad")
    _image(folder, pixels).rename(folder / "wsis" / "X1.tif")
    about = {"pixel_size_um_estimated": mpp, "patient": 3, "dataset_title": "Study", "st_technology": technology}
    about["spot_diameter"] = 30.0
    (folder / "metadata" / "X1.json").write_text(json.dumps(about))
    return Written(folder, folder / "wsis" / "X1.tif", pixels, names, xy, counts, mpp)
