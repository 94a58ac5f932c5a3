"""Spots of sections as batches: neighbours, offsets in µm, and parts of a section that lie together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from img2gene._errors import listing, raise_problems
from img2gene.metrics.spatial import nearest_spots

# Spots of a batch that lie together share most of their neighbours, which are encoded once.
_LEAF = 16


@dataclass(frozen=True)
class SectionSpots:
    """One section's spots.

    Attributes
    ----------
    name
        Name of the section.
    rows
        int (n,): where its spots are in the arrays of the study.
    positions
        float32 (n, 2): row and column in µm.
    neighbors
        int (n, k): the nearest spots, as indices into ``rows``, nearest first.
    """

    name: str
    rows: np.ndarray
    positions: np.ndarray
    neighbors: np.ndarray

    def offsets(self, spots: np.ndarray) -> np.ndarray:
        """float32 (len(spots), k, 2): where the neighbours of chosen spots lie from them, in µm."""
        return self.positions[self.neighbors[spots]] - self.positions[spots, None]


def split_sections(sections: np.ndarray, positions: np.ndarray, k: int, *, pad: bool) -> list[SectionSpots]:
    """The sections of a study with the ``k`` nearest spots of each spot.

    Parameters
    ----------
    sections, positions
        (n,) section and (n, 2) position in µm of each spot.
    k
        Number of neighbours.
    pad
        Where a section has fewer than ``k`` + 1 spots, repeat its neighbours instead of raising.

    Raises
    ------
    Img2GeneError
        A section has a single spot, or fewer than ``k`` + 1 and ``pad`` is False; all of them are named.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.networks.batches import split_sections
    >>> line = np.array([[0.0, 0], [1, 0], [3, 0]])
    >>> split_sections(np.array(["a"] * 3), line, k=1, pad=False)[0].neighbors.ravel()
    array([1, 0, 1])
    """
    split, problems = [], []
    names, first, number = np.unique(sections, return_index=True, return_inverse=True)
    sizes = np.bincount(number, minlength=len(names))
    lonely = [str(name) for name, size in zip(names, sizes, strict=True) if size < 2]
    small = [f"{name} ({size})" for name, size in zip(names, sizes, strict=True) if 2 <= size <= k]
    if lonely:
        problems.append(
            f"Sections {listing(lonely)} have a single spot, which has no neighbours to look at. Leave them out."
        )
    if small and not pad:
        problems.append(
            f"n_neighbors={k}: sections {listing(small)} have no more spots than that. Lower `n_neighbors`, or leave them out."
        )
    raise_problems(problems)
    for index in np.argsort(first, kind="stable"):
        rows = np.flatnonzero(number == index)
        place = np.asarray(positions, dtype=np.float64)[rows]
        # Far from the origin, single precision would round the offsets between spots.
        centred = (place - place.mean(axis=0)).astype(np.float32)
        split.append(SectionSpots(str(names[index]), rows, centred, _neighbors(place, k)))
    return split


def _neighbors(positions: np.ndarray, k: int) -> np.ndarray:
    """The k nearest other spots, (n, k), of positions (row, column); repeated where there are fewer."""
    nearest = nearest_spots(positions, k)
    return nearest[:, np.arange(k) % nearest.shape[1]]


class Batch(NamedTuple):
    """Spots of one section, and everything that the network looks at to predict them.

    Attributes
    ----------
    features
        float32 (u, q): components of all spots that are looked at.
    tokens
        float32 (B, m, w): patch tokens of the batch's spots; m is 0 where there are none.
    own, around, anchors
        int (B,), (B, k), (a,): the batch's spots, their neighbours, and those that stand for the section, as indices into
        ``features``.
    offsets
        float32 (B, k, 2): where the neighbours lie, in µm.
    """

    features: Tensor
    tokens: Tensor
    own: Tensor
    around: Tensor
    anchors: Tensor
    offsets: Tensor


def gather(
    section: SectionSpots, spots: np.ndarray, anchors: np.ndarray, features: np.ndarray, tokens: np.ndarray
) -> Batch:
    """The batch of chosen spots of a section; ``features`` (n, q) and ``tokens`` (n, m, w) are the whole study's."""
    around = section.neighbors[spots]
    # Spots that are neighbours of several others are encoded once.
    seen, places = np.unique(np.concatenate([spots, around.ravel(), anchors]), return_inverse=True)
    own, near, far = np.split(places, [len(spots), len(spots) + around.size])
    rows = section.rows
    return Batch(
        torch.from_numpy(np.ascontiguousarray(features[rows[seen]])),
        torch.from_numpy(np.asarray(tokens[rows[spots]], dtype=np.float32)),
        torch.from_numpy(own),
        torch.from_numpy(near.reshape(around.shape)),
        torch.from_numpy(far),
        torch.from_numpy(section.offsets(spots)),
    )


def training_chunks(
    sections: list[SectionSpots], batch_size: int, n_anchors: int, rng: np.random.Generator
) -> Iterator[tuple[SectionSpots, np.ndarray, np.ndarray]]:
    """Every spot once in random batches of one section each: (section, spots, anchors).

    A batch is made of small parts that lie together, taken from all over the section.
    """
    chunks = []
    for section in sections:
        n = len(section.rows)
        leaves = compact_parts(section.positions, _LEAF, rng)
        order = np.concatenate([leaves[i] for i in rng.permutation(len(leaves))])
        n_batches = max(round(n / batch_size), 1)
        for spots in np.array_split(order, n_batches):
            chunks.append((section, spots, rng.choice(n, size=min(n, n_anchors), replace=False)))
    for i in rng.permutation(len(chunks)):
        yield chunks[i]


def compact_parts(positions: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Divide spots into parts of at most ``size`` that lie together: halved across their longer side, randomly turned.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.networks.batches import compact_parts
    >>> parts = compact_parts(np.random.default_rng(0).random((100, 2)), 16, np.random.default_rng(1))
    >>> max(map(len, parts)) <= 16, sorted(np.concatenate(parts)) == list(range(100))
    (True, True)
    """
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = positions @ turn
    waiting, parts = [np.arange(len(positions))], []
    while waiting:
        part = waiting.pop()
        if len(part) <= size:
            parts.append(part)
            continue
        axis = int(np.ptp(turned[part], axis=0).argmax())
        # Not always in the middle, so that no border stays where it is.
        cut = max(int(len(part) * rng.uniform(0.35, 0.65)), 1)
        order = np.argpartition(turned[part, axis], cut)
        waiting += [part[order[:cut]], part[order[cut:]]]
    return parts
