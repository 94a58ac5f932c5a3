"""Train a model on the sections of a study and store it in the object."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema, encoders
from img2gene._checks import Arguments
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, LeakageError, Problems, listing
from img2gene._study.depth import MIN_DEPTH
from img2gene._study.entrance import open_study
from img2gene._study.expression import layer_problems
from img2gene._study.finetuning import StudyFineTuning, check_images, identity_for
from img2gene._study.inputs import Inputs, choose_encoder, embedding, tokens, without_tokens
from img2gene._study.panel import (
    Genes,
    check_genes,
    check_panel,
)
from img2gene._study.replaced import remove_scores
from img2gene._study.splits import Split, split
from img2gene._study.study import Study
from img2gene.models import Model, Predictor
from img2gene.models.predictor import declared_inputs
from img2gene.tl._arguments import (
    as_plain,
    check_between,
    check_flags,
    check_gene_choice,
    check_name,
    check_seed,
    check_store,
    checked_features,
    checked_loggers,
    create_predictor,
    later_step,
    open_features,
)
from img2gene.tl._debias import checked_debias
from img2gene.tl._training import TrainingRun

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from img2gene.models.networks.finetuning import FineTuningParameters

logger = logging.getLogger(__name__)


@fill_parameters
def fit(
    sdata: SpatialData,
    model: str = "img2gene",
    *,
    genes: Genes = None,
    layer: str | None = None,
    groups: str = "patient",
    train_on: Iterable[str] | None = None,
    validate_on: Iterable[str] | None = None,
    encoder: str | None = None,
    features: str | None = None,
    seed: int | None = None,
    key_added: str = "img2gene",
    table_key: str = "table",
    allow_leakage: bool = False,
    allow_single_section: bool = False,
    min_depth: float = MIN_DEPTH,
    debias: str | Iterable[str] | None = None,
    finetune: str | None = None,
    finetune_epochs: int = 10,
    finetune_learning_rate: float = 1e-5,
    finetune_batch_size: int = 32,
    uncertainty: bool = True,
    level: float = 0.9,
    logger: Any = None,
    inplace: bool = True,
    **params: Any,
) -> Model | None:
    """Train a model to predict expression from the embedded patches.

    Everything is fitted to the training sections alone: scaling, components, penalty, gene statistics and, with
    ``genes=<int>``, the gene panel.

    Parameters
    ----------
    sdata
        Study on which :func:`img2gene.pp.embed_patches` was run; for fine-tuning :func:`img2gene.pp.extract_patches` does.
    model
        Registered model, see :func:`img2gene.models.list`. The default trains networks; ``"ridge"`` takes seconds.
    genes
        Names of the genes to predict, or the number of genes with the highest mean in the training sections. By default
        the panel of :func:`img2gene.pp.select_genes` if there is one, else every gene that varies in the training sections.
    layer
        Layer with labels on a scale of your own, which are taken as they are; raw counts belong in X. By default labels are ``log1p(1e4 · counts / library size)`` of X.
    groups
        Column of obs that splits are made by: ``"patient"``, or ``"section"`` (the region where there is no such column).
    train_on, validate_on
        Values of ``groups`` that are trained on (default: all others) and held out (default: none).
    encoder
        Which embedding, if several are stored. With ``finetune``, which encoder: by default that of the stored embedding,
        without one the offline default.
    %(features)s
    seed
        Seed of everything random; None takes ``img2gene.settings.seed``.
    key_added
        Name the model is stored under.
    %(table_key_embedding)s
    allow_leakage
        Train although a patient is on both sides of the split; the result is marked.
    allow_single_section
        Train although the study has only one section, so that nothing can be held out.
    %(min_depth)s
    debias
        What is done against bias: one or several of ``"stain"`` (features are shrunk along the directions in which restained
        patches move; needs ``restained=40`` of :func:`img2gene.pp.embed_patches`), ``"level"`` (levels of sections are
        read off their mean features, as far as left-out groups support it), ``"depth"`` (predictions are log1p(1e4 · share of
        the gene), without the noise of counting, unless :func:`img2gene.tl.predict` is told otherwise), and one effect of the
        publication (``"TE"``, ``"TDE"``, ``"TIE"``, ``"NDE"``, ``"NIE"``). None does nothing, because no part passed the rules
        for a default. What was done, and its measured effect, is in ``report["debias"]`` of the model.
    finetune
        Adapt the encoder to the training sections first: ``"last"`` trains the last stage of its network, ``"all"`` the
        whole of it; None leaves it as it is. The model keeps the weights that changed, and is fitted to features of the
        adapted encoder, which are not stored; no embedding needs to be.
        Fine-tuning on more than a few hundred spots needs a GPU.
    finetune_epochs
        Largest number of epochs of fine-tuning. The epoch with the highest correlation on a held-out part (a group, if
        there are several) of the training data is kept.
    finetune_learning_rate
        Learning rate of fine-tuning.
    finetune_batch_size
        Spots for each step of fine-tuning, all of one section.
    uncertainty
        Calibrate predictive SD and intervals on groups of the training data that are left out in turn (ridge and networks
        have them at hand, others are fitted up to five times more), and keep how far training embeddings lie apart.
    level
        Nominal coverage of the intervals, between 0 and 1.
    logger
        Logger of Lightning, or several, such as ``CSVLogger``, ``TensorBoardLogger`` or ``WandbLogger`` of
        ``lightning.pytorch.loggers``. It receives the losses and the validation score of every epoch, named
        ``<training run>/<value>`` as in :func:`img2gene.pl.training`. Models that are not trained in epochs report nothing.
    inplace
        If False, the model is returned and not stored.
    **params
        Parameters of the model.

    Returns
    -------
    None, or the :class:`~img2gene.models.Model`. It is stored in ``uns[key_added]`` as JSON and safetensors.

    Raises
    ------
    Img2GeneError
        All problems of the input at once: no embedding, no such gene, layer or group, NaN, negative or already normalised
        counts, library sizes below the counts, raw counts in ``layer``, duplicate genes or spots, genes that do not vary, fewer than two sections, an encoder that cannot be
        fine-tuned, or no image to fine-tune it on. Or the trained model returns no usable predictions of its training spots.
    LeakageError
        A patient, or a gene panel chosen on held-out sections, is on both sides of the split.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "ridge", validate_on=["P3"])
    >>> ig.get.model(sdata).report["sections"]
    ['P1_S1', 'P2_S1']
    """
    check = Arguments()
    check_flags(check, allow_leakage=allow_leakage, uncertainty=uncertainty, inplace=inplace)
    check_flags(check, allow_single_section=allow_single_section)
    check_name(check, "key_added", key_added)
    groups, layer = check.text("groups", groups), check.text("layer", layer, optional=True)
    encoder, genes = check.text("encoder", encoder, optional=True), check_gene_choice(check, genes)
    features = checked_features(check, features, encoder=encoder, finetune=finetune)
    level, min_depth = check_between(check, "level", level), check.number("min_depth", min_depth, 0, 1)
    seed, loggers = check_seed(check, seed), checked_loggers(check, logger)
    trained, held_out = check.labels("train_on", train_on), check.labels("validate_on", validate_on)
    options = _options(check, finetune, finetune_epochs, finetune_learning_rate, finetune_batch_size)
    debiased = checked_debias(check, debias, model, params)
    predictor = _predictor(check, model, params)
    study = open_features(check, open_study(check, sdata, table_key), features)
    with later_step(check):
        check.messages += layer_problems(study.table, layer, study.name)
    if inplace is not False:
        check_store(check, study.stored_table, "key_added", key_added)
    with later_step(check):
        inputs = _inputs(study, predictor, encoder, features, options)
    with later_step(check):
        # Positions are read here so that their problems are part of the one error.
        _ = study.positions
    with later_step(check):
        division = split(study, groups, train_on=trained, validate_on=held_out)
        check_split(study, division, groups, allow_leakage, allow_single_section)
    with later_step(check):
        check_genes(study, genes)
    check.raise_all()
    if genes is None:
        check_panel(study, division.held_out, allow_leakage=allow_leakage)
    run = TrainingRun(study, layer, groups, division, min_depth, seed, debiased, loggers)
    result = run.train(predictor, inputs, genes, level if uncertainty else None)
    if not inplace:
        return result
    _store(study, result, key_added)
    return None


def _options(check: Arguments, finetune: Any, epochs: Any, rate: Any, batch: Any) -> FineTuningParameters | None:
    """Check the options of fine-tuning; None without fine-tuning."""
    n_problems = len(check.messages)
    rate = check.number("finetune_learning_rate", rate, above=0)
    epochs, batch = check.whole("finetune_epochs", epochs, 1), check.whole("finetune_batch_size", batch, 1)
    mode = check.text("finetune", finetune, optional=True)
    if not isinstance(mode, str):
        return None
    from img2gene.models.networks.finetuning import FineTuningParameters

    with check.collect():
        # Numbers that cannot be used were named above.
        numbers = (epochs, rate, batch) if len(check.messages) == n_problems else ()
        return FineTuningParameters(mode, *numbers)
    return None


def _predictor(check: Arguments, model: Any, params: dict[str, Any]) -> Any:
    """Make the model to train; None if that is not possible."""
    name = check.text("model", model)
    if isinstance(name, str):
        with check.collect():
            return create_predictor(name, as_plain(params))
    return None


def _store(study: Study, model: Model, key: str) -> None:
    from img2gene.io.model_store import write_model

    with _schema.all_or_nothing(study.stored_table):
        remove_scores(study.stored_table, key, model.fingerprint)
        write_model(study.stored_table, model, key)
    logger.info("stored %r in uns[%r]", model, key)


def check_split(study: Study, division: Split, groups: str, allow_leakage: bool, allow_single_section: bool) -> None:
    """Refuse a study of one section, and patients on both sides of the split, unless the user allows them."""
    sections = np.unique(study.sections)
    if len(sections) < 2 and not allow_single_section:
        raise Img2GeneError(
            f"The study has one section only ({sections[0]}), so no section can be held out and no honest score is possible. "
            "Join more with `img2gene.io.concat_sections`, or pass `allow_single_section=True` to train regardless."
        )
    if division.leakage is None and division.held_out.any():
        logger.warning('no obs["patient"]: whether one patient is on both sides of the split cannot be checked')
    if division.leakage and not allow_leakage:
        raise LeakageError(
            f"Patients {listing(division.leakage)} are on both sides of the split by {groups}. Sections of one patient are not "
            'independent: hold out whole patients (`groups="patient"`), or pass `allow_leakage=True`, which marks the result.'
        )


def _inputs(
    study: Study,
    predictor: Predictor,
    encoder: str | None,
    features: str | None,
    options: FineTuningParameters | None,
) -> Inputs | StudyFineTuning:
    """Read the features that a model is trained on, or prepare the fine-tuning that computes them."""
    if options is not None:
        return _finetuning(study, predictor, encoder, options)
    identity = choose_encoder(study, encoder, features)
    values = embedding(study, identity)
    if "tokens" not in declared_inputs(predictor):
        # Otherwise predictions would demand tokens that the model does not use.
        return Inputs(without_tokens(identity), values, None)
    return Inputs(identity, values, tokens(study, identity))


def _finetuning(
    study: Study, predictor: Predictor, encoder: str | None, options: FineTuningParameters
) -> StudyFineTuning:
    """Prepare fine-tuning; check that the encoder can be fine-tuned and that the images are there."""
    from img2gene.encoders.trainable import check_trainable

    problems = Problems()
    with problems.collect():
        identity = identity_for(study, encoder, tokens="tokens" in declared_inputs(predictor))
        check_trainable(encoders.get(identity["name"]))
    with problems.collect():
        check_images(study)
    problems.raise_all()
    return StudyFineTuning(study, identity, options)
