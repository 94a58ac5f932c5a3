"""CMRCNet, BLEEP and feature k-NN on planted signal: what they find, how they are stored, resumed and refused."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load, save
from spatialdata import read_zarr

import img2gene as ig
from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene.metrics import pearson
from img2gene.models import TrainingData
from img2gene.models.cmrcnet import Bleep, CMRCNet, fitted, fitting
from img2gene.models.cmrcnet.network import Architecture, CMRCNetNetwork
from img2gene.models.knn import FeatureKNN
from img2gene.models.ridge import Ridge

TINY = {"n_models": 2, "dim": 16, "heads": 2, "n_components": 8, "n_gene_tokens": 2, "batch_size": 24, "k": 6}
TINY |= {"max_epochs": 8, "n_validations": 1, "patience": 4, "learning_rate": 0.01, "dropout": 0.1}
WIDTH, N_GENES = 6, 9
WEIGHT = np.random.default_rng(99).normal(size=(WIDTH, N_GENES)) / np.sqrt(WIDTH)


def cohort(n=40, n_sections=4, *, seed=0, noise=0.3, prefix="s"):
    """Sections, two of each patient, with labels of mean 3 that are linear in the features; each section has its own stain."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(n_sections), n)
    features = rng.normal(size=(len(number), WIDTH)) + rng.normal(size=(n_sections, WIDTH))[number]
    centred = features - np.array([features[number == i].mean(axis=0) for i in range(n_sections)])[number]
    labels = centred @ WEIGHT + noise * rng.normal(size=(len(number), N_GENES)) + 3
    sections = np.array([f"{prefix}{i}" for i in number])
    groups = np.array([f"{prefix}P{i // 2}" for i in number])
    positions = rng.uniform(0, 1000, size=(len(number), 2))
    return TrainingData(features.astype(np.float32), labels.astype(np.float32), sections, groups, positions)


TRAIN, NEW = cohort(), cohort(n_sections=2, seed=7, prefix="new")


def trained(kind=CMRCNet, data=TRAIN, seed=0, **changes):
    model = kind(**(TINY | changes))
    model.fit(data, seed=seed)
    return model


def predicted(model, data):
    return model.predict(data.features, data.sections)


def correlation(model, data=NEW):
    return np.mean(
        [
            pearson(data.labels[data.sections == s], predicted(model, data)[data.sections == s]).mean()
            for s in np.unique(data.sections)
        ]
    )


def content(model):
    config, arrays = model.state()
    config = {key: value for key, value in config.items() if key != "parameters"}
    return json.dumps(config), {name: values.tobytes() for name, values in arrays.items()}


@pytest.fixture(scope="module")
def model():
    """Not to be changed."""
    return trained(max_epochs=20, n_validations=2)


@pytest.mark.parametrize("output", ["mixture", "retrieval", "regression"])
def test_every_output_finds_the_signal(output):
    found = trained(output=output, max_epochs=20, ridge=False)
    assert correlation(found) > (0.6 if output == "retrieval" else 0.8)
    assert found.report["weights"]["ridge"] == 0


def test_the_mixture_is_the_weighted_sum_of_its_parts(model):
    parts = model.fitted.parts(NEW.features, NEW.sections, None)
    assert set(parts) == {name for name, weight in model.report["weights"].items() if weight > 0}
    weights = dict(zip(fitted.PARTS, model.fitted.weights, strict=True))
    expected = TRAIN.labels.mean(axis=0) + sum(weights[name] * values for name, values in parts.items())
    np.testing.assert_allclose(predicted(model, NEW), expected, atol=1e-5)


def test_the_mixture_has_the_ridge_but_not_in_the_publications():
    assert CMRCNet().parameters.ridge
    for published in (CMRCNet(preset="paper", output="mixture"), Bleep(output="mixture")):
        assert not published.parameters.ridge


