"""Look for leaks between the groups of a split, before any model is trained."""

from __future__ import annotations

import logging
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

import pandas as pd

from img2gene._checks import Arguments
from img2gene._docs import fill_parameters
from img2gene._leaks.find import Finding, find_leaks
from img2gene._study.entrance import open_study, report_off_tissue
from img2gene._study.inputs import choose_encoder, has_embedding
from img2gene.tl._arguments import check_seed, checked_features, open_features

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

COLUMNS = [field.name for field in fields(Finding)]


@fill_parameters
def check_leaks(
    sdata: SpatialData,
    *,
    groups: str = "patient",
    layer: str | None = None,
    encoder: str | None = None,
    features: str | None = None,
    table_key: str = "table",
    seed: int | None = None,
) -> pd.DataFrame:
    """Look for leaks between the groups of a split in which each is held out once.

    Names are not trusted: the same patient under two names is looked for in counts and embedding, too. Nothing is changed.

    Parameters
    ----------
    sdata
        Study with counts in X, embedded or not.
    groups
        Column of obs that is held out by: ``"patient"``, or ``"section"`` (the region where there is no such column).
    layer
        Layer with labels on a scale of your own; by default labels are made of X.
    encoder
        Which embedding is looked at, if several are stored.
    features
        A matrix to look at in place of an embedding, as in :func:`img2gene.tl.fit`.
    %(table_key_embedding)s
    seed
        Seed of the spots that are drawn from large sections; None takes ``img2gene.settings.seed``.

    Returns
    -------
    DataFrame, one row per finding, errors first; empty if there is none. ``severity`` is ``error`` or ``warning``;
    ``sections`` and ``groups`` say whom it concerns, ``value`` and ``threshold`` what shows it, ``message`` what to do.
    ``kind`` is one of

    - ``shared patient``: a patient (a section, where patients are not recorded) in several groups
    - ``duplicated spots``: spots of two sections with identical counts or embeddings
    - ``similar sections``: sections of different patients that look like one: ``value`` is the share of spots with a double in
      the other (at least the threshold), or how much the sections differ, relative to patients (less than the threshold)
    - ``smoothed labels``: counts or labels that were averaged over neighbouring spots
    - ``panel``: a gene panel that was chosen on sections of the split, or on unknown sections

    Raises
    ------
    Img2GeneError
        No such column, layer or embedding; values that are not numbers; several embeddings and ``encoder`` not given.

    Notes
    -----
    The guide to evaluation lists the thresholds, and the values measured on honest and on leaking data.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=2, n_spots=60, n_genes=60)
    >>> len(ig.tl.check_leaks(sdata))
    0
    >>> findings = ig.tl.check_leaks(sdata, groups="section")
    >>> findings[["kind", "severity", "sections"]].values.tolist()[0]
    ['shared patient', 'error', 'P1_S1, P1_S2']
    """
    check = Arguments()
    groups, layer = check.text("groups", groups), check.text("layer", layer, optional=True)
    encoder, seed = check.text("encoder", encoder, optional=True), check_seed(check, seed)
    features = checked_features(check, features, encoder=encoder)
    study = open_features(check, open_study(check, sdata, table_key), features)
    check.raise_all()
    named = encoder is not None or features is not None
    identity = choose_encoder(study, encoder, features) if named or has_embedding(study) else None
    if identity is None:
        logger.info("no embedding: sections are compared by their expression alone")
    report_off_tissue(study)
    findings = find_leaks(study, groups, layer=layer, identity=identity, seed=seed)
    return pd.DataFrame([asdict(finding) for finding in findings], columns=COLUMNS)
