"""Fitting Img2Gene: validation on parts of the training data, choice of epochs and weights, and the final fit."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from img2gene._errors import Img2GeneError
from img2gene._files.folders import ResumableFolder
from img2gene.models.centring import section_means
from img2gene.models.components import project_tokens
from img2gene.models.depth import depth_weights
from img2gene.models.img2gene.fitted import (
    PARTS,
    FittedImg2Gene,
    Readout,
    Retrieval,
    build_ensemble,
    count_labels,
)
from img2gene.models.img2gene.inference import SpotArrays, embed, predictions, update_references
from img2gene.models.img2gene.network import Architecture
from img2gene.models.img2gene.objective import Objective, Targets
from img2gene.models.img2gene.parameters import Img2GeneParameters
from img2gene.models.img2gene.responses import Responses
from img2gene.models.img2gene.targets import TargetArrays
from img2gene.models.img2gene.validated_range import ValidatedRange
from img2gene.models.networks.batches import Batch, SectionSpots, gather, split_sections, training_chunks
from img2gene.models.networks.debiasing import confounder_dictionary
from img2gene.models.networks.ensemble import Ensemble
from img2gene.models.networks.fitting import NetworkFitting, train_stage
from img2gene.models.networks.training_task import TrainingRun, TrainingSchedule, TrainingTask
from img2gene.models.reference_bank import ReferenceBank
from img2gene.models.validation import mean_correlation, scored_genes

logger = logging.getLogger(__name__)

# Spots that stand for the section in a training batch; prediction uses all of them.
_ANCHORS = 256
# Most steps of the optimiser: more steps gain little for their time.
_STEPS = 300
# Most training spots to keep for retrieval.
_REFERENCES = 20_000


@dataclass
class _Trial:
    """Result of one validation: held-out predictions relative to the mean, and the networks that made them."""

    rows: np.ndarray
    own: np.ndarray
    full: np.ndarray
    retrieved: np.ndarray
    own_sd: np.ndarray
    full_sd: np.ndarray
    run: TrainingRun
    ensemble: Ensemble
    readout: Readout


@dataclass
class Img2GeneFitting(NetworkFitting):
    """One fit of Img2Gene to training data."""

    parameters: Img2GeneParameters

    def run(self) -> tuple[FittedImg2Gene, dict[str, Any]]:
        """The fitted model, and the report on it."""
        if self.parameters.depth_weights and self.data.library is None:
            raise Img2GeneError(
                "depth_weights=True needs library sizes, which labels from `layer=` do not have. Leave one of both out."
            )
        progress = self.open_progress()
        trials = self._validated(progress)
        weights = self._weigh(trials)
        self.trials, self.weights = trials, weights
        planned = self.schedule(n_batches(self.arrays.sections, self.parameters.batch_size), _STEPS)
        epochs = trials[0].run.best_epoch if trials else planned.max_epochs
        self.epochs = epochs
        runs = {f"validation {number + 1}": trial.run for number, trial in enumerate(trials)}
        if self.parameters.refit or not trials:
            ensemble, runs["fit"] = self._refit(dataclasses.replace(planned, max_epochs=epochs), progress)
            readout = self._readout(ensemble, self.arrays)
        else:
            ensemble, readout = trials[0].ensemble, trials[0].readout
        ridge = copy.copy(self.ridge)
        fitted = FittedImg2Gene(
            self.architecture,
            ensemble,
            self.components,
            self.token_components,
            ridge,
            readout,
            self._retrieval(ensemble, self.arrays) if weights[3] > 0 else None,
            weights,
            ValidatedRange.of(self.data, self.folds, ridge, always=self.parameters.ridge == "none"),
        )
        facts = {"epochs": epochs, "ridge": self.ridge.summary(), "n_pathways": self.architecture.n_pathways}
        facts["n_references"] = 0 if fitted.retrieval is None else len(fitted.retrieval.bank)
        return fitted, self.report(runs, dict(zip(PARTS, weights, strict=True)), **facts)

    @cached_property
    def arrays(self) -> SpotArrays:
        """Inputs of the networks for all training spots."""
        data = self.data
        return SpotArrays(
            split_sections(data.sections, data.positions, self.parameters.n_neighbors, pad=True),
            self.components(data.features, data.sections),
            project_tokens(self.token_components, data.tokens, data.sections),
        )

    @cached_property
    def targets(self) -> TargetArrays:
        """Targets of all training spots."""
        base = self.ridge_held_out if self.parameters.ridge == "residual" else None
        return TargetArrays.build(self.parameters, self.data, base)

    @cached_property
    def architecture(self) -> Architecture:
        """Shapes of the networks."""
        p, data = self.parameters, self.data
        n_tokens, token_width = self.token_shape
        return Architecture(
            n_components=len(self.components.axes),
            n_genes=self.targets.n_outputs(p),
            n_pathways=0 if data.pathways is None else data.pathways.shape[1],
            n_tokens=n_tokens,
            token_width=token_width,
            n_confounders=min(p.n_confounders, len(np.unique(data.sections))),
            dim=p.dim,
            heads=p.heads,
            n_neighbors=p.n_neighbors,
            n_latents=p.n_latents,
            dropout=p.dropout,
            effect=p.effect,
            neighborhood=p.neighborhood,
            section=p.section_view,
            counts=p.objective == "negative_binomial",
        )

    def _new_ensemble(self) -> Ensemble:
        ensemble = build_ensemble(self.architecture, self.parameters.n_models, self.seed)
        if self.architecture.n_confounders:
            # Centred features hold no trace of the slide, so centroids come from the means of the sections.
            means = section_means(self.data.features, self.data.sections)[1]
            means = ((means - self.components.mean) / self.components.scale) @ self.components.axes.T
            dictionary = confounder_dictionary(means, self.architecture.n_confounders, seed=self.seed)
            for name, values in zip(("centroids", "frequency"), dictionary, strict=True):
                buffer = ensemble.get_buffer(f"backdoor/{name}")
                buffer.copy_(torch.from_numpy(values).expand_as(buffer))
        return ensemble

    def _responses(self, arrays: SpotArrays) -> Responses:
        """What networks that are trained on the sections of ``arrays`` predict."""
        rows = np.sort(np.concatenate([section.rows for section in arrays.sections]))
        weights = depth_weights(self.data.library, self.data.sections)
        return self.targets.responses(self.architecture.n_genes, rows, weights)

    def _task(self, arrays: SpotArrays, ensemble: Ensemble) -> TrainingTask:
        """Training on the sections of ``arrays``."""
        p, responses = self.parameters, self._responses(arrays)
        objective = Objective(p.objective, p.distillation, p.pathway, p.pathway_coherence, p.coherence)

        def batches(epoch: int) -> Iterator[tuple[Batch, Targets]]:
            rng = np.random.default_rng([self.seed, epoch])
            for section, spots, anchors in training_chunks(arrays.sections, p.batch_size, _ANCHORS, rng):
                spot_batch = gather(section, spots, anchors, arrays.features, arrays.tokens)
                yield spot_batch, self.targets.batch(section, section.rows[spots], responses)

        prepare = None if p.effect == "none" else lambda trained: update_references(trained, arrays)
        return TrainingTask(ensemble, batches, objective, prepare=prepare, describe=self._describe)

    def _describe(self, batch: tuple[Batch, Targets]) -> str:
        spots, targets = batch
        largest = float(targets.labels.abs().max()), float(spots.features.abs().max())
        return (
            f"{len(spots.own)} spots of section {self.data.sections[int(targets.rows[0])]}, labels up to {largest[0]:.3g} and "
            f"components up to {largest[1]:.3g} in size"
        )

    def _validate(
        self, name: str, split: tuple[np.ndarray, np.ndarray], progress: ResumableFolder, epochs: int | None
    ) -> _Trial:
        """Train without one fold, stopped by the correlation on it, or for some ``epochs`` without a look at it."""
        fitted, held = split
        inside = self._part(fitted, self.data.sections)
        outside = self._part(held, self.folds.centred_in(self.data.sections))
        ensemble = self._new_ensemble()
        task = self._task(inside, ensemble)
        genes = scored_genes(self.data.labels)
        schedule = self.schedule(n_batches(inside.sections, self.parameters.batch_size), _STEPS)
        responses = self._responses(inside)
        task.validate = lambda trained: self._score(trained, outside, genes, responses)
        if epochs is not None:
            schedule = dataclasses.replace(schedule, max_epochs=epochs, validate_every=epochs)
        run = train_stage(name, task, schedule, progress)
        if self.parameters.effect != "none":
            update_references(ensemble, inside)
        readout = self._readout(ensemble, inside)
        retrieval = self._retrieval(ensemble, inside) if self.parameters.retrieval else None
        blocks = [
            (
                rows,
                readout(outputs.views[:, 0], own=True),
                readout(outputs.genes, own=False),
                np.empty((len(rows), 0)) if retrieval is None else retrieval(outputs.embedding),
                readout.spread(outputs.views[:, 0], own=True),
                readout.spread(outputs.genes, own=False),
            )
            for rows, outputs in predictions(ensemble, outside)
        ]
        rows, own, full, retrieved, own_sd, full_sd = (np.concatenate(part) for part in zip(*blocks, strict=True))
        return _Trial(rows, own, full, retrieved, own_sd, full_sd, run, ensemble, readout)

    def _retrieval(self, ensemble: Ensemble, arrays: SpotArrays) -> Retrieval:
        """Retrieval from the spots of ``arrays``, or from a random sample of them above 20,000."""
        data, targets = self.data, self.targets
        rows = np.concatenate([section.rows for section in arrays.sections])
        kept = np.zeros(len(data.labels), dtype=bool)
        kept[np.random.default_rng(self.seed).permutation(rows)[:_REFERENCES]] = True
        rows, keys = embed(ensemble, arrays, kept)
        values = targets.labels[rows] * np.float32(targets.scale)
        places = data.positions[rows].astype(np.float32)
        return Retrieval(ReferenceBank(keys, values, data.sections[rows], data.groups[rows], places), self.parameters.k)

    def _part(self, rows: np.ndarray, sections: np.ndarray) -> SpotArrays:
        """Make the inputs of some spots, each section with the neighbours that remain; the arrays still hold all spots."""
        index = np.flatnonzero(rows)
        spots = split_sections(sections[index], self.data.positions[index], self.parameters.n_neighbors, pad=True)
        moved = [dataclasses.replace(section, rows=index[section.rows]) for section in spots]
        return SpotArrays(moved, self.arrays.features, self.arrays.tokens)

    def _score(self, ensemble: Ensemble, arrays: SpotArrays, genes: np.ndarray, responses: Responses) -> float:
        """Mean correlation over genes and sections of the members' mean prediction."""
        predicted = np.full((len(self.data.labels), len(genes)), np.nan, dtype=np.float32)
        for rows, outputs in predictions(ensemble, arrays):
            predicted[rows] = responses.expand(outputs.genes.mean(dim=0).float().cpu())[:, genes].numpy()
        rows = np.concatenate([section.rows for section in arrays.sections])
        names = np.repeat([section.name for section in arrays.sections], [len(s.rows) for s in arrays.sections])
        return mean_correlation(self.data.labels[rows][:, genes], predicted[rows], names)

    def _refit(self, schedule: TrainingSchedule, progress: ResumableFolder) -> tuple[Ensemble, TrainingRun]:
        ensemble = self._new_ensemble()
        run = train_stage("fit", self._task(self.arrays, ensemble), schedule, progress)
        if self.parameters.effect != "none":
            update_references(ensemble, self.arrays)
        return ensemble, run

    def _readout(self, ensemble: Ensemble, arrays: SpotArrays) -> Readout:
        p, log_rate, responses = self.parameters, self.targets.log_rate_mean, self._responses(arrays)
        shape = (p.n_models, self.architecture.n_genes)
        genes = own = np.zeros(shape, dtype=np.float32)
        # Labels are centred, and so are their least-squares predictions.
        if (p.objective, p.effect, p.weighting, p.depth_weights) != ("gaussian", "none", "none", False):
            genes, own = _mean_outputs(ensemble, arrays, log_rate)
        mean = self.data.labels.mean(axis=0, dtype=np.float64).astype(np.float32)
        return Readout(self.targets.scale, mean, log_rate, genes, own, responses)

    def _weigh(self, trials: list[_Trial]) -> np.ndarray:
        """Weights of ridge, own view, full network and retrieval."""
        if not trials:
            return _unvalidated(self.parameters.ridge, self.parameters.retrieval)
        return self.stack(trials)

    def _candidates(self, trials: list[_Trial]) -> tuple[np.ndarray, dict[str, np.ndarray | None]]:
        """Held-out rows, and their predictions by ridge, own view, full network and retrieval."""
        p = self.parameters
        rows, own, full, retrieved = (
            np.concatenate([getattr(trial, part) for trial in trials]) for part in ("rows", "own", "full", "retrieved")
        )
        ridge = None if p.ridge == "none" else self.ridge_held_out[rows]
        return rows, {
            PARTS[0]: ridge,
            # The own view is not debiased, so its share in the mixture would partly undo the effect.
            PARTS[1]: own if p.effect == "none" else None,
            PARTS[2]: full,
            PARTS[3]: retrieved if p.retrieval else None,
        }

    def _spread(self, trials: list[_Trial]) -> np.ndarray | None:
        if self.parameters.n_models < 2:
            return None
        return np.concatenate([self.weights[1] * trial.own_sd + self.weights[2] * trial.full_sd for trial in trials])


