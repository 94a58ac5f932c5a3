"""After a kill at any time, every file is old or new, and the next call gives the uninterrupted result."""

import pytest

from reliability import jobs, kills
from reliability.tally import Tally

# Warnings of other packages would end trials with errors that no user sees.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("prepared_jobs")]
N_EACH, SEED = 2, 0


@pytest.mark.parametrize("job", [job for job in jobs.JOBS if job.name != "benchmark"], ids=lambda job: job.name)
def test_a_kill_loses_nothing(job):
    tally = Tally().extend(kills.run(N_EACH, SEED, (job,)))
    assert tally.n_trials == job.n_trials(N_EACH)
    assert not tally.failures, tally.summary()
