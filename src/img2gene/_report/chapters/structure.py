"""The chapter on gene–gene correlations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from img2gene._report.blocks import Chapter, Missing, Text, table
from img2gene._report.figures import canvas, raster
from img2gene._report.subject import Subject
from img2gene.pl._predictions import Predictions

_MAX_SPOTS, _MAX_GENES, _TITLE = 2000, 40, "Gene–gene structure"


def structure_chapter(subject: Subject) -> Chapter:
    """Compare how genes vary together in the measurement and in the predictions."""
    blocks: list[Any] = [Text("Single genes can score well although the predictions lose which genes vary together.")]
    result, predictions = subject.result, subject.predictions
    if result is not None and len(result.structure):
        frame = result.structure.groupby(["model", "genes"], sort=False)["structure"].mean()
        frame = frame.unstack("genes").reset_index().rename(columns={"all": "all genes"})
        caption = "Structure PCC: agreement of measured and predicted gene–gene correlations, mean over sections"
        strong = frozenset(np.flatnonzero(frame["model"] == subject.label).tolist())
        blocks.append(table(frame, caption, marks=subject.marks, strong=strong))
    if predictions is not None and "measured" in predictions.parts:
        return Chapter("structure", _TITLE, [*blocks, _matrices(subject, predictions)])
    call = "img2gene.tl.cross_validate(sdata, keep_predictions=True)" if subject.cv else "img2gene.tl.predict(sdata)"
    return Chapter("structure", _TITLE, [*blocks, Missing("matrices of held-out predictions", call)])


def _matrices(subject: Subject, predictions: Predictions) -> Any:
    from img2gene.pl.correlation import draw_correlation
    from img2gene.tl.correlation import correlate

    genes = _group_genes(subject, predictions)
    if len(genes) < 3:
        return Missing("matrices, because fewer than three genes are predicted")
    sections = []
    for name in subject.sections:
        # With 2,000 spots the standard error of a correlation is about 0.02; more only take time.
        rows = predictions.rows(name)[:_MAX_SPOTS]
        pair: Any = [predictions.read(part, genes, rows) for part in ("measured", "predicted")]
        known = np.isfinite(pair[0]).all(axis=1) & np.isfinite(pair[1]).all(axis=1)
        if known.sum() > 2:
            facts = {"section": name, "patient": None}
            sections.append((facts, (pair[0][known], pair[1][known]), {"leakage": pd.NA}))
    if not sections:
        return Missing("matrices, because no section has three spots with measured and predicted values of these genes")
    result, _ = correlate(subject.label, subject.label, genes, sections)
    if not np.isfinite(result.overall["pcc"]):
        return Missing("matrices, because the correlations are undefined")
    drawing = draw_correlation(canvas(11, 4.1), result, cluster=True, limit=1.0, cmap="RdBu_r", panel_size=3.1)
    caption = f"Correlations within sections of {len(genes)} genes: measured, predicted, and all pairs of genes "
    caption += f"({subject.predictions_name}). Structure PCC of these means over sections: {result.overall['pcc']:.3f}."
    return raster(drawing, "Matrices of gene–gene correlations", caption, subject.predictions_marks)


def _group_genes(subject: Subject, predictions: Predictions) -> list[str]:
    """Choose at most 40 genes: highly variable ones, or the first of the panel."""
    scores, group = None if subject.result is None else subject.result.scores, subject.gene_group
    genes = predictions.measured_genes
    if scores is not None and group != "all":
        members = set(scores.loc[(scores[group] == True).to_numpy(dtype=bool), "gene"])  # noqa: E712 - NaN is no member
        genes = [gene for gene in genes if gene in members]
    return genes[:_MAX_GENES]
