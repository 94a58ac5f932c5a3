"""Scores of one section gene by gene: those of the model, and those of the baselines beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from img2gene import _schema, metrics
from img2gene._study.study import Study
from img2gene.metrics.catalog import METRICS, OF_SPOTS
from img2gene.metrics.moments import Moments
from img2gene.metrics.regression import ranks
from img2gene.models import Model
from img2gene.tl._scoring.selection import labelled

if TYPE_CHECKING:
    import scipy.sparse as sp

MEAN, ORACLE, NULL = "training mean", "section mean (oracle)", "permutation null"
Scores = dict[str, np.ndarray]
# Moments of each model, and of each shuffle of the null
Pooled = dict[str, list[Moments]]


@dataclass(frozen=True)
class Places:
    """Where the spots of a section are.

    Attributes
    ----------
    positions
        (n_spots, 2: row, column), in pixels.
    graph
        Row-normalised graph of the six nearest spots.
    """

    positions: np.ndarray
    graph: sp.csr_matrix

    @classmethod
    def of(cls, study: Study, rows: np.ndarray) -> Places | None:
        """Those of some rows; None where no patches are recorded."""
        if _schema.PATCH_BBOX not in study.table.obsm:
            return None
        positions = study.centers[rows]
        return cls(positions, metrics.neighbor_graph(positions))


@dataclass(frozen=True)
class SectionValues:
    """What is scored in one section: those of its spots that have labels.

    Attributes
    ----------
    truth, predicted
        (n_spots, n_genes).
    std, lower, upper
        Predictive standard deviation and interval (n_spots, n_genes), where they were written.
    places
        Where the spots are, if that is recorded.
    """

    truth: np.ndarray
    predicted: np.ndarray
    std: np.ndarray | None
    lower: np.ndarray | None
    upper: np.ndarray | None
    places: Places | None

    @classmethod
    def read(cls, study: Study, model: Model, rows: np.ndarray, columns: np.ndarray, key: str) -> SectionValues:
        """Values of some rows and columns of a table, with predictions under ``key``."""
        table = study.table
        kept, truth = labelled(study, model, rows, columns)

        def layer(name: str) -> np.ndarray:
            return np.asarray(table.layers[name][kept][:, columns])

        std, lower, upper = (
            layer(name) if name in table.layers else None for name in (f"{key}_std", f"{key}_lower", f"{key}_upper")
        )
        return cls(truth, layer(key), std, lower, upper, Places.of(study, kept))

    def score(
        self, model: str, genes: list[str], mean: np.ndarray, n_permutations: int, rng: np.random.Generator
    ) -> tuple[pd.DataFrame, Pooled]:
        """Scores of the model and the baselines, one row per gene of each, and their moments.

        ``mean`` is that of the training labels of each gene.
        """
        ranked = ranks(self.truth), ranks(self.predicted)
        own = Moments.of(self.truth, self.predicted)
        rows = {model: self._scores(self.predicted, own, ranked, mean) | self._uncertainty()}
        pooled = {model: [own]}
        for name, level in ((MEAN, mean), (ORACLE, own.means[0])):
            constant = np.broadcast_to(level, self.truth.shape)
            moments = Moments.of(self.truth, constant)
            rows[name] = self._scores(constant, moments, (ranked[0], constant), mean)
            pooled[name] = [moments]
        if n_permutations:
            orders = [rng.permutation(len(self.truth)) for _ in range(n_permutations)]
            rows[NULL], pooled[NULL] = self._null(orders, ranked, mean)
        frames = [pd.DataFrame({"model": name, "gene": genes, **found}) for name, found in rows.items()]
        columns = ["model", "gene", *METRICS]
        return pd.concat([frame.reindex(columns=columns) for frame in frames], ignore_index=True), pooled

    def _null(
        self, orders: list[np.ndarray], ranked: tuple[np.ndarray, np.ndarray], mean: np.ndarray
    ) -> tuple[Scores, list[Moments]]:
        """Mean scores of shuffled labels; those of maps, which take longest and vary least, from the first shuffle alone."""
        found, pooled = [], []
        for number, order in enumerate(orders):
            shuffled = SectionValues(
                self.truth[order], self.predicted, None, None, None, None if number else self.places
            )
            pooled.append(Moments.of(shuffled.truth, self.predicted))
            found.append(shuffled._scores(self.predicted, pooled[-1], (ranked[0][order], ranked[1]), mean))
        return found[0] | {name: np.mean([scores[name] for scores in found], axis=0) for name in OF_SPOTS}, pooled

    def _scores(
        self, predicted: np.ndarray, moments: Moments, ranked: tuple[np.ndarray, np.ndarray], mean: np.ndarray
    ) -> Scores:
        found = {
            "pcc": moments.pearson(),
            "spearman": metrics.pearson(*ranked),
            "mse": metrics.mse(self.truth, predicted),
            "mae": metrics.mae(self.truth, predicted),
            "r2": metrics.r2(self.truth, predicted, mean),
            "nrmse": metrics.nrmse(self.truth, predicted),
        }
        if self.places is None:
            return found
        measured, own = (metrics.morans_i(values, self.places.graph) for values in (self.truth, predicted))
        return found | {"ssim": metrics.ssim(self.truth, predicted, self.places.positions), "moran": own - measured}

    def _uncertainty(self) -> Scores:
        found = {}
        if self.lower is not None and self.upper is not None:
            found["coverage"] = metrics.coverage(self.truth, self.lower, self.upper)
            found["width"] = metrics.interval_width(self.lower, self.upper)
        if self.std is not None:
            found["error_correlation"] = metrics.error_correlation(self.truth, self.predicted, self.std)
        return found


def pool(sections: Iterable[Pooled]) -> Scores:
    """Correlation of each model over the spots of all sections; of the null, the mean over shuffles."""
    total: Pooled = {}
    for section in sections:
        for name, parts in section.items():
            total[name] = [one + two for one, two in zip(total[name], parts, strict=True)] if name in total else parts
    return {name: np.mean([moments.pearson() for moments in parts], axis=0) for name, parts in total.items()}