def test_the_contrastive_loss_falls_far_below_its_chance_value():
    history = [entry for entry in trained(max_epochs=20, contrast=1.0).history_ if entry["run"] == "fit"]
    chance = np.log(TRAIN.labels.shape[0] / round(TRAIN.labels.shape[0] / TINY["batch_size"]))
    assert history[-1]["contrast"] < 0.6 * chance
    assert history[-1]["reconstruction"] < 0.8 * history[0]["reconstruction"]


def test_image_and_expression_of_a_spot_meet_in_the_shared_space(model):
    found = model.fitted
    arrays = found.inputs(NEW.features, NEW.sections, None)
    labels = NEW.labels - np.array([NEW.labels[NEW.sections == s].mean(axis=0) for s in NEW.sections])
    images = fitted.embed(found.ensemble, arrays, regress=False)[0]
    profiles = fitted.embed_labels(found.ensemble, (labels / found.scale).astype(np.float32))
    cosines = images @ profiles.T
    own = np.diag(cosines)
    assert np.mean((cosines < own[:, None]).mean(axis=1)) > 0.85


def test_a_wholly_masked_image_is_reconstructed_from_expression_alone():
    torch.manual_seed(0)
    labels, one, other = torch.randn(4, 5), torch.randn(4, 1, 8), torch.randn(4, 1, 8)
    for mask, same in ((1.0, True), (0.0, False)):
        network = CMRCNetNetwork(Architecture(n_components=6, n_genes=5, dim=8, heads=2, mask=mask)).eval()
        assert torch.allclose(network.reconstruct(one, labels), network.reconstruct(other, labels)) is same
        assert not torch.allclose(network.reconstruct(one, labels), network.reconstruct(one, labels.flip(0)))


@pytest.mark.parametrize("kind", [CMRCNet, Bleep, FeatureKNN])
def test_stain_order_blocks_and_other_sections_do_not_matter(kind, monkeypatch):
    found = FeatureKNN(k=5) if kind is FeatureKNN else kind(**(TINY | {"max_epochs": 2, "n_validations": 0}))
    found.fit(TRAIN, seed=0)
    expected, order = predicted(found, NEW), np.random.default_rng(0).permutation(len(NEW.labels))
    np.testing.assert_allclose(predicted(found, NEW.take(order)), expected[order], atol=1e-4)
    alone = NEW.sections == "new1"
    np.testing.assert_allclose(predicted(found, NEW.take(alone)), expected[alone], atol=1e-4)
    moved = replace(NEW, features=NEW.features + np.float32(0.125))
    np.testing.assert_allclose(predicted(found, moved), expected, atol=1e-3)
    monkeypatch.setattr(fitted, "_BLOCK", 7)
    np.testing.assert_allclose(predicted(found, NEW), expected, atol=1e-4)


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not():
    one = content(trained(max_epochs=2))
    assert content(trained(max_epochs=2)) == one
    other = content(trained(seed=1, max_epochs=2))[1]
    assert {"network.image_head/out/weight", "bank.keys"} <= {n for n in one[1] if one[1][n] != other[n]}


VARIANTS = {
    "plain": {},
    "no reconstruction": {"reconstruction": 0.0},
    "no contrast": {"contrast": 0.0},
    "no regression": {"regression": 0.0},
    "expression keys": {"keys": "expression"},
    "both keys": {"keys": "both", "weighting": "similarity"},
    "no centring": {"center": "none"},
    "no ridge": {"ridge": False},
    "no validation": {"n_validations": 0},
}


@pytest.mark.parametrize("name", [*VARIANTS, "bleep", "knn", "knn of 5"])
def test_every_variant_beats_the_mean_and_is_stored(name):
    if name.startswith("knn"):
        found = FeatureKNN(k=5 if "5" in name else None)
        found.fit(TRAIN, seed=0)
    else:
        found = trained(Bleep if name == "bleep" else CMRCNet, max_epochs=15, **VARIANTS.get(name, {}))
    assert correlation(found) > 0.4
    config, arrays = found.state()
    declared = type(found).array_shapes(config)
    assert set(declared) == set(arrays)
    for key, axes in declared.items():
        sizes = zip(axes, arrays[key].shape, strict=True)
        assert all(axis == size for axis, size in sizes if isinstance(axis, int))
    again = type(found).from_state(json.loads(json.dumps(config)), load(save(arrays)))
    assert predicted(again, NEW).tobytes() == predicted(found, NEW).tobytes()
    assert again.summary() == found.summary()


