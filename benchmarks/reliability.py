"""Run the trials of `tests/reliability` in full numbers, and write what they show into one page."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from reliability import calls, full_disk, interruptions, jobs, kills, mutations, races, studies  # noqa: E402
from reliability.tally import Outcome, Tally  # noqa: E402

PAGE = ROOT / "benchmarks" / "results" / "reliability.md"
# Trials of one step; a run that ends early loses at most the step it is in.
STEPS = {"mutations": 5_000, "kills": 250, "interruptions": 240, "calls": 1_000, "races": 20, "full disk": 45}
COUNTS = {"mutations": 100_000, "kills": 1_000, "interruptions": 2_000, "calls": 10_000, "races": 200, "full disk": 500}
TITLES = {
    "mutations": "Damaged models: refused when loaded, or equal in all that they say",
    "kills": "Kills: files are old or new, and the next call gives the uninterrupted result",
    "interruptions": "Interruptions: the object is unchanged or complete",
    "calls": "Hostile arguments: refused by the package, or accepted; objects and files unchanged after a refusal",
    "races": "Races of four to eight processes: every result is whole",
    "full disk": "Full disks: files are old or new, nothing is left behind, and the next call gives the usual result",
}


def each(n: int, work: Sequence[jobs.Job]) -> int:
    """Divide ``n`` trials among jobs; the result is that of jobs that do not take long."""
    return math.ceil(n / sum(job.share for job in work))


def run_mutations(n: int, seed: int) -> Iterator[Outcome]:
    """Damage stored models."""
    studies.quieten()
    return mutations.run(n, seed)


def run_kills(n: int, seed: int) -> Iterator[Outcome]:
    """Kill work that writes files."""
    kills.prepare()
    return kills.run(each(n, jobs.JOBS), seed)


def run_interruptions(n: int, seed: int) -> Iterator[Outcome]:
    """Interrupt functions."""
    calls.prepare()
    return interruptions.run(math.ceil(n / len(interruptions.subjects())), seed)


def run_calls(n: int, seed: int) -> Iterator[Outcome]:
    """Make hostile calls."""
    calls.prepare()
    return calls.run(calls.sample(n, seed))


def run_races(n: int, seed: int) -> Iterator[Outcome]:
    """Let processes race."""
    kills.prepare()
    return races.run(each(n, races.RACES), seed)


def run_full_disk(n: int, seed: int) -> Iterator[Outcome]:
    """Fill the disk under work that writes files."""
    full_disk.prepare()
    return full_disk.run(each(n, full_disk.JOBS), seed)


RUNS: dict[str, Callable[[int, int], Iterator[Outcome]]] = {
    "mutations": run_mutations,
    "kills": run_kills,
    "interruptions": run_interruptions,
    "calls": run_calls,
    "races": run_races,
    "full disk": run_full_disk,
}


def complete(part: str, count: int, seed: int, folder: Path, deadline: float) -> tuple[Tally, float]:
    """Run steps of a part until it has its count; steps that are on disk are not run again."""
    tally, seconds = Tally(), 0.0
    for step in range(-(-count // STEPS[part])):
        file = folder / f"{part.replace(' ', '-')}-seed{seed}-step{step}.json"
        if not file.is_file():
            if time.monotonic() > deadline:
                break
            start, fresh = time.monotonic(), Tally()
            fresh.extend(until(deadline, RUNS[part](min(STEPS[part], count), 1_000 * seed + step)))
            seconds += time.monotonic() - start
            if time.monotonic() < deadline:
                file.write_text(fresh.to_json())
        else:
            fresh = Tally.from_json(file.read_text())
        tally = Tally(tally.counts + fresh.counts, tally.failures + fresh.failures)
        print(f"{part}: {tally.n_trials} trials, {len(tally.failures)} failures", flush=True)
    return tally, seconds


def until(deadline: float, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Yield outcomes until the time is over."""
    for outcome in outcomes:
        yield outcome
        if time.monotonic() > deadline:
            return


def chapter(part: str, tally: Tally, seed: int) -> str:
    """Write the results of one part as Markdown."""
    kinds = tally.kinds()
    results = sorted({result for counts in kinds.values() for result in counts})
    lines = [f"## {TITLES[part]}", "", f"{tally.n_trials:,} trials, seed {seed}, {len(tally.failures):,} failures.", ""]
    lines += ["| kind | " + " | ".join(results) + " |", "| --- |" + " --- |" * len(results)]
    for kind, counts in kinds.items():
        lines.append(f"| {kind} | " + " | ".join(f"{counts.get(result, 0):,}" for result in results) + " |")
    distinct = dict.fromkeys(
        f"`{o.kind}`, {o.subject}: {o.result} ({o.error}), such as {o.detail}" for o in tally.failures
    )
    failures = [f"- {text}" for text in islice(distinct, 100)]
    return "\n".join([*lines, "", *(["Failures:", "", *failures, ""] if failures else [])])


def page(tallies: dict[str, Tally], seed: int) -> str:
    """Write all results as Markdown."""
    overview = ["| part | trials | failures |", "| --- | --- | --- |"]
    overview += [f"| {part} | {tally.n_trials:,} | {len(tally.failures):,} |" for part, tally in tallies.items()]
    head = ["# Reliability", "", f"Written by `make reliability`; seed {seed}.", "", *overview, ""]
    return "\n".join([*head, *(chapter(part, tally, seed) for part, tally in tallies.items())]).rstrip() + "\n"


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument(
        "--parts", nargs="+", choices=list(RUNS), default=list(RUNS), help="parts to run (default: all)"
    )
    command.add_argument(
        "--counts", type=float, default=1.0, metavar="SHARE", help="share of the full counts (default: 1)"
    )
    command.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time; repeat to go on")
    command.add_argument("--seed", type=int, default=0, help="seed of all trials (default: 0)")
    command.add_argument(
        "--steps", type=Path, default=ROOT / "benchmarks" / "results" / ".reliability", help="finished steps"
    )
    command.add_argument("--out", type=Path, default=PAGE, help="page to write")
    return command.parse_args()


def main() -> int:
    """Run the parts, write the page, and return 1 if any trial failed."""
    options = arguments()
    options.steps.mkdir(parents=True, exist_ok=True)
    (options.steps / ".gitignore").write_text("*\n")
    deadline = time.monotonic() + 60 * options.minutes
    tallies: dict[str, Tally] = {}
    for part in options.parts:
        count = max(1, round(COUNTS[part] * options.counts))
        tallies[part], seconds = complete(part, count, options.seed, options.steps, deadline)
        print(f"{part}: {seconds:.0f} s", flush=True)
        options.out.write_text(page(tallies, options.seed))
    jobs.remove_templates()
    return int(any(tally.failures for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
