"""Folds inside the training data: the kind of split that the user will face, as far as the training data allow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from img2gene.models.data import TrainingData

N_BLOCKS = 5
_MIN_BLOCK = 10


@dataclass(frozen=True)
class InnerFolds:
    """Validation folds inside the training data.

    Attributes
    ----------
    kind
        ``"group"`` (leave one group out), ``"section"`` (one section out) or ``"block"`` (one compact part of the only
        section out).
    labels
        str (n_spots,): the fold in which each spot is held out.
    """

    kind: str
    labels: np.ndarray

    def splits(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Boolean masks (fitted on, held out) of every fold."""
        return [(self.labels != name, self.labels == name) for name in np.unique(self.labels)]

    def centred_in(self, sections: np.ndarray) -> np.ndarray:
        """What each spot, once held out, is centred in: its section, or its block of the only section.

        The section of a block was fitted to, so its mean may not be looked at; a new section would be centred by itself.
        """
        return self.labels if self.kind == "block" else sections


def inner_folds(data: TrainingData, *, seed: int, n_max: int = 10) -> InnerFolds:
    """Leave out one group; with one group one section; with one section one of five compact blocks of it.

    Above ``n_max`` groups, groups are dealt at random into ``n_max`` folds of similar size.
    """
    for kind, labels in (("group", data.groups), ("section", data.sections)):
        names = np.unique(labels)
        if len(names) > 1:
            return InnerFolds(kind, _deal(labels, names, n_max, seed))
    return InnerFolds("block", _blocks(data, seed))


def _deal(labels: np.ndarray, names: np.ndarray, n_max: int, seed: int) -> np.ndarray:
    if len(names) <= n_max:
        return labels
    shuffled = np.random.default_rng(seed).permutation(names)
    number = {name: i % n_max for i, name in enumerate(shuffled)}
    return np.array([f"fold{number[name]}" for name in labels])


def _blocks(data: TrainingData, seed: int) -> np.ndarray:
    """Compact blocks by k-means on the positions: random spots would leak through their neighbours."""
    from sklearn.cluster import KMeans

    # k-means draws its first centres by row, so the rows must come in an order of their own.
    order = data.canonical_order()
    n_blocks = min(N_BLOCKS, max(len(order) // _MIN_BLOCK, 2), len(order))
    blocks = KMeans(n_blocks, n_init=10, random_state=seed).fit_predict(data.positions[order])
    return blocks[np.argsort(order)].astype(str)
