"""The cohorts of the benchmark: which sections each has, and which of them a data folder holds."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError, listing, near
from img2gene.benchmark.layouts import LAYOUTS, Section

if TYPE_CHECKING:
    from spatialdata import SpatialData

SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Cohort:
    """A cohort as it was published.

    Attributes
    ----------
    name, title
        Name on the command line, and what it is.
    folder, layout
        Folder below the data folder, and how sections lie in it, one of :data:`img2gene.benchmark.layouts.LAYOUTS`.
    sections
        Names of all sections; empty where they are not known here and those of the folder are taken.
    patients
        Patient of each section, as far as known here.
    n_sections, n_patients
        How many there are in all; None where that is not known here.
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
        """Where its files are looked for."""
        text = f"{self.folder}/ with {LAYOUTS[self.layout].expected}"
        return text if self.layout == "hest" or self.patients else f"{text}; patients.csv (section,patient)"

    def find(self, data: Path) -> Inventory:
        """What of it is in a data folder."""
        if self.name == SYNTHETIC:
            return Inventory(self, data, self.sections, self.patients)
        folder = data / self.folder
        found = LAYOUTS[self.layout].find(folder) if folder.is_dir() else []
        # A folder may hold more than was published; a protocol is about what was.
        present = tuple(name for name in (self.sections or found) if name in found)
        known = {**self.patients, **(_listed_patients(folder) if present else {})}
        if self.layout == "hest" and present:
            from img2gene.io import hest

            known = {**hest.patients(folder), **known}
        return Inventory(self, folder, present, {name: known[name] for name in present if name in known})


@dataclass(frozen=True)
class Inventory:
    """What of a cohort is there.

    Attributes
    ----------
    cohort, folder
        Which cohort, and where it was looked for.
    present
        Sections with all of their files.
    patients
        Patients of these, as far as known.
    """

    cohort: Cohort
    folder: Path
    present: tuple[str, ...]
    patients: dict[str, str]

    def used(self, asked: tuple[str, ...]) -> tuple[str, ...]:
        """Present sections, or those of them that a protocol asks for."""
        return tuple(name for name in self.present if not asked or name in asked)

    def missing(self, asked: tuple[str, ...] = ()) -> list[str]:
        """Names of absent sections, as far as they are known."""
        return [name for name in (asked or self.cohort.sections) if name not in self.present]

    def n_expected(self, asked: tuple[str, ...] = ()) -> int | None:
        """Sections that there should be."""
        return len(asked) or self.cohort.n_sections

    def restricted(self, asked: tuple[str, ...] = ()) -> bool:
        """Whether sections are absent."""
        expected = self.n_expected(asked)
        return expected is not None and len(self.used(asked)) < expected

    def describe(self, asked: tuple[str, ...] = ()) -> str:
        """What is there and what is not, in a sentence."""
        used, expected = self.used(asked), self.n_expected(asked)
        text = (
            f"{len(used)} of {'an unknown number of' if expected is None else expected} sections ({listing(used, 100)})"
        )
        n_patients = len({self.patients[name] for name in used if name in self.patients})
        if n_patients and not asked and self.cohort.n_patients is not None:
            text += f" from {n_patients} of {self.cohort.n_patients} patients"
        if not self.restricted(asked):
            return f"{text}."
        names = self.missing(asked)
        return f"{text}; missing: {listing(names, 100) if names else 'sections whose names are not known here'}."

    def problem(self, groups: str, asked: tuple[str, ...] = ()) -> str | None:
        """What keeps the sections that a protocol asks for from being divided by ``groups``; None if nothing does."""
        from img2gene.io import hest

        used = self.used(asked)
        if len(used) < 2:
            return f"{self.describe(asked)} Two are needed at least."
        if groups == hest.SPLIT:
            unknown, where = [name for name in used if name not in hest.splits(self.folder)], "splits/test_*.csv"
        elif groups == _schema.PATIENT:
            unknown, where = [name for name in used if name not in self.patients], "patients.csv (section,patient)"
        else:
            return None
        return (
            f"the {groups} of {listing(unknown)} is not known; list it in {self.folder}/{where}." if unknown else None
        )

    def read(self, name: str) -> Section:
        """Read one section."""
        if self.cohort.name == SYNTHETIC:
            return Section(_synthetic_section(name))
        return LAYOUTS[self.cohort.layout].read(self.folder, name, self.patients.get(name))

    def panel(self) -> list[str]:
        """The genes of a HEST-Benchmark task."""
        from img2gene.io import hest

        found = hest.panel(self.folder)
        if found is None:
            raise Img2GeneError(f"{self.folder}/var_50genes.json not found; choose a number with --genes.")
        return found


def _listed_patients(folder: Path) -> dict[str, str]:
    path = folder / "patients.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"section", "patient"} <= set(rows[0]):
        raise Img2GeneError(f"{path}: columns section and patient not found (available: {listing(rows[0])}).")
    return {row["section"]: row["patient"] for row in rows}


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
    """Sections named by the patient's letter and a number."""
    return {f"{patient}{i}": patient for patient, n in sizes.items() for i in range(1, n + 1)}


def _of_patients(name: str, title: str, folder: str, layout: str, patients: dict[str, str]) -> Cohort:
    """A cohort whose sections and patients are all known."""
    sections, n_patients = tuple(patients), len(set(patients.values()))
    return Cohort(name, title, folder, layout, sections, patients, len(sections), n_patients)


def _hest(task: str, title: str, sections: tuple[str, ...]) -> Cohort:
    return Cohort(f"hest:{task}", f"HEST-1k, {title}", f"hest/{task}", "hest", sections, n_sections=len(sections))


_HER2ST = _lettered({**dict.fromkeys("ABCD", 6), **dict.fromkeys("EFGH", 3)})
_CSCC = {f"{patient}_ST_rep{i}": patient for patient in ("P2", "P5", "P9", "P10") for i in (1, 2, 3)}
_LIVER = {f"C73_{area}_VISIUM": "C73" for area in ("A1", "B1", "C1", "D1")}
_ORGANOIDS = tuple(f"V19D02-088_{area}" for area in ("A1", "B1", "C1", "D1"))
_SYNTHETIC = {f"P{i}_S{j}": f"P{i}" for i in (1, 2, 3) for j in (1, 2)}
_PROSTATE = tuple(f"MEND{i}" for i in range(139, 163) if i != 155)
_KIDNEY = tuple(f"INT{i}" for i in range(1, 25))

COHORTS = {
    cohort.name: cohort
    for cohort in (
        _of_patients("her2st", "HER2-positive breast cancer (Andersson et al. 2021)", "her2st", "legacy", _HER2ST),
        _of_patients("cscc", "cutaneous squamous cell carcinoma, ST arrays (GSE144240)", "cscc", "legacy", _CSCC),
        Cohort("stnet", "breast cancer (He et al. 2020)", "stnet", "legacy", n_sections=68, n_patients=23),
        _of_patients("liver", "liver, sections of one donor (GSE240429)", "liver", "visium", _LIVER),
        _of_patients(
            "mob", "mouse olfactory bulb, two replicates", "mob_st", "array", {"MOB1": "MOB1", "MOB2": "MOB2"}
        ),
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
        _hest("PSC", "PSC, of CMRCNet and no task of HEST-Benchmark", ("NCBI672", "NCBI673", "NCBI674", "NCBI675")),
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
    """A cohort by its name; an unknown one lists the known ones."""
    if name not in COHORTS:
        raise MissingKeyError(f"No cohort {name!r} ({near(name, COHORTS)}). See --list.")
    return COHORTS[name]
