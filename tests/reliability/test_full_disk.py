"""When the disk is full, files stay whole, nothing is left behind, and the next call gives the usual result."""

import errno
from pathlib import Path

import pytest

from reliability import full_disk
from reliability.kills import Child
from reliability.tally import Tally

# Warnings of other packages would end trials with errors that no user sees.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("prepared_jobs")]
N_EACH, SEED = 5, 0
SHORT = ("save_model", "gene-set cache", "predict(out=)")


@pytest.mark.parametrize("job", [job for job in full_disk.JOBS if job.name in SHORT], ids=lambda job: job.name)
def test_a_full_disk_loses_nothing(job):
    tally = Tally().extend(full_disk.run(N_EACH, SEED, (job,)))
    assert tally.n_trials == job.n_trials(N_EACH)
    assert not tally.failures, tally.summary()


def tried(folder, last):
    """Write a file in a child whose disk takes ``last`` operations, and name the error."""

    def work():
        full_disk.Disk(folder, last).mount()
        try:
            (folder / "file").write_bytes(b"whole")
            (folder / "file").rename(folder / "other")
        except OSError as error:
            return errno.errorcode[error.errno]
        return "written"

    return Child(work).answer()


@pytest.mark.parametrize(
    ("last", "answer", "files"),
    [
        (0, "done ENOSPC", {"file": b"wh"}),
        (1, "done ENOSPC", {"file": b"whole"}),
        (2, "done written", {"other": b"whole"}),
    ],
)
def test_the_trial_fills_the_disk_when_it_says(tmp_path, last, answer, files):
    assert tried(tmp_path, last) == answer
    assert {path.name: path.read_bytes() for path in Path(tmp_path).iterdir()} == files


def test_a_job_that_leaves_files_behind_is_noticed(tmp_path):
    def run(folder, number):
        (folder / "file.partial").write_bytes(b"half")
        (folder / "file.partial").rename(folder / "file")
        return ""

    job = full_disk.Job("careless", lambda folder: None, run)
    results = {outcome.result for outcome in full_disk.run(3, SEED, (job,))}
    assert "left behind" in results
