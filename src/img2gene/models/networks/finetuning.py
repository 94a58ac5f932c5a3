"""Fine-tuning of an encoder: its network and a linear head are trained from pixels to labels.

The head starts as the ridge on the frozen features, since a random one would distort them before it has learnt anything
(Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022). A batch is of
one section, and features and labels are both referred to their means over the batch: regression within batches, which is
unbiased for differences within sections and blind to differences between sections.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from img2gene._checks import Arguments
from img2gene.encoders.base import normalise
from img2gene.encoders.trainable import changed_weights, select_stage
from img2gene.metrics import pearson
from img2gene.models.centring import centre
from img2gene.models.data import TrainingData
from img2gene.models.networks.ensemble import Single
from img2gene.models.networks.train import train
from img2gene.models.networks.training_task import TrainingRun, TrainingSchedule, TrainingTask
from img2gene.models.plain_ridge import PlainRidge
from img2gene.models.uncertainty.inner_folds import inner_folds

if TYPE_CHECKING:
    from img2gene.encoders.base import TorchEncoder
    from img2gene.encoders.spec import EncoderSpec

logger = logging.getLogger(__name__)
MODES = ("last", "all")
# Genes of the highest mean, whose labels are the least noisy.
_N_GENES = 250
_PATIENCE = 5


@dataclass(frozen=True)
class FineTuningParameters:
    """How to fine-tune.

    Attributes
    ----------
    mode
        ``"last"`` trains the last stage of the network, ``"all"`` everything.
    max_epochs
        Largest number of epochs; validation chooses among them.
    learning_rate
        Of AdamW.
    batch_size
        Spots for each step, all of one section.
    """

    mode: str
    max_epochs: int = 10
    learning_rate: float = 1e-5
    batch_size: int = 32

    def __post_init__(self) -> None:
        check = Arguments()
        values = {
            "mode": check.choice("finetune", self.mode, MODES),
            "max_epochs": check.whole("finetune_epochs", self.max_epochs, 1),
            "learning_rate": check.number("finetune_learning_rate", self.learning_rate, above=0),
            "batch_size": check.whole("finetune_batch_size", self.batch_size, 1),
        }
        check.raise_all()
        for name, value in values.items():
            object.__setattr__(self, name, value)


class Batch(NamedTuple):
    """Spots of one section: uint8 (b, n_fields, 3, side, side), float (b, n_genes) labels, and the section's number."""

    pixels: Tensor
    labels: Tensor
    section: Tensor


class Adapted(NamedTuple):
    """Changed weights of the encoder, and the training report (JSON)."""

    weights: dict[str, np.ndarray]
    report: dict[str, Any]


