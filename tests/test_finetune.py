"""Fine-tuning: what changes and what does not, what it gains where frozen features carry little, and what is refused."""

import dataclasses

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from torch import nn

import img2gene as ig
from img2gene import encoders
from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene._study import finetuning as study_finetuning
from img2gene.encoders.base import TorchEncoder
from img2gene.encoders.tokens import pool_tokens
from img2gene.encoders.trainable import load_trainable
from img2gene.io.sections import build_section
from img2gene.metrics import pearson
from img2gene.models.networks import finetuning
from img2gene.models.networks.ensemble import Single
from img2gene.models.networks.finetuning import Batch, FineTuning, FineTuningParameters, Regressor, _turned
from img2gene.models.networks.train import train
from img2gene.models.networks.training_task import TrainingSchedule, TrainingTask
from img2gene.testing import assert_models_equal

pytestmark = pytest.mark.filterwarnings("ignore:.*num_workers.*:UserWarning")

SIDE, PITCH, N_SIDE = 32, 36, 7
FAST = {"finetune_epochs": 25, "finetune_learning_rate": 1e-2, "finetune_batch_size": 12}


class Blur(nn.Module):
    """Convolutions that start as blurs, which hide a fine texture, before a global mean."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.GELU())
        self.last = nn.Sequential(nn.Conv2d(6, 8, 3), nn.GELU())
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for conv in (self.first[0], self.last[0]):
                share = torch.rand(conv.weight.shape[:2], generator=generator)[:, :, None, None]
                noise = 0.02 * torch.randn(conv.weight.shape, generator=generator)
                conv.weight.copy_((share + noise) / share.sum(dim=1, keepdim=True) / 9)
                conv.bias.zero_()

    def forward(self, x):
        return self.last(self.first(x)).mean(dim=(2, 3))

    def with_tokens(self, x, grid):
        found = self.last(self.first(x))
        return found.mean(dim=(2, 3)), pool_tokens([found], grid)


SHARED = TorchEncoder(Blur(), 8, (0.5,) * 3, (0.25,) * 3)
SPEC = encoders.EncoderSpec(
    name="blur",
    width=8,
    input_px=SIDE,
    any_size=True,
    mpp=None,
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    licence="BSD-3-Clause",
    gated=False,
    source="tests",
    revision="1",
    # All calls get one object, as from a package with a cache, so it must not be changed.
    build=lambda spec, **options: SHARED,
    token_width=8,
    last_stage=("last",),
)


@pytest.fixture(autouse=True, scope="module")
def blur():
    encoders.get("default")
    encoders.register(SPEC)


def textured(name, patient, seed, n_side=N_SIDE):
    """A section whose first two genes follow the strength of a checkerboard under colours that tell nothing."""
    rng = np.random.default_rng(seed)
    size = (n_side + 1) * PITCH
    strength = rng.uniform(0, 1, size=(n_side, n_side))
    rows, columns = np.indices((size, size))
    at = [np.clip((axis - PITCH // 2) // PITCH, 0, n_side - 1) for axis in (rows, columns)]
    board = np.where((rows + columns) % 2, 1, -1) * 60 * strength[at[0], at[1]]
    colour = rng.normal(scale=12, size=(n_side, n_side, 3))[at[0], at[1]]
    image = 128 + colour + board[:, :, None] + rng.normal(scale=3, size=(size, size, 3))
    y, x = np.indices((n_side, n_side)).reshape(2, -1)
    driver = strength[y, x] - 0.5
    rate = np.exp(np.stack([2 * driver, -2 * driver, 0 * driver, 0 * driver], axis=1))
    counts = rng.poisson(4000 * rate / rate.sum(axis=1, keepdims=True)).astype(np.float32)
    table = ad.AnnData(
        sp.csr_matrix(counts),
        obs=pd.DataFrame(index=[f"{name}_{i}" for i in range(len(x))]),
        var=pd.DataFrame(index=["up", "down", "flat1", "flat2"]),
    )
    xy = (np.column_stack([x, y]) + 1.0) * PITCH
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return build_section(pixels, xy, table, section=name, patient=patient, mpp=1.0, spot_um=10.0)


def make(embed=False):
    sdata = ig.io.concat_sections([textured(f"{p}1", p, seed) for seed, p in enumerate("ABCD")])
    ig.pp.extract_patches(sdata, patch_um=SIDE, patch_px=SIDE)
    if embed:
        ig.pp.embed_patches(sdata, "blur", backend="torch")
    return sdata


@pytest.fixture(scope="module")
def plain():
    return make()


def fit(sdata, model="ridge", **changes):
    options = {"encoder": "blur", "validate_on": ["D"], "inplace": False, "finetune": "all", **FAST, **changes}
    return ig.tl.fit(sdata, model, **options)


@pytest.fixture(scope="module")
def tuned(plain):
    return fit(plain)


def held_out_score(sdata, model):
    table = sdata["table"]
    rows = (table.obs["section"] == "D1").to_numpy()
    counts = table.X.toarray()
    truth = np.log1p(1e4 * counts / table.obs["library_size"].to_numpy()[:, None])[:, :2]
    predicted = ig.tl.predict(sdata, model, inplace=False)
    return pearson(truth[rows], predicted[rows, ["up", "down"]].X).mean()


def state(network):
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def test_fine_tuning_finds_what_frozen_features_hardly_carry(plain, tuned, copy_of):
    sdata = copy_of(plain)
    ig.pp.embed_patches(sdata, "blur")
    frozen = ig.tl.fit(sdata, encoder="blur", validate_on=["D"], inplace=False)
    before, after = held_out_score(sdata, frozen), held_out_score(sdata, tuned)
    assert after > 0.8
    assert after > before + 0.1


def test_the_training_loss_falls_and_validation_is_reported(tuned):
    report = tuned.report["finetune"]
    losses = [entry["loss"] for entry in report["history"]]
    assert losses[-1] < 0.7 * losses[0]
    assert report["validation"] > report["validation_before"]
    assert report["validated_on"] in (["A1"], ["B1"], ["C1"])
    assert tuned.inputs["finetuned"] == {"mode": "all", "epochs": report["epochs"], "learning_rate": 1e-2}


@pytest.mark.parametrize(("mode", "prefixes"), [("last", {"last"}), ("all", {"first", "last"})])
def test_what_is_trained_changes_and_nothing_else(plain, mode, prefixes):
    before = state(SHARED.network)
    model = fit(plain, finetune=mode, finetune_epochs=1)
    expected = {name for name, _ in SHARED.network.named_parameters() if name.split(".")[0] in prefixes}
    assert set(model.encoder) == expected
    assert all(value.dtype == np.float32 for value in model.encoder.values())
    # The encoder that others hold is the one that it was, in evaluation mode and without gradients.
    torch.testing.assert_close(state(SHARED.network), before, rtol=0, atol=0)
    assert not SHARED.network.training
    assert all(value.grad is None and value.requires_grad for value in SHARED.network.parameters())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(plain):
    one, two, other = (fit(plain, finetune_epochs=2, seed=seed) for seed in (3, 3, 4))
    for name, value in one.encoder.items():
        np.testing.assert_array_equal(value, two.encoder[name])
    assert any((value != other.encoder[name]).any() for name, value in one.encoder.items())


def test_a_stored_model_predicts_the_same_without_any_embedding(plain, tuned, copy_of, tmp_path, snapshot):
    sdata = copy_of(plain)
    before = snapshot(sdata["table"])
    expected = ig.tl.predict(sdata, tuned, inplace=False).X
    assert snapshot(sdata["table"]) == before
    path = ig.io.save_model(tuned, tmp_path / "tuned")
    found = ig.io.load_model(path)
    assert found.inputs == tuned.inputs
    np.testing.assert_array_equal(ig.tl.predict(sdata, found, inplace=False).X, expected)
    ig.tl.fit(sdata, tuned.name, encoder="blur", validate_on=["D"], finetune="all", **FAST)
    assert not [key for key in sdata["table"].obsm if key.startswith("X_")]
    ig.tl.predict(sdata)
    np.testing.assert_array_equal(sdata["table"][:, tuned.genes].layers["img2gene"], expected)


def test_predictions_are_those_of_the_features_of_the_adapted_encoder(plain, tuned):
    from img2gene._study.embedding import encode
    from img2gene._study.patches import stream_patches
    from img2gene._study.study import Study
    from img2gene.encoders.trainable import load_adapted

    adapted = load_adapted(SPEC, tuned.encoder)
    features = np.empty((plain["table"].n_obs, 8), dtype=np.float32)
    for rows, windows in stream_patches(Study.of(plain), 8, 0):
        features[rows] = encode(adapted, windows.fields, SIDE, 2)[0]
    sections = plain["table"].obs["section"].to_numpy().astype(str)
    expected = tuned.predict(features, sections)
    np.testing.assert_allclose(ig.tl.predict(plain, tuned, inplace=False).X, expected, rtol=1e-4, atol=1e-5)


def test_held_out_sections_are_not_looked_at(plain):
    sdata = make()
    held_out = (sdata["table"].obs["section"] == "D1").to_numpy()
    counts = sdata["table"].X.toarray()
    counts[held_out] = counts[held_out][:, ::-1] * 2 + 1
    sdata["table"].X = sp.csr_matrix(counts)
    sdata["table"].obs.loc[held_out, "library_size"] = counts[held_out].sum(axis=1)
    sdata.images["D1_image"].data[:] = 7
    model, again = (fit(study, finetune_epochs=1) for study in (sdata, plain))
    assert model.encoder
    assert_models_equal(model, again)


def test_pixels_in_a_file_give_the_same_weights(plain, monkeypatch):
    one = fit(plain, finetune_epochs=1)
    monkeypatch.setattr(study_finetuning, "_MEMORY_BYTES", 0)
    two = fit(plain, finetune_epochs=1)
    assert one.encoder
    assert_models_equal(one, two)


def test_one_section_is_validated_on_a_block_of_it():
    sdata = textured("A1", "A", 0)
    ig.pp.extract_patches(sdata, patch_um=SIDE, patch_px=SIDE)
    model = fit(sdata, validate_on=None, allow_single_section=True, finetune_epochs=1)
    assert model.report["finetune"]["validated_on"] == ["A1"]
    assert np.isfinite(model.report["finetune"]["validation"])


def test_a_network_that_looks_at_tokens_gets_those_of_the_adapted_encoder(plain, copy_of):
    sdata = copy_of(plain)
    ig.pp.embed_patches(sdata, "blur", tokens=9, orientations=1)
    small = {"max_epochs": 1, "n_models": 1, "n_validations": 1, "dim": 8}
    model = fit(sdata, "img2gene", finetune_epochs=1, genes=["up", "down"], **small)
    assert (model.inputs["tokens"], model.inputs["orientations"]) == (9, 1)
    expected = ig.tl.predict(sdata, model, inplace=False).X
    assert np.isfinite(expected).all()
    for key in ("X_blur", "X_blur_tokens"):
        del sdata["table"].obsm[key]
    np.testing.assert_array_equal(ig.tl.predict(sdata, model, inplace=False).X, expected)


def test_several_fields_of_view_share_the_encoder():
    sdata = ig.io.concat_sections([textured(f"{p}1", p, seed, n_side=4) for seed, p in enumerate("AB")])
    ig.pp.extract_patches(sdata, patch_um=(SIDE, 2 * SIDE), patch_px=SIDE)
    model = fit(sdata, validate_on=["B"], finetune_epochs=1)
    assert model.inputs["width"] == 16
    assert ig.tl.predict(sdata, model, inplace=False).shape == (32, 4)


def test_the_default_encoder_trains_its_last_kept_stage():
    sdata = ig.io.concat_sections([textured(f"{p}1", p, seed, n_side=2) for seed, p in enumerate("AB")])
    ig.pp.extract_patches(sdata, patch_um=SIDE, patch_px=64)
    model = fit(sdata, validate_on=None, encoder=None, finetune="last", finetune_epochs=1, finetune_learning_rate=1e-4)
    assert model.inputs["name"] == "efficientnet-lite0"
    assert {name[: len("network.stages.5")] for name in model.encoder} == {"network.stages.5"}
    assert len(model.encoder) == 4 * 3 * 2
    assert np.isfinite(ig.tl.predict(sdata, model, inplace=False).X).all()
    everything = load_trainable(encoders.get("default"), device="cpu")
    names = finetuning.select_stage(everything.network, encoders.get("default"), last=False)
    assert set(model.encoder) < set(names)


def test_registered_last_stages_are_modules_of_their_networks():
    for name in ("efficientnet-lite0", "efficientnet-lite0-stages", "efficientnet-lite0-head"):
        spec = encoders.get(name)
        network = load_trainable(spec, device="cpu").network
        modules = dict(network.named_modules())
        assert set(spec.last_stage) <= set(modules)
        assert 0 < len(finetuning.select_stage(network, spec, last=True)) < len(list(network.parameters()))


def test_a_channel_that_is_dead_all_over_a_patch_leaves_gradients_finite():
    network = load_trainable(encoders.get("default"), device="cpu").network
    network(torch.zeros(1, 3, 32, 32)).sum().backward()
    grads = [value.grad for value in network.parameters() if value.grad is not None]
    assert grads
    assert all(torch.isfinite(value).all() for value in grads)


def regressor(width=8, n_genes=2):
    network = Blur()
    encoder = TorchEncoder(network, width, (0.0,) * 3, (1.0,) * 3)
    return Regressor(encoder, np.ones((n_genes, width)), np.full(width, 2.0))


def test_what_a_section_has_in_common_does_not_count():
    found = regressor()
    features = torch.randn(5, 8)
    torch.testing.assert_close(found(features + 100), found(features), rtol=1e-3, atol=1e-4)
    expected = ((features - features.mean(dim=0)) / 2).sum(dim=1, keepdim=True).expand(5, 2)
    torch.testing.assert_close(found(features), expected)
    pixels = torch.randint(0, 255, (5, 1, 3, SIDE, SIDE), dtype=torch.uint8)
    labels = torch.randn(5, 2)
    one, two = (finetuning.loss(found, Batch(pixels, labels + c, torch.tensor(0)))["loss"] for c in (0, 7))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_batch_normalisation_keeps_its_statistics():
    found = regressor().train()
    assert found.encoder.last.training
    norm = found.encoder.first[1]
    before = norm.running_mean.clone()
    found.features(torch.randint(0, 255, (4, 1, 3, SIDE, SIDE), dtype=torch.uint8))
    assert not norm.training
    torch.testing.assert_close(norm.running_mean, before, rtol=0, atol=0)


def test_orientations_are_the_eight_of_the_square():
    patch = np.random.default_rng(0).integers(0, 255, (1, 1, 3, 5, 5), dtype=np.uint8)
    turned = _turned(np.repeat(patch, 8, axis=0), np.arange(8))
    assert len({view.tobytes() for view in turned}) == 8
    np.testing.assert_array_equal(turned[0], patch[0])
    np.testing.assert_array_equal(turned.sum(axis=(3, 4)), np.repeat(patch.sum(axis=(3, 4)), 8, axis=0))


def test_what_needs_no_gradient_is_left_alone_by_training():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    network[0].requires_grad_(False)
    before = state(network)
    task = TrainingTask(
        Single(network),
        lambda epoch: iter([torch.ones(4, 2)] * 3),
        lambda net, batch: {"loss": (net(batch) - 3).square().mean()},
        validate=lambda found: -float((found.network(torch.ones(1, 2)) - 3).abs()),
    )
    train(task, TrainingSchedule(max_epochs=3, learning_rate=0.1))
    torch.testing.assert_close(network[0].weight, before["0.weight"], rtol=0, atol=0)
    assert (network[1].weight != before["1.weight"]).any()


def test_a_loss_that_is_not_finite_names_section_and_cause(plain):
    with pytest.raises(Img2GeneError, match=r"not finite in epoch .* section [ABC]1.*learning_rate"):
        fit(plain, finetune_learning_rate=1e30, finetune_epochs=3)


def test_every_problem_of_fine_tuning_is_named_at_once(plain, copy_of):
    with pytest.raises(Img2GeneError, match=r"finetune='first': expected one of last, all") as caught:
        fit(plain, finetune="first", finetune_epochs=0, finetune_learning_rate=-1.0)
    assert "finetune_epochs=0" in str(caught.value)
    assert "finetune_learning_rate=-1.0" in str(caught.value)
    with pytest.raises(
        Img2GeneError, match=r"`color-texture` cannot be fine-tuned \(available: .*efficientnet-lite0.*uni"
    ):
        fit(plain, encoder="color-texture")


def test_images_that_are_gone_are_named_at_training_and_prediction(plain, tuned, copy_of):
    sdata = copy_of(plain)
    for name in list(sdata.images):
        del sdata.images[name]
    with pytest.raises(MissingKeyError, match="Fine-tuned encoders read the patches' pixels"):
        fit(sdata)
    with pytest.raises(MissingKeyError, match="Fine-tuned encoders read the patches' pixels"):
        ig.tl.predict(sdata, tuned)


def test_other_patches_than_those_of_training_are_refused(plain, tuned, copy_of):
    sdata = copy_of(plain)
    ig.pp.extract_patches(sdata, patch_um=2 * SIDE, patch_px=2 * SIDE)
    with pytest.raises(Img2GeneError, match=r"fields of view \(µm\) \[32") as caught:
        ig.tl.predict(sdata, tuned)
    assert "input size" in str(caught.value)


def test_weights_that_do_not_fit_are_named(plain, tuned):
    config, arrays = tuned.state()
    name = next(name for name in arrays if name.startswith("encoder."))
    with pytest.raises(Img2GeneError, match=rf"`{name}` has shape"):
        ig.models.Model.from_state(config, arrays | {name: arrays[name][:1]})
    with pytest.raises(Img2GeneError, match=rf"`{name}` is missing"):
        ig.models.Model.from_state(config, {key: value for key, value in arrays.items() if key != name})
    with pytest.raises(Img2GeneError, match=r"`encoder.more` is not part"):
        ig.models.Model.from_state(config, arrays | {"encoder.more": np.zeros(1)})
    strange = dataclasses.replace(tuned, encoder={"first.0.weight": np.zeros((2, 2)), "third": np.zeros(1)})
    with pytest.raises(Img2GeneError, match="has no weight `third`") as caught:
        ig.tl.predict(plain, strange)
    assert "`first.0.weight` of encoder `blur` has shape (6, 3, 3, 3); the trained model has (2, 2)" in str(
        caught.value
    )


def test_a_batch_is_of_one_section_and_an_epoch_holds_every_spot_once(plain):
    rng = np.random.default_rng(0)
    sections = np.repeat(["a", "b"], [5, 9])
    labels = rng.normal(size=(14, 3)).astype(np.float32)
    features = rng.normal(size=(14, 8)).astype(np.float32)
    data = ig.models.TrainingData(features, labels, sections, sections, np.zeros((14, 2)))
    pixels = rng.integers(0, 255, (14, 1, 3, SIDE, SIDE), dtype=np.uint8)
    tuning = FineTuning(load_trainable(SPEC), SPEC, pixels, data, FineTuningParameters("all", batch_size=4), 0)
    everything = np.ones(14, dtype=bool)
    tuning._regressor(everything)
    batches = list(tuning._batches(everything, 0))
    assert all(isinstance(batch, Batch) and len(batch.labels) <= 4 for batch in batches)
    found = torch.cat([batch.labels for batch in batches]).numpy()
    assert sorted(map(tuple, found)) == sorted(map(tuple, tuning.targets))
    for batch in batches:
        own = tuning.targets[sections == tuning.names[int(batch.section)]]
        assert all((own == row).all(axis=1).any() for row in batch.labels.numpy())
