"""LazySlide both ways: its tiles and features in a study, and a trained model as its predictor.

Objects are written in LazySlide's layout; tests that need the installed package compare with what it writes itself.
"""

from __future__ import annotations

import importlib
import logging
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel

import img2gene as ig
from img2gene.lazyslide import feature_predictor as predictor_module

MPP, TILE_PX, SIDE_PX = 0.25, 40, 80
WIDTH = 6


def spec(**changes) -> dict:
    """The specification of tiles of 40 px at .5 µm per pixel of a slide at .25."""
    sizes = dict.fromkeys(("height", "width", "stride_height", "stride_width"), TILE_PX)
    rest = {"mpp": 2 * MPP, "ops_level": 0, "ops_downsample": 2.0, "base_level": 0, "base_downsample": 2.0}
    return {**sizes, **rest, "tissue_name": "tissues", **changes}


def feature_table(values: np.ndarray, ids: np.ndarray, tile_key: str = "tiles") -> ad.AnnData:
    obs = pd.DataFrame({"tile_id": ids, "library_id": pd.Categorical([tile_key] * len(ids))}, index=ids.astype(str))
    table = ad.AnnData(values, obs=obs)
    return TableModel.parse(table, region=tile_key, region_key="library_id", instance_key="tile_id")


def features_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(np.float32)


def slide(n: int = 5, *, ids: np.ndarray | None = None, properties: dict | None = None, **changes) -> SpatialData:
    """A slide of ``n`` tiles in a row, with features of an encoder, as LazySlide keeps them."""
    x = 1000 + SIDE_PX * np.arange(n)
    columns = {"tile_id": np.arange(n) if ids is None else ids, "tissue_id": np.zeros(n, dtype=int)}
    frame = gpd.GeoDataFrame(columns, geometry=shapely.box(x, 200, x + SIDE_PX, 200 + SIDE_PX))
    sdata = SpatialData(shapes={"tiles": ShapesModel.parse(frame)})
    sdata.attrs = {
        "tile_spec": {"tiles": spec(**changes)},
        "slide_properties": {"mpp": MPP, "shape": [4000, 4000]} if properties is None else properties,
    }
    sdata.tables["enc_tiles"] = feature_table(features_of(n), columns["tile_id"])
    return sdata


@cache
def drawn() -> SpatialData:
    sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=40, n_genes=60, mpp=1.0)
    ig.pp.extract_patches(sdata, patch_um=20)
    return sdata


def copied() -> SpatialData:
    """Three sections with patches, whose tables and shapes a test may change."""
    sdata = drawn()
    tables = {name: table.copy() for name, table in sdata.tables.items()}
    return SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables=tables)


def cohort(tile_px: int = TILE_PX) -> SpatialData:
    """Three sections whose patches LazySlide has embedded: features that the expression follows."""
    sdata = copied()
    ig.lazyslide.add_tiles(sdata, tile_px=tile_px)
    counts = sdata["table"].X.toarray()
    values = np.log1p(counts[:, :WIDTH]).astype(np.float32)
    for region in sdata["table"].obs["region"].astype(str).unique():
        rows = np.flatnonzero(sdata["table"].obs["region"].astype(str) == region)
        key = f"{region}_tiles"
        # LazySlide stores tiles in an order of its own.
        order = np.random.default_rng(1).permutation(len(rows))
        sdata.tables[f"enc_{key}"] = feature_table(values[rows][order], order, key)
    return sdata


@pytest.fixture(scope="module")
def trained():
    sdata = cohort()
    ig.lazyslide.add_features(sdata, "enc")
    ig.tl.fit(sdata, "ridge", validate_on=["P3"])
    return ig.get.model(sdata)


