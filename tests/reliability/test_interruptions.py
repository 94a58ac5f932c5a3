"""After an interruption at any line, an object is as it was or as the function would have left it."""

import pytest

from reliability import calls, interruptions
from reliability.tally import Tally

# Warnings of other packages would end trials with errors that no user sees.
pytestmark = pytest.mark.filterwarnings("ignore")
N_EACH, SEED = 8, 0


@pytest.fixture(scope="module", autouse=True)
def prepared():
    calls.prepare()


@pytest.mark.parametrize("subject", interruptions.subjects(), ids=lambda subject: subject.name)
def test_an_interrupted_function_writes_all_or_nothing(subject):
    tally = Tally().extend(interruptions.run(N_EACH, SEED, [subject]))
    assert tally.n_trials == N_EACH + 1
    assert not tally.failures, tally.summary()