@pytest.mark.parametrize(("kind", "place"), [(CMRCNet, "parameters"), (FeatureKNN, "settings")])
def test_older_models_that_name_a_search_library_still_load(kind, place):
    model = kind(**TINY) if kind is CMRCNet else kind(k=5)
    model.fit(TRAIN, seed=0)
    config, arrays = model.state()
    older = {**config, "search": "faiss", place: {**config[place], "search": "faiss"}}
    np.testing.assert_array_equal(predicted(kind.from_state(older, arrays), NEW), predicted(model, NEW))


def test_tokens_tell_what_the_embedding_does_not():
    def hidden(data):
        tokens = np.stack([data.features, data.features], axis=1).astype(np.float16)
        noise = np.random.default_rng(5).normal(size=data.features.shape).astype(np.float32)
        return replace(data, features=noise, tokens=tokens)

    data, new = hidden(TRAIN), hidden(NEW)
    found = trained(data=data, max_epochs=20, output="regression")
    values = found.predict(new.features, new.sections, tokens=new.tokens)
    assert pearson(new.labels, values).mean() > 0.6


def test_one_section_is_validated_on_its_blocks():
    found = trained(data=cohort(90, 1), max_epochs=10)
    assert found.report["inner_folds"] == "block"
    assert correlation(found) > 0.5


def test_the_k_of_knn_is_chosen_inside_the_training_data():
    found = FeatureKNN()
    found.fit(TRAIN, seed=0)
    inner = found.report["inner_pcc"]
    assert found.report["k"] == int(max(inner, key=inner.get))
    # Where expression has nothing to do with features, averaging many is best.
    noise = replace(TRAIN, labels=np.random.default_rng(0).normal(size=TRAIN.labels.shape).astype(np.float32))
    wide = FeatureKNN()
    wide.fit(noise, seed=0)
    assert max(abs(value) for value in wide.report["inner_pcc"].values()) < 0.25


def test_own_patients_are_left_out_where_that_is_asked_for():
    free, strict = (trained(output="retrieval", exclude=e, max_epochs=2, n_validations=0) for e in ("none", "group"))
    other = TRAIN.groups != "sP0"
    bank = strict.reference_bank().take(other)
    rows = TRAIN.groups == "sP0"
    near = bank.nearest(strict.fitted.embed(TRAIN.features, TRAIN.sections, None, regress=False)[0][rows], TINY["k"])
    expected = bank.average(near) + TRAIN.labels.mean(axis=0)
    np.testing.assert_allclose(predicted(strict, TRAIN)[rows], expected, atol=1e-5)
    assert not np.allclose(predicted(free, TRAIN)[rows], expected, atol=1e-3)
    np.testing.assert_array_equal(predicted(free, NEW), predicted(strict, NEW))


RESUMED = {"n_validations": 2, "max_epochs": 4}


class Killed(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("n_batches", [4, 18, 30, 40])
def test_a_killed_fit_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, n_batches):
    drawn, pairs = [], fitting.Pairs

    def interrupted(*args):
        drawn.append(1)
        if len(drawn) == n_batches:
            raise Killed
        return pairs(*args)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "Pairs", interrupted)
        with pytest.raises(Killed):
            trained(checkpoint_dir=tmp_path / "fit", **RESUMED)
    assert content(trained(checkpoint_dir=tmp_path / "fit", **RESUMED)) == content(trained(**RESUMED))


