"""A guarded server over the newsroom, and callers of every kind."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldframe import Client
from coldframe.store import Store
from server.engine import Engine
from server.security.certificates import CertificateFiles, Tls
from server.security.guard import Guard
from server.security.keys import Role, changed, new_key
from server.security.limits import Limits
from tests import certificates

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.certificates import Files
    from tests.conftest import Background


@dataclass
class Guarded:
    """A server with keys, and with TLS where it has files for it."""

    target: str
    keys: Path
    guard: Guard
    engine: Engine
    files: Files | None

    def client(self, api_key: str | None = None, **options: Any) -> Client:
        """A client that believes the server's authority."""
        ca = {"tls_ca": self.files.ca} if self.files else {}
        return Client(self.target, api_key=api_key, **{"attempts": 1, "timeout": 60, **ca, **options})

    def key(self, role: str = "read", **options: Any) -> str:
        """A new key, which the server knows at once."""
        token = add_key(self.keys, role, **options)
        self.guard.refresh()
        return token


def add_key(path: Path, role: str = "read", name: str = "", **options: Any) -> str:
    """Puts a new key into a file, and gives what a caller sends."""
    token, key = new_key(name or f"the-{role}er", Role(role), **options)
    with changed(path) as keys:
        keys[key.id] = key
    return token


@contextlib.contextmanager
def guarded(
    background: Background,
    store: Path,
    folder: Path,
    *,
    tls: bool = False,
    client_ca: bool = False,
    reflection: bool = True,
    **limits: Any,
) -> Iterator[Guarded]:
    """A server in this process. Its files are in `folder`, and are watched."""
    folder.mkdir(exist_ok=True)
    keys = folder / "keys.json"
    add_key(keys, name="unused")
    files = certificates.files(folder / "tls") if tls else None
    engine = Engine(Store(store), precision="fp32")
    engine.load()
    guard = Guard(
        tls=Tls(CertificateFiles(files.chain, files.key, files.ca if client_ca else None)) if files else None,
        keys=keys,
        limits=Limits(**limits),
        reflection=reflection,
    )
    with background.serving(engine, guard) as target:
        watching = asyncio.run_coroutine_threadsafe(guard.watch(poll_s=0.02), background.loop)
        try:
            yield Guarded(target, keys, guard, engine, files)
        finally:
            watching.cancel()
