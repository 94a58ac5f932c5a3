"""Valid arguments of every public function, so that one argument at a time can be replaced."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from platforms import layouts

import img2gene as ig
from img2gene._files.tables import write_csv
from reliability import studies

PACKAGES = (
    "pp",
    "tl",
    "pl",
    "get",
    "io",
    "lazyslide",
    "datasets",
    "metrics",
    "models",
    "encoders",
    "pathways",
    "testing",
)
Arguments = dict[str, Any]
_VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def public_functions() -> dict[str, Callable[..., Any]]:
    """List every public function, and the methods with which trained models are used."""
    functions: dict[str, Callable[..., Any]] = {"report": ig.report}
    for package in PACKAGES:
        module = importlib.import_module(f"img2gene.{package}")
        functions |= {f"{package}.{name}": getattr(module, name) for name in module.__all__}
    functions = {name: value for name, value in functions.items() if not inspect.isclass(value)}
    methods = ("predict", "predict_intervals", "top_genes")
    return functions | {f"Model.{name}": getattr(ig.models.Model, name) for name in methods}


def parameters_of(name: str) -> list[str]:
    """List the arguments of a public function, also the parameters that it passes to a model."""
    parameters = inspect.signature(public_functions()[name.split("[")[0]]).parameters.values()
    plain = [item.name for item in parameters if item.kind not in _VARIABLE and item.name != "self"]
    if "[" not in name:
        return plain
    kind = ig.models.get(name.split("[")[1].rstrip("]"))
    return [item for item in inspect.signature(kind).parameters if item not in ("args", "kwargs")]


def targets() -> list[str]:
    """List all functions, and those that take the parameters of a model once for each model."""
    per_model = [f"{name}[{model}]" for name in ("models.create", "tl.fit") for model in built_in_models()]
    return [*public_functions(), *per_model]


def built_in_models() -> list[str]:
    """List the registered models, without those that tests add."""
    return [name for name in ig.models.list() if ig.models.get(name).__module__.startswith("img2gene.")]


def valid_arguments(name: str, folder: Path) -> Arguments:
    """Return arguments with which a public function succeeds."""
    if name.startswith("tl.fit["):
        model = name[len("tl.fit[") : -1]
        return {**STUDY["tl.fit"](), "sdata": _study(), "model": model, **studies.SMALL.get(model, {})}
    if name.startswith("models.create["):
        return {"name": name[len("models.create[") : -1]}
    if name in STUDY:
        return {"sdata": _study(), **STUDY[name]()}
    return _OTHER[name](folder)


def _study() -> Any:
    return studies.copy_of(studies.complete())


def _genes() -> list[str]:
    return studies.panel(studies.complete())


_TRAINING = {"train_on": ["P1", "P2"], "validate_on": [studies.HELD_OUT], "genes": 5}
_CHEAP = {"models": ["mean"], "encoder": studies.ENCODER, "genes": 5}


def _stated_scores() -> pd.DataFrame:
    fingerprint = studies.trained("ridge").fingerprint
    return pd.DataFrame({"model": ["ridge"], "genes": ["all"], "pcc": [0.5], "fingerprint": [fingerprint]})


def _mean_colour(pixels: np.ndarray) -> np.ndarray:
    return pixels.mean(axis=(1, 2))


# Functions whose first argument is the study.
STUDY: dict[str, Callable[[], Arguments]] = {
    "pp.describe_features": lambda: {"features": "domain_fractions", "encoder": "mine", "revision": "1"},
    "pp.embed_patches": lambda: {"encoder": studies.ENCODER},
    "pp.extract_patches": lambda: {"patch_um": 112.0, "patch_px": 32},
    "pp.score_pathways": lambda: {"gene_sets": {"first": _genes()[:6]}, "seed": 0},
    "pp.select_genes": lambda: {"n_genes": 5},
    "pp.bin_to": lambda: {"um": 500.0},
    "pp.tile_slide": lambda: {"image_key": "P3_S1_image", "patch_um": 112.0, "patch_px": 32},
    "pp.fit_stain": lambda: {"image_key": "P3_S1_image", "method": "reinhard"},
    "pp.normalize_stain": lambda: {"reference": "P3_S1_image", "method": "reinhard", "images": ["P1_S1_image"]},
    "lazyslide.add_tiles": lambda: {},
    "tl.check_leaks": lambda: {},
    "tl.cross_validate": lambda: {**_CHEAP, "baselines": False, "n_permutations": 2},
    "tl.evaluate": lambda: {"n_permutations": 2},
    "tl.fit": lambda: {"model": "ridge", **_TRAINING},
    "tl.gene_correlation": lambda: {},
    "tl.learning_curve": lambda: {**_CHEAP, "fractions": [1.0], "n_repeats": 1},
    "tl.localize": lambda: {"markers": {"again": _genes()[:3]}},
    "tl.pathway_contributions": lambda: {"gene": _genes()[0], "key": "network"},
    "tl.predict": lambda: {},
    "tl.predictability": lambda: {"n_permutations": 9},
    "tl.rasterize_prediction": lambda: {"genes": _genes()[0], "section": "P3_S1"},
    "tl.retrieve": lambda: {"key": "retriever", "n": 2},
    "pl.localization": lambda: {"tissue": "marked", "sections": ["P3_S1"]},
    "pl.patches": lambda: {"n": 1},
    "pl.pathways": lambda: {"sections": ["P3_S1"]},
    "pl.retrieved": lambda: {"spots": _study()["table"].obs_names[0], "key": "retriever", "n": 2},
    "pl.slide": lambda: {"gene": _genes()[0], "section": "P3_S1"},
    "pl.umap": lambda: {"color": "patient", "max_spots": 30},
    "get.model": lambda: {},
    "get.patches": lambda: {"index": [0]},
    "get.pathways": lambda: {},
    "io.to_anndata": lambda: {},
}


def _values() -> Arguments:
    rng = np.random.default_rng(0)
    return {"truth": rng.normal(size=(10, 3)), "predicted": rng.normal(size=(10, 3))}


def _lattice() -> np.ndarray:
    rows, columns = np.divmod(np.arange(10), 5)
    return np.column_stack([rows, columns]) * 100.0


def _graph() -> sp.csr_matrix:
    return ig.metrics.neighbor_graph(_lattice(), 3)


def _labelled() -> Arguments:
    return {"truth": np.arange(10) > 4, "score": np.linspace(0, 1, 10)}


def _bounds() -> Arguments:
    truth = _values()["truth"]
    return {"lower": truth - 1, "upper": truth + 1}


def _counts() -> np.ndarray:
    return np.random.default_rng(0).poisson(4, size=(30, 12)).astype(np.float32)


def _sets() -> dict[str, np.ndarray]:
    return {"first": np.arange(4), "second": np.arange(3, 9)}


def _scores() -> pd.DataFrame:
    return ig.tl.evaluate(_study(), n_permutations=2, inplace=False)


def _cross_validation() -> Any:
    return ig.tl.cross_validate(_study(), **STUDY["tl.cross_validate"]())


def _model_call() -> Arguments:
    features, sections, _ = studies.model_inputs()
    return {"self": studies.trained("ridge"), "features": features, "sections": sections}


def _one_section(folder: Path) -> Arguments:
    sdata = studies.cohort()
    table = sdata["table"][sdata["table"].obs["section"] == "P1_S1"].copy()
    positions = np.asarray(table.obsm["spatial"], dtype=float)
    bare = type(table)(table.X.copy(), obs=pd.DataFrame(index=table.obs_names), var=table.var[[]].copy())
    image = np.moveaxis(np.asarray(sdata["P1_S1_image"].data), 0, -1)
    return {"image": image, "xy": positions, "table": bare, "section": "S", "patient": "P", "mpp": 2.0, "spot_um": 55.0}


def _legacy(folder: Path) -> Arguments:
    image = np.full((300, 300, 3), 200, dtype=np.uint8)
    counts = pd.DataFrame(_counts()[:9].astype(int), index=[f"{i}x{j}" for i in range(3) for j in range(3)])
    counts.to_csv(folder / "counts.tsv", sep="\t")
    spots = pd.DataFrame({"x": [0, 1, 2] * 3, "y": np.repeat([0, 1, 2], 3)})
    spots["pixel_x"], spots["pixel_y"] = 50 + 100 * spots["x"], 50 + 100 * spots["y"]
    spots.to_csv(folder / "spots.tsv", sep="\t", index=False)
    return {"counts": folder / "counts.tsv", "image": image, "spots": folder / "spots.tsv", "section": "S"}


def _slide(folder: Path) -> Path:
    import tifffile

    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    options = {"photometric": "rgb", "tile": (64, 64), "metadata": None}
    tifffile.imwrite(folder / "slide.tiff", pixels, **options)
    return folder / "slide.tiff"


def _platform(folder: Path, write: Callable[[Path], Any], **options: Any) -> Arguments:
    written = write(folder)
    written = next(iter(written.values())) if isinstance(written, dict) else written
    return {"path": written.path, "image": written.image, "section": "S", "patient": "P", **options}


def _tiled() -> Any:
    """A slide as LazySlide keeps it, with features of its four tiles."""
    import anndata as ad
    import geopandas as gpd
    import shapely
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    ids, x = np.arange(4), 80 * np.arange(4)
    frame = gpd.GeoDataFrame({"tile_id": ids}, geometry=shapely.box(x, 0, x + 80, 80))
    obs = pd.DataFrame({"tile_id": ids, "library_id": pd.Categorical(["tiles"] * 4)}, index=ids.astype(str))
    table = ad.AnnData(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32), obs=obs)
    table = TableModel.parse(table, region="tiles", region_key="library_id", instance_key="tile_id")
    sdata = SpatialData(shapes={"tiles": ShapesModel.parse(frame)}, tables={"enc_tiles": table})
    sizes = {"height": 40, "width": 40, "base_downsample": 2.0, "mpp": 0.5}
    sdata.attrs = {"tile_spec": {"tiles": sizes}, "slide_properties": {"mpp": 0.25}}
    ig.lazyslide.read_tiles(sdata)
    return sdata


def _xenium(folder: Path) -> Arguments:
    (folder / "run").mkdir()
    run = layouts.xenium(folder / "run")
    return {"path": run.written.path, "image": run.written.image, "alignment": run.keypoints, "section": "S"}


def _aligned(folder: Path, write: Callable[[Path], Any]) -> Arguments:
    run = write(folder / "run")
    return {"path": run.written.path, "image": run.written.image, "alignment": run.matrix, "section": "S"}


def _saved(folder: Path) -> Path:
    return ig.io.save_model(studies.trained("ridge"), folder / "ridge.img2gene", overwrite=True)


def _table(folder: Path) -> Path:
    write_csv(pd.DataFrame({"gene": ["=1", "NA"], "pcc": [0.5, np.nan]}), folder / "scores.csv")
    return folder / "scores.csv"


def _stored_table(folder: Path) -> Path:
    ig.tl.predict(_study(), studies.trained("ridge"), out=folder / "predicted.zarr", inplace=False)
    return folder / "predicted.zarr"


def _truth_and_positions() -> Arguments:
    return {**_values(), "positions": _lattice()}


# Functions that take something else; each entry gets a folder of its own.
_OTHER: dict[str, Callable[[Path], Arguments]] = {
    "lazyslide.add_features": lambda folder: {"sdata": _tiled(), "features": "enc", "table_key": "lazyslide"},
    "lazyslide.predictor": lambda folder: {"model": studies.trained("ridge")},
    "lazyslide.read_tiles": lambda folder: {"sdata": _tiled()},
    "report": lambda folder: {"data": _study(), "path": folder / "page.html", "overwrite": True},
    "tl.summarize": lambda folder: {"scores": _scores()},
    "pl.calibration": lambda folder: {"data": _study(), "sections": ["P3_S1"]},
    "pl.cross_validation": lambda folder: {"cv": _cross_validation()},
    "pl.gene_correlation": lambda folder: {"result": ig.tl.gene_correlation(_study(), inplace=False)},
    "pl.learning_curve": lambda folder: {"result": ig.tl.learning_curve(_study(), **STUDY["tl.learning_curve"]())},
    "pl.out_of_distribution": lambda folder: {"data": _study(), "sections": ["P3_S1"]},
    "pl.predictability": lambda folder: {"result": _study()},
    "pl.prediction": lambda folder: {"data": _study(), "genes": _genes()[0], "sections": ["P3_S1"]},
    "pl.bias": lambda folder: {"scores": _scores()},
    "pl.measured_vs_predicted": lambda folder: {"data": _study(), "genes": _genes()[0], "sections": ["P3_S1"]},
    "pl.score_heatmap": lambda folder: {"scores": _scores()},
    "pl.scores": lambda folder: {"scores": _scores()},
    "pl.training": lambda folder: {"model": _study(), "key": "network"},
    "io.build_section": _one_section,
    "io.concat_sections": lambda folder: {
        "sections": [studies.cohort().filter_by_coordinate_system(name) for name in studies.TRAINING]
    },
    "io.from_anndata": lambda folder: {
        "adata": studies.visium_like().copy(),
        "spot_um": 55.0,
        "library_key": "section",
        "patient_key": "patient",
    },
    "io.load_model": lambda folder: {"path": _saved(folder)},
    "io.model_card": lambda folder: {"model": studies.trained("ridge"), "scores": _stated_scores()},
    "io.open_table": lambda folder: {"path": _stored_table(folder)},
    "io.read_csv": lambda folder: {"path": _table(folder)},
    "io.read_legacy_st": _legacy,
    "io.read_slide": lambda folder: {"path": _slide(folder), "mpp": 0.5},
    "io.read_visium": lambda folder: _platform(folder, layouts.visium, counts="filtered"),
    "io.read_visium_hd": lambda folder: _platform(folder, layouts.visium_hd, bin_um=16),
    "io.read_xenium": _xenium,
    "io.read_hest": lambda folder: {"path": layouts.hest(folder).path, "section": "X1", "patient": "P"},
    "io.read_cosmx": lambda folder: _aligned(folder, layouts.cosmx),
    "io.read_merscope": lambda folder: _aligned(folder, layouts.merscope),
    "io.save_model": lambda folder: {"model": _study(), "path": folder / "model.img2gene", "overwrite": True},
    "io.write_study": lambda folder: {"sdata": _study(), "path": folder / "study.zarr"},
    "datasets.synthetic_cohort": lambda folder: {
        "n_patients": 1,
        "n_sections": 1,
        "n_spots": 10,
        "n_genes": 10,
        "mpp": 2.0,
    },
    "metrics.auprc": lambda folder: _labelled(),
    "metrics.auroc": lambda folder: _labelled(),
    "metrics.coverage": lambda folder: {"truth": _values()["truth"], **_bounds()},
    "metrics.dice": lambda folder: {"truth": _labelled()["truth"], "predicted": _labelled()["truth"]},
    "metrics.error_correlation": lambda folder: {**_values(), "sd": np.ones((10, 3))},
    "metrics.gene_correlation": lambda folder: {"values": _values()["truth"]},
    "metrics.interval_width": lambda folder: _bounds(),
    "metrics.mae": lambda folder: _values(),
    "metrics.mean_interval": lambda folder: {"values": np.arange(5.0)},
    "metrics.moran_agreement": lambda folder: {**_values(), "graph": _graph()},
    "metrics.morans_i": lambda folder: {"values": _values()["truth"], "graph": _graph()},
    "metrics.bias": lambda folder: _values(),
    "metrics.slope": lambda folder: _values(),
    "metrics.mse": lambda folder: _values(),
    "metrics.neighbor_graph": lambda folder: {"positions": _lattice(), "k": 3},
    "metrics.noise_ceiling": lambda folder: {"counts": _counts()},
    "metrics.nrmse": lambda folder: _values(),
    "metrics.pearson": lambda folder: _values(),
    "metrics.pooled_pearson": lambda folder: {key: [value] for key, value in _values().items()},
    "metrics.r2": lambda folder: {**_values(), "reference": np.zeros(3)},
    "metrics.rasterize": lambda folder: {"values": _values()["truth"], "positions": _lattice()},
    "metrics.signed_rank_pvalue": lambda folder: {"differences": np.arange(1.0, 8.0)},
    "metrics.spatial_correlation_test": lambda folder: {**_truth_and_positions(), "n_permutations": 9},
    "metrics.spearman": lambda folder: _values(),
    "metrics.spearman_brown": lambda folder: {"r": np.array([0.5])},
    "metrics.ssim": lambda folder: _truth_and_positions(),
    "metrics.structure_score": lambda folder: {
        key: ig.metrics.gene_correlation(value) for key, value in _values().items()
    },
    "models.create": lambda folder: {"name": "ridge"},
    "models.get": lambda folder: {"name": "ridge"},
    "models.list": lambda folder: {},
    "models.register": lambda folder: {"predictor": ig.models.get("ridge")},
    "encoders.get": lambda folder: {"name": studies.ENCODER},
    "encoders.list": lambda folder: {},
    "encoders.load": lambda folder: {"name": studies.ENCODER},
    "encoders.wrap": lambda folder: {"model": _mean_colour, "name": "mean-colour", "revision": "1", "input_px": 16},
    "encoders.register": lambda folder: {"spec": ig.encoders.get(studies.ENCODER)},
    "pathways.aucell": lambda folder: {"counts": _counts(), "sets": _sets()},
    "pathways.enrich": lambda folder: {
        "ranking": pd.Series(np.linspace(-1, 1, 20), index=[f"G{i}" for i in range(20)]),
        "gene_sets": {"first": [f"G{i}" for i in range(6)]},
        "seed": 0,
        "n_permutations": 100,
    },
    "pathways.match_gene_sets": lambda folder: {"gene_sets": {"first": _genes()}, "genes": _genes()},
    "pathways.rank_genes": lambda folder: {
        "labels": _counts(),
        "sections": np.repeat(["A", "B"], 15),
        "positions": np.random.default_rng(0).uniform(size=(30, 2)),
        "features": np.random.default_rng(1).normal(size=(30, 4)),
    },
    "pathways.read_gene_sets": lambda folder: {"source": {"first": ["A", "B"]}},
    "pathways.select_pathways": lambda folder: {
        "table": ig.pathways.enrich(**_OTHER["pathways.enrich"](folder)),
        "n_top": 1,
    },
    "pathways.ssgsea": lambda folder: {"counts": _counts(), "sets": _sets()},
    "pathways.zscore": lambda folder: {"labels": _counts(), "sets": _sets()},
    "testing.assert_models_equal": lambda folder: {"one": studies.trained("mean"), "other": studies.trained("mean")},
    "testing.check_encoder": lambda folder: {"encoder": ig.encoders.get(studies.ENCODER)},
    "testing.check_predictor": lambda folder: {"make": "mean"},
    "Model.predict": lambda folder: _model_call(),
    "Model.predict_intervals": lambda folder: _model_call(),
    "Model.top_genes": lambda folder: {"self": studies.trained("ridge"), "by": "mean", "n": 2},
}


def undescribed() -> Iterator[str]:
    """Yield public functions without valid arguments here."""
    return (name for name in public_functions() if name not in {*STUDY, *_OTHER})
