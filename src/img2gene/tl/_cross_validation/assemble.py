"""The parts of a cross-validation put together: one table of scores, one of folds, one of predictions for each model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import listing
from img2gene._study.expression import expression_unit
from img2gene._study.study import Study
from img2gene.tl._cross_validation.checkpoint import Part
from img2gene.tl._cross_validation.folds import OuterFolds
from img2gene.tl._cross_validation.task import Fold
from img2gene.tl.evaluate import BASELINE_ROWS

if TYPE_CHECKING:
    from anndata import AnnData

# Of each fold (by number) and model.
Parts = dict[tuple[int, str], Part]


@dataclass(frozen=True)
class Assembly:
    """The results of all folds and models, put together.

    Attributes
    ----------
    study
        The study whose spots were held out.
    candidates
        Labels of the models, baselines included.
    layer
        Layer with labels; None for counts.
    """

    study: Study
    outer: OuterFolds
    candidates: list[str]
    folds: list[Fold]
    parts: Parts
    layer: str | None

    def scores(self) -> pd.DataFrame:
        """Scores of all models, then of the baselines that come with the first."""
        frames = []
        for model in [*self.candidates, *BASELINE_ROWS]:
            # Every part scores the baselines, too. The null shuffles against predictions, so one model is chosen for it.
            source = model if model in self.candidates else self.candidates[0]
            for number, fold in enumerate(self.folds):
                part = self.parts[number, source].scores
                frames.append(_with_absent(part[part["model"] == model], fold).assign(fold=fold.name))
        return self._tidy(frames)

    def structure(self) -> pd.DataFrame:
        """Agreement of gene–gene correlations of all models."""
        return pd.concat(
            [
                self.parts[number, label].structure.assign(fold=fold.name)
                for label in self.candidates
                for number, fold in enumerate(self.folds)
            ],
            ignore_index=True,
        )

    def _tidy(self, parts: list[pd.DataFrame]) -> pd.DataFrame:
        # Without permutations the null has no rows, and empty frames can change the types of columns.
        table = pd.concat([part for part in parts if len(part)], ignore_index=True)
        first = ["model", "fold", "section", "patient", "gene"]
        last = ["n_spots", "leakage"]
        table = table[[*first, *(name for name in table if name not in {*first, *last}), *last]]
        return table.assign(scope=self.outer.scope)

    def describe(self) -> pd.DataFrame:
        """What was held out in each fold, and what was left to train on."""
        study, patients = self.study, self.study.patients
        rows: list[dict[str, Any]] = []
        for number, fold in enumerate(self.folds):
            # `listing` shortens long lists by default, but this table has to name every section.
            held = None if patients is None else listing(np.unique(patients[fold.test]), 1000)
            facts: dict[str, Any] = {
                "fold": fold.name,
                "sections": listing(study.section_names(fold.test), 1000),
                "patients": held,
            }
            facts |= {"n_train_spots": len(fold.train), "n_test_spots": len(fold.test)}
            facts |= {"n_train_sections": len(study.section_names(fold.train))}
            facts |= {"n_train_groups": len(np.unique(self.outer.names[fold.train])), "n_genes": len(fold.genes)}
            facts |= {"absent": ", ".join(fold.absent)}
            facts |= {f"seconds {label}": self.parts[number, label].seconds for label in self.candidates}
            rows.append(facts)
        return pd.DataFrame(rows)

    def predictions(self, label: str) -> AnnData:
        """Held-out predictions of all folds in one table."""
        import anndata as ad

        genes = list(dict.fromkeys(gene for fold in self.folds for gene in fold.genes))
        rows = np.concatenate([fold.test for fold in self.folds])
        # Folds hold spots group by group; the predictions come back in the order of the study.
        order = np.argsort(rows, kind="stable")
        names = self.parts[0, label].layers
        stacked = {
            name: np.concatenate(
                [_spread(self.parts[i, label].layers[name], fold, genes) for i, fold in enumerate(self.folds)]
            )
            for name in names
        }
        study, rows = self.study, rows[order]
        # Percentiles of predictions that the study holds belong to models that saw these spots.
        earlier = [_schema.ood_key(key) for key in study.record(_schema.PREDICTED_BY, {})]
        obs = study.table.obs.iloc[rows].drop(columns=earlier, errors="ignore")
        obs = obs.assign(section=study.sections[rows])
        obs["fold"] = np.repeat([fold.name for fold in self.folds], [len(fold.test) for fold in self.folds])[order]
        obs = obs.assign(**{name: values[order] for name, values in stacked.items() if values.ndim == 1})
        out = ad.AnnData(
            stacked["X"][order],
            obs=obs,
            var=pd.DataFrame(index=genes),
            layers={name: values[order] for name, values in stacked.items() if values.ndim == 2 and name != "X"},
        )
        # Positions are (row, column); scanpy and squidpy expect (x, y).
        out.uns[_schema.SCALE] = expression_unit(self.layer)
        out.obsm["spatial"] = study.positions[rows][:, ::-1].copy()
        return out


def _spread(values: np.ndarray, fold: Fold, genes: list[str]) -> np.ndarray:
    """Values of a fold's genes, and of absent ones where they come along, in the columns of all genes; NaN elsewhere."""
    if values.ndim == 1:
        return values
    out = np.full((len(values), len(genes)), np.nan, dtype=np.float32)
    # Only measured values have columns of absent genes, after the fold's genes; for predictions, names are cut off.
    places = pd.Index(genes).get_indexer([*fold.genes, *fold.absent][: values.shape[1]])
    # A gene that is absent in all folds has no column.
    out[:, places[places >= 0]] = values[:, places >= 0]
    return out


def _with_absent(scores: pd.DataFrame, fold: Fold) -> pd.DataFrame:
    """Scores with a row of NaN in every section for each gene that the fold lacks."""
    if not fold.absent or not len(scores):
        return scores
    # An absent gene without rows would be missing from `n_nan`, and the model would seem to predict every gene.
    facts = scores.drop_duplicates("section")[["model", "section", "patient", "n_spots", "leakage"]]
    missing = facts.merge(pd.DataFrame({"gene": fold.absent}), how="cross")
    members = {name: missing["gene"].isin(fold.absent_groups.get(name, [])) for name in fold.groups}
    return pd.concat([scores, missing.assign(**members)], ignore_index=True)
