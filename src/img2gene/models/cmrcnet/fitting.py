"""Fitting CMRCNet: validation on parts of the training data, choice of epochs and weights, the final fit, and its bank."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from img2gene._files.folders import ResumableFolder
from img2gene.models.centring import centre
from img2gene.models.cmrcnet.fitted import (
    PARTS,
    FittedCMRCNet,
    SpotArrays,
    bank_keys,
    build_ensemble,
    embed,
)
from img2gene.models.cmrcnet.network import Architecture, Pairs
from img2gene.models.cmrcnet.objective import Objective
from img2gene.models.cmrcnet.parameters import CMRCNetParameters
from img2gene.models.components import project_tokens
from img2gene.models.networks.ensemble import Ensemble
from img2gene.models.networks.fitting import NetworkFitting, train_stage
from img2gene.models.networks.training_task import TrainingRun, TrainingSchedule, TrainingTask
from img2gene.models.reference_bank import ReferenceBank
from img2gene.models.validation import mean_correlation, scored_genes

# Most steps of the optimiser.
_STEPS = 400
# Most reference spots that choose the epoch.
_SCORED_REFERENCES = 4096


@dataclass
class _Trial:
    """Result of one validation: held-out predictions of some rows, relative to the mean."""

    rows: np.ndarray
    retrieval: np.ndarray
    regression: np.ndarray | None
    run: TrainingRun


@dataclass
class CMRCNetFitting(NetworkFitting):
    """One fit of CMRCNet to training data."""

    parameters: CMRCNetParameters

    def run(self) -> tuple[FittedCMRCNet, dict[str, Any]]:
        """The fitted model, and the report on it."""
        progress = self.open_progress()
        trials = self._validated(progress)
        weights = self._weigh(trials)
        self.trials, self.weights = trials, weights
        everything = np.arange(len(self.data.labels))
        planned = self._schedule(len(everything))
        epochs = trials[0].run.best_epoch if trials else planned.max_epochs
        self.epochs = epochs
        ensemble = self._new_ensemble()
        # The learning rate must fall as it did in the validation runs, which planned for all epochs.
        schedule = dataclasses.replace(planned, max_epochs=epochs, decay_epochs=planned.max_epochs)
        run = train_stage("fit", self._task(everything, ensemble), schedule, progress)
        runs = {**{f"validation {number + 1}": trial.run for number, trial in enumerate(trials)}, "fit": run}
        facts = {"epochs": epochs, "n_references": len(everything)}
        return self._fitted(ensemble, everything, weights), self.report(
            runs, dict(zip(PARTS, weights, strict=True)), **facts
        )

    @cached_property
    def arrays(self) -> SpotArrays:
        """Inputs of the networks for all training spots."""
        data = self.data
        return SpotArrays(
            self.components(data.features, data.sections),
            project_tokens(self.token_components, data.tokens, data.sections),
        )

    @cached_property
    def labels(self) -> np.ndarray:
        """Centred labels, float32 (n, G)."""
        data = self.data
        mean = None if self.parameters.center == "section" else data.labels.mean(axis=0, dtype=np.float64)
        return centre(data.labels, data.sections, mean).astype(np.float32)

    @cached_property
    def scale(self) -> float:
        """Root of the mean variance of the centred labels."""
        return float(np.sqrt(max(np.square(self.labels, dtype=np.float64).mean(), 1e-12)))

    @cached_property
    def architecture(self) -> Architecture:
        """Shapes of the networks."""
        p = self.parameters
        n_tokens, token_width = self.token_shape
        return Architecture(
            n_components=len(self.components.axes),
            n_genes=self.data.labels.shape[1],
            n_tokens=n_tokens,
            token_width=token_width,
            dim=p.dim,
            heads=p.heads,
            n_gene_tokens=p.n_gene_tokens,
            dropout=p.dropout,
            mask=p.mask,
            reconstruction=p.reconstruction > 0,
            regression=p.regression > 0,
        )

    def _schedule(self, n_spots: int) -> TrainingSchedule:
        p = self.parameters
        schedule = self.schedule(self._n_batches(n_spots), _STEPS)
        return dataclasses.replace(schedule, final_learning_rate=min(p.final_learning_rate, p.learning_rate))

    def _n_batches(self, n_spots: int) -> int:
        return max(round(n_spots / self.parameters.batch_size), 1)

    def _new_ensemble(self) -> Ensemble:
        return build_ensemble(self.architecture, self.parameters.n_models, self.seed)

    def _task(self, rows: np.ndarray, ensemble: Ensemble) -> TrainingTask:
        """Training on some spots, in random batches over all their sections."""
        p = self.parameters
        # One scale for all genes keeps the weight of those that vary more.
        targets = self.labels / np.float32(self.scale)

        def batches(epoch: int) -> Iterator[Pairs]:
            order = np.random.default_rng([self.seed, epoch]).permutation(rows)
            for chosen in np.array_split(order, self._n_batches(len(rows))):
                tokens = np.asarray(self.arrays.tokens[chosen], dtype=np.float32)
                parts = (self.arrays.features[chosen], tokens, targets[chosen])
                yield Pairs(*map(torch.from_numpy, parts))

        objective = Objective(p.contrast, p.reconstruction, p.regression, p.temperature)
        return TrainingTask(ensemble, batches, objective, describe=self._describe)

    def _describe(self, batch: Pairs) -> str:
        largest = float(batch.labels.abs().max()), float(batch.features.abs().max())
        return f"{len(batch.labels)} spots, labels up to {largest[0]:.3g} and components up to {largest[1]:.3g} in size"

    def _validate(
        self, name: str, split: tuple[np.ndarray, np.ndarray], progress: ResumableFolder, epochs: int | None
    ) -> _Trial:
        """Train without one fold, stopped by the correlation on it, or for some ``epochs`` without a look at it."""
        fitted, held = (np.flatnonzero(part) for part in split)
        ensemble = self._new_ensemble()
        task = self._task(fitted, ensemble)
        genes = scored_genes(self.data.labels)
        names = self.folds.centred_in(self.data.sections)[held]
        # Each epoch is scored, so the bank of the validation has to be small.
        few = np.random.default_rng(self.seed).permutation(fitted)[:_SCORED_REFERENCES]
        schedule = self._schedule(len(fitted))
        task.validate = lambda trained: mean_correlation(
            self.data.labels[held][:, genes], self._blend(*self._held_out(trained, few, held, genes)), names
        )
        if epochs is not None:
            planned = schedule.max_epochs
            schedule = dataclasses.replace(schedule, max_epochs=epochs, validate_every=epochs, decay_epochs=planned)
        run = train_stage(name, task, schedule, progress)
        retrieval, regression = self._held_out(ensemble, fitted, held, np.arange(self.labels.shape[1]))
        return _Trial(held, retrieval, regression, run)

    def _held_out(
        self, ensemble: Ensemble, references: np.ndarray, rows: np.ndarray, genes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Predict spots by retrieval from ``references``, and by the regression head, if there is one."""
        p = self.parameters
        bank = self._bank(ensemble, references, genes)
        queries, labels = embed(ensemble, self.arrays.take(rows), regress=p.regression > 0)
        retrieved = bank.average(bank.nearest(queries, min(p.k, len(bank))), p.weighting)
        return retrieved, self.scale * labels[:, genes] if p.regression else None

    def _blend(self, retrieval: np.ndarray, regression: np.ndarray | None) -> np.ndarray:
        """The prediction that chooses the epoch: the mean of both parts, or the part that ``output`` names."""
        if regression is None or self.parameters.output == "retrieval":
            return retrieval
        return regression if self.parameters.output == "regression" else (retrieval + regression) / 2

    def _bank(self, ensemble: Ensemble, rows: np.ndarray, genes: np.ndarray | None = None) -> ReferenceBank:
        data, labels = self.data, self.labels[rows]
        keys = bank_keys(ensemble, self.arrays.take(rows), labels / np.float32(self.scale), self.parameters.keys)
        places = data.positions[rows].astype(np.float32)
        values = labels if genes is None else labels[:, genes]
        return ReferenceBank(keys, values, data.sections[rows], data.groups[rows], places)

    def _fitted(self, ensemble: Ensemble, rows: np.ndarray, weights: np.ndarray) -> FittedCMRCNet:
        p = self.parameters
        return FittedCMRCNet(
            self.architecture,
            ensemble,
            self.components,
            self.token_components,
            copy.copy(self.ridge) if weights[0] > 0 else None,
            self._bank(ensemble, rows),
            self.scale,
            self.data.labels.mean(axis=0, dtype=np.float64).astype(np.float32),
            weights,
            p.k,
            p.weighting,
            p.exclude,
        )

    @property
    def _used(self) -> dict[str, bool]:
        """Which parts the prediction may be made of."""
        p = self.parameters
        used = {"ridge": p.ridge, "retrieval": True, "regression": p.regression > 0}
        return used if p.output == "mixture" else {name: name == p.output for name in used}

    def _weigh(self, trials: list[_Trial]) -> np.ndarray:
        """Weights of ridge, retrieval and regression head."""
        used = self._used
        if sum(used.values()) == 1 or not trials:
            return np.array([used[name] for name in PARTS]) / sum(used.values())
        return self.stack(trials)

    def _candidates(self, trials: list[_Trial]) -> tuple[np.ndarray, dict[str, np.ndarray | None]]:
        """Held-out rows, and their predictions by the parts that may be used."""
        rows, used = np.concatenate([trial.rows for trial in trials]), self._used
        regressions = [t.regression for t in trials if t.regression is not None]
        return rows, {
            "ridge": self.ridge_held_out[rows] if used["ridge"] else None,
            "retrieval": np.concatenate([trial.retrieval for trial in trials]) if used["retrieval"] else None,
            "regression": np.concatenate(regressions) if used["regression"] else None,
        }
