"""`python -m indexer report`: the report of a generation, written anew."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # Typer reads annotations at run time
from typing import Annotated

import typer


def report_command(
    store: Annotated[Path, typer.Option(help="The folder of generations.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
    generation: Annotated[
        str | None, typer.Option(help="Its name, as `list` shows it; without it the current one.")
    ] = None,
) -> None:
    """Write the report of a generation to a file: how its clusters look, what it finds, what it took.

    Example: python -m indexer report --store store --out report.html
    """
    from coldframe.errors import InvalidArgument, NoGeneration
    from coldframe.store import Store
    from indexer.report import write_report_of

    found = Store(store)
    name = generation or found.current()
    if name is None:
        raise NoGeneration(f"there is nothing to report: {store} holds no generation")
    try:
        write_report_of(found.directory(name), out)
    except OSError as error:
        reason = error.strerror or error
        raise InvalidArgument(f"{out} cannot be written ({reason}); name another file", field="out") from error
    typer.echo(f"{out} shows generation {name}")
