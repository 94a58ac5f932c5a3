"""How a notebook shows a trained model."""

from __future__ import annotations

import html
from typing import Any

from img2gene._errors import listing

_CELL = "text-align:left;vertical-align:top"


def model_html(model: Any) -> str:
    """Write what a model is and what it was trained on as an HTML table; names are escaped."""
    title = html.escape(f"Model: {model.name}")
    cells = "".join(
        f'<tr><th style="{_CELL}">{html.escape(name)}</th><td style="{_CELL}">{html.escape(str(value))}</td></tr>'
        for name, value in _facts(model).items()
        if value
    )
    return f"<p><b>{title}</b></p><table>{cells}</table>"


def _facts(model: Any) -> dict[str, Any]:
    report, inputs, layer = model.report, model.inputs, model.labels.get("layer")
    patients, leakage = report.get("patients"), report.get("leakage")
    fields = inputs.get("patch_um") or []
    return {
        "predicts": f"{len(model.genes)} genes: {listing(model.genes, 6)}",
        "expression": "log1p(CP10K) of counts" if layer is None else f"layer {layer!r}",
        "encoder": _encoder(inputs),
        "fields of view": ", ".join(f"{side:g} µm" for side in fields),
        "trained on": f"{report.get('n_spots', 0):,} spots of {listing(report.get('sections', []), 6)}",
        "patients": listing(patients, 6) if patients else "not recorded",
        "held out": listing(report.get("held_out") or [], 6) if report.get("held_out") else "nothing",
        "left out": listing(report.get("left_out") or [], 6) if report.get("left_out") else "",
        "leakage": f"{listing(leakage, 6)} on both sides of the split" if leakage else "",
        "parts": ", ".join(f"{name} {weight:.2f}" for name, weight in _weights(report).items()),
        "against bias": listing((report.get("debias") or {}).get("parts") or ["nothing"]),
        "intervals": _intervals(model),
        "img2gene": report.get("img2gene", ""),
    }


def _weights(report: dict[str, Any]) -> dict[str, float]:
    """Weights of the parts of a mixture."""
    fit = report.get("fit")
    weights = fit.get("weights") if isinstance(fit, dict) else None
    return weights if isinstance(weights, dict) else {}


def _encoder(inputs: dict[str, Any]) -> str:
    name, revision = inputs.get("name", "unknown"), inputs.get("revision")
    tuned = ", fine-tuned" if inputs.get("finetuned") else ""
    return f"{name}{f' ({revision})' if revision else ''}{tuned}"


def _intervals(model: Any) -> str:
    if model.calibration is None:
        return "none"
    one_patient = len(model.report.get("patients") or []) == 1
    limit = "; variation between patients is not known" if one_patient else ""
    return f"hold {model.calibration.level:.0%} of new measurements{limit}"
