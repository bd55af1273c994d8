"""Sizes and checksums of a folder's files, by threads: SHA-256 of gigabytes leaves Python to others."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    Described = dict[str, Any]

# The two large ones of a generation at the same time.
_READERS = 2
_BLOCK = 2**23
"""A thread asks for Python twice a block."""

_ahead: dict[Path, Future[Described]] = {}


def describe(path: Path) -> Described:
    """What a manifest says of a file: its size and sha256. Raises OSError where it cannot be read."""
    checksum, block, size = hashlib.sha256(), memoryview(bytearray(_BLOCK)), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            checksum.update(block[:count])
            size += count
    return {"size": size, "sha256": checksum.hexdigest()}


def read_ahead(directory: Path) -> None:
    """Begins to read the largest file of a folder, whose checksum will soon be asked for; what fails will fail then.

    The others are read when they are asked for: until then there is other work for the other core.
    """
    with suppress(OSError, ValueError):
        largest = max(directory.iterdir(), key=lambda path: path.stat().st_size)
        _ahead[largest] = _submit([largest], 1)[0]


def described(directory: Path, names: Iterable[str]) -> dict[str, Future[Described]]:
    """Of each file, in the future. What was read ahead counts now or never: later it may have changed."""
    found = {name: ahead for name in names if (ahead := _ahead.get(directory / name)) is not None}
    _ahead.clear()
    others = [name for name in names if name not in found]
    return found | dict(zip(others, _submit([directory / name for name in others], _READERS), strict=True))


def _submit(paths: Iterable[Path], readers: int) -> list[Future[Described]]:
    pool = ThreadPoolExecutor(readers, "checksum")
    submitted = [pool.submit(describe, path) for path in paths]
    pool.shutdown(wait=False)
    return submitted
