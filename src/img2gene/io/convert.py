"""Convert a study to and from the AnnData layout of squidpy and scanpy."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError, MissingKeyError, Problems, listing, missing
from img2gene._study.entrance import column_problems, number_problems, object_problems, open_table
from img2gene._study.expression import in_tissue, name_problems
from img2gene._study.sections import column_texts, text_labels
from img2gene.io._as_measured import as_measured
from img2gene.io._concat import concat_sections
from img2gene.io._libraries import Library, read_libraries
from img2gene.io._squidpy import squidpy_layout
from img2gene.io.sections import assemble_section, size_problems

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

# Records that describe pixels of the images a study had before it was converted.
_OF_IMAGES = ("sections", "patches", "encoder")


def to_anndata(
    sdata: SpatialData, *, images: str | Mapping[str, str] | None = None, table_key: str = "table"
) -> AnnData:
    """Convert the table of a study to an AnnData that squidpy can plot.

    Parameters
    ----------
    sdata
        Study with images and regions.
    images
        Image element, for all regions or by region. By default the image of the patches, else the largest image in the
        region's coordinate system.
    table_key
        Table to take.

    Returns
    -------
    AnnData, a copy of the table. ``obs["section"]`` names sections as text. ``obsm["spatial"]`` holds (x, y) from the
    top left corner of each section's image as it is now, also after a crop. ``uns["spatial"]`` holds a new thumbnail
    ``"hires"`` and scale factors of each section. Sections whose image is not in the study keep stored positions and
    thumbnails. Plot it with ``squidpy.pl.spatial_scatter(adata, library_key="section")``.

    Raises
    ------
    Img2GeneError
        The table cannot be read (duplicate names, rows without a spot, counts that are no numbers), a section has spots
        on several images, or its image cannot be aligned with its spots.
    MissingKeyError
        A section has neither an image nor positions.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> sorted(ig.io.to_anndata(sdata).uns["spatial"])
    ['P1_S1', 'P2_S1']
    """
    check = Arguments()
    for name, value in images.items() if isinstance(images, Mapping) else [("", images)]:
        check.text(f"images[{name!r}]" if name else "images", value, optional=not name)
    study = open_table(check, sdata, table_key, with_windows=False)
    check.messages += number_problems(study.table.X, f"`{study.name}.X`")
    check.raise_all()
    positions, libraries = squidpy_layout(study, images)
    adata = study.table.to_memory() if study.table.isbacked else study.table.copy()
    adata.uns.pop("spatialdata_attrs", None)
    # squidpy looks up each section by its text.
    adata.obs[_schema.SECTION] = pd.Categorical(study.sections)
    adata.obsm["spatial"] = positions
    adata.uns["spatial"] = libraries
    return adata


def from_anndata(
    adata: AnnData,
    *,
    spot_um: float | None = None,
    library_key: str | None = None,
    patient_key: str | None = None,
    image: str = "hires",
) -> SpatialData:
    """Convert an AnnData in squidpy's layout to a study.

    Parameters
    ----------
    adata
        Raw counts with ``obsm["spatial"]`` and ``uns["spatial"][<library>]`` (``images``, ``scalefactors``), in memory or
        backed by a file.
    spot_um
        Spot diameter in µm, such as 100 for legacy ST. With the diameter in ``scalefactors`` it gives the microns per
        pixel of the images. Leave it out for Visium and Visium HD: if ``obs`` has the ``array_row`` and ``array_col`` of
        the Visium lattice, the distance of 100 µm from spot to spot gives the microns (Space Ranger's diameter
        corresponds to about 65 µm, not 55), and for Visium HD ``microns_per_pixel`` or ``bin_size_um`` in ``scalefactors``.
    library_key
        Column of ``obs`` with the library of each spot. If there are several libraries, by default the one column that
        holds their names.
    patient_key
        Column of ``obs`` with the donor of each spot.
    image
        Key of the image of each library. ``"fullres"`` needs no scale factor.

    Returns
    -------
    SpatialData as from :func:`img2gene.io.build_section`, with one image per library and ``obsm["spatial"]`` in its
    pixels. Genes have unique symbols: Ensembl identifiers, as CELLxGENE has them, go to ``var["gene_ids"]``. If X holds no
    counts, they are taken from ``layers["counts"]`` or ``raw``, with a warning; ``raw`` with more genes than X gives the
    library sizes, which are those of everything measured, and so does ``obs["total_counts"]`` of scanpy where X holds a part of
    the genes. Antibodies and control probes are left out, with a warning. Columns of ``obs`` stay as they are, but for names that
    cannot be stored, such as ``cell type``: ``library_size`` is used, ``section`` may divide a library into several
    sections (cores of a tissue microarray), and if ``region`` or ``spot_id`` mean something else, the study uses
    ``img2gene_region`` and ``img2gene_spot_id``. Records and windows of patches of an earlier study are removed.

    Raises
    ------
    Img2GeneError
        Positions, images or scale factors are missing or no numbers, positions are pixels of the hires image, ``spot_um`` is needed or contradicts the scale
        factors, ``library_key`` is needed, library sizes are less than the counts, or a section has spots of several libraries or patients.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> back = ig.io.from_anndata(ig.io.to_anndata(sdata), library_key="section", patient_key="patient")
    >>> sorted(back.images)
    ['P1_S1_image', 'P2_S1_image']
    """
    from anndata import AnnData

    if isinstance(adata, AnnData):
        adata = as_measured(adata)
    spot_um = _check(adata, spot_um, library_key, patient_key, image)
    if adata.isbacked:
        adata = adata.to_memory()
    libraries = read_libraries(adata, library_key, image, spot_um)
    columns = _columns(adata, libraries, patient_key)
    return concat_sections([_section(adata, library, columns) for library in libraries])


def _check(adata: Any, spot_um: Any, library_key: Any, patient_key: Any, image: Any) -> float | None:
    """Check the arguments, and what the AnnData needs besides images; return the spot diameter."""
    from anndata import AnnData

    check = Arguments()
    spot_um = check.number("spot_um", spot_um, above=0, optional=True)
    for name, value, optional in (("library_key", library_key, True), ("patient_key", patient_key, True)):
        check.text(name, value, optional=optional)
    if not isinstance(image, str) or not image:
        check.messages.append(
            f"image={shown(image)}: expected the key of a picture in `adata.uns['spatial'][<library>]['images']`. Store another "
            'picture there first: in full resolution as `"fullres"`, which `image="fullres"` then takes.'
        )
    if not isinstance(adata, AnnData):
        check.messages.append(f"adata is a {type(adata).__name__}; expected an AnnData with raw counts.")
    check.raise_all()
    for key in (library_key, patient_key):
        if key is not None and key not in adata.obs:
            with check.collect():
                raise MissingKeyError(missing(key, "adata.obs", adata.obs.columns))
    check.messages += column_problems(adata, "adata")
    check.raise_all()
    check.messages += name_problems(adata, "adata") + object_problems(adata.obs, "adata.obs")
    with check.collect():
        in_tissue(adata)
    if adata.X is None or not adata.n_obs:
        check.messages.append("The AnnData has no counts; put raw counts into `adata.X`.")
    else:
        check.messages += number_problems(adata.X, "`adata.X`") or size_problems(adata, "adata")
    check.raise_all()
    return spot_um


def _columns(adata: AnnData, libraries: list[Library], patient_key: str | None) -> dict[str, Any]:
    """Build the columns of ``obs`` that a study needs; columns of the user stay as they are.

    The keys ``region_key`` and ``instance_key`` hold the names of two of them.
    """
    names = np.empty(adata.n_obs, dtype=object)
    numbers = np.empty(adata.n_obs, dtype=np.int64)
    for library in libraries:
        names[library.rows], numbers[library.rows] = library.name, np.arange(len(library.rows))
    columns: dict[str, Any] = {}
    problems = Problems()
    with problems.collect():
        columns[_schema.SECTION] = _sections(adata, names)
    with problems.collect():
        columns[_schema.PATIENT] = _patients(adata, patient_key, columns.get(_schema.SECTION, names))
    problems.raise_all()
    # None leaves a column as it is.
    columns = {name: values for name, values in columns.items() if values is not None and name not in adata.obs}
    regions = np.array([f"{name}_spots" for name in names])
    region_key, instance_key = _region_key(adata, regions), _instance_key(adata, names)
    columns[region_key] = regions
    if instance_key not in adata.obs:
        columns[instance_key] = numbers
    return {"columns": columns, "region_key": region_key, "instance_key": instance_key}


def _sections(adata: AnnData, libraries: np.ndarray) -> np.ndarray:
    """Return the section of each spot: the user's names, which may divide a library into cores, else the library."""
    if _schema.SECTION not in adata.obs:
        return libraries
    sections = text_labels(adata.obs[_schema.SECTION], _schema.SECTION)
    pairs = pd.DataFrame({"section": sections, "library": libraries}).drop_duplicates()
    shared = pairs["section"][pairs["section"].duplicated()].unique()
    if len(shared):
        raise Img2GeneError(
            f"`obs['{_schema.SECTION}']` gives spots of several libraries one name ({listing(shared)}). A section lies on "
            "one image: rename the column if it means something else, or give the sections distinct names."
        )
    return sections


