"""One of several processes that train together: what :mod:`img2gene.models.networks.ranks` starts."""

from __future__ import annotations

import json
import os
import pickle
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import torch

from img2gene._errors import Img2GeneError
from img2gene._files.folders import write_bytes
from img2gene.models.networks.ranks import EPOCHS, IDLE, JOB, Outcome, RankJob, outcome_path
from img2gene.models.networks.train import fit_here
from img2gene.settings import settings


def main(rank: int) -> None:
    """Train the runs whose folders come in through the standard input, until it closes or none comes."""
    jobs: queue.Queue[Path] = queue.Queue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    while True:
        try:
            shared = jobs.get(timeout=IDLE)
        except queue.Empty:
            break
        write_bytes(outcome_path(shared, rank), _packed(_attempt(shared, rank)))
    _end(0)


def _read(jobs: queue.Queue[Path]) -> None:
    """Pass folders on; end this process at once when the one that started it is gone, also in the middle of a run."""
    with open(0, "rb", buffering=0, closefd=False) as lines:
        for line in lines:
            jobs.put(Path(line.decode().rstrip("\n")))
    _end(1)


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    # Not `sys.exit`: a run that waits for its partners could not be left.
    os._exit(code)


def _attempt(shared: Path, rank: int) -> Outcome:
    try:
        # A file that the process wrote which started this one.
        job: RankJob = pickle.loads((shared / JOB).read_bytes())
        return _run(job, shared, rank)
    except BaseException as error:  # noqa: BLE001 - raised by the process that asked
        if not isinstance(error, Img2GeneError):
            error.add_note(f"In training process {rank + 1}:\n{traceback.format_exc()}")
        return Outcome(error)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _run(job: RankJob, shared: Path, rank: int) -> Outcome:
    os.environ["MASTER_PORT"] = str(job.port)
    torch.set_num_threads(job.n_threads)
    for name, value in job.options.items():
        setattr(settings, name, value)

    def report(epoch: dict[str, float]) -> None:
        with (shared / EPOCHS).open("a") as file:
            file.write(json.dumps(epoch) + "\n")

    run = fit_here(
        job.task,
        job.schedule,
        folder=job.folder,
        checkpoint=job.checkpoint,
        label=job.label,
        report=report if rank == 0 else None,
        together=True,
    )
    return Outcome(run=run, weights=job.task.ensemble.state_dict() if rank == 0 else None)


def _packed(outcome: Outcome) -> bytes:
    import cloudpickle

    try:
        content: Any = cloudpickle.dumps(outcome)
        pickle.loads(content)
    except Exception:  # noqa: BLE001
        # Some errors cannot be built again from their arguments.
        content = cloudpickle.dumps(Outcome(RuntimeError(f"{type(outcome.error).__name__}: {outcome.error}")))
    return content
