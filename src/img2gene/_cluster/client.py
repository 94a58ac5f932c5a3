"""Run the parts of a task on the workers of a dask client, or in this process."""

from __future__ import annotations

import logging
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError, listing
from img2gene.settings import settings

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

S = TypeVar("S")
P = TypeVar("P")
R = TypeVar("R")

# Results wait on the workers until they are collected, so only some parts are handed out ahead.
_AHEAD = 2
# Seconds without a result after which a call looks whether there is any worker.
_PATIENCE = 30.0


def check_client(check: Arguments, client: Any) -> Client | None:
    """Return the client of a call: the one that is passed, else the current one; None for False and inside a worker."""
    if client is False or _is_in_worker():
        return None
    # Without the package no client can have been started.
    if client is None and "distributed" not in sys.modules:
        return None
    from distributed import Client, default_client

    if client is None:
        try:
            client = default_client()
        except ValueError:
            return None
    if not isinstance(client, Client) or client.asynchronous:
        check.messages.append(
            f"client={shown(client)}: expected a `distributed.Client` that is not asynchronous, None or False."
        )
        return None
    if client.status != "running":
        check.messages.append(f"client: it is {client.status}; connect a new one, or pass `client=False`.")
        return None
    with check.collect():
        _check_versions(client)
    return client


def _is_in_worker() -> bool:
    if "distributed" not in sys.modules:
        return False
    from distributed import get_worker

    try:
        get_worker()
    except ValueError:
        return False
    return True


def _check_versions(client: Client) -> None:
    """Refuse workers without this version of the package, whose results may differ."""
    known: Any = client.get_versions(packages=["img2gene"])
    own = version("img2gene")
    releases = {name: (facts or {}).get("packages", {}).get("img2gene") for name, facts in known["workers"].items()}
    differ = {name: release for name, release in releases.items() if release != own}
    if differ:
        text = listing(f"{name}: {release or 'not installed'}" for name, release in differ.items())
        raise Img2GeneError(
            f"client: its workers have other versions of img2gene ({text}) than this process ({own}), and results of two "
            "versions are never mixed. Install one version everywhere, and start the workers again."
        )


def run_parts(
    client: Client | None, function: Callable[[S, P], R], shared: S, parts: Sequence[P]
) -> Iterator[tuple[int, R]]:
    """Yield the number and the result, ``function(shared, part)``, of each part as soon as it is finished.

    Parameters
    ----------
    client
        Client of dask; None works in this process, in the order of the parts.
    function
        Function of a module, which workers import.
    shared
        What all parts need; each worker receives it once.
    parts
        One argument for each call.

    Raises
    ------
    Img2GeneError
        A part has failed, or its workers died again and again.

    Notes
    -----
    A part whose worker dies is given to another one. So is ``shared``, which the scheduler can send again.

    Examples
    --------
    >>> from img2gene._cluster import run_parts
    >>> dict(run_parts(None, pow, 2, [3, 4]))
    {0: 8, 1: 16}
    """
    if client is None:
        for number, part in enumerate(parts):
            yield number, function(shared, part)
        return
    with _large_graphs():
        yield from _on_workers(client, function, shared, parts)


def _on_workers(
    client: Client, function: Callable[[S, P], R], shared: S, parts: Sequence[P]
) -> Iterator[tuple[int, R]]:
    from distributed import as_completed

    context = _Context.here()
    common = client.submit(_handed_over, _Packed.of(shared), pure=False)
    left, pending = list(enumerate(parts))[::-1], {}

    def submitted(n: int) -> list[Any]:
        futures = []
        for number, part in [left.pop() for _ in range(min(n, len(left)))]:
            futures.append(client.submit(_run, function, common, part, context, pure=False))
            pending[futures[-1]] = number
        return futures

    running = as_completed(submitted(_AHEAD * n_threads(client)), loop=client.loop)
    try:
        for future in _finished(client, running):
            number, result = pending.pop(future), _result(future)
            # The result would otherwise stay on its worker.
            future.release()
            running.update(submitted(1))
            yield number, result
    finally:
        with suppress(Exception):
            client.cancel([*pending, common])


def _finished(client: Client, running: Any) -> Iterator[Any]:
    """Yield futures as they finish, and say once if there is no worker to wait for: some clusters start them late."""
    since, told = time.monotonic(), False
    while not running.is_empty():
        if running.has_ready():
            yield next(running)
            since = time.monotonic()
        elif not told and time.monotonic() - since > _PATIENCE:
            since, told = time.monotonic(), not client.nthreads()
            if told:
                logger.warning(
                    "the cluster has no worker, so this call waits until one starts. Interrupt it to stop; what is finished is "
                    "kept where the call writes to a store or a folder"
                )
        else:
            time.sleep(0.02)


def _result(future: Any) -> Any:
    from distributed.client import FutureCancelledError
    from distributed.scheduler import KilledWorker

    try:
        return future.result()
    except (KilledWorker, FutureCancelledError) as error:
        raise Img2GeneError(
            f"The workers of the cluster died again and again ({str(error)[:300]}), perhaps for lack of memory. What is "
            "finished is kept where the call writes to a store or a folder."
        ) from error


@dataclass(frozen=True)
class _Context:
    """Version and settings of the process that asks, which every part gets."""

    release: str
    options: dict[str, Any]

    @classmethod
    def here(cls) -> _Context:
        options = asdict(settings) | {"progress": False}
        if not settings.caches_embeddings:
            # Where embeddings are not kept, each worker has a folder of its own for downloads.
            del options["cache_dir"]
        return cls(version("img2gene"), options)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Refuse a worker that joined later with another version, and work with the settings."""
        own = version("img2gene")
        if own != self.release:
            raise Img2GeneError(
                f"A worker has img2gene {own}, the process that asked has {self.release}; results of two versions are never "
                "mixed. Install one version everywhere, and start the workers again."
            )
        before = {name: getattr(settings, name) for name in self.options}
        try:
            for name, value in self.options.items():
                setattr(settings, name, value)
            yield
        finally:
            # Threads of the asking process can be workers, too.
            for name, value in before.items():
                object.__setattr__(settings, name, value)


@dataclass(frozen=True)
class _Packed:
    """What all parts share, as bytes: workers pass them on as they are, also while one of them uses the content."""

    name: str
    content: bytes

    @classmethod
    def of(cls, value: Any) -> _Packed:
        import cloudpickle

        return cls(uuid.uuid4().hex, cloudpickle.dumps(value))

    def value(self) -> Any:
        """Unpack the content once in each process."""
        import pickle

        with _UNPACKING:
            if self.name not in _UNPACKED:
                # That of an earlier call would only take memory.
                _UNPACKED.clear()
                # Bytes that this package packed for its own workers.
                _UNPACKED[self.name] = pickle.loads(self.content)
            return _UNPACKED[self.name]


_UNPACKED: dict[str, Any] = {}
_UNPACKING = threading.Lock()


def _handed_over(packed: _Packed) -> _Packed:
    return packed


def _run(function: Callable[[Any, Any], Any], shared: _Packed, part: Any, context: _Context) -> Any:
    with context.applied():
        return function(shared.value(), part)


def n_threads(client: Client) -> int:
    """Number of threads of all workers, at least 1."""
    return max(sum(client.nthreads().values()), 1)


@contextmanager
def _large_graphs() -> Iterator[None]:
    with warnings.catch_warnings():
        # What workers share travels once with the graph, so that the scheduler can send it again when a worker dies.
        warnings.filterwarnings("ignore", message="Sending large graph")
        yield
