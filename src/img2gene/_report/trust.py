"""Chapters on how far to trust a prediction: calibration, gene–gene structure, unlike spots, what is predictable at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from img2gene import _schema, metrics
from img2gene._report.blocks import CALIBRATED, Chapter, Figure, Missing, Row, Table, Text, table
from img2gene._report.figures import canvas, raster, vector
from img2gene._report.sources import TRAINED, Values
from img2gene._report.subject import Subject, marks

THRESHOLD = 99.0
_LEVELS = np.linspace(0.05, 0.95, 19)
_MOST_GENES, _MOST_SPOTS, _MOST_MATRIX, _MOST_BOXES, _MOST_ROWS = 300, 2000, 40, 40, 60


def calibration_chapter(subject: Subject) -> Chapter:
    """Whether intervals cover what they should, and whether larger SDs go with larger errors."""
    values = subject.values
    present = set() if values is None else set(values.layers) & {"std", "lower", "upper"}
    if values is None or "measured" not in values.layers or not present:
        blocks: list[Any] = _scored_calibration(subject)
        return Chapter("calibration", "Calibration of the uncertainty", blocks)
    parts = _sampled(values, subject.seed)
    frame = pd.DataFrame([_section_calibration(name, part) for name, part in parts.items()])
    lead: list[Any] = (
        [Text(_coverage_text(frame, uncertainty_facts(subject)[0]), "lead")] if "coverage" in frame else []
    )
    titles = {"coverage": "measured coverage", "width": "interval width", "error": "Spearman of |error| with SD"}
    note = f"Mean over {_n_genes(values)} genes; at most {_MOST_SPOTS:,} spots of a section."
    shown = table(
        frame.drop(columns="curve", errors="ignore").rename(columns=titles),
        f"By section, of {subject.values_of}",
        limit=_MOST_ROWS,
        what="sections",
        note=note,
        marks=subject.values_marks,
    )
    blocks = [*lead, _reliability(frame, subject)] if "curve" in frame else lead
    if "coverage" not in frame:
        blocks.append(Missing("coverage: there are no interval bounds", CALIBRATED))
    return Chapter("calibration", "Calibration of the uncertainty", [*blocks, shown])


def _scored_calibration(subject: Subject) -> list[Any]:
    """What the scores hold of it where no predictions are at hand."""
    result = subject.result
    names = ["coverage", "width", "error_correlation"]
    own = pd.DataFrame() if result is None else result.scores[result.scores["model"] == subject.label]
    known = [name for name in names if name in own and own[name].notna().any()]
    if not known:
        return [Missing("standard deviations and intervals of held-out predictions", CALIBRATED)]
    frame = own.groupby("section", sort=False)[known].mean().reset_index()
    found = table(frame, "Mean over genes", limit=_MOST_ROWS, what="sections", marks=marks(result))
    return [found, Missing("the reliability curve", "img2gene.tl.cross_validate(sdata, keep_predictions=True)")]


def _n_genes(values: Values) -> str:
    return (
        f"all {len(values.genes):,}" if len(values.genes) <= _MOST_GENES else f"{_MOST_GENES} of {len(values.genes):,}"
    )


def _sampled(values: Values, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of each section with labels, of evenly chosen genes and of spots at random where there are many."""
    genes, rng, found = values.genes, np.random.default_rng(seed), {}
    if len(genes) > _MOST_GENES:
        genes = [genes[i] for i in np.linspace(0, len(genes) - 1, _MOST_GENES).astype(int)]
    for name in dict.fromkeys(values.sections.tolist()):
        rows = np.flatnonzero(values.sections == name)
        rows = np.sort(rng.permutation(rows)[:_MOST_SPOTS])
        read = {layer: values.read(layer, genes, rows) for layer in values.layers}
        kept = np.isfinite(read["measured"]).any(axis=1)  # type: ignore[arg-type]
        found[name] = {layer: part[kept] for layer, part in read.items() if part is not None}
    return found


def _section_calibration(name: str, part: dict[str, np.ndarray]) -> dict[str, Any]:
    truth, predicted = part["measured"], part["predicted"]
    facts: dict[str, Any] = {"section": name, "spots": len(truth)}
    if {"lower", "upper"} <= part.keys():
        known = np.isfinite(truth) & np.isfinite(part["lower"]) & np.isfinite(part["upper"])
        inside = (part["lower"] <= truth) & (truth <= part["upper"])
        facts["coverage"] = float(inside[known].mean()) if known.any() else np.nan
        facts["width"] = float((part["upper"] - part["lower"])[known].mean()) if known.any() else np.nan
    if "std" in part:
        error = np.abs(truth - predicted)
        complete = np.isfinite(error).all(axis=0) & np.isfinite(part["std"]).all(axis=0)
        found = metrics.spearman(error[:, complete], part["std"][:, complete]) if complete.any() else np.array([])
        facts["error"] = float(found[np.isfinite(found)].mean()) if np.isfinite(found).any() else np.nan
        facts["curve"] = _normal_coverage(error, part["std"])
    return facts


