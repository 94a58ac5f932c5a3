"""Embeddings in a store, and embeddings that are kept between calls."""

import dataclasses
import errno

import numpy as np
import pytest
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

import img2gene as ig
from img2gene._files import patch_cache
from img2gene.io import table_store
from img2gene.pp import _stored_embedding


class Counting:
    """Mean and SD of each colour; counts the patches that are encoded."""

    width = 6
    n_encoded = 0
    fails_after = None

    def __call__(self, patches, side=None):
        type(self).n_encoded += len(patches)
        if self.fails_after is not None and type(self).n_encoded > self.fails_after:
            raise KeyboardInterrupt
        flat = patches.reshape(len(patches), -1, 3).astype(np.float64)
        return np.concatenate([flat.mean(axis=1), flat.std(axis=1)], axis=1).astype(np.float32)

    def tokens(self, patches, side, grid):
        features = self(patches, side)
        return features, np.repeat(features[:, None], grid**2, axis=1) + np.arange(grid**2)[:, None]


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(Counting, "n_encoded", 0)
    monkeypatch.setattr(Counting, "fails_after", None)
    build = lambda spec, **options: Counting()
    spec = dataclasses.replace(ig.encoders.get("tiny"), name="counting", token_width=6, build=build)
    monkeypatch.setitem(ig.encoders.registry._REGISTRY, "counting", spec)
    return Counting


@pytest.fixture
def few_rows(monkeypatch):
    monkeypatch.setattr(table_store, "_MOST_ROWS", 30)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    before = ig.settings.cache_dir
    ig.settings.cache_dir = tmp_path / "cache"
    yield tmp_path / "cache"
    object.__setattr__(ig.settings, "cache_dir", before)


def shuffled(study):
    table = study["table"]
    study.tables["table"] = table[np.random.default_rng(0).permutation(table.n_obs)].copy()
    return study


@pytest.mark.parametrize("tokens", [None, 9])
def test_a_store_holds_what_the_study_would(study, counting, tmp_path, few_rows, tokens):
    shuffled(study)
    expected = ig.pp.embed_patches(study, "counting", tokens=tokens, inplace=False)["obsm"]
    ig.pp.embed_patches(study, "counting", tokens=tokens, out=tmp_path / "embedded.zarr")
    for key, values in expected.items():
        found = study["table"].obsm[key]
        assert hasattr(found, "compute") and found.dtype == values.dtype
        np.testing.assert_array_equal(found.compute(), values)
    opened = ig.io.open_table(tmp_path / "embedded.zarr")
    assert opened.obs_names.equals(study["table"].obs_names) and hasattr(opened.obsm["X_counting"], "compute")
    assert [path.name for path in tmp_path.iterdir()] == ["embedded.zarr"]


def test_training_and_prediction_read_it_from_the_store(study, counting, tmp_path, few_rows):
    in_memory = shuffled(study)
    ig.pp.embed_patches(in_memory, "counting")
    ig.tl.fit(in_memory, "ridge", encoder="counting", validate_on=["C"])
    expected = ig.tl.predict(in_memory, inplace=False)
    ig.pp.embed_patches(study, "counting", out=tmp_path / "embedded.zarr")
    study["table"].obs["in_tissue"] = 1
    found = ig.tl.predict(study, out=tmp_path / "predicted.zarr", inplace=False)
    np.testing.assert_allclose(found.X.compute(), expected.X, atol=1e-5)
    model = ig.get.model(study)
    ig.tl.fit(study, "ridge", encoder="counting", validate_on=["C"])
    assert ig.get.model(study).fingerprint == model.fingerprint
    study.write(tmp_path / "study.zarr")
    np.testing.assert_array_equal(
        read_zarr(tmp_path / "study.zarr")["table"].obsm["X_counting"], study["table"].obsm["X_counting"].compute()
    )


def test_off_the_tissue_rows_of_a_store_are_left_out(study, counting, tmp_path):
    ig.pp.embed_patches(study, "counting", out=tmp_path / "embedded.zarr")
    ig.tl.fit(study, "ridge", encoder="counting", validate_on=["C"])
    study["table"].obs["in_tissue"] = (np.arange(196) % 5 > 0).astype(int)
    expected = ig.tl.predict(study, inplace=False)
    found = ig.tl.predict(study, out=tmp_path / "predicted.zarr", inplace=False)
    np.testing.assert_allclose(found.X.compute(), expected.X, atol=1e-5, equal_nan=True)