def test_the_learning_rate_falls_along_a_cosine(monkeypatch):
    from img2gene.models.networks import lightning_module

    seen, step = [], lightning_module.TrainingModule.on_train_epoch_start

    def watched(self):
        seen.append(self.optimizers().param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(lightning_module.TrainingModule, "on_train_epoch_start", watched)
    trained(n_validations=0, max_epochs=5, learning_rate=0.01, final_learning_rate=0.001)
    expected = 0.001 + 0.009 * (1 + np.cos(np.pi * np.arange(5) / 5)) / 2
    np.testing.assert_allclose(seen, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "mean", "keys": "text", "mask": 2}, r"(?s)^3 problems.*output='mean'.*keys='text'.*mask=2: expected a number from 0 to 1"),
        ({"dim": 10, "heads": 4}, "dim=10 is not divisible by heads=4"),
        ({"contrast": 0, "reconstruction": 0, "regression": 0}, "there is no loss to train with"),
        ({"output": "regression", "regression": 0}, "needs the head that regression=0 leaves out"),
        ({"contrast": 0, "keys": "expression"}, "expression is not embedded in the shared space"),
        ({"temperature": 0.0}, "temperature=0.0: expected a number above 0"),
    ],
)  # fmt: skip
def test_parameters_are_checked_together(options, message):
    with pytest.raises(Img2GeneError, match=message):
        CMRCNet(**options)


@pytest.mark.parametrize("kind", [CMRCNet, Bleep, FeatureKNN, Ridge])
def test_a_section_of_one_spot_is_refused_where_spots_are_centred_by_section(kind):
    lonely = replace(TRAIN, sections=np.where(np.arange(160) == 5, "lonely", TRAIN.sections))
    few = {} if kind is Ridge else {"k": 6, "n_components": 8} if kind is FeatureKNN else TINY | {"max_epochs": 1}
    message = 'Sections lonely have a single spot.* [Ll]eave .*`center="none"`'
    with pytest.raises(Img2GeneError, match=message):
        kind(**few).fit(lonely, seed=0)
    model = kind(**few)
    model.fit(TRAIN, seed=0)
    with pytest.raises(Img2GeneError, match=message):
        predicted(model, lonely)
    two = replace(TRAIN, sections=np.where(np.arange(160) < 2, "two", TRAIN.sections))
    assert np.isfinite(predicted(model, two)).all()
    free = kind(center="none", **few)
    free.fit(lonely, seed=0)
    assert np.isfinite(predicted(free, lonely)).all()


def test_k_above_the_bank_is_refused_before_anything_is_trained():
    for found in (CMRCNet(k=161), Bleep(k=161), FeatureKNN(k=161)):
        with pytest.raises(Img2GeneError, match=r"k=161: the bank has 160 reference spots\. Lower `k`"):
            found.fit(TRAIN, seed=0)


@pytest.mark.parametrize(("kind", "name"), [("group", "sP0"), ("section", "s0")])
def test_the_only_patient_or_section_cannot_be_left_out(kind, name):
    one = TRAIN.take(getattr(TRAIN, f"{kind}s") == name)
    message = f"exclude='{kind}' leaves out a spot's own {kind}, but {name} is the only {kind} to train on"
    for model in (CMRCNet, Bleep):
        with pytest.raises(Img2GeneError, match=message):
            model(k=5, exclude=kind).fit(one, seed=0)
    trained(data=one, exclude=kind, output="regression", max_epochs=1, n_validations=0)


def test_defaults_of_bleep_are_its_own_and_unknown_parameters_are_named():
    assert Bleep().parameters.output == "retrieval"
    assert Bleep(k=7).parameters.k == 7
    assert CMRCNet().parameters.output == "mixture"
    with pytest.raises(Img2GeneError, match="`bleep` has no parameter depth"):
        ig.models.create("bleep", depth=3)


