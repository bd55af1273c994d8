"""Writing of which a reader, a crash or a power cut finds all or nothing."""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, finds the old text or the new one, whole."""
    # A name of its own: a person may activate a generation while a build publishes another.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync_path(path.parent)


def sync_tree(directory: Path) -> None:
    """Waits until a folder and all in it are on the disk."""
    for path in sorted(directory.rglob("*")):
        sync_path(path)
    sync_path(directory)


def sync_path(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
