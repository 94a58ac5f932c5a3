"""Check raw counts, compute library sizes, and normalise counts to the labels that models are trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from img2gene import _schema
from img2gene._errors import Img2GeneError, listing, missing
from img2gene._study.matrices import dense, in_memory
from img2gene.metrics import morans_i, neighbor_graph
from img2gene.models.data import TARGET_SUM

if TYPE_CHECKING:
    from anndata import AnnData

IN_TISSUE = "in_tissue"
_OFF = ("0", "0.0", "false")
# Missing values turn into the last texts.
_ON = ("1", "1.0", "true", "", "nan", "none", "<na>")
LARGEST_LABEL = 1e15
# Layers that nobody names so if they hold expression on another scale.
_COUNT_LAYERS = ("count", "counts", "raw_count", "raw_counts", "umi", "umis", "umi_counts")


def count_problems(matrix: Any, name: str) -> list[str]:
    """List why ``matrix`` (n_obs, n_genes) cannot be raw counts; empty if it can."""
    values, problems = _values(matrix, name, "counts")
    if problems:
        return problems
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


def label_problems(matrix: Any, name: str) -> list[str]:
    """List why ``matrix`` cannot be labels on the user's own scale; empty if it can."""
    values, problems = _values(matrix, name, "numbers")
    if problems:
        return problems
    bad = int((~np.isfinite(values)).sum())
    if bad:
        return [f"{name} holds {bad} NaN or infinite values."]
    # Models square labels in float32, which holds no number above 3e38.
    large = int((np.abs(values.astype(np.float64)) > LARGEST_LABEL).sum())
    return [f"{name} holds {large} values beyond ±{LARGEST_LABEL:.0e}; rescale it."] if large else []


def are_counts(matrix: Any) -> bool:
    """Check that a matrix holds raw counts: whole numbers from 0, of which some are above 1."""
    values, problems = _values(matrix, "", "")
    # Zeros and ones alone can be labels of their own, such as detection.
    return not problems and bool(values.size) and _are_whole(values) and bool(values.max() > 1)


def are_nearly_counts(matrix: Any) -> bool:
    """Check that a matrix holds counts, of which a few may be fractions and all may have been rounded."""
    values, problems = _values(matrix, "", "")
    if problems or not np.isfinite(values).all() or (values < 0).any():
        return False
    # Zeros and ones are whole on many scales, such as the base-2 logarithm of counts plus 1.
    large = values[values > 1.5].astype(np.float64)
    tolerance = np.minimum(0.01 + 1e-5 * large, 0.1)
    return bool(large.size) and bool((np.abs(large - np.round(large)) <= tolerance).mean() >= 0.9)


def _are_whole(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all() and (values >= 0).all() and np.array_equal(values, np.round(values)))


def name_problems(table: AnnData, name: str, of: str = "") -> list[str]:
    """List duplicate genes and duplicate spots of a table; ``of`` tells it apart from others of its name."""
    problems = []
    for kind, names, axis in (("genes", table.var_names, "var"), ("spots", table.obs_names, "obs")):
        duplicated = names[names.duplicated()].unique()
        if len(duplicated):
            problems.append(
                f"`{name}`{of} has {len(duplicated)} duplicate {kind} ({', '.join(map(str, duplicated[:5]))}). "
                f"Call `{axis}_names_make_unique()` on the table if they are distinct, else drop them."
            )
    return problems


def library_size(table: AnnData) -> np.ndarray:
    """Return counts per spot over the full transcriptome: ``obs["library_size"]`` if present, else row sums of X."""
    # Row sums of a table with some of the genes would miss the counts of the others.
    if _schema.LIBRARY_SIZE in table.obs:
        return table.obs[_schema.LIBRARY_SIZE].to_numpy(dtype=np.float64)
    return row_sums(table.X)


def row_sums(matrix: Any) -> np.ndarray:
    """Sum each row in float64 (n_obs,), in which sums of counts of any type are exact."""
    values = in_memory(matrix)
    if sp.issparse(values):
        return np.asarray(values.astype(np.float64).sum(axis=1)).ravel()
    return np.asarray(values.sum(axis=1, dtype=np.float64)).ravel()


