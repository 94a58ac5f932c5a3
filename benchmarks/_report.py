"""What all benchmarks share: timing, and results as a Markdown table and a CSV file."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

DATA = Path(os.environ.get("IMG2GENE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


GIB = 2**30
_INTERVAL_S = 0.005
_Result = TypeVar("_Result")


def clocks() -> np.ndarray:
    """Wall time, and processor time over all threads: the one to trust where others use the machine, too."""
    return np.array([time.perf_counter(), time.process_time()])


def peak_above(run: Callable[[], _Result]) -> tuple[_Result, float]:
    """What a function returns, and the peak of the resident size while it runs above what it was just before, in GiB."""
    import psutil

    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(_INTERVAL_S):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = run()
    finally:
        done.set()
        watcher.join()
    return found, (max(peak, process.memory_info().rss) - before) / GIB


def median_seconds(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall time of each run, measured in rounds: what else the machine does then falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def markdown(rows: list[dict[str, object]]) -> str:
    """Rows as a Markdown table; numbers with three significant digits, absent values as a dash."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(rows: list[dict[str, object]], out: Path | None) -> None:
    """Print the table, and write it as CSV if ``out`` is given."""
    print(markdown(rows), flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(out, index=False)


def _cell(value: object) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, (int, np.integer)) or not isinstance(value, (float, np.floating)):
        return f"{value:,}" if isinstance(value, (int, np.integer)) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
