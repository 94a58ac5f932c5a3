"""The genes of a trained model, in an order that cannot change, and those that lead a statistic."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError

FIXED = (
    "The genes of a trained model cannot be changed, because predictions follow their order. Change a copy, "
    "`list(model.genes)`, or make a model with other names for the same genes in the same order: "
    "`dataclasses.replace(model, genes=names)`."
)


class GeneNames(list[str]):
    """Names of the genes of a model: a list that refuses changes, because predictions follow its order.

    It is a list, not a tuple, so that ``adata[:, model.genes]`` and ``frame[model.genes]`` choose genes.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.genes import GeneNames
    >>> GeneNames(np.array(["ERBB2", "ESR1"])) == ["ERBB2", "ESR1"]
    True
    """

    def __init__(self, genes: Any) -> None:
        check = Arguments()
        names = check.names("genes", genes)
        check.raise_all()
        super().__init__(names)

    def __reduce__(self) -> tuple[type[GeneNames], tuple[list[str]]]:
        # Copying and unpickling would otherwise append each name.
        return type(self), (list(self),)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise Img2GeneError(FIXED)

    append = extend = insert = remove = pop = clear = reverse = sort = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse


def top_genes(
    genes: list[str], statistics: dict[str, np.ndarray], by: str, n: int, min_detection: float = 0.1
) -> list[str]:
    """List the ``n`` genes that lead a statistic; see :meth:`Model.top_genes`."""
    check = Arguments()
    by, n = check.choice("by", by, sorted(statistics)), check.whole("n", n, 1)
    min_detection = check.number("min_detection", min_detection, 0, 1)
    check.raise_all()
    score = statistics[by].astype(float).copy()
    if by != "mean":
        score[statistics["detection"] < min_detection] = np.nan
    score[np.isnan(score)] = -np.inf
    # Of equal scores the first name comes first, whatever the order of the genes.
    order = np.lexsort((np.array(genes, dtype=str), -score))[:n]
    return [genes[i] for i in order if np.isfinite(score[i])]