@pytest.mark.parametrize("kind", ["cmrcnet", "bleep", "knn"])
def test_on_a_study_it_is_stored_reloaded_and_says_where_predictions_come_from(study, kind, tmp_path):
    options = {"k": 6} if kind == "knn" else TINY | {"max_epochs": 3}
    ig.tl.fit(study, kind, validate_on=["C"], seed=0, **options)
    ig.tl.predict(study)
    study.write(tmp_path / "study.zarr")
    again = read_zarr(tmp_path / "study.zarr")
    ig.tl.predict(again)
    np.testing.assert_array_equal(again["table"].layers["img2gene"], study["table"].layers["img2gene"])
    scores = ig.tl.summarize(ig.tl.evaluate(study)).set_index(["model", "genes"])
    assert scores.loc[(kind, "all"), "pcc"] > 0.2
    found = ig.tl.retrieve(again, n=3)
    pd.testing.assert_frame_equal(ig.tl.retrieve(study, n=3), found)
    assert found.groupby("spot").size().eq(3).all()
    assert set(found["group"]) <= {"A", "B"}
    # References that are part of the study are named; they lie in the section that is stated.
    sections = study["table"].obs["section"].astype(str)
    assert (sections.loc[found["reference"]].to_numpy() == found["section"].to_numpy()).all()


def test_what_a_retrieval_leaves_out(study):
    ig.tl.fit(study, "knn", validate_on=["C"], k=4)
    table = study["table"]
    own = table.obs_names[(table.obs["section"] == "A1").to_numpy()][:5].tolist()
    free = ig.tl.retrieve(study, own, n=1)
    assert (free["reference"] == free["spot"]).all()
    assert free["similarity"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert "A1" not in set(ig.tl.retrieve(study, own, n=4, exclude="section")["section"])
    assert set(ig.tl.retrieve(study, own, n=4, exclude="group")["group"]) == {"B"}
    one = ig.tl.retrieve(study, own[0], n=4, exclude="group")
    pd.testing.assert_frame_equal(one, ig.tl.retrieve(study, own, n=4, exclude="group").head(4))


def test_references_of_sections_that_are_not_there_have_no_name(study, make_study):
    ig.tl.fit(study, "knn", validate_on=["C"], k=4)
    other = make_study((("D1", "D"), ("D2", "D")))
    found = ig.tl.retrieve(other, n=2, model=ig.get.model(study))
    assert found["reference"].isna().all()
    assert set(found["section"]) <= {"A1", "A2", "B1"}


def test_a_retrieval_that_cannot_be_is_refused_and_nothing_is_written(study, snapshot):
    ig.tl.fit(study, "knn", validate_on=["B", "C"], k=4)
    before = snapshot(study["table"])
    own = study["table"].obs_names[0]
    with pytest.raises(Img2GeneError, match="Without the group A the bank has no reference spots"):
        ig.tl.retrieve(study, own, exclude="group")
    with pytest.raises(Img2GeneError, match="exclude='patient': expected one of none, section, group"):
        ig.tl.retrieve(study, own, exclude="patient")
    with pytest.raises(Img2GeneError, match=r"n=1000: the bank has 98 reference spots. Lower `n`"):
        ig.tl.retrieve(study, own, n=1000)
    for n in (0, 2.5, "2"):
        with pytest.raises(Img2GeneError, match=f"n={n!r}: expected a whole number, 1 or more"):
            ig.tl.retrieve(study, own, n=n)
    with pytest.raises(Img2GeneError, match="fewer than n=60 .*Lower `n`"):
        ig.tl.retrieve(study, own, n=60, exclude="section")
    with pytest.raises(Img2GeneError, match="`spots` is empty: name spots"):
        ig.tl.retrieve(study, [])
    model = ig.get.model(study)
    study["slide_tiles"] = study["table"].copy()
    del study["slide_tiles"].obs["patient"]
    with pytest.raises(
        MissingKeyError, match=r"excludes the patient of the spot, which `sdata\['slide_tiles'\].obs` does not name"
    ):
        ig.tl.retrieve(study, own, exclude="group", model=model, table_key="slide_tiles")
    with pytest.raises(MissingKeyError, match=r"No spot named nobody in `sdata\['table'\].obs_names` \(available"):
        ig.tl.retrieve(study, "nobody")
    assert snapshot(study["table"]) == before
    ig.tl.fit(study, "ridge", validate_on=["C"])
    with pytest.raises(
        Img2GeneError, match="`ridge` does not look up training spots; `img2gene`, `cmrcnet`, `bleep` and `knn` do"
    ):
        ig.tl.retrieve(study)
