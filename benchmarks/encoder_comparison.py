"""Accuracy of encoders, fields of view and orientations on real sections, with ridge regression.

Her2st: C2–C6 (one patient) with one section left out, B4 → C3 and C2–C6 → B4 across patients; olfactory bulb (MOB): each
replicate from the other. Mean Pearson correlation per gene within a section, over the 250 genes of the highest mean (HEG-250)
and the 50 of the highest variance (HVG-50) of the training labels. Sections C2–C6 are of one patient: those scores are
optimistic, and the transfers B4 → C3 and C2–C6 → B4 are what to choose by.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from _report import DATA, markdown
from spatialdata import SpatialData

import img2gene as ig
from img2gene import _schema

# Orientations of each encoder; colour and texture statistics do not change with them.
ENCODERS = {
    "efficientnet-lite0": (1, 2, 4),
    "efficientnet-lite0-stages": (1, 2, 4),
    "efficientnet-lite0-head": (1, 4),
    "color-texture": (1,),
}
SINGLE_FIELDS = ((104,), (155,), (200,), (310,), (400,), (600,), (800,))
FIELDS = (*SINGLE_FIELDS, (104, 155, 200, 310), (200, 400), (200, 400, 600), (200, 400, 800))
PATIENT_C = ("C2", "C3", "C4", "C5", "C6")
GENE_GROUPS = {"HEG-250": ("mean", 250), "HVG-50": ("variance", 50)}
TASKS = {
    "C leave-one-out": [(tuple(name for name in PATIENT_C if name != held), held) for held in PATIENT_C],
    "B4 → C3": [(("B4",), "C3")],
    "C → B4": [(PATIENT_C, "B4")],
    "MOB1 → MOB2": [(("MOB1",), "MOB2")],
    "MOB2 → MOB1": [(("MOB2",), "MOB1")],
}


@dataclass(frozen=True)
class Setting:
    """One row of the comparison."""

    encoder: str
    fields_um: tuple[int, ...]
    orientations: int

    @property
    def row(self) -> dict[str, object]:
        fields = " + ".join(str(field) for field in self.fields_um)
        return {"encoder": self.encoder, "fields (µm)": fields, "orientations": self.orientations}


def settings_of(encoders: list[str], orientations: list[int]) -> list[Setting]:
    """All rows, the cheap ones first."""
    return [
        Setting(encoder, fields, number)
        for number in orientations
        for encoder in encoders
        for fields in FIELDS
        if number in ENCODERS[encoder]
    ]


@cache
def read_section(name: str) -> SpatialData:
    """One section, with patches only to have the positions of its spots."""
    if name.startswith("MOB"):
        folder, spots = DATA / "mob_st", None
        counts, image = folder / f"{name}_counts.tsv.gz", folder / f"{name}.jpg"
    else:
        folder = DATA / "her2st"
        counts, image = folder / "ST-cnts" / f"{name}.tsv.gz", folder / "ST-imgs" / f"{name}.jpg"
        spots = folder / "ST-spotfiles" / f"{name}_selection.tsv"
    patient = name if name.startswith("MOB") else name[0]
    sdata = ig.io.read_legacy_st(counts, image, spots, section=name, patient=patient)
    ig.pp.extract_patches(sdata, patch_um=200)
    return sdata


def embedding(section: str, encoder: str, field: int, orientations: int, folder: Path) -> np.ndarray:
    """Features of one field of view, from the cache where they are there already."""
    path = folder / f"{section}_{encoder}_{field}um_{orientations}.npz"
    if not path.exists():
        sdata = SpatialData(
            images=read_section(section).images,
            shapes=read_section(section).shapes,
            tables={"table": read_section(section)["table"].copy()},
        )
        ig.pp.extract_patches(sdata, patch_um=field)
        ig.pp.embed_patches(sdata, encoder, orientations=orientations)
        np.savez(path, features=sdata["table"].obsm[_schema.embedding_key(encoder)])
    return np.load(path)["features"]


@cache
def study(kind: str) -> SpatialData:
    names = ("MOB1", "MOB2") if kind == "MOB" else ("B4", *PATIENT_C)
    return ig.io.concat_sections([read_section(name) for name in names])


def set_features(sdata: SpatialData, setting: Setting, folder: Path) -> None:
    """Store the fields' cached features side by side, as ``embed_patches`` would have written them."""
    table = sdata["table"]
    parts = [
        np.hstack(
            [embedding(name, setting.encoder, field, setting.orientations, folder) for field in setting.fields_um]
        )
        for name in table.obs["section"].unique()
    ]
    features = np.vstack(parts)
    spec = ig.encoders.get(setting.encoder)
    identity = {
        "name": spec.name,
        "revision": spec.revision,
        "width": features.shape[1],
        "patch_um": list(setting.fields_um),
        "input_px": 224 if spec.any_size else spec.input_px,
        "orientations": setting.orientations,
    }
    encoders = {spec.name: identity}
    _schema.apply(table, {"obsm": {_schema.embedding_key(spec.name): features}, "uns": {"encoder": encoders}})


