"""Open the study of a call: the checks of the table that every function shares."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from img2gene._checks import Arguments
from img2gene._errors import missing
from img2gene._study.expression import in_tissue, name_problems
from img2gene._study.matrices import with_plain_counts
from img2gene._study.study import Study

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)


def open_study(check: Arguments, sdata: SpatialData, table_key: Any) -> Study:
    """Open the study of a call, and add to ``check`` what makes its table unusable.

    Duplicate genes or spots, rows without a region or section, and a column ``in_tissue`` that is not 0 and 1 are
    collected. Without the table nothing more can be checked, so that error is raised at once, with all earlier ones.

    Examples
    --------
    >>> import img2gene as ig
    >>> from img2gene._checks import Arguments
    >>> from img2gene._study.entrance import open_study
    >>> check = Arguments()
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> open_study(check, sdata, "table").n_obs, check.messages
    (60, [])
    """
    table_key = check.text("table_key", table_key)
    if not isinstance(table_key, str):
        check.raise_all()
    study = None
    with check.collect():
        study = Study.of(sdata, table_key)
    if study is None:
        check.raise_all()
    n_problems = len(check.messages)
    check.messages += name_problems(study.table, study.name) + _annotation_problems(study.table, study.name)
    with check.collect():
        in_tissue(study.table)
    if len(check.messages) == n_problems:
        with check.collect():
            _ = study.regions, study.sections
    if len(check.messages) > n_problems:
        return study
    return Study(sdata, table_key, with_plain_counts(study.table))


def report_off_tissue(study: Study) -> int:
    """Log how many spots lie off the tissue, and return their number."""
    n_off = int((~in_tissue(study.table)).sum())
    if n_off:
        logger.warning("left out %d of %d spots that lie off the tissue (obs['in_tissue'] is 0)", n_off, study.n_obs)
    return n_off


def _annotation_problems(table: AnnData, name: str) -> list[str]:
    """List what spatialdata's record of the annotated regions lacks."""
    attrs = table.uns.get("spatialdata_attrs", {})
    if not isinstance(attrs, Mapping):
        return [
            f"`{name}.uns['spatialdata_attrs']` is a {type(attrs).__name__}; parse the table with `TableModel.parse`."
        ]
    key = attrs.get("instance_key")
    if key is None or (isinstance(key, str) and key in table.obs):
        return []
    return [missing(str(key), f"{name}.obs", table.obs.columns, "It names the spot of each row (`instance_key`).")]