def test_tiles_become_a_table_in_microns_with_their_features():
    sdata = slide()
    ig.lazyslide.read_tiles(sdata, section="S7", patient="P7")
    table = sdata.tables["lazyslide"]
    assert table.shape == (5, 0) and set(table.obs["section"]) == {"S7"} and set(table.obs["patient"]) == {"P7"}
    assert np.array_equal(table.obsm["X_enc"], features_of(5))
    assert table.obsm["patch_bbox"][1].tolist() == [200, 1080, 280, 1160]
    assert table.obsm["spatial"][1].tolist() == [1120, 240]
    from img2gene._study.study import Study

    assert np.allclose(Study.of(sdata, "lazyslide").positions[1], [240 * MPP, 1120 * MPP])
    assert Study.of(sdata, "lazyslide").record("encoder")["enc"]["patch_um"] == [20.0]


def test_features_follow_the_number_of_the_tile_not_the_row():
    sdata, order = slide(ids=np.array([7, 3, 9, 4, 1])), np.array([2, 0, 4, 1, 3])
    sdata.tables["enc_tiles"] = feature_table(features_of(5)[order], np.array([7, 3, 9, 4, 1])[order])
    table = ig.lazyslide.read_tiles(sdata, inplace=False)
    assert np.array_equal(table.obsm["X_enc"], features_of(5))
    assert "lazyslide" not in sdata.tables


def test_a_store_keeps_what_is_read(tmp_path):
    sdata = slide()
    ig.lazyslide.read_tiles(sdata)
    sdata.write(tmp_path / "slide.zarr")
    again = SpatialData.read(tmp_path / "slide.zarr")
    other = ig.lazyslide.read_tiles(again, inplace=False)
    assert np.array_equal(again.tables["lazyslide"].obsm["X_enc"], other.obsm["X_enc"])
    assert np.array_equal(again.tables["lazyslide"].obsm["patch_bbox"], other.obsm["patch_bbox"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.tables.update(enc_tiles=feature_table(features_of(4), np.arange(4))),
            "other tiles: 4 rows for the 5",
        ),
        (
            lambda s: s.tables.update(enc_tiles=feature_table(features_of(5), np.arange(1, 6))),
            "without features: 0; without",
        ),
        (lambda s: s.tables["enc_tiles"].X.__setitem__((2, 1), np.nan), "NaN or infinite features for 1 of 5 tiles: 2"),
        (lambda s: s.attrs["tile_spec"]["tiles"].update(width=20), "20 × 40 px"),
        (lambda s: s.attrs["tile_spec"]["tiles"].update(base_downsample=1.0), "are not the tiles"),
        (lambda s: s.attrs["tile_spec"].pop("tiles"), "`tiles` not found in `sdata.attrs"),
        (
            lambda s: s.attrs["slide_properties"].update(mpp=0.5),
            "at 0.25 µm per pixel of the slide, whose properties say 0.5",
        ),
    ],
    ids=["fewer", "others", "nan", "not square", "other size", "no specification", "other microns"],
)
def test_what_does_not_belong_together_is_refused_by_name(change, message):
    sdata = slide()
    change(sdata)
    before = set(sdata.tables)
    with pytest.raises(ig.Img2GeneError, match=message):
        ig.lazyslide.read_tiles(sdata, "enc")
    assert set(sdata.tables) == before


def test_features_of_other_tiles_are_refused_by_their_name():
    sdata = slide()
    sdata.shapes["fine"] = sdata.shapes["tiles"].copy()
    sdata.attrs["tile_spec"]["fine"] = spec()
    with pytest.raises(ig.Img2GeneError, match="holds features of other tiles: of tiles, not of `fine`"):
        ig.lazyslide.read_tiles(sdata, "enc_tiles", tile_key="fine")
    with pytest.raises(ig.MissingKeyError, match="feature_extraction"):
        ig.lazyslide.read_tiles(sdata, "uni2")


def test_microns_that_nobody_recorded_are_asked_for():
    sdata = slide(properties={"mpp": None}, mpp=None)
    with pytest.raises(ig.Img2GeneError, match="Pass `mpp=`"):
        ig.lazyslide.read_tiles(sdata)
    assert ig.lazyslide.read_tiles(sdata, mpp=0.5, inplace=False).n_obs == 5


