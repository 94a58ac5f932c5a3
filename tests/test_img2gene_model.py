"""Img2Gene on planted signal: what it finds, what must not change it, and how it is stored, resumed and refused."""

import copy
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from safetensors.numpy import load, save
from spatialdata import read_zarr

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError
from img2gene.models import Model, TrainingData
from img2gene.models.centring import centre
from img2gene.models.cmrcnet import CMRCNet
from img2gene.models.img2gene import Img2Gene, fitting, inference
from img2gene.models.img2gene.fitting import Img2GeneFitting
from img2gene.models.networks import fitting as network_fitting
from img2gene.models.networks.batches import split_sections
from img2gene.models.networks.debiasing import EFFECTS, Views
from img2gene.models.networks.losses import normalise_scores

TINY = {"n_models": 2, "dim": 8, "heads": 2, "n_components": 8, "n_latents": 2, "n_neighbors": 3, "batch_size": 16}
TINY |= {"max_epochs": 6, "n_validations": 1, "patience": 3, "learning_rate": 0.02, "dropout": 0.1}
WIDTH, N_GENES = 6, 4
WEIGHT = np.random.default_rng(99).normal(size=(WIDTH, N_GENES)) / np.sqrt(WIDTH)


def cohort(n=32, n_sections=3, *, seed=0, noise=0.3, signal="own", prefix="s"):
    """Sections with labels of mean 3 that are linear in a spot's own features, or in the mean of its three neighbours'."""
    rng = np.random.default_rng(seed)
    sections = np.repeat([f"{prefix}{i}" for i in range(n_sections)], n)
    features = rng.normal(size=(len(sections), WIDTH)).astype(np.float32)
    positions = rng.uniform(0, 1000, size=(len(sections), 2))
    seen = features.copy()
    if signal == "neighbours":
        for section in split_sections(sections, positions, 3, pad=False):
            seen[section.rows] = np.sqrt(3) * features[section.rows][section.neighbors].mean(axis=1)
    labels = seen @ WEIGHT + noise * rng.normal(size=(len(sections), N_GENES)) + 3
    return TrainingData(features, labels.astype(np.float32), sections, sections, positions)


def with_counts(data, depth):
    """The same signal as counts of four genes among others, and labels made of them."""
    rng = np.random.default_rng(1)
    library = rng.uniform(0.5, 1.5, size=len(data.labels)) * depth
    rate = 0.02 * np.exp(data.labels - 3)
    counts = rng.poisson(library[:, None] * rate)
    return replace(data, labels=np.log1p(1e4 * counts / library[:, None]).astype(np.float32), library=library)


def fitted(data, seed=0, **changes):
    model = Img2Gene(**(TINY | changes))
    model.fit(data, seed=seed)
    return model


def predicted(model, data):
    tokens = {} if data.tokens is None else {"tokens": data.tokens}
    return model.predict(data.features, data.sections, positions=data.positions, **tokens)


def error(model, data, train):
    """Squared error as a share of that of the training mean."""
    by_mean = np.square(data.labels - train.labels.mean(axis=0)).mean()
    return float(np.square(predicted(model, data) - data.labels).mean() / by_mean)


def content(model):
    config, arrays = model.state()
    config = {key: value for key, value in config.items() if key != "parameters"}
    return json.dumps(config), {name: values.tobytes() for name, values in arrays.items()}


TRAIN, NEW = cohort(), cohort(n_sections=2, seed=7, prefix="new")


@pytest.fixture(scope="module")
def network():
    """Return networks that no ridge is mixed with; tests must not change them."""
    return fitted(TRAIN, ridge="none", max_epochs=15)


@pytest.fixture(scope="module")
def mixture():
    """Ridge, networks and retrieval of equal weights."""
    return fitted(TRAIN, n_validations=0)


def test_networks_find_what_a_spot_shows(network):
    assert error(network, NEW, TRAIN) < 0.35
    assert network.report["weights"]["ridge"] == 0


def test_what_neighbours_show_is_found_where_they_are_looked_at():
    train, new = (cohort(50, seed=seed, signal="neighbours", noise=0.1) for seed in (0, 7))
    options = {"ridge": "none", "section_view": False, "max_epochs": 25, "dropout": 0.0, "n_models": 1}
    assert error(fitted(train, **options), new, train) < 0.6
    assert error(fitted(train, neighborhood=False, **options), new, train) > 0.9


def test_beside_a_ridge_it_is_as_good_as_the_ridge_on_linear_data():
    ridge = ig.models.create("ridge")
    ridge.fit(TRAIN, seed=0)
    by_ridge = np.square(ridge.predict(NEW.features, NEW.sections) - NEW.labels).mean()
    by_mean = np.square(TRAIN.labels.mean(axis=0) - NEW.labels).mean()
    assert error(fitted(TRAIN, n_validations=3), NEW, TRAIN) < min(1.05 * by_ridge / by_mean, 0.21)


