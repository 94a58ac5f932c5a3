"""Measure what digests cost: hash functions, `load_model` and `predict` of 1,000 genes, and a model of 100 MB.

Run `python benchmarks/integrity.py`; it prints the times and ends with 1 if a bound is exceeded.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

import img2gene as ig
from img2gene.models import Model
from img2gene.models import model as stored_model
from img2gene.models.ridge import Ridge

MOST_SHARE, MOST_SECONDS = 0.05, 1.0
N_SPOTS, WIDTH, REPEATS = 3000, 1280, 9


def ridge(n_genes: int, width: int, n_components: int) -> Model:
    """Make a ridge of random numbers: its size matters here, not what it predicts."""
    rng = np.random.default_rng(0)
    predictor = Ridge(penalty=1.0)
    predictor.arrays = {
        "feature_mean": rng.normal(size=width).astype("f4"),
        "scale": rng.uniform(1, 2, size=width).astype("f4"),
        "components": rng.normal(size=(n_components, width)).astype("f4"),
        "coefficients": rng.normal(size=(n_components, n_genes)).astype("f4"),
        "label_mean": rng.normal(size=n_genes).astype("f4"),
    }
    statistics = {"mean": rng.normal(size=n_genes).astype("f4")}
    inputs = {"name": "color-texture", "width": width, "patch_um": [112.0]}
    return Model(predictor, [f"G{i}" for i in range(n_genes)], statistics, inputs, {"layer": None})


def median_seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Time a call several times."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> int:
    """Print all times; return 1 if one exceeds its bound."""
    content = os.urandom(10**8)
    for name in ("sha256", "blake2b"):
        seconds = median_seconds(lambda name=name: hashlib.new(name, content).digest(), 3)
        print(f"{name}: {0.1 / seconds:.2f} GB/s")
    folder = Path(tempfile.mkdtemp())
    path = ig.io.save_model(ridge(1000, WIDTH, 512), folder / "genes")
    features = np.random.default_rng(1).normal(size=(N_SPOTS, WIDTH)).astype("f4")
    sections = np.repeat(["A", "B", "C"], N_SPOTS // 3)

    def load_and_predict() -> None:
        model = ig.io.load_model(path)
        # Predictions are recorded with the fingerprint of their model.
        _ = model.predict(features, sections), model.fingerprint

    def unchecked() -> float:
        skip = mock.patch.multiple(stored_model, check_config_digest=mock.DEFAULT, check_array_digests=mock.DEFAULT)
        with skip:
            return median_seconds(load_and_predict)

    load_and_predict()
    with_digest, without = median_seconds(load_and_predict), unchecked()
    share = with_digest / without - 1
    print(f"load_model and predict, 1,000 genes, {N_SPOTS:,} spots: {with_digest:.3f} s, digests {100 * share:.1f} %")
    large = ig.io.save_model(ridge(20_000, WIDTH, 1180), folder / "large")
    seconds = median_seconds(lambda: ig.io.load_model(large), 3)
    print(f"load_model, {large.stat().st_size / 1e6:.0f} MB: {seconds:.2f} s")
    return int(share > MOST_SHARE or seconds > MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
