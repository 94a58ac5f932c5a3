"""Tokens: what each says of its cell, that they turn with the patch, and that they survive whatever a study goes through."""

import sys
import types
from dataclasses import replace
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import torch
from spatialdata import read_zarr

import img2gene as ig
from img2gene import _schema, encoders
from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene._study import inputs
from img2gene._study.embedding import encode
from img2gene._study.study import Study
from img2gene.encoders.base import normalise, resize
from img2gene.encoders.efficientnet.network import PooledStages, load_network
from img2gene.encoders.timm_hub import TimmNetwork
from img2gene.encoders.tokens import cell_means, cells, pool_tokens

KEY = "X_color-texture_tokens"
EFFICIENTNETS = ["efficientnet-lite0", "efficientnet-lite0-stages", "efficientnet-lite0-head"]


def pixels(n, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def smooth(n, side, seed=0):
    """Patches of 36 colours, so that no two places look alike."""
    return np.repeat(np.repeat(pixels(n, 6, seed), side // 6, axis=1), side // 6, axis=2)


@pytest.fixture
def section(make_section):
    sdata = make_section("S1", "P1", n_side=3)
    ig.pp.extract_patches(sdata, patch_um=(60, 120), patch_px=48)
    return sdata


@pytest.fixture
def embedded(section):
    ig.pp.embed_patches(section, "color-texture", tokens=9, orientations=1)
    return section


def stored(sdata, table_key="table"):
    table = sdata[table_key]
    study = Study(SimpleNamespace(tables={table_key: table}), table_key)
    return inputs.tokens(study, study.record("encoder")["color-texture"])


def test_cells_are_those_of_adaptive_pooling():
    assert cells(6, 3) == [(0, 2), (2, 4), (4, 6)]
    assert cells(7, 3) == [(0, 3), (2, 5), (4, 7)]
    assert cells(2, 3) == [(0, 1), (0, 2), (1, 2)]
    np.testing.assert_allclose(cell_means(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    maps = torch.randn(2, 4, 7, 7), torch.randn(2, 3, 56, 56)
    for grid in (3, 4, 7, 9):
        expected = torch.cat([torch.nn.functional.adaptive_avg_pool2d(stage, grid) for stage in maps], dim=1)
        tokens = pool_tokens(maps, grid)
        assert tokens.shape == (2, grid**2, 7)
        torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_tokens_of_colour_and_texture_are_the_features_of_each_cell():
    encoder = encoders.load("color-texture")
    for patches in (pixels(2, 96), np.repeat(np.repeat(pixels(2, 3), 32, axis=1), 32, axis=2)):
        features, tokens = encoder.tokens(patches, 96, 3)
        np.testing.assert_array_equal(features, encoder(patches, 96))
        assert tokens.shape == (2, 9, encoders.get("color-texture").token_width)
        for i in range(9):
            top, left = 32 * (i // 3), 32 * (i % 3)
            np.testing.assert_array_equal(tokens[:, i], encoder(patches[:, top : top + 32, left : left + 32]))
    # nine flat cells: the mean of a token's colours is that of its cell, and nothing varies
    np.testing.assert_allclose(tokens[..., :3], patches[:, 16::32, 16::32].reshape(2, 9, 3) / 255, atol=1e-6)
    np.testing.assert_allclose(tokens[..., 3:6], 0, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_the_mean_over_tokens_is_the_pooled_mean_where_the_grid_divides_the_maps(backend):
    if backend == "onnx":
        pytest.importorskip("onnxruntime")
    encoder = encoders.load("efficientnet-lite0", backend=backend, device="cpu", amp=False)
    patches = smooth(1, 222)
    features, tokens = encoder.tokens(patches, 224, 7)
    assert tokens.shape == (1, 49, 448)
    np.testing.assert_allclose(tokens.mean(axis=1), features[:, :448], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features, encoder(patches, 224), rtol=1e-6, atol=1e-6)


def test_tokens_are_cell_means_of_the_stage_maps():
    network = load_network()
    images = normalise(resize(pixels(1, 64), 64), (0.5,) * 3, (0.5,) * 3)
    with torch.inference_mode():
        maps = [stage.numpy() for stage in network.stage_maps(images)[2:4]]
        _, tokens = PooledStages(network, 2, 3).with_tokens(images, 4)
    # maps of 16 and 8 px: cells of 4 and 2 px
    for token, row, column in ((0, 0, 0), (3, 0, 3), (6, 1, 2)):
        parts = [
            stage[0, :, row * side : (row + 1) * side, column * side : (column + 1) * side].mean(axis=(1, 2))
            for stage, side in zip(maps, (4, 2), strict=True)
        ]
        np.testing.assert_allclose(tokens[0, token], np.concatenate(parts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EFFICIENTNETS)
def test_torch_and_onnxruntime_agree_on_tokens(name):
    pytest.importorskip("onnxruntime")
    one, two = (encoders.load(name, backend=backend, device="cpu", amp=False) for backend in ("torch", "onnx"))
    for side, grid in ((96, 3), (75, 4)):
        patches = pixels(2, side)
        expected, results = (encoder.tokens(patches, side, grid) for encoder in (one, two))
        assert results[1].shape == (2, grid**2, encoders.get(name).token_width)
        for theirs, ours, alone in zip(expected, results, (two(patches), None), strict=True):
            assert ours.dtype == np.float32
            assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
            if alone is not None:
                np.testing.assert_allclose(ours, alone, rtol=1e-6, atol=1e-6)
    assert [part.shape for part in two.tokens(patches[:0], 75, 4)] == [(0, one.width), (0, 16, results[1].shape[2])]


class Convolutional(torch.nn.Module):
    """What is called of a timm network that gives maps."""

    def forward_features(self, x):
        return torch.nn.functional.avg_pool2d(x, 8)

    def forward_head(self, unpooled):
        return unpooled.mean(dim=(2, 3))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


class Transformer(Convolutional):
    """What is called of a timm network that gives a row of tokens, the first of them no part of the image."""

    num_prefix_tokens = 2

    def forward_features(self, x):
        patches = super().forward_features(x).flatten(2).transpose(1, 2)
        return torch.cat([torch.full_like(patches[:, :2], 1e3), patches], dim=1)

    def forward_head(self, unpooled):
        return unpooled[:, 0]


@pytest.mark.parametrize("network", [Convolutional(), Transformer()])
def test_tokens_of_timm_networks_lie_where_the_patch_has_them(network):
    images = torch.randn(2, 3, 48, 48)
    features, tokens = TimmNetwork(network).with_tokens(images, 3)
    torch.testing.assert_close(features, TimmNetwork(network)(images))
    expected = images.unflatten(3, (3, 16)).unflatten(2, (3, 16)).mean(dim=(3, 5))
    torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


class Wide(Convolutional):
    """Repeats its channels to the width of the encoder."""

    def forward_features(self, x):
        return super().forward_features(x)[:, torch.arange(encoders.get("resnet50").width) % 3]


def test_a_timm_encoder_gives_features_and_tokens(monkeypatch):
    timm = types.SimpleNamespace(create_model=lambda name, **options: Wide())
    monkeypatch.setitem(sys.modules, "timm", timm)
    encoder = encoders.load("resnet50", device="cpu", amp=False)
    patches = pixels(2, 48)
    features, tokens = encoder.tokens(patches, 48, 3)
    np.testing.assert_array_equal(features, encoder(patches, 48))
    assert tokens.shape == (2, 9, 2048)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("name", "grid"), [("efficientnet-lite0", 3), ("color-texture", 5)])
def test_tokens_turn_with_the_patch(name, grid, mirrored, turns):
    def turn(values):
        return np.rot90(values[:, :, ::-1] if mirrored else values, turns, axes=(1, 2))

    encoder = encoders.load(name, backend="torch", device="cpu", amp=False)
    patches = smooth(1, 48)
    one, two = (encode(encoder, [view], 48, 8, grid) for view in (patches, turn(patches)))
    np.testing.assert_allclose(two[0], one[0], rtol=1e-3, atol=1e-3)
    expected = turn(one[1].reshape(1, grid, grid, -1)).reshape(one[1].shape)
    np.testing.assert_allclose(two[1], expected, rtol=1e-3, atol=1e-3)
    if turns or mirrored:
        assert np.abs(two[1] - one[1]).max() > 0.1


@pytest.mark.parametrize("orientations", [1, 2, 4, 8])
def test_orientations_average_what_they_see_at_the_same_place(orientations):
    class Cells:
        """Mean colour of the patch and of each cell: the same whatever the orientation."""

        def __call__(self, patches, side):
            return patches.mean(axis=(1, 2)).astype(np.float32)

        def tokens(self, patches, side, grid):
            parts = patches.reshape(len(patches), grid, side // grid, grid, side // grid, 3)
            return self(patches, side), parts.mean(axis=(2, 4)).reshape(len(patches), -1, 3).astype(np.float32)

    patches = pixels(3, 12)
    upright = Cells().tokens(patches, 12, 3)
    features, tokens = encode(Cells(), [patches, patches], 12, orientations, 3)
    np.testing.assert_allclose(tokens, upright[1], rtol=1e-5)
    np.testing.assert_allclose(features, np.hstack([upright[0]] * 2), rtol=1e-5)
    assert features.dtype == tokens.dtype == np.float32


@pytest.mark.parametrize("name", ["color-texture", "efficientnet-lite0"])
def test_neither_batch_size_nor_tokens_change_what_is_embedded(section, name):
    def embed(**options):
        return ig.pp.embed_patches(section, name, inplace=False, **options)["obsm"]

    plain = embed()
    assert list(plain) == [f"X_{name}"]
    expected = embed(tokens=16, batch_size=16)
    assert expected[f"X_{name}_tokens"].shape == (9, 16, encoders.get(name).token_width)
    assert expected[f"X_{name}_tokens"].dtype == np.float16
    for update in (plain, embed(tokens=16, batch_size=2, num_workers=1), embed(tokens=16, batch_size=5)):
        for key, values in update.items():
            tolerance = 1e-6 if key == f"X_{name}" else 2e-3
            np.testing.assert_allclose(values, expected[key], rtol=tolerance, atol=tolerance)


def test_tokens_are_those_of_the_first_field_of_view(embedded):
    patches = ig.get.patches(embedded, range(9), field=0)
    _, expected = encoders.load("color-texture").tokens(patches, 96, 3)
    np.testing.assert_array_equal(stored(embedded), expected.astype(np.float16))


def test_the_record_tells_of_tokens_and_embedding_anew_without_removes_them(embedded, snapshot):
    table = embedded["table"]
    identity = _schema.read_json(table, "encoder")["color-texture"]
    assert {"tokens": 9, "token_width": 50, "width": 100}.items() <= identity.items()
    ig.pp.embed_patches(embedded, "color-texture", tokens=16, orientations=1)
    assert stored(embedded).shape == (9, 16, 50)
    before = snapshot(table)
    update = ig.pp.embed_patches(embedded, "color-texture", orientations=1, inplace=False)
    assert update["obsm"][KEY] is None
    assert snapshot(table) == before
    ig.pp.embed_patches(embedded, "color-texture", orientations=1)
    assert KEY not in table.obsm
    assert stored(embedded) is None
    left = _schema.read_json(table, "encoder")["color-texture"]
    assert left == {key: value for key, value in identity.items() if key not in ("tokens", "token_width")}


@pytest.mark.parametrize("tokens", [0, 1, 4, 8, 10, -9, 9.0, "9", True])
def test_only_squares_from_nine_on_are_grids(section, snapshot, tokens):
    before = snapshot(section["table"])
    with pytest.raises(Img2GeneError, match=rf"tokens={tokens!r}: expected .* of a square grid, 9, 16, 25"):
        ig.pp.embed_patches(section, "color-texture", tokens=tokens)
    assert snapshot(section["table"]) == before


def test_a_grid_finer_than_the_input_or_an_encoder_without_tokens_is_refused(section):
    with pytest.raises(Img2GeneError, match="a grid of 49 × 49 cells is finer than the input of 48 px"):
        ig.pp.embed_patches(section, "efficientnet-lite0", tokens=49**2)
    with pytest.raises(
        Img2GeneError, match=r"`tiny` gives no tokens \(available: efficientnet-lite0, .*Choose one that"
    ):
        ig.pp.embed_patches(section, "tiny", tokens=9)


def test_what_a_specification_says_of_tokens_is_checked(tiny_encoder):
    with pytest.raises(Img2GeneError, match="token_width=-1: expected a whole number, 0 or more"):
        replace(tiny_encoder, token_width=-1)
    with pytest.raises(Img2GeneError, match="the ending `_tokens` names the tokens of another encoder"):
        replace(tiny_encoder, name="tiny_tokens")
    assert encoders.list()["token_width"].to_dict().items() >= {"tiny": 0, "uni": 1024, "color-texture": 50}.items()


def test_faulty_tokens_are_named(embedded):
    table = embedded["table"]
    good = table.obsm[KEY].copy()
    table.obsm[KEY] = good[:, :4]
    with pytest.raises(Img2GeneError, match=r"has shape \(9, 4, 50\), its record says \(9, 9, 50\).*tokens=9\)` again"):
        stored(embedded)
    table.obsm[KEY] = good.copy()
    table.obsm[KEY][2, 3, 4] = np.nan
    table.obsm[KEY][5, 0, :2] = np.inf, -np.inf
    with pytest.raises(Img2GeneError, match="is NaN or infinite in 2 rows.*tokens=9"):
        stored(embedded)
    del table.obsm[KEY]
    with pytest.raises(MissingKeyError, match="`X_color-texture_tokens` not found .*tokens=9"):
        stored(embedded)


def test_tokens_survive_storage_subsets_and_conversion(embedded, tmp_path):
    expected = stored(embedded)
    embedded.write(tmp_path / "study.zarr")
    again = read_zarr(tmp_path / "study.zarr")
    assert stored(again).dtype == np.float16
    np.testing.assert_array_equal(stored(again), expected)
    again.tables["table"] = again["table"][[4, 1]].copy()
    np.testing.assert_array_equal(stored(again), expected[[4, 1]])
    adata = ig.io.to_anndata(embedded)
    back = ig.io.from_anndata(adata, spot_um=55, library_key="section", patient_key="patient")
    np.testing.assert_array_equal(back["table"].obsm[KEY], expected)
    adata.write_h5ad(tmp_path / "study.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "study.h5ad").obsm[KEY], expected)


def test_joined_sections_keep_their_tokens(embedded, make_section):
    other = make_section("S2", "P2", seed=1, n_side=3)
    ig.pp.extract_patches(other, patch_um=(60, 120), patch_px=48)
    for tokens in (9, 16, None):
        ig.pp.embed_patches(other, "color-texture", tokens=tokens, orientations=1)
        if tokens == 16:
            with pytest.raises(Img2GeneError, match=r"different widths \(16 × 50, 9 × 50\)\. Run .*embed_patches"):
                ig.io.concat_sections([embedded, other])
        elif tokens == 9:
            joined = ig.io.concat_sections([embedded, other])
            np.testing.assert_array_equal(stored(joined), np.concatenate([stored(embedded), stored(other)]))
        else:
            joined = ig.io.concat_sections([embedded, other])
            assert joined["table"].obsm[KEY].dtype == np.float16
            with pytest.raises(Img2GeneError, match="is NaN or infinite in 9 rows"):
                stored(joined)


def test_tiles_have_tokens_too(make_section):
    sdata = make_section("S1", "P1", n_side=3)
    ig.pp.tile_slide(sdata, "S1_image", tile_um=100, min_tissue=0)
    ig.pp.embed_patches(sdata, "color-texture", table_key="slide_tiles", tokens=9, orientations=1)
    assert stored(sdata, "slide_tiles").shape == (sdata["slide_tiles"].n_obs, 9, 50)


def test_a_model_that_looks_at_tokens_wants_them_and_one_that_does_not_takes_both(make_study):
    sdata = make_study(embed=False, n_side=3)
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32)
    ig.pp.embed_patches(sdata, "color-texture", tokens=9, orientations=1)
    ig.tl.fit(sdata, "ridge", validate_on=["C"])
    model = ig.get.model(sdata)
    assert "tokens" not in model.inputs
    ig.tl.predict(sdata)
    identity = _schema.read_json(sdata["table"], "encoder")["color-texture"]
    ig.pp.embed_patches(sdata, "color-texture", orientations=1)
    ig.tl.predict(sdata)
    model.inputs.update(identity)
    with pytest.raises(
        Img2GeneError,
        match=r"trained with 9 tokens of width 50, the object has none. Run `.*'color-texture', tokens=9\)`",
    ):
        ig.tl.predict(sdata, model)
    ig.pp.embed_patches(sdata, "color-texture", tokens=16, orientations=1)
    with pytest.raises(Img2GeneError, match="the object has 16 tokens of width 50"):
        ig.tl.predict(sdata, model)
    ig.pp.embed_patches(sdata, "color-texture", tokens=9, orientations=1)
    ig.tl.predict(sdata, model)
