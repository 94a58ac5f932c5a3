"""Input that cannot be used is refused by an error that names the culprit."""

import dataclasses
import json

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from shapely import Point

import img2gene as ig
from img2gene import Img2GeneError, MissingKeyError
from img2gene.encoders.trainable import select_stage
from img2gene.io import hest
from img2gene.metrics import auroc, pearson, pooled_pearson, ssim
from img2gene.models import registry
from img2gene.models.networks.debiasing import Backdoor
from img2gene.models.networks.losses import coherence
from img2gene.models.reference_bank import ReferenceBank
from img2gene.models.ridge import Ridge
from img2gene.pathways import enrich, rank_genes

RED, GREEN = ["G00", "G03"], ["G01", "G04"]
QUICK = {"baselines": False, "n_permutations": 0}


def keep_two_spots_of_a1(sdata):
    table = sdata["table"]
    spots = np.flatnonzero(table.obs["section"] == "A1")[2:]
    sdata.tables["table"] = table[np.setdiff1d(np.arange(table.n_obs), spots)[1:]].copy()


def lose_the_region_key(sdata):
    del sdata["table"].uns["spatialdata_attrs"]


def lose_a_region(sdata):
    table = sdata["table"]
    table.obs["region"] = table.obs["region"].astype(object)
    table.obs.iloc[0, table.obs.columns.get_loc("region")] = None


def lose_shapes(sdata):
    del sdata.shapes["A1_spots"]


def lose_the_image(sdata):
    del sdata.images["A1_image"]


def white_image(sdata):
    image = sdata["A1_image"]
    sdata.images["A1_image"] = image.copy(data=da.full(image.shape, 255, dtype=np.uint8))


def lose_counts(sdata):
    table = sdata["table"]
    table.X = table.X * 0
    table.obs["library_size"] = 0.0


def lose_counts_of_c(sdata):
    table = sdata["table"]
    rows = (table.obs["section"] == "C1").to_numpy()
    counts = table.X.toarray()
    counts[rows] = 0
    table.X = type(table.X)(counts)
    table.obs["library_size"] = counts.sum(axis=1)


def patches_without_a_region(sdata):
    record = json.loads(sdata["table"].uns["img2gene"]["patches"])
    del record["regions"]["B1_spots"]
    sdata["table"].uns["img2gene"]["patches"] = json.dumps(record)


def other_genes(sdata):
    fit(sdata)
    ig.tl.predict(sdata)
    sdata["table"].var_names = [f"other{i}" for i in range(sdata["table"].n_vars)]


def own_shapes(sdata):
    sdata.shapes["A1_spots"] = sdata["A1_spots"].copy()
    return sdata["A1_spots"]


def name_spots_alike(sdata):
    shapes = own_shapes(sdata)
    shapes.index = [shapes.index[0]] * len(shapes)


def lose_a_place(sdata):
    shapes = own_shapes(sdata)
    shapes["geometry"] = [Point(np.nan, np.nan)] * 2 + list(shapes.geometry[2:])


def layer_of_words(sdata):
    sdata["table"].layers["words"] = np.full(sdata["table"].shape, "many")


def detections(sdata):
    sdata["table"].X = sdata["table"].X > 0


def lose_a_library_size(sdata):
    sdata["table"].obs["library_size"] = np.nan


def lose_positions(sdata):
    del sdata["table"].obsm["spatial"]


def nothing(sdata):
    pass


def patches(sdata, **options):
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32, **options)


def fit(sdata, **options):
    ig.tl.fit(sdata, "ridge", validate_on=["C"], **options)


def tiles(sdata, **options):
    ig.pp.tile_slide(sdata, "A1_image", **({"tile_um": 100} | options))


def localize(sdata, **options):
    ig.tl.localize(sdata, {"red": RED, "green": GREEN}, **options)


