"""Hostile arguments end in the package's own error, and leave objects and files as they were."""

import pytest

import img2gene as ig
from img2gene import Img2GeneError
from reliability import calls, functions
from reliability.content import text_of
from reliability.tally import Tally

# Warnings of other packages would end trials with errors that no user sees.
pytestmark = pytest.mark.filterwarnings("ignore")
N, SEED, N_SHARES = 400, 0, 4


def test_every_public_function_is_called():
    assert not list(functions.undescribed())


@pytest.fixture(scope="module", autouse=True)
def prepared():
    calls.prepare()


@pytest.mark.parametrize("share", range(N_SHARES))
def test_hostile_arguments_are_refused(share):
    tally = Tally().extend(calls.run(calls.sample(N, SEED)[share::N_SHARES]))
    assert tally.n_trials >= N // N_SHARES - 1
    assert not tally.failures, tally.summary()


# Larger than any section or panel here; each means all of it.
@pytest.mark.parametrize(
    ("name", "argument", "large", "whole"),
    [
        ("tl.cross_validate", "smooth", 10**9, 9),
        ("tl.localize", "smooth", 1e308, 10**6),
        ("tl.gene_correlation", "n_modules", 500, 10),
    ],
)
def test_large_numbers_mean_all_there_is(tmp_path, name, argument, large, whole):
    function = functions.public_functions()[name]
    results = [function(**functions.valid_arguments(name, tmp_path), **{argument: value}) for value in (large, whole)]
    tables = [result.scores if name == "tl.cross_validate" else result for result in results]
    if name == "tl.gene_correlation":
        tables = [result.modules for result in results]
    assert text_of(tables[0]) == text_of(tables[1])


@pytest.mark.parametrize("model", functions.built_in_models())
@pytest.mark.parametrize("argument", ["smooth", "n_modules", "pathways"])
def test_models_refuse_arguments_of_others_and_truth_values_as_text(model, argument):
    arguments = functions.valid_arguments(f"tl.fit[{model}]", None)
    with pytest.raises(Img2GeneError, match=rf"no parameter {argument}|{argument}='no': expected True or False"):
        ig.tl.fit(**arguments, **{argument: "no"})