def test_an_interrupted_call_encodes_only_what_is_left(study, counting, tmp_path, few_rows, snapshot):
    shuffled(study)
    expected = ig.pp.embed_patches(study, "counting", inplace=False)["obsm"]["X_counting"]
    before, counting.n_encoded = snapshot(study["table"]), 0
    # Two orientations of 100 patches.
    counting.fails_after = 200
    with pytest.raises(KeyboardInterrupt):
        ig.pp.embed_patches(study, "counting", out=tmp_path / "embedded.zarr")
    assert snapshot(study["table"]) == before and not (tmp_path / "embedded.zarr").exists()
    counting.n_encoded, counting.fails_after = 0, None
    ig.pp.embed_patches(study, "counting", out=tmp_path / "embedded.zarr")
    # Three files of at least 30 patches were finished.
    assert counting.n_encoded <= 2 * (196 - 90)
    np.testing.assert_array_equal(study["table"].obsm["X_counting"].compute(), expected)
    counting.n_encoded = 0
    ig.pp.embed_patches(study, "counting", out=tmp_path / "embedded.zarr")
    assert counting.n_encoded == 0


def test_a_kill_loses_512_spots_at_most(counting, tmp_path):
    side = 24 * 40
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side), dtype=np.uint8)
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], chunks=(3, 256, 256))
    sdata = SpatialData(images={"image": image})
    ig.pp.tile_slide(sdata, "image", tile_um=24, patch_um=24, patch_px=32, mpp=1.0, min_tissue=0)
    assert sdata["slide_tiles"].n_obs == 1600
    options = {"table_key": "slide_tiles", "orientations": 1, "out": tmp_path / "embedded.zarr"}
    counting.fails_after = 1400
    with pytest.raises(KeyboardInterrupt):
        ig.pp.embed_patches(sdata, "counting", **options)
    counting.n_encoded, counting.fails_after = 0, None
    ig.pp.embed_patches(sdata, "counting", **options)
    assert counting.n_encoded == 1600 - 2 * 512
    features = sdata["slide_tiles"].obsm["X_counting"]
    # Chunks of the store stay large.
    assert features.chunks[0] == (1600,)
    ig.pp.embed_patches(sdata, "counting", table_key="slide_tiles", orientations=1)
    np.testing.assert_array_equal(features.compute(), sdata["slide_tiles"].obsm["X_counting"])


def test_an_embedding_of_other_patches_is_refused(study, counting, tmp_path):
    ig.pp.embed_patches(study, "counting", out=tmp_path / "embedded.zarr")
    with pytest.raises(ig.Img2GeneError, match="holds a embedding with other encoder|holds an embedding"):
        ig.pp.embed_patches(study, "counting", orientations=1, out=tmp_path / "embedded.zarr")
    ig.pp.extract_patches(study, patch_um=80, patch_px=32)
    with pytest.raises(ig.Img2GeneError, match="with other data, encoder, patches"):
        ig.pp.embed_patches(study, "counting", out=tmp_path / "embedded.zarr")


def test_a_full_disk_is_named_and_what_is_finished_is_kept(study, counting, tmp_path, few_rows, snapshot):
    before = snapshot(study["table"])

    def fails(file, values):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_stored_embedding.np, "save", fails)
        with pytest.raises(ig.Img2GeneError, match=r"No space left on device.*make the same call again"):
            ig.pp.embed_patches(study, "counting", out=tmp_path / "embedded.zarr")
    assert snapshot(study["table"]) == before
    ig.pp.embed_patches(study, "counting", out=tmp_path / "embedded.zarr")


@pytest.mark.parametrize("tokens", [None, 9])
def test_a_second_call_encodes_nothing(study, counting, cache, tokens, copy_of):
    first = ig.pp.embed_patches(study, "counting", tokens=tokens, inplace=False)["obsm"]
    assert counting.n_encoded == 2 * 196
    again = ig.pp.embed_patches(shuffled(copy_of(study)), "counting", tokens=tokens, inplace=False)["obsm"]
    assert counting.n_encoded == 2 * 196
    order = np.random.default_rng(0).permutation(196)
    for key, values in first.items():
        np.testing.assert_array_equal(again[key], values[order])


def test_only_new_pixels_are_encoded(study, counting, cache):
    ig.pp.embed_patches(study, "counting")
    counting.n_encoded = 0
    image = study.images["C1_image"]
    pixels = np.array(image.values)
    pixels[:, :60, :60] = 255 - pixels[:, :60, :60]
    places = get_transformation(image, get_all=True)
    study.images["C1_image"] = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=places)
    ig.pp.extract_patches(study, patch_um=60, patch_px=32)
    changed = ig.pp.embed_patches(study, "counting", inplace=False)["obsm"]["X_counting"]
    assert 0 < counting.n_encoded < 2 * 49
    ig.settings.cache_dir = cache / "other"
    np.testing.assert_array_equal(ig.pp.embed_patches(study, "counting", inplace=False)["obsm"]["X_counting"], changed)