def test_networks_find_what_a_ridge_cannot():
    data, new = (
        replace(found, labels=(3 + found.features[:, :4] ** 2).astype(np.float32))
        for found in (cohort(50), cohort(50, seed=7))
    )
    model = fitted(data, max_epochs=20, n_models=1)
    assert error(model, new, data) < 0.8
    assert model.report["weights"]["ridge"] < model.report["weights"]["network"] + model.report["weights"]["own view"]


def test_scores_of_pathways_are_learnt_and_their_terms_make_up_the_context():
    basis = np.random.default_rng(3).normal(size=(WIDTH, 5))

    def scored(data):
        return replace(data, pathways=(data.features @ basis).astype(np.float32))

    data, new = scored(TRAIN), scored(NEW)
    model = fitted(data, ridge="none", max_epochs=20, n_validations=0, pathway=3.0, dropout=0.0)
    assert model.report["n_pathways"] == 5
    losses = [entry["pathways"] for entry in model.history_]
    assert losses[-1] < 0.5 * losses[0]
    found, parts = model.fitted, []
    third = torch.eye(found.architecture.n_genes)[2]
    arrays = found.inputs(new.features, new.sections, new.positions, None)
    with torch.no_grad():
        for section in arrays.sections:
            for rows, views in inference.section_views(found.ensemble, arrays, section):
                outputs = found.ensemble.call(lambda net, *x: net.predict(Views(*x)), paired=tuple(views))
                terms = found.ensemble.call(
                    lambda net, *x: net.pathway_contributions(Views(*x), third),
                    paired=tuple(views),
                )
                without = found.ensemble.call(lambda net, z: net.head(z), paired=(outputs.embedding,))
                added = (outputs.genes - without)[:, :, 2]
                torch.testing.assert_close(terms.sum(dim=-1), added, atol=1e-4, rtol=1e-4)
                parts.append((rows, outputs.pathways.mean(dim=0)))
    centred = centre(new.pathways, new.sections).astype(np.float32)
    truth = normalise_scores(torch.from_numpy(centred)).numpy()
    guess = np.concatenate([values for _, values in parts])[np.argsort(np.concatenate([rows for rows, _ in parts]))]
    assert np.corrcoef(guess.ravel(), truth.ravel())[0, 1] > 0.7
    ignored = fitted(data, pathways=False, n_validations=0, max_epochs=1)
    assert ignored.report["n_pathways"] == 0
    assert not ignored.uses_pathways


def test_tokens_tell_what_the_embedding_does_not():
    def hidden(data):
        tokens = np.stack([data.features, data.features], axis=1).astype(np.float16)
        return replace(
            data, features=np.random.default_rng(5).normal(size=data.features.shape).astype(np.float32), tokens=tokens
        )

    data, new = hidden(TRAIN), hidden(NEW)
    model = fitted(data, ridge="none", max_epochs=12, n_models=1)
    assert error(model, new, data) < 0.6
    assert error(fitted(replace(data, tokens=None), ridge="none", max_epochs=3), replace(new, tokens=None), data) > 0.9


@pytest.mark.parametrize("block", [1, 7])
def test_blocks_do_not_matter(mixture, monkeypatch, block):
    expected = predicted(mixture, NEW)
    monkeypatch.setattr(inference, "_BLOCK", block)
    np.testing.assert_allclose(predicted(mixture, NEW), expected, atol=1e-5)


def test_order_of_spots_and_other_sections_do_not_matter(mixture):
    expected, order = predicted(mixture, NEW), np.random.default_rng(0).permutation(len(NEW.labels))
    np.testing.assert_allclose(predicted(mixture, NEW.take(order)), expected[order], atol=1e-5)
    alone = NEW.sections == "new1"
    np.testing.assert_allclose(predicted(mixture, NEW.take(alone)), expected[alone], atol=1e-5)


def test_place_and_stain_of_a_section_do_not_matter(mixture):
    moved = replace(NEW, positions=NEW.positions + [5e4, -3e4], features=NEW.features + np.float32(0.1))
    np.testing.assert_allclose(predicted(mixture, moved), predicted(mixture, NEW), atol=1e-3)


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not():
    options = {"max_epochs": 2, "effect": "TE", "n_confounders": 2}
    one = content(fitted(TRAIN, **options))
    assert content(fitted(TRAIN, **options)) == one
    other = content(fitted(TRAIN, seed=1, **options))[1]
    assert {name for name in one[1] if one[1][name] != other.get(name)} >= {
        "network.encoder/linear/weight",
        "network.head/weight",
    }


