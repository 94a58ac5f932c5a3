"""The chapter on gene–gene correlations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from img2gene._report.blocks import Chapter, Missing, Text, table
from img2gene._report.figures import canvas, raster
from img2gene._report.sources import Values
from img2gene._report.subject import Subject, marks

_MOST_SPOTS, _MOST_MATRIX = 2000, 40


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
