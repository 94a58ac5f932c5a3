"""The chapter on how well each gene can be predicted at all."""

from __future__ import annotations

import pandas as pd

from img2gene import _schema
from img2gene._report.blocks import Chapter, Missing, Row, Text, table
from img2gene._report.figures import canvas, vector
from img2gene._report.subject import Subject
from img2gene.pl.predictability import draw_ceilings

_CEILING, _LISTED = "img2gene.tl.predictability(sdata)", 15


def predictability_chapter(subject: Subject) -> Chapter:
    """Compare the PCC of each gene with the PCC of a perfect model."""
    genes, title = _ceilings(subject), "How well genes can be predicted at all"
    if genes is None or not genes["pcc_ceiling"].notna().any():
        missing = Missing("the highest correlation of each gene that noise allows", _CEILING)
        return Chapter("predictability", title, [missing])
    if subject.result is None:
        frame = genes["pcc_ceiling"].dropna().sort_values(ascending=False).rename("ceiling")
        part = table(frame.rename_axis("gene").reset_index(), "Ceiling of the PCC", limit=_LISTED, what="genes")
        return Chapter("predictability", title, [part])
    frame = subject.result.genes(subject.label)[["pcc"]].join(genes, how="inner").dropna(subset=["pcc", "pcc_ceiling"])
    if not len(frame):
        return Chapter("predictability", title, [Missing("a ceiling of a scored gene", _CEILING)])
    lead = f"Measurement noise limits the PCC of a perfect model to {frame['pcc_ceiling'].median():.3f} (median over "
    lead += f"{len(frame):,} genes). “{subject.label}” reached {frame['pcc'].median():.3f}."
    drawing = canvas(4.6, 4.2)
    draw_ceilings(drawing.add_subplot(), frame, n_labels=3)
    caption = "A dot is a gene. On the diagonal nothing is left to gain."
    figure = vector(drawing, "PCC of each gene against its ceiling", caption, subject.marks)
    columns = {"pcc": "PCC", "pcc_ceiling": "ceiling"}
    gains = frame[list(columns)].rename(columns=columns).assign(**{"left to gain": frame["pcc_ceiling"] - frame["pcc"]})
    gains = gains.sort_values("left to gain", ascending=False).rename_axis("gene").reset_index()
    part = table(gains, "Genes with most left to gain", limit=_LISTED, what="genes", marks=subject.marks)
    return Chapter("predictability", title, [Text(lead, "lead"), Row([figure, part])])


def _ceilings(subject: Subject) -> pd.DataFrame | None:
    """Ceilings of genes, if they describe the stored prediction or came with the kept ones; None if there are none."""
    study, predictions = subject.study, subject.predictions
    tables = [study.table] if study is not None and _schema.judges(study.table, study.key) else []
    if predictions is not None and predictions.study is None:
        tables.append(predictions.table)
    var = next((table.var for table in tables if "pcc_ceiling" in table.var), None)
    if var is None:
        return None
    # Without a judgement, genes are drawn as predictable.
    judged = var["predictable"].astype("boolean").fillna(True) if "predictable" in var else True
    return var[["pcc_ceiling"]].assign(predictable=judged).astype({"predictable": bool})
