"""Predict finer than spots, so that the tiles of each spot add up to what is known of the spot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from img2gene import _schema, encoders
from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError, listing
from img2gene._study.expression import labels, measured
from img2gene._study.fine_tiles import FineTiles, tiled
from img2gene._study.model_inputs import model_inputs
from img2gene._study.study import Study
from img2gene.models import Model
from img2gene.pp import embed_patches, extract_patches
from img2gene.tl._prediction.study import Request, StudyPrediction

if TYPE_CHECKING:
    from spatialdata import SpatialData

TOTALS = ("predicted", "measured")
_NEIGHBORS = 4
# Between spots nothing is known, so the correction of the spots around is not followed further than this.
_MOST_FACTOR = 4.0


def check_resolution(check: Arguments, resolution_um: Any, totals: Any, out: Any) -> tuple[Any, Any]:
    """Convert the side of the tiles, and what they add up to."""
    resolution_um = check.number("resolution_um", resolution_um, above=0, optional=True)
    totals = check.choice("totals", totals, TOTALS)
    if resolution_um is not None and out is not None:
        check.messages.append(
            "out= and resolution_um=: tiles are corrected together, so they are not written chunk by chunk. Leave one out."
        )
    if resolution_um is None and isinstance(totals, str) and totals == "measured":
        check.messages.append('totals="measured" needs `resolution_um=`.')
    return resolution_um, totals


def check_totals(totals: str, depth: float | str | None) -> None:
    """Refuse tiles of a stated depth, or of a model that predicts at one, that add up to measured spots."""
    if depth is not None and totals == "measured":
        raise Img2GeneError(
            f'depth={shown(depth)}: measured totals have the depth of their spots. Pass depth="training", or totals="predicted".'
        )


def check_embedded(model: Model) -> None:
    """Refuse features that cannot be computed for tiles: only encoders of this package embed them."""
    matrix = model.inputs.get("matrix")
    if matrix is not None:
        raise Img2GeneError(
            f"resolution_um=: tiles are embedded here, and nothing is known of the encoder of the matrix {matrix!r}. Train on an "
            "embedding of `img2gene.pp.embed_patches`, or leave `resolution_um` out."
        )


@dataclass(frozen=True)
class FinerPrediction:
    """A prediction on tiles that are smaller than spots.

    Attributes
    ----------
    study, model
        What is predicted, and with what.
    request
        What the call asks for.
    coarse
        Prediction of the spots.
    resolution_um
        Side of the tiles.
    totals
        ``"predicted"`` or ``"measured"``: what the tiles of a spot add up to.
    """

    study: Study
    model: Model
    request: Request
    coarse: StudyPrediction
    resolution_um: float
    totals: str

    @property
    def key(self) -> str:
        """Name of the table of tiles."""
        return f"{self.request.key}_{self.resolution_um:g}um"

    def run(self) -> SpatialData:
        """Predict the tiles; return an object with their squares and the table of their predictions."""
        kept = self.coarse.kept
        tiles = [
            FineTiles.of(self.study, region, kept, self.resolution_um)
            for region, rows in self.study.regions.items()
            if kept[rows].any()
        ]
        known = self._known(self.coarse.layers()[0][self.request.key])
        fine = tiled(self.study, tiles, self.key, self.resolution_um)
        self._embed(fine, tiles)
        part = Study.of(fine, self.key)
        request = replace(self.request, key=self.key, uncertainty=False)
        prediction = StudyPrediction(part, self.model, model_inputs(part, self.model), request)
        values = prediction.layers()[0][self.key]
        first = 0
        for tile in tiles:
            rows = slice(first, first + len(tile.centers))
            values[rows] = preserved(values[rows], known[tile.rows], tile, linear=self._is_linear)
            first = rows.stop
        table = prediction.table({self.key: values}, None)
        table.obs["spot"] = fine.tables[self.key].obs["spot"].to_numpy()
        _schema.write_json(table, "finer", {"resolution_um": self.resolution_um, "totals": self.totals})
        del fine.tables[self.key]
        fine.tables[self.key] = table
        return fine

    @property
    def _is_linear(self) -> bool:
        """Whether labels are log1p(1e4 · share), so that shares add up; a layer of the user adds up as it is."""
        return self.model.labels["layer"] is None

    def _embed(self, fine: SpatialData, tiles: list[FineTiles]) -> None:
        inputs = self.model.inputs
        regions = fine.tables[self.key].obs["region"].unique()
        by_region = dict(zip(regions, tiles, strict=True))
        extract_patches(
            fine,
            patch_um=tuple(inputs["patch_um"]),
            patch_px=max(inputs["input_px"], 32),
            mpp={name: tile.mpp for name, tile in by_region.items()},
            images={name: tile.image for name, tile in by_region.items()},
            table_key=self.key,
        )
        if "finetuned" not in inputs:
            embed_patches(
                fine,
                encoders.get(inputs["name"]).name,
                orientations=inputs["orientations"],
                augment=inputs.get("augment"),
                tokens=inputs.get("tokens"),
                table_key=self.key,
                client=self.request.client if self.request.client is not None else False,
            )

    def _known(self, predicted: np.ndarray) -> np.ndarray:
        """What the tiles of each spot add up to, float32 (n_obs, n_genes)."""
        if self.totals == "predicted":
            return predicted
        table, layer = self.study.table, self.model.labels["layer"]
        columns = table.var_names.get_indexer(self.model.genes)
        rows = np.flatnonzero(measured(table, layer))
        if not len(rows) or not (columns >= 0).any():
            raise Img2GeneError(
                f'totals="measured": `{self.study.name}` has no measured expression of the model\'s genes '
                f'({listing(self.model.genes, 3)}). Pass totals="predicted".'
            )
        known = predicted.copy()
        present = np.flatnonzero(columns >= 0)
        known[np.ix_(rows, present)] = labels(table, rows, columns[present], layer=layer)
        return known


def preserved(values: np.ndarray, known: np.ndarray, tiles: FineTiles, *, linear: bool) -> np.ndarray:
    """Change the values of tiles so that their mean in each spot is what is known of the spot.

    Parameters
    ----------
    values
        (n_tiles, n_genes).
    known
        (n_spots, n_genes).
    tiles
        Which spot each tile lies in.
    linear
        Whether labels are log1p of what adds up, which then is multiplied; else labels add up, and are shifted.
    """
    fine, coarse = (
        np.expm1(np.maximum(x.astype(np.float64), 0)) if linear else x.astype(np.float64) for x in (values, known)
    )
    inside = tiles.inside >= 0
    spots = tiles.inside[inside]
    counts = np.bincount(spots, minlength=len(known))[:, None]
    means = np.zeros(coarse.shape)
    np.add.at(means, spots, fine[inside])
    means /= counts
    near = tiles.nearest(_NEIGHBORS)[~inside]
    if not linear:
        shift = coarse - means
        fine[inside] += shift[spots]
        fine[~inside] += shift[near].mean(axis=1)
        return fine.astype(np.float32)
    factor = np.divide(coarse, means, out=np.ones_like(coarse), where=means > 0)
    fine[inside] *= factor[spots]
    # Where the tiles of a spot show nothing, what is known is spread evenly.
    fine[inside] += np.where(means > 0, 0, coarse)[spots]
    bounded = np.log(np.clip(factor, 1 / _MOST_FACTOR, _MOST_FACTOR))
    fine[~inside] *= np.exp(bounded[near].mean(axis=1))
    return np.log1p(fine).astype(np.float32)


def store(study: Study, fine: SpatialData, key: str) -> None:
    """Write squares and table of a finer prediction into the study, in the place of an earlier one, or nothing."""
    sdata = study.sdata
    with _schema.all_or_nothing(sdata):
        if key in sdata.tables:
            earlier = sdata.tables[key]
            del sdata.tables[key]
            for name in set(np.atleast_1d(earlier.uns["spatialdata_attrs"]["region"]).tolist()) & set(sdata.shapes):
                del sdata.shapes[name]
        for name, squares in fine.shapes.items():
            sdata.shapes[name] = squares
        sdata.tables[key] = fine.tables[key]


def target_problems(study: Study, key: str) -> list[str]:
    """List why a finer prediction cannot be written as ``key``."""
    sdata = study.sdata
    taken = {*sdata.images, *sdata.labels, *sdata.points, *sdata.shapes, *sdata.tables}
    table: Any = sdata.tables.get(key)
    if table is not None and _schema.read_json(table, "finer") is not None:
        return []
    if key in taken:
        return [f"`{key}` exists in the object already, and is no finer prediction; choose another `key_added`."]
    return []