def test_a_table_of_the_user_is_not_replaced():
    sdata = slide()
    with pytest.raises(ig.Img2GeneError, match="would be lost"):
        ig.lazyslide.read_tiles(sdata, key_added="enc_tiles")
    ig.lazyslide.read_tiles(sdata)
    ig.lazyslide.read_tiles(sdata, [])
    assert "X_enc" not in sdata.tables["lazyslide"].obsm


def test_tiles_of_spots_are_their_patches():
    sdata = cohort(tile_px=48)
    assert list(sdata.attrs["tile_spec"])[0] == "P1_S1_spots_tiles"
    bounds = sdata.shapes["P1_S1_spots_tiles"].bounds.to_numpy().astype(int)
    assert np.array_equal(bounds[:, [1, 0, 3, 2]], sdata["table"].obsm["patch_bbox"][:40])
    stored = sdata.attrs["tile_spec"]["P1_S1_spots_tiles"]
    side = int(bounds[0, 2] - bounds[0, 0])
    # wsidata reads this many pixels, and rounds down.
    assert int(stored["width"] * stored["ops_downsample"]) == side
    assert stored["width"] * stored["mpp"] == pytest.approx(20, rel=0.05)


def test_patches_beyond_the_image_are_refused():
    sdata = copied()
    ig.pp.extract_patches(sdata, patch_um=400)
    with pytest.raises(ig.Img2GeneError, match="reach beyond the image"):
        ig.lazyslide.add_tiles(sdata)
    ig.pp.extract_patches(sdata, patch_um=(20, 40))
    with pytest.raises(ig.Img2GeneError, match="2 fields of view"):
        ig.lazyslide.add_tiles(sdata)
    assert "tile_spec" not in sdata.attrs and not [name for name in sdata.shapes if name.endswith("_tiles")]


def test_features_reach_the_spot_of_their_tile_whatever_the_order_of_the_table():
    sdata = cohort()
    shuffled = np.random.default_rng(2).permutation(sdata["table"].n_obs)
    sdata.tables["table"] = sdata["table"][shuffled].copy()
    ig.lazyslide.add_features(sdata, "enc")
    expected = np.log1p(sdata["table"].X.toarray()[:, :WIDTH])
    assert np.allclose(sdata["table"].obsm["X_enc"], expected)
    # Other patches need other features.
    ig.pp.extract_patches(sdata, patch_um=24)
    with pytest.raises(ig.Img2GeneError, match="made from other patches"):
        ig.tl.fit(sdata, "ridge", encoder=None)


def test_tiles_that_are_laid_again_keep_the_numbers_that_feature_tables_name():
    sdata = cohort()
    sdata.tables["table"] = sdata["table"][::-1].copy()
    ig.lazyslide.add_tiles(sdata, tile_px=TILE_PX)
    ig.lazyslide.add_features(sdata, "enc")
    assert np.allclose(sdata["table"].obsm["X_enc"], np.log1p(sdata["table"].X.toarray()[:, :WIDTH]))


def test_other_tiles_under_the_name_of_features_are_refused():
    sdata = cohort()
    ig.pp.extract_patches(sdata, patch_um=24)
    with pytest.raises(ig.Img2GeneError, match="enc_P1_S1_spots_tiles hold features of other tiles"):
        ig.lazyslide.add_tiles(sdata, tile_px=TILE_PX)
    with pytest.raises(
        ig.Img2GeneError, match=r"squares of 20 µm that are not the patches of `sdata\['table'\]` \(24.0 µm\)"
    ):
        ig.lazyslide.add_features(sdata, "enc")
    ig.pp.extract_patches(sdata, patch_um=20)
    with pytest.raises(ig.Img2GeneError, match="of other spots, places or sizes"):
        ig.lazyslide.add_tiles(sdata, tile_px=2 * TILE_PX)
    ig.lazyslide.add_features(sdata, "enc")


