"""Read predicted values that are stored in a study."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing, no_such
from img2gene._study.matrices import dense, in_memory
from img2gene._study.study import Study

if TYPE_CHECKING:
    from anndata import AnnData

    from img2gene.models import Model

_ENSEMBL = re.compile(r"ENS[A-Z]*\d{6,}")


def no_shared_genes(predicted: Sequence[str], measured: Iterable[str]) -> str:
    """Say that a table has none of the genes that a model predicts, and why if the names show it.

    Examples
    --------
    >>> from img2gene._study.predictions import no_shared_genes
    >>> no_shared_genes(["ERBB2"], ["Erbb2"]).split(": ")[-1]
    'rename one of them, human symbols are in capitals (ERBB2), mouse symbols are not (Erbb2).'
    """
    names = [str(name) for name in measured]
    text = (
        f"None of the model's {len(predicted)} genes ({listing(predicted, 3)}) is among the {len(names)} genes of the "
        f"table ({listing(names, 3)})"
    )
    folded = {name.casefold() for name in names}
    if any(gene.casefold() in folded for gene in predicted):
        hint = "rename one of them, human symbols are in capitals (ERBB2), mouse symbols are not (Erbb2)."
        return f"{text}. They differ in capital letters: {hint}"
    if len({bool(_ENSEMBL.match(group[0])) for group in (predicted, names) if group}) == 2:
        return f"{text}. One side has Ensembl identifiers, the other symbols: rename `var_names` to what the model has."
    return f"{text}. Rename `var_names` to the names that the model was trained with."


def _by_other_model(study: Study, key: str) -> bool:
    """Check whether the table ``key`` holds predictions of another model than the layer ``key`` of the study."""
    records = [_schema.read_json(table, _schema.PREDICTED_BY, default={}) for table in (study.table, study.sdata[key])]
    made_by = [record[key]["fingerprint"] for record in records if key in record]
    return len(set(made_by)) > 1


def separate_table(study: Study, key: str) -> AnnData | None:
    """Find the table ``key`` of predictions for the rows of the study by the model on record; None without one."""
    separate = study.sdata.tables.get(key)
    if separate is None or separate is study.stored_table or not separate.obs_names.equals(study.table.obs_names):
        return None
    return None if _by_other_model(study, key) else separate


def record_of(study: Study, key: str) -> dict[str, Any] | None:
    """Facts on the predictions ``key``: their model, depth and layer; None if they have no record.

    Predictions that were returned, and that users put into the study as a table, bring a record of their own.
    """
    by: dict[str, Any] | None = study.record(_schema.PREDICTED_BY, {}).get(key)
    separate = separate_table(study, key) if by is None else None
    return by if separate is None else _schema.read_json(separate, _schema.PREDICTED_BY, default={}).get(key)


def check_predictor(study: Study, model: Model, key: str) -> None:
    """Raise if another model made the predictions under ``key``: its split may leak where this one does not."""
    by = record_of(study, key)
    # Predictions from outside the package have no model on record and cannot be compared.
    if by is not None and by["fingerprint"] != model.fingerprint:
        made_by, judged = (
            f"`{name}` {digest[:8]}"
            for name, digest in ((by["model"], by["fingerprint"]), (model.name, model.fingerprint))
        )
        raise Img2GeneError(
            f"The predictions {key!r} were made by another model ({made_by}) than the one that is to be judged by them "
            f"({judged}, trained on {listing(model.report['sections'])}). Run `img2gene.tl.predict` with this one, or pass "
            "the other as `model=`."
        )


def prediction_problems(study: Study) -> list[str]:
    """Say that the table of a study holds predictions, which must not be read as counts."""
    if "prediction" not in _schema.container(study.table):
        return []
    return [
        f"`{study.name}` holds predictions, not measured counts. Pass as `table_key` the table that was predicted, and "
        f"key={study.table_key!r} for these predictions."
    ]


def predicted_values(study: Study, genes: list[str], key: str, *, part: str | None = None) -> np.ndarray:
    """Read predictions (n_obs, n_genes) from the layer ``key``, or from a table ``key`` with the same rows.

    The separate table can hold genes that the study's table lacks. ``part`` is ``"std"``, ``"lower"`` or ``"upper"``
    for the standard deviation or the bounds of the interval.
    """
    table, separate = study.table, separate_table(study, key)
    layer = key if part is None else _schema.uncertainty_keys(key)[part]
    sources = {}
    if layer in table.layers:
        sources[f"{study.name}.var_names"] = (table.var_names, table.layers[layer])
    if separate is not None:
        if part is None:
            sources[f"sdata['{key}'].var_names"] = (separate.var_names, separate.X)
        elif layer in separate.layers:
            sources[f"sdata['{key}'].var_names"] = (separate.var_names, separate.layers[layer])
    if not sources:
        condition = "" if part is None else ", with a model that was fitted with `uncertainty=True`"
        hint = f"Run `img2gene.tl.predict` first{condition}."
        raise MissingKeyError(missing(layer, f"{study.name}.layers", table.layers, hint))
    for names, values in sources.values():
        if genes and names.isin(genes).sum() == len(set(genes)):
            columns = names.get_indexer(genes)
            # Of a table in a store, only the chosen genes are read.
            chosen = values[:, columns] if hasattr(values, "compute") else in_memory(values)[:, columns]
            return dense(in_memory(chosen)).astype(float)
    where, (names, _) = next(iter(sources.items()))
    if not genes:
        raise MissingKeyError(no_such("gene", (), names))
    raise MissingKeyError(missing(listing(gene for gene in genes if gene not in names), where, names))
