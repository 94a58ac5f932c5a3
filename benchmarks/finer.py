"""Predictions at 8 µm of models that saw bins of 56 µm, scored on the fine truth: RMSE and SSIM of maps scaled to 0–1."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from _report import report
from scipy.ndimage import gaussian_filter

import img2gene as ig
from img2gene import metrics
from img2gene.io.sections import build_section

FINE_UM, FACTOR, MPP = 8.0, 7, 1.0
SIDE_PX = int(FINE_UM / MPP)


def make_maps(n_side: int, n_genes: int, structure_um: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (side, side, 3) and expected shares of fine bins (n_fine, n_fine, n_genes).

    Stain follows three fields, and genes follow mixtures of them; ``structure_um`` is the size of what varies.
    """
    rng = np.random.default_rng(seed)
    n_fine = n_side * FACTOR
    side = n_fine * SIDE_PX
    fields = np.stack(
        [gaussian_filter(rng.normal(size=(side, side)), structure_um / MPP, mode="wrap") for _ in range(3)]
    )
    fields = (fields - fields.mean(axis=(1, 2), keepdims=True)) / fields.std(axis=(1, 2), keepdims=True)
    image = np.array([170, 120, 165])[:, None, None] - np.array([25, 30, 15])[:, None, None] * fields
    image = np.clip(image + rng.normal(scale=6, size=image.shape), 0, 255).astype(np.uint8)
    blocks = fields.reshape(3, n_fine, SIDE_PX, n_fine, SIDE_PX).mean(axis=(2, 4))
    rate = np.exp(np.einsum("fyx,fg->yxg", blocks, 0.8 * rng.normal(size=(3, n_genes)) / np.sqrt(3)))
    return np.moveaxis(image, 0, -1), rate / rate.sum(axis=2, keepdims=True)


def make_section(image: np.ndarray, shares: np.ndarray, depth: float, name: str, seed: int):  # type: ignore[no-untyped-def]
    """The section as 56 µm bins see it; ``depth`` counts fall into a fine bin."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(depth * shares)
    n_fine, _, n_genes = counts.shape
    n = n_fine // FACTOR
    coarse = counts.reshape(n, FACTOR, n, FACTOR, n_genes).sum(axis=(1, 3)).reshape(-1, n_genes)
    rows, columns = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    xy = (np.column_stack([columns.ravel(), rows.ravel()]) + 0.5) * FACTOR * SIDE_PX
    table = ad.AnnData(
        sp.csr_matrix(coarse.astype(np.float32)),
        obs=pd.DataFrame(index=[f"{name}_{i}" for i in range(len(coarse))]),
        var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)]),
    )
    sdata = build_section(image, xy, table, section=name, patient=name, mpp=MPP, spot_um=FACTOR * FINE_UM)
    return as_squares(sdata, name, xy)


def as_squares(sdata, name: str, xy: np.ndarray):  # type: ignore[no-untyped-def]
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    half = FACTOR * SIDE_PX / 2
    old = sdata.shapes[f"{name}_spots"]
    frame = gpd.GeoDataFrame(geometry=shapely.box(*(xy - half).T, *(xy + half).T), index=old.index)
    places = dict(get_transformation(old, get_all=True))
    sdata.shapes[f"{name}_spots"] = ShapesModel.parse(frame, transformations=places)
    return sdata


def scaled(values: np.ndarray) -> np.ndarray:
    """Scale each gene to 0–1 over its map."""
    low, high = values.min(axis=0), values.max(axis=0)
    return (values - low) / np.maximum(high - low, 1e-12)


def scores(truth: np.ndarray, predicted: np.ndarray, positions: np.ndarray) -> dict[str, float]:
    one, other = scaled(truth), scaled(predicted)
    return {
        "RMSE": float(np.sqrt(np.square(one - other).mean(axis=0)).mean()),
        "SSIM": float(np.nanmean(metrics.ssim(one, other, positions))),
        "PCC": float(np.nanmean(metrics.pearson(truth, predicted))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bins", type=int, default=12, help="bins of 56 µm along the side of a section")
    parser.add_argument("--genes", type=int, default=50)
    parser.add_argument("--depth", type=float, default=100.0, help="counts per bin of 8 µm")
    parser.add_argument("--structure-um", type=float, nargs="+", default=[30.0, 15.0])
    parser.add_argument("--encoder", default="color-texture")
    parser.add_argument("--patch-um", type=float, nargs="+", default=[24.0, 56.0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ig.settings.progress = False
    rows = []
    # All models predict the same tiles, which are embedded once.
    with tempfile.TemporaryDirectory() as folder:
        ig.settings.cache_dir = Path(folder)
        for structure in args.structure_um:
            rows += measured(args, structure)
    report(rows, args.out)


def measured(args: argparse.Namespace, structure: float) -> list[dict[str, object]]:
    """Scores of models that were trained with and without the section that is predicted."""
    rows = []
    maps = [make_maps(args.bins, args.genes, structure, seed) for seed in range(3)]
    parts = [make_section(*found, args.depth, f"S{i}", i) for i, found in enumerate(maps)]
    sdata = ig.io.concat_sections(parts)
    ig.pp.extract_patches(sdata, patch_um=args.patch_um, patch_px=56)
    ig.pp.embed_patches(sdata, args.encoder)
    for where, train in (("same section", ["S0", "S1", "S2"]), ("other sections", ["S1", "S2"])):
        ig.tl.fit(sdata, "ridge", train_on=train, groups="section", uncertainty=False)
        rows += [{"structure (µm)": structure, "trained on": where, **row} for row in compared(sdata, maps[0][1])]
    return rows


def compared(sdata, shares: np.ndarray) -> list[dict[str, object]]:  # type: ignore[no-untyped-def]
    """Scores of the first section: bins as they are, tiles as they are predicted, and tiles that add up."""
    table = sdata["table"]
    own = (table.obs["section"] == "S0").to_numpy()
    coarse = ig.tl.predict(sdata, inplace=False)
    truth = np.log1p(1e4 * shares.reshape(-1, shares.shape[2]))
    found = []
    for totals in ("predicted", "measured"):
        fine = ig.tl.predict(sdata, resolution_um=FINE_UM, totals=totals, inplace=False)
        fine = fine[(fine.obs["section"] == "S0").to_numpy()]
        place = np.round(np.asarray(fine.obsm["spatial"])[:, ::-1] / SIDE_PX - 0.5).astype(int)
        number = place[:, 0] * shares.shape[1] + place[:, 1]
        genes = [int(gene[1:]) for gene in fine.var_names]
        positions = place * FINE_UM
        target = truth[number][:, genes]
        if totals == "predicted":
            spots = table.obs_names.get_indexer(fine.obs["spot"])
            found.append({"prediction": "bins of 56 µm", **scores(target, coarse.X[spots], positions)})
            measured = np.log1p(1e4 * table.X.toarray() / table.X.sum(axis=1).reshape(-1, 1))[:, genes]
            found.append(
                {"prediction": "measured bins of 56 µm", **scores(target, np.asarray(measured)[spots], positions)}
            )
        found.append({"prediction": f"tiles of 8 µm, {totals} totals", **scores(target, fine.X, positions)})
    assert own.any()
    return found


if __name__ == "__main__":
    main()
