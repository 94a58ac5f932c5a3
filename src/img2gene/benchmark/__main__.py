"""Parse and run the command ``python -m img2gene.benchmark``."""

from __future__ import annotations

import argparse
import ast
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from img2gene._errors import Img2GeneError, Problems, listing, near, raise_problems
from img2gene.benchmark import cohorts, protocols

if TYPE_CHECKING:
    from img2gene.benchmark.cohorts import Inventory
    from img2gene.benchmark.protocols import Protocol
    from img2gene.benchmark.runner import Outcome, RunOptions

logger = logging.getLogger(__name__)

_DESCRIPTION = """\
Score models on published protocols, and write all scores into one table.

The command reads sections from the folders below --data and embeds each section once. img2gene.tl.cross_validate then
trains and scores every model and the baselines. If a cohort lacks some of its sections, the protocol runs on the
others, and every table says so. Repeat a call with the same --out to continue after an interruption.
"""
_EXAMPLES = """\
examples:
  python -m img2gene.benchmark --list
  python -m img2gene.benchmark --cohort synthetic --models ridge
  python -m img2gene.benchmark --cohort her2st mob --models ridge img2gene --seeds 0 1 2
  python -m img2gene.benchmark --cohort her2st --protocol lopo --models ridge ridge:center=none,n_components=64
"""


