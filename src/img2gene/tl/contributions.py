"""What the pathway context adds to the prediction of a gene."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from img2gene._checks import Arguments
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, MissingKeyError, near
from img2gene._study.entrance import open_study, report_off_tissue
from img2gene._study.expression import in_tissue
from img2gene._study.model_inputs import model_inputs
from img2gene.models import Model
from img2gene.tl._arguments import check_model
from img2gene.tl._prediction.values import resolve_model

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from img2gene.models.img2gene import Img2Gene
    from img2gene.models.img2gene.fitted import FittedImg2Gene

logger = logging.getLogger(__name__)


@fill_parameters
def pathway_contributions(
    sdata: SpatialData,
    gene: str,
    *,
    model: Model | str | Path | None = None,
    key: str = "img2gene",
    table_key: str = "table",
) -> pd.DataFrame:
    """How much each pathway adds to the prediction of a gene, in every spot.

    Img2Gene predicts pathway scores p̂ from the image, and attends to one token for each pathway. What token j adds to gene g
    in spot i is a term of a sum,

    contribution = (1 − s) · w_f · σ · mean over members of a_ij p̂_ij (v_j · W_g)

    with attention a, value v_j, head weights W_g, the network's weight w_f, the share s of the ridge in far sections and the typical SD
    σ of the labels. The terms of a spot add up to its prediction less the one without pathway context.

    They tell what this model does, not what the pathway does in the tissue: pathways with similar scores can stand in for each
    other, and what ridge, own view and retrieval predict does not pass through them.

    Parameters
    ----------
    sdata
        Study embedded as for the training.
    gene
        Gene that the model predicts.
    %(model_any)s
    %(key_model)s
    table_key
        Table whose spots are looked at.

    Returns
    -------
    One row per spot, one column per pathway, in the units of the labels; NaN off the tissue (0 in ``obs["in_tissue"]``).
    Nothing is written.

    Raises
    ------
    MissingKeyError
        No such model, or it does not predict this gene.
    Img2GeneError
        The model is no Img2Gene, was trained without a pathway context, or predicts counts.

    Examples
    --------
    >>> import img2gene as ig
    >>> contributions = ig.tl.pathway_contributions(sdata, "ERBB2")  # doctest: +SKIP
    >>> contributions.abs().mean().nlargest(5)  # doctest: +SKIP
    """
    check = Arguments()
    gene, key, model = check.text("gene", gene), check.text("key", key), check_model(check, model)
    study = open_study(check, sdata, table_key)
    check.raise_all()
    trained = resolve_model(study, model, key)
    names, fitted = _with_context(trained)
    column = _gene_column(trained, gene)
    if not fitted.weights[2]:
        logger.warning("validation gave the network no weight: pathways contribute nothing, all contributions are 0")
    rows = in_tissue(study.table)
    report_off_tissue(study)
    inputs = model_inputs(study, trained).take(rows)
    positions, tokens = np.asarray(inputs.extra["positions"]), inputs.extra.get("tokens")
    values = np.full((study.n_obs, len(names)), np.nan, dtype=np.float32)
    values[rows] = fitted.pathway_contributions(
        trained.seen(inputs.features), inputs.sections, positions, tokens, column
    )
    return pd.DataFrame(values, index=study.table.obs_names.copy(), columns=pd.Index(names, name="pathway"))


def _with_context(model: Model) -> tuple[list[str], FittedImg2Gene]:
    """Names of a model's pathways and what it was fitted to; other models are refused."""
    from img2gene.models.img2gene import Img2Gene

    again = "Run `img2gene.pp.score_pathways(sdata)` and then `img2gene.tl.fit(sdata, 'img2gene')`."
    if not isinstance(model.predictor, Img2Gene):
        raise Img2GeneError(f"The model `{model.name}` has no pathway context; `img2gene` has one. {again}")
    predictor: Img2Gene = model.predictor
    if predictor.fitted is None or not predictor.fitted.architecture.n_pathways:
        raise Img2GeneError(f"The model was trained without a pathway context. {again}")
    if predictor.fitted.architecture.counts:
        raise Img2GeneError(
            "The model predicts log rates of counts, which do not add up in units of the labels. "
            "Fit with `objective='gaussian'` for contributions."
        )
    return list(predictor.context["names"]), predictor.fitted


def _gene_column(model: Model, gene: str) -> int:
    if gene in model.genes:
        return model.genes.index(gene)
    raise MissingKeyError(f"The model does not predict `{gene}` ({near(gene, model.genes)}).")
