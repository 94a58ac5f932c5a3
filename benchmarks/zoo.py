"""Build the models that public sections allow, each with its card: `make zoo`.

``python benchmarks/zoo.py --out zoo`` trains on some patients of each public cohort, scores on the patients left out, and writes
``<cohort>-<model>.img2gene``, its card ``<cohort>-<model>.md`` and ``SHA256SUMS``. A cohort without a patient to leave out gives
no model, as its score would say nothing of new patients.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from _report import DATA
from spatialdata import SpatialData

import img2gene as ig

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
from cohorts import her2st


@dataclass(frozen=True)
class Offer:
    """A cohort that models are built of: how it is read, whom it leaves out, and what its users have to know."""

    name: str
    read: Callable[[Path], SpatialData]
    held_out: tuple[str, ...]
    licence: str | None
    limits: tuple[str, ...]


OFFERS = (
    Offer(
        "her2st",
        lambda data: her2st(data / "her2st").read(),
        ("B",),
        # The repository of the sections (https://github.com/almaan/her2st) states no licence, so the model has none to pass on.
        None,
        (
            "Legacy Spatial Transcriptomics of HER2-positive breast cancer (Andersson et al. 2021): spots of 100 µm.",
            "The section of the patient left out has a fifteenth of the depth of the others, so its scores are low for any model.",
        ),
    ),
)


def main() -> None:
    """Build all models of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("zoo"))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--models", nargs="+", default=["ridge"])
    parser.add_argument("--encoder", default="default")
    parser.add_argument("--genes", type=int, default=250)
    arguments = parser.parse_args()
    ig.settings.progress = False
    arguments.out.mkdir(parents=True, exist_ok=True)
    for offer in OFFERS:
        sdata = offer.read(arguments.data)
        ig.pp.extract_patches(sdata)
        ig.pp.embed_patches(sdata, arguments.encoder)
        for model in arguments.models:
            path = build(sdata, offer, model, arguments.genes, arguments.out)
            print(f"{path}: {correlation(sdata):.3f} on patient {', '.join(offer.held_out)}")
    digests(arguments.out)


def build(sdata: SpatialData, offer: Offer, model: str, n_genes: int, folder: Path) -> Path:
    """Train, score on the patients left out, and write the model and its card."""
    ig.tl.fit(sdata, model, genes=n_genes, validate_on=offer.held_out)
    ig.tl.predict(sdata)
    ig.tl.evaluate(sdata)
    name = f"{offer.name}-{model}"
    path = ig.io.save_model(sdata, folder / f"{name}.img2gene", overwrite=True)
    # The card is written from the file, which is all that its users have.
    card = folder / f"{name}.md"
    ig.io.model_card(ig.io.load_model(path), card, title=name, licence=offer.licence, limits=offer.limits)
    return path


def correlation(sdata: SpatialData) -> float:
    """Mean correlation of the genes in the sections left out."""
    return float(sdata["table"].var["pcc"].mean())


def digests(folder: Path) -> None:
    """Write the digests that `img2gene.io.load_model` takes."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in sorted(folder.glob("*.img2gene"))
    ]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
