"""Choose the pathways of a study, and score them in every spot."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene._checks import Arguments
from img2gene.pathways.enrichment import enrich, rank_genes, select_pathways
from img2gene.pathways.scores import aucell, ssgsea, zscore

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

METHODS = ("aucell", "ssgsea", "zscore")


@dataclass(frozen=True)
class PathwayContext:
    """Selected pathways with their scores.

    Attributes
    ----------
    names
        The P pathways, in the order of the scores.
    gene_sets
        Measured genes of each.
    method
        ``"aucell"``, ``"ssgsea"`` or ``"zscore"``.
    scores
        float32 (n_spots, P); NaN in spots without counts.
    enrichment
        Table that they were selected by, see :func:`img2gene.pathways.enrich`; None where nothing was selected.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.pathways import PathwayContext
    >>> PathwayContext(["stroma"], {"stroma": ["COL1A1"]}, "aucell", np.zeros((3, 1), "f4"), None).names
    ['stroma']
    """

    names: list[str]
    gene_sets: dict[str, list[str]]
    method: str
    scores: np.ndarray
    enrichment: pd.DataFrame | None


def choose_pathways(
    labels: Any,
    genes: list[str],
    gene_sets: Mapping[str, list[str]],
    n_top: int,
    *,
    sections: np.ndarray,
    positions: np.ndarray,
    features: np.ndarray | None,
    seed: int,
) -> tuple[list[str], pd.DataFrame]:
    """Choose the ``n_top`` sets most enriched among genes that vary with the tissue; return the table of all, too."""
    import pandas as pd

    if features is None:
        logger.info("no embedding: genes are ranked by spatial variability alone")
    ranking = rank_genes(labels, sections, positions, features, seed=seed)
    table = enrich(pd.Series(ranking, index=genes), gene_sets, seed=seed)
    return select_pathways(table, n_top), table


def score_spots(
    method: str,
    counts: Any,
    labels: Any,
    sets: Mapping[str, np.ndarray],
    *,
    reference: np.ndarray | None = None,
    genes: Sequence[str] | np.ndarray | None = None,
) -> np.ndarray:
    """Score gene sets in every spot by one of ``METHODS``, float32 (n_spots, n_sets).

    Only the z-score uses ``labels`` and ``reference``. AUCell and ssGSEA use ``counts`` and the names of ``genes``,
    which break ties.
    """
    check = Arguments()
    check.choice("method", method, METHODS)
    check.raise_all()
    if method == "zscore":
        return zscore(labels, sets, reference=reference)
    return (aucell if method == "aucell" else ssgsea)(counts, sets, genes=genes)
