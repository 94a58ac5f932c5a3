"""Kill work that writes files at random times, and check what is left and what a second call makes of it."""

from __future__ import annotations

import os
import select
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from img2gene import Img2GeneError
from reliability import jobs, studies
from reliability.forked import fork, stop
from reliability.jobs import Job
from reliability.tally import Outcome, describe

PATIENCE_S = 300.0
# A kill may come a little later than the work usually ends.
_LATEST = 1.05


def prepare() -> None:
    """Import and build in this process what the children then share."""
    studies.quieten()
    studies.embedded()
    studies.trained("mean"), studies.trained("ridge")


class Child:
    """Work in a forked child, whose answer comes through a pipe."""

    def __init__(self, work: Callable[[], str]) -> None:
        self.reader, writer = os.pipe()
        self.number = fork(lambda: os.write(writer, _answer(work).encode()), close=self.reader)
        os.close(writer)

    def answer(self, seconds: float = PATIENCE_S) -> str:
        """Wait for the answer; empty if the child died, "hang" if it takes too long."""
        ready = select.select([self.reader], [], [], seconds)[0]
        text = os.read(self.reader, 65_536).decode() if ready else "hang"
        self.end()
        return text

    def kill(self) -> None:
        """Kill the child at once."""
        os.kill(self.number, signal.SIGKILL)
        self.end()

    def end(self) -> None:
        """Collect the child."""
        stop(self.number)
        os.close(self.reader)


def _answer(work: Callable[[], str]) -> str:
    try:
        return f"done {work()}"
    except Img2GeneError as error:
        return f"refused {error}"[:4_000]
    # Any other exception is what the trial looks for.
    except BaseException as error:  # noqa: BLE001
        return f"raw error {describe(error)}"


def run(n_each: int, seed: int, chosen: tuple[Job, ...] = jobs.JOBS) -> Iterator[Outcome]:
    """Kill each job ``n_each`` times, those that take long less often."""
    for job in chosen:
        rng = np.random.default_rng([seed, *job.name.encode()])
        with tempfile.TemporaryDirectory() as root:
            trial = Trial(job, Path(root))
            for _ in range(job.n_trials(n_each)):
                yield trial.kill(rng.uniform(0, _LATEST * trial.seconds))


class Trial:
    """One job that is killed again and again, each time in a new folder."""

    def __init__(self, job: Job, root: Path) -> None:
        self.job, self.root, self.n_folders = job, root, 0
        # The first run in a child pays for what later runs find in memory or on disk.
        for _ in range(2):
            folder = self._folder()
            self.before = job.state(folder) if job.state else ""
            start = time.monotonic()
            self.expected = Child(lambda folder=folder: job.run(folder, 0)).answer()
            self.seconds = time.monotonic() - start
        if not self.expected.startswith("done"):
            raise RuntimeError(f"{job.name} fails without any kill: {self.expected}")
        self.after = job.state(folder) if job.state else ""

    def _folder(self) -> Path:
        folder = self.root / f"trial{self.n_folders}"
        self.n_folders += 1
        folder.mkdir()
        self.job.prepare(folder)
        return folder

    def kill(self, seconds: float) -> Outcome:
        """Start the work, kill it after some time, and judge what is left."""
        folder = self._folder()
        child = Child(lambda: self.job.run(folder, 0))
        time.sleep(seconds)
        child.kill()
        result, error = self._left(folder) if self.job.state else ("equal", "")
        if result in ("old", "new", "equal"):
            answer = Child(lambda: self.job.run(folder, 0)).answer()
            if answer != self.expected:
                result, error = "different after the next call", answer
            elif not self.job.state:
                result = "equal"
        detail = f"after {seconds:.3f} of {self.seconds:.3f} s"
        return Outcome(self.job.name, "kill", detail, result, error)

    def _left(self, folder: Path) -> tuple[str, str]:
        assert self.job.state is not None
        try:
            state = self.job.state(folder)
        # Whatever keeps the result from being read is the failure.
        except Exception as error:  # noqa: BLE001
            return "unreadable", describe(error)
        if state == self.before:
            return "old", ""
        return ("new", "") if state == self.after else ("neither old nor new", "")