def readable(table: AnnData) -> np.ndarray:
    """Mark the spots whose pixels could be read, bool (n_obs,): all but those with False in ``obs["patch_readable"]``."""
    if _schema.PATCH_READABLE not in table.obs:
        return np.ones(table.n_obs, dtype=bool)
    # Joining gives no value to sections that have no such column, and files may return text.
    return ~table.obs[_schema.PATCH_READABLE].astype(str).str.lower().isin(("false", "0", "0.0")).to_numpy()


def in_tissue(table: AnnData) -> np.ndarray:
    """Mark the spots that are used, bool (n_obs,): on tissue, without 0 in ``obs["in_tissue"]``, and readable.

    Space Ranger writes 0 and 1, and other programs truth values or text. A spot without a value counts as on tissue:
    joining gives no value to sections that have no such column.
    """
    return _on_tissue(table) & readable(table)


def _on_tissue(table: AnnData) -> np.ndarray:
    if IN_TISSUE not in table.obs:
        return np.ones(table.n_obs, dtype=bool)
    column = table.obs[IN_TISSUE]
    if column.dtype.kind in "biuf":
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        off, known = values == 0, np.isin(values, (0, 1)) | np.isnan(values)
    else:
        texts = column.astype(str).str.strip().str.lower()
        off, known = (texts.isin(options).to_numpy() for options in (_OFF, _OFF + _ON))
    if not known.all():
        raise Img2GeneError(
            f"`obs['{IN_TISSUE}']` holds {listing(column[~known].astype(str).unique())}, but only 0 and 1 say which "
            "spots lie on tissue. Correct the column, or rename it if it means something else."
        )
    return ~off


def measured(table: AnnData, layer: str | None) -> np.ndarray:
    """Mark the spots with measured expression, bool (n_obs,): on tissue and, for labels made of counts, with a count."""
    # A layer is on the user's own scale, where a spot of zeros can be measured.
    return in_tissue(table) if layer is not None else in_tissue(table) & (library_size(table) > 0)


def labels(table: AnnData, rows: np.ndarray, genes: np.ndarray, *, layer: str | None) -> np.ndarray:
    """Compute training or evaluation labels, float32 (len(rows), len(genes)).

    ``log1p(1e4 * counts / library_size)`` of X, or the values of ``layers[layer]`` as they are. Spots off the tissue,
    and without a single count, have no label: their rows are NaN.
    """
    values = dense(in_memory(table.X if layer is None else table.layers[layer])[rows][:, genes]).astype(np.float32)
    off = ~in_tissue(table)[rows]
    if off.any():
        values[off] = np.nan
    if layer is not None:
        return values
    size = library_size(table)[rows]
    scale = np.divide(TARGET_SUM, size, out=np.full_like(size, np.nan), where=size > 0).astype(np.float32)
    values *= scale[:, None]
    return np.log1p(values, out=values)


def layer_problems(table: AnnData, layer: str | None, name: str) -> list[str]:
    """List why the counts (``layer=None``) or the labels in ``layer`` cannot be used; empty if they can."""
    if layer is None:
        if table.X is None:
            return _missing_counts(table, name)
        problems = count_problems(table.X, f"`{name}.X`")
        if problems:
            return problems + _counts_elsewhere(table, name)
        return _library_problems(table)
    if not isinstance(layer, str):
        # The check of the argument names what it is.
        return []
    if layer not in table.layers:
        return [missing(layer, f"{name}.layers", table.layers)]
    if are_nearly_counts(table.layers[layer]):
        source = f"{name}.layers['{layer}']"
        source = source if are_counts(table.layers[layer]) else f"np.rint({source})"
        return [
            f"`layers['{layer}']` holds raw counts, and labels of a layer are taken as they are, so the depth of a spot "
            f"would be predicted. Put them in X, where they are normalised: `{name}.X = {source}`, and leave `layer` out."
        ]
    if layer.casefold() in _COUNT_LAYERS:
        return [
            f"`layers['{layer}']` is named after counts, and labels of a layer are taken as they are. Put raw counts in X, "
            "where they are normalised, and leave `layer` out; rename the layer if it holds expression on another scale."
        ]
    return label_problems(table.layers[layer], f"`layers['{layer}']`")


