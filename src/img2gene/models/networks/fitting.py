"""Fits of networks that are validated on parts of their training data: stages, held-out predictions, weights."""

from __future__ import annotations

import dataclasses
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from img2gene._errors import Img2GeneError, listing
from img2gene._files.folders import ResumableFolder, fingerprint, load_arrays
from img2gene.models.centring import centre
from img2gene.models.components import Components
from img2gene.models.data import TrainingData
from img2gene.models.depth import depth_weights
from img2gene.models.networks.parameters import NetworkParameters
from img2gene.models.networks.stacking import stack_weights
from img2gene.models.networks.train import accelerators, n_processes, train
from img2gene.models.networks.training_task import TrainingRun, TrainingSchedule, TrainingTask
from img2gene.models.ridge import Ridge
from img2gene.models.uncertainty.held_out import HeldOut, unit_labels
from img2gene.models.uncertainty.inner_folds import InnerFolds, inner_folds

# Number of devices, or their numbers.
Devices = int | str | list[int]
_TOKEN_COMPONENTS = 64
# Fewest and most epochs. Many spots need fewer: the fewest epochs make at most half as many steps again as planned.
_EPOCHS = (12, 150)
_MOST_STEPS = 1.5
_VALIDATIONS = 25
# How strongly weights are drawn to the mean of the parts, as a few folds decide on them (docs/guide/img2gene.md).
_SHRINKAGE = 0.1
# Largest sum of the weights.
_MOST_WEIGHT = 1.5
# Fewest groups to calibrate on: fewer do not show how much groups differ.
_CALIBRATIONS = 3


