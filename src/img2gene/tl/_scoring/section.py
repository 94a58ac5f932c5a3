"""Score one section gene by gene: the model and the baselines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from img2gene import metrics
from img2gene._errors import Img2GeneError
from img2gene._study.study import Study
from img2gene.metrics.catalog import ARGUMENTS, CATALOG, METRICS
from img2gene.metrics.moments import Moments
from img2gene.metrics.regression import ranks
from img2gene.models import Model
from img2gene.tl._scoring.depth import MeasuredDepth
from img2gene.tl._scoring.selection import labelled, layer_values, stored_values

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
        (n_spots, 2: row, column), on any scale.
    graph
        Row-normalised graph of the six nearest spots.
    """

    positions: np.ndarray
    graph: sp.csr_matrix

    @classmethod
    def of(cls, study: Study, rows: np.ndarray) -> Places | None:
        """Read the positions of some rows: patch centres, else ``obsm["spatial"]``; None if there is neither."""
        if study.places is None:
            return None
        positions = study.places[rows]
        if not np.isfinite(positions).all():
            return None
        return cls(positions, metrics.neighbor_graph(positions))


@dataclass(frozen=True)
class SectionValues:
    """What is scored in one section: its measured spots.

    Attributes
    ----------
    truth, predicted
        (n_spots, n_genes).
    std, lower, upper
        Predictive standard deviation and interval (n_spots, n_genes), where they were written.
    places
        Where the spots are, if that is recorded.
    rows
        int (n_spots,): rows of the table.
    """

    truth: np.ndarray
    predicted: np.ndarray
    std: np.ndarray | None
    lower: np.ndarray | None
    upper: np.ndarray | None
    places: Places | None
    rows: np.ndarray

    @classmethod
    def read(
        cls, study: Study, model: Model, rows: np.ndarray, columns: np.ndarray, key: str, depth: MeasuredDepth
    ) -> SectionValues:
        """Values of some rows and columns of a table, with predictions under ``key``, converted to ``depth``."""
        kept, truth = labelled(study, model, rows, columns)

        def layer(name: str) -> np.ndarray:
            return layer_values(study, key, name, kept, columns)

        std, lower, upper = (
            None if stored_values(study, key, name) is None else layer(name)
            for name in (f"{key}_std", f"{key}_lower", f"{key}_upper")
        )
        predicted = layer(key)
        missing = int(np.isnan(predicted).any(axis=1).sum())
        if missing:
            raise Img2GeneError(
                f"Predictions {key!r} are missing in {missing} of {len(kept)} measured spots of section "
                f"{study.sections[kept[0]]}, for example because they were off the tissue when it was predicted. Run "
                "`img2gene.tl.predict` again."
            )
        lower, upper, std = depth.convert_interval(lower, upper, std, kept)
        return cls(truth, depth.convert(predicted, kept), std, lower, upper, Places.of(study, kept), kept)

    def score(
        self, model: str, genes: list[str], mean: np.ndarray, n_permutations: int, rng: np.random.Generator
    ) -> tuple[pd.DataFrame, Pooled]:
        """Scores of the model and the baselines, one row per gene of each, and their moments.

        ``mean`` is that of the training labels of each gene.
        """
        ranked = ranks(self.truth), ranks(self.predicted)
        moments = Moments.of(self.truth, self.predicted)
        rows, pooled = {model: self._scores(moments, ranked, mean)}, {model: [moments]}
        for name, level in ((MEAN, mean), (ORACLE, moments.means[0])):
            constant = np.broadcast_to(level, self.truth.shape)
            baseline = SectionValues(self.truth, constant, None, None, None, self.places, self.rows)
            pooled[name] = [Moments.of(self.truth, constant)]
            # A constant stands for its own ranks: both are without a correlation.
            rows[name] = baseline._scores(pooled[name][0], (ranked[0], constant), mean)
        if n_permutations:
            orders = [rng.permutation(len(self.truth)) for _ in range(n_permutations)]
            rows[NULL], pooled[NULL] = self._null(orders, ranked, mean)
        frames = [pd.DataFrame({"model": name, "gene": genes, **scores}) for name, scores in rows.items()]
        columns = ["model", "gene", *METRICS]
        # Metrics that are undefined here become NaN, so that the tables of all sections have the same columns.
        return pd.concat([frame.reindex(columns=columns) for frame in frames], ignore_index=True), pooled

    def _null(
        self, orders: list[np.ndarray], ranked: tuple[np.ndarray, np.ndarray], mean: np.ndarray
    ) -> tuple[Scores, list[Moments]]:
        """Mean scores of shuffled expression; maps, which take longest and vary least, are scored for the first shuffle alone."""
        results, pooled = [], []
        for number, order in enumerate(orders):
            places = None if number else self.places
            shuffled = SectionValues(self.truth[order], self.predicted, None, None, None, places, self.rows)
            pooled.append(Moments.of(shuffled.truth, self.predicted))
            # The ranks of shuffled values are the shuffled ranks, so nothing is sorted again.
            results.append(shuffled._scores(pooled[-1], (ranked[0][order], ranked[1]), mean))
        means = {name: np.mean([scores[name] for scores in results], axis=0) for name in results[-1]}
        return results[0] | means, pooled

    def _scores(self, moments: Moments, ranked: tuple[np.ndarray, np.ndarray], mean: np.ndarray) -> Scores:
        """Metrics of the catalog that can be computed in one section, with the arguments that are known here."""
        places, (truth_ranks, predicted_ranks) = self.places, ranked
        values = {
            "truth": self.truth,
            "predicted": self.predicted,
            "mean": mean,
            "moments": moments,
            "truth_ranks": truth_ranks,
            "predicted_ranks": predicted_ranks,
            "positions": None if places is None else places.positions,
            "graph": None if places is None else places.graph,
            "lower": self.lower,
            "upper": self.upper,
            "sd": self.std,
        }
        scores = {}
        for metric in CATALOG.values():
            arguments = [values[name] for name in ARGUMENTS[metric.needs]]
            if metric.needs != "pooled" and all(value is not None for value in arguments):
                scores[metric.name] = metric.function(*arguments)
        return scores


def pool(sections: Iterable[Pooled]) -> Scores:
    """Correlation of each model over the spots of all sections; of the null, the mean over shuffles."""
    # Moments of sections add up, so no section's values have to stay in memory.
    total: Pooled = {}
    for section in sections:
        for name, parts in section.items():
            total[name] = [one + two for one, two in zip(total[name], parts, strict=True)] if name in total else parts
    correlation = CATALOG["pcc_pooled"].function
    return {name: np.mean([correlation(moments) for moments in parts], axis=0) for name, parts in total.items()}
