"""Whether a cross-validation is one of the study that it is reported with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._errors import Img2GeneError, listing
from img2gene._report.blocks import names
from img2gene._report.sources import ReportedStudy, Values
from img2gene._study.expression import labels

if TYPE_CHECKING:
    from img2gene.tl import CrossValidation

_MOST_GENES = 50
_OTHER = "The cross-validation is not (only) of this study"


def check_same_study(study: ReportedStudy, cv: CrossValidation) -> None:
    """Raise if a cross-validation shares no section, or no gene, with the study."""
    scored, genes = list(dict.fromkeys(cv.scores["section"])), cv.scores["gene"].unique()
    if not set(scored) & set(study.roles):
        raise Img2GeneError(
            f"cv: no scored section ({listing(scored)}) is in the study ({listing(study.roles)}). Pass the study that was "
            "cross-validated, or the result alone: `img2gene.report(result, path)`."
        )
    if not study.table.var_names.isin(genes).any():
        raise Img2GeneError(
            f"cv: no scored gene ({listing(genes, 5)}) is in the study ({listing(study.table.var_names, 5)}). Pass the study "
            "that was cross-validated, or the result alone: `img2gene.report(result, path)`."
        )


def disagreements(study: ReportedStudy, cv: CrossValidation) -> list[str]:
    """What of a cross-validation the study does not have, or has otherwise; empty if nothing.

    Sections that only the study has were trained on or left out, and are no disagreement.
    """
    facts = cv.scores.drop_duplicates("section").set_index("section")
    genes = cv.scores["gene"].unique()
    shared = [name for name in facts.index if name in study.roles]
    people = [name for name in shared if not _same(facts["patient"].get(name), study.section_patients[name])]
    labelled = (study.library > 0) | bool(cv.settings.get("layer"))
    counts = {name: int((labelled & (study.sections == name)).sum()) for name in shared}
    counted = [] if cv.settings.get("smooth") else shared
    found = {
        "scored sections that the study lacks": [name for name in facts.index if name not in study.roles],
        "scored genes that the study lacks": [name for name in genes if name not in study.table.var_names],
        "sections of another patient": people,
        "sections with another number of measured spots": [n for n in counted if counts[n] != facts["n_spots"].get(n)],
    }
    return [f"{_OTHER}: {what}: {names(who)}." for what, who in found.items() if who]


def unlike_sections(study: ReportedStudy, cv: CrossValidation, kept: Values) -> frozenset[str]:
    """Sections of kept predictions whose measured labels are not those of the study at the spots of these names."""
    table, layer = study.table, cv.settings.get("layer")
    genes = [gene for gene in kept.genes if gene in table.var_names]
    # Smoothed labels are not in the study, and a layer may have been dropped.
    if "measured" not in kept.layers or not genes or cv.settings.get("smooth") or (layer and layer not in table.layers):
        return frozenset()
    genes = [genes[i] for i in np.linspace(0, len(genes) - 1, min(len(genes), _MOST_GENES)).astype(int)]
    columns, found = table.var_names.get_indexer(genes), set()
    for name in dict.fromkeys(kept.sections.tolist()):
        own, among = np.flatnonzero(study.sections == name), np.flatnonzero(kept.sections == name)
        places = table.obs_names[own].get_indexer(kept.names[among])
        ours = labels(table, own[places[places >= 0]], columns, layer=layer)
        theirs: Any = kept.read("measured", genes, among[places >= 0])
        if not np.allclose(ours, theirs, rtol=1e-3, atol=1e-4, equal_nan=True):
            found.add(name)
    return frozenset(found)


def _same(one: object, other: str | None) -> bool:
    """Whether a patient is the same as far as both are recorded."""
    return not isinstance(one, str) or other is None or one == other
