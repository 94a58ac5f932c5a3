"""Distance of a section from the training sections, by its mean features."""

from __future__ import annotations

import numpy as np


def shift(mean: np.ndarray, references: np.ndarray, scale: np.ndarray) -> float:
    """Distance of a section's mean features to the nearest of some reference sections.

    The root mean square over features of the difference, in units of their SD within sections: about 0 for a section like
    a reference, 1 where every feature is off by as much as the spots of one section differ. It shows a stain or a scanner that
    no reference shares, although centring by section hides it from the prediction.

    Parameters
    ----------
    mean
        (width,): mean features of the section.
    references
        (n_references, width): mean features of the reference sections.
    scale
        (width,): SD of each feature within sections. Features that do not vary are left out: their scale is 0, or infinite, or the largest float32, which stands for infinity in a stored ridge.

    Returns
    -------
    At least 0; NaN if no feature varies.
    """
    scale = np.asarray(scale, dtype=np.float64)
    # A feature without variation would divide by zero, or by rounding.
    kept = (scale > 0) & (scale < np.finfo(np.float32).max)
    if not kept.any():
        return float("nan")
    differences = (np.asarray(references, dtype=np.float64)[:, kept] - np.asarray(mean)[kept]) / scale[kept]
    return float(np.sqrt(np.square(differences).mean(axis=1)).min())
