"""The page: a report on a study, a cross-validation, or both."""

from __future__ import annotations

import datetime
import logging
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError
from img2gene._files.folders import write_bytes
from img2gene._report.blocks import WITH_STUDY
from img2gene.settings import settings

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from img2gene._report.blocks import Chapter
    from img2gene._report.chapters.genes import Choice
    from img2gene._report.subject import Subject
    from img2gene.models import Model
    from img2gene.tl import CrossValidation

logger = logging.getLogger(__name__)

_CALL = "img2gene.report(sdata, 'report.html')"
# A page with more maps than this loads slowly.
_MOST_DRAWN = 100


def report(
    data: SpatialData | CrossValidation,
    path: str | Path = "report.html",
    *,
    cv: CrossValidation | None = None,
    model: Model | str | Path | None = None,
    label: str | None = None,
    metric: str = "pcc",
    genes: str | Sequence[str] | None = None,
    sections: str | Sequence[str] | None = None,
    n_genes: int = 2,
    n_sections: int = 2,
    title: str = "Predicted gene expression",
    seed: int | None = None,
    key: str = "img2gene",
    table_key: str = "table",
    overwrite: bool = True,
) -> Path:
    """Write one HTML page: data, splits, scores with baselines, gene maps, uncertainty, warnings, settings.

    The page is a single file: images are inside it, it runs no script and loads nothing. A part that cannot be shown is
    named, with the call that adds it. Scores that do not apply to new patients (within one patient, with leakage, on
    smoothed expression) are marked at the top and at every table and figure.

    Parameters
    ----------
    data
        Study with a model from :func:`img2gene.tl.fit` and predictions from :func:`img2gene.tl.predict`: the model is
        scored on the sections that it was not trained on. Or the result of :func:`img2gene.tl.cross_validate`, for maps
        and calibration with ``keep_predictions``.
    path
        File to write; ``.html`` is appended if it has no suffix.
    cv
        Cross-validation of the study ``data``: its scores come first, and its predictions are drawn on the tissue.
    model
        The model that predicted in the study, as in :func:`img2gene.tl.evaluate`; by default the one stored under
        ``key``.
    label
        Model of the result whose genes, maps and calibration are shown; by default the first one with predictions.
    metric
        Score that models and genes are compared by; any of :meth:`img2gene.tl.CrossValidation.by_unit`.
    genes
        Genes to draw; by default the best and the worst.
    sections
        Sections to draw; by default the first ones, of different patients if possible.
    n_genes
        How many of the best and how many of the worst genes are drawn.
    n_sections
        How many sections are drawn.
    title
        Heading of the page.
    seed
        Seed of permutations and samples; None takes ``img2gene.settings.seed``.
    key
        Name of the prediction in the study.
    table_key
        Table of the study.
    overwrite
        Replace an existing file. True by default, because a report can always be made again.

    Returns
    -------
    Path of the file. An interrupted report leaves no file; nothing else is changed.

    Raises
    ------
    Img2GeneError
        Neither a study nor a cross-validation, a cross-validation that shares no section or no gene with the study, a
        folder that does not exist, a file that must not be replaced, or unusable numbers and names.
    MissingKeyError
        No such model, label, metric, gene or section.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    >>> ig.pp.extract_patches(sdata, patch_um=112)
    >>> ig.pp.embed_patches(sdata, "color-texture")
    >>> ig.tl.fit(sdata, "ridge", validate_on=["P3"])
    >>> ig.tl.predict(sdata)
    >>> import tempfile
    >>> ig.report(sdata, f"{tempfile.mkdtemp()}/report.html").name
    'report.html'
    """
    from img2gene._report.figures import plain_style
    from img2gene._report.sources import ReportedStudy
    from img2gene._report.subject import Subject

    # Before other local variables exist: the page lists the arguments as they were passed.
    options = {name: value for name, value in locals().items() if name in _RECORDED}
    check = Arguments()
    target = check.path("path", path)
    choice = _choice(check, genes, sections, n_genes, n_sections)
    seed = check.seed("seed", settings.seed if seed is None else seed)
    label, title = check.text("label", label, optional=True), check.text("title", title)
    for name, value in (("metric", metric), ("key", key), ("table_key", table_key)):
        check.text(name, value)
    _check_model(check, model)
    check.flag("overwrite", overwrite)
    with check.collect():
        sdata, result = _inputs(data, cv)
    check.raise_all()
    target = _target(target, overwrite)
    study = None if sdata is None else ReportedStudy.read(sdata, model, key, table_key)
    subject = Subject.of(study, result, label, metric, seed)
    with plain_style():
        page = _render(subject, choice, title, options)
    return _write(target, page)


_RECORDED = {"metric", "label", "genes", "sections", "n_genes", "n_sections", "seed", "key", "table_key"}