def test_the_revision_of_features_is_added_to_their_record(trained):
    sdata = cohort()
    ig.lazyslide.add_features(sdata, "enc")
    with pytest.raises(ig.Img2GeneError, match="`X_enc` is recorded with name enc, not other"):
        ig.pp.describe_features(sdata, "X_enc", encoder="other", revision="1")
    ig.pp.describe_features(sdata, "X_enc", encoder="enc", revision="1")
    assert ig.tl.fit(sdata, "ridge", validate_on=["P3"], inplace=False).inputs["revision"] == "1"
    with pytest.raises(ig.Img2GeneError, match="revision unknown, the object has 1"):
        ig.tl.predict(sdata, trained)


def test_a_table_of_features_is_joined_by_the_numbers_of_tiles(trained):
    ids = np.random.default_rng(0).permutation(40)
    sdata = slide(40, ids=ids)
    sdata.tables["enc_tiles"] = feature_table(features_of(40), np.arange(40))
    ig.lazyslide.read_tiles(sdata)
    one, other = (
        ig.tl.predict(sdata, trained, table_key="lazyslide", inplace=False, **changes)
        for changes in ({}, {"features": "enc_tiles"})
    )
    expected = trained.predict(features_of(40)[ids], np.repeat("slide", 40))
    np.testing.assert_allclose(one.X, expected, atol=1e-5)
    np.testing.assert_allclose(other.X, expected, atol=1e-5)


def test_features_of_fewer_tiles_than_spots_are_refused():
    sdata = cohort()
    other = cohort()
    key = "P2_S1_spots_tiles"
    other.shapes[key] = other.shapes[key].iloc[5:]
    table = other.tables[f"enc_{key}"]
    other.tables[f"enc_{key}"] = table[table.obs["tile_id"] >= 5].copy()
    del sdata.tables[f"enc_{key}"]
    with pytest.raises(ig.Img2GeneError, match="5 of 40 spots of `P2_S1_spots` have none"):
        ig.lazyslide.add_features(sdata, "enc", wsi=[sdata, other])
    assert "X_enc" not in sdata["table"].obsm
    with pytest.raises(ig.MissingKeyError, match="`enc` not found"):
        ig.lazyslide.add_features(sdata, "enc")


def test_a_model_of_features_predicts_tiles_of_a_slide_in_microns(trained):
    sdata = slide(40)
    ig.lazyslide.read_tiles(sdata, section="S7")
    ig.tl.predict(sdata, trained, table_key="lazyslide")
    by_hand = trained.predict(features_of(40), np.repeat("S7", 40))
    assert np.allclose(sdata.tables["img2gene"].X, by_hand, atol=1e-5)


def test_tiles_of_another_size_are_refused_by_the_model(trained):
    sdata = slide(40, mpp=4 * MPP, properties={"mpp": None})
    ig.lazyslide.read_tiles(sdata)
    with pytest.raises(ig.Img2GeneError, match="fields of view"):
        ig.tl.predict(sdata, trained, table_key="lazyslide")


def run_in_batches(model, features: np.ndarray, size: int) -> np.ndarray:
    """Call a predictor as LazySlide does."""
    spans = [(0, len(features))] if model.whole_slide else [(i, i + size) for i in range(0, len(features), size)]
    parts = [np.column_stack(list(model.predict(features[start:stop]).values())) for start, stop in spans]
    return np.concatenate(parts)


def test_predictions_do_not_depend_on_the_size_of_batches(trained):
    model, features = ig.lazyslide.predictor(trained), features_of(48)
    whole = run_in_batches(model, features, 16)
    assert np.array_equal(whole, run_in_batches(model, features, 1024))
    assert np.array_equal(whole, trained.predict(features, np.repeat("any", 48)))
    # What batches would do to a model that centres by section.
    in_parts = np.concatenate([trained.predict(part, np.repeat("any", 16)) for part in np.split(features, 3)])
    assert np.abs(in_parts - whole).max() > 0.01
    assert list(model.predict(features)) == trained.genes


