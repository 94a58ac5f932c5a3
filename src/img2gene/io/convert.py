"""Convert a study to and from the AnnData layout of squidpy and scanpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing
from img2gene._study.study import Study
from img2gene.io._concat import concat_sections
from img2gene.io.sections import build_section

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def to_anndata(sdata: SpatialData, *, table_key: str = "table") -> AnnData:
    """Convert the table of a study to an AnnData that squidpy can plot.

    Parameters
    ----------
    sdata
        Study. If its reader stored no thumbnails, :func:`img2gene.pp.extract_patches` adds them.
    table_key
        Table to take.

    Returns
    -------
    AnnData, a copy of the table. It has ``obsm["spatial"]``, and ``uns["spatial"]`` with thumbnail and scale factors of
    each section. Plot it with ``squidpy.pl.spatial_scatter(adata, library_key="section")``.

    Raises
    ------
    MissingKeyError
        The table has no positions.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> sorted(ig.io.to_anndata(sdata).uns["spatial"])
    ['P1_S1', 'P2_S1']
    """
    study = Study.of(sdata, table_key)
    table = study.table
    if "spatial" not in table.obsm:
        raise MissingKeyError(
            missing("spatial", f"{study.name}.obsm", table.obsm, "Run `img2gene.pp.extract_patches` first.")
        )
    adata = table.copy()
    adata.uns.pop("spatialdata_attrs", None)
    # A subset keeps the thumbnails of dropped sections, and squidpy would look for their spots.
    present = set(study.sections)
    adata.uns["spatial"] = {name: item for name, item in adata.uns.get("spatial", {}).items() if name in present}
    return adata


def from_anndata(
    adata: AnnData,
    *,
    spot_um: float,
    library_key: str | None = None,
    patient_key: str | None = None,
    image: str = "hires",
) -> SpatialData:
    """Convert an AnnData in squidpy's layout to a study.

    Parameters
    ----------
    adata
        Raw counts with ``obsm["spatial"]`` and ``uns["spatial"][<library>]`` (``images``, ``scalefactors``).
    spot_um
        Spot diameter in µm (Visium 55, legacy ST 100). It gives the microns per pixel of the images.
    library_key
        Column of ``obs`` with the library of each spot. Needed if there are several libraries.
    patient_key
        Column of ``obs`` with the donor of each spot.
    image
        Key of the image of each library.

    Returns
    -------
    SpatialData as from :func:`img2gene.io.build_section`, with one section per library.

    Raises
    ------
    Img2GeneError
        Positions or images are missing, ``library_key`` is needed, or a library has spots of several patients.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> back = ig.io.from_anndata(ig.io.to_anndata(sdata), spot_um=100, library_key="section", patient_key="patient")
    >>> sorted(back.images)
    ['P1_S1_image', 'P2_S1_image']
    """
    libraries = dict(adata.uns.get("spatial", {}))
    if "spatial" not in adata.obsm or not libraries:
        raise MissingKeyError(
            'The AnnData needs positions in `obsm["spatial"]` and images in `uns["spatial"]` (available: '
            f"obsm {listing(adata.obsm)}; uns {listing(adata.uns)}). Read it with a reader that keeps images."
        )
    for key in (library_key, patient_key):
        if key is not None and key not in adata.obs:
            raise MissingKeyError(missing(key, "adata.obs", adata.obs.columns))
    if library_key is None and len(libraries) > 1:
        raise Img2GeneError(
            f"There are several libraries ({listing(libraries)}). Pass the column of `obs` that names them as "
            "`library_key=`."
        )
    names = (
        np.array([next(iter(libraries))] * adata.n_obs)
        if library_key is None
        else adata.obs[library_key].astype(str).to_numpy()
    )
    unknown = sorted(set(names) - set(libraries))
    if unknown:
        raise MissingKeyError(
            f'`uns["spatial"]` has no images of the libraries {listing(unknown)} (available: {listing(libraries)}).'
        )
    return concat_sections(
        [
            _section(adata[names == name], name, libraries[name], spot_um, patient_key, image)
            for name in dict.fromkeys(names)
        ]
    )


def _section(
    adata: AnnData, name: str, library: dict, spot_um: float, patient_key: str | None, image: str
) -> SpatialData:
    from img2gene._study.images import to_rgb

    _schema.check_name(name, "library")
    if image not in library.get("images", {}):
        raise MissingKeyError(missing(image, f"uns['spatial']['{name}']['images']", library.get("images", {})))
    factors = library["scalefactors"]
    scale = float(factors.get(f"tissue_{image}_scalef", 1.0))
    patients = [] if patient_key is None else sorted(set(adata.obs[patient_key].astype(str)))
    if len(patients) > 1:
        raise Img2GeneError(
            f"Library `{name}` has spots of several patients ({listing(patients)}). A section belongs to one patient."
        )
    table = adata.copy()
    # Thumbnails and records of the whole AnnData do not belong to a single section.
    for key in ("spatial", _schema.UNS):
        table.uns.pop(key, None)
    return build_section(
        to_rgb(np.asarray(library["images"][image]), f"image of library `{name}`"),
        np.asarray(adata.obsm["spatial"], dtype=float) * scale,
        table,
        section=name,
        patient=patients[0] if patients else None,
        mpp=spot_um / (float(factors["spot_diameter_fullres"]) * scale),
        spot_um=spot_um,
    )
