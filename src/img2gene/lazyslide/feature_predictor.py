"""A trained model as a feature predictor of LazySlide."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError

if TYPE_CHECKING:
    from img2gene.models import Model

# Earlier releases show every model a part of the slide at a time.
_NEEDED = (0, 13)


class FeaturePredictor:
    """Predicts the expression of all tiles of a slide from their features, as LazySlide's ``feature_prediction`` asks.

    :func:`img2gene.lazyslide.predictor` makes it of a model.

    Attributes
    ----------
    name
        Name of the model, which LazySlide calls the table of predictions after.
    features_model_name
        Encoder whose features the model takes.
    whole_slide
        True: the model must see all tiles at once.
    needs_coords
        Whether the model uses the positions of the tiles.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.lazyslide.FeaturePredictor.whole_slide
    True
    """

    whole_slide = True

    def __init__(self, model: Model, sections: np.ndarray | None, mpp: float | None) -> None:
        self.model, self.name = model, model.name
        self.features_model_name = model.inputs["name"].removeprefix("X_")
        self.needs_coords = "positions" in model.extra_inputs
        self._sections, self._mpp = sections, mpp

    def predict(self, features: Any, coords: Any = None) -> dict[str, np.ndarray]:
        """Predict all tiles of a slide.

        Parameters
        ----------
        features
            (n_tiles, width) of all tiles.
        coords
            (n_tiles, 2: x, y) of the tiles in pixels of the full resolution.

        Returns
        -------
        For each gene of the model, float32 (n_tiles,), on the scale of :func:`img2gene.tl.predict`: that of the training
        labels, or unlimited depth for a model that was fitted with ``debias="depth"``.
        """
        import torch

        from img2gene._study.matrices import in_memory

        values = in_memory(features)
        values = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
        sections = np.repeat("slide", len(values)) if self._sections is None else self._sections
        if len(sections) != len(values):
            raise Img2GeneError(
                f"The predictor got {len(values)} tiles, but `sections` names {len(sections)}: it must see the whole slide at once. "
                "Name a section for each tile, and update LazySlide if it shows a part of them."
            )
        positions = None
        if self.needs_coords:
            if coords is None or self._mpp is None:
                raise Img2GeneError(
                    f"The model `{self.name}` needs the positions of the tiles: pass `coords=`, and `mpp=`."
                )
            positions = np.asarray(coords, dtype=np.float64)[:, ::-1] * self._mpp
        # LazySlide may compute in half precision, in which the weights were not trained.
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            predicted = self.model.predict(values, sections, positions=positions)
        if self.model.depth_scale is not None and self.model.labels.get("depth") == _schema.UNLIMITED:
            predicted = self.model.depth_scale.convert(predicted, np.inf)
        return dict(zip(self.model.genes, predicted.T, strict=True))

    def to(self, device: Any) -> FeaturePredictor:
        """Stay where the model is: it chooses its device by ``img2gene.settings.device``."""
        return self

    def get_transform(self) -> None:
        """No image enters the model."""
        return None

    def try_compile(self, **options: Any) -> None:
        """Nothing is compiled."""

    def __repr__(self) -> str:
        return f"FeaturePredictor({self.model!r})"


def predictor(model: Model | str | Path, *, mpp: float | None = None, sections: Any = None) -> FeaturePredictor:
    """Make a trained model a predictor for LazySlide's ``zs.tl.feature_prediction``.

    Parameters
    ----------
    model
        Model that was trained on features of LazySlide (:func:`img2gene.lazyslide.add_features`), or the path of one.
    mpp
        Microns per pixel of the slide, ``wsi.properties.mpp``. Only models that use the positions of spots need it.
    sections
        Name of the section of each tile (n_tiles,), if a slide holds several sections, such as
        ``wsi.shapes["tiles"]["tissue_id"]``. None takes the slide as one section.

    Returns
    -------
    An object to pass as ``model=``. Its ``whole_slide`` is True, so LazySlide passes all tiles at once: models compare a tile
    with the mean of its section, and batches would move every prediction.

    Raises
    ------
    Img2GeneError
        The model was fine-tuned with its encoder or takes tokens, which feature tables do not have; ``mpp`` is missing; or
        LazySlide is older than 0.13, which shows models a part of the slide at a time.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "ridge", validate_on=["P3"])
    >>> predictor = ig.lazyslide.predictor(ig.get.model(sdata))
    >>> predictor.whole_slide, predictor.features_model_name
    (True, 'color-texture')
    >>> zs.tl.feature_prediction(wsi, predictor)  # doctest: +SKIP
    """
    from img2gene.models import Model

    check = Arguments()
    mpp = check.number("mpp", mpp, above=0, optional=True)
    if isinstance(model, str | Path):
        from img2gene.io import load_model

        with check.collect():
            model = load_model(model)
    elif not isinstance(model, Model):
        check.messages.append(
            f"model={shown(model)}: expected a model, such as `img2gene.get.model(sdata)`, or its path."
        )
    if isinstance(model, Model):
        check.messages += _model_problems(model, mpp)
    names = None
    if sections is not None:
        names = np.asarray(sections)
        if names.ndim != 1 or not len(names) or names.dtype.kind not in "iuUSO":
            check.messages.append(f"sections: expected a name for each tile, got shape {names.shape} of {names.dtype}.")
        else:
            names = names.astype(str)
    check.raise_all()
    _check_release()
    return FeaturePredictor(model, names, mpp)


def _model_problems(model: Model, mpp: float | None) -> list[str]:
    """List what the model needs that LazySlide does not give."""
    problems = []
    if "finetuned" in model.inputs:
        problems.append(
            f"The model `{model.name}` was fine-tuned with its encoder, so features of LazySlide do not fit it. Predict with "
            "`img2gene.tl.predict`, or train without `finetune=`."
        )
    if "tokens" in model.extra_inputs:
        problems.append(
            f"The model `{model.name}` takes tokens, which feature tables of LazySlide do not have. Train on features without "
            "tokens."
        )
    if "positions" in model.extra_inputs and mpp is None:
        problems.append(f"The model `{model.name}` uses positions in µm: pass `mpp=wsi.properties.mpp`.")
    return problems


def _check_release() -> None:
    try:
        installed = version("lazyslide")
    except PackageNotFoundError:
        # Another program may call the predictor.
        return
    numbers = tuple(int(part) for part in installed.split(".")[:2] if part.isdigit())
    if numbers < _NEEDED:
        raise Img2GeneError(
            f"LazySlide {installed} shows models a part of the slide at a time, so predictions would depend on `batch_size`. Update it: "
            f"pip install 'lazyslide>={'.'.join(map(str, _NEEDED))}'."
        )
