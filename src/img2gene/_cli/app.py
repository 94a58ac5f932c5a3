"""The commands, and what happens when one fails."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from img2gene._cli import judging, reading, training
from img2gene._cli.output import left_as_found, log_to_stderr
from img2gene._errors import Img2GeneError

logger = logging.getLogger(__name__)

_FAILED = 1
app = typer.Typer(
    name="img2gene",
    help="Predict spatially resolved gene expression from H&E images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (
    reading.read,
    training.embed,
    training.fit,
    training.predict,
    judging.evaluate,
    judging.report,
    judging.card,
):
    app.command()(command)
# The benchmark has a parser of its own, which also answers --help.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(context_settings=_PASSED_ON, add_help_option=False)(judging.benchmark)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("img2gene"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is written, step by step.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    """Set up messages and progress for all commands."""
    from img2gene.settings import settings

    log_to_stderr(verbose)
    logger.setLevel(logging.DEBUG if debug else logging.NOTSET)
    if quiet:
        settings.progress = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 if data cannot be used, or 2 for a command line that cannot be parsed.

    Parameters
    ----------
    arguments
        Words of the command line; None takes those of the process.
    """
    with left_as_found(logger), warnings.catch_warnings():
        # Dependencies warn of their own use of each other, which users of the command cannot change.
        for kind in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        app(args=None if arguments is None else list(arguments), prog_name="img2gene")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (Img2GeneError, OSError, MemoryError) as error:
        return _failed(str(error) or type(error).__name__, error)
    except Exception as error:  # noqa: BLE001 - whatever fails, a user of the command gets a sentence
        message = (
            f"{type(error).__name__}: {error}\nThis was not foreseen; `img2gene --debug …` shows where it happened."
        )
        return _failed(message, error)
    return 0


def _failed(message: str, error: BaseException) -> int:
    if logger.isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    typer.echo(f"img2gene: {message}", err=True)
    return _FAILED