def _normal_coverage(error: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Share of errors within the central normal interval of each level."""
    from scipy.stats import norm

    ratio = (error / np.where(std > 0, std, np.nan)).ravel()
    ratio = ratio[np.isfinite(ratio)]
    return np.array([(ratio <= norm.ppf(0.5 + level / 2)).mean() if len(ratio) else np.nan for level in _LEVELS])


def uncertainty_facts(subject: Subject) -> tuple[float, float]:
    """Nominal level of the intervals, and percentile beyond which a spot is unlike the training data."""
    study = subject.study
    found = {} if study is None else _schema.read_json(study.table, "uncertainty", default={}).get(study.key, {})
    calibration = None if study is None else getattr(study.model, "calibration", None)
    level = found.get("level", getattr(calibration, "level", np.nan))
    if subject.keeps_values:
        level = subject.cv.settings.get("level", level)  # type: ignore[union-attr]
    return float(level), float(found.get("ood_threshold", getattr(calibration, "threshold", THRESHOLD)))


def _coverage_text(frame: pd.DataFrame, level: float) -> str:
    found = frame["coverage"].mean()
    nominal = f"of nominally {level:.0%}" if np.isfinite(level) else "of a level that is not recorded"
    text = f"Intervals {nominal} cover {found:.1%} of what was measured"
    if len(frame) > 1:
        text += f" (sections: {frame['coverage'].min():.1%} to {frame['coverage'].max():.1%})"
    if not np.isfinite(level):
        return f"{text}."
    off = found - level
    verdict = "as they should" if abs(off) <= 0.03 else "too narrow" if off < 0 else "wider than they need to be"
    return f"{text}: {verdict}."


def _reliability(frame: pd.DataFrame, subject: Subject) -> Figure:
    drawing = canvas(4.6, 4.2)
    ax = drawing.add_subplot()
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    for curve in frame["curve"]:
        ax.plot(_LEVELS, curve, color="#9db7dc", linewidth=0.8)
    ax.plot(
        _LEVELS, np.mean(frame["curve"].tolist(), axis=0), color="#3b6fb6", linewidth=2, label="normal, from the SD"
    )
    if "coverage" in frame:
        level = uncertainty_facts(subject)[0]
        ax.scatter([level] * len(frame), frame["coverage"], s=16, color="#c4673d", alpha=0.6, zorder=3)
        ax.scatter(level, frame["coverage"].mean(), marker="D", s=40, color="#c4673d", zorder=4, label="intervals")
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="nominal coverage", ylabel="measured coverage")
    ax.set_aspect("equal")
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    ax.spines[["top", "right"]].set_visible(False)
    caption = (
        "Nominal against measured coverage: below the diagonal, the uncertainty is understated. Thin lines and dots: "
    )
    return vector(drawing, "Nominal against measured coverage", f"{caption}sections.", subject.values_marks)


def structure_chapter(subject: Subject) -> Chapter:
    """Whether genes vary together as they do in the measurement."""
    blocks: list[Any] = [Text("Single genes may score well while the predictions lose which genes vary together.")]
    result, values = subject.result, subject.values
    if result is not None and len(result.structure):
        frame = result.structure.groupby(["model", "genes"], sort=False)[["structure", "structure_rmse"]].mean()
        frame = frame.unstack("genes")["structure"].reset_index().rename(columns={"all": "all genes"})
        caption = "Structure PCC: agreement of measured and predicted gene–gene correlations, mean over sections"
        strong = frozenset(np.flatnonzero(frame["model"] == subject.label).tolist())
        blocks.append(table(frame, caption, marks=marks(result), strong=strong))
    if values is not None and "measured" in values.layers:
        return Chapter("structure", "Gene–gene structure", [*blocks, *_matrices(subject, values)])
    call = "img2gene.tl.cross_validate(sdata, keep_predictions=True)" if subject.cv else "img2gene.tl.predict(sdata)"
    return Chapter("structure", "Gene–gene structure", [*blocks, Missing("matrices of held-out predictions", call)])


def _matrices(subject: Subject, values: Values) -> list[Any]:
    from img2gene.pl.correlation import draw_correlation
    from img2gene.tl.correlation import correlate

    genes = _group_genes(subject, values)
    if len(genes) < 3:
        return [Missing("matrices: fewer than three genes are predicted")]
    sections = []
    for name in dict.fromkeys(values.sections.tolist()):
        rows = np.flatnonzero(values.sections == name)[:_MOST_SPOTS]
        pair: Any = [values.read(layer, genes, rows) for layer in ("measured", "predicted")]
        known = np.isfinite(pair[0]).all(axis=1) & np.isfinite(pair[1]).all(axis=1)
        if known.sum() > 2:
            facts = {"section": name, "patient": None}
            sections.append((facts, (pair[0][known], pair[1][known]), {"leakage": pd.NA}))
    if not sections:
        return [Missing("matrices: no section has three spots with labels and predictions of these genes")]
    found, _ = correlate(subject.label, subject.label, genes, sections)
    if not np.isfinite(found.overall["pcc"]):
        return [Missing("matrices: the correlations are undefined")]
    drawing = draw_correlation(canvas(11, 4.1), found, cluster=True, limit=1.0, cmap="RdBu_r", panel_size=3.1)
    caption = f"Correlations within sections of {len(genes)} genes, measured and predicted, and every pair of them "
    caption += f"({subject.values_of}). Structure PCC {found.overall['pcc']:.3f}."
    return [raster(drawing, "Matrices of gene–gene correlations", caption, subject.values_marks)]


def _group_genes(subject: Subject, values: Values) -> list[str]:
    """At most 40 genes of the group of variable genes, or the first by name of the panel."""
    result: Any = subject.result
    known, group = set(values.genes), subject.gene_group
    if result is None or group == "all":
        return values.genes[:_MOST_MATRIX]
    members = result.scores.loc[(result.scores[group] == True).to_numpy(dtype=bool), "gene"]  # noqa: E712
    return [gene for gene in dict.fromkeys(members) if gene in known][:_MOST_MATRIX]


def ood_chapter(subject: Subject) -> Chapter:
    """Which spots are unlike those that the model was trained on."""
    percentiles, sections, source = ood_values(subject)
    title = "Spots unlike the training data"
    if percentiles is None or sections is None:
        text = "distances of spots from the training embeddings"
        return Chapter("ood", title, [Missing(text, CALIBRATED)])
    threshold = uncertainty_facts(subject)[1]
    frame = ood_shares(subject)
    far = frame["share beyond"].to_numpy() if frame is not None else np.array([])
    trained = [] if subject.study is None else subject.study.with_role(TRAINED)
    others = ~np.isin(sections, trained)
    where = " of sections that the model was not trained on" if trained and others.any() else ""
    known = percentiles[others if others.any() else ~others]
    beyond = np.mean(known[np.isfinite(known)] > threshold)
    lead = f"{beyond:.1%} of spots{where} lie beyond the {threshold:g}th percentile of the distances among training patients, "
    lead += f"where some {100 - threshold:g}% are to be expected; {source}."
    shown = frame.assign(**{"share beyond": [f"{value:.1%}" for value in far]})  # type: ignore[union-attr]
    caption = f"Share of spots beyond the {threshold:g}th percentile"
    part = table(shown, caption, limit=_MOST_ROWS, what="sections", right=("share beyond",))
    return Chapter("ood", title, [Text(lead, "lead"), Row([_ood_boxes(percentiles, sections, threshold), part])])


def ood_values(subject: Subject) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    """Percentile and section of each spot, and where they come from."""
    if subject.study is not None and subject.study.ood is not None:
        return subject.study.ood, subject.study.sections, "distances from the sections the stored model was trained on"
    values = subject.values
    if values is not None and values.ood is not None:
        return values.ood, values.sections, "distances of each section from the training sections of its fold"
    return None, None, ""


def ood_shares(subject: Subject) -> pd.DataFrame | None:
    """Share of spots beyond the threshold in each section, the highest first."""
    percentiles, sections, _ = ood_values(subject)
    if percentiles is None or sections is None:
        return None
    roles = {} if subject.study is None else subject.study.roles
    rows = []
    for name in dict.fromkeys(sections.tolist()):
        own = percentiles[sections == name]
        own = own[np.isfinite(own)]
        facts = {"section": name, "role": roles.get(name), "spots": len(own)}
        beyond = float((own > uncertainty_facts(subject)[1]).mean()) if len(own) else np.nan
        rows.append(facts | {"share beyond": beyond, "median percentile": np.median(own) if len(own) else np.nan})
    frame = pd.DataFrame(rows).sort_values("share beyond", ascending=False, kind="stable", ignore_index=True)
    return frame if roles else frame.drop(columns="role")


def _ood_boxes(percentiles: np.ndarray, sections: np.ndarray, threshold: float) -> Figure:
    names = list(dict.fromkeys(sections.tolist()))[:_MOST_BOXES]
    drawing = canvas(5.6, 1.3 + 0.28 * len(names))
    ax = drawing.add_subplot()
    parts = [percentiles[(sections == name) & np.isfinite(percentiles)] for name in names]
    style: dict[str, Any] = {"patch_artist": True, "widths": 0.6, "showfliers": False}
    style |= {"boxprops": {"facecolor": "#9db7dc", "edgecolor": "#3b6fb6"}, "medianprops": {"color": "black"}}
    ax.boxplot(parts, orientation="horizontal", **style)
    ax.axvline(threshold, color="#c4673d", linewidth=1.2)
    ax.set_yticks(range(1, len(names) + 1), names, fontsize=8)
    ax.invert_yaxis()
    ax.set(xlim=(-2, 102), xlabel="percentile of the distance from the training data")
    ax.spines[["top", "right"]].set_visible(False)
    limited = f" First {len(names)} sections." if len(names) < len(np.unique(sections)) else ""
    caption = f"Distribution over the spots of each section; line: threshold.{limited}"
    return vector(drawing, "Percentiles of the distance from the training data", caption)


def predictability_chapter(subject: Subject) -> Chapter:
    """What a perfect model could reach, gene by gene, beside what was reached."""
    ceiling, title = _ceiling(subject), "What is predictable at all"
    if ceiling is None or not ceiling.notna().any():
        return Chapter("predictability", title, [Missing("the highest correlation that noise allows", _CEILING)])
    if subject.result is None:
        frame = ceiling.dropna().sort_values(ascending=False).rename("ceiling").rename_axis("gene").reset_index()
        return Chapter("predictability", title, [table(frame, "Ceiling of the PCC", limit=15, what="genes")])
    own = subject.result.genes(subject.label)["pcc"].rename("PCC").to_frame()
    frame = own.join(ceiling.rename("ceiling"), how="inner").dropna()
    if not len(frame):
        return Chapter("predictability", title, [Missing("a ceiling for a gene that was scored", _CEILING)])
    frame["left to gain"] = frame["ceiling"] - frame["PCC"]
    far = frame.sort_values("left to gain", ascending=False).rename_axis("gene").reset_index()
    text = f"The ceiling is what noise of the measurement leaves: median {frame['ceiling'].median():.3f}; reached were "
    text += f"{frame['PCC'].median():.3f} in the median over {len(frame):,} genes."
    part = table(far.head(15), "Genes with most left to gain", note=f"15 of {len(far):,} genes." * (len(far) > 15))
    part = Table(**{**part.__dict__, "marks": marks(subject.result)})
    return Chapter("predictability", title, [Text(text, "lead"), Row([_ceiling_figure(frame, subject), part])])


_CEILING = "img2gene.tl.predictability(sdata)"


def _ceiling(subject: Subject) -> pd.Series | None:
    """Ceilings of the study, where they were made for the prediction that is in it, or of what was kept."""
    study = subject.study
    tables = [study.table] if study is not None and _schema.judges(study.table, study.key) else []
    if subject.values is not None and subject.values.study is None:
        tables.append(subject.values.table)
    return next((table.var["pcc_ceiling"] for table in tables if "pcc_ceiling" in table.var), None)


def _ceiling_figure(frame: pd.DataFrame, subject: Subject) -> Figure:
    drawing = canvas(4.6, 4.2)
    ax = drawing.add_subplot()
    ax.axline((0, 0), slope=1, color="0.6", linewidth=1, linestyle="--")
    ax.axhline(0, color="0.85", linewidth=0.8)
    ax.scatter(frame["ceiling"], frame["PCC"], s=10, alpha=0.5, linewidths=0, color="#3b6fb6", rasterized=True)
    ax.set(xlabel="highest PCC that noise allows", ylabel=f"PCC of {subject.label}")
    ax.spines[["top", "right"]].set_visible(False)
    caption = "A dot is a gene; on the diagonal nothing is left to gain."
    return vector(drawing, "PCC of each gene against its ceiling", caption, marks(subject.result))
