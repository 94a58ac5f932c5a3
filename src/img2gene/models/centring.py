"""Means of features within sections, and centring by them."""

from __future__ import annotations

import numpy as np

from img2gene._errors import Img2GeneError, listing

# Rows that are converted to double precision at a time.
_BLOCK_ROWS = 2048
# Larger arrays stay in single precision: memory and time matter more than the rounding of large means.
DOUBLE_LIMIT = 2**25
# What features and labels may refer to: the mean of their section, or of the training data.
CENTRES = ("section", "none")


def centre(values: np.ndarray, sections: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """Subtract ``reference``, or where it is None each section's own mean; float64 as long as that takes under 256 MiB."""
    # Double precision removes the rounding of large means; of large arrays memory and time matter more.
    values = np.asarray(values, dtype=np.float64 if values.size < DOUBLE_LIMIT else np.float32)
    if reference is not None:
        return values - reference
    centred = np.empty_like(values)
    for name, mean in zip(*section_means(values, sections), strict=True):
        rows = sections == name
        centred[rows] = values[rows] - mean.astype(values.dtype)
    return centred


def check_centring(sections: np.ndarray, center: str) -> None:
    """Raise if spots are centred by section and a section has a single spot, whose features would be all zero."""
    names, counts = np.unique(sections, return_counts=True)
    if center == "section" and (counts < 2).any():
        raise Img2GeneError(
            f"Sections {listing(names[counts < 2])} have a single spot, whose features are all zero after centring by section. "
            'Leave them out, or fit with `center="none"`.'
        )


def section_means(features: np.ndarray, sections: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean features of each section, in blocks of rows so that no copy of the features is made.

    Parameters
    ----------
    features
        (n_spots, width).
    sections
        (n_spots,): section of each spot.

    Returns
    -------
    Names of the sections, sorted, and their means, float64 (n_sections, width).
    """
    names, number, counts = np.unique(sections, return_inverse=True, return_counts=True)
    sums = np.zeros((len(names), features.shape[1]))
    for start in range(0, len(features), _BLOCK_ROWS):
        block, members = features[start : start + _BLOCK_ROWS], number[start : start + _BLOCK_ROWS]
        for section in np.unique(members):
            sums[section] += block[members == section].sum(axis=0, dtype=np.float64)
    return names, sums / counts[:, None]
