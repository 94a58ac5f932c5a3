"""Hostile arguments end in the package's own error, and leave objects and files as they were."""

import pytest

from reliability import calls, functions
from reliability.tally import Tally

# Warnings of other packages would end trials with errors that no user sees.
pytestmark = pytest.mark.filterwarnings("ignore")
N, SEED, N_SHARES = 800, 0, 8


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