def test_a_part_of_the_slide_is_refused_where_sections_are_named(trained):
    model = ig.lazyslide.predictor(trained, sections=np.repeat([0, 1], 24))
    apart = [trained.predict(part, np.repeat("one", 24)) for part in np.split(features_of(48), 2)]
    assert np.allclose(run_in_batches(model, features_of(48), 16), np.concatenate(apart), atol=1e-5)
    with pytest.raises(ig.Img2GeneError, match="got 16 tiles, but `sections` names 48"):
        model.predict(features_of(16))


def test_positions_are_microns_and_row_first(trained, monkeypatch):
    seen = {}
    fake = SimpleNamespace(
        name="spatial",
        inputs={"name": "enc", "width": WIDTH},
        extra_inputs=("positions",),
        depth_scale=None,
        genes=["A"],
        predict=lambda features, sections, positions: (seen.update(at=positions), np.ones((len(features), 1)))[1],
    )
    model = predictor_module.FeaturePredictor(fake, None, MPP)
    assert model.needs_coords
    model.predict(features_of(2), np.array([[100, 8], [200, 4]]))
    assert seen["at"].tolist() == [[2, 25], [1, 50]]
    with pytest.raises(ig.Img2GeneError, match="coords="):
        model.predict(features_of(2))
    assert predictor_module._model_problems(fake, None)[0].endswith("pass `mpp=wsi.properties.mpp`.")


def test_a_release_of_lazyslide_that_batches_every_model_is_refused(trained, monkeypatch):
    monkeypatch.setattr(predictor_module, "version", lambda name: "0.12.0")
    with pytest.raises(ig.Img2GeneError, match=r"LazySlide 0\.12\.0 shows models a part"):
        ig.lazyslide.predictor(trained)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ig.Img2GeneError, match="expected a model"):
        ig.lazyslide.predictor(3)
    with pytest.raises(ig.Img2GeneError):
        ig.lazyslide.predictor(tmp_path / "none.img2gene")


def picture(height: int = 640, width: int = 960) -> np.ndarray:
    """Smooth colours, so that each tile has another mean."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 251]).astype(np.uint8)


def mean_colour(images):
    """An encoder: the mean colour of a tile, by number of the channel."""
    return images.float().mean(dim=(2, 3)).repeat(1, 2)


@cache
def declared_operators():
    """Declare operators of torchvision that do not load beside a build of torch for another device; no test calls them."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library


def installed():
    """LazySlide, wsidata and torch, or the test is skipped."""
    if find_spec("lazyslide") is None:
        pytest.skip("needs lazyslide: make test-partners")
    declared_operators()
    return tuple(importlib.import_module(name) for name in ("lazyslide", "wsidata", "torch"))


@pytest.fixture
def opened():
    """A slide that LazySlide itself has tiled and embedded."""
    zs, wsidata, torch = installed()
    image = Image2DModel.parse(picture(), dims=("c", "y", "x"), c_coords=["r", "g", "b"])
    wsi = wsidata.open_wsi(SpatialData(images={"wsi": image}), image_key="wsi")
    wsi.set_mpp(MPP)
    # Two pieces of tissue, between which a row of tiles is missing.
    wsidata.io.add_tissues(wsi, "tissues", [shapely.box(0, 0, 960, 240), shapely.box(0, 400, 960, 640)])
    zs.pp.tile_tissues(wsi, TILE_PX, mpp=2 * MPP)

    def as_tensor(tile):
        return torch.tensor(np.asarray(tile).copy()).permute(2, 0, 1)

    zs.tl.feature_extraction(
        wsi, mean_colour, tile_key="tiles", key_added="enc_tiles", transform=as_tensor, pbar=False, device="cpu"
    )
    return zs, wsi


