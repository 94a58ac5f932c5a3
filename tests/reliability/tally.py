"""Outcomes of trials: what was tried, how it ended, and whether that is allowed."""

from __future__ import annotations

import json
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

import img2gene

_PACKAGE = str(Path(img2gene.__file__).parent) + "/"
# Everything else that a trial can end with is a failure.
GOOD = ("refused", "unchanged", "complete", "equal", "old", "new", "succeeded", "recomputed")


@dataclass(frozen=True)
class Outcome:
    """How one trial ended.

    Attributes
    ----------
    kind
        What was done, such as the kind of mutation, or the function that was interrupted.
    subject
        To what it was done: a model, or an argument.
    detail
        The value, the line or the byte, from which the trial can be repeated.
    result
        One of ``GOOD``, or the name of a failure.
    error
        The exception and the last line of the package in its traceback; empty without one.
    """

    kind: str
    subject: str
    detail: str
    result: str
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether this result is not allowed."""
        return self.result not in GOOD


@dataclass
class Tally:
    """Counts of all outcomes, and the failures themselves."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count an outcome, and keep it if it failed."""
        self.counts[outcome.kind, outcome.result] += 1
        if outcome.failed:
            self.failures.append(outcome)

    def extend(self, outcomes: Iterable[Outcome]) -> Tally:
        """Count several outcomes."""
        for outcome in outcomes:
            self.add(outcome)
        return self

    @property
    def n_trials(self) -> int:
        """Number of trials."""
        return sum(self.counts.values())

    def kinds(self) -> dict[str, dict[str, int]]:
        """Count the results of each kind."""
        table: dict[str, dict[str, int]] = {}
        for (kind, result), n in sorted(self.counts.items()):
            table.setdefault(kind, {})[result] = n
        return table

    def summary(self, n: int = 40) -> str:
        """List distinct failures, the most frequent first."""
        groups = Counter((outcome.kind, outcome.subject, outcome.result, outcome.error) for outcome in self.failures)
        example = {(o.kind, o.subject, o.result, o.error): o.detail for o in reversed(self.failures)}
        lines = [f"{count} × {' | '.join(group)} | {example[group]}" for group, count in groups.most_common(n)]
        return f"{len(self.failures)} of {self.n_trials} trials failed:\n" + "\n".join(lines)

    def to_json(self) -> str:
        """Write counts and failures as JSON."""
        counts = [[*key, n] for key, n in self.counts.items()]
        return json.dumps({"counts": counts, "failures": [asdict(outcome) for outcome in self.failures]})

    @classmethod
    def from_json(cls, text: str) -> Tally:
        """Read what :meth:`to_json` wrote."""
        stored = json.loads(text)
        counts = Counter({(kind, result): n for kind, result, n in stored["counts"]})
        return cls(counts, [Outcome(**outcome) for outcome in stored["failures"]])


def describe(error: BaseException) -> str:
    """Name an exception, its message, and the last line of the package in its traceback."""
    return f"{type(error).__name__}: {_first_line(error)} ({last_line(error.__traceback__)})"


def _first_line(error: BaseException) -> str:
    try:
        return (str(error).splitlines() or [""])[0][:120]
    # An argument's own `__repr__` may fail inside the message.
    except Exception as failure:  # noqa: BLE001
        return type(failure).__name__


def last_line(trace: TracebackType | None) -> str:
    """Return file and line where the package was last in a traceback."""
    frames = [frame for frame in traceback.extract_tb(trace) if is_package_file(frame.filename)]
    if not frames:
        return "outside the package"
    return f"{frames[-1].filename.rsplit('/img2gene/', 1)[-1]}:{frames[-1].lineno} {frames[-1].name}"


def is_package_file(filename: str) -> bool:
    """Whether a file belongs to the package."""
    return filename.startswith(_PACKAGE)
