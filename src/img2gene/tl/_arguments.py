"""Check arguments that several functions of this package take."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema, models
from img2gene._checks import Arguments, several, shown
from img2gene._errors import Img2GeneError, Problems
from img2gene._study.features import with_features
from img2gene._study.study import Study
from img2gene.encoders import EncoderSpec
from img2gene.models import Predictor
from img2gene.settings import settings

if TYPE_CHECKING:
    from anndata import AnnData

# More take days, and their results no longer differ.
MOST_PERMUTATIONS, MOST_REPEATS = 100_000, 1000
_ENCODERS = ("timm:", "hf-hub:")
# Beyond this, torch and joblib fail with errors of their own.
_MOST_WORKERS = 1024


@contextmanager
def later_step(check: Arguments) -> Iterator[None]:
    """Collect the problems of a step that uses arguments; one that was named before may make the step fail."""
    try:
        yield
    except Img2GeneError as error:
        with check.collect():
            raise error
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError):
        if not check.messages:
            raise


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; Python counts truth values as such, and numpy time spans."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


def as_plain(value: Any, depth: int = 20) -> Any:
    """Convert numpy scalars and arrays, also inside lists and dicts, to values of Python that JSON can hold.

    Lists deeper than ``depth`` stay as they are; no parameter takes them.
    """
    if depth == 0:
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {as_plain(key): as_plain(item, depth - 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(as_plain(item, depth - 1) for item in value)
    return value


def check_flags(check: Arguments, **flags: Any) -> None:
    """Check arguments that are True or False."""
    for name, value in flags.items():
        check.flag(name, value)


def check_seed(check: Arguments, seed: Any) -> Any:
    """Convert the seed of a call; None takes the one of the settings."""
    return check.seed("seed", settings.seed) if seed is None else check.seed("seed", seed)


def check_between(check: Arguments, name: str, value: Any) -> Any:
    """Convert a number between 0 and 1, without 0 and 1."""
    number = Arguments().number(name, value)
    if isinstance(number, float) and not isinstance(value, str) and 0 < number < 1:
        return number
    check.messages.append(f"{name}={shown(value)}: expected a number between 0 and 1.")
    return value


def check_gene_choice(check: Arguments, genes: Any, name: str = "genes") -> Any:
    """Convert ``genes``: a list of names, a whole number, or None."""
    if genes is None:
        return None
    if is_whole(genes):
        # The number of genes that there are is checked with the table.
        return int(genes)
    names = [genes] if isinstance(genes, str) else several(genes)
    if names is not None and all(isinstance(item, str) for item in names):
        return [str(item) for item in names]
    check.messages.append(f"{name}={shown(genes)}: expected names of genes, a whole number of them, or None.")
    return None


def check_gene_groups(check: Arguments, groups: Any) -> dict[str, Any] | None:
    """Convert gene groups: a statistic and a number, or names of genes, for each name of a group."""
    if groups is None:
        return None
    expected = 'a dict such as {"HVG": ("dispersion", 50), "mine": ["ERBB2", "KRT8"]}'
    if not isinstance(groups, Mapping) or not all(isinstance(name, str) for name in groups):
        check.messages.append(f"gene_groups={shown(groups)}: expected {expected}, or None.")
        return None
    result = {}
    for name, value in groups.items():
        rule = gene_rule(value)
        if rule is None:
            check.messages.append(f"gene_groups[{name!r}]={shown(value)}: expected {expected}.")
        else:
            result[str(name)] = rule
    return result


def gene_rule(value: Any) -> tuple[str, int] | list[str] | None:
    """Convert a statistic and how many genes lead it, or names of genes; None for anything else."""
    items = [value] if isinstance(value, str) else several(value)
    if items is None:
        return None
    if all(isinstance(item, str) for item in items):
        return [str(item) for item in items]
    if len(items) != 2 or not isinstance(items[0], str) or not is_whole(items[1]) or int(items[1]) < 1:
        return None
    return str(items[0]), int(items[1])


def check_workers(check: Arguments, n_jobs: Any, n_threads: Any) -> tuple[Any, Any]:
    """Convert the numbers of processes and of threads; negative numbers of processes count from the number of cores."""
    whole = is_whole(n_jobs)
    if not (whole and n_jobs and abs(int(n_jobs)) <= _MOST_WORKERS):
        check.messages.append(f"n_jobs={shown(n_jobs)}: expected a number of processes, or -1 for one per core.")
    return int(n_jobs) if whole else n_jobs, check.whole("n_threads", n_threads, 1, _MOST_WORKERS)


def checked_features(check: Arguments, features: Any, **others: Any) -> Any:
    """Convert the name of a matrix of features; a matrix itself is refused, and so are ``others`` that contradict it."""
    if features is None:
        return None
    if callable(features) or isinstance(features, EncoderSpec) or str(features).startswith(_ENCODERS):
        name = repr(features) if isinstance(features, str) else "encoder"
        check.messages.append(
            f"features={shown(features)} is an encoder, not a matrix. Compute its features first: `img2gene.pp.embed_patches(sdata, "
            f"{name})`, with `encoder = img2gene.encoders.wrap(…)` for a network or function. Then leave `features` out."
        )
        check.raise_all()
    if not isinstance(features, str):
        check.messages.append(
            f"features={shown(features)}: expected the name of a matrix; store it first, `sdata['table'].obsm['X_mine'] = …`."
        )
        # Without it the embedding would be looked for, which nobody asked about.
        check.raise_all()
    for name, value in others.items():
        if value is not None:
            check.messages.append(f"features={features!r} and {name}={shown(value)} contradict each other: pass one.")
    return str(features)


def open_features(check: Arguments, study: Study, features: str | None) -> Study:
    """Return the study with the matrix ``features`` in its obsm, as :func:`img2gene._study.features.with_features`."""
    if features is None:
        return study
    with check.collect():
        return with_features(study, features)
    check.raise_all()
    return study


def check_model(check: Arguments, model: Any) -> Any:
    """Check that ``model`` is a trained model, its key or its file, or None."""
    if model is None or isinstance(model, models.Model) or (isinstance(model, str | os.PathLike) and str(model)):
        return model
    # A class or an object that was not trained is the likeliest mistake.
    hint = " Train it with `img2gene.tl.fit`, which returns the trained model with `inplace=False`."
    check.messages.append(
        f"model={shown(model)}: expected a trained model, the path of one, the key it is stored under, or None."
        + hint * hasattr(model, "fit")
    )
    return None


def check_store(check: Arguments, table: AnnData, name: str, key: Any) -> None:
    """Check that ``uns[key]`` is free, or belongs to the package."""
    value = table.uns.get(key) if isinstance(key, str) else None
    if value is None or (isinstance(value, Mapping) and (not value or "format" in value)):
        return
    check.messages.append(f"{name}={key!r}: `uns[{key!r}]` holds something else; choose another name.")


def check_name(check: Problems, name: str, value: Any) -> None:
    """Check that spatialdata can store a key."""
    with check.collect():
        _schema.check_name(value, name)


def create_predictor(model: str, parameters: Mapping[str, Any]) -> Predictor:
    """Make a model that is to be trained; errors about its parameters name the model."""
    try:
        return models.create(model, **parameters)
    # This clause comes first, because the error is a ValueError, and its message already names the culprit.
    except Img2GeneError:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        raise Img2GeneError(f"{model!r} does not take {shown(dict(parameters))}: {error}.") from error


def checked_loggers(check: Arguments, value: Any) -> list[Any]:
    """Convert ``logger`` to a list of loggers of Lightning; empty for None."""
    if value is None:
        return []
    from img2gene.models.networks.train import import_lightning

    import_lightning()
    from lightning.pytorch.loggers import Logger

    loggers = list(value) if isinstance(value, list | tuple) else [value]
    if not all(isinstance(one, Logger) for one in loggers):
        check.messages.append(
            f"logger={shown(value)}: expected a logger of `lightning.pytorch.loggers`, such as CSVLogger('logs'), or several."
        )
    return loggers
