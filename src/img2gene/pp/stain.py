"""Give the images of a study one stain."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._checks import Arguments, shown
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, MissingKeyError, Problems, listing, missing
from img2gene._study.stain import METHODS, Sample, is_reference, normalised_scales
from img2gene._study.stain_marks import MARK, is_normalised, with_stain_marks

if TYPE_CHECKING:
    from spatialdata import SpatialData
    from squidpy.experimental.im import StainReference

logger = logging.getLogger(__name__)


def fit_stain(sdata: SpatialData, image_key: str, *, method: str = "macenko") -> StainReference:
    """Measure the stain of an image, to which :func:`img2gene.pp.normalize_stain` brings others.

    Parameters
    ----------
    sdata
        Object with the image.
    image_key
        H&E image, RGB.
    method
        ``"macenko"`` and ``"vahadane"`` find the colours of the two dyes, ``"reinhard"`` means and SDs of the colours.

    Returns
    -------
    ``squidpy.experimental.im.StainReference``.

    Raises
    ------
    MissingKeyError
        There is no such image.
    Img2GeneError
        The image is not RGB or shows no tissue, or no dyes can be found in it.

    References
    ----------
    Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009. Vahadane et al.,
    "Structure-preserving color normalization and sparse stain separation", IEEE TMI 2016. Reinhard et al., "Color transfer
    between images", 2001. All as in squidpy.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.fit_stain(sdata, "P1_S1_image", method="reinhard").mu.shape
    (3,)
    """
    check = Arguments()
    check.text("image_key", image_key)
    check.choice("method", method, METHODS)
    _check_images(check, sdata, image_key)
    check.raise_all()
    return Sample.of(sdata, image_key).reference(method)


@fill_parameters
def normalize_stain(
    sdata: SpatialData,
    reference: str | StainReference,
    *,
    method: str | None = None,
    images: str | list[str] | None = None,
    key_added: str = "normalized",
    inplace: bool = True,
) -> dict[str, Any] | None:
    """Bring images to the stain of a reference, and store them as new images.

    The colours come from the tissue of about half a million pixels of each image. What is no tissue stays as it is. Large
    images are normalised chunk by chunk when they are read.

    Parameters
    ----------
    sdata
        Object with the images.
    reference
        Image of ``sdata`` whose stain the others get, or what :func:`img2gene.pp.fit_stain` returned, so that later
        slides get the same stain.
    method
        As in :func:`img2gene.pp.fit_stain`. None takes ``"macenko"`` if ``reference`` is an image, and otherwise the method that
        it was fitted by; another one is refused.
    images
        Images to normalise; None takes all but those that were normalised, also before the study was written and read. A
        reference among them is normalised, too, so that all go through the same steps.
    key_added
        ``images["<image>_<key_added>"]`` is written; a name that is taken is refused.
    %(inplace_result)s

    Returns
    -------
    None, or the images by name: uint8 RGB with the size, scales and transformations of the original, which is never changed.
    Extract patches of them by ``images=``.

    Raises
    ------
    MissingKeyError
        An image is missing.
    Img2GeneError
        An image is not RGB or shows no tissue, no dyes can be found in it, a name is taken, or ``reference`` was fitted by another
        method. Nothing is written then.

    Notes
    -----
    Macenko and Vahadane change the colours of the dyes, not their amounts; Reinhard changes both. What this does for
    predictions, see [stain](../guide/stain.md).

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.normalize_stain(sdata, "P1_S1_image", method="reinhard")
    >>> images = {f"{section}_spots": f"{section}_image_normalized" for section in ("P1_S1", "P2_S1")}
    >>> ig.pp.extract_patches(sdata, images=images)
    """
    check = Arguments()
    names = None if images is None else check.names("images", images)
    if method is not None:
        check.choice("method", method, METHODS)
    check.flag("inplace", inplace)
    with check.collect():
        _schema.check_name(key_added, "key_added")
    _check_reference(check, reference, method)
    _check_images(check, sdata, names, reference)
    check.raise_all()
    chosen = [name for name in sdata.images if not is_normalised(sdata, name)] if names is None else names
    targets = {name: f"{name}_{key_added}" for name in chosen}
    if not chosen:
        raise Img2GeneError(f"No image is left to normalise (images: {listing(sdata.images)}). Name them: `images=`.")
    if taken := [target for target in targets.values() if target in sdata]:
        raise Img2GeneError(
            f"{listing(taken)} exist already. Choose another `key_added`, or delete them: `del sdata[…]`."
        )
    normalised, problems = {}, Problems()
    if isinstance(reference, str):
        reference = Sample.of(sdata, reference).reference(method or METHODS[0])
    for name, target in targets.items():
        with problems.collect():
            normalised[target] = _normalised(sdata, name, reference)
    problems.raise_all()
    if not inplace:
        return normalised
    with _schema.all_or_nothing(sdata):
        for target, image in normalised.items():
            sdata.images[target] = image
        sdata.attrs = with_stain_marks(sdata)
    logger.info("wrote images %s", listing(normalised))
    return None


def _check_reference(check: Arguments, reference: Any, method: Any) -> None:
    """Check that a reference is an image or a fitted stain, and that it was fitted by the method."""
    if isinstance(reference, str):
        return
    if not is_reference(reference):
        check.messages.append(
            f"reference={shown(reference)}: expected the name of an image, or what `img2gene.pp.fit_stain` returned."
        )
    elif method is not None and method != reference.method:
        check.messages.append(
            f"method={shown(method)}: the reference was fitted by {reference.method!r}. Leave `method` out, or fit another reference: "
            f"`img2gene.pp.fit_stain(…, method={shown(method)})`."
        )


def _check_images(check: Arguments, sdata: Any, *names: Any) -> None:
    """Check that all images exist; what is no name, and no list of names, has its own message."""
    if not hasattr(sdata, "images"):
        check.messages.append(f"Expected a SpatialData with images, got {type(sdata).__name__}.")
        return
    listed = [name for part in names for name in (part if isinstance(part, list) else [part])]
    for name in dict.fromkeys(name for name in listed if isinstance(name, str)):
        if name not in sdata.images:
            with check.collect():
                raise MissingKeyError(missing(name, "sdata.images", sdata.images))


def _normalised(sdata: SpatialData, name: str, reference: StainReference) -> Any:
    """Normalise an image with its scales and transformations."""
    import xarray as xr
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import get_transformation

    arrays = normalised_scales(sdata, Sample.of(sdata, name), reference)
    rgb = ["r", "g", "b"]
    systems = dict(get_transformation(sdata.images[name], get_all=True))
    if not hasattr(sdata.images[name], "children"):
        image = Image2DModel.parse(arrays[0], dims=("c", "y", "x"), c_coords=rgb, transformations=systems)
        image.attrs[MARK] = reference.method
        return image
    levels = {}
    for number, array in enumerate(arrays):
        factors = np.array(arrays[0].shape[1:]) / array.shape[1:]
        image = Image2DModel.parse(array, dims=("c", "y", "x"), c_coords=rgb, transformations=_scaled(systems, factors))
        image.attrs[MARK] = reference.method
        levels[f"scale{number}"] = xr.Dataset({"image": image})
    return xr.DataTree.from_dict(levels)


def _scaled(systems: dict[str, Any], factors: np.ndarray) -> dict[str, Any]:
    """Transformations of a scale: to the full resolution first."""
    from spatialdata.transformations import Scale, Sequence

    if (factors == 1).all():
        return systems
    return {name: Sequence([Scale(factors, ("y", "x")), system]) for name, system in systems.items()}
