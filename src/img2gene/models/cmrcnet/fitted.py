"""A fitted CMRCNet: networks, reference bank, ridge, and their combination to a prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from img2gene.encoders.base import resolve_device
from img2gene.models.centring import check_centring
from img2gene.models.cmrcnet.network import Architecture, CMRCNetNetwork
from img2gene.models.components import Components, project_tokens, stored_components
from img2gene.models.data import with_prefix
from img2gene.models.networks.ensemble import Ensemble, outline, stacked_shapes, unit_members
from img2gene.models.reference_bank import ReferenceBank, unit_rows
from img2gene.models.ridge import Ridge
from img2gene.models.row_blocks import Block, Rows, joined
from img2gene.models.stored import StoredConfig

PARTS = ("ridge", "retrieval", "regression")
# Spots per pass of the networks, so that memory does not grow with the section.
_BLOCK = 2048


@dataclass(frozen=True)
class SpotArrays:
    """Inputs of the networks: float32 (n, q) components, and float (n, m, w) components of patch tokens."""

    features: np.ndarray
    tokens: np.ndarray

    def take(self, rows: np.ndarray | slice) -> SpotArrays:
        """Inputs of the chosen spots."""
        return SpotArrays(self.features[rows], self.tokens[rows])


@dataclass
class FittedCMRCNet:
    """Everything that a prediction needs.

    Attributes
    ----------
    scale
        SD that labels were divided by for the regression head.
    label_mean
        float32 (G,): mean training label.
    weights
        float64 (3,): of ridge, retrieval and regression.
    k, weighting, exclude
        Number of spots to average, their weights, and the spots to exclude.
    """

    architecture: Architecture
    ensemble: Ensemble
    components: Components
    token_components: Components | None
    ridge: Ridge | None
    bank: ReferenceBank
    scale: float
    label_mean: np.ndarray
    weights: np.ndarray
    k: int
    weighting: str
    exclude: str

    dtypes: ClassVar[dict[str, str]] = {
        "weights": "float64",
        **{f"bank.{name}": dtype for name, dtype in ReferenceBank.dtypes.items()},
    }

    def inputs(self, features: np.ndarray, sections: np.ndarray, tokens: np.ndarray | None) -> SpotArrays:
        """Inputs of the networks."""
        check_centring(sections, self.components.center)
        return SpotArrays(self.components(features, sections), project_tokens(self.token_components, tokens, sections))

    def parts(self, features: np.ndarray, sections: np.ndarray, tokens: np.ndarray | None) -> dict[str, np.ndarray]:
        """Labels relative to the training mean, float32 (n, G), of each part that has a weight."""
        return self._prepared_parts(features, sections, tokens)(slice(0, len(features)))

    def prepare(self, features: np.ndarray, sections: np.ndarray, tokens: np.ndarray | None) -> Rows:
        """Project all features; return a function that predicts a slice of rows."""
        weights = dict(zip(PARTS, self.weights.astype(np.float32), strict=True))
        parts = self._prepared_parts(features, sections, tokens)

        def predict(rows: slice) -> Block:
            out = np.tile(self.label_mean, (rows.stop - rows.start, 1))
            for name, part in parts(rows).items():
                out += weights[name] * part
            return out, None

        return predict

    def _prepared_parts(
        self, features: np.ndarray, sections: np.ndarray, tokens: np.ndarray | None
    ) -> Callable[[slice], dict[str, np.ndarray]]:
        # Parts without a weight are not computed, to save their time.
        used = {name for name, weight in zip(PARTS, self.weights, strict=True) if weight > 0}
        ridge = self.ridge.prepare(features, sections) if self.ridge is not None and "ridge" in used else None
        inputs = self.inputs(features, sections, tokens) if used & {"retrieval", "regression"} else None

        def parts(rows: slice) -> dict[str, np.ndarray]:
            values: dict[str, np.ndarray] = {}
            if ridge is not None and self.ridge is not None:
                values["ridge"] = ridge(rows)[0] - self.ridge.arrays["label_mean"]
            return values | ({} if inputs is None else self._network_parts(inputs.take(rows), sections[rows], used))

        return parts

    def _network_parts(self, inputs: SpotArrays, sections: np.ndarray, used: set[str]) -> dict[str, np.ndarray]:
        """Labels relative to the training mean, float32 (n, G), by retrieval and regression."""
        parts: dict[str, np.ndarray] = {}
        with self.ensemble.placed(resolve_device(None)):
            queries, labels = embed(self.ensemble, inputs, regress="regression" in used)
        if "retrieval" in used:
            # Spots of a training section would otherwise retrieve themselves.
            own = self.bank.own(sections, self.exclude)
            near = self.bank.nearest(queries, self.k, excluded=own, by=self.exclude)
            parts["retrieval"] = self.bank.average(near, self.weighting)
        if "regression" in used:
            parts["regression"] = self.scale * labels
        return parts

    def predict(self, features: np.ndarray, sections: np.ndarray, tokens: np.ndarray | None) -> np.ndarray:
        """Labels float32 (n_spots, n_genes)."""
        return joined(self.prepare(features, sections, tokens), len(features), len(self.label_mean))

    def embed(
        self, features: np.ndarray, sections: np.ndarray, tokens: np.ndarray | None, *, regress: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embed spots in the shared space, and predict with the regression head (:func:`embed`)."""
        inputs = self.inputs(features, sections, tokens)
        with self.ensemble.placed(resolve_device(None)):
            return embed(self.ensemble, inputs, regress=regress)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Facts (JSON) and arrays."""
        arrays = {f"network.{name}": value.cpu().numpy() for name, value in self.ensemble.state_dict().items()}
        arrays |= stored_components(components=self.components, tokens=self.token_components)
        names, bank = self.bank.state()
        arrays |= {f"bank.{name}": value for name, value in bank.items()}
        # The ridge is stored only if the mixture uses it.
        ridge, ridge_arrays = (None, {}) if self.ridge is None else self.ridge.state()
        arrays |= {f"ridge.{name}": value for name, value in ridge_arrays.items()}
        arrays |= {"label_mean": self.label_mean, "weights": self.weights}
        config = {
            "architecture": self.architecture.state(),
            "n_models": self.ensemble.n_models,
            "center": self.components.center,
            "scale": self.scale,
            "bank": names,
            "ridge": ridge,
            "k": self.k,
            "weighting": self.weighting,
            "exclude": self.exclude,
        }
        return config, arrays

    @classmethod
    def array_shapes(cls, config: dict[str, Any]) -> dict[str, tuple[str | int, ...]]:
        """Shapes of the arrays that go with a configuration."""
        architecture, members = Architecture(**config["architecture"]), config["n_models"]
        network = outline(CMRCNetNetwork, Architecture, **config["architecture"])
        shapes: dict[str, tuple[str | int, ...]] = {
            f"network.{name}": axes for name, axes in stacked_shapes(network, members).items()
        }
        shapes |= Components.array_shapes("components", architecture.n_components, "width")
        if architecture.n_tokens:
            shapes |= Components.array_shapes("tokens", architecture.token_width, "token")
        shapes |= {f"bank.{name}": axes for name, axes in ReferenceBank.shapes.items()}
        shapes["bank.keys"] = ("references", members * architecture.dim)
        if config["ridge"] is not None:
            shapes |= {f"ridge.{name}": axes for name, axes in Ridge.shapes.items()}
        return shapes | {"label_mean": ("genes",), "weights": (len(PARTS),)}

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> FittedCMRCNet:
        """Restore it."""
        check = StoredConfig()
        check.positive(arrays, [name for name in ("components.scale", "tokens.scale") if name in arrays])
        check.positive(arrays, ["weights"], zero=True)
        if config["ridge"] is None and arrays["weights"][0] > 0:
            check.messages.append("The ridge has a weight, but is not stored.")
        check.raise_all()
        network = outline(CMRCNetNetwork, Architecture, **config["architecture"])
        ensemble = Ensemble.restored(network, with_prefix(arrays, "network"), config["n_models"])
        tokens, center = with_prefix(arrays, "tokens"), config["center"]
        return cls(
            Architecture(**config["architecture"]),
            ensemble.eval(),
            Components(**with_prefix(arrays, "components"), center=center),
            Components(**tokens, center=center) if tokens else None,
            None if config["ridge"] is None else Ridge.from_state(config["ridge"], with_prefix(arrays, "ridge")),
            ReferenceBank.from_state(config["bank"], with_prefix(arrays, "bank")),
            config["scale"],
            arrays["label_mean"],
            arrays["weights"],
            config["k"],
            config["weighting"],
            config["exclude"],
        )


def build_ensemble(architecture: Architecture, n_models: int, seed: int) -> Ensemble:
    """An untrained ensemble."""
    return Ensemble(lambda: CMRCNetNetwork(architecture), n_models, seed)


@torch.no_grad()
def embed(ensemble: Ensemble, arrays: SpotArrays, *, regress: bool) -> tuple[np.ndarray, np.ndarray]:
    """Image embeddings of all members side by side, and the mean prediction of their regression heads.

    Rows float32 (n, n_models · dim) of embeddings have length 1, and each member's part the same length, so a cosine is the
    mean of the members' cosines. Labels are float32 (n, G), or (n, 0) without ``regress``.
    """
    embeddings, labels = [], []
    device = next(ensemble.parameters()).device
    for rows in _slices(len(arrays.features)):
        features = torch.from_numpy(arrays.features[rows]).to(device)
        tokens = torch.from_numpy(np.asarray(arrays.tokens[rows], dtype=np.float32)).to(device)
        images = ensemble.call(lambda net, x, t: net.image_embedding(net.image_tokens(x, t)), features, tokens)
        embeddings.append(unit_members(images))
        outputs = ensemble.call(lambda net, u: net.regress(u), paired=(images,)) if regress else images[..., :0]
        labels.append(outputs.mean(dim=0).float().cpu().numpy())
    return np.concatenate(embeddings), np.concatenate(labels)


@torch.no_grad()
def embed_labels(ensemble: Ensemble, labels: np.ndarray) -> np.ndarray:
    """Embed expression with all members, side by side as :func:`embed` does for images."""
    device = next(ensemble.parameters()).device
    blocks = (torch.from_numpy(labels[rows]).to(device) for rows in _slices(len(labels)))
    return np.concatenate([unit_members(ensemble.call(lambda net, y: net.gene_embedding(y), y)) for y in blocks])


def bank_keys(ensemble: Ensemble, arrays: SpotArrays, labels: np.ndarray, kind: str) -> np.ndarray:
    """Keys of a bank: embeddings of the spots' images, of their ``labels`` (n, G) as in training, or of ``"both"``."""
    keys = []
    if kind != "expression":
        keys.append(embed(ensemble, arrays, regress=False)[0])
    if kind != "image":
        keys.append(embed_labels(ensemble, labels))
    return unit_rows(np.sum(keys, axis=0))


def _slices(n: int) -> Iterator[slice]:
    for start in range(0, n, _BLOCK):
        yield slice(start, start + _BLOCK)
