"""Options that several commands share, and arguments that are passed on by name."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from img2gene._errors import near

Out = Annotated[Path, typer.Option("--out", "-o", help="Store or file to write.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists under --out.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Study = Annotated[Path, typer.Argument(help="Store of the study (Zarr).", show_default=False)]
ModelFile = Annotated[
    str | None,
    typer.Option("--model", "-m", help="File of the model; by default the one that the study holds under --key."),
]
Key = Annotated[str, typer.Option("--key", help="Name of the prediction and of its model in the study.")]
TableKey = Annotated[str, typer.Option("--table-key", help="Table of the study; for tiles, the table of the tiles.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
Device = Annotated[str | None, typer.Option("--device", help="Device of torch, such as cpu or cuda.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="NAME=VALUE",
        help="A further argument of the function that the command calls. Repeat it for several.",
    ),
]

_SET_BY_COMMAND = ("adata", "inplace", "path", "sdata")


def parsed(texts: Iterable[str] | None) -> dict[str, Any]:
    """Read arguments such as ``n_components=10``; numbers, lists, True and None are read as Python reads them.

    Raises
    ------
    typer.BadParameter
        A text without a name or an equals sign, or a name that occurs twice.

    Examples
    --------
    >>> from img2gene._cli.options import parsed
    >>> parsed(["n_spots=30", "method=aucell"])
    {'n_spots': 30, 'method': 'aucell'}
    """
    arguments: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not (name.isidentifier() and equals):
            raise typer.BadParameter(f"--set {text}: expected NAME=VALUE, such as --set n_components=10.")
        if name in arguments:
            raise typer.BadParameter(f"--set {name} is given twice.")
        arguments[name] = value_of(value.strip())
    return arguments


def value_of(text: str) -> Any:
    """Read a number, a list, True, None or quoted text; everything else is text, such as the name of an option."""
    try:
        return ast.literal_eval(text)
    # Brackets that are nested too deeply, and unhashable keys, raise the others.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def names_or_number(values: Iterable[str] | None) -> Any:
    """Read ``--genes``: None without any, a number alone, else names."""
    names = list(values or ())
    if not names:
        return None
    return int(names[0]) if len(names) == 1 and names[0].isdecimal() else names


def further(function: Callable, texts: Iterable[str] | None, taken: Iterable[str] = ()) -> dict[str, Any]:
    """Read ``--set`` for a function; refuse names that it does not take, or that have an option of their own.

    A function with ``**params`` takes any name and checks it itself.
    """
    arguments = parsed(texts)
    parameters = inspect.signature(function).parameters
    elsewhere = {*taken, *_SET_BY_COMMAND}
    known = [name for name, item in parameters.items() if item.kind is not item.VAR_KEYWORD and name not in elsewhere]
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    for name in arguments:
        if name in elsewhere:
            raise typer.BadParameter(f"--set {name}: the command sets this argument itself.")
        if not takes_any and name not in known:
            raise typer.BadParameter(f"--set {name}: no argument of {function.__name__} ({near(name, known)}).")
    return arguments