def parser() -> argparse.ArgumentParser:
    """Create the parser of the command's arguments."""
    command = argparse.ArgumentParser(
        "python -m img2gene.benchmark",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("--list", action="store_true", help="list the cohorts with their present sections, and the protocols")
    add("--cohort", nargs="+", default=["all"], metavar="NAME", help="cohorts (default: all with sections)")
    add("--protocol", nargs="+", default=["all"], metavar="NAME", help="protocols (default: all of each cohort)")
    add(
        "--models",
        nargs="+",
        default=["ridge"],
        metavar="MODEL",
        help="model names, or name:parameter=value,… (default: ridge)",
    )
    add(
        "--data",
        type=Path,
        default=default_data(),
        help="folder with the cohorts (default: $IMG2GENE_DATA or ../shared/data)",
    )
    add("--out", type=Path, default=Path("results/benchmark"), help="folder for results (default: results/benchmark)")
    add("--encoder", default="default", metavar="NAME", help="encoder of the patches (default: the default encoder)")
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds; every model runs with each (default: 0)")
    add("--jobs", type=int, default=1, metavar="N", help="processes; -1 for one per core (default: 1)")
    add(
        "--genes",
        type=int,
        metavar="N",
        help="score the N genes with the highest mean in each training fold instead of the genes of the protocol",
    )
    return command


def default_data() -> Path:
    """Return the folder of ``IMG2GENE_DATA``, or ``../shared/data`` if it is not set."""
    return Path(os.environ.get("IMG2GENE_DATA") or "../shared/data")


# Errors of one protocol do not end the command, because hours of other protocols may be left.
_FAILURES = (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Schedule:
    """Lists the protocols to run on each cohort, and why others cannot run.

    Attributes
    ----------
    pairs
        Present sections of a cohort, and a protocol to run on them.
    not_run
        One sentence for each cohort or protocol that cannot run.
    """

    pairs: list[tuple[Inventory, Protocol]]
    not_run: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 2 if an input cannot be used or a protocol failed, otherwise 0."""
    parsed = parser().parse_args(arguments)
    try:
        if parsed.list:
            print(overview(parsed.data))
            return 0
        with warnings.catch_warnings():
            # Dependencies warn of their own use of each other, which users of the command cannot change.
            warnings.simplefilter("ignore", DeprecationWarning)
            return run(parsed)
    except (Img2GeneError, OSError) as error:
        print(f"img2gene.benchmark: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    """Run all protocols and write the tables. A protocol that fails is reported at the end; the others still run."""
    schedule = make_schedule(arguments)
    options = run_options(arguments)
    from img2gene.benchmark import report, runner
    from img2gene.benchmark.embeddings import Embeddings

    embeddings = Embeddings(options.out / "embeddings", options.encoder)
    outcomes: list[Outcome] = []
    failures: list[str] = []
    start = time.perf_counter()
    with runner.lock_results(options.out):
        for inventory, protocol in schedule.pairs:
            try:
                outcomes.append(runner.run(inventory, protocol, options, embeddings, print_progress))
            except _FAILURES as error:
                logger.debug("traceback", exc_info=True)
                # Messages of other errors, such as KeyError, do not make sense without their type.
                kind = "" if isinstance(error, Img2GeneError | OSError) else f"{type(error).__name__}: "
                failures.append(f"{inventory.cohort.name}, {protocol.name}: {kind}{error}")
            if outcomes:
                # Written after each protocol, so that an interruption leaves a table of the finished ones.
                report.write(outcomes, [*schedule.not_run, *failures], options.out)
    if outcomes:
        print((options.out / "summary.md").read_text())
        count = f"{len(outcomes)} table{'s' * (len(outcomes) > 1)}"
        print(f"Wrote {count} in {time.perf_counter() - start:.0f} s: {options.out}/summary.md, summary.csv")
    for line in failures:
        print(f"img2gene.benchmark: {line}", file=sys.stderr)
    return 2 if failures else 0


def print_progress(line: str) -> None:
    """Print a line at once, also into a pipe or file."""
    print(line, flush=True)


def make_schedule(arguments: argparse.Namespace) -> Schedule:
    """Pair cohorts with protocols. The error lists everything that is wrong with the arguments."""
    inventories, selected = _selection(arguments)
    present = [inventory for inventory in inventories if inventory.present]
    if not present:
        raise Img2GeneError(f"{arguments.data} holds no section of these cohorts. Expected:\n{expected(inventories)}")
    not_run = [
        f"{inventory.cohort.name}: no section present; expected {inventory.cohort.expected}."
        for inventory in inventories
        if not inventory.present
    ]
    pairs, unfit = _pairs(present, selected)
    if arguments.cohort != ["all"]:
        # A cohort that the user named has to be there; of all cohorts, most folders hold a few.
        raise_problems(not_run)
    if not pairs:
        known = listing([name for protocol in selected for name in protocol.cohorts], 30)
        raise Img2GeneError(
            "\n".join(["No protocol can run.", *unfit]) if unfit else f"These protocols are for {known}."
        )
    return Schedule(pairs, [*not_run, *unfit])


def _selection(arguments: argparse.Namespace) -> tuple[list[Inventory], list[Protocol]]:
    """Look up the cohorts and protocols that the arguments name."""
    problems = Problems()
    inventories: list[Inventory] = []
    for name in _real_cohorts() if arguments.cohort == ["all"] else dict.fromkeys(arguments.cohort):
        with problems.collect():
            inventories.append(cohorts.get(name).find(arguments.data))
    selected: list[Protocol] = []
    for name in protocols.PROTOCOLS if arguments.protocol == ["all"] else dict.fromkeys(arguments.protocol):
        with problems.collect():
            selected.append(protocols.get(name))
    problems.raise_all()
    return inventories, selected


def _real_cohorts() -> list[str]:
    return [name for name in cohorts.COHORTS if name != cohorts.SYNTHETIC]


def _pairs(
    inventories: list[Inventory], selected: list[Protocol]
) -> tuple[list[tuple[Inventory, Protocol]], list[str]]:
    """Pair cohorts with the protocols that can run, and say why the other protocols of these cohorts cannot."""
    pairs, unfit = [], []
    for inventory in inventories:
        for protocol in selected:
            if inventory.cohort.name in protocol.cohorts:
                problem = inventory.problem(protocol.groups, protocol.sections)
                if problem is None:
                    pairs.append((inventory, protocol))
                else:
                    unfit.append(f"{inventory.cohort.name}, {protocol.name}: {problem}")
    return pairs, unfit


def expected(inventories: list[Inventory]) -> str:
    """List the files that each cohort needs, one line per cohort."""
    return "\n".join(f"  {inventory.cohort.name}: {inventory.cohort.expected}" for inventory in inventories)


def run_options(arguments: argparse.Namespace) -> RunOptions:
    """Check models and options. The error lists everything that is wrong with them."""
    from img2gene import encoders
    from img2gene.benchmark.runner import RunOptions

    problems = Problems()
    candidates: dict[str, dict[str, Any]] = {}
    for text in arguments.models:
        with problems.collect():
            name, params = parse_model(text)
            _check_parameters(text, name, params)
            candidates[text] = {"model": name, **params}
    encoder, jobs, genes = arguments.encoder, arguments.jobs, arguments.genes
    with problems.collect():
        encoder = encoders.get(encoder).name
    problems.messages += [f"--jobs {jobs}: expected a number of processes, or -1."] * (jobs == 0 or jobs < -1)
    problems.messages += [f"--genes {genes}: expected 1 or more."] * (genes is not None and genes < 1)
    outside = min(arguments.seeds) < 0 or max(arguments.seeds) >= 2**32
    problems.messages += ["--seeds: expected numbers of at least 0 and below 2³²."] * outside
    problems.messages += [f"--out {str(arguments.out)!r}: no such path."] * ("\0" in str(arguments.out))
    problems.raise_all()
    return RunOptions(candidates, arguments.out, encoder, tuple(dict.fromkeys(arguments.seeds)), jobs, genes)


def parse_model(text: str) -> tuple[str, dict[str, Any]]:
    """Split a model such as ``ridge:n_components=10,center=none`` into its name and parameters."""
    from img2gene import models

    name, _, rest = text.partition(":")
    if name not in models.list():
        raise Img2GeneError(f"No model {name!r} ({near(name, models.list())}). See `img2gene.models.list()`.")
    params = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if not (key and equals):
            raise Img2GeneError(f"--models {text}: expected parameter=value, got {part!r}.")
        params[key.strip()] = _value(value.strip())
    return name, params


def _check_parameters(text: str, name: str, params: dict[str, Any]) -> None:
    """Raise if the model refuses these parameters."""
    from img2gene import models

    # Models of other packages may raise errors of other types.
    try:
        models.create(name, **params)
    except (TypeError, ValueError) as error:
        raise Img2GeneError(f"--models {text}: {error}") from error


def _value(text: str) -> Any:
    # Numbers, True, None and quoted text; everything else is text, such as the name of an option.
    try:
        return ast.literal_eval(text)
    # Brackets that are nested too deeply, and unhashable keys, raise the others.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def listed(data: Path) -> dict[str, Any]:
    """List the cohorts with their sections in a data folder, and the protocols, as plain values."""
    found = []
    for cohort in cohorts.COHORTS.values():
        inventory = cohort.find(data)
        state = inventory.describe() if inventory.present else f"absent; expected {cohort.expected}"
        facts = {"name": cohort.name, "title": cohort.title, "sections": list(inventory.present), "state": state}
        found.append(facts)
    known = [
        {"name": protocol.name, "title": protocol.title, "cohorts": list(protocol.cohorts)}
        for protocol in protocols.PROTOCOLS.values()
    ]
    return {"data": str(data), "cohorts": found, "protocols": known}


def overview(data: Path) -> str:
    """List the cohorts with their sections in a data folder, and the protocols, to be read."""
    facts = listed(data)
    lines = [f"Cohorts ({data}):"]
    for cohort in facts["cohorts"]:
        lines += [f"  {cohort['name']:15} {cohort['title']}", f"  {'':15} {cohort['state']}"]
    lines += ["", "Protocols:"]
    for protocol in facts["protocols"]:
        lines += [f"  {protocol['name']:15} {protocol['title']}", f"  {'':15} for {', '.join(protocol['cohorts'])}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
