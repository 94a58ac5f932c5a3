"""The chapter on which genes can be predicted at all."""

from __future__ import annotations

import pandas as pd

from img2gene import _schema
from img2gene._report.blocks import Chapter, Figure, Missing, Row, Table, Text, table
from img2gene._report.figures import canvas, vector
from img2gene._report.subject import Subject, marks


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
