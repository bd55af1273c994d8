"""`python -m server`: serve a store over gRPC."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":
    # Until the server drains on SIGTERM by itself: as process 1 of a container Python would ignore it. At once, for the
    # imports below take half a second, and some seconds where there is little processor time.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # And SIGHUP, before there is anything to look at again, would end it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

import contextlib
import faulthandler
import logging
import os
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe import cores, settings
from coldframe.errors import InvalidArgument
from coldframe.flags import spread
from server import key_commands
from server.config import Config, printed

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.address import Address
    from server.place import Place
    from server.security.guard import Guard

app = typer.Typer(add_completion=False)
app.add_typer(key_commands.app, name="keys")


@app.callback(invoke_without_command=True)
@spread
def main(context: typer.Context, *, config: Config) -> None:
    """Answer which clusters and articles are nearest to a text, over gRPC.

    Serves the store's current generation until SIGTERM, which finishes the calls under way. SIGHUP looks at once at
    certificates, keys and the current generation, which are looked at every second anyway.
    """
    if context.invoked_subcommand is None:
        run(config)
        return
    lost = [name for name in context.params if _origin(context, name) == "flag"]
    if lost:
        flag = f"--{lost[0].replace('_', '-')}"
        raise InvalidArgument(
            f"{flag} stands before the command; put it behind: {context.invoked_subcommand} {flag} ...",
            field=lost[0],
        )


def run(config: Config, place: Place | None = None, announce: Callable[[str], object] | None = None) -> None:
    """Serves until SIGTERM. A worker has a place; without one, and with several workers, they are looked after here."""
    from server.address import Address
    from server.observe import logs
    from server.observe.lines import Lines
    from server.security.guard import raise_open_files

    cores.rest_soon()
    # Before numpy is. It would share out products of a thousand rows among all cores, and wait for those that are busy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    logs.begin(config.log_format)
    _have_last_words()
    logging.getLogger("faiss").setLevel(logging.WARNING)  # which tells of its own loading
    # It goes on where whoever read what is printed has gone, or reads no more.
    announce = announce or Lines(sys.stdout).put
    address = Address.parse(config.listen)
    raise_open_files()
    guard = config.guard(None if place is None else place.page)
    if config.workers > 1 and place is None:
        from server.workers import supervise

        if status := supervise(config, address, announce):
            raise typer.Exit(status)
        return
    cores.heed()
    _serve(config, address, guard, place, announce)


def _have_last_words() -> None:
    """Lets standard error say of what a process dies that the system ends for what it read, and where. Each file of a
    generation is mapped: where one was written over, or its disk fails, the next look at it is such an end (SIGBUS).
    """
    if sys.stderr is not None:
        with contextlib.suppress(OSError):  # it is none of the system's
            faulthandler.enable(all_threads=False)


def _serve(
    config: Config, address: Address, guard: Guard, place: Place | None, announce: Callable[[str], object]
) -> None:
    from coldframe.store import Store
    from server.threads import SWITCH_S

    # Each of the some hundred steps of a short text asks for Python anew. While the event loop is busy saying no, each
    # would wait 5 ms for it, and the text a second.
    sys.setswitchinterval(SWITCH_S)
    store = Store(config.folder())
    store.read_ahead()

    import uvloop

    from server.app import serve
    from server.engine import Engine
    from server.place import Latest, Presence

    engine = Engine(
        store,
        model=config.model,
        precision=config.precision,
        device=config.device,
        latest=Latest(place),
        presence=None if place is None else Presence(place),
        max_searches=config.max_searches,
    )
    station = config.station(0 if place is None else place.number)
    uvloop.run(serve(engine, address, guard, grace_s=config.grace, announce=announce, place=place, station=station))
    if engine.stands:
        _end_now()


def _end_now() -> None:
    """Ends the process in good order, and waits for no thread."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # whoever read it has gone
            stream.flush()
    os._exit(0)


@app.command("config")
@spread
def config_command(context: typer.Context, *, config: Config) -> None:
    """Print what holds, as a TOML file, secrets hidden; beside each value where it is from."""
    for line in printed(config, lambda name: _origin(context, name)):
        typer.echo(line)


def _origin(context: typer.Context, name: str) -> str:
    """Where a value is from: "flag", "environment", "file" or "default"."""
    source = context.get_parameter_source(name)
    word = "default" if source is None else source.name.lower()
    return {"commandline": "flag", "default_map": "file"}.get(word, word)


@app.command()
@spread
def check(
    context: typer.Context,
    *,
    config: Config,
    show: Annotated[bool, typer.Option("--print", help="Print what holds first, as `config` does.")] = False,
) -> None:
    """Look whether a server could be started like this, without starting one: a line for each thing.

    Configuration, store and its current generation, model, live articles, certificates, keys, address. Ends with 1 if
    something would keep the server from serving.
    """
    from server.check import checks, told

    if show:
        for line in printed(config, lambda name: _origin(context, name)):
            typer.echo(line)
    raise typer.Exit(told(checks(config), typer.echo))


@app.command()
@spread
def health(
    *,
    config: Config,
    timeout: Annotated[float, typer.Option(min=0.1, max=3600.0, help="Seconds to wait for an answer.")] = 4.0,
) -> None:
    """Ask the server that runs at --listen whether it has something to answer from; ends with 1 if it has not.

    Reads the same configuration: a certificate that the server has is believed here.
    """
    from server.health import require_healthy

    require_healthy(config, timeout)


if __name__ == "__main__":
    settings.run(app, prog="python -m server", prefix="COLDFRAME_SERVER")