STUDIES = {
    "no region key": (lose_the_region_key, patches, {}, Img2GeneError, r"table.* annotates no region.*TableModel.parse\(.*region_key="),
    "spot without region": (lose_a_region, patches, {}, Img2GeneError, "1 rows of .*table.* region"),
    "region": (lose_shapes, patches, {}, MissingKeyError, r"`A1_spots` not found .*available: .*A2_spots"),
    "image of a region": (nothing, patches, {"images": {"A1_spots": "A1_image"}}, Img2GeneError, "`A2_spots` .*A1_spots"),
    "no image": (lose_the_image, patches, {}, Img2GeneError, "`A1_spots` .*A2_image.*set_transformation"),
    "names of spots": (name_spots_alike, patches, {}, Img2GeneError, "`A1_spots` .*unique"),
    "places of spots": (lose_a_place, patches, {}, Img2GeneError, "`A1_spots` has 2 spots"),
    "words as labels": (layer_of_words, fit, {"layer": "words"}, Img2GeneError, r"`layers\['words'\]` holds <U4"),
    "detections as counts": (detections, fit, {}, Img2GeneError, r"table.*X` holds bool"),
    "library size": (lose_a_library_size, fit, {}, Img2GeneError, r"`obs\['library_size'\]` holds NaN"),
    "unknown ranking": (nothing, ig.pp.select_genes, {"n_genes": 3, "by": "fame"}, Img2GeneError, "by='fame': .*spatial"),
    "ranking by place": (lose_positions, ig.pp.select_genes, {"n_genes": 3, "by": "spatial"}, Img2GeneError, r"obsm\[\"spatial\"\]"),
    "tissue of tiles": (white_image, tiles, {"min_tissue": 0.5}, Img2GeneError, r"`A1_image` .*0\.5 .*`min_tissue`"),
    "name of tiles": (nothing, tiles, {"key_added": "table"}, Img2GeneError, "`table` exists .*`key_added`"),
    "size of tiles": (nothing, tiles, {"tile_um": 0.1}, Img2GeneError, "5,000,000 .*`tile_um`"),
    "use": (nothing, localize, {"use": "guesses"}, Img2GeneError, "use='guesses': .*measured"),
    "threshold": (nothing, localize, {"threshold": "high"}, Img2GeneError, "threshold='high': .*number"),
    "positive of several": (fit, localize, {"annotation": "section", "positive": "A1"}, Img2GeneError, "`positive` .*red, green"),
    "two spots": (
        keep_two_spots_of_a1,
        ig.tl.learning_curve,
        {"models": "mean", "fractions": (0.5,), "by": "spots", "test_on": "C"},
        Img2GeneError,
        "of section A1; .*remove",
    ),
    "no patches of a region": (patches_without_a_region, ig.pl.patches, {}, Img2GeneError, "B1_spots.*extract_patches"),
    "number of patches": (nothing, ig.pl.patches, {"n": 0}, Img2GeneError, "n=0: expected a whole number from 1"),
    "no counts": (lose_counts, ig.tl.cross_validate, {"models": "mean"}, Img2GeneError, "table.* count"),
    "no counts of a patient": (
        lose_counts_of_c,
        ig.tl.cross_validate,
        {"models": "mean", "test_on": ["C"]},
        Img2GeneError,
        "patient C .*available: A, B",
    ),
    "genes of a model": (other_genes, ig.tl.evaluate, {}, Img2GeneError, r"12 genes \(G00, "),
    "cross-validation": (nothing, ig.report, {"cv": "result.csv", "path": "page.html"}, Img2GeneError, "^cv: .*str"),
    "genes of a report": (nothing, ig.report, {"genes": [], "path": "page.html"}, Img2GeneError, r"genes=\[\]: .*None"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "call", "options", "kind", "message"), STUDIES.values(), ids=STUDIES)
def test_a_study_that_cannot_be_used_is_refused(study, spoil, call, options, kind, message):
    spoil(study)
    with pytest.raises(kind, match=message):
        call(study, **options)


