"""Train a model on the sections of a study and store it in the object."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema, encoders, models
from img2gene._errors import Img2GeneError, LeakageError, Problems, listing, raise_problems
from img2gene._study.expression import TARGET_SUM, gene_statistics, labels, layer_problems, library_size, name_problems
from img2gene._study.finetuning import StudyFineTuning, check_images, identity_for
from img2gene._study.inputs import Inputs, choose_encoder, embedding, positions, tokens, without_tokens
from img2gene._study.pathways import context_facts, fold_context
from img2gene._study.sections import group_labels, patient_labels, section_labels, section_names
from img2gene._study.splits import Split, split
from img2gene.models import Calibration, Model, Predictor, TrainingData, UsesPathways
from img2gene.models.predictor import declared_inputs
from img2gene.models.uncertainty.held_out import fit_held_out
from img2gene.settings import settings

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

Genes = Sequence[str] | int | None


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
    seed: int | None = None,
    key_added: str = "img2gene",
    table_key: str = "table",
    allow_leakage: bool = False,
    allow_single_section: bool = False,
    finetune: str | None = None,
    finetune_epochs: int = 10,
    finetune_learning_rate: float = 1e-5,
    finetune_batch_size: int = 32,
    uncertainty: bool = True,
    level: float = 0.9,
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
        Layer with labels on a scale of your own. By default labels are ``log1p(1e4 · counts / library size)`` of X.
    groups
        Column of obs that splits are made by: ``"patient"``, or ``"section"`` (the region where there is no such column).
    train_on, validate_on
        Values of ``groups`` that are trained on (default: all others) and held out (default: none).
    encoder
        Which embedding, if several are stored. With ``finetune``, which encoder: by default that of the stored embedding,
        without one the offline default.
    seed
        Seed of everything random; None takes ``img2gene.settings.seed``.
    key_added
        Name the model is stored under.
    table_key
        Table with counts and embedding.
    allow_leakage
        Train although a patient is on both sides of the split; the result is marked.
    allow_single_section
        Train although the study has only one section, so that nothing can be held out.
    finetune
        Adapt the encoder to the training sections first: ``"last"`` trains the last stage of its network, ``"all"`` the
        whole of it; None leaves it as it is. The model keeps the weights that changed, and is fitted to features of the
        adapted encoder, which are not stored; no embedding needs to be. Wants a GPU for more than a few hundred spots.
    finetune_epochs
        Largest number of epochs of fine-tuning; kept is the epoch with the highest correlation on a part (a group, where
        there are several) of the training data.
    finetune_learning_rate
        Learning rate of fine-tuning.
    finetune_batch_size
        Spots for each step of fine-tuning, all of one section.
    uncertainty
        Calibrate predictive SD and intervals on groups of the training data that are left out in turn (ridge and networks
        have them at hand, others are fitted up to five times more), and keep how far training embeddings lie apart.
    level
        Nominal coverage of the intervals, between 0 and 1.
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
        counts, duplicate genes or spots, genes that do not vary, fewer than two sections, an encoder that cannot be
        fine-tuned, or no image to fine-tune it on.
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
    _schema.check_name(key_added, "key_added")
    predictor = models.create(model, **params)
    table = _schema.get_table(sdata, table_key)
    problems = Problems(name_problems(table, table_key) + layer_problems(table, layer, table_key))
    problems.found += level_problems(level)
    with problems.collect():
        inputs: Inputs | StudyFineTuning
        if finetune is None:
            inputs = _inputs(table, predictor, encoder, table_key)
        else:
            how = (finetune, finetune_epochs, finetune_learning_rate, finetune_batch_size)
            inputs = _finetuning(sdata, predictor, encoder, table_key, how)
    with problems.collect():
        places = positions(table, table_key)
    with problems.collect():
        division = split(table, groups, train_on=train_on, validate_on=validate_on, table_key=table_key)
        _check_split(table, division, groups, table_key, allow_leakage, allow_single_section)
    with problems.collect():
        _check_genes(table, genes, table_key)
    problems.raise_all()
    plan = _Plan(table, table_key, layer, groups, division, settings.seed if seed is None else seed)
    if genes is None:
        plan.check_panel(allow_leakage)
    trained = plan.train(predictor, inputs, places, genes, level if uncertainty else None)
    if not inplace:
        return trained
    from img2gene.io.model_store import write_model

    write_model(table, trained, key_added)
    logger.info("stored %r in uns[%r]", trained, key_added)
    return None


def level_problems(level: float) -> list[str]:
    """What is wrong with the nominal coverage of intervals."""
    return [f"level={level!r}: expected a number between 0 and 1."] * (not 0 < level < 1)


def _check_split(
    table: AnnData, division: Split, groups: str, table_key: str, allow_leakage: bool, allow_single_section: bool
) -> None:
    sections = np.unique(section_labels(table, table_key))
    if len(sections) < 2 and not allow_single_section:
        raise Img2GeneError(
            f"The study has one section only ({sections[0]}), so nothing can be held out and no score would tell anything. "
            "Join more with `img2gene.io.concat_sections`, or pass `allow_single_section=True` to train regardless."
        )
    if division.leakage is None and division.held_out.any():
        logger.warning('no obs["patient"]: whether one patient is on both sides of the split cannot be checked')
    if division.leakage and not allow_leakage:
        raise LeakageError(
            f"Patients {listing(division.leakage)} are on both sides of the split by {groups}. Sections of one patient are not "
            'independent: hold out whole patients (`groups="patient"`), or pass `allow_leakage=True`, which marks the result.'
        )


def _check_genes(table: AnnData, genes: Genes, table_key: str) -> None:
    if genes is None:
        return
    if isinstance(genes, (int, np.integer)):
        if not 1 <= genes <= table.n_vars:
            raise Img2GeneError(f"genes={genes}: the table has {table.n_vars} genes.")
        return
    names = [genes] if isinstance(genes, str) else list(genes)
    absent = [name for name in names if name not in table.var_names]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    raise_problems(
        [
            f"Genes {listing(absent)} not found in `sdata['{table_key}'].var_names` (available: {listing(table.var_names)})."
        ]
        * bool(absent)
        + [f"Genes named twice: {listing(twice)}."] * bool(twice)
        + ["`genes` is empty."] * (not names)
    )


def _inputs(table: AnnData, predictor: Predictor, encoder: str | None, table_key: str) -> Inputs:
    identity = choose_encoder(table, encoder, table_key)
    features = embedding(table, identity, table_key)
    if "tokens" not in declared_inputs(predictor):
        return Inputs(without_tokens(identity), features, None)
    return Inputs(identity, features, tokens(table, identity, table_key))


def _finetuning(
    sdata: SpatialData, predictor: Predictor, encoder: str | None, table_key: str, how: tuple[str, int, float, int]
) -> StudyFineTuning:
    """Fine-tuning that is ready to run: of an encoder that can be, on images that are there."""
    from img2gene.encoders.trainable import check_trainable
    from img2gene.models.networks.finetuning import Options

    table = _schema.get_table(sdata, table_key)
    problems = Problems()
    with problems.collect():
        options = Options(*how)
    with problems.collect():
        identity = identity_for(table, encoder, table_key, tokens="tokens" in declared_inputs(predictor))
        check_trainable(encoders.get(identity["name"]))
    with problems.collect():
        check_images(sdata, table, table_key)
    problems.raise_all()
    return StudyFineTuning(sdata, table_key, identity, options)


@dataclass(frozen=True)
class _Plan:
    """One training run: which rows of which table, on which labels."""

    table: AnnData
    table_key: str
    layer: str | None
    groups: str
    division: Split
    seed: int

    def check_panel(self, allow_leakage: bool) -> None:
        """Refuse a gene panel that held-out sections helped to choose."""
        chosen_on = _schema.read_json(self.table, "panel", default={}).get("sections", [])
        held_out = section_names(self.table, self.division.held_out, self.table_key)
        seen = [name for name in held_out if name in chosen_on]
        if _schema.PANEL in self.table.var and seen and not allow_leakage:
            raise LeakageError(
                f"The gene panel was chosen on the held-out sections {listing(seen)} too. Choose it on the training sections "
                "(`img2gene.pp.select_genes(…, sections=…)`), or let `fit` choose with `genes=<number>`."
            )

    def train(
        self,
        predictor: Predictor,
        inputs: Inputs | StudyFineTuning,
        places: np.ndarray,
        genes: Genes,
        level: float | None,
    ) -> Model:
        """Choose genes, fit, calibrate at ``level`` unless it is None, and wrap up the model with its report."""
        table = self.table
        sections, groups = section_labels(table, self.table_key), group_labels(table, self.groups, self.table_key)
        candidates = self._candidates(genes)
        rows = np.flatnonzero(self.division.train)
        values = labels(table, rows, candidates, layer=self.layer)
        empty = ~np.isfinite(values).all(axis=1)
        rows, values = rows[~empty], values[~empty]
        if not len(rows):
            raise Img2GeneError("No training spot has a count.")
        chosen = self._choose(genes, candidates, values)
        values = np.ascontiguousarray(values[:, np.isin(candidates, chosen)])
        if not isinstance(inputs, Inputs):
            inputs = inputs.run(values, sections[rows], groups[rows], places[rows], rows, seed=self.seed)
        data = TrainingData(
            inputs.features[rows],
            values,
            sections[rows],
            groups[rows],
            places[rows],
            tokens=None if inputs.tokens is None else inputs.tokens[rows],
            pathways=self._pathways(predictor, rows, inputs, sections, places),
            library=library_size(table)[rows] if self.layer is None else None,
        )
        calibration, facts = self._fit(predictor, data, level)
        report = self._report(rows, int(empty.sum()), predictor) | facts
        return Model(
            predictor,
            [str(name) for name in table.var_names[np.sort(chosen)]],
            gene_statistics(values, data.sections, data.positions),
            inputs.identity,
            {"layer": self.layer, "target_sum": TARGET_SUM if self.layer is None else None},
            report if inputs.report is None else {**report, "finetune": inputs.report},
            inputs.weights,
            calibration,
        )

    def _fit(
        self, predictor: Predictor, data: TrainingData, level: float | None
    ) -> tuple[Calibration | None, dict[str, Any]]:
        """Fit, and calibrate where a level is given and something can be left out."""
        if level is None:
            predictor.fit(data, seed=self.seed)
            return None, {}
        held_out = fit_held_out(predictor, data, seed=self.seed)
        if held_out is None:
            return None, {"uncertainty": None}
        if held_out.kind != "group":
            logger.warning(
                "only one %s to train on: intervals are calibrated by leaving out a %s of it, and tell nothing of how much "
                "others differ",
                self.groups,
                held_out.kind,
            )
        calibration, report = Calibration.fit(held_out, data, level=level, seed=self.seed)
        return calibration, {"uncertainty": report}

    def _pathways(
        self, predictor: Predictor, rows: np.ndarray, inputs: Inputs, sections: np.ndarray, places: np.ndarray
    ) -> np.ndarray | None:
        """Scores of the pathways that the training rows select, for predictors with a pathway context."""
        if not isinstance(predictor, UsesPathways) or not predictor.uses_pathways:
            return None
        context = fold_context(
            self.table,
            rows,
            features=inputs.features[rows],
            sections=sections[rows],
            positions=places[rows],
            seed=self.seed,
            table_key=self.table_key,
        )
        if context is None:
            logger.info("no pathway context: run `img2gene.pp.score_pathways` before for one")
            return None
        predictor.set_context(context_facts(context))
        return context.scores

    def _candidates(self, genes: Genes) -> np.ndarray:
        if genes is None and _schema.PANEL in self.table.var:
            return np.flatnonzero(self.table.var[_schema.PANEL].to_numpy(dtype=bool))
        if genes is None or isinstance(genes, (int, np.integer)):
            return np.arange(self.table.n_vars)
        return np.sort(self.table.var_names.get_indexer([genes] if isinstance(genes, str) else list(genes)))

    def _choose(self, genes: Genes, candidates: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Candidates that vary in the training spots; constant genes that were asked for by name are an error."""
        varies = values.max(axis=0) > values.min(axis=0)
        constant = candidates[~varies]
        named = genes is not None and not isinstance(genes, (int, np.integer))
        if len(constant) and (named or not varies.any()):
            raise Img2GeneError(
                f"{len(constant)} genes do not vary in the training sections, so nothing can be learnt about them: "
                f"{listing(self.table.var_names[constant])}. Leave them out of `genes`."
            )
        if len(constant):
            logger.info("left out %d genes that do not vary in the training sections", len(constant))
        if isinstance(genes, (int, np.integer)):
            order = np.argsort(-np.where(varies, values.mean(axis=0, dtype=np.float64), -np.inf), kind="stable")
            return candidates[order[: min(int(genes), int(varies.sum()))]]
        return candidates[varies]

    def _report(self, rows: np.ndarray, n_empty: int, predictor: Predictor) -> dict[str, Any]:
        patients = patient_labels(self.table)
        return {
            "sections": section_names(self.table, rows, self.table_key),
            "patients": None if patients is None else sorted(set(patients[rows].tolist())),
            "held_out": section_names(self.table, self.division.held_out, self.table_key),
            "groups": self.groups,
            "leakage": self.division.leakage,
            "n_spots": len(rows),
            "n_empty_spots": n_empty,
            "seed": self.seed,
            "img2gene": version("img2gene"),
            "fit": predictor.summary(),
        }
