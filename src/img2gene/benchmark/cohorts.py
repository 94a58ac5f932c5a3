"""Define the cohorts of the benchmark and find their sections in a data folder."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, listing, near
from img2gene.benchmark.layouts import LAYOUTS, StoredSection

if TYPE_CHECKING:
    from spatialdata import SpatialData

SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Cohort:
    """Describes a cohort as it was published.

    Attributes
    ----------
    name, title
        Name on the command line, and title in tables.
    folder, layout
        Folder below the data folder, and the layout of its files, a key of :data:`img2gene.benchmark.layouts.LAYOUTS`.
    sections
        Names of all sections. If it is empty, all sections in the folder are used.
    patients
        Patient of each section, if the publication lists them.
    n_sections, n_patients
        Numbers of sections and patients of the whole cohort, or None if they are not known.
    """

    name: str
    title: str
    folder: str = ""
    layout: str = ""
    sections: tuple[str, ...] = ()
    patients: dict[str, str] = field(default_factory=dict)
    n_sections: int | None = None
    n_patients: int | None = None

    @property
    def expected(self) -> str:
        """Files that the data folder must contain, for messages."""
        text = f"{self.folder}/ with {LAYOUTS[self.layout].expected}"
        return text if self.layout == "hest" or self.patients else f"{text}; patients.csv (section,patient)"

    def find(self, data: Path) -> Inventory:
        """Find the sections of this cohort in a data folder."""
        if self.name == SYNTHETIC:
            return Inventory(self, data, self.sections, self.patients)
        folder = data / self.folder
        complete = LAYOUTS[self.layout].find(folder) if folder.is_dir() else []
        # A folder may hold more sections than were published; protocols use the published ones.
        present = tuple(name for name in (self.sections or complete) if name in complete)
        known = {**self.patients, **(_listed_patients(folder) if present else {})}
        if self.layout == "hest" and present:
            from img2gene.io import hest

            known = {**hest.patients(folder), **known}
        return Inventory(self, folder, present, {name: known[name] for name in present if name in known})


@dataclass(frozen=True)
class Inventory:
    """Lists the sections of a cohort that a data folder holds.

    Attributes
    ----------
    cohort, folder
        The cohort, and its folder.
    present
        Sections with all of their files.
    patients
        Patient of each present section, if it is known.
    """

    cohort: Cohort
    folder: Path
    present: tuple[str, ...]
    patients: dict[str, str]

    # In all methods, ``selected`` names the sections of a protocol that uses only some; empty means all sections.

    def used(self, selected: tuple[str, ...]) -> tuple[str, ...]:
        """Return the present sections that a protocol uses."""
        return tuple(name for name in self.present if not selected or name in selected)

    def missing(self, selected: tuple[str, ...] = ()) -> list[str]:
        """Return the names of absent sections. Absent sections without a known name are left out."""
        return [name for name in (selected or self.cohort.sections) if name not in self.present]

    def n_expected(self, selected: tuple[str, ...] = ()) -> int | None:
        """Return the number of sections of the complete cohort, or None if it is not known."""
        return len(selected) or self.cohort.n_sections

    def restricted(self, selected: tuple[str, ...] = ()) -> bool:
        """Return whether sections are absent."""
        expected = self.n_expected(selected)
        return expected is not None and len(self.used(selected)) < expected

    def describe(self, selected: tuple[str, ...] = ()) -> str:
        """Describe in one sentence which sections are present and which are missing."""
        used, expected = self.used(selected), self.n_expected(selected)
        total = "an unknown number of" if expected is None else expected
        text = f"{len(used)} of {total} sections ({listing(used, 100)})"
        n_patients = len({self.patients[name] for name in used if name in self.patients})
        if n_patients and not selected and self.cohort.n_patients is not None:
            text += f" from {n_patients} of {self.cohort.n_patients} patients"
        if not self.restricted(selected):
            return f"{text}."
        names = self.missing(selected)
        return f"{text}; missing: {listing(names, 100) if names else 'sections whose names are not known'}."

    def problem(self, groups: str, selected: tuple[str, ...] = ()) -> str | None:
        """Say why the sections of a protocol cannot be divided by ``groups``, or return None if they can."""
        from img2gene.io import hest

        used = self.used(selected)
        if len(used) < 2:
            return f"{self.describe(selected)} A protocol needs at least two sections."
        if groups == hest.SPLIT:
            unknown, where = [name for name in used if name not in hest.splits(self.folder)], "splits/test_*.csv"
        elif groups == _schema.PATIENT:
            unknown, where = [name for name in used if name not in self.patients], "patients.csv (section,patient)"
        else:
            return None
        return (
            f"the {groups} of {listing(unknown)} is not known; list it in {self.folder}/{where}." if unknown else None
        )

    def read(self, name: str) -> StoredSection:
        """Read one section."""
        if self.cohort.name == SYNTHETIC:
            return StoredSection(_synthetic_section(name))
        return LAYOUTS[self.cohort.layout].read(self.folder, name, self.patients.get(name))

    def panel(self) -> list[str]:
        """Read the genes of a HEST-Benchmark task."""
        from img2gene.io import hest

        genes = hest.panel(self.folder)
        if genes is None:
            raise Img2GeneError(f"{self.folder}/var_50genes.json not found. Choose a number of genes with --genes.")
        return genes


def _listed_patients(folder: Path) -> dict[str, str]:
    path = folder / "patients.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"section", "patient"} <= set(rows[0]):
        raise Img2GeneError(f"{path}: columns section and patient not found (available: {listing(rows[0])}).")
    return {row["section"]: row["patient"] for row in rows}


# Small enough for a run of all protocols within seconds.
@cache
def _synthetic_cohort() -> SpatialData:
    from img2gene import datasets

    return datasets.synthetic_cohort(n_patients=3, n_sections=2, n_spots=40, n_genes=80)


def _synthetic_section(name: str) -> SpatialData:
    from spatialdata import SpatialData

    cohort = _synthetic_cohort()
    table = cohort["table"]
    part = table[(table.obs[_schema.SECTION] == name).to_numpy()].copy()
    region = f"{name}_spots"
    part.uns["spatialdata_attrs"] = {**part.uns["spatialdata_attrs"], "region": region}
    part.obs["region"] = part.obs["region"].cat.remove_unused_categories()
    image = f"{name}_image"
    return SpatialData(images={image: cohort[image]}, shapes={region: cohort[region]}, tables={"table": part})


def _lettered(sizes: dict[str, int]) -> dict[str, str]:
    """Map sections to patients, if sections are named by the letter of the patient and a number."""
    return {f"{patient}{i}": patient for patient, n in sizes.items() for i in range(1, n + 1)}


def _complete(name: str, title: str, folder: str, layout: str, patients: dict[str, str]) -> Cohort:
    """Define a cohort whose sections and patients are all known."""
    sections, n_patients = tuple(patients), len(set(patients.values()))
    return Cohort(name, title, folder, layout, sections, patients, len(sections), n_patients)


def _hest(task: str, title: str, sections: tuple[str, ...]) -> Cohort:
    return Cohort(f"hest:{task}", f"HEST-1k, {title}", f"hest/{task}", "hest", sections, n_sections=len(sections))


_HER2ST = _lettered({**dict.fromkeys("ABCD", 6), **dict.fromkeys("EFGH", 3)})
_CSCC = {f"{patient}_ST_rep{i}": patient for patient in ("P2", "P5", "P9", "P10") for i in (1, 2, 3)}
_LIVER = {f"C73_{area}_VISIUM": "C73" for area in ("A1", "B1", "C1", "D1")}
_ORGANOIDS = tuple(f"V19D02-088_{area}" for area in ("A1", "B1", "C1", "D1"))
_SYNTHETIC = {f"P{i}_S{j}": f"P{i}" for i in (1, 2, 3) for j in (1, 2)}
# HEST-Benchmark has no section MEND155.
_PROSTATE = tuple(f"MEND{i}" for i in range(139, 163) if i != 155)
_KIDNEY = tuple(f"INT{i}" for i in range(1, 25))

COHORTS = {
    cohort.name: cohort
    for cohort in (
        _complete("her2st", "HER2-positive breast cancer (Andersson et al. 2021)", "her2st", "legacy", _HER2ST),
        _complete("cscc", "cutaneous squamous cell carcinoma, ST arrays (GSE144240)", "cscc", "legacy", _CSCC),
        Cohort("stnet", "breast cancer (He et al. 2020)", "stnet", "legacy", n_sections=68, n_patients=23),
        _complete("liver", "liver, sections of one donor (GSE240429)", "liver", "visium", _LIVER),
        _complete("mob", "mouse olfactory bulb, two replicates", "mob_st", "array", {"MOB1": "MOB1", "MOB2": "MOB2"}),
        Cohort("lung-organoid", "lung organoids", "lung_organoid_visium", "visium", sections=_ORGANOIDS, n_sections=4),
        _hest("IDC", "invasive ductal carcinoma", ("NCBI783", "NCBI785", "TENX95", "TENX99")),
        _hest("PRAD", "prostate adenocarcinoma", _PROSTATE),
        _hest("PAAD", "pancreatic adenocarcinoma", ("TENX116", "TENX126", "TENX140")),
        _hest("SKCM", "skin melanoma", ("TENX115", "TENX117")),
        _hest("COAD", "colon adenocarcinoma", ("TENX111", "TENX147", "TENX148", "TENX149")),
        _hest("READ", "rectal adenocarcinoma", ("ZEN36", "ZEN40", "ZEN48", "ZEN49")),
        _hest("CCRCC", "clear cell renal cell carcinoma", _KIDNEY),
        _hest("LUNG", "lung adenocarcinoma", ("TENX118", "TENX141")),
        _hest("LYMPH_IDC", "lymph node metastases of IDC", ("NCBI681", "NCBI682", "NCBI683", "NCBI684")),
        _hest(
            "PSC",
            "PSC, a data set of CMRCNet that is no task of HEST-Benchmark",
            ("NCBI672", "NCBI673", "NCBI674", "NCBI675"),
        ),
        Cohort(
            SYNTHETIC,
            "drawn by img2gene.datasets.synthetic_cohort",
            sections=tuple(_SYNTHETIC),
            patients=_SYNTHETIC,
            n_sections=6,
            n_patients=3,
        ),
    )
}


def get(name: str) -> Cohort:
    """Return a cohort by its name; the error for an unknown name lists the known names."""
    if name not in COHORTS:
        raise MissingKeyError(f"No cohort {name!r} ({near(name, COHORTS)}). See --list.")
    return COHORTS[name]
