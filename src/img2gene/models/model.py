"""A trained model: a predictor of arrays, and the facts that are stored with it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._checks import as_array, shown
from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene.models.checked import checked_prediction, checked_state
from img2gene.models.data import LARGEST, n_extreme, n_faulty, with_prefix
from img2gene.models.depth_scale import DepthScale
from img2gene.models.genes import FIXED, GeneNames, top_genes
from img2gene.models.predictor import Predictor, declared_inputs
from img2gene.models.stored import (
    StoredConfig,
    as_json,
    check_array_digests,
    check_config_digest,
    damage,
    digests,
    form_problems,
)

if TYPE_CHECKING:
    from img2gene.models.uncertainty.calibration import Calibration, Prediction

FORMAT = 2
# Format 1 had no digests.
_READABLE = (1, FORMAT)
_ENTRIES = ("format", "model", "predictor", "genes", "inputs", "labels", "report")


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
        features, extra = self._checked(features, sections, {"positions": positions, "tokens": tokens})
        return checked_prediction(self.predictor, features, np.asarray(sections), extra, len(self.genes))

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
        features, extra = self._checked(features, sections, {"positions": positions, "tokens": tokens})
        values, spread = predict_spread(self.predictor, features, np.asarray(sections), len(self.genes), **extra)
        bounds = self.calibration.bounds(values, spread, new_patient)
        return Prediction(values, *bounds, self.calibration.novelty.percentile(features, np.asarray(sections)))

    def _checked(
        self, features: np.ndarray, sections: np.ndarray, extra_inputs: dict[str, np.ndarray | None]
    ) -> tuple[np.ndarray, dict[str, np.ndarray | None]]:
        """Convert and check the inputs of a prediction; all problems are raised together."""
        features = _float_array("features", features)
        sections = as_array("sections", sections)
        extra_inputs = {name: None if x is None else _float_array(name, x) for name, x in extra_inputs.items()}
        problems = input_problems(self.inputs)
        raise_problems(problems)
        if features.ndim != 2 or features.shape[1] != self.inputs["width"]:
            raise_problems(
                [f"Features have shape {features.shape}; the model takes (n_spots, {self.inputs['width']})."]
            )
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
            return _verified(config, arrays)

    def __repr__(self) -> str:
        trained = listing(self.report.get("sections", []), 6)
        return f"Model({self.name}, {len(self.genes)} genes, encoder={self.inputs.get('name')}, trained on {trained})"

    def describe(self) -> str:
        """Return all facts as indented JSON."""
        facts = {"model": self.name, "n_genes": len(self.genes), "inputs": self.inputs, "labels": self.labels}
        return json.dumps({**facts, "report": self.report}, indent=2)


def _float_array(name: str, values: Any) -> np.ndarray:
    """Convert to float32; values beyond single precision become infinite, and are refused later."""
    array = as_array(name, values)
    if array.dtype.kind not in "biuf":
        raise Img2GeneError(f"{name}: expected numbers, got {array.dtype} values.")
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def input_problems(inputs: Any) -> list[str]:
    """Check the identity of the embedding that a model was trained on."""
    check = StoredConfig()
    if check.record("inputs", inputs):
        check.text("inputs.name", inputs.get("name"))
        check.whole("inputs.width", inputs.get("width"), 1)
        for name in ("input_px", "orientations", "tokens", "token_width"):
            check.whole(f"inputs.{name}", inputs.get(name), 1, optional=name not in inputs or name.startswith("token"))
        if "patch_um" in inputs:
            fields = inputs["patch_um"]
            if not isinstance(fields, list | tuple) or not fields:
                check.messages.append(f"inputs.patch_um={shown(fields)}: expected a list of fields of view in µm.")
            else:
                for i, field_um in enumerate(fields):
                    check.number(f"inputs.patch_um[{i}]", field_um, above=0)
        if "revision" in inputs:
            check.text("inputs.revision", inputs["revision"])
        if "finetuned" in inputs:
            check.record("inputs.finetuned", inputs["finetuned"])
    return check.messages


def _fingerprint(config: dict[str, Any]) -> str:
    # Predictions do not depend on the rest of the report.
    facts = {name: config[name] for name in ("model", "genes", "inputs", "labels")}
    facts |= {"sections": config["report"].get("sections"), "arrays": config["digest"]["arrays"]}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _verified(config: Any, arrays: dict[str, np.ndarray]) -> Model:
    """Restore a model after its format, configuration, arrays and digests were checked."""
    _check_format(config)
    signed = config["format"] > 1 or "digest" in config
    if signed:
        check_config_digest(config)
    _check_config(config)
    _check_arrays(config, arrays)
    if signed:
        check_array_digests(config, arrays)
    model = _restored(config, arrays)
    if signed:
        # The digests of the arrays were just compared, so there is no need to compute them again.
        model.__dict__["fingerprint"] = _fingerprint(config)
    return model


def _check_format(config: Any) -> None:
    """Refuse what is no configuration of a model, and formats of other versions."""
    if not isinstance(config, dict):
        raise Img2GeneError("It holds no configuration of a model.")
    version = config.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version not in _READABLE:
        raise Img2GeneError(
            f"The model has format {shown(version)}; this version of img2gene reads format {FORMAT} and older ones. "
            "Train it again, or install the version it was trained with."
        )


def _check_config(config: dict[str, Any]) -> None:
    """Check the entries of a configuration that all models have."""
    check = StoredConfig()
    if check.entries("configuration", config, _ENTRIES, ("encoder", "calibration", "depth_scale", "digest")):
        check.text("model", config["model"])
        check.names("genes", config["genes"])
        check.messages += input_problems(config["inputs"])
        optional = [name for name in ("encoder", "calibration", "depth_scale") if name in config]
        for name in ("predictor", "report", *optional):
            check.record(name, config[name])
        if check.record("labels", config["labels"]):
            check.text("labels.layer", config["labels"].get("layer"), optional=True)
            check.number("labels.target_sum", config["labels"].get("target_sum"), above=0, optional=True)
        _check_report(check, config["report"])
    check.raise_all()


def _check_report(check: StoredConfig, report: Any) -> None:
    """Check the entries of the training report that other functions read."""
    report = report if isinstance(report, dict) else {}
    for name in ("sections", "patients", "held_out", "leakage"):
        if report.get(name) is not None:
            check.list_of_names(f"report.{name}", report[name])
    check.text("report.groups", report.get("groups"), optional="groups" not in report)
    for name in ("spots", "depth"):
        check.record(f"report.{name}", {} if report.get(name) is None else report[name])
    check.record_of_sizes("report.resolution_um", report.get("resolution_um", {}))
    for name in ("n_spots", "seed"):
        check.whole(f"report.{name}", report.get(name), 0, optional=name not in report)


def _check_arrays(config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Compare arrays with those that the registered model, the encoder and the calibration declare."""
    from img2gene.models import registry
    from img2gene.models.uncertainty.calibration import Calibration

    kind: Any = registry.get(config["model"])
    shapes = kind.array_shapes(config["predictor"]) if hasattr(kind, "array_shapes") else kind.shapes
    declared = {f"predictor.{name}": axes for name, axes in shapes.items()}
    # The network itself is compared when it is loaded, which may take a download.
    declared |= {f"encoder.{name}": tuple(axes) for name, axes in config.get("encoder", {}).items()}
    dtypes: dict[str, str] | None = getattr(kind, "dtypes", None)
    types = dict.fromkeys(declared, "float32")
    if dtypes is None:
        # A model of another package may leave open which numbers it stores.
        types |= dict.fromkeys((f"predictor.{name}" for name in shapes), "")
    types |= {f"predictor.{name}": dtype for name, dtype in (dtypes or {}).items()}
    if "calibration" in config:
        declared |= {f"calibration.{name}": axes for name, axes in Calibration.array_shapes().items()}
        types |= {f"calibration.{name}": Calibration.dtypes.get(name, "float32") for name in Calibration.array_shapes()}
    if "depth_scale" in config:
        declared |= {f"depth_scale.{name}": axes for name, axes in DepthScale.shapes.items()}
        types |= {f"depth_scale.{name}": "float32" for name in DepthScale.shapes}
    sizes = {"genes": len(config["genes"]), "width": config["inputs"]["width"]}
    raise_problems(form_problems(declared, types, arrays, sizes))


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
    )
