"""The breast cancer sections that several benchmarks share, embedded."""

from __future__ import annotations

import sys
from pathlib import Path

from spatialdata import SpatialData

import img2gene as ig

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
from cohorts import her2st

# Five sections of one patient; section B4 of another has a fifteenth of their depth.
DEEP, SHALLOW = [f"C{number}" for number in range(2, 7)], "B4"


def embedded(data: Path) -> SpatialData:
    """Read the sections from a folder of cohorts, and embed them with the default encoder and fields."""
    ig.settings.progress = False
    sdata = her2st(data / "her2st").read()
    ig.pp.extract_patches(sdata)
    ig.pp.embed_patches(sdata)
    return sdata
