"""Train in several processes of this computer: start them, hand them a training run, and collect its result.

Lightning would start such processes by running the script again, which fails without ``if __name__ == "__main__"``, or by
a fork, which hangs after CUDA or OpenMP were used. These are fresh interpreters that get the run by value instead.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from img2gene._errors import Img2GeneError
from img2gene.models.networks.training_task import TrainingRun, TrainingSchedule, TrainingTask
from img2gene.settings import settings

JOB, EPOCHS = "job.pkl", "epochs.jsonl"
# Seconds that processes wait for the next training run of a fit. Starting them takes seconds, and each holds torch.
IDLE = 60.0
_POLL = 0.02
# Seconds in which the others may tell why they failed, too: of several errors the one that names the cause is raised.
_GRACE = 5.0
# What torchrun and SLURM set would make Lightning look for processes that are not there.
_FOREIGN = ("RANK", "WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
_START = "import sys; sys.path[:] = {path!r}; from img2gene.models.networks.rank import main; main({rank})"
_GUARD = threading.Lock()
_IDLE: list[Ranks] = []


@dataclass(frozen=True)
class RankJob:
    """One training run as its processes get it.

    Attributes
    ----------
    task, schedule, label
        As in :func:`img2gene.models.networks.train.train`.
    folder, checkpoint
        Where the checkpoint of each epoch is written, and the one to go on from.
    port
        At which the processes meet.
    n_threads
        Threads of torch in each process.
    options
        Settings of the package.
    """

    task: TrainingTask
    schedule: TrainingSchedule
    label: str
    folder: Path | None
    checkpoint: Path | None
    port: int
    n_threads: int
    options: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a process made of a training run: an error, or the result and, from the first process, the weights."""

    error: BaseException | None = None
    run: TrainingRun | None = None
    weights: dict[str, Any] | None = None


def train_on_ranks(
    task: TrainingTask,
    schedule: TrainingSchedule,
    n: int,
    *,
    folder: Path | None,
    checkpoint: Path | None,
    label: str,
    report: Callable[[dict[str, float]], None],
) -> TrainingRun:
    """Train in ``n`` processes, and put the weights of the first into the ensemble; ``report`` gets each epoch.

    Raises
    ------
    Img2GeneError
        As training in one process does; the run cannot be sent to other processes; or a process ended by itself.
    """
    job = RankJob(
        task,
        schedule,
        label,
        folder,
        checkpoint,
        _free_port(),
        max(torch.get_num_threads() // n, 1),
        asdict(settings) | {"progress": False},
    )
    with tempfile.TemporaryDirectory(prefix="img2gene-ranks-") as shared:
        _pack(job, Path(shared) / JOB)
        with Ranks.taken(n) as ranks:
            first = ranks.run(Path(shared), report)[0]
    if first.run is None or first.weights is None:
        raise Img2GeneError("The first training process returned no result. Train with `devices=1`.")
    task.ensemble.load_state_dict(first.weights)
    task.ensemble.eval()
    return first.run


class Ranks:
    """Processes that train together, and wait for the next training run for a while."""

    def __init__(self, n: int) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
        # The advice of C++ on unused parameters holds for networks that always use all of them.
        environment |= {"MASTER_ADDR": "127.0.0.1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        # Names of computers in containers often lead nowhere, and gloo would look this one up.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        self.owner, self.used, self.busy = os.getpid(), time.monotonic(), False
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", _START.format(path=sys.path, rank=rank)],
                stdin=subprocess.PIPE,
                env=environment | {"LOCAL_RANK": str(rank)},
                # Ctrl-C reaches this process alone, which then ends the others.
                start_new_session=True,
            )
            for rank in range(n)
        ]

    @classmethod
    @contextmanager
    def taken(cls, n: int) -> Iterator[Ranks]:
        """Waiting processes, or new ones; they wait again if all have told how their run ended, and are ended if not."""
        with _GUARD:
            idle = next((ranks for ranks in _IDLE if ranks.is_usable(n)), None)
            if idle is not None:
                _IDLE.remove(idle)
        ranks = idle or cls(n)
        try:
            yield ranks
        finally:
            if ranks.busy:
                ranks.close()
            else:
                ranks.used = time.monotonic()
                with _GUARD:
                    _IDLE.append(ranks)

    def is_usable(self, n: int) -> bool:
        """Whether these are ``n`` processes of this one that still wait."""
        recent = time.monotonic() - self.used < IDLE / 2
        alive = all(process.poll() is None for process in self.processes)
        return self.owner == os.getpid() and recent and alive and len(self.processes) == n

    def close(self) -> None:
        """End the processes."""
        if self.owner != os.getpid():
            return
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()

    def run(self, shared: Path, report: Callable[[dict[str, float]], None]) -> list[Outcome]:
        """Let all processes train the job in a folder; raise the error of any."""
        self.busy = True
        for process in self.processes:
            if process.stdin is not None:
                # One that has ended is found below.
                with suppress(OSError):
                    process.stdin.write(f"{shared}\n".encode())
                    process.stdin.flush()
        outcomes: dict[int, Outcome] = {}
        lines, failed = _Lines(shared / EPOCHS), None
        while len(outcomes) < len(self.processes) and (failed is None or time.monotonic() - failed < _GRACE):
            time.sleep(_POLL)
            self._collect(shared, outcomes)
            for line in lines.new():
                report(json.loads(line))
            if failed is None and any(outcome.error is not None for outcome in outcomes.values()):
                failed = time.monotonic()
        self.busy = len(outcomes) < len(self.processes)
        errors = [outcome.error for outcome in outcomes.values() if outcome.error is not None]
        if errors:
            raise min(errors, key=_is_consequence)
        return [outcomes[rank] for rank in range(len(self.processes))]

    def _collect(self, shared: Path, outcomes: dict[int, Outcome]) -> None:
        """Read what further processes have left, or say that one ended without a word."""
        for rank, process in enumerate(self.processes):
            if rank in outcomes:
                continue
            # Asked first: what a process wrote before it ended is there.
            code = process.poll()
            if (path := outcome_path(shared, rank)).exists():
                outcomes[rank] = pickle.loads(path.read_bytes())
            elif code is not None:
                outcomes[rank] = Outcome(
                    Img2GeneError(
                        f"Training process {rank + 1} of {len(self.processes)} ended by itself (exit code {code}), perhaps for "
                        "lack of memory: each process holds a copy of the training data. Train with fewer `devices`."
                    )
                )


class _Lines:
    """Lines of a growing file."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0

    def new(self) -> list[str]:
        """Whole lines since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.position)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self.position += len(whole)
        return whole.decode().splitlines()


def outcome_path(shared: Path, rank: int) -> Path:
    """Path of the outcome of a process."""
    return shared / f"outcome{rank}.pkl"


def _is_consequence(error: BaseException) -> tuple[bool, bool]:
    """Sort errors that name a cause before those of processes that lost their partner."""
    return not isinstance(error, Img2GeneError), any(word in str(error).lower() for word in ("gloo", "nccl", "c10d"))


def _pack(job: RankJob, path: Path) -> None:
    import cloudpickle

    try:
        with path.open("wb") as file:
            cloudpickle.dump(job, file)
    except OSError as error:
        raise Img2GeneError(
            f"{str(path)!r} cannot be written ({error.strerror or error}): several processes get the training data through "
            "it. Make room, or set TMPDIR to another folder."
        ) from error
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise Img2GeneError(f"The training cannot be sent to several processes ({error}). Use devices=1.") from error


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@atexit.register
def _close_all() -> None:
    with _GUARD:
        for ranks in _IDLE:
            ranks.close()
        _IDLE.clear()
