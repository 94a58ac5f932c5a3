"""Figures of guides that execute no code: drawn whenever the site is built, from the code and the stored results."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from sphinx.application import Sphinx

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
BLUE, ORANGE, GREEN, GREY = "#4477AA", "#EE7733", "#228833", "#BBBBBB"
PALE = {BLUE: "#dfe8f1", ORANGE: "#fce6d8", GREEN: "#dcebdf", GREY: "#eeeeee"}


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Axes without a frame, in units of inches."""
    figure = Figure(figsize=(width, height), layout="none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return figure, ax


def box(ax: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, *, code: str = "") -> None:
    """A box with a text, and a call below it."""
    style = "round,pad=0,rounding_size=0.08"
    ax.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=PALE[colour], edgecolor=colour, linewidth=1.2)
    )
    ax.text(x + width / 2, y + height / 2 + (0.12 if code else 0), text, ha="center", va="center", fontsize=9.5)
    if code:
        ax.text(
            x + width / 2, y + 0.17, code, ha="center", va="center", fontsize=8, family="monospace", color="#333333"
        )


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color="#555555", linewidth=1.2))


def chain(ax: Axes, boxes: list[tuple[str, str, str]], y: float, height: float, width: float, gap: float) -> None:
    """Boxes in a row, joined by arrows."""
    for number, (text, code, colour) in enumerate(boxes):
        x = 0.1 + number * (width + gap)
        box(ax, x, y, width, height, text, colour, code=code)
        if number:
            arrow(ax, (x - gap, y + height / 2), (x, y + height / 2))


def concepts() -> Figure:
    """From image to expression."""
    figure, ax = canvas(9.6, 1.15)
    steps = [("H&E image\nand counts", "", GREY), ("patches in µm", "pp.extract_patches", BLUE)]
    steps += [("embedding", "pp.embed_patches", BLUE), ("trained model", "tl.fit", ORANGE)]
    steps += [("expression\nof every spot", "tl.predict", ORANGE), ("scores and\nbaselines", "tl.evaluate", GREEN)]
    chain(ax, steps, 0.1, 0.95, 1.38, 0.22)
    return figure


def data_contract() -> Figure:
    """Which part of the study each function writes."""
    figure, ax = canvas(9.6, 2.6)
    rows = [
        ("images, shapes", ["pictures and regions\nof the sections"], GREY),
        ("obs, obsm", ["patient, section\nlibrary_size", "patch_bbox\npatch_tissue", "X_<encoder>", "pathways"], BLUE),
        ("layers, obs", ["img2gene", "img2gene_std\n…_lower, …_upper", "img2gene_ood"], ORANGE),
        ("var, uns", ["pcc, panel", "the trained model", "evaluation"], GREEN),
    ]
    for number, (place, keys, colour) in enumerate(rows):
        y = 2.0 - number * 0.63
        ax.text(1.35, y + 0.26, place, ha="right", va="center", fontsize=9.5, family="monospace")
        for column, key in enumerate(keys):
            box(ax, 1.55 + column * 2.0, y, 1.85, 0.52, key, colour)
    return figure


def units() -> Figure:
    """The default fields of view on a synthetic section."""
    import img2gene as ig

    mpp, ig.settings.progress = 0.65, False
    sdata = ig.datasets.synthetic_cohort(n_patients=1, n_sections=1, n_spots=120, n_genes=10, mpp=mpp)
    image = sdata["P1_S1_image"].transpose("y", "x", "c").to_numpy()
    places = sdata["table"].obsm["spatial"]
    centre = places[np.linalg.norm(places - places.mean(axis=0), axis=1).argmin()]
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    ax = figure.add_subplot()
    ax.imshow(image)
    for um, colour in zip((100, 200, 400, 800), ("#000000", BLUE, GREEN, ORANGE), strict=True):
        side = um / mpp
        ax.add_patch(Rectangle(tuple(centre - side / 2), side, side, fill=False, edgecolor=colour, linewidth=2))
        ax.text(*(centre - side / 2 - (0, 8)), f"{um} µm", color=colour, fontsize=9, weight="bold")
    half = 480 / mpp
    ax.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] + half, centre[1] - half))
    ax.set(xlabel=f"pixels of {mpp} µm", ylabel=f"pixels of {mpp} µm")
    return figure


