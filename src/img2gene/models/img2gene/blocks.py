"""Predict blocks of spots with a fitted Img2Gene: sections are encoded once, and their spots predicted block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from img2gene.encoders.base import resolve_device
from img2gene.models.img2gene.inference import SectionPass, section_predictions
from img2gene.models.networks.batches import SectionSpots
from img2gene.models.row_blocks import Block, Rows

if TYPE_CHECKING:
    from img2gene.models.img2gene.fitted import FittedImg2Gene


class PreparedImg2Gene:
    """A fitted model with the spots that it is to predict; called with a slice of rows.

    Parameters
    ----------
    fitted
        The model.
    features, sections, positions, tokens
        As in ``FittedImg2Gene.predict``.
    with_spread
        Whether blocks come with the SD over the networks.
    """

    def __init__(
        self,
        fitted: FittedImg2Gene,
        features: np.ndarray,
        sections: np.ndarray,
        positions: np.ndarray,
        tokens: np.ndarray | None,
        *,
        with_spread: bool,
    ) -> None:
        self.fitted, self.features, self.with_spread = fitted, features, with_spread
        self.arrays = fitted.inputs(features, sections, positions, tokens)
        self.shares = fitted.shares(features, sections)
        self.ridge = fitted.ridge.prepare(features, sections)
        # Stored models of version 0.1 have another ridge here.
        other = fitted.validated.ridge
        self.far: Rows = self.ridge if other is fitted.ridge else other.prepare(features, sections)
        self._passes: dict[str, SectionPass] = {}
        self._smoothed: dict[str, np.ndarray] = {}

    def __call__(self, rows: slice) -> Block:
        """Predict a slice: labels float32 (n, n_genes) and the SD over the networks, or None."""
        shares = self.shares[rows, None]
        out = self.ridge(rows)[0] - self.fitted.ridge.arrays["label_mean"]
        out *= shares * self.fitted.weights[0]
        spread = np.zeros_like(out) if self.with_spread and self.fitted.ensemble.n_models > 1 else None
        sections = self._within(rows)
        self._add_networks(out, spread, sections, rows)
        for section, spots in sections:
            own = section.rows[spots] - rows.start
            if self.shares[section.rows[0]] < 1:
                out[own] += (1 - shares[own]) * self._far_deviations(section, spots, rows, own)
        out += self.fitted.readout.label_mean
        return out, spread

    def _within(self, rows: slice) -> list[tuple[SectionSpots, np.ndarray]]:
        """Sections with spots among the rows, and which of their spots these are."""
        bounds = [(s, *np.searchsorted(s.rows, [rows.start, rows.stop])) for s in self.arrays.sections]
        return [(section, np.arange(first, last)) for section, first, last in bounds if first < last]

    @torch.no_grad()
    def _add_networks(
        self,
        out: np.ndarray,
        spread: np.ndarray | None,
        sections: list[tuple[SectionSpots, np.ndarray]],
        rows: slice,
    ) -> None:
        """Add the predictions of the networks to ``out``, in place, and write the SD over members to ``spread``."""
        names = {section.name for section, _ in sections}
        # Encoded spots of a section take more memory than its features, so only those of this block are kept.
        self._passes = {name: kept for name, kept in self._passes.items() if name in names}
        with self.fitted.ensemble.placed(resolve_device(None)):
            for section, spots in sections:
                # Sections in which the networks have no share need no pass.
                if self.shares[section.rows[0]] == 0:
                    continue
                if section.name not in self._passes:
                    self._passes[section.name] = SectionPass(self.fitted.ensemble, self.arrays, section)
                for members, outputs in section_predictions(self._passes[section.name], spots):
                    share, own = self.shares[members, None], members - rows.start
                    out[own] += self.fitted.mixed(outputs) * share
                    if spread is not None:
                        spread[own] = self.fitted.network_spread(outputs) * share

    def _far_deviations(self, section: SectionSpots, spots: np.ndarray, rows: slice, own: np.ndarray) -> np.ndarray:
        """Labels of spots of a far section by the ridge, relative to the mean."""
        validated = self.fitted.validated
        if not validated.smoothing:
            return (self.far(rows)[0] - validated.ridge.arrays["label_mean"])[own]
        if section.name not in self._smoothed:
            # The mean over the nearest spots needs the whole section.
            self._smoothed = {section.name: validated.deviations(self.features, section)}
        return self._smoothed[section.name][spots]
