"""A gallery of image patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from img2gene import get
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, MissingKeyError, missing
from img2gene._study.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from spatialdata import SpatialData


@fill_parameters
def patches(
    sdata: SpatialData,
    index: list | np.ndarray | slice | None = None,
    *,
    n: int = 16,
    n_columns: int = 8,
    field: int = 0,
    label: str | None = None,
    table_key: str = "table",
    panel_size: float = 1.3,
) -> Figure:
    """Show the image patches of some spots.

    Parameters
    ----------
    %(sdata_patches)s
    index
        Rows of the table, as in :func:`img2gene.get.patches`; by default ``n`` rows spread over the table.
    n
        Number of patches without ``index``.
    n_columns
        Patches per row.
    field
        Which field of view, in the order of ``patch_um``.
    label
        Column of obs written over each patch.
    table_key
        Table that ``index`` refers to.
    panel_size
        Side of a patch in inches.

    Returns
    -------
    The figure, with the side of the patches in µm as its title.

    Raises
    ------
    MissingKeyError
        No patches, or no such column.

    Examples
    --------
    >>> import img2gene as ig
    >>> figure = ig.pl.patches(sdata, n=8, label="domain")  # doctest: +SKIP
    """
    import matplotlib.pyplot as plt

    study = Study.of(sdata, table_key)
    table, spec = study.table, study.patches
    if label is not None and label not in table.obs:
        raise MissingKeyError(missing(label, f"{study.name}.obs", table.obs.columns))
    if n < 1 or n_columns < 1:
        raise Img2GeneError(f"n={n}, n_columns={n_columns}: expected at least 1.")
    everything = np.arange(table.n_obs)
    if index is None:
        rows = np.unique(np.linspace(0, table.n_obs - 1, min(n, table.n_obs)).astype(int))
    elif isinstance(index, slice):
        rows = everything[index]
    else:
        labels = np.asarray(index)
        rows = table.obs_names.get_indexer(labels) if labels.dtype.kind in "UO" else everything[labels]
    # One call per patch, because sections may differ in pixels per micron.
    pictures = [get.patches(sdata, [row], field=field, table_key=table_key)[0] for row in rows]
    n_columns = min(n_columns, len(rows))
    n_rows = -(-len(rows) // n_columns)
    figure, grid = plt.subplots(
        n_rows,
        n_columns,
        figsize=(panel_size * n_columns, panel_size * (n_rows + 0.3)),
        squeeze=False,
        layout="constrained",
    )
    for ax in grid.flat:
        ax.axis("off")
    for ax, row, picture in zip(grid.flat, rows, pictures, strict=False):
        ax.imshow(picture)
        if label is not None:
            ax.set_title(str(table.obs[label].iloc[row]), fontsize=7)
    figure.suptitle(f"{spec['patch_um'][field]:g} µm", fontsize=9)
    return figure