VARIANTS = {
    **{effect: {"effect": effect} for effect in EFFECTS[1:]},
    "confounders": {"n_confounders": 3},
    "density": {"weighting": "density"},
    "balanced": {"objective": "balanced", "batch_size": 32},
    "counts": {"objective": "negative_binomial"},
    "counts as effects": {"objective": "negative_binomial", "effect": "TE"},
    "residual": {"ridge": "residual"},
    "no centring": {"center": "none"},
    "own view": {"neighborhood": False, "section_view": False},
    "no refit": {"refit": False},
    "no validation": {"n_validations": 0},
    "retrieval by an effect": {"effect": "TE", "n_validations": 0, "k": 5},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_beats_the_mean_keeps_the_units_and_is_stored(name):
    options = {"ridge": "none"} | VARIANTS[name]
    counted = options.get("objective") == "negative_binomial"
    train, new = (with_counts(data, 2000) if counted else data for data in (TRAIN, NEW))
    model = fitted(train, **options)
    # without a spot's own patch there is nothing to be learnt here
    assert error(model, new, train) < (1.05 if name in ("NIE", "TIE") else 0.8)
    sd = train.labels.std(axis=0).mean()
    assert np.abs(predicted(model, new).mean(axis=0) - train.labels.mean(axis=0)).max() < 0.3 * sd
    config, arrays = model.state()
    declared = type(model).array_shapes(config)
    assert set(declared) == set(arrays)
    for key, axes in declared.items():
        assert [
            size
            for size in zip(axes, arrays[key].shape, strict=True)
            if isinstance(size[0], int) and size[0] != size[1]
        ] == []
    config, arrays = model.state()
    again = Img2Gene.from_state(json.loads(json.dumps(config)), load(save(arrays)))
    assert predicted(again, new).tobytes() == predicted(model, new).tobytes()


@pytest.mark.parametrize("depth", [300, 20_000])
def test_counts_come_out_on_the_scale_of_the_labels(depth):
    train, new = with_counts(TRAIN, depth), with_counts(NEW, depth)
    found = predicted(fitted(train, objective="negative_binomial", ridge="none"), new)
    np.testing.assert_allclose(found.mean(axis=0), train.labels.mean(axis=0), rtol=0.02)


def test_without_refit_the_network_of_the_validation_is_kept():
    model = fitted(TRAIN, refit=False)
    assert {entry["run"] for entry in model.history_} == {"validation 1"}
    assert {entry["run"] for entry in fitted(TRAIN, max_epochs=2).history_} == {"validation 1", "fit"}


def kinds(seed):
    """Sections of four kinds of spots, told by the signs of two features."""
    data = cohort(50, seed=seed)
    kind = (data.features[:, :2] > 0) @ [1, 2]
    noise = np.random.default_rng(seed).normal(size=data.labels.shape)
    return replace(data, labels=(3 + 2 * np.eye(4)[kind] + 0.3 * noise).astype(np.float32))


def test_kinds_of_spots_are_looked_up_better_than_they_are_regressed():
    train, new = kinds(0), kinds(7)
    model, without = fitted(train, k=10), fitted(train, retrieval=False)
    assert model.report["weights"]["retrieval"] > 0.2
    assert model.report["n_references"] == len(train.labels)
    assert error(model, new, train) < 0.95 * error(without, new, train)


def retrieving(model):
    """The model with retrieval as its only part."""
    alone = copy.copy(model)
    alone.fitted = replace(model.fitted, weights=np.array([0.0, 0.0, 0.0, 1.0]))
    return alone


def places(model, data):
    """Where each member puts the spots, (n_models, n, dim)."""
    arrays = model.fitted.inputs(data.features, data.sections, data.positions, None)
    found = list(inference.predictions(model.fitted.ensemble, arrays))
    order = np.argsort(np.concatenate([rows for rows, _ in found]))
    return torch.cat([outputs.embedding for _, outputs in found], dim=1).numpy()[:, order]


def test_retrieval_is_the_mean_label_of_the_spots_with_the_highest_mean_cosine():
    model = fitted(TRAIN, n_validations=0, k=7)
    new, known = (
        values / np.linalg.norm(values, axis=-1, keepdims=True) for values in (places(model, d) for d in (NEW, TRAIN))
    )
    cosine = np.einsum("mnd,mrd->nr", new, known) / len(new)
    nearest = np.argsort(-cosine, axis=1)[:, :7]
    centred = TRAIN.labels - np.stack([TRAIN.labels[TRAIN.sections == name].mean(axis=0) for name in TRAIN.sections])
    expected = TRAIN.labels.mean(axis=0) + centred[nearest].mean(axis=1)
    np.testing.assert_allclose(predicted(retrieving(model), NEW), expected, atol=1e-4)
    found = model.neighbors(NEW.features, NEW.sections, k=7, positions=NEW.positions)
    np.testing.assert_allclose(found.similarity, np.take_along_axis(cosine, nearest, axis=1), atol=1e-5)
    bank = model.reference_bank()
    np.testing.assert_allclose(bank.positions[found.rows[0]], TRAIN.positions[nearest[0]], rtol=1e-6)


def test_without_retrieval_the_networks_are_the_same_and_no_training_spots_are_kept():
    model, without = (fitted(TRAIN, n_validations=0, retrieval=on) for on in (True, False))
    assert model.report["weights"] == pytest.approx(
        {"ridge": 1 / 3, "own view": 0, "network": 1 / 3, "retrieval": 1 / 3}, abs=1e-6
    )
    assert without.report["weights"] == {"ridge": 0.5, "own view": 0, "network": 0.5, "retrieval": 0}
    kept, left = model.state()[1], without.state()[1]
    assert {name for name in kept if name not in left} == {
        "bank.keys", "bank.values", "bank.section", "bank.group", "bank.positions"
    }  # fmt: skip
    assert all(kept[name].tobytes() == left[name].tobytes() for name in left if name != "weights")
    assert without.report["n_references"] == 0
    with pytest.raises(Img2GeneError, match="This model keeps no training spots: it was fitted with retrieval=False"):
        without.reference_bank()


def test_beside_a_residual_network_residuals_are_looked_up():
    model = fitted(TRAIN, ridge="residual", n_validations=0)
    assert model.report["weights"] == {"ridge": 1, "own view": 0, "network": 0.5, "retrieval": 0.5}
    values = model.reference_bank().values
    assert values.var() < 0.4 * TRAIN.labels.var()
    # a ridge that finds most of the signal is not added to once more
    assert error(model, NEW, TRAIN) < 0.25


def test_of_many_training_spots_some_are_kept(monkeypatch):
    monkeypatch.setattr(fitting, "_REFERENCES", 20)
    model, again = (fitted(TRAIN, n_validations=0, max_epochs=1) for _ in range(2))
    bank = model.reference_bank()
    assert len(bank) == model.report["n_references"] == 20
    assert content(again) == content(model)
    rows = [
        np.flatnonzero((TRAIN.positions.astype(np.float32) == place).all(axis=1)).item() for place in bank.positions
    ]
    assert len(set(rows)) == 20
    assert (bank.sections == TRAIN.sections[rows]).all()
    means = np.stack([TRAIN.labels[TRAIN.sections == name].mean(axis=0) for name in bank.sections])
    np.testing.assert_allclose(bank.values, TRAIN.labels[rows] - means, atol=1e-5)
    # the mean of all of them, where fewer are kept than are asked for
    expected = TRAIN.labels.mean(axis=0) + bank.values.mean(axis=0)
    np.testing.assert_allclose(predicted(retrieving(model), NEW), np.tile(expected, (len(NEW.labels), 1)), atol=1e-5)


def test_retrieval_sees_the_effect_alone():
    moved = replace(NEW, positions=NEW.positions[::-1])
    model, effect = (
        retrieving(fitted(TRAIN, n_validations=0, k=5, max_epochs=2, effect=name)) for name in ("none", "NDE")
    )
    # what a spot's own patch causes does not depend on the spots around it
    np.testing.assert_allclose(predicted(effect, moved), predicted(effect, NEW), atol=1e-4)
    assert np.abs(predicted(model, moved) - predicted(model, NEW)).max() > 0.1


def test_one_section_is_validated_on_its_blocks():
    data = cohort(80, 1)
    model = fitted(data, max_epochs=3)
    assert model.report["inner_folds"] == "block"
    assert error(model, NEW, data) < 0.5


def wrapped(predictor):
    statistics = {"mean": np.ones(N_GENES, np.float32)}
    return Model(predictor, list("abcd"), statistics, {"name": "x", "width": WIDTH, "tokens": None}, {}, {})


def assert_same_prediction(found, expected):
    inputs = NEW.features, NEW.sections
    pairs = [model.predict(*inputs, positions=NEW.positions).tobytes() for model in (found, expected)]
    assert pairs[0] == pairs[1]


def test_a_file_gives_the_same_model_back(network, tmp_path):
    model = wrapped(network)
    again = ig.io.load_model(ig.io.save_model(model, tmp_path / "network"))
    assert_same_prediction(again, model)
    assert again.predictor.parameters == network.parameters
    assert again.predictor.history_ == network.history_


def drop(arrays):
    del arrays["predictor.network.head/weight"]


def add(arrays):
    arrays["predictor.network.code"] = np.zeros(3)


def cut(arrays):
    arrays["predictor.network.head/bias"] = arrays["predictor.network.head/bias"][:, :-1]
    arrays["predictor.readout.label_mean"] = np.zeros(3, np.float32)


def spoil(arrays):
    arrays["predictor.weights"] = np.full(4, np.nan)


def shorten(arrays):
    arrays["predictor.bank.keys"] = arrays["predictor.bank.keys"][:, :-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorten, r"`bank.keys` has shape \(96, 15\), expected \(96, 16\)"),
        (drop, "Array `network.head/weight` is missing"),
        (add, "Array `network.code` is not part of this model"),
        (cut, r"(?s)2 problems.*`network.head/bias` has shape \(2, 3\), expected \(2, 4\).*`readout.label_mean` has shape \(3,\), expected \(4,\)"),
        (spoil, "Array `weights` holds NaN or infinite values"),
    ],
)  # fmt: skip
def test_arrays_are_checked_against_the_architecture(mixture, change, message):
    config, arrays = wrapped(mixture).state()
    change(arrays)
    with pytest.raises(Img2GeneError, match=message):
        Model.from_state(json.loads(json.dumps(config)), load(save(arrays)))


