"""Some spots of a study as a study of their own, without images: what models are trained and judged on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import listing
from img2gene._study.expression import library_size
from img2gene._study.study import Study

UNITS = ("groups", "spots")
_MIN_SPOTS = 2


def sample_problems(by: str, fractions: Sequence[float], groups: np.ndarray, sections: np.ndarray) -> list[str]:
    """What keeps training data from being divided; ``groups`` and ``sections`` (n_spots,) name those of each spot."""
    if by == "groups":
        names = np.unique(groups)
        return [
            f'by="groups" needs two groups or more to train on, here is {listing(names)}: pass `by="spots"` for parts of '
            "its sections, or join more with `img2gene.io.concat_sections`."
        ] * (len(names) < 2)
    names, sizes = np.unique(sections, return_counts=True)
    fraction, name, size = min(fractions), str(names[sizes.argmin()]), int(sizes.min())
    left = _share(fraction, size)
    if left >= _MIN_SPOTS:
        return []
    what = f"Fraction {fraction:g} leaves {left} of the {size} spots of section {name}; {_MIN_SPOTS} are needed"
    if size < _MIN_SPOTS:
        return [f"{what}, which no fraction leaves: take the section out of the table."]
    # Rounded up, so that the number that is printed does leave enough.
    return [f"{what}: the smallest possible fraction is {np.ceil(1e3 * (_MIN_SPOTS - 0.5) / size) / 1e3:g}."]


def nested_samples(
    by: str,
    fractions: Sequence[float],
    *,
    groups: np.ndarray,
    sections: np.ndarray,
    positions: np.ndarray,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Draw one sample for each fraction; every smaller one is part of the larger ones.

    Parameters
    ----------
    by
        ``"groups"``: groups at random, whole, at least one. ``"spots"``: of each section the spots nearest to one drawn at
        random.
    fractions
        Shares of the groups, or of the spots of each section; numbers are rounded.
    groups, sections
        str (n_spots,).
    positions
        (n_spots, 2).
    rng
        What the draw comes from.

    Returns
    -------
    Boolean masks (n_spots,), in the order of ``fractions``.
    """
    if by == "groups":
        order = rng.permutation(np.unique(groups))
        return [np.isin(groups, order[: max(1, _share(fraction, len(order)))]) for fraction in fractions]
    ranks, sizes = np.empty(len(sections), dtype=int), np.empty(len(sections), dtype=int)
    for name in np.unique(sections):
        rows = np.flatnonzero(sections == name)
        distances = np.linalg.norm(positions[rows] - positions[rng.choice(rows)], axis=1)
        ranks[rows[np.argsort(distances, kind="stable")]] = np.arange(len(rows))
        sizes[rows] = len(rows)
    return [ranks < _share(fraction, sizes) for fraction in fractions]


def _share(fraction: float, total: np.ndarray | int) -> np.ndarray:
    """A fraction of a number, rounded; halves go up, also those that floating point falls short of."""
    return np.floor(fraction * np.asarray(total) + 0.5 + 1e-9).astype(int)


def subset(study: Study, rows: np.ndarray, genes: list[str] | None = None, *, layer: str | None = None) -> Study:
    """Take chosen spots (and genes) of a study, without images and without what models do not use.

    Library sizes stay those of the full transcriptome. ``layer`` holds the training labels where these are not made of counts.
    """
    import anndata as ad
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    table, sdata = study.table, study.sdata
    attrs = table.uns["spatialdata_attrs"]
    columns = slice(None) if genes is None else table.var_names.get_indexer(genes)
    part = ad.AnnData(
        table.X[rows][:, columns],
        obs=table.obs.iloc[rows].copy(),
        var=table.var.iloc[columns].copy(),
        obsm={
            name: values.iloc[rows] if isinstance(values, pd.DataFrame) else values[rows]
            for name, values in table.obsm.items()
        },
        layers={} if layer is None else {layer: table.layers[layer][rows][:, columns]},
        uns={_schema.UNS: dict(table.uns[_schema.UNS])},
    )
    if layer is None:
        part.obs[_schema.LIBRARY_SIZE] = library_size(table)[rows]
    present = part.obs[attrs["region_key"]].unique().tolist()
    part = TableModel.parse(part, region=present, region_key=attrs["region_key"], instance_key=attrs["instance_key"])
    elements = {"shapes": dict(sdata.shapes), "labels": dict(sdata.labels)}
    return Study(SpatialData(**elements, tables={study.table_key: part}), study.table_key)
