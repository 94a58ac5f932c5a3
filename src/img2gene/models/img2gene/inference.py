"""Passes of an ensemble over whole sections, in blocks of spots: references and predictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from img2gene.models.img2gene.network import Outputs
from img2gene.models.networks.batches import SectionSpots
from img2gene.models.networks.debiasing import Views
from img2gene.models.networks.ensemble import Ensemble, unit_members

# Spots per pass of the networks; views of neighbours make each spot costly.
_BLOCK = 512


@dataclass(frozen=True)
class SpotArrays:
    """Inputs of the network for all spots.

    Attributes
    ----------
    sections
        Sections with their neighbours.
    features
        float32 (n, q): components.
    tokens
        float (n, m, w): components of the patch tokens; m is 0 where there are none.
    """

    sections: list[SectionSpots]
    features: np.ndarray
    tokens: np.ndarray


class SectionPass:
    """The spots of a section as the networks see them: encoded once, and their views in blocks.

    The section's latents come from all of its spots, so a prediction does not depend on the blocks.
    """

    def __init__(self, ensemble: Ensemble, arrays: SpotArrays, section: SectionSpots) -> None:
        self.ensemble, self.arrays, self.section = ensemble, arrays, section
        features = torch.from_numpy(arrays.features[section.rows]).to(self._device)
        parts = [ensemble.call(lambda net, x: net.encode(x), part) for part in features.split(8 * _BLOCK)]
        self.hidden = torch.cat(parts, dim=1)
        # Latents from single blocks would make predictions depend on how spots are divided.
        self.latents = ensemble.call(lambda net, h: net.latents(h), paired=(self.hidden,))

    @property
    def _device(self) -> torch.device:
        return next(self.ensemble.parameters()).device

    def views(self, spots: np.ndarray) -> Iterator[tuple[np.ndarray, Views]]:
        """Views of chosen spots of the section, in blocks: (rows of the study, views with the members first)."""
        for start in range(0, len(spots), _BLOCK):
            part = spots[start : start + _BLOCK]
            yield self.section.rows[part], self._views(part)

    def _views(self, spots: np.ndarray) -> Views:
        section, device = self.section, self._device
        tokens = torch.from_numpy(np.asarray(self.arrays.tokens[section.rows[spots]], dtype=np.float32)).to(device)
        offsets = torch.from_numpy(section.offsets(spots)).to(device)
        own, near = torch.from_numpy(spots).to(device), torch.from_numpy(section.neighbors[spots]).to(device)
        # The networks may have moved to the processor and back since the spots were encoded.
        hidden, latents = self.hidden.to(device), self.latents.to(device)
        return self.ensemble.call(
            lambda net, tok, off, own, around, lat: net.views(own, around, net.project(around), tok, off, lat),
            tokens,
            offsets,
            paired=(hidden[:, own], hidden[:, near], latents),
        )


def section_views(ensemble: Ensemble, arrays: SpotArrays, section: SectionSpots) -> Iterator[tuple[np.ndarray, Views]]:
    """Views of all spots of a section, in blocks: (rows of the study, views with the members first)."""
    yield from SectionPass(ensemble, arrays, section).views(np.arange(len(section.rows)))


@torch.no_grad()
def predictions(ensemble: Ensemble, arrays: SpotArrays) -> Iterator[tuple[np.ndarray, Outputs]]:
    """Predict with all members, in blocks: rows of the study, and outputs with the members first."""
    for section in arrays.sections:
        yield from section_predictions(SectionPass(ensemble, arrays, section), np.arange(len(section.rows)))


def section_predictions(section: SectionPass, spots: np.ndarray) -> Iterator[tuple[np.ndarray, Outputs]]:
    """Predict chosen spots of a section, as :func:`predictions` does."""
    for rows, views in section.views(spots):
        yield rows, section.ensemble.call(lambda net, *x: net.predict(Views(*x)), paired=tuple(views))


@torch.no_grad()
def embed(ensemble: Ensemble, arrays: SpotArrays, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embed the ``chosen`` spots (bool (n,)); the embeddings z of all members stand side by side (:func:`unit_members`).

    Returns
    -------
    Rows of the study in the order of ``arrays.sections``, and float32 (n_wanted, n_models · dim).
    """
    blocks = []
    for section in arrays.sections:
        for rows, views in section_views(ensemble, arrays, section):
            keys = unit_members(ensemble.call(lambda net, *x: net.embed(Views(*x)), paired=tuple(views)))
            blocks.append((rows[chosen[rows]], keys[chosen[rows]]))
    rows, keys = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return rows, keys


@torch.no_grad()
def update_references(ensemble: Ensemble, arrays: SpotArrays) -> None:
    """Set every member's reference views to the exact means over all spots of ``arrays``."""
    training = ensemble.training
    # With dropout the references would be noisy, and differ from the features at prediction.
    ensemble.eval()
    # Single precision loses digits over many spots.
    sums = [torch.zeros(ensemble.get_buffer(f"reference_{name}").shape, dtype=torch.float64) for name in Views._fields]
    for section in arrays.sections:
        for _, views in section_views(ensemble, arrays, section):
            for total, view in zip(sums, views, strict=True):
                total += view.sum(dim=1).cpu().double()
    count = sum(len(section.rows) for section in arrays.sections)
    # Exact means: running means depend on the order of batches.
    for name, total in zip(Views._fields, sums, strict=True):
        ensemble.get_buffer(f"reference_{name}").copy_(total / count)
    ensemble.train(training)
