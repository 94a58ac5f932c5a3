"""The study: one table of a SpatialData, with the labels and positions of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, listing, missing
from img2gene._study.sections import check_distinct, region_column, text_labels

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_EXTRACT = "Run `img2gene.pp.extract_patches` first."


@dataclass(frozen=True, eq=False)
class Study:
    """A table of a SpatialData and what is read from it.

    A public function builds one study per call and passes it on. The study keeps what it has read, so it describes the
    object before the function wrote anything.

    Attributes
    ----------
    sdata
        Object with images, regions and tables.
    table_key
        Name of the table.
    plain_table
        The table with counts that are CSR or dense, for reading, if the stored counts have another format.

    Examples
    --------
    >>> import img2gene as ig
    >>> from img2gene._study.study import Study
    >>> study = Study.of(ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=60))
    >>> study.section_names(), study.name
    (['P1_S1', 'P2_S1'], "sdata['table']")
    """

    sdata: SpatialData
    table_key: str = "table"
    plain_table: AnnData | None = None

    @classmethod
    def of(cls, sdata: SpatialData, table_key: str = "table") -> Study:
        """Open a study; an object without this table is refused with a list of its tables."""
        _schema.get_table(sdata, table_key)
        return cls(sdata, table_key)

    @property
    def table(self) -> AnnData:
        """The table to read from."""
        return self.stored_table if self.plain_table is None else self.plain_table

    @property
    def stored_table(self) -> AnnData:
        """The table of the object, which results are written to."""
        return self.sdata.tables[self.table_key]

    @property
    def name(self) -> str:
        """How messages call the table."""
        return f"sdata['{self.table_key}']"

    @property
    def table_argument(self) -> str:
        """The argument that a suggested call needs to reach this table; empty for the default table."""
        return "" if self.table_key == "table" else f", table_key={self.table_key!r}"

    @property
    def n_obs(self) -> int:
        """Number of spots."""
        return self.table.n_obs

    def record(self, key: str, default: Any = None) -> Any:
        """Read a configuration that the package stored in the table."""
        return _schema.read_json(self.table, key, default=default)

    @cached_property
    def regions(self) -> dict[str, np.ndarray]:
        """Rows of each region, in the order of first appearance."""
        values = region_column(self.table, self.name).astype(str).to_numpy(dtype=str)
        return {str(name): np.flatnonzero(values == name) for name in pd.unique(values)}

    @cached_property
    def sections(self) -> np.ndarray:
        """Section of each row, str (n_obs,): ``obs["section"]``, else the name of the region."""
        obs = self.table.obs
        column = obs[_schema.SECTION] if _schema.SECTION in obs else region_column(self.table, self.name)
        return text_labels(column, _schema.SECTION)

    @cached_property
    def patients(self) -> np.ndarray | None:
        """Patient of each row, str (n_obs,), or None if patients are not recorded."""
        return self.groups(_schema.PATIENT) if _schema.PATIENT in self.table.obs else None

    def groups(self, column: str) -> np.ndarray:
        """Values of a grouping column, str (n_obs,), clearly distinct; ``"section"`` falls back to the region."""
        if column == _schema.SECTION:
            return self.sections
        obs = self.table.obs
        if column not in obs:
            hint = (
                f"Say which donor each section comes from (`{self.name}.obs['{column}'] = …`), or pass "
                '`groups="section"` if patients are unknown.'
            )
            raise MissingKeyError(missing(column, f"{self.name}.obs", obs.columns, hint))
        labels = text_labels(obs[column], column)
        check_distinct(labels, column)
        return labels

    def section_names(self, rows: np.ndarray | None = None) -> list[str]:
        """Names of the sections among ``rows`` (by default all), in order of appearance."""
        return list(dict.fromkeys(self.sections[slice(None) if rows is None else rows].tolist()))

    def section_rows(self, name: str) -> np.ndarray:
        """Rows of a section."""
        return np.flatnonzero(self.sections == name)

    def shared_patients(self, one: np.ndarray, other: np.ndarray) -> list[str] | None:
        """Patients with rows on both sides of a split; None if patients are not recorded."""
        if self.patients is None:
            return None
        return sorted(set(self.patients[one].tolist()) & set(self.patients[other].tolist()))

    def patient_of(self, rows: np.ndarray) -> str | None:
        """Patient of the ``rows`` of a section, several joined by ``+``; None if patients are not recorded."""
        return None if self.patients is None else "+".join(dict.fromkeys(self.patients[rows].tolist()))

    @cached_property
    def patches(self) -> dict[str, Any]:
        """The stored patch specification; it must know every region of the table."""
        record = self.record("patches")
        if record is None or _schema.PATCH_BBOX not in self.table.obsm:
            raise MissingKeyError(missing(_schema.PATCH_BBOX, f"{self.name}.obsm", self.table.obsm, _EXTRACT))
        absent = [name for name in self.regions if name not in record["regions"]]
        if absent:
            raise Img2GeneError(
                f"No patches for the regions {', '.join(absent)}: run `img2gene.pp.extract_patches` again."
            )
        return record

    @cached_property
    def centers(self) -> np.ndarray:
        """Row and column of each patch centre in pixels of the scale-0 image, float64 (n_obs, 2)."""
        if _schema.PATCH_BBOX not in self.table.obsm:
            raise MissingKeyError(missing(_schema.PATCH_BBOX, f"{self.name}.obsm", self.table.obsm, _EXTRACT))
        first = np.asarray(self.table.obsm[_schema.PATCH_BBOX])
        if not np.isfinite(first).all():
            raise Img2GeneError(
                f"`obsm['{_schema.PATCH_BBOX}']` is incomplete: run `img2gene.pp.extract_patches` again."
            )
        return (first[:, :2] + first[:, 2:]) / 2

    @cached_property
    def positions(self) -> np.ndarray:
        """Row and column of each spot in µm from the top left corner of its image, float64 (n_obs, 2)."""
        if _schema.POSITIONS in self.table.obsm:
            return np.asarray(self.table.obsm[_schema.POSITIONS], dtype=float)
        recorded = self.patches["regions"]
        unknown = [name for name in self.regions if not (recorded[name].get("mpp") or 0) > 0]
        if unknown:
            raise Img2GeneError(
                f"Microns per pixel of the regions {listing(unknown)} are not recorded in "
                f"`uns['{_schema.UNS}']['patches']`: run `img2gene.pp.extract_patches` again."
            )
        positions = np.empty((self.n_obs, 2))
        for name, rows in self.regions.items():
            positions[rows] = self.centers[rows] * recorded[name]["mpp"]
        return positions

    @cached_property
    def places(self) -> np.ndarray | None:
        """Positions within each section on any scale, float64 (n_obs, 2): patch centres, else ``obsm["spatial"]``."""
        if _schema.PATCH_BBOX in self.table.obsm:
            return self.centers
        spatial = self.table.obsm.get("spatial")
        return None if spatial is None else np.asarray(spatial, dtype=float)[:, ::-1]

    @cached_property
    def order(self) -> np.ndarray:
        """Rows by section, then position, int (n_obs,).

        Random draws, and choices among equal values, go through the rows in this order. So no result depends on the
        order in which a table lists its spots.
        """
        keys: list[np.ndarray] = [self.table.obs_names.to_numpy(dtype=str)]
        if self.places is not None:
            keys += [self.places[:, 1], self.places[:, 0]]
        # `lexsort` sorts by its last key first: section, row, column, then name.
        return np.lexsort((*keys, self.sections))

    def ordered(self, rows: np.ndarray) -> np.ndarray:
        """Chosen rows, a mask or indices, in the order of :attr:`order`."""
        chosen = np.zeros(self.n_obs, dtype=bool)
        chosen[rows] = True
        return self.order[chosen[self.order]]