RESUMED = {"effect": "TE", "n_validations": 2, "max_epochs": 3}


class Killed(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(scope="module")
def uninterrupted():
    return content(fitted(TRAIN, **RESUMED))


@pytest.mark.parametrize("n_batches", [3, 25, 43])
def test_a_killed_fit_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, uninterrupted, n_batches):
    drawn, gather = [], fitting.gather

    def interrupted(*args):
        drawn.append(1)
        if len(drawn) == n_batches:
            raise Killed
        return gather(*args)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "gather", interrupted)
        with pytest.raises(Killed):
            fitted(TRAIN, checkpoint_dir=tmp_path / "fit", **RESUMED)
    assert content(fitted(TRAIN, checkpoint_dir=tmp_path / "fit", **RESUMED)) == uninterrupted


def test_finished_validations_are_not_trained_again(tmp_path, monkeypatch, uninterrupted):
    train, labels = network_fitting.train, []

    def second(task, schedule, *, folder, label):
        labels.append(label)
        if labels == ["validation1", "validation2"]:
            raise Killed
        return train(task, schedule, folder=folder, label=label)

    monkeypatch.setattr(network_fitting, "train", second)
    with pytest.raises(Killed):
        fitted(TRAIN, checkpoint_dir=tmp_path / "fit", **RESUMED)
    assert content(fitted(TRAIN, checkpoint_dir=str(tmp_path / "fit"), **RESUMED)) == uninterrupted
    assert content(fitted(TRAIN, checkpoint_dir=tmp_path / "fit", **RESUMED)) == uninterrupted
    assert labels == ["validation1", "validation2", "validation2", "fit"]


