"""Exact retrieval from a bank against a plain blocked product and top-k, in one run: seconds, processor seconds, peak memory.

``python benchmarks/retrieval_scaling.py --queries 100000 --references 100000`` asks for the 50 nearest of 100,000 references
(256 numbers each) for every query. The plain version multiplies 512 queries at a time with all references and calls
``torch.topk``. Each way runs in a process of its own; memory is the peak of the resident size above that with
both sets in memory, the result included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _report import clocks, peak_above, report

WAYS = ("plain", "bank", "bank, own group excluded")


def unit(n: int, width: int, seed: int) -> np.ndarray:
    from img2gene.models.reference_bank import unit_rows

    return unit_rows(np.random.default_rng(seed).standard_normal((n, width), dtype=np.float32))


def search(way: str, queries: np.ndarray, keys: np.ndarray, k: int) -> Callable[[], np.ndarray]:
    """The rows found, as a function of nothing."""
    if way == "plain":
        return lambda: plain(queries, keys, k)
    from img2gene.models.reference_bank import ReferenceBank

    groups = np.array(["A", "B", "C", "D"])[np.arange(len(keys)) % 4]
    bank = ReferenceBank(
        keys, np.zeros((len(keys), 1), np.float32), groups, groups, np.zeros((len(keys), 2), np.float32)
    )
    excluded = groups[np.arange(len(queries)) % 4] if "excluded" in way else None
    return lambda: bank.nearest(queries, k, excluded=excluded).rows


def plain(queries: np.ndarray, keys: np.ndarray, k: int) -> np.ndarray:
    import torch

    references = torch.from_numpy(keys).T
    parts = [(block @ references).topk(k, dim=1).indices for block in torch.from_numpy(queries).split(512)]
    return torch.cat(parts).numpy()


def measure(way: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Measure time and memory of one way, and the share of the neighbours of 200 queries that a full sort returns too."""
    import torch

    torch.set_num_threads(arguments.threads)
    queries, keys = unit(arguments.queries, arguments.width, 0), unit(arguments.references, arguments.width, 1)
    run = search(way, queries, keys, arguments.k)
    before = clocks()
    found, peak = peak_above(run)
    seconds, processor = clocks() - before
    few = slice(0, 200)
    exact = np.argsort(-(queries[few] @ keys.T), axis=1)[:, : arguments.k]
    agree = np.mean([len(set(a) & set(b)) for a, b in zip(exact, found[few], strict=True)]) / arguments.k
    return {
        "way": way,
        "s": seconds,
        "CPU s": processor,
        "memory (GiB)": peak,
        "found": None if "excluded" in way else agree,
    }


def main() -> None:
    """Run every way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--references", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments)))
        return
    rows = []
    for way in WAYS:
        call = [sys.executable, *sys.argv, "--way", way]
        rows.append(
            json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        )
        time.sleep(1)
    first = rows[0]["CPU s"]
    report([{**row, "CPU s / plain": row["CPU s"] / first} for row in rows], arguments.out)


if __name__ == "__main__":
    main()
