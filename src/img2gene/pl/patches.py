"""A gallery of image patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from img2gene import get
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, MissingKeyError, missing
from img2gene.get._get import chosen_rows
from img2gene.pl._arguments import PlotArguments, open_study
from img2gene.pl._figures import shown_once

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from spatialdata import SpatialData


# Each patch has axes of its own, which matplotlib lays out in seconds up to this number.
_MOST_PATCHES = 1000


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
    Img2GeneError
        No spot is chosen, or more than 1,000.

    Examples
    --------
    >>> import img2gene as ig
    >>> figure = ig.pl.patches(sdata, n=8, label="domain")  # doctest: +SKIP
    """
    import matplotlib.pyplot as plt

    check = PlotArguments()
    n, n_columns = check.whole("n", n, 1, _MOST_PATCHES), check.whole("n_columns", n_columns, 1)
    field, panel_size = check.whole("field", field, 0), check.panel(panel_size)
    check.text("label", label, optional=True)
    check.text("table_key", table_key)
    check.raise_all()
    study = open_study(sdata, table_key)
    table, spec = study.table, study.patches
    if label is not None and label not in table.obs:
        raise MissingKeyError(missing(label, f"{study.name}.obs", table.obs.columns))
    if index is None:
        rows = np.unique(np.linspace(0, table.n_obs - 1, min(n, table.n_obs)).astype(int))
    else:
        rows = chosen_rows(study, index)
    if not len(rows):
        raise Img2GeneError("index: no spot is chosen, so there is nothing to draw.")
    if len(rows) > _MOST_PATCHES:
        raise Img2GeneError(f"index: {len(rows)} spots are chosen; at most {_MOST_PATCHES} patches are drawn.")
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
    return shown_once(figure)