@dataclass
class NetworkFitting(ABC):
    """One fit of networks on frozen embeddings to training data: what does not depend on the network.

    ``data`` become the spots in their canonical order, and ``order`` their rows in the data that were passed. The fit sets
    its validations, the weights of the candidates, and the number of epochs.
    """

    parameters: NetworkParameters
    data: TrainingData
    seed: int
    trials: list[Any] = field(init=False, default_factory=list)
    weights: np.ndarray = field(init=False, default_factory=lambda: np.empty(0))
    epochs: int = field(init=False, default=0)
    order: np.ndarray = field(init=False)
    _progress: ResumableFolder | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Refuse a device that is not there before anything is computed or written; sort the spots."""
        resolve_accelerator(self.parameters.accelerator, self.parameters.devices)
        self.order, self.data = self.data.canonical_order(), self.data.in_canonical_order()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what training in another process does not need: the results so far, and the ridge's."""
        return {
            name: value for name, value in self.__dict__.items() if name not in ("trials", "ridge", "ridge_held_out")
        }

    @cached_property
    def ridge(self) -> Ridge:
        """The ridge that the networks are mixed with."""
        ridge = Ridge(center=self.parameters.center)
        ridge.fit(self.data, seed=self.seed)
        return ridge

    @cached_property
    def ridge_held_out(self) -> np.ndarray:
        """Prediction of every training spot by the ridge without its fold, relative to the mean, float32 (n_spots, n_genes)."""
        return self.ridge.held_out(self.folds)

    @cached_property
    def components(self) -> Components:
        """Principal components of the embedding."""
        return self._components(self.data.features, self.parameters.n_components, self.data.feature_scale)

    @cached_property
    def token_components(self) -> Components | None:
        """Principal components of the patch tokens."""
        tokens = self.data.tokens
        return None if tokens is None else self._components(tokens, min(_TOKEN_COMPONENTS, tokens.shape[-1]))

    @property
    def token_shape(self) -> tuple[int, int]:
        """Number of patch tokens that networks look at, and of their components; zeros where there are none."""
        components, tokens = self.token_components, self.data.tokens
        return (0, 0) if components is None or tokens is None else (tokens.shape[1], len(components.axes))

    def _components(self, values: np.ndarray, k: int, scale: np.ndarray | None = None) -> Components:
        return Components.fit(values, self.data.sections, k, center=self.parameters.center, seed=self.seed, scale=scale)

    @cached_property
    def folds(self) -> InnerFolds:
        """Parts of the training data that are left out in turn."""
        return inner_folds(self.data, seed=self.seed)

    def validations(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The validation folds, drawn at random: masks (fitted on, held out)."""
        return self._splits()[: self.parameters.n_validations]

    def calibrations(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Folds that only calibration uses; with the validation folds they are up to three."""
        return self._splits()[self.parameters.n_validations : _CALIBRATIONS]

    def _validated(self, progress: ResumableFolder) -> list[Any]:
        """Train without each validation fold.

        The first fold chooses the number of epochs. The others train for that number, so that what they show was not chosen on
        them.
        """
        trials: list[Any] = []
        for number, split in enumerate(self.validations()):
            epochs = trials[0].run.best_epoch if trials else None
            trials.append(self._validate(f"validation{number + 1}", split, progress, epochs))
        return trials

    def _splits(self) -> list[tuple[np.ndarray, np.ndarray]]:
        splits = [(fitted, held) for fitted, held in self.folds.splits() if fitted.any() and held.sum() > 1]
        return [splits[i] for i in np.random.default_rng(self.seed).permutation(len(splits))]

    def held_out(self) -> HeldOut | None:
        """Predict the spots of the validation folds, and of further folds up to three; None without any fold."""
        progress = self.open_progress()
        more = [
            self._validate(f"calibration{number + 1}", split, progress, self.epochs)
            for number, split in enumerate(self.calibrations())
        ]
        trials = [*self.trials, *more]
        if not trials:
            return None
        rows, candidates = self._candidates(trials)
        data, folds = self.data, self.folds
        predicted = np.empty((len(rows), data.labels.shape[1]), dtype=np.float32)
        for fitted, held in folds.splits():
            predicted[held[rows]] = data.labels[fitted].mean(axis=0, dtype=np.float64)
        for weight, values in zip(self.weights.astype(np.float32), candidates.values(), strict=True):
            if values is not None and weight > 0:
                predicted += weight * values
        units = unit_labels(data, folds)[rows]
        return HeldOut(self.order[rows], predicted, folds.kind, units, self._spread(trials))

    def stack(self, trials: list[Any]) -> np.ndarray:
        """Weights of the candidates, by the folds that did not choose the number of epochs, if there are any."""
        rows, candidates = self._candidates(trials[1:] or trials)
        data, units = self.data, self.folds.centred_in(self.data.sections)[rows]
        known = {name: centre(values, units) for name, values in candidates.items() if values is not None}
        depth = depth_weights(data.library, data.sections)[rows]
        stacked = stack_weights([*known.values()], centre(data.labels[rows], units), depth, shrinkage=_SHRINKAGE)
        by_name = dict(zip(known, stacked, strict=True))
        weights = np.array([by_name.get(name, 0.0) for name in candidates])
        # Networks that stopped after one epoch predict almost nothing; large weights would only amplify noise.
        return weights * min(1, _MOST_WEIGHT / max(weights.sum(), 1e-12))

    @abstractmethod
    def _validate(
        self, name: str, split: tuple[np.ndarray, np.ndarray], progress: ResumableFolder, epochs: int | None
    ) -> Any:
        """Train without one fold, stopped by the correlation on it, or for some ``epochs`` without a look at it."""

    @abstractmethod
    def _candidates(self, trials: list[Any]) -> tuple[np.ndarray, dict[str, np.ndarray | None]]:
        """Held-out rows, and what each candidate predicts for them, relative to the mean."""

    def _spread(self, trials: list[Any]) -> np.ndarray | None:
        """SD over the members on the held-out rows; None without an ensemble."""
        return None

    def open_progress(self) -> ResumableFolder:
        """Open the folder that keeps finished parts of this fit."""
        if self._progress is not None:
            return self._progress
        kept = dataclasses.asdict(self.parameters)
        # A fit may go on in another folder or on another device.
        for name in ("checkpoint_dir", "accelerator", "devices"):
            kept.pop(name)
        if (n := n_processes(*resolve_accelerator(self.parameters.accelerator, self.parameters.devices))) > 1:
            # A step of several processes follows as many batches.
            kept["devices"] = n
        names = [part.name for part in dataclasses.fields(self.data)]
        facts = {**kept, "seed": self.seed, **fingerprint(**{name: getattr(self.data, name) for name in names})}
        # One folder for the whole fit: another process must not take it between validation and calibration.
        self._progress = ResumableFolder.open(self.parameters.checkpoint_dir, facts)
        return self._progress

    def schedule(self, n_batches: int, n_steps: int) -> TrainingSchedule:
        """Set up the training; ``n_steps`` and the batches of an epoch give its length, unless ``max_epochs`` does."""
        p = self.parameters
        most = p.max_epochs or planned_epochs(n_steps, n_batches)
        accelerator, devices = resolve_accelerator(p.accelerator, p.devices)
        return TrainingSchedule(
            max_epochs=most,
            validate_every=max(most // _VALIDATIONS, 1),
            patience=p.patience,
            learning_rate=p.learning_rate,
            weight_decay=p.weight_decay,
            accelerator=accelerator,
            devices=devices,
            precision=str(p.precision),
            seed=self.seed,
        )

    def report(self, runs: Mapping[str, TrainingRun], weights: Mapping[str, float], **facts: Any) -> dict[str, Any]:
        """Report the choices and the training history; ``runs`` are the validations and the final ``fit``, if any."""
        trials = [run for name, run in runs.items() if name != "fit"]
        return {
            "inner_folds": self.folds.kind,
            "n_validations": len(trials),
            "validation_pcc": [round(run.score, 6) for run in trials],
            "best_epochs": [run.best_epoch for run in trials],
            "weights": {name: round(float(value), 6) for name, value in weights.items()},
            **facts,
            "history": [{"run": name, **entry} for name, run in runs.items() for entry in run.history],
        }


class NetworkPredictor:
    """Parameters, report and state of a predictor whose fit is a :class:`NetworkFitting`."""

    parameters: Any
    report: dict[str, Any]
    fitted: Any

    @property
    def trained(self) -> Any:
        """The fitted networks and all that a prediction needs."""
        if self.fitted is None:
            raise Img2GeneError("This model is not fitted yet; call `fit` first.")
        return self.fitted

    @property
    def history_(self) -> list[dict[str, float]]:
        """Losses, and validation scores, of each epoch of each training run."""
        return list(self.report.get("history", []))

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Parameters and facts, and all arrays."""
        config, arrays = self.trained.state()
        parameters = dataclasses.asdict(self.parameters)
        # A path of this computer means nothing where the model is used.
        del parameters["checkpoint_dir"]
        return {**config, "parameters": parameters, "report": self.report}, arrays

    def summary(self) -> dict[str, Any]:
        """Report the choices and the validation scores."""
        return {name: value for name, value in self.report.items() if name != "history"}


def planned_epochs(n_steps: int, n_batches: int) -> int:
    """Return the epochs that take about ``n_steps`` steps, of ``n_batches`` each: from 12 (fewer for many spots) to 150."""
    few, many = _EPOCHS
    few = min(few, math.ceil(_MOST_STEPS * n_steps / n_batches))
    return min(max(math.ceil(n_steps / n_batches), few), many)


def train_stage(name: str, task: TrainingTask, schedule: TrainingSchedule, progress: ResumableFolder) -> TrainingRun:
    """Train, or load the training run that was finished before under this name."""
    done = progress.read(name, lambda folder, facts: _finished_run(folder / f"{name}.safetensors", facts, task))
    if done is not None:
        return done
    run = train(task, schedule, folder=progress.part(name), label=name)
    progress.save(
        name, dataclasses.asdict(run), {key: value.numpy() for key, value in task.ensemble.state_dict().items()}
    )
    return run


def _finished_run(path: Path, facts: dict[str, Any], task: TrainingTask) -> TrainingRun:
    """Put the weights of a finished run into the ensemble; return its facts."""
    run = TrainingRun(**facts)
    arrays = load_arrays(path)
    task.ensemble.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
    task.ensemble.eval()
    return run


def resolve_accelerator(accelerator: str, devices: Devices) -> tuple[str, Devices]:
    """Resolve ``"auto"`` to the device of the settings; raise if this computer lacks the accelerator."""
    from img2gene.encoders.base import resolve_device
    from img2gene.settings import settings

    kind = accelerator
    if accelerator == "auto":
        kind = resolve_device(None).split(":")[0]
        kind = {"cuda": "gpu"}.get(kind, kind)
    if kind != "cpu":
        there = accelerators()
        if not there.get(kind, False):
            setting = (
                f"accelerator={accelerator!r}"
                if accelerator != "auto"
                else f"img2gene.settings.device={settings.device!r}"
            )
            raise Img2GeneError(
                f"{setting}: this computer has no such device (available: {listing(name for name in there if there[name])}). "
                "Choose another, or 'auto'."
            )
    if n_processes(kind, devices) > 1:
        _refuse_launchers(devices)
    return kind, devices


def _refuse_launchers(devices: Devices) -> None:
    """Refuse to start several processes in each of several that torchrun or srun have started."""
    for name, launcher in (("WORLD_SIZE", "torchrun"), ("SLURM_STEP_NUM_TASKS", "srun")):
        value = os.environ.get(name, "1")
        if value.isdecimal() and int(value) > 1:
            raise Img2GeneError(
                f"devices={devices!r}: {launcher} has started {value} processes of this script ({name}={value}), and each would "
                "start its own. Start the script once, by `python`, or by `srun --ntasks=1`: it starts one process for each device."
            )
