"""CMRCNet and BLEEP as predictors."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Self

import numpy as np

from img2gene._errors import Img2GeneError
from img2gene.models.centring import check_centring
from img2gene.models.cmrcnet.fitted import FittedCMRCNet
from img2gene.models.cmrcnet.fitting import CMRCNetFitting
from img2gene.models.cmrcnet.network import check_stored
from img2gene.models.cmrcnet.parameters import CMRCNetParameters
from img2gene.models.data import TrainingData
from img2gene.models.networks.fitting import NetworkPredictor
from img2gene.models.reference_bank import Neighbors, ReferenceBank, check_size
from img2gene.models.row_blocks import Rows
from img2gene.models.stored import plain_parameters
from img2gene.models.uncertainty.held_out import HeldOut

_BLEEP: dict[str, Any] = {
    "output": "retrieval",
    "ridge": False,
    "contrast": 1.0,
    "reconstruction": 0.0,
    "regression": 0.0,
    "temperature": 1.0,
    "keys": "expression",
}


def with_defaults(changes: dict[str, Any]) -> inspect.Signature:
    """The signature of the parameters with some other defaults."""
    signature = inspect.signature(CMRCNetParameters)
    parameters = [
        part.replace(default=changes.get(name, part.default))
        for name, part in signature.parameters.items()
        # A preset fills in what is not passed, and these defaults are passed.
        if name != "preset"
    ]
    return signature.replace(parameters=parameters)


class CMRCNet(NetworkPredictor):
    """Contrastive learning and cross-modal mask reconstruction on frozen embeddings, with retrieval and regression.

    Image and expression of the training spots are brought into one space (contrastive loss with soft targets), while masked
    image tokens are restored with the help of tokens made of expression. A new spot is predicted by the mean expression of
    the ``k`` training spots that are nearest in that space (*retrieval*), and by a linear head on its embedding
    (*regression*). A *mixture* of a ridge and both has weights from held-out parts of the training data.

    ŷ = ȳ_train + w_1 ridge + w_2 retrieval + w_3 regression

    The publication has retrieval alone (``preset="paper"``). Between two breast-cancer patients the mixture was
    behind the ridge (docs/guide/cmrcnet.md).

    Parameters
    ----------
    output
        ``"mixture"``, ``"retrieval"`` or ``"regression"``.
    ridge
        Whether ``"ridge"`` is part of the mixture.
    contrast, reconstruction, regression
        Weights of the losses (:class:`~img2gene.models.cmrcnet.objective.Objective`); 0 leaves a part out.
    temperature
        τ of the contrastive loss.
    mask
        Share of the elements of the image tokens that are masked.
    k
        Training spots that a retrieval averages.
    weighting
        ``"uniform"``, or ``"similarity"``: in proportion to the cosine.
    keys
        Key of a training spot in the bank: the embedding of its ``"image"``, of its ``"expression"``, or the sum of ``"both"``.
    exclude
        For spots of a section that is in the bank: leave out that ``"section"``, the whole ``"group"`` (usually patient), or
        ``"none"``. Needs two sections or groups to train on.
    center
        ``"section"`` refers features and labels to the mean of their section; ``"none"`` to that of the training data.
    n_models
        Members of the ensemble, which are trained in one batched pass; cosines and labels are averaged over them.
    n_components
        Principal components of the embedding that the network sees.
    n_gene_tokens, dim, heads, dropout
        Tokens made of expression, width of tokens and shared space, attention heads, dropout on the image side.
    batch_size, learning_rate, final_learning_rate, weight_decay, max_epochs, patience
        Of the training (AdamW, learning rate falling along a cosine); ``max_epochs`` None is chosen from the number of spots;
        ``patience`` counts validations. The paper: 64, 1e-4, 1e-5, 1e-3, 60, none.
    n_validations
        Inner folds that are validated on: the first chooses the epochs, the others the weights (a single one both); 0 trains for ``max_epochs`` and weighs all parts equally.
    preset
        ``"paper"``: weights, temperature, keys and training of the publication; parameters that you pass replace its values.
    accelerator, devices, precision
        As in Lightning's trainer; ``"auto"`` takes ``img2gene.settings.device``. With n devices, n processes of this computer
        train together, on the CPU, too: each step follows the mean gradient of n batches, so results depend on n, as they do
        on ``batch_size``.
    checkpoint_dir
        Folder that an interrupted fit goes on from when it is called again with the same data and parameters.

    References
    ----------
    Liu, Eckstein, Wang, Feuerhake, Merhof: "Spatial Transcriptomics Expression Prediction from Histopathology Based on
    Cross-Modal Mask Reconstruction and Contrastive Learning", Medical Image Analysis 108:103889, arXiv:2506.08854.
    """

    name: ClassVar[str] = "cmrcnet"
    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    dtypes: ClassVar[dict[str, str]] = FittedCMRCNet.dtypes
    __signature__: ClassVar[inspect.Signature] = inspect.signature(CMRCNetParameters)

    def __init__(self, *args: Any, **parameters: Any) -> None:
        self.parameters = CMRCNetParameters.of(*args, **parameters)
        self.parameters.check()
        self.fitted: FittedCMRCNet | None = None
        self.report: dict[str, Any] = {}

    def fit(self, data: TrainingData, *, seed: int) -> None:
        """Validate on parts of the training data, choose epochs and weights, then fit to all of it and fill the bank."""
        self._fit(data, seed)

    def fit_held_out(self, data: TrainingData, *, seed: int) -> HeldOut | None:
        """Fit, and predict the spots that were validated on; further folds are left out if these are fewer than three."""
        return self._fit(data, seed).held_out()

    def _fit(self, data: TrainingData, seed: int) -> CMRCNetFitting:
        check_centring(data.sections, self.parameters.center)
        check_size(self.parameters.k, len(data.labels))
        self._check_exclusion(data)
        fitting = CMRCNetFitting(self.parameters, data, seed)
        self.fitted, self.report = fitting.run()
        return fitting

    def _check_exclusion(self, data: TrainingData) -> None:
        """Raise if the exclusion would leave no reference spots for the training sections."""
        kind = self.parameters.exclude
        unused = kind == "none" or self.parameters.output == "regression"
        names = [] if unused else np.unique(getattr(data, f"{kind}s")).tolist()
        if len(names) == 1:
            raise Img2GeneError(
                f"exclude={kind!r} leaves out a spot's own {kind}, but {names[0]} is the only {kind} to train on: nothing would be "
                "left to predict its spots from. Train on others too, or pass exclude='none'."
            )

    def predict(self, features: np.ndarray, sections: np.ndarray, *, tokens: np.ndarray | None = None) -> np.ndarray:
        """Labels float32 (n_spots, n_genes)."""
        return self.trained.predict(features, sections, tokens)

    def prepare(
        self,
        features: np.ndarray,
        sections: np.ndarray,
        *,
        tokens: np.ndarray | None = None,
        with_spread: bool = False,
    ) -> Rows:
        """Project all features; return a function that predicts a slice of rows."""
        return self.trained.prepare(features, sections, tokens)

    def reference_bank(self) -> ReferenceBank:
        """The training spots that predictions are retrieved from."""
        return self.trained.bank

    def neighbors(
        self,
        features: np.ndarray,
        sections: np.ndarray,
        *,
        k: int,
        tokens: np.ndarray | None = None,
        excluded: np.ndarray | None = None,
        by: str = "group",
    ) -> Neighbors:
        """The ``k`` spots of the bank nearest to each spot, outside the groups or sections in ``excluded``."""
        queries, _ = self.trained.embed(features, sections, tokens, regress=False)
        return self.trained.bank.nearest(queries, k, excluded=excluded, by=by)

    @classmethod
    def array_shapes(cls, config: dict[str, Any]) -> dict[str, tuple[str | int, ...]]:
        """Shapes of the arrays that go with a configuration."""
        return FittedCMRCNet.array_shapes(config)

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """Restore a fitted predictor."""
        model = cls(**plain_parameters(config["parameters"], cls.__signature__.parameters))
        check_stored(config, model.parameters)
        model.report = config["report"]
        model.fitted = FittedCMRCNet.from_state(config, arrays)
        return model


class Bleep(CMRCNet):
    """Contrastive learning alone, with retrieval: CMRCNet without reconstruction, regression and ridge.

    It takes the parameters of :class:`CMRCNet`, with other defaults.

    References
    ----------
    BLEEP: Xie et al., "Spatially Resolved Gene Expression Prediction from Histology Images via Bi-modal Contrastive
    Learning", NeurIPS 2023.
    """

    name: ClassVar[str] = "bleep"
    __signature__: ClassVar[inspect.Signature] = with_defaults(_BLEEP)

    def __init__(self, *args: Any, **parameters: Any) -> None:
        # The signature holds the defaults of BLEEP, so they need no second list.
        bound = self.__signature__.bind(*args, **parameters)
        bound.apply_defaults()
        super().__init__(**bound.arguments)
