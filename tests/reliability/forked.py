"""Run trials in forked children, so that no hang, crash or lost memory of a trial reaches the others."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from reliability.tally import Outcome

Trial = TypeVar("Trial")
LIMIT_S = 20.0
# A child that holds the interpreter in C code does not see its own alarm; its parent kills it a little later.
GRACE_S = 10.0
MEMORY_BYTES = 4 * 2**30


class Hang(BaseException):
    """Raised in a trial that takes longer than the limit."""


def run_all(
    trials: Sequence[Trial], run: Callable[[Trial], Outcome], lost: Callable[[Trial, str], Outcome]
) -> Iterator[Outcome]:
    """Yield the outcome of each trial; ``lost`` describes a trial whose child hung or died."""
    position = 0
    while position < len(trials):
        for outcome in _outcomes_of_child(trials[position:], run):
            if isinstance(outcome, str):
                outcome = lost(trials[position], outcome)
            yield outcome
            position += 1


def _outcomes_of_child(trials: Sequence[Trial], run: Callable[[Trial], Outcome]) -> Iterator[Outcome | str]:
    reader, writer = os.pipe()
    child = fork(lambda: _write_outcomes(writer, trials, run), close=reader)
    os.close(writer)
    received = 0
    try:
        with os.fdopen(reader, "rb") as lines:
            while received < len(trials):
                if not select.select([lines], [], [], LIMIT_S + GRACE_S)[0]:
                    yield "hang"
                    return
                line = lines.readline()
                if not line:
                    yield "crash"
                    return
                received += 1
                yield Outcome(**json.loads(line))
    finally:
        stop(child)


def _write_outcomes(writer: int, trials: Sequence[Trial], run: Callable[[Trial], Outcome]) -> None:
    limit_memory()
    for trial in trials:
        os.write(writer, json.dumps(asdict(run(trial))).encode() + b"\n")


def fork(work: Callable[[], Any], *, close: int | None = None, show: bool = False) -> int:
    """Run ``work`` in a forked child that prints nothing, and return the child's number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        gc.freeze()
        # The child ends with its parent, also when that one is killed.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if close is not None:
            os.close(close)
        if not show:
            silence()
        work()
        status = 0
    # Whatever ends the child is seen by its parent as a missing answer.
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(status)


def silence() -> None:
    """Send whatever this process prints to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def stop(child: int) -> int:
    """Kill a child and collect it; returns how it ended."""
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    return os.waitpid(child, 0)[1]


def limit_memory(extra: int = MEMORY_BYTES) -> None:
    """Bound the memory of this process, so that an allocation of terabytes fails here and nowhere else."""
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra,) * 2)


class Limit:
    """Raise :class:`Hang` in the block after a number of seconds."""

    def __init__(self, seconds: float = LIMIT_S) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, _raise_hang)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _raise_hang(*_: object) -> None:
    raise Hang


def clock() -> float:
    """Return a time in seconds that only grows."""
    return time.monotonic()
