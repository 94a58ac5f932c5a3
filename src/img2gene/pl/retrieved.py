"""Patches of spots beside those of the training spots that a model retrieves for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from img2gene import get
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError
from img2gene.models import Model
from img2gene.pl._arguments import PlotArguments, open_study
from img2gene.pl._figures import scale_bar, shown_once
from img2gene.tl.retrieve import retrieve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

_MOST_SPOTS, _MOST_REFERENCES = 20, 20


@fill_parameters
def retrieved(
    sdata: SpatialData,
    spots: str | list[str],
    *,
    n: int = 6,
    exclude: str = "none",
    field: int = 0,
    model: Model | str | Path | None = None,
    key: str = "img2gene",
    table_key: str = "table",
    panel_size: float = 1.4,
) -> Figure:
    """Show the patch of each spot, and those of the training spots that a model finds most similar to it.

    Parameters
    ----------
    sdata
        Study embedded as for the training, with patches.
    spots
        One or several names of spots (``obs_names``), at most 20.
    n
        Training spots for each, at most 20.
    exclude
        Leave out training spots of the same ``"section"`` or ``"group"``, as in :func:`img2gene.tl.retrieve`.
    field
        Which field of view, in the order of ``patch_um``.
    %(model_any)s
    %(key_model)s
    table_key
        Table whose spots are looked up.
    panel_size
        Side of a patch in inches.

    Returns
    -------
    Figure with a row for each spot: its patch at the left, then the retrieved patches, most similar first, with cosine
    similarity and section. Training spots whose section is not part of this study have no picture.

    Raises
    ------
    MissingKeyError
        No such spot, model or patches.
    Img2GeneError
        Too many spots, or as in :func:`img2gene.tl.retrieve`.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "knn", validate_on=["P3"])
    >>> figure = ig.pl.retrieved(sdata, sdata["table"].obs_names[-1], n=4)
    """
    import matplotlib.pyplot as plt

    check = PlotArguments()
    names = check.names("spots", spots)
    n, field = check.whole("n", n, 1, _MOST_REFERENCES), check.whole("field", field, 0)
    check.stored(key, table_key)
    panel_size = check.panel(panel_size)
    if isinstance(names, list) and len(names) > _MOST_SPOTS:
        check.messages.append(f"spots: {len(names)} spots; at most {_MOST_SPOTS} rows are drawn.")
    check.raise_all()
    study = open_study(sdata, table_key)
    width_um = _field_width(study.patches["patch_um"], field)
    references = retrieve(sdata, names, n=n, exclude=exclude, model=model, key=key, table_key=table_key)
    size = (panel_size * (n + 1), panel_size * 1.35 * len(names))
    figure, grid = plt.subplots(len(names), n + 1, figsize=size, squeeze=False, layout="constrained")
    sections = dict(zip(study.table.obs_names, study.sections, strict=True))
    for axes, (spot, similar) in zip(grid, references.groupby("spot", sort=False), strict=True):
        pictures = _pictures(sdata, [spot, *similar["reference"]], {"field": field, "table_key": table_key})
        titles = [f"{spot}\n{sections[spot]}"]
        titles += [f"{row.similarity:.2f}\n{row.section}" for row in similar.itertuples(index=False)]
        for ax, picture, title in zip(axes, pictures, titles, strict=True):
            _patch(ax, picture, title, width_um)
        axes[0].spines[:].set(visible=True, linewidth=2)
    return shown_once(figure)


def _field_width(fields: list[float], field: int) -> float:
    """Side of a field of view in µm."""
    if field >= len(fields):
        raise Img2GeneError(f"field={field}: the patches have {len(fields)} fields of view, counted from 0.")
    return fields[field]


def _pictures(sdata: SpatialData, names: list, options: dict) -> list[np.ndarray | None]:
    """Read the patch of each named spot; None for training spots that are not part of the study."""
    # One call for each patch, because sections may differ in pixels per micron.
    return [None if pd.isna(name) else get.patches(sdata, [name], **options)[0] for name in names]


def _patch(ax: Axes, picture: np.ndarray | None, title: str, width_um: float) -> None:
    ax.set_title(title, fontsize=7)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if picture is None:
        ax.set_facecolor("0.92")
        ax.set_box_aspect(1)
        ax.text(0.5, 0.5, "not in\nthis study", ha="center", va="center", fontsize=7, transform=ax.transAxes)
        return
    ax.imshow(picture)
    scale_bar(ax, width_um / picture.shape[1])
