"""Img2Gene as a predictor: an ensemble of networks mixed with a ridge, weighted by validation."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from typing import Any, ClassVar

import numpy as np

from img2gene._errors import raise_problems
from img2gene.models.data import TrainingData
from img2gene.models.img2gene.blocks import PreparedImg2Gene
from img2gene.models.img2gene.fitted import FittedImg2Gene
from img2gene.models.img2gene.fitting import Img2GeneFitting
from img2gene.models.img2gene.network import check_stored
from img2gene.models.img2gene.parameters import Img2GeneParameters
from img2gene.models.networks.batches import split_sections
from img2gene.models.networks.fitting import NetworkPredictor
from img2gene.models.reference_bank import Neighbors, ReferenceBank
from img2gene.models.row_blocks import Rows, joined, joined_spread
from img2gene.models.stored import plain_parameters
from img2gene.models.uncertainty.held_out import HeldOut

logger = logging.getLogger(__name__)
# Parameters that the first models lack; their values then do not matter.
_LATER = ("n_responses", "depth_weights")


class Img2Gene(NetworkPredictor):
    """Pathway-informed prediction: Img2Gene on frozen embeddings, mixed with a ridge.

    An ensemble of networks looks at each spot, at its nearest spots and at the whole section, fuses the three, and takes a
    causal effect of what it sees (:mod:`img2gene.models.networks.debiasing`). It is trained on labels, on pathway scores, and on
    coherence between the spots' embeddings and their expression. Sections (or groups) of the training data are left out in
    turn: the first part chooses the number of epochs, the others the weights of ridge, own view, full network and retrieval.
    Then all is fitted to all training data.

    ŷ = ȳ_train + (1 − s) (w_r ridge + w_o own view + w_f network + w_k retrieval) + s · ridge

    where s rises from 0 to 1 with the distance of the section from the nearest training section: from the largest distance at
    which the networks were validated to twice that distance. The ridge alone predicts sections that are farther away.

    Parameters
    ----------
    effect
        Causal effect: ``"none"``, ``"TE"``, ``"TDE"``, ``"TIE"``, ``"NDE"``, ``"NIE"``.
    n_confounders
        Centroids of the backdoor adjustment, found among the mean features of the training sections: at most one for each
        section; 0 for none.
    objective
        ``"gaussian"`` (squared error), ``"balanced"`` (Balanced MSE) or ``"negative_binomial"`` (counts, with the library
        size as offset; needs count labels).
    weighting
        ``"density"`` weighs rare labels of each gene up.
    depth_weights
        Whether spots weigh in the loss of the networks by their library size, as they do in the ridge
        (:func:`img2gene.models.depth.depth_weights`).
    pathways
        Use the pathway context where the study has one (:func:`img2gene.pp.score_pathways`).
    neighborhood, section_view
        Look at the nearest spots, and at the section.
    ridge
        ``"mixture"``: ridge and network are weighed by validation; ``"residual"``: the network predicts the residual of the ridge;
        ``"none"``: the network alone, on all sections.
    retrieval
        Average the labels of the training spots that the networks place nearest, as a part of the mixture. The model then keeps
        the labels and the embeddings of the training spots, of up to 20,000 drawn at random.
    k
        Training spots that retrieval averages; all that the model keeps where these are fewer.
    center
        ``"section"`` refers features, labels and pathway scores to the mean of their section; ``"none"`` to that of the training data.
    coherence, pathway, pathway_coherence, distillation
        λ_ig, λ_p, λ_ip and α of the loss (:class:`~img2gene.models.img2gene.objective.Objective`).
    n_models
        Members of the ensemble, which are trained in one batched pass.
    n_neighbors
        Spots around a spot that are looked at.
    n_components
        Principal components of the embedding that the network sees.
    n_responses
        Leading components of the labels that the networks predict, which carry what an image shows; more than the genes, or
        counts and weights of labels, and they predict each gene. The ridge predicts all components.
    n_latents, dim, heads, dropout
        Latent tokens of the section, hidden width, attention heads, dropout.
    batch_size, learning_rate, weight_decay, max_epochs, patience
        Of the training (AdamW); ``max_epochs`` None is chosen from the number of spots; ``patience`` counts validations.
    n_validations
        Inner folds that are validated on: the first chooses the epochs, the others the weights (a single one both); 0 trains for ``max_epochs`` and weighs ridge, network and retrieval equally.
    refit
        Train anew on all training data after validation; if False, the network of the first validation is kept.
    preset
        ``"her2st"``, ``"cscc"``, ``"stnet"`` or ``"liver"``: the published configuration for this data set, of one network
        without ridge, retrieval and centring; parameters that you pass replace its values. The paper scores 50, 35, 37 and
        10 pathways (:func:`img2gene.pp.score_pathways`).
    accelerator, devices, precision
        As in Lightning's trainer; ``"auto"`` takes ``img2gene.settings.device``. With n devices, n processes of this computer
        train together, on the CPU, too: each step follows the mean gradient of n batches, so results depend on n, as they do
        on ``batch_size``.
    checkpoint_dir
        Folder that an interrupted fit goes on from when it is called again with the same data and parameters.

    References
    ----------
    Zhang, Chen, Xu, Sakal, Li: "Img2Gene: Debiased Spatially Resolved Transcriptomics with Biological Context from Pathology
    Images", IEEE JBHI 2026.
    """

    name: ClassVar[str] = "img2gene"
    inputs: ClassVar[tuple[str, ...]] = ("positions", "tokens")
    dtypes: ClassVar[dict[str, str]] = FittedImg2Gene.dtypes

    __signature__: ClassVar[inspect.Signature] = inspect.signature(Img2GeneParameters)

    def __init__(self, *args: Any, **parameters: Any) -> None:
        self.parameters = Img2GeneParameters.of(*args, **parameters)
        self.parameters.check()
        self.context: dict[str, Any] = {}
        self.fitted: FittedImg2Gene | None = None
        self.report: dict[str, Any] = {}

    @property
    def uses_pathways(self) -> bool:
        """Whether the fit uses pathway scores."""
        return self.parameters.pathways

    def set_context(self, facts: dict[str, Any]) -> None:
        """Names, gene sets and enrichment of the pathways whose scores the training data hold (JSON)."""
        self.context = facts

    def fit(self, data: TrainingData, *, seed: int) -> None:
        """Validate on parts of the training data, choose epochs and weights, then fit to all of it."""
        self._fit(data, seed)

    def fit_held_out(self, data: TrainingData, *, seed: int) -> HeldOut | None:
        """Fit, and predict the spots that were validated on; further folds are left out if these are fewer than three."""
        return self._fit(data, seed).held_out()

    def _fit(self, data: TrainingData, seed: int) -> Img2GeneFitting:
        self._check(data)
        if not self.parameters.pathways:
            # The networks build a pathway head whenever the data hold scores.
            data = dataclasses.replace(data, pathways=None)
        fitting = Img2GeneFitting(self.parameters, data, seed)
        self.fitted, self.report = fitting.run()
        return fitting

    def _check(self, data: TrainingData) -> None:
        problems = []
        if self.parameters.objective == "negative_binomial" and data.library is None:
            problems.append(
                "objective='negative_binomial' needs counts, which labels from `layer=` do not have. Leave `layer` out."
            )
        if data.pathways is not None and self.parameters.pathways:
            n, n_known = len(data.pathways), int(np.isfinite(data.pathways).all(axis=1).sum())
            if not n_known:
                problems.append(
                    f"None of the {n} training spots has pathway scores, as none has counts: fit with `pathways=False`."
                )
            elif n_known < n:
                logger.warning(
                    "%d of %d training spots have no pathway scores, as they have no counts: the pathway context is learnt from "
                    "the others",
                    n - n_known,
                    n,
                )
        raise_problems(problems)
        # Too small sections are reported before anything is trained; at prediction neighbours are repeated instead.
        split_sections(data.sections, data.positions, self.parameters.n_neighbors, pad=False)

    def predict(
        self, features: np.ndarray, sections: np.ndarray, *, positions: np.ndarray, tokens: np.ndarray | None = None
    ) -> np.ndarray:
        """Labels float32 (n_spots, n_genes)."""
        rows = self.prepare(features, sections, positions=positions, tokens=tokens)
        return joined(rows, len(features), len(self.trained.readout.label_mean))

    def prepare(
        self,
        features: np.ndarray,
        sections: np.ndarray,
        *,
        positions: np.ndarray,
        tokens: np.ndarray | None = None,
        with_spread: bool = False,
    ) -> Rows:
        """Project all features; return a function that predicts a slice of rows."""
        return PreparedImg2Gene(self.trained, features, sections, positions, tokens, with_spread=with_spread)

    def reference_bank(self) -> ReferenceBank:
        """The training spots that predictions are retrieved from."""
        return self.trained.bank

    def neighbors(
        self,
        features: np.ndarray,
        sections: np.ndarray,
        *,
        k: int,
        positions: np.ndarray,
        tokens: np.ndarray | None = None,
        excluded: np.ndarray | None = None,
        by: str = "group",
    ) -> Neighbors:
        """The ``k`` spots of the bank nearest to each spot, outside the groups or sections in ``excluded``."""
        return self.trained.neighbors(self.trained.inputs(features, sections, positions, tokens), k, excluded, by)

    def predict_spread(
        self, features: np.ndarray, sections: np.ndarray, *, positions: np.ndarray, tokens: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels, and the SD over the members: of own view and full network, times their weights; None for one member."""
        rows = self.prepare(features, sections, positions=positions, tokens=tokens, with_spread=True)
        return joined_spread(rows, len(features), len(self.trained.readout.label_mean))

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Parameters, facts and pathways, and all arrays."""
        config, arrays = super().state()
        return {**config, "context": self.context}, arrays

    @classmethod
    def array_shapes(cls, config: dict[str, Any]) -> dict[str, tuple[str | int, ...]]:
        """Shapes of the arrays that go with a configuration."""
        return FittedImg2Gene.array_shapes(config)

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Img2Gene:
        """Restore a fitted predictor."""
        model = cls(**plain_parameters(config["parameters"], Img2GeneParameters.names(), _LATER))
        check_stored(config, model.parameters)
        model.context, model.report = config["context"], config["report"]
        model.fitted = FittedImg2Gene.from_state(config, arrays)
        return model
