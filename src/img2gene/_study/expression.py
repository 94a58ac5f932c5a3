"""Check raw counts, compute library sizes, and normalise counts to the labels that models are trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from img2gene import _schema
from img2gene._errors import missing
from img2gene.metrics import morans_i, neighbor_graph
from img2gene.models.data import TARGET_SUM

if TYPE_CHECKING:
    from anndata import AnnData


def count_problems(matrix: np.ndarray | sp.spmatrix, name: str) -> list[str]:
    """List why ``matrix`` (n_obs, n_genes) cannot be raw counts; empty if it can."""
    values = _values(matrix)
    if not np.issubdtype(values.dtype, np.number):
        return [f"{name} holds {values.dtype} values, not counts."]
    problems = []
    if np.isnan(values).any():
        problems.append(f"{name} holds {int(np.isnan(values).sum())} NaN values; counts must be complete.")
    finite = values[np.isfinite(values)]
    if finite.size < values.size - np.isnan(values).sum():
        problems.append(f"{name} holds infinite values.")
    if (finite < 0).any():
        problems.append(f"{name} holds {int((finite < 0).sum())} negative values; counts are at least 0.")
    elif not np.array_equal(finite, np.round(finite)):
        problems.append(
            f"{name} holds fractions (largest value {finite.max():.4g}): it looks normalised or log-transformed. "
            "Put raw counts in `table.X`, or pass `layer=` to train on expression on a scale of your own."
        )
    return problems


def label_problems(matrix: np.ndarray | sp.spmatrix, name: str) -> list[str]:
    """List why ``matrix`` cannot be labels on the user's own scale; empty if it can."""
    values = _values(matrix)
    if not np.issubdtype(values.dtype, np.number):
        return [f"{name} holds {values.dtype} values, not numbers."]
    bad = int((~np.isfinite(values)).sum())
    return [f"{name} holds {bad} NaN or infinite values."] if bad else []


def name_problems(table: AnnData, name: str) -> list[str]:
    """List duplicate genes and duplicate spots of a table."""
    problems = []
    for kind, names, call in (("genes", table.var_names, "var"), ("spots", table.obs_names, "obs")):
        duplicated = names[names.duplicated()].unique()
        if len(duplicated):
            problems.append(
                f"`{name}` has {len(duplicated)} duplicate {kind} ({', '.join(map(str, duplicated[:5]))}). "
                f"Call `{name}.{call}_names_make_unique()` if they are distinct, else drop them."
            )
    return problems


def library_size(table: AnnData) -> np.ndarray:
    """Return counts per spot over the full transcriptome: ``obs["library_size"]`` if present, else row sums of X."""
    # Row sums of a table with some of the genes would miss the counts of the others.
    if _schema.LIBRARY_SIZE in table.obs:
        return table.obs[_schema.LIBRARY_SIZE].to_numpy(dtype=np.float64)
    return np.asarray(table.X.sum(axis=1), dtype=np.float64).ravel()


def labels(table: AnnData, rows: np.ndarray, genes: np.ndarray, *, layer: str | None) -> np.ndarray:
    """Compute training or evaluation labels, float32 (len(rows), len(genes)).

    ``log1p(1e4 * counts / library_size)`` of X, or the values of ``layers[layer]`` as they are. Spots without a
    single count have no label: their rows are NaN.
    """
    if layer is not None:
        return _dense(table.layers[layer][rows][:, genes]).astype(np.float32)
    counts = _dense(table.X[rows][:, genes]).astype(np.float32)
    size = library_size(table)[rows]
    scale = np.divide(TARGET_SUM, size, out=np.full_like(size, np.nan), where=size > 0).astype(np.float32)
    counts *= scale[:, None]
    return np.log1p(counts, out=counts)


def layer_problems(table: AnnData, layer: str | None, name: str) -> list[str]:
    """List why the counts (``layer=None``) or the labels in ``layer`` cannot be used; empty if they can."""
    if layer is None:
        problems = count_problems(table.X, f"`{name}.X`")
        if _schema.LIBRARY_SIZE in table.obs and not table.obs[_schema.LIBRARY_SIZE].notna().all():
            problems.append(f"`obs['{_schema.LIBRARY_SIZE}']` holds NaN; delete the column to have it recomputed.")
        return problems
    if layer not in table.layers:
        return [missing(layer, f"{name}.layers", table.layers)]
    return label_problems(table.layers[layer], f"`layers['{layer}']`")


def _values(matrix: Any) -> np.ndarray:
    """Return the stored values: the non-zero ones of a sparse matrix, all of a dense one."""
    # Zeros that a sparse matrix does not store are valid counts, so they need no check.
    return np.asarray(matrix.data if sp.issparse(matrix) else matrix)


def _dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else np.array(matrix)


def gene_statistics(labels: np.ndarray, sections: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Compute mean, variance, dispersion, detection and Moran's I of each gene.

    Parameters
    ----------
    labels
        (n_spots, n_genes) training labels.
    sections
        (n_spots,): Moran's I is computed within each section and averaged.
    positions
        (n_spots, 2).

    Returns
    -------
    float32 (n_genes,) each: ``mean``; ``variance``; ``dispersion`` (variance over mean, of ``expm1`` of the labels);
    ``detection`` (share of spots above 0); ``moran`` (six nearest spots).
    """
    # Labels on the user's own scale can be so large that `expm1` overflows.
    linear = np.expm1(np.clip(labels, None, 30).astype(np.float64))
    average = linear.mean(axis=0)
    dispersion = np.divide(linear.var(axis=0), average, out=np.full_like(average, np.nan), where=average > 0)
    statistics = {
        # Sums of float32 over many spots lose digits.
        "mean": labels.mean(axis=0, dtype=np.float64),
        "variance": labels.var(axis=0, dtype=np.float64),
        "dispersion": dispersion,
        "detection": (labels > 0).mean(axis=0),
        "moran": _moran(labels, sections, positions),
    }
    return {name: values.astype(np.float32) for name, values in statistics.items()}


def _moran(labels: np.ndarray, sections: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Average Moran's I of each gene over the sections in which it is defined."""
    values = []
    for name in np.unique(sections):
        rows = sections == name
        values.append(morans_i(labels[rows], neighbor_graph(positions[rows])))
    table = np.array(values)
    known = np.isfinite(table)
    return np.divide(
        np.where(known, table, 0).sum(axis=0),
        known.sum(axis=0),
        out=np.full(table.shape[1], np.nan),
        where=known.any(axis=0),
    )
