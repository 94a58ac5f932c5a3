"""What reading all sections at one resolution gains where one of them comes from a coarser scanner.

``python benchmarks/resolution.py`` trains on her2st C2, C4, C5 and C6 at their own .69 µm per pixel, and predicts C3 and
another patient's B4: from their own images, and from images averaged over blocks of pixels, as a coarser scanner would give
them, without and with ``resolution_um``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from _her2st import her2st
from _report import DATA, report
from spatialdata import SpatialData

import img2gene as ig
from img2gene.benchmark.layouts import read_legacy

TRAIN, TEST = ("C2", "C4", "C5", "C6"), ("C3", "B4")
GROUPS = {"HEG-250": ("mean", 250), "HVG-50": ("variance", 50)}
MPP = 0.69


def coarsened(folder: Path, name: str, factor: int) -> SpatialData:
    """Read a section with its image averaged over ``factor`` × ``factor`` pixels."""
    section = read_legacy(folder, name, name[0])
    pixels = np.moveaxis(np.asarray(section[f"{name}_image"].data), 0, -1)
    height, width = (length // factor * factor for length in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    image = np.rint(blocks.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8)
    stored = section["table"]
    table = type(stored)(stored.X, obs=stored.obs[["library_size"]].copy(), var=stored.var[[]].copy())
    radius = float(np.median(section[f"{name}_spots"]["radius"]))
    mpp = 50 / radius * factor
    xy = np.asarray(stored.obsm["spatial"]) / factor
    return ig.io.build_section(image, xy, table, section=name, patient=name[0], mpp=mpp, spot_um=100.0)


def embedded(sdata: SpatialData, patch_um: list[float], resolution_um: float | None) -> SpatialData:
    ig.pp.extract_patches(sdata, patch_um=patch_um, resolution_um=resolution_um)
    ig.pp.embed_patches(sdata)
    return sdata


def score(model: ig.models.Model, sdata: SpatialData) -> dict[str, float]:
    """Mean correlation over genes in the section, for the groups of genes of the training sections."""
    ig.tl.predict(sdata, model)
    values = ig.tl.evaluate(sdata, model, n_permutations=0, allow_leakage=True)
    pcc = values[values["model"] == model.name].set_index("gene")["pcc"]
    return {name: float(np.nanmean(pcc.reindex(model.top_genes(by, n)))) for name, (by, n) in GROUPS.items()}


def measure(folder: Path, factor: int, patch_um: list[float], model: str) -> list[dict[str, object]]:
    """Scores of each test section, from its own and a coarsened image, with models trained at two resolutions."""
    resolution = MPP * factor
    study = her2st(folder).read()
    training = study.filter_by_coordinate_system(list(TRAIN))
    fine = {name: study.filter_by_coordinate_system([name]) for name in TEST}
    coarse = {name: coarsened(folder, name, factor) for name in TEST}
    rows: list[dict[str, object]] = []
    for resolution_um, images in ((None, (fine, coarse)), (resolution, (fine, coarse))):
        embedded(training, patch_um, resolution_um)
        fitted = ig.tl.fit(training, model, genes=1000, groups="section", uncertainty=False, inplace=False)
        for label, sections in zip(("own image", f"image averaged over {factor} × {factor} px"), images, strict=True):
            row: dict[str, object] = {"test image": label}
            row["resolution_um"] = "–" if resolution_um is None else f"{resolution_um:.3g}"
            for name, section in sections.items():
                scores = score(fitted, embedded(section, patch_um, resolution_um))
                row |= {f"{name} {group}": value for group, value in scores.items()}
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--patch-um", type=float, nargs="+", default=[100.0, 200.0])
    parser.add_argument("--model", default="ridge")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ig.settings.progress = False
    report(measure(args.data / "her2st", args.factor, args.patch_um, args.model), args.out)


if __name__ == "__main__":
    main()
