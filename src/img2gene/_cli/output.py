"""What commands print: results on the standard output, messages on the standard error."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import pandas as pd


def finish(facts: Mapping[str, Any], as_json: bool, table: pd.DataFrame | None = None) -> None:
    """Print the result of a command: one JSON object, or lines and a table to read.

    With JSON, the table is a list of records under ``scores``. NaN is null, because JSON has no NaN.
    """
    if as_json:
        whole = dict(facts) if table is None else {**facts, "scores": table.to_dict("records")}
        typer.echo(json.dumps(_plain(whole), allow_nan=False))
        return
    if table is not None:
        _print_table(table)
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        typer.echo(f"{name.replace('_', ' ')}: {text}")


def _plain(value: Any) -> Any:
    """Convert paths, numbers of numpy and missing values to what JSON has."""
    import numpy as np
    import pandas as pd

    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or value is pd.NA:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | str) else str(value)


def _print_table(frame: pd.DataFrame) -> None:
    from pandas.api.types import is_numeric_dtype
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    grid = Table(box=None, header_style="bold", pad_edge=False)
    for name in frame:
        grid.add_column(escape(str(name)), justify="right" if is_numeric_dtype(frame[name]) else "left", no_wrap=True)
    for values in frame.itertuples(index=False):
        grid.add_row(*(escape(_cell(value)) for value in values))
    # A pipe has no width, so nothing is cut there.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(grid)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "–"
    return str(value)


def log_to_stderr(verbose: bool) -> None:
    """Send the messages of the package to the standard error; only warnings unless ``verbose``."""
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=verbose)
    logger = logging.getLogger("img2gene")
    # A second call, in the same process, takes the place of the first.
    logger.handlers = [one for one in logger.handlers if not isinstance(one, RichHandler)] + [handler]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


@contextmanager
def left_as_found(command: logging.Logger) -> Iterator[None]:
    """Undo afterwards what the options of a command change in the process: loggers and settings."""
    from img2gene.settings import settings

    package = logging.getLogger("img2gene")
    handlers, levels = list(package.handlers), (package.level, command.level)
    progress, device = settings.progress, settings.device
    try:
        yield
    finally:
        package.handlers, settings.progress, settings.device = handlers, progress, device
        for logger, level in zip((package, command), levels, strict=True):
            logger.setLevel(level)
