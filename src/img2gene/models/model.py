"""A trained model: a predictor of arrays, and the facts that are stored with it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._errors import Img2GeneError, listing, raise_problems
from img2gene.models.data import n_faulty, with_prefix
from img2gene.models.predictor import Predictor, declared_inputs

if TYPE_CHECKING:
    from img2gene.models.uncertainty.calibration import Calibration, Prediction

FORMAT = 1


@dataclass
class Model:
    """A trained model: predictor, genes, and everything needed to use and to judge it elsewhere.

    Attributes
    ----------
    predictor
        The fitted predictor.
    genes
        Names of the genes it predicts, in order.
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

    @property
    def name(self) -> str:
        """Registered name of the predictor."""
        return self.predictor.name

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything that predictions depend on; a model and its stored copy share it."""
        from img2gene._files import fingerprint

        config, arrays = self.state()
        # Predictions do not depend on the rest of the report.
        facts = {name: config[name] for name in ("model", "genes", "inputs", "labels")}
        facts |= {"sections": self.report.get("sections"), "arrays": fingerprint(**arrays)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

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
        """Predicted labels, float32 (n_spots, n_genes).

        Parameters
        ----------
        features
            float32 (n_spots, width), embedded as :attr:`inputs` says.
        sections
            Section of each spot; models that centre by section use the features of all its spots.
        positions
            Row and column of each spot in µm, (n_spots, 2); only looked at by models with it in :attr:`extra_inputs`.
        tokens
            float16 (n_spots, m, token_width); only looked at by models with it in :attr:`extra_inputs`.
        """
        features, extra = self._checked(features, sections, {"positions": positions, "tokens": tokens})
        return self.predictor.predict(features, np.asarray(sections), **extra)

    def predict_intervals(
        self,
        features: np.ndarray,
        sections: np.ndarray,
        *,
        positions: np.ndarray | None = None,
        tokens: np.ndarray | None = None,
    ) -> Prediction:
        """Predict labels with SD, interval and out-of-distribution percentile; takes what :meth:`predict` takes."""
        from img2gene.models.uncertainty.calibration import Prediction
        from img2gene.models.uncertainty.held_out import predict_spread

        if self.calibration is None:
            raise Img2GeneError("The model has no calibration: fit it with `uncertainty=True`.")
        features, extra = self._checked(features, sections, {"positions": positions, "tokens": tokens})
        values, spread = predict_spread(self.predictor, features, np.asarray(sections), **extra)
        bounds = self.calibration.bounds(values, spread)
        return Prediction(values, *bounds, self.calibration.novelty.percentile(features, np.asarray(sections)))

    def _checked(
        self, features: np.ndarray, sections: np.ndarray, extra_inputs: dict[str, np.ndarray | None]
    ) -> tuple[np.ndarray, dict[str, np.ndarray | None]]:
        """Features and extra inputs for the predictor; all problems are raised together."""
        features = np.asarray(features, dtype=np.float32)
        problems = []
        if features.ndim != 2 or features.shape[1] != self.inputs["width"]:
            problems.append(f"Features have shape {features.shape}; the model takes (n_spots, {self.inputs['width']}).")
        elif bad := n_faulty(features):
            problems.append(f"{bad} spots have NaN or infinite features.")
        if len(sections) != len(features):
            problems.append(f"{len(sections)} section names for {len(features)} spots.")
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
        """Configuration (JSON) and arrays, the whole model."""
        config, arrays = self.predictor.state()
        facts: dict[str, Any] = {
            "genes": self.genes,
            "inputs": self.inputs,
            "labels": self.labels,
            "report": self.report,
        }
        stored = {f"predictor.{name}": np.ascontiguousarray(value) for name, value in arrays.items()}
        stored |= {f"statistics.{name}": np.ascontiguousarray(value) for name, value in self.statistics.items()}
        stored |= {f"encoder.{name}": np.ascontiguousarray(value) for name, value in self.encoder.items()}
        if self.encoder:
            facts["encoder"] = {name: list(value.shape) for name, value in self.encoder.items()}
        if self.calibration is not None:
            facts["calibration"], arrays = self.calibration.state()
            stored |= {f"calibration.{name}": np.ascontiguousarray(value) for name, value in arrays.items()}
        return {"format": FORMAT, "model": self.name, "predictor": config, **facts}, stored

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Model:
        """Restore a model; names what does not fit the declared architecture."""
        from img2gene.models import registry
        from img2gene.models.uncertainty.calibration import Calibration

        if config.get("format") != FORMAT:
            raise Img2GeneError(
                f"The model has format {config.get('format')!r}; this version of img2gene reads format {FORMAT}. "
                "Train it again, or install the version it was trained with."
            )
        kind = registry.get(config["model"])
        predictor_arrays = with_prefix(arrays, "predictor")
        statistics = with_prefix(arrays, "statistics")
        shapes: dict[str, Any] = (
            kind.array_shapes(config["predictor"]) if hasattr(kind, "array_shapes") else kind.shapes
        )
        encoder = with_prefix(arrays, "encoder")
        # The network itself is compared when it is loaded, which may take a download.
        declared = dict(shapes) | {f"encoder.{name}": tuple(axes) for name, axes in config.get("encoder", {}).items()}
        stored = predictor_arrays | {f"encoder.{name}": value for name, value in encoder.items()}
        calibration, facts = with_prefix(arrays, "calibration"), config.get("calibration")
        if facts is not None:
            declared |= {f"calibration.{name}": axes for name, axes in Calibration.array_shapes().items()}
        stored |= {f"calibration.{name}": value for name, value in calibration.items()}
        _check_arrays(declared, stored, statistics, len(config["genes"]), config["inputs"]["width"])
        return cls(
            kind.from_state(config["predictor"], predictor_arrays),
            list(config["genes"]),
            statistics,
            config["inputs"],
            config["labels"],
            config["report"],
            encoder,
            None if facts is None else Calibration.from_state(facts, calibration),
        )

    def __repr__(self) -> str:
        trained = listing(self.report.get("sections", []), 6)
        return f"Model({self.name}, {len(self.genes)} genes, encoder={self.inputs.get('name')}, trained on {trained})"

    def describe(self) -> str:
        """Return all facts as indented JSON."""
        facts = {"model": self.name, "n_genes": len(self.genes), "inputs": self.inputs, "labels": self.labels}
        return json.dumps({**facts, "report": self.report}, indent=2)


def top_genes(
    genes: list[str], statistics: dict[str, np.ndarray], by: str, n: int, min_detection: float = 0.1
) -> list[str]:
    """List the ``n`` genes that lead a statistic; see :meth:`Model.top_genes`."""
    if by not in statistics:
        raise Img2GeneError(f"by={by!r}: statistics are {listing(statistics)}.")
    score = statistics[by].astype(float).copy()
    if by != "mean":
        score[statistics["detection"] < min_detection] = np.nan
    score[np.isnan(score)] = -np.inf
    # Of equal scores the first name comes first, whatever the order of the genes.
    order = np.lexsort((np.array(genes, dtype=str), -score))[:n]
    return [genes[i] for i in order if np.isfinite(score[i])]


def _check_arrays(
    shapes: dict[str, tuple[str | int, ...]],
    arrays: dict[str, np.ndarray],
    statistics: dict[str, np.ndarray],
    n_genes: int,
    width: int,
) -> None:
    """Compare stored arrays with the declared ones; all differences are raised together.

    Axes are sizes, or names for sizes that several arrays share.
    """
    sizes: dict[str, int] = {"genes": n_genes, "width": width}
    problems = [f"Array `{name}` is missing." for name in shapes if name not in arrays]
    problems += [f"Array `{name}` is not part of this model." for name in arrays if name not in shapes]
    declared: dict[str, tuple[str | int, ...]] = {name: axes for name, axes in shapes.items() if name in arrays}
    declared |= {f"statistics.{name}": ("genes",) for name in statistics}
    stored = {**arrays, **{f"statistics.{name}": value for name, value in statistics.items()}}
    for name, axes in declared.items():
        shape = stored[name].shape
        expected = tuple(
            axis if isinstance(axis, int) else sizes.setdefault(axis, shape[i] if i < len(shape) else -1)
            for i, axis in enumerate(axes)
        )
        if shape != expected:
            problems.append(f"Array `{name}` has shape {shape}, expected {expected} ({', '.join(map(str, axes))}).")
        elif not np.isfinite(stored[name]).all() and not name.startswith("statistics."):
            problems.append(f"Array `{name}` holds NaN or infinite values.")
    raise_problems(problems)
