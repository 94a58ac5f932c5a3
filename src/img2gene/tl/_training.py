"""One training run: choose genes, fit, calibrate, and write the report of the model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from img2gene._study.depth import training_depth
from img2gene._study.entrance import report_off_tissue
from img2gene._study.expression import TARGET_SUM, in_tissue, library_size
from img2gene._study.finetuning import StudyFineTuning
from img2gene._study.inputs import Inputs, without_tokens
from img2gene._study.panel import (
    GeneChoice,
    Genes,
    choose_genes,
    is_named,
    refuse_constant,
)
from img2gene._study.pathways import context_facts, fold_context
from img2gene._study.resolution import section_resolutions, warn_of_unequal_sections
from img2gene._study.splits import Split
from img2gene._study.spots import spot_sample
from img2gene._study.study import Study
from img2gene.models import Calibration, Model, Predictor, TrainingData, UsesPathways
from img2gene.models.bias.debiasing import Debiasing
from img2gene.models.depth_scale import DepthScale
from img2gene.models.predictor import centres_by_section
from img2gene.models.uncertainty.held_out import fit_held_out, predict_spread
from img2gene.tl._arguments import as_plain
from img2gene.tl._debias import DebiasChoice

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRun:
    """One training run: the rows of a study that are trained on, and the labels."""

    study: Study
    layer: str | None
    groups: str
    division: Split
    min_depth: float
    seed: int
    debias: DebiasChoice = DebiasChoice()
    loggers: Sequence[Any] = ()

    def train(self, predictor: Predictor, inputs: Inputs | StudyFineTuning, genes: Genes, level: float | None) -> Model:
        """Train as :meth:`run` does, and report the epochs to loggers, if there are any."""
        if not self.loggers:
            return self.run(predictor, inputs, genes, level)
        from img2gene.models.networks.train import log_to

        with log_to(self.loggers) as log:
            model = self.run(predictor, inputs, genes, level)
        if not log.n_epochs:
            logger.warning("`logger` was told nothing: the model `%s` is not trained in epochs", model.name)
        return model

    def run(self, predictor: Predictor, inputs: Inputs | StudyFineTuning, genes: Genes, level: float | None) -> Model:
        """Choose genes, fit, calibrate at ``level`` unless it is None, and wrap up the model with its report."""
        study = self.study
        self.debias.check(predictor, self.layer, finetuned=not isinstance(inputs, Inputs))
        report_off_tissue(study)
        warn_of_unequal_sections(study, np.flatnonzero(self.division.train | self.division.held_out))
        rows = study.ordered(self.division.train & in_tissue(study.table))
        choice = choose_genes(study, rows, genes, layer=self.layer, min_depth=self.min_depth)
        _report_left_out(choice, genes)
        rows = choice.rows
        sections, groups, positions = study.sections[rows], study.groups(self.groups)[rows], study.positions[rows]
        if not isinstance(inputs, Inputs):
            # Fine-tuning comes after the choice of genes, because the encoder is trained on their labels.
            inputs = inputs.run(choice.values, sections, groups, positions, rows, seed=self.seed)
        data = TrainingData(
            inputs.features[rows],
            choice.values,
            sections,
            groups,
            positions,
            tokens=self._tokens(inputs, rows),
            pathways=self._pathways(predictor, rows, inputs),
            # Labels of a layer need not come from counts, so no library size belongs to them.
            library=library_size(study.table)[rows] if self.layer is None else None,
        )
        debiasing, debiased = self.debias.fit(study, rows, inputs.identity, predictor, data, self.seed)
        calibration, facts = self._fit(predictor, data, debiasing, level, one_patient=self._is_one_patient(rows))
        report = self._report(choice, predictor, inputs.features) | facts | {"debias": debiased}
        depth = {"depth": debiased["depth"]["predicted_at"]} if "depth" in debiased else {}
        return Model(
            predictor,
            choice.genes,
            choice.statistics(study),
            # A model that was trained without the tokens of its embedding must not ask for them.
            without_tokens(inputs.identity) if data.tokens is None else inputs.identity,
            {"layer": self.layer, "target_sum": TARGET_SUM if self.layer is None else None, **depth},
            report if inputs.report is None else {**report, "finetune": inputs.report},
            inputs.weights,
            calibration,
            None if data.library is None else DepthScale.fit(data.labels, data.library, sections),
            debiasing,
        )

    def _fit(
        self,
        predictor: Predictor,
        data: TrainingData,
        debiasing: Debiasing | None,
        level: float | None,
        *,
        one_patient: bool,
    ) -> tuple[Calibration | None, dict[str, Any]]:
        """Fit, and calibrate if a level is given and a part of the training data can be held out."""
        seen = data if debiasing is None else debiasing.seen(data)
        held_out = None
        if level is None:
            predictor.fit(seen, seed=self.seed)
        else:
            held_out = fit_held_out(predictor, seen, seed=self.seed)
        # A model that cannot predict the spots it was trained on is of no use, and would be stored.
        inputs = {"positions": data.positions, "tokens": data.tokens}
        predict_spread(predictor, seen.features, data.sections, data.labels.shape[1], **inputs)
        if level is None:
            return None, {}
        if held_out is None:
            return None, {"uncertainty": None}
        if held_out.kind != "group" or one_patient:
            unit = "patient" if one_patient else self.groups
            logger.warning(
                "only one training %s: intervals are calibrated on held-out %ss of it. For other %ss they are widened to cover "
                "sections of another depth, but they do not cover other variation between %ss%s",
                *(unit, held_out.kind if held_out.kind != "group" else self.groups, unit, unit),
                ", and levels of their sections are unknown" if centres_by_section(predictor) else "",
            )
        calibration, report = Calibration.fit(held_out, data, level=level, seed=self.seed, one_patient=one_patient)
        return calibration, {"uncertainty": report}

    def _tokens(self, inputs: Inputs, rows: np.ndarray) -> np.ndarray | None:
        """Tokens of the patches to train on; none with stain, which they would bring back, as they are not shrunken."""
        if inputs.tokens is None:
            return None
        if "stain" in self.debias.parts:
            logger.warning(
                "debias='stain': tokens of patches are left out, as only embeddings are made to move less by stain"
            )
            return None
        return inputs.tokens[rows]

    def _is_one_patient(self, rows: np.ndarray) -> bool:
        patients = self.study.patients
        return patients is not None and len(set(patients[rows].tolist())) == 1

    def _pathways(self, predictor: Predictor, rows: np.ndarray, inputs: Inputs) -> np.ndarray | None:
        """Score the pathways that the training rows select, for predictors with a pathway context."""
        if not isinstance(predictor, UsesPathways) or not predictor.uses_pathways:
            return None
        study = self.study
        context = fold_context(
            study,
            rows,
            features=inputs.features[rows],
            sections=study.sections[rows],
            positions=study.positions[rows],
            seed=self.seed,
        )
        if context is None:
            logger.info("no pathway context: run `img2gene.pp.score_pathways` first to train with one")
            return None
        predictor.set_context(context_facts(context))
        return context.scores

    def _report(self, choice: GeneChoice, predictor: Predictor, features: np.ndarray) -> dict[str, Any]:
        study, rows = self.study, choice.rows
        sections = study.sections[rows]
        patients = study.patients
        trained = np.zeros(study.n_obs, dtype=bool)
        trained[rows] = True
        return {
            "sections": study.section_names(trained),
            "patients": None if patients is None else sorted(set(patients[rows].tolist())),
            "held_out": study.section_names(self.division.held_out),
            "left_out": [name for name in study.section_names(self.division.train) if name not in sections],
            "groups": self.groups,
            "leakage": self.division.leakage,
            "n_spots": len(rows),
            "n_empty_spots": choice.n_empty,
            "n_off_tissue_spots": int((self.division.train & ~in_tissue(study.table)).sum()),
            "seed": self.seed,
            "spots": {str(name): spot_sample(features[rows[sections == name]]) for name in np.unique(sections)},
            "resolution_um": section_resolutions(study, rows),
            "depth": None if self.layer is not None else training_depth(study, rows),
            "img2gene": version("img2gene"),
            "fit": as_plain(predictor.summary()),
        }


def _report_left_out(choice: GeneChoice, genes: Genes) -> None:
    """Refuse genes that were named but do not vary; say how many others, and how many spots, were left out."""
    if choice.constant and is_named(genes):
        refuse_constant(choice.constant)
    if choice.constant:
        logger.info("left out %d genes that do not vary in the training sections", len(choice.constant))
    if choice.n_empty:
        logger.warning("left out %d training spots without a count", choice.n_empty)
