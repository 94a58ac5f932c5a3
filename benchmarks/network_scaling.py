"""Seconds of a training epoch of ``img2gene``, and seconds and memory of a prediction, by number of spots and threads.

Spots lie on a hexagonal array of pitch 100 µm, all in one section; embeddings (896 wide) and labels are random, as neither
time nor memory depends on what they say. Architecture, batches and number of networks are the default ones. Each
measurement runs in a process of its own. Memory is the peak of the resident size during the prediction above what it was
just before, with the model loaded and the embeddings in memory; the prediction itself is part of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _report import GIB, clocks, markdown, peak_above

WIDTH, PITCH_UM = 896, 100.0
N_FITTED = 1_000
MAX_EPOCH_S = 45.0
_WARM_UP, _PROBE = 3, 20


def positions(n_spots: int) -> np.ndarray:
    """Rows and columns (n, 2) in µm of a hexagonal array about as high as wide."""
    row, column = np.divmod(np.arange(n_spots), int(np.ceil(np.sqrt(n_spots))))
    return np.column_stack([row * np.sqrt(0.75), column + 0.5 * (row % 2)]) * PITCH_UM


def embeddings(n_spots: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n_spots, WIDTH), dtype=np.float32)


def training_data(n_spots: int, n_genes: int) -> Any:
    from img2gene.models import TrainingData

    labels = np.random.default_rng(1).standard_exponential((n_spots, n_genes), dtype=np.float32)
    section = np.full(n_spots, "S1")
    return TrainingData(embeddings(n_spots), labels, section, section, positions(n_spots))


def named(took: np.ndarray) -> dict[str, float]:
    return {"seconds": float(took[0]), "CPU seconds": float(took[1])}


def epoch(n_spots: int, n_genes: int, effect: str) -> dict[str, float]:
    """Seconds of an epoch as training runs it; of a part of its batches, extrapolated, where it takes long."""
    from img2gene.models import create
    from img2gene.models.img2gene.fitting import Img2GeneFitting, n_batches
    from img2gene.models.networks.train import train
    from img2gene.models.networks.training_task import TrainingSchedule

    fitting = Img2GeneFitting(
        create("img2gene", effect=effect, accelerator="cpu").parameters, training_data(n_spots, n_genes), 0
    )
    task = fitting._task(fitting.arrays, fitting._new_ensemble())
    total = n_batches(fitting.arrays.sections, fitting.parameters.batch_size)

    def seconds(n: int) -> np.ndarray:
        part = dataclasses.replace(task, batches=lambda number: itertools.islice(task.batches(number), n))
        start = clocks()
        train(part, TrainingSchedule(max_epochs=1))
        return clocks() - start

    seconds(_WARM_UP)
    n = total
    if total > 2 * _PROBE and (expected := float(seconds(_PROBE)[0]) / _PROBE * total) > MAX_EPOCH_S:
        n = max(int(total * MAX_EPOCH_S / 3 / expected), _PROBE)
    took = seconds(n)
    return {"batches": total, "batches timed": n, **named(took * total / n)}


def prediction(n_spots: int, n_genes: int, folder: str) -> dict[str, float]:
    """Seconds, and peak memory in GiB above the start, of predicting a section."""
    from img2gene.models.img2gene import Img2Gene

    config = json.loads((Path(folder) / "config.json").read_text())
    with np.load(Path(folder) / "arrays.npz") as arrays:
        model = Img2Gene.from_state(config, dict(arrays))
    features, section, places = embeddings(n_spots), np.full(n_spots, "new"), positions(n_spots)
    start = clocks()
    found, peak = peak_above(lambda: model.predict(features, section, positions=places))
    took = clocks() - start
    return {**named(took), "above the start (GiB)": peak, "result (GiB)": found.nbytes / GIB}


def store_model(n_genes: int, folder: str) -> dict[str, float]:
    """Fit the default model for one epoch and write it."""
    from img2gene.models.img2gene import Img2Gene

    model = Img2Gene(max_epochs=1, n_validations=0, accelerator="cpu")
    model.fit(training_data(N_FITTED, n_genes), seed=0)
    config, arrays = model.state()
    (Path(folder) / "config.json").write_text(json.dumps(config))
    np.savez(Path(folder) / "arrays.npz", **arrays)
    return {}


STEPS = {"epoch": epoch, "prediction": prediction, "store": store_model}


def child(step: str, threads: int, arguments: list[Any]) -> None:
    """Run one measurement and print what it found."""
    import torch

    import img2gene as ig

    torch.set_num_threads(threads)
    ig.settings.progress = False
    print(json.dumps(STEPS[step](*arguments)), flush=True)


def measured(step: str, threads: int, *arguments: object) -> dict[str, Any]:
    """What a measurement in a process of its own finds."""
    environment = {**os.environ, **{f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}}
    command = [sys.executable, __file__, "--child", json.dumps([step, threads, arguments])]
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def measure(spots: list[int], n_genes: int, threads: list[int], effects: list[str]) -> Iterator[dict[str, Any]]:
    """One row for each measurement, smallest first, with its ratio to linear scaling from the smallest."""
    with tempfile.TemporaryDirectory() as folder:
        measured("store", max(threads), n_genes, folder)
        kinds: list[tuple[str, str]] = [("prediction", folder), *(("epoch", effect) for effect in effects)]
        for (step, argument), number in itertools.product(kinds, threads):
            first = 0.0
            for n_spots in spots:
                found = measured(step, number, n_spots, n_genes, argument)
                first = first or found["CPU seconds"] / n_spots
                row = {"step": step, "effect": argument if step == "epoch" else None, "threads": number}
                row |= {
                    "spots": n_spots,
                    "genes": n_genes,
                    **found,
                    "× linear (CPU)": found["CPU seconds"] / n_spots / first,
                }
                print(row, flush=True)
                yield row


def write(rows: list[dict[str, Any]], folder: Path) -> None:
    """Epochs and predictions as Markdown tables, and all as CSV."""
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "network_scaling.csv", index=False, float_format="%.6g")
    text = []
    for step in dict.fromkeys(row["step"] for row in rows):
        part = [row for row in rows if row["step"] == step]
        absent = {"step"} | {name for row in part for name, value in row.items() if value is None}
        text += [
            f"## {str(step).capitalize()}",
            markdown([{k: v for k, v in row.items() if k not in absent} for row in part]),
        ]
    (folder / "network_scaling.md").write_text("\n\n".join(text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spots", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--genes", type=int, default=1_000)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--effects", nargs="+", default=["none"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    rows: list[dict[str, Any]] = []
    for row in measure(args.spots, args.genes, args.threads, args.effects):
        rows.append(row)
        write(rows, args.out)


if __name__ == "__main__":
    main()