def _mean_outputs(ensemble: Ensemble, arrays: SpotArrays, log_rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean output of each member over spots, by the full network and by the own view, float32 (n_models, G) each.

    With log rates, means of the labels that they stand for: not the mean label, as that of a noisy count is smaller than the
    label of the expected count.
    """
    parts = [
        [
            (count_labels(part, log_rate) if len(log_rate) else part.cpu()).sum(dim=1)
            for part in (outputs.genes, outputs.views[:, 0])
        ]
        for _, outputs in predictions(ensemble, arrays)
    ]
    n_spots = sum(len(section.rows) for section in arrays.sections)
    genes, own = (torch.stack(part).sum(dim=0).div(n_spots).numpy() for part in zip(*parts, strict=True))
    return genes, own


def _unvalidated(ridge: str, retrieval: bool) -> np.ndarray:
    """Equal weights of all parts; with ridge="residual" the ridge counts fully and the others share the residual."""
    used = np.array([ridge == "mixture", False, True, retrieval])
    weights = used / used.sum()
    if ridge == "residual":
        weights[0] = 1
    return weights


def n_batches(sections: list[SectionSpots], batch_size: int) -> int:
    """Batches of an epoch."""
    return sum(max(round(len(section.rows) / batch_size), 1) for section in sections)
