"""`python -m server`: serve a store over gRPC."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
from pathlib import Path
from typing import Annotated

import typer

from coldframe import settings

app = typer.Typer(add_completion=False)


@app.command()
def main(
    store: Annotated[Path, typer.Option(help="The folder of generations that `python -m indexer build` made.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = "localhost:50051",
    model: Annotated[
        str | None, typer.Option(help="Where the model is, if no longer where the build found it.")
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or int8.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    grace: Annotated[
        float, typer.Option(help="Seconds that calls under way have to finish when the server stops.")
    ] = 10.0,
) -> None:
    """Answer which clusters and articles are nearest to a text, over gRPC.

    Serves the store's current generation until SIGTERM, which finishes the calls under way.
    """
    from coldframe.store import Store
    from server.app import Address, serve
    from server.engine import Engine

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    address = Address.parse(listen)
    engine = Engine(Store(store), model=model, precision=precision, device=device)  # type: ignore[arg-type]  # checked there
    announce = functools.partial(print, flush=True)
    asyncio.run(serve(engine, address, grace_s=grace, announce=announce))


def _stop_at_once(_signal: int, _frame: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    # Until the server drains on SIGTERM by itself: as process 1 of a container Python would ignore it.
    signal.signal(signal.SIGTERM, _stop_at_once)
    settings.run(app, prog="python -m server", prefix="COLDFRAME_SERVER")
