"""No argument of a function ends in an error of another package, and numbers of numpy are numbers."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import img2gene as ig
from img2gene import Img2GeneError

MARKERS = {"red": ["G00", "G03"]}
QUICK = {"baselines": False, "n_permutations": 0}
HOSTILE = {
    "none": None,
    "true": True,
    "zero": 0,
    "negative": -1,
    "huge": 10**30,
    "fraction": 1.5,
    "nan": float("nan"),
    "infinite": float("inf"),
    "complex": 1j,
    "numpy number": np.float32(2.5),
    "time": np.timedelta64(3, "D"),
    "empty text": "",
    "unknown": "zz",
    "null character": "a\0b",
    "bytes": b"ridge",
    "list": ["zz"],
    "nested": [["G00"]],
    "empty list": [],
    "numbers": [1, 2],
    "dict": {"A": 3},
    "nested dict": {"A": {"B": 1}},
    "array without axes": np.array("zz"),
    "array of two axes": np.zeros((2, 2)),
    "frame": pd.DataFrame({"a": [1]}),
    "path": Path("nowhere/file"),
    "object": object(),
    "class": dict,
    "function": len,
}
FUNCTIONS = {
    "fit": (ig.tl.fit, ("ridge",), "model genes layer groups train_on validate_on encoder seed key_added table_key level finetune finetune_epochs finetune_learning_rate finetune_batch_size allow_leakage allow_single_section uncertainty inplace"),
    "predict": (ig.tl.predict, (), "model table_key key_added uncertainty inplace"),
    "evaluate": (ig.tl.evaluate, (), "model sections gene_groups markers n_permutations seed key table_key allow_leakage inplace"),
    "cross_validate": (functools.partial(ig.tl.cross_validate, **QUICK), ("mean",), "models groups inner n_folds test_on genes gene_groups markers layer smooth encoder n_permutations level keep_predictions seed n_threads table_key allow_leakage"),
    "learning_curve": (functools.partial(ig.tl.learning_curve, fractions=(1,), n_repeats=1), ("mean",), "models fractions by groups test_on n_repeats genes gene_groups layer encoder seed n_threads table_key allow_leakage"),
    "localize": (ig.tl.localize, (MARKERS,), "markers name model annotation positive sections threshold smooth use key table_key key_added allow_leakage inplace"),
    "predictability": (functools.partial(ig.tl.predictability, n_permutations=9), (), "model sections method n_permutations fdr seed key table_key allow_leakage inplace"),
    "gene_correlation": (ig.tl.gene_correlation, (), "model genes sections n_modules key table_key allow_leakage inplace"),
    "retrieve": (ig.tl.retrieve, (), "spots n exclude model key table_key"),
    "check_leaks": (ig.tl.check_leaks, (), "groups layer encoder table_key seed"),
    "pathway_contributions": (ig.tl.pathway_contributions, ("G00",), "gene model key table_key"),
}  # fmt: skip
# Their calls take long where they are not refused, so neighbouring arguments share the values.
SLOW = ("cross_validate", "learning_curve")
CALLS = [(name, argument) for name, (_, _, arguments) in FUNCTIONS.items() for argument in arguments.split()]


def call(sdata, name, argument, value):
    function, positional, _ = FUNCTIONS[name]
    arguments = dict(
        zip(
            {"fit": ["model"], "localize": ["markers"], "pathway_contributions": ["gene"]}.get(name, ["models"]),
            positional,
            strict=False,
        )
    )
    return function(sdata, **(arguments | {argument: value}))


def refused_or_done(sdata, name, argument, value):
    try:
        call(sdata, name, argument, value)
    except Img2GeneError as error:
        assert len(str(error)) > 10
        return True
    except Exception as error:  # noqa: BLE001 - any other error is the failure
        pytest.fail(f"{name}({argument}={value!r}): {type(error).__name__}: {error}")
    return False


@pytest.mark.parametrize(("name", "argument"), CALLS, ids=lambda part: part)
def test_no_argument_ends_in_an_error_of_another_package(trained_study, copy_of, name, argument):
    sdata = copy_of(trained_study)
    # None is valid for most arguments, and other tests train with it.
    values = [value for value in HOSTILE.values() if value is not None]
    if name in SLOW:
        values = values[CALLS.index((name, argument)) % 2 :: 2]
    refused = [refused_or_done(sdata, name, argument, value) for value in values]
    assert sum(refused) > len(refused) / 3


@pytest.mark.parametrize("n_jobs", ["a", 0, 10**30, [1], np.timedelta64(1, "D"), float("nan"), True])
def test_workers_are_a_number_of_processes(study, n_jobs):
    for function in (ig.tl.cross_validate, ig.tl.learning_curve):
        with pytest.raises(Img2GeneError, match="n_jobs="):
            function(study, "mean", n_jobs=n_jobs)


@pytest.mark.parametrize("folder", [3, "", "a\0b", ["cv"], b"cv"])
def test_a_folder_is_a_path(study, folder):
    for function in (ig.tl.cross_validate, ig.tl.learning_curve):
        with pytest.raises(Img2GeneError, match="folder="):
            function(study, "mean", folder=folder)


def test_numbers_and_names_of_numpy_and_pandas_are_taken(study, copy_of):
    other = copy_of(study)
    ig.tl.fit(study, "knn", k=5, genes=6, seed=3, level=0.5, validate_on=["C"])
    names = pd.Index(["C"])
    ig.tl.fit(
        other, "knn", k=np.int64(5), genes=np.int16(6), seed=np.uint32(3), level=np.float64(0.5), validate_on=names
    )
    models = [ig.get.model(sdata) for sdata in (study, other)]
    assert models[0].fingerprint == models[1].fingerprint
    for sdata in (study, other):
        ig.tl.predict(sdata, uncertainty=np.True_)
    groups = {"top": ("mean", np.int64(3))}
    found = ig.tl.evaluate(other, sections=np.array(["C1"]), gene_groups=groups, n_permutations=np.int8(2))
    pd.testing.assert_frame_equal(found, ig.tl.evaluate(study, gene_groups={"top": ("mean", 3)}, n_permutations=2))


@pytest.mark.parametrize("function", [ig.tl.cross_validate, ig.tl.learning_curve])
def test_nothing_is_listed_twice(study, function):
    with pytest.raises(Img2GeneError, match="models: mean listed more than once"):
        function(study, ["mean", "mean"])
    with pytest.raises(Img2GeneError, match="fractions: 0.5 listed more than once"):
        ig.tl.learning_curve(study, "mean", fractions=(0.5, 0.5, 1))


def test_a_predictor_that_was_not_trained_is_no_model(study):
    with pytest.raises(Img2GeneError, match="expected a trained model.*img2gene.tl.fit"):
        ig.tl.predict(study, ig.models.create("ridge"))


@pytest.fixture(scope="module")
def result(shared_study):
    return ig.tl.cross_validate(shared_study, "mean", baselines=False, n_permutations=0)


def test_what_is_no_table_of_scores_is_named(result):
    with pytest.raises(Img2GeneError, match="got CrossValidation. Pass its `scores`"):
        ig.tl.summarize(result)
    with pytest.raises(Img2GeneError, match="`zz` not found"):
        ig.tl.summarize(result.scores, by="zz")
    with pytest.raises(Img2GeneError, match="no rows"):
        ig.tl.summarize(result.scores[:0])


def test_tables_are_written_whole_without_formulas(result, tmp_path):
    with pytest.raises(Img2GeneError, match="missing.*folder that exists"):
        result.to_csv(tmp_path / "missing" / "scores.csv")
    with pytest.raises(Img2GeneError, match="folder"):
        result.to_csv(tmp_path)
    formula = dataclasses.replace(result, scores=result.scores.replace({"model": {"mean": "=1+1"}}))
    formula.to_csv(tmp_path / "scores.csv")
    assert pd.read_csv(tmp_path / "scores.csv")["model"].iloc[0] == "'=1+1"
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


@pytest.mark.parametrize("call", ["summary", "compare"])
@pytest.mark.parametrize("level", ["a", 0, 1, None, [0.9]])
def test_the_coverage_of_a_summary_is_a_share(result, call, level):
    with pytest.raises(Img2GeneError, match="level="):
        getattr(result, call)(level=level)


def test_kept_predictions_hold_one_column_of_percentiles(trained_study, copy_of):
    sdata = copy_of(trained_study)
    assert "img2gene_ood" in sdata["table"].obs
    sdata["table"].obs["img2gene_note"] = "mine"
    kept = ig.tl.cross_validate(sdata, "ridge", baselines=False, n_permutations=0, keep_predictions=True)
    obs = kept.predictions["ridge"].obs
    assert [name for name in obs if name.endswith("ood")] == ["ood"]
    assert set(obs["img2gene_note"]) == {"mine"}
