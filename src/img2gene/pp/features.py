"""Say which encoder computed a matrix of features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from img2gene import _schema
from img2gene._checks import Arguments, several, shown
from img2gene._docs import fill_parameters
from img2gene._errors import raise_problems
from img2gene._study.entrance import open_table
from img2gene._study.features import UNKNOWN_REVISION, with_features
from img2gene._study.study import Study

if TYPE_CHECKING:
    from spatialdata import SpatialData


@fill_parameters
def describe_features(
    sdata: SpatialData,
    features: str,
    *,
    encoder: str,
    revision: str,
    patch_um: float | Iterable[float] | None = None,
    source: str | None = None,
    licence: str | None = None,
    table_key: str = "table",
    inplace: bool = True,
) -> dict[str, dict[str, Any]] | None:
    """Say which encoder computed a matrix of features, so that models refuse those of another encoder or revision.

    Embeddings of :func:`img2gene.pp.embed_patches` have such a record already. Features that were taken over from LazySlide
    have one without a revision, which this call adds.

    Parameters
    ----------
    sdata
        Study with the features.
    features
        Name of the matrix in obsm, as ``"X_uni2"``, or of a table with a row for each spot, as LazySlide's ``"uni2_tiles"``.
    encoder
        Name of the encoder.
    revision
        Version of its weights, such as the commit of their hub repository.
    patch_um
        Side of its fields of view in µm, one or several.
    source, licence
        Where the weights come from, and their licence.
    table_key
        Table of the spots.
    %(inplace_update)s

    Returns
    -------
    None, or the update: the record in ``uns["img2gene"]["features"]``; for features of LazySlide in obsm that in
    ``uns["img2gene"]["encoder"]``.

    Raises
    ------
    MissingKeyError
        No matrix has this name.
    Img2GeneError
        The matrix is not numeric, an argument is invalid, or it is recorded already which encoder computed the matrix.

    Examples
    --------
    >>> import numpy as np
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> sdata["table"].obsm["X_uni2"] = np.random.default_rng(0).normal(size=(60, 8))
    >>> ig.pp.describe_features(sdata, "X_uni2", encoder="uni2-h", revision="1")
    """
    check = Arguments()
    features, encoder = check.text("features", features), check.text("encoder", encoder)
    revision, source = check.text("revision", revision), check.text("source", source, optional=True)
    licence = check.text("licence", licence, optional=True)
    fields = _fields(check, patch_um)
    check.flag("inplace", inplace)
    study = open_table(check, sdata, table_key)
    check.raise_all()
    width = int(with_features(study, features).table.obsm[features].shape[1])
    facts = {"patch_um": fields, "source": source, "licence": licence}
    entry = {"name": encoder, "revision": revision, "width": width}
    entry |= {name: value for name, value in facts.items() if value is not None}
    known = {_schema.embedding_key(name): name for name in study.record("encoder", {})}
    if features in known:
        uns = {"encoder": _completed(study, features, known[features], entry)}
    else:
        uns = {_schema.FEATURES: {**study.record(_schema.FEATURES, {}), features: entry}}
    update: dict[str, dict[str, Any]] = {"uns": uns}
    if not inplace:
        return update
    _schema.apply(study.stored_table, update)
    return None


def _completed(study: Study, features: str, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Add what is said about features to the record of their encoder, whose revision is not known; refuse a contradiction."""
    records = study.record("encoder")
    problems = [
        f"`{features}` is recorded with {fact} {records[name][fact]}, not {entry[fact]}."
        for fact in ("name", "patch_um")
        if fact in entry and entry[fact] != records[name][fact]
    ]
    if records[name]["revision"] != UNKNOWN_REVISION:
        problems = [
            f"`{features}` is recorded already as an embedding by `{name}`, revision {records[name]['revision']}. Features of "
            f"another encoder need another name: `table.obsm['X_mine'] = …`."
        ]
    raise_problems(problems)
    return {**records, name: {**records[name], **entry}}


def _fields(check: Arguments, patch_um: Any) -> list[float] | None:
    """Convert one field of view or several to a list of floats; None if they are not known."""
    if patch_um is None:
        return None
    values = several(patch_um)
    if values is None:
        return [check.number("patch_um", patch_um, above=0)]
    if not values:
        check.messages.append(f"patch_um={shown(patch_um)}: expected one or several positive numbers of microns.")
    return [check.number(f"patch_um[{place}]", value, above=0) for place, value in enumerate(values)]
