"""Recognise the spots of a section by digests of their embeddings, whatever the section is called."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

# The first features tell patches apart, and hashing all of them would take longer.
_WIDTH = 64
_DIGITS = 8
_KEPT, _MIN_SHARED = 32, 8


def spot_digests(features: np.ndarray) -> set[str]:
    """Compute a digest of each distinct embedding (n_spots, width)."""
    rows = np.ascontiguousarray(features[:, :_WIDTH], dtype=np.float32)
    return {hashlib.blake2b(row.tobytes(), digest_size=_DIGITS).hexdigest() for row in rows}


def spot_sample(features: np.ndarray) -> str:
    """Keep the digests of at most 32 spots as one text: the smallest ones, which do not depend on the order of rows."""
    return "".join(sorted(spot_digests(features))[:_KEPT])


def same_spots(spots: set[str], sample: Any) -> bool:
    """Check that a section has a quarter of the sampled spots of another one, and at least two.

    A filtered section has lost some of its spots, and patches without tissue can be equal in different sections.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene._study.spots import same_spots, spot_digests, spot_sample
    >>> features = np.random.default_rng(0).normal(size=(100, 6))
    >>> (
    ...     same_spots(spot_digests(features[:60]), spot_sample(features)),
    ...     same_spots(spot_digests(features + 1), spot_sample(features)),
    ... )
    (True, False)
    """
    width = 2 * _DIGITS
    names = [sample[i : i + width] for i in range(0, len(sample), width)] if isinstance(sample, str) else []
    n_shared = sum(name in spots for name in names)
    return n_shared >= max(2, min(_MIN_SHARED, len(names) / 4))
