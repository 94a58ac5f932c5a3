"""Check that a cross-validation describes the study that it is reported with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._errors import Img2GeneError, listing
from img2gene._report.blocks import names
from img2gene._report.sources import ReportedStudy
from img2gene._study.expression import labels, measured
from img2gene._study.sections import folded
from img2gene.pl._predictions import Predictions

if TYPE_CHECKING:
    from img2gene.tl import CrossValidation

_MAX_GENES = 50


def check_same_study(study: ReportedStudy, cv: CrossValidation) -> None:
    """Raise if a cross-validation shares no section, or no gene, with the study."""
    advice = "Pass the study that was cross-validated, or the result alone: `img2gene.report(result, path)`."
    scored, genes = list(dict.fromkeys(cv.scores["section"])), cv.scores["gene"].unique()
    if not set(scored) & set(study.roles):
        where = f"({listing(scored)}) is in the study ({listing(study.roles)})"
        raise Img2GeneError(f"cv: no scored section {where}. {advice}")
    if not study.table.var_names.isin(genes).any():
        where = f"({listing(genes, 5)}) is in the study ({listing(study.table.var_names, 5)})"
        raise Img2GeneError(f"cv: no scored gene {where}. {advice}")


def disagreements(study: ReportedStudy, cv: CrossValidation) -> list[str]:
    """List sections, genes, patients and numbers of spots that differ between a cross-validation and the study.

    Sections that only the study has are training sections or were left out, and are no disagreement.
    """
    facts = cv.scores.drop_duplicates("section").set_index("section")
    shared = [name for name in facts.index if name in study.roles]
    # Smoothing gives values to spots without counts, so their number then says nothing.
    counted = [] if cv.settings.get("smooth") else shared
    rows = measured(study.table, cv.settings.get("layer"))
    differences = {
        "scored sections that the study lacks": [name for name in facts.index if name not in study.roles],
        "scored genes that the study lacks": [
            name for name in cv.scores["gene"].unique() if name not in study.table.var_names
        ],
        "sections of another patient": [
            name for name in shared if _differ(facts["patient"].get(name), study.section_patients[name])
        ],
        "sections with another number of measured spots": [
            name for name in counted if rows[study.section_rows(name)].sum() != facts["n_spots"].get(name)
        ],
    }
    text = "The cross-validation and the study differ"
    return [f"{text}: {what}: {names(members)}." for what, members in differences.items() if members]


def unlike_sections(study: ReportedStudy, cv: CrossValidation, kept: Predictions) -> frozenset[str]:
    """Find sections in which the cross-validation kept other measured expression than the study has at these spots."""
    table, layer = study.table, cv.settings.get("layer")
    genes = [gene for gene in kept.genes if gene in table.var_names]
    # The study does not hold smoothed expression, and a layer may have been removed.
    if "measured" not in kept.parts or not genes or cv.settings.get("smooth") or (layer and layer not in table.layers):
        return frozenset()
    # A swapped or rescaled section shows in any gene, so a few suffice.
    genes = [genes[i] for i in np.linspace(0, len(genes) - 1, min(len(genes), _MAX_GENES)).astype(int)]
    columns, unlike = table.var_names.get_indexer(genes), set()
    for name in kept.section_names:
        rows, kept_rows = study.section_rows(name), kept.rows(name)
        order = table.obs_names[rows].get_indexer(kept.table.obs_names[kept_rows])
        in_study = labels(table, rows[order[order >= 0]], columns, layer=layer)
        in_cv: Any = kept.read("measured", genes, kept_rows[order >= 0])
        # Kept values are float32, so they differ from recomputed ones in the last digits.
        if not np.allclose(in_study, in_cv, rtol=1e-3, atol=1e-4, equal_nan=True):
            unlike.add(name)
    return frozenset(unlike)


def _differ(one: object, other: str | None) -> bool:
    """Whether two patients differ, if both are recorded."""
    return isinstance(one, str) and other is not None and folded(one) != folded(other)
