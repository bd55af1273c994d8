"""The commands that look after API keys: add, list, remove. A running server notices within a second."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from coldframe.flags import read_moment
from server.security.keys import Role, changed, new_key, read_keys, removed

ApiKeys = Annotated[Path, typer.Option("--api-keys", metavar="FILE", help="The file of keys.")]

app = typer.Typer(no_args_is_help=True, help="API keys: who may ask, and for what.")


@app.command()
def add(
    *,
    api_keys: ApiKeys,
    name: Annotated[str, typer.Option(metavar="NAME", help="Whose it is: it stands in logs.")],
    role: Annotated[
        Role, typer.Option(help="read: all that asks; write: upserts and deletions, too; admin: everything.")
    ] = Role.READ,
    expires: Annotated[
        str | None, typer.Option(metavar="DATE", help="From when it is worth nothing; UTC unless said.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="N", help="Requests a second, where this key differs from the rest.")
    ] = None,
) -> None:
    """Make a key, and print it: once, for nobody can read it out of the file.

    Example: python -m server keys add --api-keys keys.json --name homepage --role read
    """
    moment = None if expires is None else read_moment(expires, "--expires")
    token, key = new_key(name, role, moment, rate)
    with changed(api_keys) as keys:
        keys[key.id] = key
    typer.echo(f"{name} may {role}; its key, which is not shown again, is on the next line", err=True)
    typer.echo(token)


@app.command("list")
def list_keys(*, api_keys: ApiKeys) -> None:
    """List the keys of a file: names, roles and dates; the keys themselves are not in it."""
    now = datetime.now(UTC)
    for key in read_keys(api_keys).values():
        until = "for ever" if key.expires_at is None else f"until {key.expires_at:%Y-%m-%d %H:%M %Z}"
        worth = "expired" if key.expired(now) else until
        rate = f", {key.requests_per_second:g} requests a second" if key.requests_per_second else ""
        typer.echo(f"{key.id}  {key.name}: {key.role}, {worth}, made {key.created_at:%Y-%m-%d}{rate}")


@app.command()
def remove(
    *,
    api_keys: ApiKeys,
    name: Annotated[str, typer.Option(metavar="NAME", help="A name, for all keys of that name, or one key's id.")],
) -> None:
    """Take keys away. Streams that are open with one end at their next request."""
    with changed(api_keys) as keys:
        gone = removed(keys, name)
    for key in gone:
        typer.echo(f"{key.name} ({key.id}) may nothing any more")