@pytest.mark.filterwarnings("ignore")
def test_the_written_layout_is_that_of_the_installed_lazyslide(opened):
    _, wsi = opened
    ours = slide()
    assert set(wsi.attrs["tile_spec"]["tiles"]) == set(ours.attrs["tile_spec"]["tiles"])
    assert wsi.attrs["slide_properties"]["mpp"] == MPP
    assert {*ours.tables["enc_tiles"].obs} <= {*wsi.tables["enc_tiles"].obs}
    assert {*ours.shapes["tiles"]} == {*wsi.shapes["tiles"]}


@pytest.mark.filterwarnings("ignore")
def test_tiles_of_the_installed_lazyslide_are_read_with_their_features(opened):
    _, wsi = opened
    ig.lazyslide.read_tiles(wsi)
    table, image = wsi.tables["lazyslide"], picture()
    assert table.n_obs == len(wsi.shapes["tiles"]) > 50
    for row in (0, table.n_obs - 1):
        y0, x0, y1, x1 = table.obsm["patch_bbox"][row]
        assert np.allclose(table.obsm["X_enc"][row, :3], image[:, y0:y1, x0:x1].mean(axis=(1, 2)), atol=1)


@pytest.mark.filterwarnings("ignore")
def test_the_installed_lazyslide_predicts_with_a_trained_model(opened, trained, caplog):
    zs, wsi = opened
    model = ig.lazyslide.predictor(trained)
    with caplog.at_level(logging.ERROR):
        zs.tl.feature_prediction(wsi, model, "enc", batch_size=16, key_added="ours", pbar=False, device="cpu")
    ig.lazyslide.read_tiles(wsi)
    ig.tl.predict(wsi, trained, table_key="lazyslide", uncertainty=False)
    assert list(wsi.tables["ours"].var_names) == trained.genes
    assert np.allclose(wsi.tables["ours"].X, wsi.tables["img2gene"].X, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_spots_get_features_of_the_installed_lazyslide():
    zs, wsidata, torch = installed()
    sdata, slides = copied(), []
    ig.lazyslide.add_tiles(sdata)
    for section in ("P1_S1", "P2_S1", "P3_S1"):
        wsi = wsidata.open_wsi(sdata, image_key=f"{section}_image")
        key = f"{section}_spots_tiles"
        zs.tl.feature_extraction(
            wsi,
            mean_colour,
            tile_key=key,
            key_added=f"enc_{key}",
            transform=lambda tile: torch.tensor(np.asarray(tile).copy()).permute(2, 0, 1),
            pbar=False,
            device="cpu",
        )
        slides.append(wsi)
    ig.lazyslide.add_features(sdata, "enc", wsi=slides)
    ours = ig.get.patches(sdata, np.arange(120)).mean(axis=(1, 2))
    assert np.allclose(sdata["table"].obsm["X_enc"][:, :3], ours, atol=1.5)
    ig.tl.fit(sdata, "ridge", validate_on=["P3"])


def test_a_model_of_unlimited_depth_predicts_on_the_same_scale_in_lazyslide():
    sdata = cohort()
    ig.lazyslide.add_features(sdata, "enc")
    model = ig.tl.fit(sdata, "ridge", validate_on=["P3"], debias="depth", inplace=False)
    rows = (sdata["table"].obs["patient"] == "P3").to_numpy()
    there = ig.lazyslide.predictor(model).predict(sdata["table"].obsm["X_enc"][rows])
    here = ig.tl.predict(sdata, model, inplace=False).X[rows]
    np.testing.assert_allclose(np.column_stack([there[gene] for gene in model.genes]), here, atol=1e-5)
    assert np.abs(here - model.predict(sdata["table"].obsm["X_enc"][rows], np.repeat("P3", rows.sum()))).max() > 0.1
