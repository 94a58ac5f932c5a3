"""The command ``python -m img2gene.benchmark``."""

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
    from img2gene.benchmark.runner import Outcome, Request

logger = logging.getLogger(__name__)

_DESCRIPTION = """\
Score models on published protocols, and write one table of them all.

Sections are read from the folders below --data, embedded once, and every model is trained and scored by
img2gene.tl.cross_validate beside the baselines. Where sections of a cohort are absent, the protocol runs on those that are
there, and every table says so. A second call with the same --out goes on from what was finished.
"""
_EXAMPLES = """\
examples:
  python -m img2gene.benchmark --list
  python -m img2gene.benchmark --cohort synthetic --models ridge
  python -m img2gene.benchmark --cohort her2st mob --models ridge img2gene --seeds 0 1 2
  python -m img2gene.benchmark --cohort her2st --protocol lopo --models ridge ridge:center=none,n_components=64
"""


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    found = argparse.ArgumentParser(
        "python -m img2gene.benchmark",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("--list", action="store_true", help="list cohorts, what of them is present, and protocols")
    add("--cohort", nargs="+", default=["all"], metavar="NAME", help="cohorts, or all that are present (default)")
    add("--protocol", nargs="+", default=["all"], metavar="NAME", help="protocols, or all of each cohort (default)")
    add(
        "--models",
        nargs="+",
        default=["ridge"],
        metavar="MODEL",
        help="name, or name:parameter=value,… (default: ridge)",
    )
    add(
        "--data",
        type=Path,
        default=default_data(),
        help="folder of the cohorts (default: $IMG2GENE_DATA or ../shared/data)",
    )
    add("--out", type=Path, default=Path("results/benchmark"), help="folder of results (default: results/benchmark)")
    add("--encoder", default="default", metavar="NAME", help="encoder of the patches (default: the package's)")
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="one run for each (default: 0)")
    add("--jobs", type=int, default=1, metavar="N", help="processes; -1 for one per core (default: 1)")
    add(
        "--genes",
        type=int,
        metavar="N",
        help="number of genes, by their mean in each training fold, instead of the protocol's",
    )
    return found


def default_data() -> Path:
    """Where cohorts are looked for."""
    return Path(os.environ.get("IMG2GENE_DATA") or "../shared/data")