def no_positions(adata):
    del adata.obsm["spatial"]


def no_images(adata):
    del adata.uns["spatial"]


def one_library(adata):
    del adata.uns["spatial"]["A2"]


def no_low_resolution(adata):
    adata.uns["spatial"]["A1"]["images"].pop("lowres", None)


LIBRARIES = {
    "positions": (no_positions, {}, MissingKeyError, r'obsm\["spatial"\]'),
    "images": (no_images, {}, MissingKeyError, r'uns\["spatial"\]'),
    "column": (nothing, {"library_key": "slide"}, MissingKeyError, "`slide` not found .*section"),
    "several libraries": (
        lambda adata: adata.obs.insert(0, "other", adata.obs["section"]),
        {"library_key": None},
        Img2GeneError,
        r"A1, A2, B1, C1.*`library_key=`",
    ),
    "unknown libraries": (one_library, {}, MissingKeyError, "libraries A2 .*available: A1, B1, C1"),
    "resolution": (no_low_resolution, {"image": "lowres"}, MissingKeyError, "`lowres` not found .*A1"),
    "patients": (nothing, {"patient_key": "half"}, Img2GeneError, "`A1` .*one, two"),
}


@pytest.mark.parametrize(("spoil", "options", "kind", "message"), LIBRARIES.values(), ids=LIBRARIES)
def test_an_anndata_without_what_a_study_needs_is_refused(study, spoil, options, kind, message):
    adata = ig.io.to_anndata(study)
    adata.obs["half"] = np.resize(["one", "two"], adata.n_obs)
    spoil(adata)
    with pytest.raises(kind, match=message):
        ig.io.from_anndata(adata, spot_um=55, **({"library_key": "section", "patient_key": "patient"} | options))


def write_folds(folder, **folds):
    (folder / "splits").mkdir()
    for name, sections in folds.items():
        pd.DataFrame({"sample_id": sections}).to_csv(folder / "splits" / f"{name}.csv", index=False)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ({"test_0": ["S1"]}, "test_0.csv .*train_0.csv"),
        ({"test_0": ["S1"], "train_0": ["S2"], "test_1": ["S2"], "train_1": ["S1", "S2"]}, "split1 trains on S1, S2"),
        ({"test_0": ["S1"], "train_0": ["S2"], "test_1": ["S1"], "train_1": ["S2"]}, "test_1.csv holds out S1"),
    ],
)
def test_folds_of_hest_that_are_no_partition_are_refused(tmp_path, folds, message):
    write_folds(tmp_path, **folds)
    with pytest.raises(Img2GeneError, match=message):
        hest.splits(tmp_path)


def test_a_fold_of_hest_without_names_of_sections_is_refused(tmp_path):
    (tmp_path / "splits").mkdir()
    for kind in ("test", "train"):
        pd.DataFrame({"slide": ["S1"]}).to_csv(tmp_path / "splits" / f"{kind}_0.csv", index=False)
    with pytest.raises(Img2GeneError, match="test_0.csv: .*sample_id .*slide"):
        hest.splits(tmp_path)


@pytest.mark.parametrize(
    ("barcodes", "obsm", "message"),
    [
        (["a", "z"], {"spatial": np.zeros((2, 2))}, "^S1: .*z"),
        (["a", "b"], {"places": np.zeros((2, 2))}, r"^S1: .*obsm\['spatial'\].*available: places"),
    ],
)
def test_sections_of_hest_without_counts_or_positions_are_refused(tmp_path, barcodes, obsm, message):
    import h5py

    for name in ("adata", "patches"):
        (tmp_path / name).mkdir()
    table = ad.AnnData(np.ones((2, 3), dtype=np.float32), obs=pd.DataFrame(index=["a", "b"]), obsm=obsm)
    table.write_h5ad(tmp_path / "adata" / "S1.h5ad")
    with h5py.File(tmp_path / "patches" / "S1.h5", "w") as file:
        file["img"] = np.zeros((2, 8, 8, 3), dtype=np.uint8)
        file["coords"] = np.zeros((2, 2))
        file["barcode"] = np.array([[name.encode()] for name in barcodes])
    with pytest.raises(Img2GeneError, match=message):
        hest.read_section(tmp_path, "S1", None)


