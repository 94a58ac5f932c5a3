"""A fitted Img2Gene: networks, ridge, and their combination to a prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from img2gene._errors import Img2GeneError
from img2gene.models.components import Components, project_tokens, stored_components
from img2gene.models.data import TARGET_SUM, with_prefix
from img2gene.models.img2gene.inference import SpotArrays, embed, section_views
from img2gene.models.img2gene.network import Architecture, Img2GeneNetwork, Outputs
from img2gene.models.img2gene.responses import Responses
from img2gene.models.img2gene.validated_range import ValidatedRange
from img2gene.models.networks.batches import split_sections
from img2gene.models.networks.debiasing import Views, calibrate
from img2gene.models.networks.ensemble import Ensemble, outline, stacked_shapes, unit_members
from img2gene.models.reference_bank import Neighbors, ReferenceBank
from img2gene.models.ridge import Ridge
from img2gene.models.stored import StoredConfig

PARTS = ("ridge", "own view", "network", "retrieval")


@dataclass(frozen=True)
class Readout:
    """Converts outputs of the networks to labels relative to the training mean.

    Attributes
    ----------
    scale
        SD that labels were divided by.
    label_mean
        float32 (G,): mean training label.
    log_rate
        float32 (G,): log of each gene's share of the training counts, for networks of counts; else empty.
    reference_genes, reference_own
        float32 (n_models, outputs): what calibration subtracts, of the full network and of the own view: the mean output over the
        training spots, for counts of the labels that outputs stand for; 0 for plain least squares, which keeps the mean.
    """

    scale: float
    label_mean: np.ndarray
    log_rate: np.ndarray
    reference_genes: np.ndarray
    reference_own: np.ndarray
    responses: Responses = field(default_factory=Responses)

    def __call__(self, outputs: Tensor, own: bool) -> np.ndarray:
        """Mean over members (B, G) of their outputs (n_models, B, …)."""
        if self.responses.directions is None:
            return self.members(outputs, own).mean(dim=0).numpy()
        # Components are averaged before they are expanded, which saves arrays of all genes.
        reference = torch.tensor(self.reference_own if own else self.reference_genes).unsqueeze(1)
        mean = (outputs.float().cpu() - reference).mean(dim=0)
        return self.responses.expand(self.scale * mean).numpy()

    def spread(self, outputs: Tensor, own: bool) -> np.ndarray:
        """SD over members (B, G) of their outputs (n_models, B, …); NaN for a single one."""
        labels = self.members(outputs, own).numpy()
        return labels.std(axis=0, ddof=1) if len(labels) > 1 else np.full(labels.shape[1:], np.nan, dtype=np.float32)

    def members(self, outputs: Tensor, own: bool) -> Tensor:
        """Labels (n_models, B, G) that the members stand for."""
        outputs = outputs.float().cpu()
        # Stored arrays are read-only, which PyTorch warns about.
        reference = torch.tensor(self.reference_own if own else self.reference_genes).unsqueeze(1)
        if len(self.log_rate):
            return calibrate(count_labels(outputs, self.log_rate), reference, torch.zeros(()))
        return self.responses.expand(self.scale * calibrate(outputs, reference, torch.zeros(())))


def count_labels(outputs: Tensor, log_rate: np.ndarray) -> Tensor:
    """Labels that log rates relative to ``log_rate`` stand for."""
    return torch.log1p(TARGET_SUM * torch.exp(outputs + torch.tensor(log_rate)))


@dataclass(frozen=True)
class Retrieval:
    """Mean labels of the training spots that the networks place nearest.

    Attributes
    ----------
    bank
        Embeddings z of training spots, and their centred labels (of the ridge's residual where networks predict that).
    k
        Spots that are averaged; all where there are fewer.
    """

    bank: ReferenceBank
    k: int

    def __call__(self, embedding: Tensor) -> np.ndarray:
        """Labels relative to the training mean, float32 (B, G), of embeddings z (n_models, B, dim)."""
        return self.bank.average(self.bank.nearest(unit_members(embedding), min(self.k, len(self.bank))))


@dataclass
class FittedImg2Gene:
    """Everything that a prediction needs; ``weights``, float64 (4,), belong to :data:`PARTS`."""

    architecture: Architecture
    ensemble: Ensemble
    components: Components
    token_components: Components | None
    ridge: Ridge
    readout: Readout
    retrieval: Retrieval | None
    weights: np.ndarray
    validated: ValidatedRange

    dtypes: ClassVar[dict[str, str]] = {
        "weights": "float64",
        **{f"bank.{name}": dtype for name, dtype in ReferenceBank.dtypes.items()},
    }

    def inputs(
        self, features: np.ndarray, sections: np.ndarray, positions: np.ndarray, tokens: np.ndarray | None
    ) -> SpotArrays:
        """Inputs of the networks."""
        return SpotArrays(
            split_sections(sections, positions, self.architecture.n_neighbors, pad=True),
            self.components(features, sections),
            project_tokens(self.token_components, tokens, sections),
        )

    def shares(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """Share of the weighted parts in the prediction of each spot, float32 (n_spots,); the ridge has the rest."""
        shares = np.empty(len(features), dtype=np.float32)
        # All spots of a section share one weight, so that no seam appears inside it.
        for name, (_, share) in self.validated(features, sections).items():
            shares[sections == name] = 1 - share
        return shares

    def mixed(self, outputs: Outputs) -> np.ndarray:
        """Weighted labels of the networks and of what they retrieve, relative to the training mean, float32 (B, G)."""
        values = self.weights[2] * self.readout(outputs.genes, own=False)
        values += self.weights[1] * self.readout(outputs.views[:, 0], own=True)
        if self.retrieval is not None:
            values += self.weights[3] * self.retrieval(outputs.embedding)
        return values

    def network_spread(self, outputs: Outputs) -> np.ndarray:
        """SD over the networks, of own view and full network, times their weights, (B, G)."""
        sd = self.weights[2] * self.readout.spread(outputs.genes, own=False)
        return sd + self.weights[1] * self.readout.spread(outputs.views[:, 0], own=True)

    @property
    def bank(self) -> ReferenceBank:
        """The training spots that predictions are retrieved from."""
        if self.retrieval is None:
            raise Img2GeneError(
                "This model keeps no training spots: it was fitted with retrieval=False, or validation gave retrieval no weight. "
                "Fit it with retrieval=True, or choose `cmrcnet`."
            )
        return self.retrieval.bank

    def neighbors(self, arrays: SpotArrays, k: int, excluded: np.ndarray | None, by: str) -> Neighbors:
        """The ``k`` spots of the bank nearest to each spot (:meth:`img2gene.models.ReferenceBank.nearest`)."""
        bank = self.bank
        with self.ensemble.placed(_device()):
            rows, keys = embed(self.ensemble, arrays, np.ones(len(arrays.features), dtype=bool))
        return bank.nearest(keys[np.argsort(rows)], k, excluded=excluded, by=by)

    @torch.no_grad()
    def pathway_contributions(
        self, features: np.ndarray, sections: np.ndarray, positions: np.ndarray, tokens: np.ndarray | None, gene: int
    ) -> np.ndarray:
        """Contribution of each pathway to the prediction of a gene, in units of the labels, float32 (n_spots, P).

        The outputs are linear in the context, so the sum over pathways is the prediction less the one without it. Log rates
        of counts are not, once they are labels.
        """
        if not self.architecture.n_pathways:
            raise Img2GeneError("The networks have no pathway context.")
        if self.architecture.counts:
            raise Img2GeneError("Networks of counts predict log rates; pathways add nothing in units of the labels.")
        arrays = self.inputs(features, sections, positions, tokens)
        direction = self.readout.responses.of_gene(gene, self.architecture.n_genes).to(_device())
        factors = self.shares(features, sections) * (self.weights[2] * self.readout.scale)
        out = np.zeros((len(features), self.architecture.n_pathways), dtype=np.float32)
        with self.ensemble.placed(_device()):
            for section in arrays.sections:
                for rows, views in section_views(self.ensemble, arrays, section):
                    contributions = self.ensemble.call(
                        lambda net, *x: net.pathway_contributions(Views(*x), direction), paired=tuple(views)
                    )
                    out[rows] = contributions.mean(dim=0).float().cpu().numpy() * factors[rows, None]
        return out

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Facts (JSON) and arrays."""
        ridge, ridge_arrays = self.ridge.state()
        arrays = {f"ridge.{name}": value for name, value in ridge_arrays.items()}
        arrays |= {f"network.{name}": value.cpu().numpy() for name, value in self.ensemble.state_dict().items()}
        arrays |= stored_components(components=self.components, tokens=self.token_components)
        arrays["weights"] = self.weights
        for key in ("label_mean", "log_rate", "reference_genes", "reference_own"):
            arrays[f"readout.{key}"] = getattr(self.readout, key)
        directions = self.readout.responses.directions
        if directions is not None:
            arrays["responses.directions"] = directions
        names, bank = (None, {}) if self.retrieval is None else self.retrieval.bank.state()
        arrays |= {f"bank.{name}": value for name, value in bank.items()}
        config = {
            "architecture": self.architecture.state(),
            "n_models": self.ensemble.n_models,
            "center": self.components.center,
            "ridge": ridge,
            "scale": self.readout.scale,
            "bank": names,
            "k": None if self.retrieval is None else self.retrieval.k,
        }
        if directions is not None:
            # Without components, outputs are the genes, and models store no number of them.
            config["n_responses"] = directions.shape[1]
        facts, more = self.validated.state(self.ridge)
        return config | facts, arrays | more

    @classmethod
    def array_shapes(cls, config: dict[str, Any]) -> dict[str, tuple[str | int, ...]]:
        """Shapes of the arrays that go with a configuration; names stand for sizes that arrays share."""
        architecture, members = Architecture(**config["architecture"]), config["n_models"]
        network = outline(Img2GeneNetwork, Architecture, **config["architecture"])
        shapes: dict[str, tuple[str | int, ...]] = {f"ridge.{name}": axes for name, axes in Ridge.shapes.items()}
        shapes |= ValidatedRange.array_shapes(config)
        shapes |= {f"network.{name}": axes for name, axes in stacked_shapes(network, members).items()}
        q, w = architecture.n_components, architecture.token_width
        shapes |= Components.array_shapes("components", q, "width")
        if architecture.n_tokens:
            shapes |= Components.array_shapes("tokens", w, "token")
        shapes["weights"] = (len(PARTS),)
        shapes |= {"readout.label_mean": ("genes",), "readout.log_rate": ("genes",) if architecture.counts else (0,)}
        outputs: str | int = architecture.n_genes if "n_responses" in config else "genes"
        shapes |= {"readout.reference_genes": (members, outputs), "readout.reference_own": (members, outputs)}
        if "n_responses" in config:
            shapes["responses.directions"] = ("genes", outputs)
        if config["bank"] is not None:
            shapes |= {f"bank.{name}": axes for name, axes in ReferenceBank.shapes.items()}
            shapes["bank.keys"] = ("references", members * architecture.dim)
        return shapes

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> FittedImg2Gene:
        """Restore it."""
        check = StoredConfig()
        check.positive(arrays, [name for name in ("components.scale", "tokens.scale") if name in arrays])
        check.positive(arrays, ["weights"], zero=True)
        check.raise_all()
        network = outline(Img2GeneNetwork, Architecture, **config["architecture"])
        ensemble = Ensemble.restored(network, with_prefix(arrays, "network"), config["n_models"])
        ridge = Ridge.from_state(config["ridge"], with_prefix(arrays, "ridge"))
        center = config["center"]
        tokens = with_prefix(arrays, "tokens")
        return cls(
            Architecture(**config["architecture"]),
            ensemble.eval(),
            Components(**with_prefix(arrays, "components"), center=center),
            Components(**tokens, center=center) if tokens else None,
            ridge,
            Readout(
                scale=config["scale"],
                **with_prefix(arrays, "readout"),
                responses=Responses(**with_prefix(arrays, "responses")),
            ),
            _stored_retrieval(config, with_prefix(arrays, "bank")),
            arrays["weights"],
            ValidatedRange.from_state(config, arrays, ridge),
        )


def build_ensemble(architecture: Architecture, n_models: int, seed: int) -> Ensemble:
    """An untrained ensemble."""
    return Ensemble(lambda: Img2GeneNetwork(architecture), n_models, seed)


def _stored_retrieval(config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Retrieval | None:
    if config["bank"] is None:
        return None
    # Each search copies read-only keys, as stored arrays are, and every block of spots starts one.
    return Retrieval(ReferenceBank.from_state(config["bank"], {**arrays, "keys": arrays["keys"].copy()}), config["k"])


def _device() -> str:
    from img2gene.encoders.base import resolve_device

    return resolve_device(None)