# Whatever a model raises on its data: hours of other protocols may be left.
_FAILURES = (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Plan:
    """What is run, and why something is not."""

    pairs: list[tuple[Inventory, Protocol]]
    notes: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 2 for input that cannot be used."""
    given = parser().parse_args(arguments)
    try:
        if given.list:
            print(overview(given.data))
            return 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return run(given)
    except (Img2GeneError, OSError) as error:
        print(f"img2gene.benchmark: {error}", file=sys.stderr)
        return 2


def run(given: argparse.Namespace) -> int:
    """Run all that was asked for; what fails is told at the end, and does not keep the rest from running."""
    plan = planned(given)
    request = requested(given)
    from img2gene.benchmark import report, runner
    from img2gene.benchmark.embeddings import Embeddings

    embeddings = Embeddings(request.out / "embeddings", request.encoder)
    outcomes: list[Outcome] = []
    failures: list[str] = []
    start = time.perf_counter()
    for inventory, protocol in plan.pairs:
        try:
            outcomes.append(runner.run(inventory, protocol, request, embeddings, tell))
        except _FAILURES as error:
            logger.debug("traceback", exc_info=True)
            kind = "" if isinstance(error, Img2GeneError | OSError) else f"{type(error).__name__}: "
            failures.append(f"{inventory.cohort.name}, {protocol.name}: {kind}{error}")
        if outcomes:
            # After each, so that an interruption leaves a table of what was finished.
            report.write(outcomes, [*plan.notes, *failures], request.out)
    if outcomes:
        print((request.out / "summary.md").read_text())
        print(
            f"{len(outcomes)} table{'s' * (len(outcomes) > 1)} in {time.perf_counter() - start:.0f} s: {request.out}/summary.md, summary.csv"
        )
    for line in failures:
        print(f"img2gene.benchmark: {line}", file=sys.stderr)
    return 2 if failures else 0


def tell(line: str) -> None:
    """Say what is being done."""
    print(line, flush=True)


def planned(given: argparse.Namespace) -> Plan:
    """Pairs of cohorts and protocols to run; everything that is wrong with the arguments is raised at once."""
    problems = Problems()
    every = given.cohort == ["all"]
    found: list[Inventory] = []
    for name in _all_cohorts() if every else dict.fromkeys(given.cohort):
        with problems.collect():
            found.append(cohorts.get(name).find(given.data))
    asked: list[Protocol] = []
    for name in protocols.PROTOCOLS if given.protocol == ["all"] else dict.fromkeys(given.protocol):
        with problems.collect():
            asked.append(protocols.get(name))
    problems.raise_all()
    absent = [inventory for inventory in found if not inventory.present]
    if len(absent) == len(found):
        raise Img2GeneError(f"{given.data} holds no section of these cohorts. Expected:\n{expected(found)}")
    notes = [
        f"{inventory.cohort.name}: no section present; expected {inventory.cohort.expected}." for inventory in absent
    ]
    pairs, unfit = _pairs([inventory for inventory in found if inventory.present], asked)
    if not every:
        raise_problems(notes)
    if not pairs:
        known = listing([name for protocol in asked for name in protocol.cohorts], 30)
        raise Img2GeneError("\n".join(["Nothing to run.", *unfit]) if unfit else f"These protocols are for {known}.")
    return Plan(pairs, [*notes, *unfit])


def _all_cohorts() -> list[str]:
    return [name for name in cohorts.COHORTS if name != cohorts.SYNTHETIC]


def _pairs(found: list[Inventory], asked: list[Protocol]) -> tuple[list[tuple[Inventory, Protocol]], list[str]]:
    """What can be run, and why other protocols of these cohorts cannot."""
    pairs, unfit = [], []
    for inventory in found:
        for protocol in asked:
            if inventory.cohort.name in protocol.cohorts:
                problem = inventory.problem(protocol.groups, protocol.sections)
                if problem is None:
                    pairs.append((inventory, protocol))
                else:
                    unfit.append(f"{inventory.cohort.name}, {protocol.name}: {problem}")
    return pairs, unfit


def expected(found: list[Inventory]) -> str:
    """Files of all cohorts, a line each."""
    return "\n".join(f"  {inventory.cohort.name}: {inventory.cohort.expected}" for inventory in found)


def requested(given: argparse.Namespace) -> Request:
    """Models and options, checked."""
    from img2gene import encoders
    from img2gene.benchmark.runner import Request

    problems = Problems()
    candidates: dict[str, dict[str, Any]] = {}
    for text in given.models:
        with problems.collect():
            name, params = parse_model(text)
            _check_parameters(text, name, params)
            candidates[text] = {"model": name, **params}
    encoder = given.encoder
    with problems.collect():
        encoder = encoders.get(given.encoder).name
    problems.messages += [f"--jobs {given.jobs}: expected a number of processes, or -1."] * (given.jobs == 0)
    problems.messages += [f"--genes {given.genes}: expected 1 or more."] * (given.genes is not None and given.genes < 1)
    problems.messages += ["--seeds: expected numbers of at least 0."] * (min(given.seeds) < 0)
    problems.raise_all()
    return Request(candidates, given.out, encoder, tuple(dict.fromkeys(given.seeds)), given.jobs, given.genes)


def parse_model(text: str) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a model such as ``ridge:n_components=10,center=none``."""
    from img2gene import models

    name, _, rest = text.partition(":")
    if name not in models.list():
        raise Img2GeneError(f"No model {name!r} ({near(name, models.list())}).")
    params = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if not (key and equals):
            raise Img2GeneError(f"--models {text}: expected parameter=value, got {part!r}.")
        params[key.strip()] = _value(value.strip())
    return name, params


def _check_parameters(text: str, name: str, params: dict[str, Any]) -> None:
    """Raise if no model can be made of these parameters, in whatever way it says so."""
    from img2gene import models

    try:
        models.create(name, **params)
    except (TypeError, ValueError) as error:
        raise Img2GeneError(f"--models {text}: {error}") from error


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def overview(data: Path) -> str:
    """Cohorts with what is present of them in a data folder, and protocols."""
    lines = [f"Cohorts ({data}):"]
    for cohort in cohorts.COHORTS.values():
        inventory = cohort.find(data)
        lines += [f"  {cohort.name:15} {cohort.title}"]
        there = inventory.describe() if inventory.present else f"absent; expected {cohort.expected}"
        lines += [f"  {'':15} {there}"]
    lines += ["", "Protocols:"]
    for protocol in protocols.PROTOCOLS.values():
        lines += [f"  {protocol.name:15} {protocol.title}", f"  {'':15} for {', '.join(protocol.cohorts)}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
