"""The command line, one file a command.

Words in, words out: every job is done elsewhere, and imported only when it is asked for.
"""

from importlib.metadata import version as installed
from typing import Annotated

import typer

from foveate.cli.ask import ask
from foveate.cli.bench import bench
from foveate.cli.calibrate import calibrate
from foveate.cli.cost import cost
from foveate.cli.methods import methods
from foveate.cli.profile import profile

__all__ = ["app"]

app = typer.Typer(
    help="Find where a vision-language model looks, and stop computing the rest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(installed("foveate"))
        raise typer.Exit


def main(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find where a vision-language model looks, and stop computing the rest."""


app.callback()(main)
for command in (ask, methods, bench, calibrate, cost, profile):
    app.command()(command)