def test_two_fits_are_never_mixed_in_one_folder(tmp_path):
    options = {"n_validations": 0, "max_epochs": 1, "checkpoint_dir": tmp_path / "fit"}
    fitted(TRAIN, **options)
    with pytest.raises(
        Img2GeneError, match="holds a fit with other dropout, labels, seed; results of two are never mixed"
    ):
        fitted(replace(TRAIN, labels=TRAIN.labels + 1), seed=1, **(options | {"dropout": 0.5}))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "identity.json.partial").write_bytes(b"{")
    fitted(TRAIN, **(options | {"checkpoint_dir": tmp_path / "new"}))
    (tmp_path / "thesis.docx").write_bytes(b"precious")
    with pytest.raises(Img2GeneError, match="is not empty and holds no fit; name another folder"):
        fitted(TRAIN, **(options | {"checkpoint_dir": tmp_path}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit", "new", "thesis.docx"]


def test_all_faulty_parameters_are_named_together():
    with pytest.raises(
        Img2GeneError,
        match=r"(?s)^9 problems.*effect='all'.*k=0: expected a whole number, 1 or more.*n_models=0: expected a whole number from 1.*batch_size=1.*max_epochs=0.*dropout=2.*learning_rate=-1.*dim=10 is not divisible by heads=4.*refit=False",
    ):
        Img2Gene(
            effect="all",
            k=0,
            n_models=0,
            batch_size=1,
            dropout=2,
            learning_rate=-1,
            max_epochs=0,
            dim=10,
            refit=False,
            n_validations=0,
        )
    with pytest.raises(
        Img2GeneError,
        match="(?s)2 problems.*weighting='density' goes with objective='gaussian'.*ridge='residual' has no counts",
    ):
        Img2Gene(objective="negative_binomial", weighting="density", ridge="residual")
    with pytest.raises(Img2GeneError, match="`img2gene` has no parameter epochs"):
        ig.models.create("img2gene", epochs=3)


def test_accelerators_and_precisions_that_there_are_not_leave_no_folder_behind(tmp_path, monkeypatch):
    with pytest.raises(
        Img2GeneError, match="(?s)2 problems.*precision='float32': choose one of 32-true.*accelerator='x': .*cuda"
    ):
        Img2Gene(accelerator="x", precision="float32")
    with pytest.raises(Img2GeneError, match="precision='transformer"):
        CMRCNet(precision="transformer-engine")
    monkeypatch.setattr(network_fitting, "accelerators", lambda: {"cpu": True, "cuda": False, "gpu": False})
    for name in ("gpu", "cuda"):
        with pytest.raises(
            Img2GeneError, match=f"accelerator='{name}': this computer has no such device .available: cpu"
        ):
            fitted(TRAIN, accelerator=name, checkpoint_dir=tmp_path / "fit")
    # As set on a computer that has one, and sent to another.
    monkeypatch.setitem(vars(ig.settings), "device", "cuda")
    with pytest.raises(Img2GeneError, match="img2gene.settings.device='cuda': this computer has no such device"):
        fitted(TRAIN, checkpoint_dir=tmp_path / "fit")
    assert not (tmp_path / "fit").exists()
    monkeypatch.undo()
    with pytest.raises(Img2GeneError, match="devices=-7: expected a whole number, -1 or more"):
        fitted(TRAIN, devices=-7, accelerator="cpu")
    stored = Img2Gene(accelerator="gpu", precision="16-mixed")
    assert stored.parameters.accelerator == "gpu"


def test_what_cannot_be_fitted_is_refused_before_training():
    with pytest.raises(
        Img2GeneError, match=r"n_neighbors=40: sections s0 \(32\), s1 \(32\), s2 \(32\) have no more spots"
    ):
        fitted(TRAIN, n_neighbors=40)
    lonely = replace(TRAIN, sections=np.where(np.arange(96) == 5, "lonely", TRAIN.sections))
    with pytest.raises(Img2GeneError, match="Sections lonely have a single spot"):
        fitted(lonely)
    with pytest.raises(Img2GeneError, match="objective='negative_binomial' needs counts"):
        fitted(TRAIN, objective="negative_binomial")
    with pytest.raises(Img2GeneError, match="None of the 96 training spots has pathway scores.*`pathways=False`"):
        fitted(replace(TRAIN, pathways=np.full((96, 2), np.nan)))
    with pytest.raises(Img2GeneError, match="not fitted yet; call `fit` first"):
        predicted(Img2Gene(), NEW)


def test_a_section_smaller_than_the_neighbourhood_is_predicted(mixture):
    few = NEW.take(np.arange(3))
    assert np.isfinite(predicted(mixture, few)).all()
    with pytest.raises(Img2GeneError, match="Sections new0 have a single spot"):
        predicted(mixture, NEW.take(np.arange(1)))


def test_labels_of_extreme_size_stop_the_fit_by_the_name_of_their_section(monkeypatch):
    build = fitting.TargetArrays.build

    def huge(parameters, data, base):
        targets = build(parameters, data, base)
        targets.labels[data.sections == "s2"] = 1e30
        return targets

    monkeypatch.setattr(fitting.TargetArrays, "build", huge)
    with pytest.raises(
        Img2GeneError,
        match=r"The loss \(labels, views\) is not finite in epoch 1, batch \d: 16 spots of section s2, labels up to 1e\+30",
    ):
        fitted(TRAIN, n_validations=0, coherence=0)


def test_sections_beyond_the_validated_range_are_left_to_the_ridge(mixture):
    rule = mixture.fitted.validated

    def moved(by):
        # The nearest training section is less far than the shift, so that some sections stay within the range.
        return replace(NEW, features=NEW.features + np.float32(by) * rule.scale)

    ridge = mixture.fitted.ridge.predict(NEW.features, NEW.sections)
    near, far = predicted(mixture, NEW), predicted(mixture, moved(50 * rule.far))
    np.testing.assert_allclose(far, ridge, atol=2e-3)
    assert np.abs(near - far).max() > 0.05
    for by in np.linspace(0, 2 * rule.far, 5):
        shares = rule(moved(by).features, NEW.sections)
        share = np.array([shares[name][1] for name in NEW.sections.tolist()])[:, None]
        np.testing.assert_allclose(predicted(mixture, moved(by)), (1 - share) * near + share * ridge, atol=2e-3)


def test_the_validated_range_is_the_largest_distance_between_a_section_and_the_others(mixture):
    rule, names = mixture.fitted.validated, np.unique(TRAIN.sections)
    means = np.stack([TRAIN.features[TRAIN.sections == name].mean(axis=0) for name in names]) / rule.scale
    apart = np.sqrt(np.square(means[:, None] - means[None]).mean(axis=2)) + np.diag(np.full(len(names), np.inf))
    np.testing.assert_allclose(rule.near, apart.min(axis=1).max(), rtol=1e-4)
    assert rule.far == 2 * rule.near
    distances = rule(TRAIN.features, TRAIN.sections)
    np.testing.assert_allclose([distances[name][0] for name in names], 0, atol=1e-5)
    everywhere = fitted(TRAIN, ridge="none", max_epochs=1, n_validations=0).fitted.validated
    assert {share for _, share in everywhere(NEW.features + 1000, NEW.sections).values()} == {0.0}


def test_the_first_fold_chooses_the_epochs_and_the_others_the_weights():
    model = fitted(TRAIN, n_validations=2)
    first, second = model.report["best_epochs"]
    assert first == second == model.report["epochs"]
    runs = [[entry for entry in model.history_ if entry["run"] == f"validation {i}"] for i in (1, 2)]
    assert len(runs[1]) == first <= len(runs[0])
    # Labels of the first fold say nothing about the weights.
    fitting = Img2GeneFitting(model.parameters, TRAIN, 0)
    fitting.run()
    noisy = [replace_labels(trial) for trial in fitting.trials[:1]] + fitting.trials[1:]
    np.testing.assert_array_equal(fitting.stack(noisy), fitting.weights)


def replace_labels(trial):
    return replace(trial, full=-trial.full, own=-trial.own, retrieved=-trial.retrieved)


FIT = TINY | {"n_validations": 1, "max_epochs": 4}


def rows_of(sdata, section):
    return (sdata["table"].obs["section"] == section).to_numpy()


@pytest.fixture(scope="module")
def trained(shared_study, copy_of):
    """The study with Img2Gene trained on patients A and B, and predictions; not to be changed."""
    sdata = copy_of(shared_study)
    ig.tl.fit(sdata, validate_on=["C"], **FIT)
    ig.tl.predict(sdata)
    return sdata


def test_it_is_what_a_study_is_fitted_with(trained):
    model = ig.get.model(trained)
    assert model.name == "img2gene"
    assert model.extra_inputs == ("positions",)
    scores = ig.tl.evaluate(trained)
    means = scores[scores["gene"].isin(["G00", "G01", "G03", "G04"])].groupby("model")["mse"].mean()
    assert means["img2gene"] < 0.6 * means["training mean"]
    assert model.report["fit"]["n_validations"] == 1
    json.dumps(model.report, allow_nan=False)


def test_a_stored_study_keeps_the_networks(trained, tmp_path):
    trained.write(tmp_path / "study.zarr", update_sdata_path=False)
    again = read_zarr(tmp_path / "study.zarr")
    expected = again["table"].layers["img2gene"].copy()
    ig.tl.predict(again)
    assert again["table"].layers["img2gene"].tobytes() == expected.tobytes()


def test_training_spots_that_a_prediction_comes_from_are_listed(study, tmp_path):
    ig.tl.fit(study, validate_on=["C"], **(FIT | {"n_validations": 0, "max_epochs": 2}))
    spots = study["table"].obs_names[rows_of(study, "C1")][:3].tolist()
    found = ig.tl.retrieve(study, spots, n=4)
    assert found.groupby("spot").size().eq(4).all()
    assert set(found["group"]) <= {"A", "B"}
    sections = study["table"].obs["section"].astype(str)
    assert (sections.loc[found["reference"]].to_numpy() == found["section"].to_numpy()).all()
    assert set(ig.tl.retrieve(study, sections.index[rows_of(study, "A1")][0], exclude="group")["group"]) == {"B"}
    study.write(tmp_path / "study.zarr")
    pd.testing.assert_frame_equal(ig.tl.retrieve(read_zarr(tmp_path / "study.zarr"), spots, n=4), found)


def test_tiles_without_expression_are_predicted(trained, make_section):
    slide = make_section("D1", "D", seed=9)
    del slide.tables["table"]
    ig.pp.tile_slide(slide, "D1_image", tile_um=100, mpp=5, patch_um=60, patch_px=32, min_tissue=0, patient="D")
    ig.pp.embed_patches(slide, "tiny", table_key="slide_tiles")
    ig.tl.predict(slide, ig.get.model(trained), table_key="slide_tiles", key_added="expression")
    red = slide["slide_tiles"].obsm["X_tiny"][:, 0]
    assert np.corrcoef(slide["expression"][:, "G00"].X.ravel(), red)[0, 1] < -0.7


def test_a_failed_fit_leaves_the_object_untouched(study, snapshot):
    before = snapshot(study["table"])
    with pytest.raises(Img2GeneError, match="diverged: learning_rate=1e"):
        ig.tl.fit(study, **(FIT | {"learning_rate": 1e30}))
    with pytest.raises(Img2GeneError, match="n_neighbors=60: sections A1 .49., A2"):
        ig.tl.fit(study, **(FIT | {"n_neighbors": 60}))
    assert snapshot(study["table"]) == before


SETS = {name: [f"G{i:02d}" for i in range(start, 12, 3)] for start, name in enumerate(("red", "green", "noise"))}


def test_pathways_are_learnt_from_the_spots_that_have_scores(caplog):
    scores = np.random.default_rng(3).normal(size=(96, 5)).astype(np.float32)
    options = {"n_validations": 0, "max_epochs": 2, "n_models": 1, "dropout": 0.0}
    without = replace(TRAIN, pathways=np.where(np.arange(96)[:, None] % 4 == 0, np.nan, scores))
    model = fitted(without, **options)
    assert "24 of 96 training spots have no pathway scores" in caplog.text
    assert np.isfinite([entry["pathways"] for entry in model.history_]).all()
    assert np.isfinite(predicted(model, NEW)).all()
    assert content(model) != content(fitted(replace(TRAIN, pathways=np.nan_to_num(without.pathways)), **options))


def test_spots_without_counts_but_with_labels_are_trained_on(study, copy_of):
    sdata = copy_of(study)
    table = sdata["table"]
    counts = np.array(table.X.todense() if sp.issparse(table.X) else table.X)
    table.obs["library_size"] = 100 + counts.sum(axis=1)
    counts[3] = 0
    table.X = sp.csr_matrix(counts)
    ig.pp.score_pathways(sdata, {"a": list(table.var_names[:5]), "b": list(table.var_names[5:10])}, min_genes=2)
    options = {"n_models": 1, "n_validations": 0, "max_epochs": 1, "dim": 8, "heads": 2, "uncertainty": False}
    ig.tl.fit(sdata, "img2gene", **options)
    assert ig.get.model(sdata).report["n_empty_spots"] == 0
    assert ig.get.model(sdata).report["fit"]["n_pathways"] == 2


def test_stored_pathways_are_selected_and_scored_inside_the_fold(study, copy_of):
    other = copy_of(study)
    held_out = rows_of(other, "C1")
    counts = other["table"].X.toarray()
    counts[held_out] = counts[held_out][:, ::-1] * 3 + 1
    other["table"].X = sp.csr_matrix(counts)
    other["table"].obs.loc[held_out, "library_size"] = counts[held_out].sum(axis=1)
    options = FIT | {"n_validations": 0, "max_epochs": 2}
    for sdata in (study, other):
        ig.pp.score_pathways(sdata, SETS, n_top=2, min_genes=2)
        ig.tl.fit(sdata, validate_on=["C"], **options)
    one, two = (sdata["table"].uns["img2gene"]["model"] for sdata in (study, other))
    assert np.asarray(one["weights"]).tobytes() == np.asarray(two["weights"]).tobytes()
    model = ig.get.model(study).predictor
    assert model.report["n_pathways"] == 2
    assert set(model.context["names"]) <= set(SETS)
    ig.tl.fit(study, validate_on=["C"], pathways=False, **options)
    assert ig.get.model(study).predictor.report["n_pathways"] == 0


def test_stored_tokens_are_looked_at(make_study):
    sdata = make_study(embed=False, n_side=4)
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32)
    ig.pp.embed_patches(sdata, "color-texture", tokens=9, orientations=1)
    ig.tl.fit(sdata, validate_on=["C"], **(FIT | {"n_validations": 0, "max_epochs": 1}))
    model = ig.get.model(sdata)
    assert model.extra_inputs == ("positions", "tokens")
    assert model.predictor.fitted.architecture.n_tokens == 9
    ig.tl.predict(sdata)
    tokens = sdata["table"].obsm["X_color-texture_tokens"]
    before, table = sdata["table"].layers["img2gene"].copy(), sdata["table"]
    table.obsm["X_color-texture_tokens"] = tokens[::-1].copy()
    ig.tl.predict(sdata)
    assert (table.layers["img2gene"] != before).any()
    assert _schema.read_json(table, "encoder")["color-texture"]["tokens"] == 9


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("her2st", (0.1, 1, 1, "NIE")),
        ("cscc", (0.1, 0.05, 0.1, "TE")),
        ("stnet", (0.1, 1, 1, "NIE")),
        ("liver", (1, 0.01, 0.005, "TE")),
    ],
)
def test_presets_are_those_of_the_paper_and_passed_parameters_win(preset, expected):
    def weights(model):
        p = model.parameters
        return p.coherence, p.pathway, p.pathway_coherence, p.effect

    published = ig.models.create("img2gene", preset=preset)
    assert weights(published) == expected
    assert (published.parameters.ridge, published.parameters.retrieval, published.parameters.n_models) == (
        "none",
        False,
        1,
    )
    changed = ig.models.create("img2gene", preset=preset, effect="none", n_models=4)
    assert weights(changed) == (*expected[:3], "none")
    assert (changed.parameters.n_models, changed.parameters.learning_rate) == (4, 1e-4)


def test_a_preset_is_stored_with_all_its_values():
    model = fitted(TRAIN, preset="cscc", n_validations=0, max_epochs=1)
    again = type(model).from_state(*model.state())
    assert again.parameters == model.parameters
    assert (again.parameters.preset, again.parameters.n_latents, again.parameters.effect) == ("cscc", 2, "TE")
    with pytest.raises(Img2GeneError, match="preset='mouse': expected one of her2st, cscc, stnet, liver, or None"):
        ig.models.create("img2gene", preset="mouse")


def test_the_preset_of_cmrcnet_is_that_of_its_paper_and_bleep_has_none():
    paper = ig.models.create("cmrcnet", preset="paper").parameters
    assert (paper.contrast, paper.reconstruction, paper.regression, paper.temperature) == (1, 1, 0, 1)
    assert (paper.output, paper.keys, paper.max_epochs) == ("retrieval", "expression", 60)
    with pytest.raises(Img2GeneError, match="`bleep` has no parameter preset"):
        ig.models.create("bleep", preset="paper")
