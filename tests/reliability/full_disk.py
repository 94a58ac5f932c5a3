"""Fill the disk while work writes files, and check what is left and what a second call makes of it."""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import resource
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import img2gene as ig
from reliability import jobs, kills, races, studies
from reliability.jobs import Job
from reliability.kills import Child
from reliability.tally import Outcome

_DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d")


def prepare() -> None:
    """Import and build in this process what the children then share."""
    kills.prepare()
    studies.complete()


def _old_page(folder: Path) -> None:
    (folder / "report.html").write_text("old")


def _report(folder: Path, number: int) -> str:
    ig.report(studies.copy_of(studies.complete()), folder / "report.html", n_genes=1, n_sections=1)
    return ""


def _page(folder: Path) -> str:
    return jobs.summary(_DATE.sub("", (folder / "report.html").read_text()))


JOBS = (
    *jobs.JOBS,
    Job("report", _old_page, _report, _page),
    *(job for job in races.RACES if job.name == "gene-set cache"),
)


@dataclass
class Disk:
    """A disk that is full from one operation on, as this process sees it.

    Attributes
    ----------
    folder
        Files below it are on the disk.
    last
        Number of the last operation that succeeds; None lets all succeed.
    """

    folder: Path
    last: int | None = None
    n_operations: int = 0

    def use(self, path: Any) -> None:
        """Count a write, a flush to the disk, a rename or a new folder; raise if the disk is full."""
        if not self.holds(path):
            return
        self.n_operations += 1
        if self.last is not None and self.n_operations > self.last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def holds(self, path: Any) -> bool:
        """Whether a path, or an open file, is on the disk."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        return isinstance(path, str | os.PathLike) and Path(os.path.abspath(path)).is_relative_to(self.folder)

    def mount(self) -> None:
        """Let this process write to the disk; only a process that ends after its work may do so."""
        for name in ("fsync", "replace", "rename", "mkdir"):
            setattr(os, name, self._guarded(getattr(os, name)))
        plain = io.open
        disk = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                try:
                    disk.use(self.name)
                except OSError:
                    # A full disk often takes the beginning.
                    super().write(bytes(data)[: len(data) // 2])
                    raise
                return super().write(data)

        def opened(file: Any, mode: str = "r", buffering: int = -1, *text: Any, **options: Any) -> Any:
            if not set("wax+") & set(mode) or options.get("opener") or not disk.holds(file):
                return plain(file, mode, buffering, *text, **options)
            raw = Raw(file, mode.replace("b", "").replace("t", ""))
            if "b" not in mode:
                return io.TextIOWrapper(io.BufferedWriter(raw), *text, **options)
            if buffering == 0:
                return raw
            return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

        io.open = builtins.open = opened  # type: ignore[assignment]

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(path: Any, *arguments: Any, **options: Any) -> Any:
            self.use(path)
            return function(path, *arguments, **options)

        return guarded


def run(n_each: int, seed: int, chosen: tuple[Job, ...] = JOBS) -> Iterator[Outcome]:
    """Fill the disk under each job ``n_each`` times, those that take long less often."""
    for job in chosen:
        rng = np.random.default_rng([seed, *job.name.encode()])
        with tempfile.TemporaryDirectory() as root:
            trial = Trial(job, Path(root).resolve())
            for number in range(job.n_trials(n_each)):
                # Libraries in other languages write past Python, and fail when a file would become too large.
                yield trial.limited(rng) if number % 4 == 3 else trial.filled(rng)


class Trial(kills.Trial):
    """One job whose disk is full again and again, each time in a new folder."""

    def __init__(self, job: Job, root: Path) -> None:
        super().__init__(job, root)
        folder = self._folder()
        n = Child(lambda: _counted(job, folder)).answer().removeprefix("done ")
        self.n_operations = int(n)
        self.sizes = sorted({path.stat().st_size for path in folder.rglob("*") if path.is_file()} - {0})

    def filled(self, rng: np.random.Generator) -> Outcome:
        """Fill the disk at a random operation."""
        last = int(rng.integers(self.n_operations))

        def prepare(folder: Path) -> None:
            Disk(folder, last).mount()

        return self._judge(prepare, f"after {last} of {self.n_operations} operations")

    def limited(self, rng: np.random.Generator) -> Outcome:
        """Let no file become larger than some size."""
        size = int(rng.uniform() * self.sizes[rng.integers(len(self.sizes))])

        def prepare(folder: Path) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        return self._judge(prepare, f"files up to {size} bytes")

    def _judge(self, prepare: Callable[[Path], None], detail: str) -> Outcome:
        folder = self._folder()
        answer = Child(lambda: _worked(self.job, folder, prepare)).answer()
        left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "partial" in path.name)
        result, error = "refused", ""
        if answer.startswith("done"):
            result = "equal"
            if answer != self.expected:
                result, error = "different", answer
        elif not answer.startswith("refused"):
            result, error = "raw error", answer
        elif left:
            result, error = "left behind", ", ".join(left[:3])
        elif self.job.state:
            result, error = self._left(folder)
        if result in ("old", "new", "equal", "refused"):
            again = Child(lambda: self.job.run(folder, 0)).answer()
            if again != self.expected:
                result, error = "different after the next call", again
        return Outcome(self.job.name, "full disk", detail, result, error)


def _counted(job: Job, folder: Path) -> str:
    disk = Disk(folder)
    disk.mount()
    job.run(folder, 0)
    return str(disk.n_operations)


def _worked(job: Job, folder: Path, prepare: Callable[[Path], None]) -> str:
    prepare(folder)
    try:
        return job.run(folder, 0)
    except OSError as error:
        if str(folder) in str(error):
            raise ig.Img2GeneError(f"An error that names the path: {error}") from error
        raise