@pytest.mark.parametrize("change", ["revision", "orientations", "patch_um"])
def test_other_settings_share_nothing(study, counting, cache, monkeypatch, change):
    ig.pp.embed_patches(study, "counting")
    counting.n_encoded, arguments = 0, {"orientations": 1} if change == "orientations" else {}
    if change == "revision":
        spec = dataclasses.replace(ig.encoders.get("counting"), revision="2")
        monkeypatch.setitem(ig.encoders.registry._REGISTRY, "counting", spec)
    elif change == "patch_um":
        ig.pp.extract_patches(study, patch_um=80, patch_px=32)
    ig.pp.embed_patches(study, "counting", **arguments)
    assert counting.n_encoded == 196 * (1 if change == "orientations" else 2)


def test_a_file_that_changed_is_never_used(study, counting, cache, caplog):
    expected = ig.pp.embed_patches(study, "counting", inplace=False)["obsm"]["X_counting"]
    counting.n_encoded = 0
    (path,) = cache.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again = ig.pp.embed_patches(study, "counting", inplace=False)["obsm"]["X_counting"]
    np.testing.assert_array_equal(again, expected)
    assert counting.n_encoded == 2 * 196 and "differs from its digest" in caplog.text


def test_no_cache_is_kept_until_a_folder_is_set(study, counting, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    object.__setattr__(ig.settings, "cache_dir", tmp_path / "img2gene")
    assert not ig.settings.caches_embeddings
    ig.pp.embed_patches(study, "counting")
    assert not list(tmp_path.iterdir())


def test_none_turns_the_cache_off_again(study, counting, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert ig.settings.caches_embeddings
    ig.settings.cache_dir = None
    assert not ig.settings.caches_embeddings
    # Downloads still have a folder.
    assert ig.settings.cache_dir == tmp_path / "home" / "img2gene"
    ig.pp.embed_patches(study, "counting")
    assert not cache.exists() and not (tmp_path / "home").exists()
    ig.settings.cache_dir = cache
    ig.pp.embed_patches(study, "counting")
    assert counting.n_encoded == 2 * 2 * 196
    ig.pp.embed_patches(study, "counting")
    assert counting.n_encoded == 2 * 2 * 196


def test_a_folder_that_cannot_be_written_costs_nothing_but_a_warning(study, counting, cache, caplog, monkeypatch):
    def fails(path, content):
        raise ig.Img2GeneError("a read-only file system")

    monkeypatch.setattr(patch_cache, "write_bytes", fails)
    ig.pp.embed_patches(study, "counting")
    assert "X_counting" in study["table"].obsm and caplog.text.count("are not kept") == 1


def test_cache_and_store_go_together(study, counting, cache, tmp_path):
    expected = ig.pp.embed_patches(study, "counting", inplace=False)["obsm"]["X_counting"]
    counting.n_encoded = 0
    ig.pp.embed_patches(study, "counting", out=tmp_path / "embedded.zarr")
    assert counting.n_encoded == 0
    np.testing.assert_array_equal(study["table"].obsm["X_counting"].compute(), expected)


def test_restained_patches_are_encoded_once(study, counting, cache):
    first = ig.pp.embed_patches(study, "counting", restained=6, inplace=False)["obsm"]["X_counting_restained"]
    counting.n_encoded = 0
    second = ig.pp.embed_patches(study, "counting", restained=6, inplace=False)["obsm"]["X_counting_restained"]
    assert counting.n_encoded == 0
    assert (first != second).nnz == 0


def test_stored_changes_are_kept_while_their_patches_are_the_same(study, counting, monkeypatch):
    ig.pp.embed_patches(study, "counting", restained=6)
    kept = study["table"].obsm["X_counting_restained"].copy()

    def refuse(*_):
        raise AssertionError("patches are restained again")

    with monkeypatch.context() as patch:
        patch.setattr("img2gene._study.restaining.restained", refuse)
        ig.pp.embed_patches(study, "counting", restained=6)
        assert (study["table"].obsm["X_counting_restained"] != kept).nnz == 0
        with pytest.raises(AssertionError, match="restained again"):
            ig.pp.embed_patches(study, "counting", restained=9)
    ig.pp.embed_patches(study, "counting", restained=0)
    assert "X_counting_restained" not in study["table"].obsm