def _patients(adata: AnnData, patient_key: str | None, sections: np.ndarray) -> np.ndarray | None:
    """Return the patient of each spot; None if no column names them."""
    if patient_key is None:
        return None
    patients = text_labels(adata.obs[patient_key], patient_key)
    for name in dict.fromkeys(sections.tolist()):
        several = sorted(set(patients[sections == name]))
        if len(several) > 1:
            raise Img2GeneError(
                f"Section `{name}` has spots of several patients ({listing(several)}). A section belongs to one patient."
            )
    if _schema.PATIENT in adata.obs and column_texts(adata.obs[_schema.PATIENT]).tolist() != patients.tolist():
        raise Img2GeneError(
            f"`obs['{_schema.PATIENT}']` and `obs['{patient_key}']` differ. Rename or drop `{_schema.PATIENT}`, which the "
            "study would take its patients from."
        )
    return patients


def _region_key(adata: AnnData, regions: np.ndarray) -> str:
    """Choose a column for the names of regions that holds nothing else."""
    return _free_column(
        "region", lambda name: name in adata.obs and adata.obs[name].astype(str).tolist() != regions.tolist()
    )


def _instance_key(adata: AnnData, libraries: np.ndarray) -> str:
    """Choose a column for the names of spots: the user's if it names each spot of a library once."""
    return _free_column("spot_id", lambda name: name in adata.obs and not _names_spots(adata.obs[name], libraries))


