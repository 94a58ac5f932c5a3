"""Schedule, task and result of one training run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from img2gene.models.networks.ensemble import Ensemble, Single


@dataclass(frozen=True)
class TrainingSchedule:
    """How long and how fast to train.

    Attributes
    ----------
    max_epochs
        Largest number of epochs.
    validate_every
        Epochs between validations.
    patience
        Validations without improvement until training stops.
    learning_rate, weight_decay
        Of AdamW.
    final_learning_rate, decay_epochs
        The learning rate falls to this one along a half cosine over this number of epochs; None keeps it.
    averaging
        Weights are averaged over steps with this factor for the past; validated and kept are the averages.
    accelerator, devices, precision
        As in Lightning's trainer.
    seed
        Of the order of spots, dropout, and, for the first member, of the initial weights.
    """

    max_epochs: int
    validate_every: int = 1
    patience: int = 10
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    final_learning_rate: float | None = None
    decay_epochs: int | None = None
    # About the last 50 steps.
    averaging: float = 0.98
    accelerator: str = "cpu"
    devices: int | str | list[int] = 1
    precision: str = "32-true"
    seed: int = 0


@dataclass
class TrainingTask:
    """The networks, batches, loss and validation of a training run.

    Attributes
    ----------
    ensemble
        The networks, or one alone; parameters that need no gradient stay as they are.
    batches
        Returns the batches of an epoch from its number: tuples of tensors, the same for the same number.
    loss
        Losses of one network on a batch: the total, and its parts by name.
    validate
        Score to be maximised, without gradients; None trains for all epochs and keeps the last.
    prepare
        Called before each epoch, without gradients.
    describe
        Says what a batch holds, for errors.
    """

    # Callables instead of a base class: models differ in batches and loss, not in how they are trained.
    ensemble: Ensemble | Single
    batches: Callable[[int], Iterator[Any]]
    loss: Callable[[Any, Any], dict[str, Tensor]]
    validate: Callable[[Any], float] | None = None
    prepare: Callable[[Any], None] | None = None
    describe: Callable[[Any], str] = lambda batch: "a batch"


@dataclass(frozen=True)
class TrainingRun:
    """Result of a training run.

    Attributes
    ----------
    best_epoch
        Number of epochs after which validation was best (all of them without validation); its weights are in the ensemble.
    score
        Validation score then; NaN without validation.
    history
        One entry for each epoch: ``epoch``, the losses, and ``validation`` where it was computed.
    """

    best_epoch: int
    score: float
    history: list[dict[str, float]]