def score(sdata: SpatialData, encoder: str, train: tuple[str, ...], held: str) -> dict[str, float]:
    """Train on some sections, predict one, score it: mean PCC of each gene group."""
    ig.tl.fit(
        sdata,
        "ridge-plain",
        genes=1000,
        groups="section",
        train_on=train,
        validate_on=[held],
        encoder=encoder,
        allow_leakage=True,
    )
    ig.tl.predict(sdata)
    scores = ig.tl.evaluate(
        sdata, sections=[held], gene_groups=GENE_GROUPS, n_permutations=0, allow_leakage=True, inplace=False
    )
    means = ig.tl.summarize(scores[scores["model"] == "ridge-plain"]).set_index("genes")["pcc"]
    return {name: float(means[name]) for name in GENE_GROUPS}


def compare(setting: Setting, folder: Path) -> dict[str, object]:
    """All tasks with one setting."""
    row = setting.row
    for kind in ("her2st", "MOB"):
        set_features(study(kind), setting, folder)
    for task, splits in TASKS.items():
        sdata = study("MOB" if task.startswith("MOB") else "her2st")
        scores = pd.DataFrame([score(sdata, setting.encoder, train, held) for train, held in splits]).mean()
        row |= {f"{task}: {name}": round(float(scores[name]), 4) for name in GENE_GROUPS}
    return row


def table_rows(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Both gene groups of a task in one column."""
    first = ("encoder", "fields (µm)", "orientations")
    return [
        {name: row[name] for name in first}
        | {task: " / ".join(f"{row[f'{task}: {name}']:.3f}" for name in GENE_GROUPS) for task in TASKS}
        for row in rows
    ]


def save(rows: list[dict[str, object]], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(out, index=False)
    caption = "Mean PCC within sections: HEG-250 / HVG-50. Ridge, `tl.fit(genes=1000)`."
    out.with_suffix(".md").write_text(f"{caption}\n\n{markdown(table_rows(rows))}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the embeddings of single fields")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--orientations", nargs="+", type=int, default=(1, 2, 4))
    parser.add_argument("--embed-only", action="store_true", help="fill the cache, then stop")
    parser.add_argument("--out", type=Path, help="CSV; the Markdown table is written to the same folder")
    args = parser.parse_args()
    ig.settings.progress = False
    args.cache.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for setting in settings_of(args.encoders, args.orientations):
        if args.embed_only:
            for kind in ("her2st", "MOB"):
                set_features(study(kind), setting, args.cache)
            continue
        rows.append(compare(setting, args.cache))
        print(" | ".join(str(value) for value in rows[-1].values()), flush=True)
        if args.out:
            save(rows, args.out)


if __name__ == "__main__":
    main()