def value_problems(table: AnnData, layer: str | None, name: str) -> list[str]:
    """List why the values of X and of a layer cannot be compared; X need not hold counts."""
    problems = []
    if layer is not None and layer not in table.layers:
        problems = [missing(layer, f"{name}.layers", table.layers)]
    elif layer is not None:
        problems = label_problems(table.layers[layer], f"`layers['{layer}']`")
    problems += _missing_counts(table, name) if table.X is None else label_problems(table.X, f"`{name}.X`")
    # Library sizes are used with counts alone.
    return problems if problems or count_problems(table.X, "") else layer_problems(table, None, name)


def _missing_counts(table: AnnData, name: str) -> list[str]:
    """Say that X is missing, what could take its place, and the next call."""
    call = _counts_elsewhere(table, name) or [f"Put raw counts in it: `{name}.X = …`."]
    return [f"`{name}.X` is missing (layers: {listing(table.layers)}). {call[0]}"]


def _counts_elsewhere(table: AnnData, name: str) -> list[str]:
    """Name the layers with raw counts, from which X can be restored."""
    layers = [key for key, values in table.layers.items() if key is not None and are_counts(values)]
    return [
        f"`layers['{key}']` holds raw counts: call `{name}.X = {name}.layers['{key}']` to use them."
        for key in layers[:1]
    ]


def _library_problems(table: AnnData) -> list[str]:
    """List why ``obs["library_size"]`` cannot be the counts of each spot over the full transcriptome."""
    if _schema.LIBRARY_SIZE not in table.obs:
        return []
    column, what = table.obs[_schema.LIBRARY_SIZE], f"`obs['{_schema.LIBRARY_SIZE}']`"
    hint = "delete the column to have it recomputed."
    if column.isna().any():
        return [f"{what} holds NaN in {int(column.isna().sum())} rows; {hint}"]
    if column.dtype.kind not in "iuf":
        return [f"{what} holds {column.dtype} values, not counts; {hint}"]
    sizes = column.to_numpy(dtype=np.float64)
    if not np.isfinite(sizes).all():
        return [f"{what} holds infinite values in {int((~np.isfinite(sizes)).sum())} rows; {hint}"]
    # Sizes that were summed in float32 miss the last digits.
    low = np.flatnonzero(sizes < row_sums(table.X) * (1 - 1e-6))
    if not len(low):
        return []
    return [
        f"{what} is smaller than the counts that X holds in {len(low)} rows (first {table.obs_names[low[0]]}: "
        f"{sizes[low[0]]:g}); it must be the counts of the spot over all genes. Correct it, or {hint}"
    ]


def _values(matrix: Any, name: str, expected: str) -> tuple[np.ndarray, list[str]]:
    """Return the stored values, the non-zero ones of a sparse matrix, and why they are no real numbers."""
    if matrix is None:
        return np.zeros(0), [f"{name} is missing; put raw counts in it."]
    matrix = in_memory(matrix)
    if sp.issparse(matrix) and not getattr(matrix, "has_canonical_format", True):
        # A count can be stored in parts, which are no counts themselves.
        matrix = matrix.copy()
        matrix.sum_duplicates()
    # Zeros that a sparse matrix does not store are valid counts, so they need no check.
    values = matrix.data if sp.issparse(matrix) else matrix
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            n_masked = int(np.ma.getmaskarray(values).sum())
            return values, [f"{name} masks {n_masked} values; fill them, or leave out the spots or genes."]
        values = values.data
    if values.dtype.kind not in "iuf":
        return values, [f"{name} holds {values.dtype} values, not {expected}."]
    return values, []


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


def expression_unit(layer: str | None) -> str:
    """Name the unit of expression that is made of counts, or of the values of a layer.

    Examples
    --------
    >>> from img2gene._study.expression import expression_unit
    >>> expression_unit(None), expression_unit("scaled")
    ('log1p(CP10K)', "layer 'scaled'")
    """
    # The natural logarithm of 1 + counts per 10,000.
    return "log1p(CP10K)" if layer is None else f"layer {layer!r}"
