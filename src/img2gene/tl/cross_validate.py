"""Cross-validation by patient, with everything fitted inside the folds and the baselines beside the models."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene import models as registry
from img2gene._errors import Img2GeneError, LeakageError, Problems, listing, raise_problems
from img2gene._expression import labels, layer_problems, library_size, name_problems
from img2gene._leaks import find_leaks
from img2gene._sections import group_labels, section_labels
from img2gene._study import choose_encoder, embedding, patient_labels, positions, section_names
from img2gene._subset import subset
from img2gene.models.resume import fingerprint
from img2gene.settings import settings
from img2gene.tl._candidates import ModelsGiven, model_candidates
from img2gene.tl._fold_tasks import Fold, Options, Task, run_and_keep
from img2gene.tl._outer_folds import OuterFolds
from img2gene.tl._results_folder import Part, ResultsFolder
from img2gene.tl.cross_validation import UNKNOWN, WITHIN, CrossValidation
from img2gene.tl.evaluate import BASELINE_ROWS, GeneGroups, group_members, is_rule, with_markers
from img2gene.tl.fit import Genes, fit

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from img2gene.models import Model

logger = logging.getLogger(__name__)

BASELINES: dict[str, dict[str, Any]] = {
    "ridge": {"model": "ridge"},
    "ridge, not centred": {"model": "ridge", "center": "none", "n_components": 256},
    "feature k-NN": {"model": "knn"},
}
_COORDINATES = {"coordinate k-NN": {"model": "coordinates"}}


def cross_validate(
    sdata: SpatialData,
    models: ModelsGiven = ("img2gene",),
    *,
    groups: str = "patient",
    inner: str | None = None,
    n_folds: int | None = None,
    test_on: Iterable[str] | None = None,
    genes: Genes = None,
    gene_groups: GeneGroups = None,
    markers: Iterable[str] | None = None,
    layer: str | None = None,
    smooth: int = 0,
    encoder: str | None = None,
    baselines: bool = True,
    n_permutations: int = 20,
    keep_predictions: bool | Sequence[str] = False,
    seed: int | None = None,
    n_jobs: int = 1,
    n_threads: int = 1,
    folder: str | Path | None = None,
    table_key: str = "table",
    allow_leakage: bool = False,
) -> CrossValidation:
    """Score models on patients that they were trained without.

    Each patient is held out in turn (or several at once, ``n_folds``). Gene panel, gene groups, pathway selection, scaling,
    components, penalties, reference banks and early stopping see the training patients alone; inside them, models leave out
    groups once more to choose what they choose. Embeddings are those that are stored, computed once.

    Beside the models stand the *training mean*, the *section mean (oracle)*, the *permutation null* of the first model, the
    slide-centred ``ridge``, a ridge without centring (the linear probe of HEST-Benchmark), *feature k-NN*, and, where spots
    of a section are on both sides, *coordinate k-NN*.

    Parameters
    ----------
    sdata
        Study on which :func:`img2gene.pp.embed_patches` was run.
    models
        Registered models (see :func:`img2gene.models.list`); or for each label a dict with the ``"model"``, its parameters
        and, where it is not ``encoder``, its ``"encoder"``: ``{"10 components": {"model": "ridge", "n_components": 10}}``.
    groups
        Column of obs that is held out. With one patient only, sections are left out instead, and all that is returned says
        that it is a within-patient estimate.
    inner
        Column of obs that validation inside the training folds leaves out: ``"patient"``, ``"section"``; by default
        ``groups``.
    n_folds
        Deal the groups at random into so many folds; None leaves out each group by itself.
    test_on
        Values of ``groups`` to hold out; by default each.
    genes
        As in :func:`img2gene.tl.fit`. A number means those with the highest mean in each training fold. Genes asked for by
        name that do not vary in a training fold have NaN scores there.
    gene_groups, markers
        As in :func:`img2gene.tl.evaluate`; statistics are those of the training folds.
    layer
        Layer with labels on a scale of your own, as in :func:`img2gene.tl.fit`. Labels must not be smoothed; see ``smooth``.
    smooth
        Average labels over so many nearest spots of the section and the spot itself, after the split: 8 is the 3 × 3
        smoothing of papers. For comparison only, as such labels are easier; recorded in the result.
    encoder
        Which embedding, if several are stored.
    baselines
        Train the baselines, too. Training mean, oracle and null cost nothing and are always there.
    n_permutations
        Shuffles of the permutation null.
    keep_predictions
        Keep the held-out predictions of all models (True), or of those named, in ``predictions`` of the result.
    seed
        Seed of folds and models; None takes ``img2gene.settings.seed``.
    n_jobs
        Processes that work on folds and models at the same time; −1 for one per core. Each holds the study in memory. The
        result does not depend on it.
    n_threads
        Threads of each of them; their number may change last digits.
    folder
        Keep finished parts there, and go on from them when called again with the same study and arguments. What was
        computed with others, or by another version, is refused.
    table_key
        Table with counts and embedding.
    allow_leakage
        Go on although a patient is on both sides of a fold, or a leak was found (:func:`img2gene.tl.check_leaks`); the
        result is marked.

    Returns
    -------
    :class:`~img2gene.tl.CrossValidation`. Nothing is written to the study.

    Raises
    ------
    Img2GeneError
        Nothing can be held out, no such model, parameter, gene or column, missing groups, a folder of another run; and what
        :func:`img2gene.tl.fit` raises, with the fold and the model.
    LeakageError
        A patient is on both sides of a fold, spots are duplicated across groups, labels were smoothed, or the gene panel
        was chosen on all data.

    References
    ----------
    Sections of one patient: METHODS in the documentation. HEST-Benchmark: Jaume et al., NeurIPS 2024.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> result = ig.tl.cross_validate(sdata, "ridge", baselines=False, n_permutations=2)
    >>> result.summary("all")["model"].tolist()
    ['ridge', 'training mean', 'section mean (oracle)', 'permutation null']
    >>> result.scope
    'between patients'
    """
    table = _schema.get_table(sdata, table_key)
    problems = Problems(_option_problems(smooth, n_permutations, n_jobs, n_threads))
    problems.found += name_problems(table, table_key) + layer_problems(table, layer, table_key)
    seed = settings.seed if seed is None else seed
    with problems.collect():
        candidates = model_candidates(models, encoder, table, table_key)
        kept = _kept(keep_predictions, candidates)
    with problems.collect():
        group_labels(table, groups if inner is None else inner, table_key)
    problems.raise_all()
    study = _labelled(sdata, layer, table_key)
    outer = OuterFolds.divide(
        study.tables[table_key],
        groups,
        n_folds=n_folds,
        test_on=test_on,
        seed=seed,
        table_key=table_key,
        allow_leakage=allow_leakage,
    )
    if baselines:
        extra = BASELINES | (_COORDINATES if outer.divides_sections(study.tables[table_key], table_key) else {})
        candidates = _with_baselines(candidates, extra, encoder)
    options = Options(inner or outer.groups, layer, smooth, seed, n_permutations, n_threads, table_key)
    plan = _Plan(study, outer, candidates, options, kept, allow_leakage)
    return plan.run(genes, with_markers(gene_groups, markers), n_jobs, folder)


def _option_problems(smooth: int, n_permutations: int, n_jobs: int, n_threads: int) -> list[str]:
    problems = [f"smooth={smooth}: expected a number of neighbours, or 0."] * (smooth < 0)
    problems += [f"n_permutations={n_permutations}: expected 0 or more."] * (n_permutations < 0)
    problems += ["n_jobs=0: expected a number of processes, or -1 for one per core."] * (n_jobs == 0)
    return problems + [f"n_threads={n_threads}: expected 1 or more."] * (n_threads < 1)


def _kept(asked: bool | Sequence[str], candidates: dict[str, dict[str, Any]]) -> list[str]:
    """Labels of the models whose predictions are kept."""
    if isinstance(asked, bool):
        return list(candidates) if asked else []
    names = [asked] if isinstance(asked, str) else list(asked)
    unknown = [name for name in names if name not in {**candidates, **BASELINES}]
    if unknown:
        raise Img2GeneError(
            f"keep_predictions: no model labelled {listing(unknown)} (available: {listing({**candidates, **BASELINES})})."
        )
    return names


def _with_baselines(
    candidates: dict[str, dict[str, Any]], extra: dict[str, dict[str, Any]], encoder: str | None
) -> dict[str, dict[str, Any]]:
    """The models, and those baselines that are not among them, under whatever label."""
    first = next(iter(candidates.values()))["encoder"]
    added = {label: {"encoder": first if encoder is None else encoder, **given} for label, given in extra.items()}
    present = [{**given, "encoder": None} for given in candidates.values()]
    return candidates | {
        label: given
        for label, given in added.items()
        if label not in candidates and {**given, "encoder": None} not in present
    }


def _labelled(sdata: SpatialData, layer: str | None, table_key: str) -> SpatialData:
    """The study without images, and without spots that have no label, such as sections with only an image."""
    table = sdata.tables[table_key]
    known = np.ones(table.n_obs, dtype=bool) if layer is not None else library_size(table) > 0
    if not known.any():
        raise Img2GeneError(f"No spot of `sdata['{table_key}']` has a count, so there is nothing to score.")
    if not known.all():
        logger.info("left out %d spots without a count", int((~known).sum()))
    return subset(sdata, np.flatnonzero(known), layer=layer, table_key=table_key)


@dataclass(frozen=True)
class _Plan:
    """One cross-validation."""

    study: SpatialData
    outer: OuterFolds
    candidates: dict[str, dict[str, Any]]
    options: Options
    kept: list[str]
    allow_leakage: bool

    @property
    def table(self) -> AnnData:
        return self.study.tables[self.options.table_key]

    def run(self, genes: Genes, groups: GeneGroups, n_jobs: int, folder: str | Path | None) -> CrossValidation:
        """Look for leaks, choose genes fold by fold, train and score, and put the parts together."""
        warnings = self._leaks(genes)
        # All folds first, so that none is refused after hours of training on the others.
        folds = [self._fold(name, held, genes, groups) for name, held in self.outer.rows().items()]
        asked = self._settings(genes, groups)
        data = self._fingerprint()
        results = ResultsFolder.open(folder, json.loads(json.dumps({**asked, "data": data}, default=str)))
        parts = self._run_all(folds, results, n_jobs)
        if self.options.smooth:
            warnings.append(
                f"Labels were averaged over {self.options.smooth} neighbours, which removes noise and so raises scores; they do not compare "
                "with scores on raw labels."
            )
        if self.outer.scope in (WITHIN, UNKNOWN):
            logger.warning("scores are %s: see `notice` of the result", self.outer.scope)
        return self._assemble(folds, parts, asked, warnings)

    def _leaks(self, genes: Genes) -> list[str]:
        """Messages of what looks like a leak; certain ones are refused unless that is allowed."""
        key = self.options.table_key
        found = find_leaks(
            self.table,
            self.outer.groups,
            layer=self.options.layer,
            encoder_identity=self._identity,
            uses_panel=genes is None,
            table_key=key,
            seed=self.options.seed,
        )
        # A patient in several groups was judged when the folds were made.
        found = [leak for leak in found if leak.kind != "shared patient"]
        certain = [leak.message for leak in found if leak.severity == "error"]
        if certain and not self.allow_leakage:
            raise_problems(
                [*certain[:-1], f"{certain[-1]} (`allow_leakage=True` goes on and marks the result.)"], LeakageError
            )
        for leak in found:
            logger.warning(leak.message)
        return [leak.message for leak in found]

    @property
    def _identity(self) -> dict[str, Any]:
        first = next(iter(self.candidates.values()))["encoder"]
        return choose_encoder(self.table, first, self.options.table_key)

    def _fold(self, name: str, held: np.ndarray, genes: Genes, groups: GeneGroups) -> Fold:
        """Choose genes and gene groups on the training rows, by a fit that checks study and split, too."""
        key, layer = self.options.table_key, self.options.layer
        train = np.flatnonzero(~held)
        asked, varying = self._asked(genes, train)
        held_groups = self.outer.held_out[name]
        first = next(iter(self.candidates.values()))["encoder"]
        whole = cast(
            "Model",
            fit(
                self.study,
                "mean",
                genes=genes if asked is None or genes is None else varying,
                layer=layer,
                groups=self.outer.groups,
                train_on=[group for group in np.unique(self.outer.names) if group not in held_groups],
                validate_on=held_groups,
                encoder=first,
                seed=self.options.seed,
                table_key=key,
                # Shared patients were judged when the folds were made; a panel is judged here.
                allow_leakage=self.allow_leakage or self.outer.scope == WITHIN,
                allow_single_section=True,
                inplace=False,
            ),
        )
        absent = [] if asked is None else [gene for gene in asked if gene not in whole.genes]
        if absent:
            logger.warning("without %s, genes that do not vary: %s", name, listing(absent))
        return Fold(name, train, np.flatnonzero(held), whole.genes, self._members(whole, groups, absent), absent)

    def _asked(self, genes: Genes, train: np.ndarray) -> tuple[list[str] | None, list[str]]:
        """Genes asked for, by name or as the panel, and those of them that vary in the training rows."""
        if isinstance(genes, (int, np.integer)) or (genes is None and _schema.PANEL not in self.table.var):
            return None, []
        if genes is None:
            return self.table.var_names[self.table.var[_schema.PANEL].to_numpy(dtype=bool)].tolist(), []
        names = [genes] if isinstance(genes, str) else list(genes)
        columns = self.table.var_names.get_indexer(names)
        if (columns < 0).any():
            return names, names
        values = labels(self.table, train, columns, layer=self.options.layer)
        varies = values.max(axis=0) > values.min(axis=0)
        return names, [name for name, kept in zip(names, varies, strict=True) if kept] or names

    @staticmethod
    def _members(whole: Model, groups: GeneGroups, absent: list[str]) -> dict[str, list[str]]:
        """Genes of each group, without those that the fold lacks."""
        if groups is not None:
            groups = {
                name: rule if is_rule(rule) else [gene for gene in rule if gene not in absent]
                for name, rule in groups.items()
            }
        return group_members(whole, whole.genes, groups)

    def _settings(self, genes: Genes, groups: GeneGroups) -> dict[str, Any]:
        """What was asked for, as it is recorded."""
        shared = dataclasses.asdict(self.options)
        return {
            "models": self.candidates,
            "groups": self.outer.groups,
            "held_out": self.outer.held_out,
            "genes": genes if genes is None or isinstance(genes, (int, np.integer)) else list(genes),
            "gene_groups": None if groups is None else dict(groups),
            "encoder": self._identity,
            "allow_leakage": self.allow_leakage,
            **shared,
        }

    def _fingerprint(self) -> dict[str, str]:
        """Digests of everything that results depend on."""
        table, key = self.table, self.options.table_key
        counts = table.X.tocsr()
        identities = {given["encoder"] for given in self.candidates.values()}
        arrays = {
            "counts": counts.data,
            "columns": counts.indices,
            "rows": counts.indptr,
            "layer": None if self.options.layer is None else np.asarray(_dense(table.layers[self.options.layer])),
            "library": library_size(table),
            "genes": table.var_names.to_numpy(dtype=str),
            "sections": section_labels(table, key),
            "patients": patient_labels(table),
            "groups": self.outer.names,
            "inner": group_labels(table, self.options.inner, key),
            "positions": positions(table, key),
            "pathways": np.asarray(table.obsm[_schema.PATHWAYS]) if _schema.PATHWAYS in table.obsm else None,
        }
        for name in identities:
            identity = choose_encoder(table, name, key)
            arrays[f"embedding {identity['name']}"] = embedding(table, identity, key)
        return fingerprint(**arrays)

    def _run_all(self, folds: list[Fold], results: ResultsFolder, n_jobs: int) -> dict[tuple[int, str], Part]:
        """Parts of all folds and models, from the folder as far as they are there."""
        from joblib import Parallel, delayed
        from tqdm.auto import tqdm

        tasks = {
            (number, label): Task(
                self.study, fold, label, given, self.options, label in self.kept, f"fold{number + 1}-model{place + 1}"
            )
            for number, fold in enumerate(folds)
            for place, (label, given) in enumerate(self.candidates.items())
        }
        found = {
            at: part
            for at, task in tasks.items()
            if (part := results.load(task.key)) and bool(part.layers) >= task.keep
        }
        if found:
            logger.info("took %d of %d finished parts from %s", len(found), len(tasks), results.folder)
        todo = {at: task for at, task in tasks.items() if at not in found}
        calls = (
            delayed(run_and_keep)(task, results, dataclasses.replace(settings), registry.get(task.given["model"]))
            for task in todo.values()
        )
        run = Parallel(n_jobs=n_jobs, return_as="generator")(calls)
        with tqdm(total=len(todo), desc="Cross-validation", unit="fit", disable=not settings.progress) as bar:
            for at, part in zip(todo, run, strict=True):
                found[at] = part
                bar.update()
        return found

    def _assemble(
        self, folds: list[Fold], parts: dict[tuple[int, str], Part], asked: dict[str, Any], warnings: list[str]
    ) -> CrossValidation:
        scores, structure = [], []
        for label in self.candidates:
            for number, fold in enumerate(folds):
                part = parts[number, label]
                own = part.scores[part.scores["model"] == label]
                scores.append(_with_absent(own, fold).assign(fold=fold.name))
                structure.append(part.structure.assign(fold=fold.name))
        first = next(iter(self.candidates))
        for name in BASELINE_ROWS:
            for number, fold in enumerate(folds):
                every = parts[number, first].scores
                scores.append(_with_absent(every[every["model"] == name], fold).assign(fold=fold.name))
        return CrossValidation(
            self._tidy(scores),
            pd.concat(structure, ignore_index=True),
            self._describe(folds, parts),
            self.outer.scope,
            json.loads(json.dumps(asked, default=str)),
            warnings,
            {label: self._predictions(folds, parts, label) for label in self.kept if label in self.candidates},
        )

    def _tidy(self, parts: list[pd.DataFrame]) -> pd.DataFrame:
        table = pd.concat([part for part in parts if len(part)], ignore_index=True)
        first = ["model", "fold", "section", "patient", "gene"]
        last = ["n_spots", "leakage"]
        table = table[[*first, *(name for name in table if name not in {*first, *last}), *last]]
        return table.assign(scope=self.outer.scope)

    def _describe(self, folds: list[Fold], parts: dict[tuple[int, str], Part]) -> pd.DataFrame:
        """What was held out in each fold, and what was left to train on."""
        table, key = self.table, self.options.table_key
        patients = patient_labels(table)
        rows = []
        for number, fold in enumerate(folds):
            held = None if patients is None else listing(np.unique(patients[fold.test]), 1000)
            facts = {
                "fold": fold.name,
                "sections": listing(section_names(table, fold.test, key), 1000),
                "patients": held,
            }
            facts |= {"n_train_spots": len(fold.train), "n_test_spots": len(fold.test)}
            facts |= {"n_train_sections": len(section_names(table, fold.train, key))}
            facts |= {"n_train_groups": len(np.unique(self.outer.names[fold.train])), "n_genes": len(fold.genes)}
            facts |= {"absent": ", ".join(fold.absent)}
            facts |= {f"seconds {label}": parts[number, label].seconds for label in self.candidates}
            rows.append(facts)
        return pd.DataFrame(rows)

    def _predictions(self, folds: list[Fold], parts: dict[tuple[int, str], Part], label: str) -> AnnData:
        """Held-out predictions of all folds in one table."""
        import anndata as ad

        genes = list(dict.fromkeys(gene for fold in folds for gene in fold.genes))
        rows = np.concatenate([fold.test for fold in folds])
        order = np.argsort(rows, kind="stable")
        names = parts[0, label].layers
        stacked = {
            name: np.concatenate([_spread(parts[i, label].layers[name], fold, genes) for i, fold in enumerate(folds)])
            for name in names
        }
        table, key = self.table[rows[order]], self.options.table_key
        obs = table.obs.assign(section=section_labels(self.table, key)[rows[order]])
        obs["fold"] = np.repeat([fold.name for fold in folds], [len(fold.test) for fold in folds])[order]
        obs = obs.assign(**{name: values[order] for name, values in stacked.items() if values.ndim == 1})
        out = ad.AnnData(
            stacked["X"][order],
            obs=obs,
            var=pd.DataFrame(index=genes),
            layers={name: values[order] for name, values in stacked.items() if values.ndim == 2 and name != "X"},
        )
        out.obsm["spatial"] = positions(self.table, key)[rows[order]][:, ::-1].copy()
        return out


def _spread(values: np.ndarray, fold: Fold, genes: list[str]) -> np.ndarray:
    """Values of a fold's genes in the columns of all genes; NaN elsewhere."""
    if values.ndim == 1:
        return values
    out = np.full((len(values), len(genes)), np.nan, dtype=np.float32)
    out[:, pd.Index(genes).get_indexer(fold.genes)] = values
    return out


def _with_absent(scores: pd.DataFrame, fold: Fold) -> pd.DataFrame:
    """Scores with a row of NaN in every section for each gene that the fold lacks."""
    if not fold.absent or not len(scores):
        return scores
    facts = scores.drop_duplicates("section")[["model", "section", "patient", "n_spots", "leakage"]]
    missing = facts.merge(pd.DataFrame({"gene": fold.absent}), how="cross")
    members = {name: missing["gene"].isin([]) for name in fold.groups}
    return pd.concat([scores, missing.assign(**members)], ignore_index=True)


def _dense(values: Any) -> np.ndarray:
    return values.toarray() if hasattr(values, "toarray") else values
