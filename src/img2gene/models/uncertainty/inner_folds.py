"""Folds inside the training data, which imitate the split between training and new patients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from img2gene.models.data import TrainingData

N_BLOCKS = 5
# Fewest spots per block.
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
        """The unit that each held-out spot is centred in: its section, or its block of the only section.

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
            return InnerFolds(kind, _fold_labels(labels, names, n_max, seed))
    return InnerFolds("block", _blocks(data, seed))


def deal(names: np.ndarray | list[str], n: int, seed: int) -> list[np.ndarray]:
    """Divide distinct names at random into at most ``n`` parts of similar size, like cards that are dealt in turn.

    Examples
    --------
    >>> from img2gene.models.uncertainty.inner_folds import deal
    >>> [len(part) for part in deal(["A", "B", "C", "D", "E"], 2, seed=0)]
    [3, 2]
    """
    shuffled = np.random.default_rng(seed).permutation(names)
    return [shuffled[i::n] for i in range(min(n, len(shuffled)))]


def _fold_labels(labels: np.ndarray, names: np.ndarray, n_max: int, seed: int) -> np.ndarray:
    """Name of the fold of each spot: its own label, or where there are more than ``n_max`` the part that it was dealt to."""
    if len(names) <= n_max:
        return labels
    number = {name: i for i, part in enumerate(deal(names, n_max, seed)) for name in part.tolist()}
    return np.array([f"fold{number[name]}" for name in labels.tolist()])


def _blocks(data: TrainingData, seed: int) -> np.ndarray:
    """Compact blocks by k-means on the positions: random spots would leak through their neighbours."""
    from sklearn.cluster import KMeans

    # k-means draws its first centres by row, so the rows must come in an order of their own.
    order = data.canonical_order()
    n_blocks = min(N_BLOCKS, max(len(order) // _MIN_BLOCK, 2), len(order))
    blocks = KMeans(n_blocks, n_init=10, random_state=seed).fit_predict(data.positions[order])
    return blocks[np.argsort(order)].astype(str)