def _free_column(name: str, is_taken: Callable[[str], bool]) -> str:
    """Return the first name that is not taken: the plain one, the package's, and numbered ones."""
    own = f"img2gene_{name}"
    candidates = itertools.chain([name, own], (f"{own}_{number}" for number in itertools.count(2)))
    chosen = next(candidate for candidate in candidates if not is_taken(candidate))
    if chosen != name:
        logger.info("obs[%r] is kept; obs[%r] takes its place in the study", name, chosen)
    return chosen


def _names_spots(column: pd.Series, libraries: np.ndarray) -> bool:
    """Check that a column names each spot of a library once, in a form that spatialdata takes: no categories or gaps."""
    # spatialdata takes numbers of numpy, and none that can be missing.
    is_number = isinstance(column.dtype, np.dtype) and column.dtype.kind in "iu"
    named = is_number or all(isinstance(value, str) for value in column)
    unique = named and not pd.DataFrame({"spot": column.to_numpy(), "library": libraries}).duplicated().any()
    return bool(unique and not isinstance(column.dtype, pd.CategoricalDtype))


def _section(adata: AnnData, library: Library, columns: dict[str, Any]) -> SpatialData:
    table = adata[library.rows].copy()
    _forget_images(table)
    for name, values in columns["columns"].items():
        table.obs[name] = pd.Categorical(values[library.rows]) if values.dtype.kind in "OU" else values[library.rows]
    return assemble_section(
        library.image,
        library.xy,
        table,
        section=library.name,
        mpp=library.mpp,
        spot_um=library.spot_um,
        region_key=columns["region_key"],
        instance_key=columns["instance_key"],
    )


def _forget_images(table: AnnData) -> None:
    """Remove thumbnails, and what the package recorded about images that the study no longer has."""
    for key in ("spatial", "spatialdata_attrs"):
        table.uns.pop(key, None)
    records = _schema.container(table)
    if "patches" in records:
        table.obsm.pop(_schema.PATCH_BBOX, None)
        table.obs = table.obs.drop(columns=[_schema.PATCH_TISSUE, _schema.PATCH_INSIDE], errors="ignore")
    encoders = _schema.read_json(table, "encoder", default={})
    if records:
        table.uns[_schema.UNS] = {key: value for key, value in records.items() if key not in _OF_IMAGES}
    if encoders:
        # Their arrays stay, and may be replaced by embeddings of the new images.
        _schema.write_json(table, _schema.FORMER_ENCODERS, dict.fromkeys(encoders, True))
