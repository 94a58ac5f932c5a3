"""A trained model: a predictor of arrays, and the facts that are stored with it."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._checks import as_array
from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene.models.bias.debiasing import Debiasing
from img2gene.models.checked import checked_prediction, checked_state
from img2gene.models.data import LARGEST, RowSource, float_array, n_extreme, n_faulty, with_prefix
from img2gene.models.depth_scale import DepthScale
from img2gene.models.genes import FIXED, GeneNames, top_genes
from img2gene.models.model_html import model_html
from img2gene.models.predictor import Predictor, declared_inputs
from img2gene.models.stored import (
    as_json,
    check_array_digests,
    check_config_digest,
    damage,
    digests,
)
from img2gene.models.stored_model import FORMAT, check_arrays, check_config, check_format, input_problems

if TYPE_CHECKING:
    from img2gene.models.uncertainty.calibration import Calibration, Prediction

logger = logging.getLogger(__name__)


@dataclass
class Model:
    """A trained model: predictor, genes, and everything needed to use and to judge it elsewhere.

    Attributes
    ----------
    predictor
        The fitted predictor.
    genes
        Names of the genes it predicts, in order; a list that cannot be changed.
    statistics
        Per gene, from the training labels: ``mean``, ``variance``, ``dispersion``, ``detection``, ``moran``.
    inputs
        Identity of the embedding it was trained on: encoder, revision, fields of view, input size, width; with
        ``"finetuned"`` the features come from an encoder with the weights in ``encoder``, not from the registered one.
    labels
        How labels were made: ``layer`` (None for counts) and ``target_sum``.
    report
        Training sections, patients and groups, what was held out, seed, package version, inner validation.
    encoder
        Weights of the encoder that fine-tuning changed, float32, by their names in its network; empty for a frozen one.
    calibration
        Turns predictions into intervals, fitted on held-out training groups; None without uncertainty.
    depth_scale
        Converts predictions to another depth; None for labels that are not made of counts.
    debiasing
        What was done against bias around the predictor (``debias=`` of :func:`img2gene.tl.fit`); None for nothing.

    Examples
    --------
    >>> import img2gene as ig
    >>> model = ig.io.load_model("tumour.img2gene")  # doctest: +SKIP
    >>> model.top_genes("moran", 50)  # doctest: +SKIP
    """

    predictor: Predictor
    genes: list[str]
    statistics: dict[str, np.ndarray]
    inputs: dict[str, Any]
    labels: dict[str, Any]
    report: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, np.ndarray] = field(default_factory=dict)
    calibration: Calibration | None = None
    depth_scale: DepthScale | None = None
    debiasing: Debiasing | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; genes are set once."""
        if name == "genes":
            if "genes" in self.__dict__:
                raise Img2GeneError(FIXED)
            value = GeneNames(value)
        # Predictions depend on the other attributes as well.
        self.__dict__.pop("fingerprint", None)
        super().__setattr__(name, value)

    @property
    def name(self) -> str:
        """Registered name of the predictor."""
        return self.predictor.name

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything that predictions depend on; a model and its stored copy share it."""
        return _fingerprint(self.state()[0])

    @property
    def extra_inputs(self) -> tuple[str, ...]:
        """Inputs that :meth:`predict` needs in addition to features and sections: ``"positions"``, ``"tokens"``, both or none."""
        return tuple(name for name in declared_inputs(self.predictor) if name != "tokens" or self.inputs.get("tokens"))

    def predict(
        self,
        features: np.ndarray,
        sections: np.ndarray,
        *,
        positions: np.ndarray | None = None,
        tokens: np.ndarray | None = None,
    ) -> np.ndarray:
        """Predict labels, float32 (n_spots, n_genes).

        Parameters
        ----------
        features
            float32 (n_spots, width), embedded as :attr:`inputs` says.
        sections
            Section of each spot; models that centre by section use the features of all its spots.
        positions
            Row and column of each spot in µm, (n_spots, 2); used only by models that list it in :attr:`extra_inputs`.
        tokens
            float16 (n_spots, m, token_width); used only by models that list it in :attr:`extra_inputs`.
        """
        features, extra = self.checked_inputs(features, sections, {"positions": positions, "tokens": tokens})
        seen, names = self.seen(features), np.asarray(sections)
        values = checked_prediction(self.predictor, seen, names, extra, len(self.genes))
        return values if self.debiasing is None else self.debiasing.add_levels(values, seen, names)

    def seen(self, features: np.ndarray) -> np.ndarray:
        """Features as the predictor sees them: with ``debias="stain"`` those that the stain moves little."""
        return features if self.debiasing is None else self.debiasing.features(features)

    def predict_intervals(
        self,
        features: np.ndarray,
        sections: np.ndarray,
        *,
        positions: np.ndarray | None = None,
        tokens: np.ndarray | None = None,
        new_patient: np.ndarray | None = None,
    ) -> Prediction:
        """Predict labels with SD, interval and out-of-distribution percentile; takes what :meth:`predict` takes.

        ``new_patient``, bool (n_spots,), marks spots of patients that were not trained on, whose intervals are wider if the model
        was trained on one patient; by default all are.
        """
        from img2gene.models.uncertainty.calibration import Prediction
        from img2gene.models.uncertainty.held_out import predict_spread

        if self.calibration is None:
            raise Img2GeneError("The model has no calibration: fit it with `uncertainty=True`.")
        features, extra = self.checked_inputs(features, sections, {"positions": positions, "tokens": tokens})
        seen, names = self.seen(features), np.asarray(sections)
        values, spread = predict_spread(self.predictor, seen, names, len(self.genes), **extra)
        if self.debiasing is not None:
            values = self.debiasing.add_levels(values, seen, names)
        bounds = self.calibration.bounds(values, spread, new_patient)
        return Prediction(values, *bounds, self.calibration.novelty.percentile(features, names))

    def checked_inputs(
        self, features: np.ndarray, sections: np.ndarray, extra_inputs: dict[str, np.ndarray | None]
    ) -> tuple[np.ndarray, dict[str, np.ndarray | None]]:
        """Convert and check the inputs of a prediction; all problems are raised together."""
        features = float_array("features", features)
        sections = as_array("sections", sections)
        extra_inputs = {name: None if x is None else float_array(name, x) for name, x in extra_inputs.items()}
        problems = input_problems(self.inputs)
        raise_problems(problems)
        if features.ndim != 2 or features.shape[1] != self.inputs["width"]:
            raise_problems(
                [f"Features have shape {features.shape}; the model takes (n_spots, {self.inputs['width']})."]
            )
        elif isinstance(features, RowSource):
            # Blocks are checked when they are read.
            pass
        elif bad := n_faulty(features):
            problems.append(f"{bad} spots have NaN or infinite features.")
        elif large := n_extreme(features):
            problems.append(f"{large} spots have features above {LARGEST:g} in size, so their embedding is damaged.")
        if sections.shape != features.shape[:1]:
            problems.append(f"sections: expected a name for each of {len(features)} spots, got shape {sections.shape}.")
        elif sections.dtype.kind not in "biuUST" and not all(isinstance(section, str) for section in sections):
            problems.append(f"sections: expected names, got {sections.dtype} values.")
        extra = {name: extra_inputs[name] for name in self.extra_inputs}
        for name, values in extra.items():
            problems += self._extra_problems(name, values, len(features))
        raise_problems(problems)
        return features, extra

    def _extra_problems(self, name: str, values: np.ndarray | None, n_spots: int) -> list[str]:
        grid = self.inputs.get("tokens"), self.inputs.get("token_width")
        expected = (n_spots, *(grid if name == "tokens" else (2,)))
        if values is None:
            how = (
                f"stored by `img2gene.pp.embed_patches(sdata, {self.inputs['name']!r}, tokens={grid[0]})`"
                if name == "tokens"
                else "row and column of each spot in µm"
            )
            return [f"The model `{self.name}` needs `{name}=`, of shape {expected}: {how}."]
        if np.shape(values) != expected:
            return [f"`{name}` has shape {np.shape(values)}, expected {expected}."]
        bad = n_faulty(np.asarray(values))
        return [f"{bad} spots have NaN or infinite {name}."] if bad else []

    def top_genes(self, by: str, n: int, min_detection: float = 0.1) -> list[str]:
        """List the ``n`` genes with the highest training ``mean``, ``variance``, ``dispersion`` or ``moran``.

        All but ``mean`` are ranked among genes detected in at least ``min_detection`` of the training spots.
        """
        return top_genes(self.genes, self.statistics, by, n, min_detection)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the whole model as a configuration (JSON) and arrays."""
        config, arrays = checked_state(self.predictor)
        if "report" in config:
            config = {**config, "report": as_json(config["report"], "predictor.report", undefined=True)}
        facts: dict[str, Any] = {
            "format": FORMAT,
            "model": self.name,
            "predictor": config,
            "genes": self.genes,
            "inputs": self.inputs,
            "labels": self.labels,
            "report": as_json(self.report, "report", undefined=True),
        }
        stored = {f"predictor.{name}": value for name, value in arrays.items()}
        stored |= {f"statistics.{name}": np.ascontiguousarray(value) for name, value in self.statistics.items()}
        stored |= {f"encoder.{name}": np.ascontiguousarray(value) for name, value in self.encoder.items()}
        if self.encoder:
            facts["encoder"] = {name: list(value.shape) for name, value in self.encoder.items()}
        if self.calibration is not None:
            facts["calibration"], arrays = self.calibration.state()
            stored |= {f"calibration.{name}": np.ascontiguousarray(value) for name, value in arrays.items()}
        if self.depth_scale is not None:
            facts["depth_scale"] = {}
            stored |= {f"depth_scale.{name}": getattr(self.depth_scale, name) for name in self.depth_scale.shapes}
        if self.debiasing is not None:
            facts["debiasing"], arrays = self.debiasing.state()
            stored |= {f"debiasing.{name}": np.ascontiguousarray(value) for name, value in arrays.items()}
        facts = as_json(facts, self.name)
        return {**facts, "digest": digests(facts, stored)}, stored

    def storable_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return :meth:`state`; refuse a model that :meth:`from_state` could not restore."""
        config, arrays = self.state()
        with damage(f"The model `{self.name}` cannot be stored"):
            # A predictor may change the arrays that it is restored from.
            _verified(json.loads(json.dumps(config)), {name: values.copy() for name, values in arrays.items()})
        return config, arrays

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray], source: str = "") -> Model:
        """Restore a model; refuse one that does not fit the declared architecture or has changed since it was stored.

        ``source`` names the file or key in messages.
        """
        name = config.get("model") if isinstance(config, dict) else None
        named = [source] * bool(source) + [f"`{name}`"] * isinstance(name, str)
        with damage(f"The stored model {' '.join(named)} cannot be used"):
            model = _verified(config, arrays)
        if "digest" not in config:
            logger.warning(
                "%s was written by an early version, without digests: nothing shows whether it was damaged or changed since. Save "
                "it again with `img2gene.io.save_model` if you trust it.",
                source or f"The model `{name}`",
            )
        return model

    def __repr__(self) -> str:
        trained = listing(self.report.get("sections", []), 6)
        return f"Model({self.name}, {len(self.genes)} genes, encoder={self.inputs.get('name')}, trained on {trained})"

    def _repr_html_(self) -> str:
        return model_html(self)

    def describe(self) -> str:
        """Return all facts as indented JSON."""
        facts = {"model": self.name, "n_genes": len(self.genes), "inputs": self.inputs, "labels": self.labels}
        return json.dumps({**facts, "report": self.report}, indent=2)


def _fingerprint(config: dict[str, Any]) -> str:
    # Predictions do not depend on the rest of the report.
    facts = {name: config[name] for name in ("model", "genes", "inputs", "labels")}
    facts |= {"sections": config["report"].get("sections"), "arrays": config["digest"]["arrays"]}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _verified(config: Any, arrays: dict[str, np.ndarray]) -> Model:
    """Restore a model after its format, configuration, arrays and digests were checked."""
    check_format(config)
    signed = config["format"] > 1 or "digest" in config
    if signed:
        check_config_digest(config)
    check_config(config)
    check_arrays(config, arrays)
    if signed:
        check_array_digests(config, arrays)
    model = _restored(config, arrays)
    if signed:
        # The digests of the arrays were just compared, so there is no need to compute them again.
        model.__dict__["fingerprint"] = _fingerprint(config)
    return model


def _restored(config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Model:
    from img2gene.models import registry
    from img2gene.models.uncertainty.calibration import Calibration

    kind, facts = registry.get(config["model"]), config.get("calibration")
    return Model(
        kind.from_state(config["predictor"], with_prefix(arrays, "predictor")),
        config["genes"],
        with_prefix(arrays, "statistics"),
        config["inputs"],
        config["labels"],
        config["report"],
        with_prefix(arrays, "encoder"),
        None if facts is None else Calibration.from_state(facts, with_prefix(arrays, "calibration")),
        DepthScale(**with_prefix(arrays, "depth_scale")) if "depth_scale" in config else None,
        Debiasing.from_state(config["debiasing"], with_prefix(arrays, "debiasing")) if "debiasing" in config else None,
    )
