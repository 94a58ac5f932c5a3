"""``img2gene embed``, ``fit`` and ``predict``: from a study to predicted expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from img2gene._cli.options import (
    Device,
    Json,
    Key,
    ModelFile,
    Out,
    Overwrite,
    Seed,
    Set,
    Study,
    TableKey,
    further,
    names_or_number,
)
from img2gene._cli.output import finish
from img2gene._cli.stores import check_target, described, open_store, write_store
from img2gene._errors import Img2GeneError, listing

if TYPE_CHECKING:
    from spatialdata import SpatialData

_TILES = "slide_tiles"
Names = list[str] | None


def embed(
    study: Study,
    *,
    out: Out,
    encoder: Annotated[str, typer.Option(help="Encoder of the patches.")] = "default",
    patch_um: Annotated[list[float] | None, typer.Option(help="Side of a field of view in µm.")] = None,
    mpp: Annotated[float | None, typer.Option(help="Microns per pixel of the images, if they are not known.")] = None,
    tile_um: Annotated[
        float | None, typer.Option(help="First lay tiles of this side in µm over an image without spots.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Image to tile, if the study has several.")] = None,
    pathways: Annotated[str | None, typer.Option(help="Score these gene sets, too: a name or a GMT file.")] = None,
    device: Device = None,
    named_table: Annotated[
        str | None, typer.Option("--table-key", help="Table of the study; by default table, or slide_tiles.")
    ] = None,
    more: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the image patch of every spot and embed it; score pathways if asked to."""
    import img2gene as ig

    if image is not None and tile_um is None:
        raise typer.BadParameter(
            f"--image {image} names the image to tile, so it needs --tile-um; spots know their image."
        )
    taken = ("encoder", "table_key", "device", "out")
    target, arguments = check_target(out, overwrite, ".zarr"), further(ig.pp.embed_patches, more, taken)
    sdata = open_store(study)
    fields: dict[str, Any] = {} if not patch_um else {"patch_um": patch_um[0] if len(patch_um) == 1 else patch_um}
    table = named_table or ("table" if tile_um is None else _TILES)
    if tile_um is None:
        ig.pp.extract_patches(sdata, mpp=mpp, table_key=table, **fields)
    else:
        ig.pp.tile_slide(sdata, _image(sdata, image), tile_um=tile_um, mpp=mpp, key_added=table, **fields)
    ig.pp.embed_patches(sdata, encoder, table_key=table, device=device, **arguments)
    if pathways is not None:
        ig.pp.score_pathways(sdata, pathways, table_key=table)
    write_store(sdata, target, overwrite)
    widths = {key: int(value.shape[1]) for key, value in sdata[table].obsm.items() if key.startswith("X_")}
    finish({"out": str(target), "table": table, **described(sdata, table), "embeddings": widths}, as_json)


def _image(sdata: SpatialData, name: str | None) -> str:
    """Choose the image to tile."""
    images = list(sdata.images)
    if name is None and len(images) == 1:
        return images[0]
    if name is None or name not in images:
        problem = "The study has several images" if name is None else f"The study has no image {name!r}"
        raise Img2GeneError(f"{problem} (available: {listing(images)}). Pass --image.")
    return name


def fit(
    study: Study,
    *,
    out: Out,
    model: Annotated[str, typer.Option("--model", "-m", help="Registered model, such as ridge.")] = "img2gene",
    genes: Annotated[
        Names, typer.Option(help="Genes to predict, or the number of genes with the highest mean.")
    ] = None,
    groups: Annotated[str, typer.Option(help="Column of obs that splits are made by.")] = "patient",
    train_on: Annotated[Names, typer.Option(help="Group to train on; by default all that are not held out.")] = None,
    validate_on: Annotated[Names, typer.Option(help="Group to hold out.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Which embedding, if several are stored.")] = None,
    seed: Seed = None,
    device: Device = None,
    table_key: TableKey = "table",
    more: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a model on the embedded sections and write it to a file.

    `--set` takes further arguments of `img2gene.tl.fit`, and the parameters of the model.
    """
    import img2gene as ig

    taken = ("genes", "groups", "train_on", "validate_on", "encoder", "seed", "table_key", "key_added", "model")
    arguments, target = further(ig.tl.fit, more, taken), check_target(out, overwrite, ".img2gene")
    _use_device(device)
    trained: Any = ig.tl.fit(
        open_store(study),
        model,
        genes=names_or_number(genes),
        groups=groups,
        train_on=train_on or None,
        validate_on=validate_on or None,
        encoder=encoder,
        seed=seed,
        table_key=table_key,
        inplace=False,
        **arguments,
    )
    ig.io.save_model(trained, target, overwrite=overwrite)
    report = trained.report
    facts = {
        "out": str(target),
        "model": trained.name,
        "encoder": trained.inputs["name"],
        "n_genes": len(trained.genes),
    }
    finish(
        {**facts, "n_spots": report["n_spots"], "trained_on": report["sections"], "held_out": report["held_out"]},
        as_json,
    )


def _use_device(device: str | None) -> None:
    """Set the device of networks, which models take from the settings; one that is not there is refused for all models."""
    from img2gene.encoders.base import resolve_device
    from img2gene.settings import settings

    if device is not None:
        settings.device = resolve_device(device)


def predict(
    study: Study,
    *,
    out: Out,
    model: ModelFile = None,
    key: Key = "img2gene",
    device: Device = None,
    table_key: TableKey = "table",
    more: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Predict expression for every embedded spot or tile, and write the study with it."""
    import img2gene as ig

    taken = ("model", "table_key", "key_added", "out", "client")
    arguments, target = further(ig.tl.predict, more, taken), check_target(out, overwrite, ".zarr")
    _use_device(device)
    sdata = open_store(study)
    ig.tl.predict(sdata, model, table_key=table_key, key_added=key, **arguments)
    write_store(sdata, target, overwrite)
    where = f"tables[{key!r}]" if key in sdata.tables else f"tables[{table_key!r}].layers[{key!r}]"
    finish({"out": str(target), "prediction": where, **described(sdata, table_key)}, as_json)
