"""Find a tissue by its markers, and say how well that agrees with an annotation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._checks import Arguments, several, shown
from img2gene._docs import fill_parameters
from img2gene._errors import Img2GeneError, MissingKeyError, Problems, listing, missing, near_matches, raise_problems
from img2gene._study.depth import report_other_scale
from img2gene._study.entrance import open_study, report_off_tissue
from img2gene._study.expression import in_tissue, labels, layer_problems
from img2gene._study.features import with_positions
from img2gene._study.localization import (
    agreement,
    annotated,
    best_threshold,
    inside_column,
    marker_score,
    otsu,
    pairs_within,
    positive_values,
    records,
    records_update,
    score_column,
    smoothed,
)
from img2gene._study.predictions import check_predictor, predicted_values
from img2gene._study.study import Study
from img2gene.models import Model
from img2gene.tl._arguments import check_flags, check_model, check_name, later_step
from img2gene.tl._prediction.values import resolve_model
from img2gene.tl._scoring.selection import check_leakage, choose_sections

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

Value = str | float | bool
Positive = Mapping[str, Value | list[Any]] | Value | list[Any] | None

_USES = ("predicted", "measured")
_RULES = ("auto", "otsu", "training")


@fill_parameters
def localize(
    sdata: SpatialData,
    markers: Mapping[str, Iterable[str]] | Iterable[str],
    *,
    name: str = "markers",
    model: Model | str | Path | None = None,
    annotation: str | None = None,
    positive: Positive = None,
    sections: Iterable[str] | None = None,
    threshold: str | float = "auto",
    smooth: float = 0.0,
    use: str = "predicted",
    key: str = "img2gene",
    table_key: str = "table",
    key_added: str = "localization",
    allow_leakage: bool = False,
    inplace: bool = True,
) -> pd.DataFrame:
    r"""Find tissues by the predicted expression of their markers.

    The score of spot *i* is the mean over the markers of z-scores,

    .. math:: s_i = \frac{1}{|M|} \sum_{g \in M} \frac{\hat y_{ig} - m_g}{d_g}

    with the predicted label :math:`\hat y`, and mean :math:`m` and SD :math:`d` of the *measured* labels over all training
    spots, as the model keeps them: 0 is an average training spot, in every section. Predictions vary less than the
    expression they predict, and poor predictions vary least. So genes that the image hardly predicts have little weight.

    Parameters
    ----------
    sdata
        Study with predictions from :func:`img2gene.tl.predict`.
    markers
        Genes of each tissue, or a list of genes for one.
    name
        What the tissue is called if ``markers`` is a list.
    %(model_predicted)s
    annotation
        Column of obs with known tissues, categories, numbers or truth values, to compare with; spots without a value are
        left out, also where that is written as ``""``, ``"nan"``, ``"None"`` or ``"<NA>"``.
    positive
        Values of the annotation that mean each tissue; by default the value of the tissue's name, or True. For a single
        tissue the values alone will do.
    %(sections_held_out)s
    threshold
        Spots that score above it are inside. A number; ``"otsu"``: Otsu's for each section; ``"training"``: the one for all
        sections that maximises Youden's J (true − false positive rate) on the annotation of the training sections;
        ``"auto"``: the latter where that annotation has both classes, else Otsu's.
    smooth
        Radius in µm within which the scores of a section are averaged; 0 leaves them as they are. On Visium, whose spots are
        100 µm apart, 110 is the first ring. Where tissues change from spot to spot it blurs them.
    use
        ``"predicted"``, or ``"measured"``: the score of the measured labels, which says what the markers themselves can do.
    key
        Name of the prediction: a layer of the table, or a table of its own.
    table_key
        Table with the spots; for tiles, the table of the tiles.
    key_added
        Beginning of the names of what is written.
    %(allow_leakage)s
    %(inplace_result)s

    Returns
    -------
    DataFrame, one row per tissue and section: ``tissue``, ``section``, ``patient``, ``use``, ``n_spots`` (with a score),
    ``n_inside``, ``threshold``, ``rule`` (``otsu``, ``training`` or ``given``), ``n_annotated`` (with a score and an
    annotation), ``n_positive``, ``auroc``, ``auprc``, ``dice`` and ``leakage``. Where the annotation of a section has one
    class only, AUROC and AUPRC are NaN; without annotation Dice is, too.

    Unless ``inplace=False``, written are ``obs["<key_added>_<tissue>"]`` (float32, NaN where not scored),
    ``obs["<key_added>_<tissue>_inside"]`` (nullable boolean) and settings and thresholds in
    ``uns["img2gene"]["localization"]``. Columns of an earlier call with this ``key_added`` are replaced.

    Raises
    ------
    MissingKeyError
        Markers that the model does not predict, no predictions, no such section, annotation or value of it.
    Img2GeneError
        An annotation with one class only, no annotated training spots for ``threshold="training"``, or options out of range.
    LeakageError
        A patient of the scored sections was trained on.

    Notes
    -----
    Otsu's threshold divides every section in two: one *without* the tissue, or full of it, is divided, too, often in halves.
    Prefer ``"training"`` or a number where a section may lack the tissue. Scores of training spots that ``"training"`` looks
    at are in-sample, and spread more than scores of new sections. AUROC and AUPRC do not depend on the threshold.

    References
    ----------
    Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. Syst. Man Cybern. 1979.
    Youden, "Index for rating diagnostic tests", Cancer 1950.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=40, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "ridge", validate_on=["P3"])
    >>> ig.tl.predict(sdata)
    >>> result = ig.tl.localize(sdata, {"tumour": ["ERBB2", "KRT8", "EPCAM"]}, annotation="domain")
    >>> bool(result["auroc"].item() > 0.8)
    True
    """
    check = Arguments()
    key, model = check.text("key", key), check_model(check, model)
    sections, use = check.labels("sections", sections), check.choice("use", use, _USES)
    annotation = check.text("annotation", annotation, optional=True)
    threshold, smooth = _threshold(check, threshold), check.number("smooth", smooth, 0)
    check_flags(check, allow_leakage=allow_leakage, inplace=inplace)
    check_name(check, "key_added", key_added)
    sets = _marker_sets(check, markers, name)
    study = open_study(check, sdata, table_key)
    table = study.table
    with later_step(check):
        _check_columns(table, sets, key_added)
    check.raise_all()
    predictor = resolve_model(study, model, key)
    chosen, leaked = _sections(check, study, predictor, sections, allow_leakage)
    with check.collect():
        expression = _expression(study, predictor, sets, use, key)
    with check.collect():
        meant = _meant(study, annotation, positive, list(sets))
    check.raise_all()
    report_off_tissue(study)
    scored = _ScoredSpots(study, chosen, predictor.report["sections"])
    columns, rows, limits, rules = dict[str, Any](), [], {}, {}
    for tissue, genes in sets.items():
        scores = scored.smoothed(np.where(in_tissue(table), _z_mean(expression, predictor, genes), np.nan), smooth)
        # Thresholds are applied to what is stored, which is narrower than what they are computed in.
        scores = scores.astype(np.float32).astype(np.float64)
        truth = annotated(table.obs[annotation], meant[tissue]) if annotation else np.full(table.n_obs, np.nan)
        if annotation:
            scored.check_classes(tissue, scores, truth, meant[tissue])
        limits[tissue], rules[tissue] = scored.thresholds(threshold, scores, truth)
        inside = scored.inside(scores, limits[tissue])
        facts = {"tissue": tissue, "rule": rules[tissue], "use": use}
        rows += [row | facts for row in scored.rows(scores, inside, truth)]
        columns |= scored.columns(key_added, tissue, scores, inside)
    if inplace:
        settings = {"markers": sets, "use": use, "smooth": smooth, "key": key, "annotation": annotation}
        record = settings | {"positive": meant, "sections": chosen, "rules": rules, "thresholds": limits}
        _write(study, predictor, key_added, columns, record)
    return _tidy(rows, limits, leaked)


def _sections(check: Arguments, study: Study, model: Model, sections: Any, allow_leakage: bool) -> tuple[Any, Any]:
    """Choose the sections, and mark those of patients that the model was trained on."""
    with check.collect():
        chosen = choose_sections(study, model, sections)
        return chosen, check_leakage(study, model, chosen, allow_leakage)
    return None, None


def _write(study: Study, model: Model, key_added: str, columns: dict[str, Any], record: dict[str, Any]) -> None:
    # None removes a column: an earlier call may have had more tissues.
    columns = dict.fromkeys(_earlier_columns(study.table, key_added)) | columns
    record = record | {"fingerprint": model.fingerprint}
    _schema.apply(study.stored_table, {"obs": columns, "uns": records_update(study.table, key_added, record)})


@dataclass(frozen=True)
class _ScoredSpots:
    """The spots of a study, with the sections that are scored and those that were trained on."""

    study: Study
    chosen: list[str]
    trained: list[str]

    @property
    def sections(self) -> np.ndarray:
        return self.study.sections

    def smoothed(self, scores: np.ndarray, radius: float) -> np.ndarray:
        """Mean of the scores within ``radius`` µm of each spot, in its section."""
        if not radius:
            return scores
        groups = [self.study.section_rows(name) for name in np.unique(self.sections)]
        return smoothed(scores, pairs_within(with_positions(self.study).positions, groups, radius))

    def check_classes(self, tissue: str, scores: np.ndarray, truth: np.ndarray, values: list[str]) -> None:
        """Raise if the annotation of the scored spots has one class only; a section may."""
        known = truth[np.isin(self.sections, self.chosen) & np.isfinite(scores) & np.isfinite(truth)]
        if known.any() and not known.all():
            return
        raise Img2GeneError(
            f"The annotation cannot judge {tissue}: {'all' if known.any() else 'none'} of the {len(known)} annotated spots "
            f"in the scored sections {listing(self.chosen)} have the value {listing(values)}. Score sections that have both, "
            "or leave `annotation` out."
        )

    def thresholds(
        self, threshold: str | float, scores: np.ndarray, truth: np.ndarray
    ) -> tuple[dict[str, float | None], str]:
        """Threshold of each scored section, None where nothing has a score, and the rule it comes from."""
        if not isinstance(threshold, str):
            return dict.fromkeys(self.chosen, float(threshold)), "given"
        seen = np.isin(self.sections, self.trained) & np.isfinite(scores) & np.isfinite(truth)
        both = bool(truth[seen].any() and not truth[seen].all())
        if threshold == "training" and not both:
            raise Img2GeneError(
                'threshold="training" needs an `annotation` of the training sections '
                f'({listing(self.trained)}) with spots inside and outside; use "otsu" or a number.'
            )
        if both and threshold != "otsu":
            return dict.fromkeys(self.chosen, best_threshold(truth[seen] == 1, scores[seen])), "training"
        return {name: otsu(scores[self.study.section_rows(name)]) for name in self.chosen}, "otsu"

    def inside(self, scores: np.ndarray, limits: dict[str, float | None]) -> np.ndarray:
        """Which spots of the scored sections lie above their threshold."""
        inside = np.zeros(len(scores), dtype=bool)
        for name, limit in limits.items():
            rows = self.study.section_rows(name)
            inside[rows] = False if limit is None else scores[rows] > limit
        return inside

    def rows(self, scores: np.ndarray, inside: np.ndarray, truth: np.ndarray) -> list[dict[str, Any]]:
        """One row of the result per scored section."""
        result = []
        for name in self.chosen:
            rows = self.study.section_rows(name)
            counts = {"n_spots": int(np.isfinite(scores[rows]).sum()), "n_inside": int(inside[rows].sum())}
            facts = {"section": name, "patient": self.study.patient_of(rows)}
            result.append(facts | counts | agreement(truth[rows], scores[rows], inside[rows]))
        return result

    def columns(self, key: str, tissue: str, scores: np.ndarray, inside: np.ndarray) -> dict[str, Any]:
        """Columns of obs, without a value where nothing was scored."""
        shown = np.isin(self.sections, self.chosen) & np.isfinite(scores)
        return {
            score_column(key, tissue): np.where(shown, scores, np.nan).astype(np.float32),
            # A spot that was not scored is missing rather than outside.
            inside_column(key, tissue): pd.arrays.BooleanArray(inside & shown, ~shown),
        }


def _marker_sets(check: Arguments, markers: Any, name: Any) -> dict[str, list[str]]:
    """Convert the markers to a list of genes for each tissue, each gene once."""
    name = check.text("name", name)
    sets = {}
    for tissue, genes in markers.items() if isinstance(markers, Mapping) else ((name, markers),):
        names = [genes] if isinstance(genes, str) else several(genes)
        if names is None or not all(isinstance(gene, str) for gene in names) or not isinstance(tissue, str | int):
            check.messages.append(f"markers: {shown(tissue)} has {shown(genes)}; expected a list of names of genes.")
            continue
        sets[str(tissue)] = list(dict.fromkeys(map(str, names)))
    empty = [tissue for tissue, genes in sets.items() if not genes]
    if empty or (isinstance(markers, Mapping) and not markers):
        check.messages.append(f"`markers` names no gene for {listing(empty)}.")
    return sets


def _threshold(check: Arguments, threshold: Any) -> Any:
    """Convert a threshold: a rule, or a number."""
    if isinstance(threshold, str) and threshold in _RULES:
        return threshold
    numbers = Arguments()
    value = numbers.number("threshold", threshold)
    if numbers.messages:
        check.messages.append(f"threshold={shown(threshold)}: choose {listing(_RULES)} or a finite number.")
    return value


def _check_columns(table: AnnData, sets: dict[str, list[str]], key_added: str) -> None:
    """Check that the columns of the result can be stored and are free."""
    problems = Problems()
    columns = [column(key_added, tissue) for tissue in sets for column in (score_column, inside_column)]
    for column in columns:
        with problems.collect():
            _schema.check_name(column, "tissue and key_added")
    if not isinstance(key_added, str):
        problems.raise_all()
    twice = {column for column in columns if columns.count(column) > 1}
    earlier = _earlier_columns(table, key_added)
    taken = [column for column in columns if column in table.obs and column not in earlier]
    if twice or taken:
        problems.messages.append(
            f"`obs` columns {listing([*twice, *taken])} are needed twice, or hold something else: choose another `key_added`."
        )
    problems.raise_all()


def _earlier_columns(table: AnnData, key: str) -> list[str]:
    """Columns that an earlier call with this key wrote."""
    tissues = records(table).get(key, {}).get("markers", {})
    names = [column(key, tissue) for tissue in tissues for column in (score_column, inside_column)]
    return [name for name in names if name in table.obs]


def _expression(study: Study, model: Model, sets: dict[str, list[str]], use: str, key: str) -> pd.DataFrame:
    """Expression of all markers (n_obs, n_markers); those that the model does not predict are an error."""
    table = study.table
    genes = list(dict.fromkeys(gene for members in sets.values() for gene in members))
    absent = [gene for gene in genes if gene not in model.genes]
    if absent:
        raise MissingKeyError(
            f"Markers {listing(absent)} are not among the {len(model.genes)} genes that the model predicts "
            f"({near_matches(absent, model.genes)}). Names are compared as they are written: human symbols are in capitals "
            "(ERBB2), mouse symbols are not (Erbb2)."
        )
    if use == "predicted":
        check_predictor(study, model, key)
        return pd.DataFrame(predicted_values(study, genes, key), columns=genes)
    layer = model.labels["layer"]
    problems = layer_problems(table, layer, study.name)
    unmeasured = [gene for gene in genes if gene not in table.var_names]
    if unmeasured:
        problems.append(f"`{study.name}` has not measured {listing(unmeasured)}.")
    raise_problems(problems)
    report_other_scale(study, model)
    columns = table.var_names.get_indexer(genes)
    return pd.DataFrame(labels(table, np.arange(table.n_obs), columns, layer=layer), columns=genes)


def _z_mean(expression: pd.DataFrame, model: Model, genes: list[str]) -> np.ndarray:
    # Scores use training statistics: scaled within a section, one without the tissue would have high scores, too.
    places = [model.genes.index(gene) for gene in genes]
    mean, variance = (model.statistics[name][places].astype(np.float64) for name in ("mean", "variance"))
    return marker_score(expression[genes].to_numpy(), mean, np.sqrt(variance))


def _meant(study: Study, annotation: str | None, positive: Positive, tissues: list[str]) -> dict[str, list[str]]:
    """Values of the annotation that mean each tissue; empty without annotation."""
    if annotation is None:
        if positive is not None:
            raise Img2GeneError("`positive` names values of an `annotation`; pass that, too.")
        return {}
    if annotation not in study.table.obs:
        raise MissingKeyError(missing(annotation, f"{study.name}.obs", study.table.obs.columns))
    return positive_values(study.table.obs[annotation], tissues, positive)


def _tidy(
    rows: list[dict[str, Any]], limits: dict[str, dict[str, float | None]], leaked: Callable[[str], object]
) -> pd.DataFrame:
    result = pd.DataFrame(rows)
    pairs = list(zip(result["tissue"], result["section"], strict=True))
    result["threshold"] = [limits[tissue][section] for tissue, section in pairs]
    result["leakage"] = [leaked(section) for _, section in pairs]
    first = ["tissue", "section", "patient", "use", "n_spots", "n_inside", "threshold", "rule"]
    result = result[[*first, "n_annotated", "n_positive", "auroc", "auprc", "dice", "leakage"]]
    return result.astype({"threshold": float, "leakage": "boolean"})
