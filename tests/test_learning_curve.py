"""Learning curves: nested samples that all models share, scores equal to an ordinary fit's, and an unchanged study."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import img2gene as ig
from img2gene import Img2GeneError, LeakageError, MissingKeyError
from img2gene._study.subsets import nested_samples
from img2gene.models.baselines import TrainingMean
from img2gene.tl.evaluate import METRICS

TIMING = ["seconds"]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@ig.models.register
class Spy(TrainingMean):
    """The training mean, which notes what it is fitted to, and may give up."""

    name = "spy"
    seen = []

    def __init__(self, mark="", fail_at=None):
        super().__init__()
        self.mark, self.fail_at = mark, fail_at

    def fit(self, data, *, seed):
        if self.fail_at is not None and len(Spy.seen) >= self.fail_at:
            raise RuntimeError("gave up")
        spots = {(str(name), *place) for name, place in zip(data.sections, data.positions.tolist(), strict=True)}
        Spy.seen.append((self.mark, spots, set(data.groups.tolist()), data.labels.shape[1]))
        super().fit(data, seed=seed)


@pytest.fixture
def seen():
    Spy.seen = []
    return Spy.seen


@pytest.fixture(scope="module")
def curve(shared_study):
    return ig.tl.learning_curve(shared_study, ["mean", "ridge"], fractions=(0.5, 1), n_repeats=2)


def toy(n_sections=6, n_spots=20):
    names = np.repeat([f"S{i}" for i in range(n_sections)], n_spots)
    return {"sections": names, "groups": np.char.replace(names, "S", "P"), "positions": np.random.default_rng(0).normal(size=(len(names), 2))}  # fmt: skip


@pytest.mark.parametrize("by", ["groups", "spots"])
def test_smaller_samples_are_part_of_the_larger_ones(by):
    fractions = (0.1, 0.29, 0.5, 1)
    drawn = nested_samples(by, fractions, **toy(), rng=np.random.default_rng(0))
    for small, large in zip(drawn, drawn[1:], strict=False):
        assert (large | ~small).all()
        assert large.sum() > small.sum() or by == "groups"
    assert drawn[-1].all()


def test_groups_are_kept_whole_and_there_is_at_least_one():
    data = toy()
    drawn = nested_samples("groups", (0.1, 0.5, 0.99), **data, rng=np.random.default_rng(1))
    assert [len(set(data["groups"][mask])) for mask in drawn] == [1, 3, 6]
    assert [int(mask.sum()) for mask in drawn] == [20, 60, 120]


def test_the_spots_of_a_section_are_the_nearest_to_one_of_them():
    data = toy()
    (mask,) = nested_samples("spots", (0.29,), **data, rng=np.random.default_rng(1))
    for name in np.unique(data["sections"]):
        rows = data["sections"] == name
        places, inside = data["positions"][rows], mask[rows]
        # 0.29 · 20 = 5.8
        assert inside.sum() == 6
        distances = np.linalg.norm(places[:, None] - places[inside][None], axis=-1)
        assert any(distances[inside, i].max() < distances[~inside, i].min() for i in range(6))


def test_a_share_is_rounded_and_not_lost_to_floating_point():
    # 0.145 · 100 is 14.499999999999998 in floating point
    drawn = nested_samples("spots", (0.145, 0.294), **toy(1, 100), rng=np.random.default_rng(0))
    assert [mask.sum() for mask in drawn] == [15, 29]


@pytest.mark.parametrize("by", ["groups", "spots"])
def test_every_model_is_trained_on_the_same_nested_spots_of_the_other_groups(study, seen, by):
    models = {mark: {"model": "spy", "mark": mark} for mark in "ab"}
    result = ig.tl.learning_curve(study, models, fractions=(1, 0.5), by=by, n_repeats=1, test_on=["A", "C"])
    assert set(result["test_group"]) == {"A", "C"}
    assert [mark for mark, *_ in seen] == ["a", "b"] * 4
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert first[1:] == second[1:]
    for held_out, (small, large) in zip("AC", (seen[0::2][:2], seen[0::2][2:]), strict=True):
        assert small[1] < large[1]
        assert large[2] == set("ABC") - {held_out}
        assert small[2] == large[2] if by == "spots" else len(small[2]) == 1
    spots = result.query("model == 'a' and genes == 'all'")["n_spots"].tolist()
    assert spots == [len(spots) for _, spots, *_ in seen[::2]]


def test_samples_follow_the_seed_and_not_which_groups_are_tested(study, curve):
    options = {"fractions": (0.5, 1), "n_repeats": 2}
    again = ig.tl.learning_curve(study, ["mean", "ridge"], **options, seed=0)
    pd.testing.assert_frame_equal(again.drop(columns=TIMING), curve.drop(columns=TIMING))
    alone = ig.tl.learning_curve(study, "ridge", **options, test_on="B")
    same = curve.query("test_group == 'B' and model == 'ridge'").reset_index(drop=True)
    pd.testing.assert_frame_equal(alone.drop(columns=TIMING), same.drop(columns=TIMING))


def test_another_seed_and_another_repeat_draw_other_spots(study, seen):
    for seed in (1, 2):
        ig.tl.learning_curve(study, "spy", fractions=(0.3,), by="spots", n_repeats=2, test_on="A", seed=seed)
    drawn = [spots for _, spots, *_ in seen]
    assert all(one != other for i, one in enumerate(drawn) for other in drawn[i + 1 :])


def test_all_of_the_training_data_score_as_an_ordinary_fit(study, curve):
    for name in "ABC":
        ig.tl.fit(study, "ridge", validate_on=[name], uncertainty=False)
        ig.tl.predict(study)
        expected = ig.tl.summarize(ig.tl.evaluate(study)).query("model == 'ridge'").set_index("genes")
        for repeat in (0, 1):
            found = curve[(curve["test_group"] == name) & (curve["model"] == "ridge") & (curve["fraction"] == 1)]
            found = found[found["repeat"] == repeat].set_index("genes")
            columns = [*METRICS, "n_genes", "n_nan", "leakage"]
            pd.testing.assert_frame_equal(found[columns], expected[columns], rtol=1e-6)
            assert set(found["n_spots"]) == {ig.get.model(study).report["n_spots"]}


def test_what_is_returned(curve):
    assert [*curve.columns[:8]] == [
        "test_group",
        "model",
        "fraction",
        "repeat",
        "n_spots",
        "n_groups",
        "genes",
        "n_genes",
    ]
    assert [*curve.columns[8:]] == [*METRICS, "n_nan", "seconds", "leakage"]
    # groups × models × fractions × repeats × (all, HEG, HVG, SVG)
    assert len(curve) == 3 * 2 * 2 * 2 * 4
    assert curve.groupby("fraction")["n_groups"].unique().map(list).to_dict() == {0.5: [1], 1.0: [2]}
    assert not curve["leakage"].any()
    assert curve.query("model == 'mean'")["pcc"].isna().all()


def test_the_mean_that_r2_refers_to_is_that_of_the_whole_training_fold(curve):
    means = curve.query("model == 'mean' and genes == 'all'")
    np.testing.assert_allclose(means.query("fraction == 1")["r2"], 0, atol=1e-6)
    assert (means.query("fraction == 0.5")["r2"].abs() > 1e-4).all()


def test_genes_and_groups_are_chosen_on_the_whole_training_fold(study):
    table = study["table"]
    counts = table.X.toarray()
    names, section = list(table.var_names), table.obs["section"].to_numpy()
    # G11 leads in B1 alone, and by so much that it has the highest mean of B1 and C1 together.
    counts[section == "B1", names.index("G11")] += 40000
    table.X = sp.csr_matrix(counts)
    del table.obs["library_size"]
    group = {"top": ("mean", 1)}
    options = {"fractions": (0.5, 1), "n_repeats": 4, "test_on": "A", "genes": 2, "min_depth": 0}
    result = ig.tl.learning_curve(study, "ridge", gene_groups=group, **options)
    assert set(result.query("genes == 'all'")["n_genes"]) == {2}
    ig.tl.fit(study, "ridge", genes=2, validate_on="A", min_depth=0)
    (leading,) = ig.get.model(study).top_genes("mean", 1)
    lone = ig.tl.learning_curve(study, "ridge", gene_groups={"lone": [leading]}, **options)
    np.testing.assert_array_equal(result.query("genes == 'top'")["mse"], lone.query("genes == 'lone'")["mse"])
    # Both B1 and C1 were drawn alone; C1 would have told another gene to lead.
    assert result.query("genes == 'top' and fraction == 0.5")["mse"].nunique() == 2


def test_genes_that_the_smallest_sample_does_not_tell_about_are_left_out_of_all(study, seen):
    table = study["table"]
    counts = table.X.toarray()
    counts[(table.obs["section"] == "C1").to_numpy(), 3] = 0
    table.X = sp.csr_matrix(counts)
    options = {"fractions": (0.5, 1), "n_repeats": 4, "test_on": "A"}
    result = ig.tl.learning_curve(study, "spy", **options)
    assert {tuple(groups) for _, _, groups, _ in seen if len(groups) == 1} == {("B",), ("C",)}
    assert {n_genes for *_, n_genes in seen} == {11}
    assert set(result.query("genes == 'all'")["n_genes"]) == {11}
    with pytest.raises(Img2GeneError, match=r"Without A, 1 genes do not vary in a sample of fraction 0.5: G03"):
        ig.tl.learning_curve(study, "spy", genes=["G02", "G03"], **options)


def test_spots_without_counts_are_not_drawn(study, seen):
    table = study["table"]
    counts = table.X.toarray()
    counts[(table.obs["section"] == "B1").to_numpy().nonzero()[0][:29]] = 0
    table.X = sp.csr_matrix(counts)
    table.obs["library_size"] = counts.sum(axis=1)
    result = ig.tl.learning_curve(study, "spy", fractions=(0.5,), by="spots", n_repeats=1, test_on="A")
    # half of 20 and of 49
    assert set(result["n_spots"]) == {10 + 25}


def test_the_same_sample_is_trained_on_once(study, seen):
    result = ig.tl.learning_curve(study, "spy", fractions=(0.1, 0.2, 1), n_repeats=3, test_on="A")
    assert sum(len(groups) == 2 for _, _, groups, _ in seen) == 1
    assert len(seen) <= 3
    assert len(result.query("genes == 'all'")) == 3 * 3


def test_accuracy_rises_where_more_data_tell_more(make_study):
    study = make_study([(f"{name}1", name) for name in "ABCD"], depth=500.0)
    result = ig.tl.learning_curve(study, "ridge-plain", fractions=(0.1, 0.4, 1), by="spots", n_repeats=3)
    means = result.query("genes == 'all'").groupby("fraction")[["pcc", "r2"]].mean()
    assert means["pcc"].is_monotonic_increasing
    assert means["pcc"].iloc[-1] > means["pcc"].iloc[0] + 0.1
    assert means["r2"].iloc[-1] > means["r2"].iloc[0]


def test_a_layer_of_own_labels_is_learnt(study, seen):
    table = study["table"]
    table.layers["own"] = np.log1p(table.X.toarray())
    result = ig.tl.learning_curve(study, ["spy", "ridge"], fractions=(1,), n_repeats=1, layer="own", test_on="C")
    ig.tl.fit(study, "ridge", layer="own", validate_on="C")
    ig.tl.predict(study)
    expected = ig.tl.summarize(ig.tl.evaluate(study)).query("model == 'ridge'")
    np.testing.assert_allclose(result.query("model == 'ridge'")["pcc"], expected["pcc"], rtol=1e-6)


def test_models_may_look_at_different_embeddings(study):
    table = study["table"]
    ig.pp.embed_patches(study, "color-texture")
    models = {"one": {"model": "ridge", "encoder": "tiny"}, "other": {"model": "ridge", "encoder": "color-texture"}}
    options = {"fractions": (1,), "n_repeats": 1, "test_on": "C"}
    result = ig.tl.learning_curve(study, models, **options)
    again = ig.tl.learning_curve(study, "ridge", encoder="tiny", **options)
    np.testing.assert_array_equal(result.query("model == 'one'")["pcc"], again["pcc"])
    assert (result.query("model == 'other'")["mse"].to_numpy() != again["mse"].to_numpy()).all()
    with pytest.raises(Img2GeneError, match="Several embeddings are stored"):
        ig.tl.learning_curve(study, "ridge", **options)
    assert "X_tiny" in table.obsm


def test_patients_on_both_sides_are_refused_or_marked(study):
    options = {"groups": "section", "fractions": (1,), "n_repeats": 1, "test_on": ["A1", "C1"]}
    with pytest.raises(LeakageError, match="Patients A are on both sides"):
        ig.tl.learning_curve(study, "mean", **options)
    result = ig.tl.learning_curve(study, "mean", allow_leakage=True, **options)
    assert result.groupby("test_group")["leakage"].unique().map(list).to_dict() == {"A1": [True], "C1": [False]}


def test_the_study_is_left_alone_even_by_a_fit_that_fails(trained_study, copy_of, snapshot, seen):
    study = copy_of(trained_study)
    before = snapshot(study["table"])
    elements = [name for _, name, _ in study.gen_elements()]
    ig.tl.learning_curve(study, "ridge", fractions=(0.5,), n_repeats=1, test_on="A")
    with pytest.raises(RuntimeError, match="gave up"):
        ig.tl.learning_curve(study, {"x": {"model": "spy", "fail_at": 1}}, fractions=(0.5, 1), n_repeats=1)
    assert len(seen) == 1
    assert snapshot(study["table"]) == before
    assert [name for _, name, _ in study.gen_elements()] == elements


FAULTS = {
    "fraction": ({"fractions": (0, 0.5, 1.5)}, Img2GeneError, r"0, 1.5 outside \(0, 1\]"),
    "no fraction": ({"fractions": ()}, Img2GeneError, "`fractions` is empty"),
    "unit": ({"by": "cells"}, Img2GeneError, "by='cells': expected one of groups, spots"),
    "repeats": ({"n_repeats": 0}, Img2GeneError, "n_repeats=0: expected a whole number from 1 to 1000"),
    "model": ({"models": ["forest"]}, MissingKeyError, r"`forest` not found in `img2gene.models` \(available: .*ridge"),
    "no model": ({"models": []}, Img2GeneError, "`models` is empty"),
    "nameless model": ({"models": {"x": {"penalty": 1}}}, Img2GeneError, r"models\['x'\] names no model"),
    "parameter": ({"models": {"x": {"model": "ridge", "depth": 3}}}, Img2GeneError, "`ridge` has no parameter depth"),
    "group": ({"test_on": ["Z"]}, MissingKeyError, r"test_on=\['Z'\]: no patient named Z \(available: A, B, C\)"),
    "column": ({"groups": "donor"}, MissingKeyError, "`donor` not found in `sdata\\['table'\\].obs`"),
    "few spots": ({"by": "spots", "fractions": (0.03, 1)}, Img2GeneError, "0.03 leaves 1 of the 49 spots of section .*the smallest possible fraction is 0.031"),
    "gene group": ({"models": "spy", "gene_groups": {"x": ["G01", "TP53"]}}, Img2GeneError, "Gene group 'x': TP53 not predicted"),
    "two at once": ({"by": "cells", "models": "forest"}, Img2GeneError, "2 problems"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_before_anything_is_trained(shared_study, seen, fault):
    options, kind, message = FAULTS[fault]
    with pytest.raises(kind, match=message):
        ig.tl.learning_curve(shared_study, **options)
    assert not seen


def test_the_fraction_that_is_named_is_possible(shared_study):
    result = ig.tl.learning_curve(shared_study, "mean", by="spots", fractions=(0.031,), n_repeats=1, test_on="C")
    assert set(result["n_spots"]) == {2 * 3}


def test_too_few_groups_are_named_with_what_to_do(make_study, study):
    pair = make_study([("A1", "A"), ("B1", "B")])
    with pytest.raises(
        Img2GeneError, match='needs at least two groups to train on, but there is only B: pass `by="spots"`'
    ):
        ig.tl.learning_curve(pair, "mean")
    assert len(ig.tl.learning_curve(pair, "mean", by="spots", fractions=(1,), n_repeats=1)) == 2 * 4
    study["table"].obs["donor"] = "A"
    with pytest.raises(Img2GeneError, match=r"obs\['donor'\] has one value only \(A\)"):
        ig.tl.learning_curve(study, "mean", groups="donor")
    study["table"].obs["half"] = np.arange(study["table"].n_obs) % 2
    with pytest.raises(Img2GeneError, match=r"obs\['half'\] divides the sections A1, A2, B1, C1"):
        ig.tl.learning_curve(study, "mean", groups="half")


def test_the_plot_shows_means_and_the_spread_over_groups_and_repeats(curve):
    before = curve.copy()
    (ax,) = ig.pl.learning_curve(curve, metric="r2", genes="HVG").axes
    assert ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["mean", "ridge"]
    for line, band, name in zip(ax.lines, ax.collections, ("mean", "ridge"), strict=True):
        points = curve[(curve["model"] == name) & (curve["genes"] == "HVG")].groupby("fraction")
        np.testing.assert_allclose(line.get_xdata(), points["n_spots"].mean())
        np.testing.assert_allclose(line.get_ydata(), points["r2"].mean())
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.max() == pytest.approx((points["r2"].mean() + points["r2"].std()).max())
        assert heights.min() == pytest.approx((points["r2"].mean() - points["r2"].std()).min())
    pd.testing.assert_frame_equal(curve, before)


def test_the_plot_marks_undefined_models_and_takes_axes(curve):
    ax = plt.subplots()[1]
    assert ig.pl.learning_curve(curve, genes="all", x="n_groups", ax=ax) is ax.figure
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["mean (undefined)", "ridge"]
    assert ax.get_xlabel() == "training groups"
    assert ax.get_xscale() == "linear"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "accuracy"}, "'accuracy' is not a number of the learning curve .*pcc"),
        ({"genes": "XYZ"}, r"No gene group 'XYZ' \(available: all, HEG, HVG, SVG\)"),
        ({"x": "days"}, "x='days': curves are drawn against n_spots, n_groups, fraction"),
    ],
)
def test_the_plot_names_what_is_missing(curve, options, message):
    with pytest.raises(MissingKeyError, match=message):
        ig.pl.learning_curve(curve, **options)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fractions": 0.5}, r"fractions=0.5: expected several numbers"),
        ({"fractions": ("a",)}, r"fractions=\('a',\): expected several numbers"),
        ({"n_repeats": 1.5}, r"n_repeats=1.5: expected a whole number from 1 to 1000"),
        ({"genes": 10.0}, r"genes=10.0: expected names"),
        ({"models": None}, r"models=None: expected"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_of_the_wrong_type_are_named(study, change, match):
    with pytest.raises(Img2GeneError, match=match):
        ig.tl.learning_curve(study, **change)


def test_model_may_be_named_for_a_label(study):
    found = ig.tl.learning_curve(study, {"a": "mean"}, fractions=(1,), n_repeats=1, test_on=["A"])
    assert set(found["model"]) == {"a"}


def test_every_point_has_checkpoints_of_its_own(study, tmp_path):
    small = {"model": "img2gene", "n_models": 1, "n_validations": 0, "max_epochs": 1, "dim": 16}
    options = {"fractions": (0.5, 1), "n_repeats": 1, "test_on": ["A", "B"]}
    models = {"small": {**small, "checkpoint_dir": tmp_path}}
    found = ig.tl.learning_curve(study, models, **options)
    assert len(list(tmp_path.iterdir())) == 4
    again = ig.tl.learning_curve(study, models, **options)
    pd.testing.assert_frame_equal(found.drop(columns=TIMING), again.drop(columns=TIMING))


def test_errors_name_the_fold_and_the_model(study, seen):
    with pytest.raises(RuntimeError) as error:
        ig.tl.learning_curve(
            study, {"mine": {"model": "spy", "fail_at": 0}}, fractions=(1,), n_repeats=1, test_on=["B"]
        )
    assert error.value.__notes__ == ["This was the model 'mine', trained without B."]
    with pytest.raises(Img2GeneError, match="Without B, 'mine': "):
        ig.tl.learning_curve(study, {"mine": {"model": "knn", "k": 10**6}}, fractions=(1,), n_repeats=1, test_on=["B"])


def test_processes_change_nothing(study, curve):
    parallel = ig.tl.learning_curve(study, ["mean", "ridge"], fractions=(0.5, 1), n_repeats=2, n_jobs=2)
    pd.testing.assert_frame_equal(parallel.drop(columns=TIMING), curve.drop(columns=TIMING))


def test_an_interrupted_curve_goes_on_from_its_folder(study, tmp_path, seen):
    options = {"fractions": (0.5, 1), "n_repeats": 1, "folder": tmp_path / "curve"}
    with pytest.raises(RuntimeError, match="gave up"):
        ig.tl.learning_curve(study, {"spy": {"model": "spy", "fail_at": 3}}, **options)
    assert len(seen) == 3
    whole = ig.tl.learning_curve(study, {"spy": {"model": "spy", "fail_at": 99}}, fractions=(0.5, 1), n_repeats=1)
    with pytest.raises(Img2GeneError, match="models"):
        ig.tl.learning_curve(study, {"spy": {"model": "spy", "fail_at": 99}}, **options)
    seen.clear()
    resumed = ig.tl.learning_curve(study, {"spy": {"model": "spy", "fail_at": 3}}, **options)
    assert len(seen) == 3
    pd.testing.assert_frame_equal(resumed.drop(columns=TIMING), whole.drop(columns=TIMING))


def test_a_folder_of_a_cross_validation_is_no_folder_of_a_curve(study, tmp_path):
    ig.tl.cross_validate(study, "mean", baselines=False, n_permutations=0, folder=tmp_path / "cv")
    with pytest.raises(Img2GeneError, match="results of two are never mixed"):
        ig.tl.learning_curve(study, "mean", fractions=(1,), n_repeats=1, folder=tmp_path / "cv")


@pytest.mark.parametrize("n_jobs", [0, 1.5, None, True])
def test_the_number_of_processes_is_checked(study, n_jobs):
    with pytest.raises(Img2GeneError, match="n_jobs="):
        ig.tl.learning_curve(study, "mean", n_jobs=n_jobs)
