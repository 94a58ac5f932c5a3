"""Checks of the stored form of a model: format, configuration, and the arrays that it declares."""

from __future__ import annotations

from typing import Any

import numpy as np

from img2gene._checks import shown
from img2gene._errors import Img2GeneError, raise_problems
from img2gene.models.bias.debiasing import Debiasing
from img2gene.models.depth_scale import DepthScale
from img2gene.models.stored import StoredConfig, form_problems

FORMAT = 2
# Format 1 had no digests.
_READABLE = (1, FORMAT)
_ENTRIES = ("format", "model", "predictor", "genes", "inputs", "labels", "report")
_OPTIONAL = ("encoder", "calibration", "depth_scale", "debiasing")


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
        check.text("inputs.augment", inputs.get("augment"), optional=True)
        if "finetuned" in inputs:
            check.record("inputs.finetuned", inputs["finetuned"])
    return check.messages


def check_format(config: Any) -> None:
    """Refuse what is no configuration of a model, and formats of other versions."""
    if not isinstance(config, dict):
        raise Img2GeneError("It holds no configuration of a model.")
    version = config.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version not in _READABLE:
        raise Img2GeneError(
            f"The model has format {shown(version)}; this version of img2gene reads format {FORMAT} and older ones. "
            "Train it again, or install the version it was trained with."
        )


def check_config(config: dict[str, Any]) -> None:
    """Check the entries of a configuration that all models have."""
    check = StoredConfig()
    if check.entries("configuration", config, _ENTRIES, (*_OPTIONAL, "digest")):
        check.text("model", config["model"])
        check.names("genes", config["genes"])
        check.messages += input_problems(config["inputs"])
        optional = [name for name in _OPTIONAL if name in config]
        for name in ("predictor", "report", *optional):
            check.record(name, config[name])
        if check.record("labels", config["labels"]):
            check.text("labels.layer", config["labels"].get("layer"), optional=True)
            check.text("labels.depth", config["labels"].get("depth"), optional=True)
            check.number("labels.target_sum", config["labels"].get("target_sum"), above=0, optional=True)
        _check_report(check, config["report"])
    check.raise_all()


def _check_report(check: StoredConfig, report: Any) -> None:
    """Check the entries of the training report that other functions read."""
    report = report if isinstance(report, dict) else {}
    for name in ("sections", "patients", "held_out", "left_out", "leakage"):
        if report.get(name) is not None:
            check.list_of_names(f"report.{name}", report[name])
    check.text("report.groups", report.get("groups"), optional="groups" not in report)
    for name in ("spots", "depth"):
        check.record(f"report.{name}", {} if report.get(name) is None else report[name])
    check.record_of_sizes("report.resolution_um", report.get("resolution_um", {}))
    for name in ("n_spots", "seed"):
        check.whole(f"report.{name}", report.get(name), 0, optional=name not in report)


def check_arrays(config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
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
    more: dict[str, tuple[str | int, ...]] = {}
    if "depth_scale" in config:
        more |= {f"depth_scale.{name}": axes for name, axes in DepthScale.shapes.items()}
    more |= {f"debiasing.{name}": axes for name, axes in Debiasing.array_shapes(config.get("debiasing", {})).items()}
    declared |= more
    types |= dict.fromkeys(more, "float32")
    sizes = {"genes": len(config["genes"]), "width": config["inputs"]["width"]}
    raise_problems(form_problems(declared, types, arrays, sizes))