class Regressor(nn.Module):
    """Encoder, and a linear head on deviations from the mean over the spots of a batch."""

    scale: Tensor

    def __init__(self, encoder: TorchEncoder, head: np.ndarray, scale: np.ndarray) -> None:
        super().__init__()
        self.encoder, self.mean, self.std = encoder.network, encoder.mean, encoder.std
        self.head = nn.Linear(head.shape[1], head.shape[0], bias=False)
        self.head.weight = nn.Parameter(torch.from_numpy(head.astype(np.float32)))
        self.register_buffer("scale", torch.from_numpy(scale.astype(np.float32)))

    def train(self, mode: bool = True) -> Regressor:
        """Keep the pretrained statistics of batch normalisation: statistics of small batches are noise."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def features(self, pixels: Tensor) -> Tensor:
        """Features (b, n_fields · width) of uint8 pixels (b, n_fields, 3, side, side)."""
        images = normalise(pixels.to(self.scale.device).flatten(0, 1), self.mean, self.std)
        features = self.encoder(images.contiguous(memory_format=torch.channels_last))
        return features.reshape(len(pixels), -1).float()

    def forward(self, features: Tensor) -> Tensor:
        """Labels (b, n_genes) as they deviate from the mean over these spots."""
        # A running mean would lag while all features move, by more than spots differ from one another.
        return self.head((features - features.mean(dim=0)) / self.scale)


def loss(network: Any, batch: Batch) -> dict[str, Tensor]:
    """Mean squared error of how labels deviate from their mean over the batch."""
    predicted = network(network.features(batch.pixels))
    return {"loss": (predicted - (batch.labels - batch.labels.mean(dim=0))).square().mean()}


@dataclass
class FineTuning:
    """Fine-tuning of one encoder on the pixels of training spots.

    Attributes
    ----------
    encoder, spec
        The encoder, whose network is trained in place, and its specification.
    pixels
        uint8 (n_spots, n_fields, 3, side, side).
    data
        The training spots with their frozen features.
    parameters, seed
        How to train.
    device
        Torch device.
    precision
        As in Lightning's trainer.
    """

    encoder: TorchEncoder
    spec: EncoderSpec
    pixels: np.ndarray
    data: TrainingData
    parameters: FineTuningParameters
    seed: int
    device: str = "cpu"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        genes = np.sort(np.argsort(-self.data.labels.mean(axis=0), kind="stable")[:_N_GENES])
        self.data = replace(self.data, labels=self.data.labels[:, genes], tokens=None, pathways=None)
        self.names = np.unique(self.data.sections)
        # The pixels are not sorted, as a copy of them may not fit into memory.
        self.order = self.data.canonical_order()
        self.targets = self.data.labels

    def run(self) -> Adapted:
        """Train until validation stops improving."""
        before = {name: value.detach().clone() for name, value in self.encoder.network.named_parameters()}
        n_trained = len(select_stage(self.encoder.network, self.spec, last=self.parameters.mode == "last"))
        fitted, held, places = self._validation()
        single = Single(self._regressor(fitted).to(self.device)).train()
        task = TrainingTask(single, lambda epoch: self._batches(fitted, epoch), loss, describe=self._describe)
        frozen = float("nan")
        if held.any():
            task.validate = lambda trained: self._score(trained.network, held, places)
            frozen = task.validate(single.eval())
            single.train()
        run = train(task, self._schedule(), label="fine-tune")
        self.encoder.network.to(self.device)
        # Only a warning: the report holds both scores, for the user to decide.
        if run.score <= frozen:
            logger.warning("fine-tuning did not help: correlation %.3f in validation, %.3f before", run.score, frozen)
        weights = changed_weights(self.encoder.network, before)
        return Adapted(weights, self._report(run, frozen, held, n_trained))

    def _validation(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fitted spots, validation spots, and the section or block that each spot is centred in."""
        folds = inner_folds(self.data, seed=self.seed)
        places = folds.centred_in(self.data.sections)
        splits = [(fitted, held) for fitted, held in folds.splits() if fitted.sum() > 1 and held.sum() > 1]
        if not splits:
            return np.ones(len(places), dtype=bool), np.zeros(len(places), dtype=bool), places
        return *splits[np.random.default_rng(self.seed).integers(len(splits))], places

    def _regressor(self, fitted: np.ndarray) -> Regressor:
        """The head starts as the slide-centred ridge on the frozen features of the spots that are fitted to."""
        data = self.data.take(fitted)
        ridge = PlainRidge(center="section")
        ridge.fit(data, seed=self.seed)
        # One unit for all genes, so that those that vary more keep their weight, and learning rates theirs on any scale.
        unit = float(centre(data.labels, data.sections).std()) or 1.0
        self.targets = (self.data.labels / unit).astype(np.float32)
        head = ridge.arrays["coefficients"].T @ ridge.arrays["components"] / unit
        return Regressor(self.encoder, head, ridge.arrays["scale"])

    def _batches(self, fitted: np.ndarray, epoch: int) -> Iterator[Batch]:
        """Batches of one section each, in random order, every patch in one of its eight orientations."""
        rng = np.random.default_rng([self.seed, epoch])
        chunks: list[tuple[int, np.ndarray]] = []
        for number, name in enumerate(self.names):
            chosen = fitted & (self.data.sections == name)
            rows = rng.permutation(self.order[chosen[self.order]])
            n_chunks = max(-(-len(rows) // self.parameters.batch_size), 1)
            chunks += [(number, part) for part in np.array_split(rows, n_chunks) if len(part)]
        for i in rng.permutation(len(chunks)):
            number, rows = chunks[i]
            pixels = _turned(self.pixels[rows], rng.integers(8, size=len(rows)))
            yield Batch(torch.from_numpy(pixels), torch.from_numpy(self.targets[rows]), torch.tensor(number))

    @torch.no_grad()
    def _score(self, network: Regressor, held: np.ndarray, places: np.ndarray) -> float:
        """Mean correlation over genes and sections, each referred to its own mean."""
        scores = []
        for name in np.unique(places[held]):
            rows = np.flatnonzero(held & (places == name))
            parts = np.split(rows, range(self.parameters.batch_size, len(rows), self.parameters.batch_size))
            features = torch.cat([network.features(torch.from_numpy(self.pixels[part])) for part in parts])
            predicted = network(features).float().cpu().numpy()
            scores.append(pearson(self.data.labels[rows], predicted))
        known = np.concatenate(scores)
        return float(np.nanmean(known)) if np.isfinite(known).any() else 0.0

    def _describe(self, batch: Batch) -> str:
        name = self.names[int(batch.section)]
        return f"{len(batch.labels)} spots of section {name}, labels up to {float(batch.labels.abs().max()):.3g} SD"

    def _schedule(self) -> TrainingSchedule:
        kind, _, number = self.device.partition(":")
        return TrainingSchedule(
            max_epochs=int(self.parameters.max_epochs),
            patience=_PATIENCE,
            learning_rate=self.parameters.learning_rate,
            accelerator={"cuda": "gpu"}.get(kind, kind),
            # With the comma it is the number of a device, not how many of them.
            devices=f"{number}," if number and kind == "cuda" else 1,
            precision=self.precision,
            seed=self.seed,
        )

    def _report(self, run: TrainingRun, frozen: float, held: np.ndarray, n_trained: int) -> dict[str, Any]:
        validated = held.any()
        return {
            "epochs": run.best_epoch,
            "n_weights": n_trained,
            "n_genes": self.data.labels.shape[1],
            "validated_on": sorted(set(self.data.sections[held].tolist())),
            "validation": run.score if validated else None,
            "validation_before": frozen if validated else None,
            "history": run.history,
        }


def _turned(pixels: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Patches (b, n_fields, 3, side, side), each in one of the eight orientations of the square: tissue has none."""
    turned = np.empty_like(pixels)
    for view in np.unique(views):
        rows = views == view
        chosen = pixels[rows].swapaxes(3, 4) if view >= 4 else pixels[rows]
        turned[rows] = np.rot90(chosen, view % 4, axes=(3, 4))
    return turned