def _target(path: Path, overwrite: bool) -> Path:
    """Check, before anything is computed, that the file can be written."""
    try:
        # A folder is refused before a suffix makes it the name of another file.
        if path.is_dir():
            raise Img2GeneError(f"{path} is a folder; name a file in it, such as {path / 'report.html'}.")
        if path.name and not path.suffix:
            path = path.with_suffix(".html")
        if not path.parent.is_dir():
            raise Img2GeneError(f"Folder {path.parent} does not exist; make it first (`os.makedirs`).")
        if path.is_dir():
            raise Img2GeneError(f"{path} is a folder; name a file in it, such as {path / 'report.html'}.")
        if path.exists() and not overwrite:
            raise Img2GeneError(f"{path} exists; pass `overwrite=True` to replace it.")
        # The only proof that a file can be made in a folder is a file.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name):
            return path
    except (OSError, UnicodeError) as error:
        raise Img2GeneError(f"path={shown(path)}: no file can be written there ({error}).") from error


def _inputs(data: Any, cv: Any) -> tuple[SpatialData | None, CrossValidation | None]:
    from img2gene.tl import CrossValidation

    if isinstance(data, CrossValidation):
        if cv is not None:
            raise Img2GeneError(f"Two cross-validations; pass the study first: `{WITH_STUDY}`.")
        return None, data
    if isinstance(data, str | Path):
        raise Img2GeneError(f"data: expected a study, got the text {shown(data)}; the path comes second: `{_CALL}`.")
    if not hasattr(data, "tables"):
        raise Img2GeneError(f"Expected a SpatialData or a CrossValidation, got {type(data).__name__}: `{_CALL}`.")
    if cv is not None and not isinstance(cv, CrossValidation):
        raise Img2GeneError(
            f"cv: expected a CrossValidation from `img2gene.tl.cross_validate(sdata)`, got {type(cv).__name__}."
        )
    return data, cv


def _check_model(check: Arguments, model: Any) -> None:
    from img2gene.models import Model

    if model is not None and not isinstance(model, Model):
        check.path("model", model)


def _choice(check: Arguments, genes: Any, sections: Any, n_genes: Any, n_sections: Any) -> Choice:
    """Convert the genes and sections to draw, and how many are drawn without names."""
    from img2gene._report.chapters.genes import Choice

    names = {
        "genes": check.names("genes", genes, optional=True, empty=True),
        "sections": check.labels("sections", sections),
    }
    for argument, chosen in names.items():
        if isinstance(chosen, list) and not chosen:
            check.messages.append(f"{argument}=[]: name at least one, or pass None to let the report choose.")
    numbers = {"n_genes": n_genes, "n_sections": n_sections}
    return Choice(**names, **{name: check.whole(name, value, 1, _MOST_DRAWN) for name, value in numbers.items()})


def _render(subject: Subject, choice: Choice, title: str, options: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from img2gene._report.chapters import data, notes, scores

    result, held_out = subject.result, subject.held_out
    warnings = notes.warnings_of(subject)
    # Names from the data are escaped, and a wrong name in the template is an error instead of an empty text.
    environment = Environment(
        loader=PackageLoader("img2gene._report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html").render(
        title=title,
        version=version("img2gene"),
        date=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        marks=subject.marks or ([] if held_out is None else held_out.marks),
        notice=None if result is None else result.notice,
        no_score=subject.no_score if result is None else "",
        summary=[data.counted(subject), *([] if result is None else [scores.verdict(subject)])],
        mismatch=_mismatch(subject),
        n_warnings=len(warnings),
        chapters=_chapters(subject, choice, options, warnings),
    )


def _mismatch(subject: Subject) -> bool:
    """Whether the cross-validation used, at least in part, other data than the study."""
    from img2gene._report.agreement import disagreements

    if subject.study is None or subject.cv is None:
        return False
    return bool(subject.unlike or disagreements(subject.study, subject.cv))


def _chapters(subject: Subject, choice: Choice, options: dict[str, Any], warnings: list[str]) -> list[Chapter]:
    from img2gene._report.chapters import calibration, data, genes, notes, ood, predictability, scores, structure

    return [
        data.data_chapter(subject),
        data.splits_chapter(subject),
        scores.scores_chapter(subject),
        genes.genes_chapter(subject, choice),
        calibration.calibration_chapter(subject),
        structure.structure_chapter(subject),
        ood.ood_chapter(subject),
        predictability.predictability_chapter(subject),
        notes.warnings_chapter(warnings),
        notes.settings_chapter(subject, options),
    ]


def _write(path: Path, page: str) -> Path:
    # Half of a surrogate pair, as in broken names, has no encoding.
    write_bytes(path, page.encode(errors="replace"))
    logger.info("wrote %s", path)
    return path
