"""Let several processes do the same work on one path at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import img2gene as ig
from reliability import jobs
from reliability.jobs import Job
from reliability.kills import Child
from reliability.tally import Outcome

LEAST, MOST = 4, 8
_SETS = {f"set{number}": [f"GENE{number}{i}" for i in range(8)] for number in range(50)}


def _read_sets(folder: Path, number: int) -> str:
    ig.settings.cache_dir = folder
    with (
        mock.patch("gseapy.get_library_name", lambda organism: ["A_Library"]),
        mock.patch("gseapy.get_library", lambda library, organism, max_size: _SETS),
    ):
        sets = ig.pathways.read_gene_sets("A_Library", organism="human")
    return str(sets == _SETS)


RACES = (
    *(job for job in jobs.JOBS if not job.name.startswith("embed")),
    Job("gene-set cache", jobs.nothing, _read_sets),
)


def run(n_each: int, seed: int, chosen: tuple[Job, ...] = RACES) -> Iterator[Outcome]:
    """Run ``n_each`` races of each job, between four and eight processes; fewer of jobs that take long."""
    for job in chosen:
        rng = np.random.default_rng([seed, *job.name.encode()])
        with tempfile.TemporaryDirectory() as root:
            results = _results_without_race(job, Path(root))
            for number in range(job.n_trials(n_each)):
                folder = Path(root) / f"race{number}"
                folder.mkdir()
                job.prepare(folder)
                yield _race(job, folder, int(rng.integers(LEAST, MOST + 1)), results)


def _results_without_race(job: Job, root: Path) -> set[str]:
    """List what the job leads to, for both kinds of participants."""
    results = set()
    for number in range(2):
        folder = root / f"alone{number}"
        folder.mkdir()
        job.prepare(folder)
        answer = Child(_work(job, folder, number)).answer()
        if not answer.startswith("done"):
            raise RuntimeError(f"{job.name} fails without any race: {answer}")
        results.add(job.state(folder) if job.state else answer)
    return results


def _work(job: Job, folder: Path, number: int) -> Callable[[], Any]:
    return lambda: job.run(folder, number)


def _race(job: Job, folder: Path, n: int, results: set[str]) -> Outcome:
    gate, starter = os.pipe()

    def participant(number: int) -> Callable[[], str]:
        def work() -> str:
            os.close(starter)
            os.read(gate, 1)
            return job.run(folder, number)

        return work

    children = [Child(participant(number)) for number in range(n)]
    # All wait until the last copy of the writing end is closed.
    os.close(starter)
    answers = [child.answer() for child in children]
    os.close(gate)
    result, error = _judge(job, folder, answers, results)
    n_done = sum(answer.startswith("done") for answer in answers)
    return Outcome(job.name, "race", f"{n} processes, {n_done} succeeded", result, error)


def _judge(job: Job, folder: Path, answers: list[str], results: set[str]) -> tuple[str, str]:
    bad = [answer for answer in answers if not answer.startswith(("done", "refused"))]
    if bad:
        return "raw error", bad[0] or "a process died"
    if not any(answer.startswith("done") for answer in answers):
        return "no process succeeded", answers[0]
    if job.state is None:
        other = [answer for answer in answers if answer.startswith("done") and answer not in results]
        return ("different", other[0]) if other else ("equal", "")
    try:
        state = job.state(folder)
    # Whatever keeps the result from being read is the failure.
    except Exception as error:  # noqa: BLE001
        return "unreadable", repr(error)[:200]
    left = [path.name for path in folder.iterdir() if "partial" in path.name]
    if left:
        return "left behind", ", ".join(left)
    return ("new", "") if state in results else ("neither old nor new", "")
