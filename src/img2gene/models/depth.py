"""Weights of spots by their depth, and sections that are too shallow to train on."""

from __future__ import annotations

import numpy as np

# Spots: the sampling noise of a label falls with the depth of its spot. Sections: shallow ones also have another scale, as
# log1p(1e4 · x / L) of sparse counts is mostly 0 (benchmarks/shallow_section.py).
_SPOT_POWER, _SECTION_POWER = 0.5, 1.5
# Spots count as at most this many times as deep as the median of their section: one wrong library size must not lead the
# fit. Real spots can be 50 times as deep.
DEEPEST_SPOT = 100


def depth_weights(library: np.ndarray | None, sections: np.ndarray) -> np.ndarray:
    """Compute the weight of each spot in a fit from library sizes.

    Within a section the weight grows with the square root of the library size, up to 100 times the median; between sections with the power 1.5 of their
    median. A shallow section thus adds little to a fit in which deep ones lead.

    Parameters
    ----------
    library
        float (n_spots,): library sizes; None where labels are not made of counts.
    sections
        str (n_spots,): section of each spot.

    Returns
    -------
    float64 (n_spots,), with mean 1; all 1 without library sizes.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.depth import depth_weights
    >>> depth_weights(np.array([100.0, 100.0, 1e4, 1e4]), np.array(["shallow", "shallow", "deep", "deep"])).round(3)
    array([0.002, 0.002, 1.998, 1.998])
    """
    if library is None:
        return np.ones(len(sections))
    # An empty spot counts as one of a single count, as the weights of a section must not all be 0.
    depth = np.maximum(np.asarray(library, dtype=np.float64), 1)
    weights = np.empty(len(depth))
    for name in np.unique(sections):
        rows = sections == name
        median = np.median(depth[rows])
        relative = np.minimum(depth[rows] / median, DEEPEST_SPOT)
        weights[rows] = relative**_SPOT_POWER * median**_SECTION_POWER
    return weights / weights.mean()


def median_depths(library: np.ndarray, sections: np.ndarray) -> dict[str, float]:
    """Median library size of each section."""
    return {str(name): float(np.median(library[sections == name])) for name in np.unique(sections)}


def shallow_sections(library: np.ndarray, sections: np.ndarray, least: float) -> dict[str, float]:
    """Find sections that are much shallower than the others.

    Parameters
    ----------
    library
        float (n_spots,): library sizes.
    sections
        str (n_spots,): section of each spot.
    least
        Least median library size of a section, as a share of that of the median section.

    Returns
    -------
    Median library size of each section below it. Never all sections.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.depth import shallow_sections
    >>> shallow_sections(np.array([6000.0, 5000.0, 700.0]), np.array(["S1", "S2", "S3"]), 0.2)
    {'S3': 700.0}
    """
    medians = median_depths(library, sections)
    bound = least * float(np.median(list(medians.values())))
    return {name: median for name, median in medians.items() if median < bound}
