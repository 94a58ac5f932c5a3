"""Modules of genes that vary together, from their correlation matrix."""

from __future__ import annotations

import numpy as np
import pandas as pd

from img2gene.metrics import structure_score

_MAX_CHOSEN = 10
_COLUMNS = ["module", "n_genes", "genes", "true", "predicted", "pcc", "rmse"]


def cluster_genes(correlation: np.ndarray, n_modules: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Order and modules of genes, by average linkage on 1 − r.

    Parameters
    ----------
    correlation
        (n_genes, n_genes); genes with NaN on the diagonal have no correlation.
    n_modules
        Largest number of modules; None takes the number from 2 to 10 with the highest silhouette.

    Returns
    -------
    int (n_genes,): the genes as the tree puts them side by side, those without a correlation last.
    int (n_genes,): module of each gene, numbered 1, 2, … in that order; 0 without a correlation.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    known = np.isfinite(np.diag(correlation))
    genes, rest = np.flatnonzero(known), np.flatnonzero(~known)
    modules = known.astype(int)
    if len(genes) < 2:
        return np.concatenate([genes, rest]), modules
    # Genes that were never defined in the same section count as unrelated.
    distance = 1 - np.nan_to_num(correlation[np.ix_(genes, genes)])
    # scikit-learn's silhouette refuses a diagonal that rounding moved away from 0.
    np.fill_diagonal(distance, 0)
    # The check refuses a matrix that rounding made asymmetric in its last digit.
    tree = linkage(squareform(distance, checks=False), "average")
    leaves = leaves_list(tree)
    labels = _cut(tree, distance, n_modules)
    number = {label: i + 1 for i, label in enumerate(dict.fromkeys(labels[leaves].tolist()))}
    modules[genes] = [number[label] for label in labels.tolist()]
    return np.concatenate([genes[leaves], rest]), modules


def _cut(tree: np.ndarray, distance: np.ndarray, n_modules: int | None) -> np.ndarray:
    from scipy.cluster.hierarchy import fcluster
    from sklearn.metrics import silhouette_score

    if n_modules is not None:
        return fcluster(tree, n_modules, "maxclust")
    cuts = [fcluster(tree, n, "maxclust") for n in range(2, min(_MAX_CHOSEN, len(distance) - 1) + 1)]
    scores = {
        i: silhouette_score(distance, labels, metric="precomputed")
        for i, labels in enumerate(cuts)
        # Ties can give fewer clusters than the cut names; the silhouette is defined for 2 to n − 1.
        if 1 < labels.max() < len(distance)
    }
    return cuts[max(scores, key=scores.__getitem__)] if scores else np.ones(len(distance), dtype=int)


def module_table(
    genes: list[str], true: np.ndarray, predicted: np.ndarray, order: np.ndarray, modules: np.ndarray
) -> pd.DataFrame:
    """Genes, mean correlations and structure score of each module; NaN where a module has no pairs."""
    rows = []
    for number in range(1, modules.max(initial=0) + 1):
        members = order[modules[order] == number]
        within = [matrix[np.ix_(members, members)] for matrix in (true, predicted)]
        pairs = np.triu_indices(len(members), k=1)
        means = [pd.Series(matrix[pairs], dtype=float).mean() for matrix in within]
        rows.append([number, len(members), [genes[i] for i in members], *means, *structure_score(*within)])
    return pd.DataFrame(rows, columns=_COLUMNS)
