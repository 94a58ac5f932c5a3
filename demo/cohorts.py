"""The cohorts that the demo knows, each with the splits it is judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spatialdata import SpatialData

import img2gene as ig
from img2gene.benchmark.layouts import find_visium, read_array, read_legacy, read_visium

N_SPOTS = 80
HER2ST_SECTIONS = ("B4", "C2", "C3", "C4", "C5", "C6")


@dataclass(frozen=True)
class Split:
    """One training set and the sections that it is judged on."""

    protocol: str
    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Cohort:
    """Sections to read, splits between them, and what to show."""

    name: str
    read: Callable[[], SpatialData]
    splits: tuple[Split, ...]
    genes: tuple[str, ...]


def leave_one_out(protocol: str, sections: tuple[str, ...]) -> tuple[Split, ...]:
    """Every section once as the test section."""
    return tuple(Split(protocol, tuple(s for s in sections if s != test), (test,)) for test in sections)


def synthetic() -> Cohort:
    """Four synthetic patients with one section each; the last patient is left out."""
    sections = tuple(f"P{i}_S1" for i in range(1, 5))

    def read() -> SpatialData:
        # Small enough that embedding, Img2Gene and figures take under four minutes on two cores.
        return ig.datasets.synthetic_cohort(n_patients=len(sections), n_sections=1, n_spots=N_SPOTS)

    split = Split("patient P4 left out", sections[:-1], sections[-1:])
    return Cohort("synthetic cohort", read, (split,), ("ERBB2", "COL1A1", "CD3E"))


def her2st(folder: Path) -> Cohort:
    """HER2-positive breast cancer: sections of patient C left out one at a time, and patient B against patient C."""
    sections = HER2ST_SECTIONS[1:]
    splits = (
        *leave_one_out("patient C, one section left out", sections),
        Split("patient B → patient C (C3)", ("B4",), ("C3",)),
        Split("patient B → patient C (C2–C6)", ("B4",), sections),
        Split("patient C → patient B", sections, ("B4",)),
    )

    def read() -> SpatialData:
        return ig.io.concat_sections(read_legacy(folder, name, name[0]) for name in HER2ST_SECTIONS)

    return Cohort("her2st", read, splits, ("ERBB2", "COL1A1", "IGKC"))


def mouse_olfactory_bulb(folder: Path) -> Cohort:
    """Two replicates, each predicted from the other."""
    splits = (Split("MOB1 → MOB2", ("MOB1",), ("MOB2",)), Split("MOB2 → MOB1", ("MOB2",), ("MOB1",)))

    def read() -> SpatialData:
        return ig.io.concat_sections(read_array(folder, name, name) for name in ("MOB1", "MOB2"))

    return Cohort("mouse olfactory bulb", read, splits, ("Penk", "Doc2g", "Gpsm1"))


def visium(folder: Path) -> Cohort:
    """Visium sections in folders of their own, one left out at a time."""
    names = tuple(find_visium(folder))

    def read() -> SpatialData:
        return ig.io.concat_sections(read_visium(folder, name) for name in names)

    return Cohort(folder.name, read, leave_one_out("one section left out", names), ("EPCAM", "COL1A1", "SFTPC"))


def recognise(folder: Path | None) -> Cohort:
    """The cohort that a folder holds, by its layout; the synthetic one without a folder."""
    if folder is None:
        return synthetic()
    if (folder / "ST-cnts").is_dir():
        return her2st(folder)
    if (folder / "MOB1_counts.tsv.gz").is_file():
        return mouse_olfactory_bulb(folder)
    if len(find_visium(folder)) > 1:
        return visium(folder)
    raise SystemExit(f"{folder}: expected the layout of her2st (ST-cnts/), MOB, or several Visium folders.")
