"""``img2gene read``: from the files of a platform to one study."""

from __future__ import annotations

import inspect
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from img2gene._cli.options import Json, Out, Overwrite, Set, further
from img2gene._cli.output import finish
from img2gene._cli.stores import check_target, open_store, write_store
from img2gene._errors import Img2GeneError
from img2gene._files.h5ad import read_h5ad

if TYPE_CHECKING:
    from spatialdata import SpatialData


class Platform(StrEnum):
    """What the paths hold."""

    VISIUM = "visium"
    VISIUM_HD = "visium-hd"
    XENIUM = "xenium"
    COSMX = "cosmx"
    MERSCOPE = "merscope"
    LEGACY_ST = "legacy-st"
    HEST = "hest"
    SLIDE = "slide"
    ANNDATA = "anndata"
    STUDY = "study"
    SYNTHETIC = "synthetic"


# One value for each path.
_EACH = ("image", "alignment", "spots", "section", "patient")
Each = list[str] | None


def read(
    platform: Annotated[Platform, typer.Argument(help="What the paths hold.", show_default=False)],
    paths: Annotated[list[Path] | None, typer.Argument(help="One path for each section.", show_default=False)] = None,
    *,
    out: Out,
    image: Annotated[Each, typer.Option(help="H&E image of each path, in the same order.")] = None,
    alignment: Annotated[Each, typer.Option(help="Alignment of each image (Xenium, CosMx, MERSCOPE).")] = None,
    spots: Annotated[Each, typer.Option(help="Spot file of each path (legacy-st).")] = None,
    section: Annotated[Each, typer.Option(help="Name of each section.")] = None,
    patient: Annotated[Each, typer.Option(help="Patient of each section.")] = None,
    more: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Read the sections of a platform into one study.

    `study` joins stores that were read before. `synthetic` takes no path, and makes sections whose expression is known.
    """
    import img2gene as ig

    each = {"image": image, "alignment": alignment, "spots": spots, "section": section, "patient": patient}
    target = check_target(out, overwrite, ".zarr")
    sections = _sections(platform, paths or [], {name: values for name, values in each.items() if values}, more)
    study = sections[0] if len(sections) == 1 else ig.io.concat_sections(sections)
    write_store(study, target, overwrite)
    finish({"out": str(target), **_contents(study)}, as_json)


def _sections(platform: Platform, paths: list[Path], each: dict[str, list[str]], more: Any) -> list[SpatialData]:
    """Read every path; all numbers of values are checked before the first is read."""
    import img2gene as ig

    if platform is Platform.SYNTHETIC:
        if paths or each:
            raise typer.BadParameter("synthetic: takes no path and only --set, such as --set n_spots=60.")
        return [ig.datasets.synthetic_cohort(**further(ig.datasets.synthetic_cohort, more))]
    if not paths:
        raise typer.BadParameter(f"{platform.value}: name at least one path.")
    for name, values in each.items():
        if len(values) != len(paths):
            raise typer.BadParameter(
                f"--{name} is given {len(values)} times for {len(paths)} paths: give one for each."
            )
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise Img2GeneError(f"No such file or folder: {', '.join(absent)}.")
    return [_one(platform, path, {name: each[name][at] for name in each}, more) for at, path in enumerate(paths)]


def _one(platform: Platform, path: Path, named: dict[str, str], more: list[str] | None) -> SpatialData:
    """Read the section of one path."""
    import img2gene as ig

    if platform is Platform.STUDY:
        _refuse(platform, {*named, *(["set"] if more else [])})
        return open_store(path)
    if platform is Platform.ANNDATA:
        _refuse(platform, set(named))
        return ig.io.from_anndata(read_h5ad(path), **further(ig.io.from_anndata, more))
    reader = getattr(ig.io, f"read_{platform.value.replace('-', '_')}")
    if platform is Platform.LEGACY_ST:
        lacking = {"image", "section"} - named.keys()
        if lacking:
            raise typer.BadParameter(f"legacy-st: needs {' and '.join(f'--{name}' for name in sorted(lacking))}.")
        image, spots = named.pop("image"), named.pop("spots", None)
        return reader(path, image, spots, **_taken(platform, reader, named, more, "counts"))
    if platform is Platform.HEST:
        if "section" not in named:
            raise typer.BadParameter("hest: needs --section, the identifier of the sample, such as TENX99.")
        return reader(path, named.pop("section"), **_taken(platform, reader, named, more))
    return reader(path, **_taken(platform, reader, named, more))


def _taken(
    platform: Platform, reader: Any, named: dict[str, str], more: list[str] | None, *first: str
) -> dict[str, Any]:
    """Join named options and ``--set``; refuse options that the reader does not take."""
    known = inspect.signature(reader).parameters
    _refuse(platform, {name for name in named if name not in known})
    return named | further(reader, more, (*_EACH, *first))


def _refuse(platform: Platform, options: set[str]) -> None:
    if options:
        raise typer.BadParameter(f"{platform.value}: takes no {', '.join(f'--{name}' for name in sorted(options))}.")


def _contents(study: SpatialData) -> dict[str, Any]:
    """Say what was read; a slide has an image only."""
    from img2gene._cli.stores import described

    return described(study, "table") if "table" in study.tables else {"images": list(study.images)}
