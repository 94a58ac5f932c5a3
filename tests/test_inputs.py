"""Predictors get features, sections, and the checked inputs that they declare, and nothing else."""

import numpy as np
import pytest

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene._study import inputs as study_inputs
from img2gene._study.expression import library_size
from img2gene._study.study import Study
from img2gene.models import registry

EXTRAS = [(), ("positions",), ("tokens",), ("positions", "tokens")]


class Curious:
    """Predicts ones, and keeps what it was given."""

    name = "curious"
    shapes = {"ones": ("genes",)}
    given: dict = {}

    def fit(self, data, *, seed):
        self.ones = np.ones(data.labels.shape[1], dtype=np.float32)
        type(self).data = data

    def predict(self, features, sections, **extra):
        type(self).given = extra
        return np.tile(self.ones, (len(features), 1))

    def state(self):
        return {}, {"ones": self.ones}

    @classmethod
    def from_state(cls, config, arrays):
        model = cls()
        model.ones = arrays["ones"]
        return model

    def summary(self):
        return {}


@pytest.fixture
def curious(monkeypatch):
    """Register a model that declares these inputs, or is as old as the attribute is missing."""

    def build(inputs=None):
        kind = type("Declaring", (Curious,), {} if inputs is None else {"inputs": inputs})
        monkeypatch.setitem(registry._REGISTRY, "curious", kind)
        return kind

    ig.models.list()
    return build


@pytest.fixture(scope="module")
def embedded(make_study):
    """A study of four sections with a grid of nine tokens; not to be changed."""
    sdata = make_study(embed=False, n_side=3)
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32)
    ig.pp.embed_patches(sdata, "color-texture", tokens=9, orientations=1)
    return sdata


@pytest.fixture
def sections(embedded, copy_of):
    return copy_of(embedded)


def identity_of(sdata):
    return _schema.read_json(sdata["table"], "encoder")["color-texture"]


@pytest.mark.parametrize("inputs", [None, *EXTRAS])
def test_a_predictor_gets_what_it_declares(sections, curious, inputs):
    kind, table = curious(inputs), sections["table"]
    ig.tl.fit(sections, "curious", validate_on=["C"], uncertainty=False)
    ig.tl.predict(sections)
    expected = {"positions": Study.of(sections).positions, "tokens": table.obsm["X_color-texture_tokens"]}
    assert set(kind.given) == set(inputs or ())
    # Sections are predicted one after the other; the last one has nine spots.
    for name, values in kind.given.items():
        np.testing.assert_array_equal(values, expected[name][27:])
    looks_at_tokens = "tokens" in (inputs or ())
    trained = np.arange(27)
    assert (kind.data.tokens is not None) == looks_at_tokens
    if looks_at_tokens:
        np.testing.assert_array_equal(kind.data.tokens, expected["tokens"][trained])
    np.testing.assert_array_equal(kind.data.positions, expected["positions"][trained])
    known = identity_of(sections)
    assert ig.get.model(sections).inputs == (known if looks_at_tokens else study_inputs.without_tokens(known))


def test_library_sizes_are_those_of_the_training_spots_with_counts(sections, curious):
    kind, table = curious(), sections["table"]
    counts = table.X.toarray()
    counts[4] = 0
    table.X, table.obs["library_size"] = counts, counts.sum(axis=1)
    ig.tl.fit(sections, "curious", genes=["G02", "G05"], validate_on=["C"], uncertainty=False)
    np.testing.assert_array_equal(kind.data.library, np.delete(counts.sum(axis=1), 4)[:26])
    assert kind.data.pathways is None
    np.testing.assert_array_equal(library_size(table)[[3, 5]], kind.data.library[[3, 4]])
    table.layers["mine"] = np.random.default_rng(0).normal(size=table.shape)
    ig.tl.fit(sections, "curious", layer="mine", uncertainty=False)
    assert kind.data.library is None


def test_fitted_without_tokens_a_predictor_is_called_without(sections, curious):
    kind = curious(("positions", "tokens"))
    ig.pp.embed_patches(sections, "color-texture", orientations=1)
    ig.tl.fit(sections, "curious", validate_on=["C"])
    assert kind.data.tokens is None
    assert "tokens" not in ig.get.model(sections).inputs
    ig.pp.embed_patches(sections, "color-texture", tokens=9, orientations=1)
    ig.tl.predict(sections)
    assert set(kind.given) == {"positions"}


def test_tokens_that_are_lost_or_faulty_are_named(sections, curious):
    curious(("tokens",))
    model = ig.tl.fit(sections, "curious", inplace=False)
    tokens = sections["table"].obsm.pop("X_color-texture_tokens")
    hint = r"Run `img2gene.pp.embed_patches\(sdata, 'color-texture', tokens=9\)`"
    for call in (lambda: ig.tl.predict(sections, model), lambda: ig.tl.fit(sections, "curious")):
        with pytest.raises(MissingKeyError, match=f"`X_color-texture_tokens` not found in .*{hint}"):
            call()
    tokens[3, 2, 1] = np.inf
    sections["table"].obsm["X_color-texture_tokens"] = tokens
    with pytest.raises(Img2GeneError, match="NaN or infinite in 1 rows"):
        ig.tl.fit(sections, "curious")
    ig.tl.fit(sections, "ridge")


def test_all_that_is_wrong_with_the_inputs_of_a_model_is_named(sections, curious):
    kind = curious(("positions", "tokens"))
    model = ig.tl.fit(sections, "curious", inplace=False)
    features, names = np.zeros((2, model.inputs["width"])), ["a", "a"]
    positions, tokens = np.zeros((2, 2)), np.zeros((2, 9, 50), np.float16)
    faulty = positions.copy(), tokens.copy()
    faulty[0][1, 0], faulty[1][0, 4, 7] = np.nan, np.inf
    for extra, message in (
        (
            {},
            r"(?s)2 problems.*`curious` needs `positions=`, of shape \(2, 2\): row and column of each spot in µm.*needs `tokens=`, "
            r"of shape \(2, 9, 50\): stored by `img2gene.pp.embed_patches\(sdata, 'color-texture', tokens=9\)`",
        ),
        ({"positions": positions[:1], "tokens": tokens}, r"`positions` has shape \(1, 2\), expected \(2, 2\)"),
        ({"positions": positions, "tokens": tokens[:, :4]}, r"`tokens` has shape \(2, 4, 50\), expected \(2, 9, 50\)"),
        (
            dict(zip(("positions", "tokens"), faulty, strict=True)),
            "(?s)1 spots have NaN or infinite positions.*1 spots have NaN or infinite tokens",
        ),
    ):
        with pytest.raises(Img2GeneError, match=message):
            model.predict(features, names, **extra)
    model.predict(features, names, positions=positions, tokens=tokens)
    assert set(kind.given) == {"positions", "tokens"}


def test_what_a_model_does_not_declare_is_not_looked_at(sections, curious):
    kind = curious()
    model = ig.tl.fit(sections, "curious", inplace=False)
    model.predict(np.zeros((2, model.inputs["width"])), ["a", "a"], positions=np.zeros(3), tokens=np.zeros(1))
    assert kind.given == {}


def test_inputs_that_there_are_not_are_refused_at_registration():
    kind = type("Deep", (Curious,), {"name": "deep", "inputs": ("positions", "depth")})
    with pytest.raises(Img2GeneError, match=r"`deep` declares unknown inputs depth \(available: positions, tokens\)"):
        ig.models.register(kind)
    assert "deep" not in ig.models.list()
