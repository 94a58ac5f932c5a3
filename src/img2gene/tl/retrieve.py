"""Which training spots a prediction comes from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._checks import Arguments, several, shown
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, MissingKeyError, listing
from img2gene._study.entrance import open_study, report_off_tissue
from img2gene._study.expression import in_tissue
from img2gene._study.features import with_positions
from img2gene._study.model_inputs import model_inputs
from img2gene._study.study import Study
from img2gene.models import Model
from img2gene.models.reference_bank import ReferenceBank, Retrieves
from img2gene.tl._arguments import check_model
from img2gene.tl._prediction.values import resolve_model

if TYPE_CHECKING:
    from spatialdata import SpatialData

_EXCLUSIONS = ("none", "section", "group")
# Positions are stored in float32; a spot that lies further off is another one.
_SAME_SPOT_UM = 0.5


@fill_parameters
def retrieve(
    sdata: SpatialData,
    spots: str | Iterable[str] | None = None,
    *,
    n: int = 10,
    exclude: str = "none",
    model: Model | str | Path | None = None,
    key: str = "img2gene",
    table_key: str = "table",
) -> pd.DataFrame:
    """Training spots that are most similar to spots of a study, as a model that retrieves sees them.

    Parameters
    ----------
    sdata
        Study embedded as for the training.
    spots
        One or several names of spots (``obs_names``); by default all on tissue.
    n
        Training spots for each.
    exclude
        Leave out training spots of the same ``"section"``, of the same ``"group"`` (the column that the model's splits were made
        by, usually the patient), or ``"none"``.
    %(model_any)s
    %(key_model)s
    table_key
        Table whose spots are looked up.

    Returns
    -------
    DataFrame with one row per spot and reference, most similar first: ``spot``, ``rank`` (from 1), ``similarity`` (cosine),
    ``section`` and ``group`` of the reference, ``row_um`` and ``column_um`` of its centre, and ``reference``, its name where its
    section is part of this study, else NA. Nothing is written.

    Raises
    ------
    MissingKeyError
        No such spot or model.
    Img2GeneError
        The model retrieves nothing, or fewer than ``n`` reference spots remain after ``exclude``.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "knn", validate_on=["P3"])
    >>> references = ig.tl.retrieve(sdata, sdata["table"].obs_names[0], n=2, exclude="group")
    >>> references["group"].unique().tolist()
    ['P2']
    """
    check = Arguments()
    key, model, n = check.text("key", key), check_model(check, model), check.whole("n", n, 1)
    names, exclude = _checked_spots(check, spots), check.choice("exclude", exclude, _EXCLUSIONS)
    study = open_study(check, sdata, table_key)
    check.raise_all()
    trained = resolve_model(study, model, key)
    predictor = trained.predictor
    if not isinstance(predictor, Retrieves):
        raise Img2GeneError(
            f"The model `{trained.name}` does not look up training spots; `img2gene`, `cmrcnet`, `bleep` and `knn` do: "
            "`img2gene.tl.fit(sdata)`."
        )
    rows = _rows(study, names)
    excluded = _excluded(study, trained, exclude)
    bank = predictor.reference_bank()
    # The request is checked before inputs are read, because a fine-tuned encoder then embeds all patches.
    bank.check_request(n, None if excluded is None else excluded[rows], exclude, argument="n")
    inputs = model_inputs(study, trained)
    # Features are centred by section, so all spots of the sections are passed on.
    chosen = np.isin(inputs.sections, inputs.sections[rows]) & in_tissue(study.table)
    part = inputs.take(chosen)
    neighbors = predictor.neighbors(
        trained.seen(part.features),
        part.sections,
        k=n,
        excluded=None if excluded is None else excluded[chosen],
        by=exclude,
        **part.extra,
    )
    # The chosen rows are in ascending order, as the search needs.
    place = np.searchsorted(np.flatnonzero(chosen), rows)
    return _tidy(study, rows, bank, neighbors.rows[place], neighbors.similarity[place])


def _checked_spots(check: Arguments, spots: Any) -> list[str] | None:
    """Convert names of spots to a list of texts; None for all spots."""
    if spots is None:
        return None
    names = [spots] if isinstance(spots, str) else several(spots)
    if names is None:
        check.messages.append(f"spots={shown(spots)}: expected one or several names of spots (`obs_names`), or None.")
        return None
    if not names:
        check.messages.append("`spots` is empty: name spots (`obs_names`), or leave it out for all.")
    return [str(name) for name in names]


def _rows(study: Study, names: list[str] | None) -> np.ndarray:
    """Find the named spots, by default all on tissue; refuse unknown spots and spots off the tissue."""
    table, on_tissue = study.table, in_tissue(study.table)
    if names is None:
        report_off_tissue(study)
        return np.flatnonzero(on_tissue)
    rows = table.obs_names.get_indexer(names)
    if (rows < 0).any():
        absent = [name for name, row in zip(names, rows, strict=True) if row < 0]
        raise MissingKeyError(
            f"No spot named {listing(absent)} in `{study.name}.obs_names` (available: {listing(table.obs_names)})."
        )
    off = rows[~on_tissue[rows]]
    if len(off):
        raise Img2GeneError(
            f"The spots {listing(table.obs_names[off])} lie off the tissue (`obs['in_tissue']` is 0): name spots on tissue."
        )
    return rows


def _excluded(study: Study, model: Model, exclude: str) -> np.ndarray | None:
    """Return the section or group of each spot in which its references are not looked up."""
    obs = study.table.obs
    if exclude == "none":
        return None
    if exclude == "group":
        column = model.report["groups"]
        if column != _schema.SECTION and column not in obs:
            raise MissingKeyError(
                f"exclude='group' excludes the {column} of the spot, which `{study.name}.obs` does not name (available: "
                f"{listing(obs.columns)}). Add the column `{column}`, or pass exclude='section' or 'none'."
            )
        return study.groups(column)
    return study.sections


def _tidy(
    study: Study, rows: np.ndarray, bank: ReferenceBank, references: np.ndarray, similarity: np.ndarray
) -> pd.DataFrame:
    spots = study.table.obs_names[rows]
    flat, n = references.ravel(), references.shape[1]
    return pd.DataFrame(
        {
            "spot": np.repeat(spots.to_numpy(dtype=object), n),
            "rank": np.tile(np.arange(1, n + 1), len(spots)),
            "similarity": similarity.ravel(),
            "section": bank.sections[flat].astype(object),
            "group": bank.groups[flat].astype(object),
            "row_um": bank.positions[flat, 0],
            "column_um": bank.positions[flat, 1],
            "reference": _names(study, bank)[flat],
        }
    )


def _names(study: Study, bank: ReferenceBank) -> np.ndarray:
    """Look up the name of each reference spot; NA where the study lacks its section, or a spot at its place."""
    from scipy.spatial import cKDTree

    names = np.full(len(bank), pd.NA, dtype=object)
    places, sections, spots = (
        with_positions(study).positions,
        study.sections,
        study.table.obs_names.to_numpy(dtype=object),
    )
    for section in np.intersect1d(np.unique(bank.sections), np.unique(sections)):
        here, there = np.flatnonzero(sections == section), np.flatnonzero(bank.sections == section)
        distance, nearest = cKDTree(places[here]).query(bank.positions[there])
        same = distance < _SAME_SPOT_UM
        names[there[same]] = spots[here[nearest[same]]]
    return names