def reference_bank():
    rows, names = np.eye(3, dtype=np.float32), np.array(["S1", "S1", "S2"])
    return ReferenceBank(rows, rows, names, names, np.zeros((3, 2), dtype=np.float32))


FAR = np.array([[0, 0], [0, 1], [1, 0], [9e4, 9e4]])
ARRAYS = {
    "dimensions of a score": (lambda: auroc(np.ones((2, 2)), np.ones((2, 2))), "2 dimensions"),
    "exclusions": (lambda: reference_bank().nearest(np.eye(3), 1, excluded=np.array(["S1"]), by="section"), "^1 .* 3 queries"),
    "centroids": (lambda: Backdoor(4, np.ones((3, 2)), np.full(2, 0.5)), r"centroids \(3, 2\) and frequency \(2,\)"),
    "profiles": (lambda: coherence(torch.ones(2, 3), torch.ones(3, 3)), "^2 embeddings and 3"),
    "permutations": (
        lambda: enrich(pd.Series({"a": 1.0, "b": 0.0}), {"x": ["a"]}, seed=0, n_permutations=1),
        "n_permutations=1: ",
    ),
    "few spots": (
        lambda: rank_genes(np.eye(4), np.array(["S1"] * 4), np.eye(4)[:, :2], np.eye(4)),
        "^4 spots of 1 sections",
    ),
    "sparse": (lambda: pearson(sp.csr_matrix(np.eye(3)), sp.csr_matrix(np.eye(3))), r"sparse .*`\.toarray\(\)`"),
    "sections of one side": (lambda: pooled_pearson([np.eye(3)], []), "1 sections .* 0"),
    "genes of sections": (lambda: pooled_pearson(*[[np.ones((3, 2)), np.ones((3, 4))]] * 2), "number of genes"),
    "several sections": (lambda: ssim(np.eye(4), np.eye(4), FAR), "^4 spots .* one section"),
    "no ceilings": (lambda: ig.pl.predictability(pd.DataFrame({"pcc": [0.5]})), r"available: pcc\)"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ARRAYS.values(), ids=ARRAYS)
def test_arrays_that_do_not_fit_are_refused(call, message):
    with pytest.raises(Img2GeneError, match=message):
        call()


@pytest.fixture(scope="module")
def result(shared_study):
    return ig.tl.cross_validate(shared_study, "ridge", keep_predictions=True, **QUICK)


def test_a_model_that_was_not_validated_is_named_with_those_that_were(result):
    with pytest.raises(MissingKeyError, match="'rigde' .*ridge"):
        result.compare("rigde")


def test_predictions_without_positions_cannot_be_drawn(result):
    predictions = result.predictions["ridge"].copy()
    del predictions.obsm["spatial"]
    with pytest.raises(Img2GeneError, match=r"`obsm\['spatial'\]`"):
        ig.pl.prediction(predictions, "G00")


def test_coverage_without_measured_spots_is_refused(trained_study, copy_of):
    sdata = copy_of(trained_study)
    lose_counts_of_c(sdata)
    with pytest.raises(Img2GeneError, match="sections C1"):
        ig.pl.calibration(sdata, sections=["C1"])


def test_a_loss_that_was_not_recorded_is_named_with_those_that_were(study):
    ig.tl.fit(study, "cmrcnet", validate_on=["C"], max_epochs=1, n_models=1, n_validations=0, dim=8, heads=2, k=5)
    with pytest.raises(MissingKeyError, match="no fame .*available: .*loss"):
        ig.pl.training(study, values="fame")


def test_a_task_of_hest_without_its_panel_is_refused(tmp_path):
    from img2gene.benchmark.cohorts import Inventory, get

    inventory = Inventory(get("hest:IDC"), tmp_path, [], {})
    with pytest.raises(Img2GeneError, match=r"var_50genes.json .*--genes"):
        inventory.panel()


def test_a_record_that_is_no_dict_is_refused(study, tmp_path):
    (tmp_path / "identity.json").write_text("[1]")
    with pytest.raises(Img2GeneError, match="identity.json"):
        ig.tl.cross_validate(study, "mean", folder=tmp_path, **QUICK)


def test_a_parameter_that_a_model_cannot_use_is_named_with_the_model(study, monkeypatch):
    class Picky(Ridge):
        name = "picky"

        def __init__(self, size):
            super().__init__(n_components=int(size))

    monkeypatch.setitem(registry._REGISTRY, "picky", Picky)
    with pytest.raises(Img2GeneError, match=r"models\['mine'\]: 'picky' .*'size': 'many'.*invalid literal"):
        ig.tl.cross_validate(study, {"mine": {"model": "picky", "size": "many"}})


def test_a_last_stage_without_weights_is_refused(tiny_encoder):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    spec = dataclasses.replace(tiny_encoder, name="idle", last_stage=("1",))
    with pytest.raises(Img2GeneError, match=r"`idle`: .*\(1\)"):
        select_stage(network, spec, last=True)


def test_predictions_never_replace_another_table(trained_study, copy_of):
    sdata = copy_of(trained_study)
    ig.pp.tile_slide(sdata, "C1_image", tile_um=100, key_added="squares")
    with pytest.raises(Img2GeneError, match="key_added='squares'"):
        ig.tl.predict(sdata, key_added="squares")


def test_an_encoder_that_is_no_torch_network_cannot_be_fine_tuned(tiny_encoder, monkeypatch):
    from img2gene.encoders import registry as encoder_registry
    from img2gene.encoders.trainable import load_trainable

    spec = dataclasses.replace(tiny_encoder, name="numpy-only", last_stage=("head",))
    monkeypatch.setitem(encoder_registry._REGISTRY, "numpy-only", spec)
    with pytest.raises(Img2GeneError, match=r"`numpy-only` declares a last stage.*MeanColour, not"):
        load_trainable(spec)


class Overflowing(registry.get("mean")):
    """Predicts infinity for spots it has not seen."""

    name = "overflowing"

    def fit(self, data, *, seed):
        super().fit(data, seed=seed)
        self.seen = data.features[:, 0]

    def predict(self, features, sections):
        values = super().predict(features, sections)
        values[~np.isin(features[:, 0], self.seen)] = np.inf
        return values


def test_predictions_that_are_not_finite_calibrate_nothing(study, monkeypatch, caplog):
    monkeypatch.setitem(registry._REGISTRY, "overflowing", Overflowing)
    caplog.set_level("WARNING")
    model = ig.tl.fit(study, "overflowing", validate_on=["C"], inplace=False)
    assert model.calibration is None
    assert "`overflowing` cannot be calibrated" in caplog.text
    assert "NaN or infinite" in caplog.text


def test_a_named_gene_that_no_small_sample_shows_is_refused(study):
    table = study["table"]
    counts = table.X.toarray()
    # One spot of each training section: a compact tenth of a section seldom holds it, and never in both repeats of all.
    counts[:, 0] = 0
    for section in np.unique(table.obs["section"]):
        counts[np.flatnonzero(table.obs["section"] == section)[0], 0] = 5
    table.X = sp.csr_matrix(counts)
    with pytest.raises(Img2GeneError, match=r"genes do not vary in a sample of fraction 0\.1: G00"):
        ig.tl.learning_curve(study, "mean", genes=["G00", "G01"], by="spots", fractions=(0.1, 1), n_repeats=3)
