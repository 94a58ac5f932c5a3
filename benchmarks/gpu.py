"""Images per second of ``pp.embed_patches`` against the pure forward pass on one device, and epochs per second."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _report import report
from _slide import MPP, write_slide
from lightning.pytorch.loggers.logger import DummyLogger

import img2gene as ig
from img2gene import encoders
from img2gene.models import TrainingData
from img2gene.models.networks.train import log_to


def synchronise(device: str) -> None:
    """Wait until the device has finished what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device.startswith("mps"):
        torch.mps.synchronize()


def forward_rate(network: torch.nn.Module, device: str, amp: bool, side: int, size: int, n: int) -> float:
    """Images per second of the network on images that are on the device already."""
    images = torch.randn(size, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast(device.split(":")[0], torch.bfloat16, enabled=amp):
        network(images)
        synchronise(device)
        start = time.perf_counter()
        for _ in range(max(n // size, 1)):
            network(images)
        synchronise(device)
    return max(n // size, 1) * size / (time.perf_counter() - start)


def embed_rate(folder: Path, encoder: str, device: str, size: int, n_spots: int, workers: int) -> float:
    """Images per second of ``embed_patches`` with one field of view, from a slide on disk to the table."""
    sdata = write_slide(folder / f"slide{size}.zarr", 6_000, n_spots)
    ig.pp.extract_patches(sdata, patch_um=100, mpp=MPP)
    options = {"device": device, "batch_size": size, "num_workers": workers, "backend": "torch"}
    # Loading the weights, and what the device does once, are no part of the rate.
    encoders.load(encoder, device=device, backend="torch")(np.zeros((size, 224, 224, 3), dtype=np.uint8))
    start = time.perf_counter()
    ig.pp.embed_patches(sdata, encoder, **options)
    return n_spots / (time.perf_counter() - start)


class EpochTimes(DummyLogger):
    """Notes when each epoch ends."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def log_metrics(self, *args: object, **kwargs: object) -> None:
        self.times.append(time.perf_counter())


def epoch_rate(kind: str, devices: int, n_spots: int, n_genes: int, epochs: int) -> float:
    """Epochs per second of Img2Gene with its default networks."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((n_spots, 512), dtype=np.float32)
    labels = features[:, :32] @ rng.standard_normal((32, n_genes), dtype=np.float32)
    sections = np.array([f"S{i % 4}" for i in range(n_spots)])
    data = TrainingData(features, labels, sections, sections, rng.uniform(size=(n_spots, 2)) * 5_000)
    options = {"accelerator": kind, "devices": devices, "max_epochs": epochs, "n_validations": 0, "retrieval": False}
    log = EpochTimes()
    with log_to([log]):
        ig.models.create("img2gene", **options).fit(data, seed=0)
    return 1 / float(np.median(np.diff(log.times)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--encoder", default="default")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128, 256])
    parser.add_argument("--spots", type=int, default=700)
    parser.add_argument("--workers", type=int, default=4, help="threads that decode")
    parser.add_argument("--compile", action="store_true", help="time the forward pass after torch.compile, too")
    parser.add_argument("--devices", type=int, nargs="+", default=[1], help="numbers of processes to train in")
    parser.add_argument("--train-spots", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that the script works")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.batch_sizes, args.spots, args.workers, args.train_spots, args.epochs = [8], 24, 1, 400, 3
    ig.settings.progress = False
    loaded = encoders.load(args.encoder, device=args.device, backend="torch").encoder
    side, rows = encoders.get(args.encoder).input_px, []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.batch_sizes:
            pure = forward_rate(loaded.network, args.device, loaded.amp, side, size, max(4 * args.spots, size))
            row: dict[str, object] = {"batch": size, "bfloat16": loaded.amp, "forward pass (img/s)": pure}
            if args.compile:
                compiled = torch.compile(loaded.network)
                row["compiled (img/s)"] = forward_rate(compiled, args.device, loaded.amp, side, size, 4 * args.spots)
            rate = embed_rate(Path(folder), args.encoder, args.device, size, args.spots, args.workers)
            rows.append(row | {"embed_patches (img/s)": rate, "forward pass / embed_patches": pure / rate})
    report(rows, args.out)
    kind = {"cuda": "gpu"}.get(args.device.split(":")[0], args.device.split(":")[0])
    print()
    training: list[dict[str, object]] = []
    for devices in args.devices:
        rate = epoch_rate(kind, devices, args.train_spots, 200, args.epochs)
        training.append({"devices": devices, "spots": args.train_spots, "genes": 200, "epochs/s": rate})
    report(training, None)


if __name__ == "__main__":
    main()
