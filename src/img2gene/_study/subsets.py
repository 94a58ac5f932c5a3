"""Draw samples of the training spots, and take chosen spots as a new study without images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import listing
from img2gene._study.expression import library_size
from img2gene._study.matrices import in_memory
from img2gene._study.study import Study

UNITS = ("groups", "spots")
_MIN_SPOTS = 2


def sample_problems(by: str, fractions: Sequence[float], groups: np.ndarray, sections: np.ndarray) -> list[str]:
    """List why training data cannot be divided.

    ``groups`` and ``sections``, (n_spots,), are the group and the section of each spot.
    """
    if by == "groups":
        names = np.unique(groups)
        return [
            f'by="groups" needs at least two groups to train on, but there is only {listing(names)}: pass `by="spots"` for '
            "parts of its sections, or join more with `img2gene.io.concat_sections`."
        ] * (len(names) < 2)
    names, sizes = np.unique(sections, return_counts=True)
    fraction, name, size = min(fractions), str(names[sizes.argmin()]), int(sizes.min())
    left = _share(fraction, size)
    if left >= _MIN_SPOTS:
        return []
    problem = f"Fraction {fraction:g} leaves {left} of the {size} spots of section {name}; {_MIN_SPOTS} are needed"
    if size < _MIN_SPOTS:
        return [f"{problem}, which no fraction can leave: remove the section from the table."]
    # Rounded up, so that the printed fraction leaves enough spots.
    return [f"{problem}: the smallest possible fraction is {np.ceil(1e3 * (_MIN_SPOTS - 0.5) / size) / 1e3:g}."]


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
        ``"groups"``: groups at random, whole, at least one. ``"spots"``: in each section the spots nearest to a
        randomly drawn one.
    fractions
        Shares of the groups, or of the spots of each section; numbers are rounded.
    groups, sections
        str (n_spots,).
    positions
        (n_spots, 2).
    rng
        Random generator.

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
    """Round a fraction of a number; halves go up, also if floating point puts them slightly below."""
    return np.floor(fraction * np.asarray(total) + 0.5 + 1e-9).astype(int)


def subset(study: Study, rows: np.ndarray, genes: list[str] | None = None, *, layer: str | None = None) -> Study:
    """Take chosen spots (and genes) of a study, without images and without what models do not use.

    Library sizes still count the full transcriptome. ``layer`` holds the training labels if these are not
    computed from counts.
    """
    import anndata as ad
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    table, sdata = study.table, study.sdata
    attrs = table.uns["spatialdata_attrs"]
    columns = slice(None) if genes is None else table.var_names.get_indexer(genes)
    part = ad.AnnData(
        # Labels of a layer need no counts.
        None if table.X is None else in_memory(table.X)[rows][:, columns],
        obs=table.obs.iloc[rows].copy(),
        var=table.var.iloc[columns].copy(),
        obsm={
            name: values.iloc[rows] if isinstance(values, pd.DataFrame) else values[rows]
            for name, values in table.obsm.items()
        },
        layers={} if layer is None else {layer: in_memory(table.layers[layer])[rows][:, columns]},
        uns={_schema.UNS: _schema.container(table)},
    )
    if layer is None:
        # Sizes are stored, because sums over the remaining genes would be too small.
        part.obs[_schema.LIBRARY_SIZE] = library_size(table)[rows]
    present = part.obs[attrs["region_key"]].unique().tolist()
    part = TableModel.parse(part, region=present, region_key=attrs["region_key"], instance_key=attrs["instance_key"])
    # The table annotates these elements, and spatialdata warns if they are absent.
    elements = {"shapes": dict(sdata.shapes), "labels": dict(sdata.labels)}
    return Study(SpatialData(**elements, tables={study.table_key: part}), study.table_key)