def slides() -> Figure:
    """Which level of a pyramid a field of view is read from."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    ax = figure.add_subplot()
    levels = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
    fields = np.geomspace(40, 1200, 300)
    nearest = levels[np.abs(np.log(fields[:, None] / 224 / levels)).argmin(axis=1)]
    ax.plot(fields, nearest, color=BLUE, drawstyle="steps-mid", label="level that is read")
    ax.plot(fields, fields / 224, color=GREY, linestyle="--", label="what an encoder with 224 pixels sees")
    for um in (100, 200, 400, 800):
        level = levels[np.abs(np.log(um / 224 / levels)).argmin()]
        ax.plot(um, level, "o", color=ORANGE)
        ax.annotate(f"{um} µm", (um, level), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    ax.set(xscale="log", yscale="log", xlabel="field of view (µm)", ylabel="µm per pixel")
    ax.set_yticks(levels, [f"{level:g}" for level in levels])
    ax.set_xticks([50, 100, 200, 400, 800], ["50", "100", "200", "400", "800"])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8)
    return figure


def finetuning() -> Figure:
    """What is trained with and without fine-tuning."""
    figure, ax = canvas(9.6, 2.3)
    stages = ["patch", "first stages", "last stage", "linear head", "expression"]
    rows = {"frozen": (0, 0, 1), 'finetune="last"': (0, 1, 1), 'finetune="all"': (1, 1, 1)}
    for number, (name, trained) in enumerate(rows.items()):
        colours = [GREY, *(ORANGE if stage else BLUE for stage in trained), GREY]
        y = 1.6 - 0.72 * number
        ax.text(1.55, y + 0.25, name, ha="right", va="center", fontsize=9, family="monospace")
        for column, (stage, colour) in enumerate(zip(stages, colours, strict=True)):
            x = 1.75 + 1.58 * column
            box(ax, x, y, 1.3, 0.5, stage, colour)
            if column:
                arrow(ax, (x - 0.28, y + 0.25), (x, y + 0.25))
    ax.text(1.75, 0.02, "orange: trained,  blue: as downloaded", fontsize=8.5, va="bottom", color="#444444")
    return figure


def large_data() -> Figure:
    """How work is shared and kept."""
    figure, ax = canvas(9.6, 2.3)
    box(ax, 0.1, 0.75, 1.6, 0.8, "images on disk,\nread by chunk", GREY)
    for number in range(3):
        y = 1.6 - 0.75 * number
        box(ax, 2.5, y, 1.7, 0.55, f"worker {number + 1}: encoder", BLUE)
        arrow(ax, (1.7, 1.15), (2.5, y + 0.27))
        arrow(ax, (4.2, y + 0.27), (5.0, 1.15))
    box(ax, 5.0, 0.75, 1.8, 0.8, "blocks of spots,\neach with a digest", ORANGE)
    arrow(ax, (6.8, 1.15), (7.6, 1.15))
    box(ax, 7.6, 0.75, 1.85, 0.8, "Zarr store", GREEN, code="predict(out=)")
    return figure


def command_line() -> Figure:
    """The commands, and what each takes from the one before."""
    figure, ax = canvas(9.6, 1.15)
    steps = [("files of\na platform", "", GREY), ("study", "read", BLUE), ("embedded study", "embed", BLUE)]
    steps += [("model", "fit", ORANGE), ("predictions", "predict", ORANGE), ("scores, page", "evaluate, report", GREEN)]
    chain(ax, steps, 0.1, 0.95, 1.38, 0.22)
    return figure


def lazyslide() -> Figure:
    """How both packages pass tiles, features and models to each other."""
    figure, ax = canvas(9.6, 2.3)
    upper = [("spots", "", GREY), ("tiles", "add_tiles", ORANGE), ("features", "feature_extraction", BLUE)]
    upper += [("obsm", "add_features", ORANGE), ("model", "tl.fit", ORANGE)]
    chain(ax, upper, 1.25, 0.9, 1.66, 0.25)
    lower = [("slide", "open_wsi", GREY), ("tiles", "tile_tissues", BLUE), ("features", "feature_extraction", BLUE)]
    lower += [("expression of\nevery tile", "feature_prediction", BLUE)]
    chain(ax, lower, 0.1, 0.9, 1.66, 0.25)
    arrow(ax, (8.57, 1.25), (7.49, 0.6))
    ax.text(8.4, 0.5, "lazyslide.predictor", fontsize=8, family="monospace", color="#333333", ha="left")
    return figure


def stain() -> Figure:
    """Sections of three synthetic patients, who differ in their stain."""
    import img2gene as ig

    ig.settings.progress = False
    sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=15, n_genes=10)
    figure = Figure(figsize=(7.2, 2.5), layout="constrained")
    for ax, patient in zip(figure.subplots(1, 3), ("P1", "P2", "P3"), strict=True):
        image = sdata[f"{patient}_S1_image"].transpose("y", "x", "c").to_numpy()
        ax.imshow(image[200:700, 200:700])
        ax.set_title(patient, fontsize=9)
        ax.axis("off")
    return figure


def encoders() -> Figure:
    """What can make features of a patch."""
    figure, ax = canvas(9.6, 2.3)
    box(ax, 0.1, 0.75, 1.5, 0.8, "patches in µm", GREY)
    sources = ["an encoder with its weights", "a module or function of yours", "features that you bring"]
    for number, text in enumerate(sources):
        y = 1.6 - 0.75 * number
        box(ax, 2.4, y, 2.6, 0.55, text, BLUE)
        if number < 2:
            arrow(ax, (1.6, 1.15), (2.4, y + 0.27))
        arrow(ax, (5.0, y + 0.27), (5.9, 1.15))
    box(ax, 5.9, 0.75, 1.5, 0.8, "features\nin obsm", ORANGE)
    arrow(ax, (7.4, 1.15), (8.0, 1.15))
    box(ax, 8.0, 0.75, 1.4, 0.8, "model", ORANGE, code="tl.fit")
    return figure


def sharing() -> Figure:
    """The way of a model from one laboratory to another."""
    figure, ax = canvas(9.6, 1.15)
    steps = [
        ("trained model", "tl.fit", ORANGE),
        ("file, digest", "save_model", ORANGE),
        ("card with\nheld-out scores", "", GREEN),
    ]
    steps += [
        ("page or hub", "", GREY),
        ("checked model", "load_model", BLUE),
        ("expression of\nnew slides", "predict", BLUE),
    ]
    chain(ax, steps, 0.1, 0.95, 1.38, 0.22)
    return figure


def read(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def bars(rows: list[dict[str, str]], variants: dict[str, str], column: str) -> Figure:
    """Means over test sections and seeds, for each protocol and variant."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["variant"] in variants and row[column]:
            values[row["protocol"], row["variant"]].append(float(row[column]))
    protocols = list(dict.fromkeys(protocol for protocol, _ in values))
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    ax = figure.add_subplot()
    width = 0.8 / len(variants)
    palette = (GREY, BLUE, ORANGE, GREEN, "#AA3377")
    for number, ((variant, label), colour) in enumerate(zip(variants.items(), palette, strict=False)):
        means = [np.mean(values[protocol, variant] or [np.nan]) for protocol in protocols]
        places = np.arange(len(protocols)) + (number - (len(variants) - 1) / 2) * width
        ax.bar(places, means, width, label=label, color=colour)
    ax.set_xticks(
        range(len(protocols)), [name.replace(", ", ",\n").replace(" → ", " →\n") for name in protocols], fontsize=8
    )
    ax.set_ylabel("mean PCC, HVG-50")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, ncols=len(variants), loc="upper left", bbox_to_anchor=(0, 1.16))
    return figure


def benchmark() -> Figure:
    """Parts of the default model on the protocols."""
    names = {"default: ridge": "ridge", "default: network": "network alone", "default": "img2gene"}
    return bars(read("default.csv"), names, "pcc HVG-50")


def cmrcnet() -> Figure:
    """CMRCNet, its relatives and the ridge on the protocols."""
    names = {
        "ridge-plain": "ridge-plain",
        "feature k-NN": "k-NN",
        "BLEEP": "BLEEP",
        "CMRCNet without ridge: mixture": "CMRCNet without ridge",
    }
    return bars(read("cmrcnet.csv"), names, "pcc HVG-50")


FIGURES: tuple[Callable[[], Figure], ...] = (
    *(concepts, data_contract, units, slides, finetuning, large_data, benchmark, cmrcnet),
    *(command_line, lazyslide, stain, encoders, sharing),
)


def draw(app: Sphinx) -> None:
    """Write every figure that differs from the one that is there."""
    folder = Path(app.srcdir) / "_static" / "drawn"
    folder.mkdir(exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "img2gene"}):
        for function in FIGURES:
            function().savefig(folder / f"{function.__name__}.png", dpi=150, metadata={"Software": None})


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", draw)
    return {"parallel_read_safe": True}
