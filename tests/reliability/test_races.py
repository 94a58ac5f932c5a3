"""Processes that share a path: every result is whole, and the others succeed or are refused clearly."""

import pytest

from reliability import races
from reliability.tally import Tally

# Warnings of other packages would end trials with errors that no user sees.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("prepared_jobs")]
N_EACH, SEED = 1, 0


@pytest.mark.parametrize("job", [job for job in races.RACES if job.name != "benchmark"], ids=lambda job: job.name)
def test_a_race_leaves_one_whole_result(job):
    tally = Tally().extend(races.run(N_EACH, SEED, (job,)))
    assert tally.n_trials == job.n_trials(N_EACH)
    assert not tally.failures, tally.summary()
